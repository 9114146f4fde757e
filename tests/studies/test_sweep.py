"""A sweep loses and repeats nothing when killed, survives failing trials, and tests the winner alone."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.files import locked
from softmax_regression.studies import sweep
from softmax_regression.studies.stacked import Scores, Stack
from softmax_regression.studies.sweep import Sweep
from softmax_regression.studies.sweep_plan import Plan, Range, Value, describe
from softmax_regression.studies.sweep_trials import METRICS

ROOT = Path(__file__).parents[2]
SPACE: dict[str, list[Value] | Range] = {"batch_size": [16, 64], "lr": [0.1, 0.5, 0.01], "epochs": [1, 3]}
Result = tuple[TrialState, Any]


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
    space: Mapping[str, Sequence[Value] | Range] = SPACE, sampler: str = "grid", trials: int = 1
) -> Plan:
    return Plan(space, sampler, trials, [0, 1], 0, "tiny")


def search(data: FashionMNISTDataModule, name: str, plan: Plan, workers: int = 1) -> Sweep:
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    found = Sweep(plan, data, folder, None)
    found.search(workers)
    return found


def search_until(write: int, data: FashionMNISTDataModule, name: str, plan: Plan) -> None:
    """Search, and die in the middle of a write to the journal, with its lock held."""
    append_logs, count = JournalFileBackend.append_logs, iter(range(write))

    def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        if next(count, None) is None:
            path = Path(self._file_path)
            path.with_name(f"{path.name}.lock").symlink_to(path)
            with path.open("a") as file:
                file.write('{"op_code": 5, "tri')
            raise Killed
        append_logs(self, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", append)
        with contextlib.suppress(Killed):  # or done before that
            search(data, name, plan)


def results(found: Sweep) -> dict[str, Result]:
    assert len(found.study.trials) == len({describe(trial.params) for trial in found.study.trials})
    return {
        describe(trial.params): (trial.state, trial.user_attrs.get("history")) for trial in found.study.trials
    }


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


def test_a_sweep_killed_at_random_points_equals_an_uninterrupted_one(data: FashionMNISTDataModule) -> None:
    expected = results(search(data, "whole", plan()))
    assert {state for state, _ in expected.values()} == {TrialState.COMPLETE}
    rng = random.Random(0)
    for _ in range(10):
        search_until(rng.randrange(30), data, "killed", plan())
    found = Sweep(plan(), data, Path("killed"), None)
    ended = {t.number: t.datetime_complete for t in found.study.trials if t.state.is_finished()}
    found.search(1)
    assert ended.items() <= {t.number: t.datetime_complete for t in found.study.trials}.items()
    assert same(results(found), expected)


def test_workers_share_the_groups(data: FashionMNISTDataModule) -> None:
    assert same(results(search(data, "two", plan(), workers=2)), results(search(data, "one", plan())))


def test_a_short_run_is_the_beginning_of_a_long_one(data: FashionMNISTDataModule) -> None:
    both = results(search(data, "both", plan({"batch_size": [32], "epochs": [1, 3]})))
    alone = results(search(data, "alone", plan({"batch_size": [32], "epochs": [1]})))
    assert both["batch_size=32, epochs=1"] == alone["batch_size=32, epochs=1"]
    assert [len(seed) for seed in both["batch_size=32, epochs=3"][1]["val/acc"]] == [3, 3]


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(data: FashionMNISTDataModule) -> None:
    found = search(data, "failing", plan({"batch_size": [16, 9999], "lr": [0.1, -1.0], "epochs": [1]}))
    errors = {describe(t.params): t.user_attrs.get("error", "") for t in found.study.trials}
    assert errors["batch_size=16, lr=0.1, epochs=1"] == ""
    assert "lr=-1.0: must be above 0" in errors["batch_size=16, lr=-1, epochs=1"]
    assert "batch_size=9999" in errors["batch_size=9999, lr=0.1, epochs=1"]
    assert [t.state for t in found.study.trials].count(TrialState.FAIL) == 3
    hopeless = search(data, "hopeless", plan({"lr": [-1.0]}))
    with pytest.raises(InputError, match="all trials failed: InputError: lr=-1"):
        hopeless.test_winner()


def test_the_winner_alone_is_tested_and_once(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, tested = Stack.score, []

    def spy(self: Stack, images: Tensor, labels: Tensor) -> Scores:
        if images is data.loaded.test_images:
            tested.append((self.lr.unique().tolist(), self.epoch, self.shared["seed"]))
        return score(self, images, labels)

    monkeypatch.setattr(Stack, "score", spy)
    found = search(data, "tested", plan())
    assert tested == []
    best = min(found.study.trials, key=lambda trial: trial.value or 0.0)
    first = found.test_winner()
    lr, epochs = best.params["lr"], best.params["epochs"]
    assert tested == [([pytest.approx(lr)], epochs, 0), ([pytest.approx(lr)], epochs, 1)]
    assert search(data, "tested", plan()).test_winner() == first
    assert len(tested) == 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_random_and_tpe_draw_from_ranges_and_go_on(data: FashionMNISTDataModule, sampler: str) -> None:
    space: dict[str, list[Value] | Range]
    space = {"lr": Range(0.01, 1.0, log=True), "batch_size": Range(16, 64), "epochs": [1]}
    wanted = plan(space, sampler, 18)
    search_until(80, data, sampler, wanted)
    found = search(data, sampler, wanted)
    assert [trial.state for trial in found.study.trials] == [TrialState.COMPLETE] * 18
    for trial in found.study.trials:
        assert 0.01 <= trial.params["lr"] <= 1
        assert trial.params["batch_size"] in range(16, 65)
    assert len({trial.params["lr"] for trial in found.study.trials}) == 18


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rate": [0.1]}, r"space\.learning_rate: unknown; expected one of batch_size"),
        ({"lr": []}, r"space\.lr: has no values"),
        ({"lr": Range(0.1, 1)}, r"space\.lr: a range has no grid"),
        ({}, "need at least one"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(space)


def test_a_folder_keeps_one_plan_and_one_sweep_at_a_time(data: FashionMNISTDataModule) -> None:
    search(data, "mine", plan({"lr": [0.1], "epochs": [1]}))
    with pytest.raises(InputError, match="another plan"):
        search(data, "mine", plan({"lr": [0.2], "epochs": [1]}))
    folder = Path("logs/sweep/mine-quick")
    folder.mkdir(parents=True)
    with locked(folder, ""), pytest.raises(InputError, match=r"another process is at work there.* --name"):
        sweep.run({"lr": [0.1]}, name="mine", source="synthetic", quick=True)


def test_machines_that_share_a_database_share_the_trials_and_wait_for_each_other(
    data: FashionMNISTDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    url, shared = "sqlite:///trials.db", plan({"lr": [0.1, 0.5], "batch_size": [16, 64], "epochs": [1]})
    mine, theirs = (Sweep(shared, data, Path(machine, "shared"), url) for machine in ("one", "two"))
    taken = theirs._claim()
    assert len(taken) == 2  # those of one batch size

    def finish() -> None:
        for trial in taken:
            theirs.storage.set_trial_user_attr(
                trial._trial_id, "history", {name: [[0.0]] for name in METRICS}
            )
            theirs.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])

    ending = Timer(0.5, finish)
    ending.start()
    mine.search(1)
    ending.join()
    trials = mine.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert {Path(trial.user_attrs["owner"]).parent.name for trial in trials} == {"one", "two"}
    assert mine.study.best_trial.number in {trial.number for trial in taken}
    assert f"waiting for the trials of {theirs.owner}; " in capsys.readouterr().err


def test_machines_that_start_at_once_plan_the_trials_once(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, shared = "sqlite:///trials.db", plan({"lr": [0.1, 0.5], "batch_size": [16, 64], "epochs": [1]})
    add = optuna.Study.add_trial

    def slowly(study: optuna.Study, trial: FrozenTrial) -> None:
        time.sleep(0.1)
        add(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", slowly)
    optuna.create_study(storage=url, study_name="unrelated")  # so that the tables are there

    def sweep_on(machine: str) -> Sweep:
        return Sweep(shared, data, Path(machine, "shared"), url)

    with ThreadPoolExecutor(3) as threads:
        sweeps = list(threads.map(sweep_on, ("one", "two", "three")))
    assert len(sweeps[0].study.trials) == 4
    assert len({describe(trial.params) for trial in sweeps[0].study.trials}) == 4
    assert capsys.readouterr().err.count("waiting for the machine that plans the trials") == 2
    with pytest.raises(InputError, match="another plan"):
        Sweep(plan({"lr": [0.2], "epochs": [1]}), data, Path("one", "shared"), url)


def test_a_trial_belongs_to_the_machine_that_took_it_first(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, shared = "sqlite:///trials.db", plan({"batch_size": [16, 64], "lr": [0.1, 0.5], "epochs": [1]})
    mine, theirs = (Sweep(shared, data, Path(machine, "shared"), url) for machine in ("one", "two"))
    get_trials, before = mine.study.get_trials, [mine.study.get_trials(states=(TrialState.WAITING,))]
    taken = theirs._claim()

    def outdated_once(**options: Any) -> list[FrozenTrial]:
        return before.pop() if before else get_trials(**options)

    monkeypatch.setattr(mine.study, "get_trials", outdated_once)
    assert [trial.number for trial in taken] == [0, 1]
    assert [trial.number for trial in mine._claim()] == [2, 3]  # and goes on with what is left
    owners = [trial.user_attrs["owner"] for trial in theirs.study.trials]
    assert owners == [theirs.owner] * 2 + [mine.owner] * 2
    again = Sweep(shared, data, Path("two", "shared"), url)  # after a kill
    assert [trial.number for trial in again._claim()] == [0, 1]


def test_a_database_that_cannot_be_reached_is_an_error(data: FashionMNISTDataModule) -> None:
    with pytest.raises(InputError, match=r"storage=sqlite:///no/folder/x\.db: cannot be used"):
        Sweep(plan(), data, Path("shared"), "sqlite:///no/folder/x.db")


def test_the_page_the_table_and_tensorboard_have_every_trial() -> None:
    space: dict[str, list[Value] | Range] = {"batch_size": [64, 256], "lr": [0.1, -1.0], "epochs": [5]}
    page = sweep.run(space, name="page", source="synthetic", quick=True)
    text = page.read_text()
    assert "has the least validation loss" in text
    assert "lr=-1.0: must be above 0" in text
    assert "train.py fit --seed_everything 0 --data.batch_size" in text
    with (page.parent / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2)  # batch sizes x seeds x epochs of the two lengths
    runs = sorted((page.parent / "tensorboard").iterdir())
    assert len(runs) == 4
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert {path.name for path in page.parent.glob("*.png")} == {"trials.png", "curves.png"}


def test_the_configuration_covers_what_the_exercise_asks_for() -> None:
    config = yaml.safe_load((ROOT / "conf" / "sweep.yaml").read_text())
    wanted = Plan(config["space"], "grid", 1, config["seeds"], 0, "")
    assert len(wanted.queue()) >= 100
    assert len(wanted.seeds) == 3
    for name, low, high in (("batch_size", 16, 4096), ("lr", 0.001, 1), ("epochs", 1, 50)):
        assert (min(config["space"][name]), max(config["space"][name])) == (low, high)


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
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
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
    trials = optuna.load_study(study_name=folder.name, storage=storage).trials
    assert len(trials) == len({describe(trial.params) for trial in trials})
    return {describe(trial.params): (trial.state, trial.user_attrs.get("history")) for trial in trials}


def test_hopeless_trials_are_given_up_on_request(data: FashionMNISTDataModule) -> None:
    rates: list[Value] = [0.1, 0.2, 0.05, 0.3, 0.15, 1e-6]
    space: dict[str, list[Value] | Range] = {"lr": rates, "batch_size": [32, 16], "epochs": [4]}
    whole, pruned = (
        search(data, f"pruned-{prune}", Plan(space, "grid", 1, [0], 0, "tiny", prune))
        for prune in (False, True)
    )
    assert {trial.state for trial in whole.study.trials} == {TrialState.COMPLETE}
    given_up = [trial for trial in pruned.study.trials if trial.state == TrialState.PRUNED]
    assert {trial.params["batch_size"] for trial in given_up} == {16}  # the first group has nothing before it
    assert 1e-6 in {trial.params["lr"] for trial in given_up}
    assert pruned.study.best_value == pytest.approx(whole.study.best_value)
