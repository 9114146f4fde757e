"""A sweep loses and repeats nothing when killed, survives failing trials, and tests the winner alone."""

import contextlib
import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from examples.mlp import MLP
from lightning.pytorch import Trainer, seed_everything
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, Interrupted
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.rows import RowCallback
from softmax_regression.studies.learning import pool
from softmax_regression.studies.stacked import METRICS, Scores, Stack
from softmax_regression.studies.sweep import search as sweep
from softmax_regression.studies.sweep.plan import Plan, Range, Value, describe
from softmax_regression.studies.sweep.search import Sweep
from softmax_regression.studies.sweep.trials import is_lost

ROOT = Path(__file__).parents[2]
SPACE: dict[str, list[Value] | Range] = {"batch_size": [16, 64], "lr": [0.1, 0.5, 0.01], "epochs": [1, 3]}
Result = tuple[TrialState, Any]
# Lightning's, where SLURM is installed and not used.
pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available on your system")

# The thread that gives signs of life dies, too.
DEAD_THREADS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def data() -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, val_size=100, source="synthetic", synthetic_size=300)
    data.setup()
    return data


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Killed(BaseException):
    """What a kill looks like from within."""


def plan(
    space: Mapping[str, Sequence[Value] | Range] = SPACE,
    sampler: str = "grid",
    trials: int = 1,
    **options: Any,
) -> Plan:
    return Plan(space, sampler, trials, [0, 1], 0, "tiny", **options)


def search(data: FashionMNISTDataModule, name: str, plan: Plan, workers: int = 1) -> Sweep:
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    found = Sweep(plan, folder, partial(sweep.train, plan, data, "val"))
    with pool(plan.model, workers) as threads:
        found.search(threads)
    return found


def search_until(write: int, data: FashionMNISTDataModule, name: str, plan: Plan) -> None:
    """Search, and die in the middle of a write to the journal, with its lock held."""
    append_logs, count, dead = JournalFileBackend.append_logs, iter(range(write)), threading.Event()

    def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        path = Path(self._file_path)
        if not dead.is_set() and next(count, None) is None:
            dead.set()
            path.with_name(f"{path.name}.lock").touch()
            with path.open("a") as file:
                file.write('{"op_code": 5, "tri')
        if dead.is_set():
            raise Killed
        append_logs(self, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", append)
        with contextlib.suppress(Killed):  # or done before that
            search(data, name, plan)


def results(found: Sweep) -> dict[str, Result]:
    trials = [trial for trial in found.study.trials if not is_lost(trial)]
    assert len(trials) == len({describe(trial.params) for trial in trials})
    return {describe(trial.params): (trial.state, trial.user_attrs.get("history")) for trial in trials}


def same(results: Mapping[str, Result], expected: Mapping[str, Result]) -> bool:
    """Compare within float32 rounding: what is left of a group makes a narrower matrix product."""
    return results.keys() == expected.keys() and all(
        state == expected[name][0]
        and all(
            row == pytest.approx(other, rel=1e-5)
            for metric in history
            for row, other in zip(history[metric], expected[name][1][metric], strict=True)
        )
        for name, (state, history) in results.items()
    )


def test_a_trial_is_what_fit_trains(data: FashionMNISTDataModule) -> None:
    found = results(search(data, "fit", plan({"lr": [0.1, 0.5], "batch_size": [16], "epochs": [1, 3]})))
    for seed in (0, 1):
        seed_everything(seed, verbose=False)
        module = SoftmaxRegression(lr=0.5)
        collected = RowCallback()
        trainer = Trainer(
            max_epochs=3, callbacks=[collected], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        own = FashionMNISTDataModule(16, val_size=100, source="synthetic", synthetic_size=300, seed=seed)
        trainer.fit(module, own)
        for name in METRICS[:4]:
            expected = [row[name] for row in collected.rows]
            history = found["lr=0.5, batch_size=16, epochs=3"][1]
            assert history[name][seed] == pytest.approx(expected, rel=1e-4)


@DEAD_THREADS
def test_a_sweep_killed_at_random_points_equals_an_uninterrupted_one(data: FashionMNISTDataModule) -> None:
    expected = results(search(data, "whole", plan()))
    assert {state for state, _ in expected.values()} == {TrialState.COMPLETE}
    rng = random.Random(0)
    for _ in range(10):
        search_until(rng.randrange(30), data, "killed", plan())
    found = Sweep(plan(), Path("killed"), partial(sweep.train, plan(), data, "val"))
    ended = {t.number: t.datetime_complete for t in found.study.trials if t.state.is_finished() and not is_lost(t)}
    found = search(data, "killed", plan())
    assert ended.items() <= {t.number: t.datetime_complete for t in found.study.trials}.items()
    assert same(results(found), expected)


def test_an_interrupted_sweep_gives_its_trials_back_and_goes_on(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch, calls = Stack.train_epoch, iter(range(10))

    def interrupted(self: Stack) -> Scores:
        if next(calls, None) is None:
            raise Interrupted(signal.SIGINT, "nothing was saved")
        return train_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "train_epoch", interrupted)
        with pytest.raises(Interrupted, match="SIGINT: the same command goes on where it was") as error:
            search(data, "stopped", plan())
    assert error.value.code == 130
    storage = optuna.storages.JournalStorage(JournalFileBackend("stopped/trials.jsonl"))
    left = optuna.load_study(study_name="stopped", storage=storage).get_trials()
    assert TrialState.RUNNING not in {trial.state for trial in left}
    assert same(results(search(data, "stopped", plan())), results(search(data, "whole", plan())))


def test_workers_share_the_groups(data: FashionMNISTDataModule) -> None:
    assert same(results(search(data, "two", plan(), workers=2)), results(search(data, "one", plan())))


def test_a_short_run_is_the_beginning_of_a_long_one(data: FashionMNISTDataModule) -> None:
    both = results(search(data, "both", plan({"batch_size": [32], "epochs": [1, 3]})))
    alone = results(search(data, "alone", plan({"batch_size": [32], "epochs": [1]})))
    assert both["batch_size=32, epochs=1"] == alone["batch_size=32, epochs=1"]
    assert [len(seed) for seed in both["batch_size=32, epochs=3"][1]["val/acc"]] == [3, 3]


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(data: FashionMNISTDataModule) -> None:
    found = search(data, "failing", plan({"batch_size": [16, 9999], "lr": [0.1, 1e38], "epochs": [2]}))
    errors = {describe(t.params): t.user_attrs.get("error", "") for t in found.study.trials}
    assert errors["batch_size=16, lr=0.1, epochs=2"] == ""
    assert "DivergedError: val/loss=" in errors["batch_size=16, lr=1e+38, epochs=2"]
    assert "batch_size=9999" in errors["batch_size=9999, lr=0.1, epochs=2"]
    assert [t.state for t in found.study.trials].count(TrialState.FAIL) == 3
    hopeless = search(data, "hopeless", plan({"batch_size": [9999]}))
    with pytest.raises(InputError, match="failed: InputError: batch_size=9999: must be at most the 200"):
        hopeless.complete()
    diverged = search(data, "diverged", plan({"lr": [1e38], "batch_size": [16]}))
    with pytest.raises(DivergedError, match="all trials failed: DivergedError: val/loss="):
        diverged.complete()


@pytest.mark.parametrize("model", [SoftmaxRegression, MLP])
def test_the_winner_alone_is_tested_and_once(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch, model: type[SoftmaxRegression]
) -> None:
    from softmax_regression.studies import learning, stacked

    tested, mean_scores = [], stacked.mean_scores

    def spy(log_probs: Any, images: Tensor, labels: Tensor) -> Scores:
        scores = mean_scores(log_probs, images, labels)
        if torch.equal(images, data.loaded.test_images):
            tested.append(scores.loss.tolist())
        return scores

    for module in (learning, stacked):
        monkeypatch.setattr(module, "mean_scores", spy)
    wanted = plan({"batch_size": [16], "lr": [0.1, 0.5], "epochs": [1, 2]}, model=model)
    found = search(data, "tested", wanted)
    assert tested == []
    test = partial(sweep.train, wanted, data, "test")
    first = found.test(test)
    assert [[loss] for loss in first["test/loss"]] == tested
    assert len(first["test/acc"]) == 2
    assert search(data, "tested", wanted).test(test) == first
    assert len(tested) == 2


@DEAD_THREADS
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_random_and_tpe_draw_from_ranges_and_go_on(data: FashionMNISTDataModule, sampler: str) -> None:
    space: dict[str, list[Value] | Range]
    space = {"lr": Range(0.01, 1.0, log=True), "batch_size": Range(16, 64), "epochs": [1]}
    wanted = plan(space, sampler, 18)
    search_until(80, data, sampler, wanted)
    found = search(data, sampler, wanted)
    trials = [trial for trial in found.study.trials if not is_lost(trial)]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 18
    for trial in trials:
        assert 0.01 <= trial.params["lr"] <= 1
        assert trial.params["batch_size"] in range(16, 65)
    assert len({trial.params["lr"] for trial in trials}) == 18
    assert len(found.test(partial(sweep.train, wanted, data, "test"))["test/acc"]) == 2


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": [0.1]}, r"space\.learning_rate: unknown; expected one of batch_size"),
        ({"lr": []}, r"space\.lr: has no values"),
        ({"lr": Range(0.1, 1)}, r"space\.lr: a range has no grid"),
        ({"lr": [0.1, "fast"]}, r"space\.lr: .*Expected a <class 'float'>\. Got value: fast"),
        ({"lr": [0.1, -1.0]}, r"space\.lr: lr=-1.0: must be above 0"),
        ({"schedule": ["cosinus"]}, r"space\.schedule: .*'constant', 'cosine'.*Got value: cosinus"),
        ({"epochs": [0]}, r"space\.epochs: expected a whole number, at least 1. Got value: 0"),
        ({"batch_size": [16.5]}, r"space\.batch_size: expected a whole number"),
        ({}, "need at least one"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_anything_is_kept(
    space: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sweep.run(space, source="synthetic", quick="epochs" not in space and bool(space))
    assert not Path("logs").exists()


@pytest.mark.parametrize("ends", [Range(1.0, 0.1), Range(0, 1, log=True), Range(-1.0, 1.0)])
def test_a_range_that_nothing_can_be_drawn_from_is_refused(ends: Range) -> None:
    with pytest.raises(InputError, match=r"space\.lr: "):
        plan({"lr": ends}, "random")


@pytest.mark.parametrize("seeds", [[1, 1], [-1], [2**32]])
def test_seeds_that_say_too_little_are_refused(seeds: list[int]) -> None:
    with pytest.raises(InputError, match=re.escape(f"seeds={seeds}: must be different numbers from 0")):
        Plan(SPACE, "grid", 1, seeds, 0, "")


def test_a_folder_keeps_one_plan_and_one_sweep_at_a_time(data: FashionMNISTDataModule) -> None:
    search(data, "mine", plan({"lr": [0.1], "epochs": [1]}))
    with pytest.raises(InputError, match="another plan"):
        search(data, "mine", plan({"lr": [0.2], "epochs": [1]}))
    folder = Path("logs/sweep/mine-quick")
    folder.mkdir(parents=True)
    with locked(folder, ""), pytest.raises(InputError, match=r"another process is at work there.* --name"):
        sweep.run({"lr": [0.1]}, name="mine", source="synthetic", quick=True)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work() -> None:
    Path("logs").write_text("a file\n")
    with pytest.raises(InputError, match=r"logs/sweep/mine: cannot be written"):
        sweep.run({"lr": [0.1]}, name="mine", source="synthetic")


def test_the_page_the_table_and_tensorboard_have_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", "--space", '{"lr": [0.1]}', "--quick"])
    space: dict[str, list[Value] | Range] = {"batch_size": [64, 9999], "lr": [0.1, 0.5], "epochs": [5]}
    page = sweep.run(space, name="page", source="synthetic", quick=True)
    text = page.read_text()
    assert "Of 4 configurations, with 2 seeds each" in text
    assert "has the least validation loss" in text
    assert "InputError: batch_size=9999" in text
    with (page.parent / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2)  # learning rates x seeds x epochs of the two lengths
    assert rows[0]["machine"] in text
    runs = sorted((page.parent / "tensorboard").iterdir())
    assert len(runs) == 4
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert {path.name for path in page.parent.glob("*.png")} == {"trials.png", "curves.png"}
    search_command, fit_command = _commands(text)
    assert search_command == ["python", "study.py", "sweep", "--space", '{"lr": [0.1]}', "--quick"]
    options = dict(zip(fit_command[2::2], fit_command[3::2], strict=True))
    assert options["--data.synthetic_size"] == "1500"
    assert (options["--data.train_size"], options["--data.val_size"]) == ("1000", "500")
    assert (options["--data.source"], options["--early_stopping.patience"]) == ("synthetic", "0")
    _check_fit(options, text)


def _commands(page: str) -> list[list[str]]:
    import html

    found = re.search(r"(python study\.py.*)\n(softmax-regression fit.*?)<", html.unescape(page))
    assert found
    return [shlex.split(command) for command in found.groups()]


def _check_fit(options: Mapping[str, str], page: str) -> None:
    """Train what a page's command names, and see that it comes to the validation loss of the page."""
    seed = seed_everything(int(options["--seed_everything"]), verbose=False)
    groups: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "trainer": {}, "early_stopping": {}}
    for name, value in options.items():
        group, _, option = name[2:].partition(".")
        if option:
            groups[group][option] = value if option == "source" else json.loads(value)
    module, own = SoftmaxRegression(**groups["model"]), FashionMNISTDataModule(**groups["data"], seed=seed)
    trainer = Trainer(
        **groups["trainer"], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, own)
    assert f"comes to the validation loss {float(trainer.callback_metrics['val/loss']):.4f}" in page


def test_one_trial_with_one_seed_is_called_so() -> None:
    page = sweep.run({"lr": [0.1]}, seeds=[5], name="one", source="synthetic", quick=True)
    text = page.read_text()
    assert "Of 2 configurations, with one seed: " in text
    assert "inf" not in text.split("<h2>All trials")[0].split("</style>")[1]
    found = search(FashionMNISTDataModule(source="synthetic"), "x", plan({"lr": [0.1], "epochs": [1]}))
    assert found.plan.size == 1


def test_a_model_that_cannot_be_stacked_is_swept_as_fit_trains_it(data: FashionMNISTDataModule) -> None:
    space: dict[str, list[Value] | Range] = {"lr": [0.1, 0.3], "hidden": [16], "batch_size": [64]}
    page = sweep.run(space, seeds=[0, 3], name="mlp", model=MLP, source="synthetic", quick=True)
    text = page.read_text()
    assert "--model examples.mlp.MLP" in text
    with (page.parent / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2)
    row = next(r for r in rows if (r["lr"], r["epochs"], r["seed"], r["epoch"]) == ("0.3", "2", "3", "2"))
    seed_everything(3, verbose=False)
    module = MLP(16, lr=0.3)
    trainer = Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    sizes = {"synthetic_size": 1500, "val_size": 500, "train_size": 1000}
    trainer.fit(module, FashionMNISTDataModule(64, source="synthetic", seed=3, **sizes))  # type: ignore[arg-type]
    for name in METRICS[:4]:
        assert float(row[name]) == pytest.approx(float(trainer.callback_metrics[name]), rel=1e-5)


def test_the_configuration_covers_what_the_exercise_asks_for() -> None:
    config = yaml.safe_load((ROOT / "conf" / "sweep.yaml").read_text())
    wanted = Plan(config["space"], "grid", 1, config["seeds"], 0, "")
    assert wanted.size >= 100
    assert len(wanted.seeds) == 3
    for name, low, high in (("batch_size", 16, 4096), ("lr", 0.001, 1), ("epochs", 1, 50)):
        assert (min(config["space"][name]), max(config["space"][name])) == (low, high)


@pytest.mark.parametrize("model", [SoftmaxRegression, MLP])
def test_hopeless_trials_are_given_up_on_request(data: FashionMNISTDataModule, model: type[SoftmaxRegression]) -> None:
    rates: list[Value] = [0.1, 0.2, 0.05, 0.3, 0.15, 1e-6]
    sizes: list[Value] = [32, 16] if model is SoftmaxRegression else [64]
    space: dict[str, list[Value] | Range] = {"batch_size": sizes, "lr": rates, "epochs": [2]}
    pruned = search(data, "pruned", plan(space, prune=True, model=model))
    whole = search(data, "whole", plan(space, model=model))
    assert {trial.state for trial in whole.study.trials} == {TrialState.COMPLETE}
    given_up = [trial.params for trial in pruned.study.trials if trial.state == TrialState.PRUNED]
    if model is SoftmaxRegression:  # trained by groups, and the first one has nothing before it
        assert {params["batch_size"] for params in given_up} == {16}
    assert 1e-6 in {params["lr"] for params in given_up}
    assert pruned.study.best_value == pytest.approx(whole.study.best_value)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_ten_sigkills_lose_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "study.py"), "sweep", "--name", "chaos", "--quick",
        "--source", "synthetic",
        "--space", '{"batch_size": [8, 16], "lr": [0.1, 0.3, 1.0], "epochs": [2]}', "--workers", "1",
    ]  # fmt: skip
    journal = tmp_path / "logs" / "sweep" / "chaos-quick" / "trials.jsonl"
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        size, deadline = _size(journal), time.monotonic() + 60
        while _size(journal) == size and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # imports take seconds, and are not what is tested
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    whole = [*command[:4], "whole", *command[5:]]
    for finish in (command, whole):
        assert subprocess.run(finish, cwd=tmp_path, capture_output=True, timeout=300).returncode == 0
    killed, expected = (_stored(tmp_path / "logs" / "sweep" / f"{name}-quick") for name in ("chaos", "whole"))
    assert same(killed, expected)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stored(folder: Path) -> dict[str, Result]:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "trials.jsonl")))
    study = optuna.load_study(study_name=folder.name, storage=storage)
    trials = [trial for trial in study.trials if not is_lost(trial)]
    assert len(trials) == len({describe(trial.params) for trial in trials})
    return {describe(trial.params): (trial.state, trial.user_attrs.get("history")) for trial in trials}
