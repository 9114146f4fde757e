"""A sweep loses and repeats nothing when killed, survives failing trials, and tests the winner alone."""

import csv
import html
import json
import os
import random
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
import torch
from examples.mlp import MLP
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from killed import start_study
from marks import slow
from softmax_regression.commands.study import main
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, Interrupted, StorageError
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Means, Stack
from softmax_regression.studies.sweep import study as sweep
from softmax_regression.studies.sweep.page import scores_by_hyperparameter, short_lines
from softmax_regression.studies.sweep.results import Result, failures
from softmax_regression.studies.sweep.search import Search, check_sampler, number_of_workers
from softmax_regression.studies.sweep.space import Params, Plan, Range, Value
from softmax_regression.studies.sweep.training import LightningTraining, StackTraining

ROOT = Path(__file__).parents[2]
Space = dict[str, list[Value] | Range]
SPACE: Space = {"batch_size": [16, 64], "lr": [0.1, 0.5, 0.01], "epochs": [1, 3]}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
OPENED: list[Search] = []


@pytest.fixture(scope="module")
def data() -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, val_size=100, source="synthetic", synthetic_size=300)
    data.setup()
    return data


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    while OPENED:
        OPENED.pop().close()


def opened(data: FashionMNISTDataModule, name: str, plan: Plan, **options: Any) -> Search:
    """Open a search in a folder of this name."""
    Path(name).mkdir(exist_ok=True)
    training: Any = StackTraining(plan, {}, data)
    if not plan.is_stackable:
        own = {"val_size": 100, "source": "synthetic", "synthetic_size": 300}
        training = LightningTraining(plan, own, data)
    search = Search(plan, Path(name), training.train, **options)
    OPENED.append(search)
    return search


def searched(data: FashionMNISTDataModule, name: str, plan: Plan, workers: int = 1, **options: Any) -> Search:
    search = opened(data, name, plan, **options)
    search.run(workers)
    return search


def histories(search: Search) -> dict[str, dict[str, list[list[float]]]]:
    found = {}
    for result in search.results():
        found[str(result)] = {name: values.tolist() for name, values in result.history.items()}
    return found


def states(search: Search) -> list[TrialState]:
    return [trial.state for trial in search.study.get_trials(deepcopy=False)]


class LastLogged(Checkpoint):
    """Lightning calls it last in an epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fitted(module: LightningModule, data: LightningDataModule, epochs: int) -> list[dict[str, float]]:
    """Train by a plain Trainer; return what was logged in each epoch."""
    last = LastLogged()
    Trainer(max_epochs=epochs, callbacks=[last], logger=False, accelerator="cpu", **QUIET).fit(module, data)
    return last.rows


def test_a_trial_is_what_fit_trains(data: FashionMNISTDataModule) -> None:
    plan = Plan({"lr": [0.1, 0.5], "batch_size": [16], "epochs": [1, 3]}, seeds=[0, 1])
    found = histories(searched(data, "fit", plan))["lr=0.5, batch_size=16, epochs=3"]
    for seed in (0, 1):
        seed_everything(seed, verbose=False)
        module = SoftmaxRegression(lr=0.5)
        own = FashionMNISTDataModule(16, val_size=100, source="synthetic", synthetic_size=300, seed=seed)
        rows = fitted(module, own, epochs=3)
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert found[name][seed] == pytest.approx([row[name] for row in rows], rel=1e-4)


def test_minibatches_are_as_large_as_those_of_the_data_module_unless_the_space_says_more() -> None:
    own = FashionMNISTDataModule(16, val_size=100, source="synthetic", synthetic_size=300)
    expected: list[tuple[Params, int]] = [({}, 16), ({"batch_size": 20}, 20)]
    for params, size in expected:
        training = StackTraining(Plan({"lr": [0.1]}, seeds=[0]), {}, own)
        own.setup()
        assert training._loader(params, 0).batch_size == size


def test_workers_share_the_trials_and_change_no_bit(data: FashionMNISTDataModule) -> None:
    plan = Plan(SPACE, seeds=[0, 1])
    two = searched(data, "two", plan, workers=2)
    assert histories(two) == histories(searched(data, "one", plan))
    assert states(two) == [TrialState.COMPLETE] * 4  # two batch sizes with two seeds


def test_a_short_run_is_the_beginning_of_a_long_one(data: FashionMNISTDataModule) -> None:
    both = histories(searched(data, "both", Plan({"batch_size": [32], "epochs": [1, 3]}, [0])))
    alone = histories(searched(data, "alone", Plan({"batch_size": [32], "epochs": [1]}, [0])))
    assert both["batch_size=32, epochs=1"] == alone["batch_size=32, epochs=1"]
    assert len(both["batch_size=32, epochs=3"]["val/acc"][0]) == 3


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let an event come once so many epochs are trained."""
    train_epoch = Stack.train_epoch
    reached = threading.Event()
    calls: list[Stack] = []

    def counted(self: Stack) -> Means:
        calls.append(self)
        if len(calls) > epochs:
            reached.set()
            time.sleep(0.1)  # so that the signal is there before the search is done
        return train_epoch(self)

    monkeypatch.setattr(Stack, "train_epoch", counted)
    return reached


def test_an_interrupted_sweep_goes_on_where_it_was(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(SPACE, seeds=[0, 1])
    with monkeypatch.context() as patch:
        reached = interrupt_after(4, patch)

        def interrupted(*_: object) -> None:
            raise Interrupted(signal.SIGINT, "nothing was saved")

        def send() -> None:
            reached.wait(60)
            os.kill(os.getpid(), signal.SIGUSR2)

        before = signal.signal(signal.SIGUSR2, interrupted)
        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(Interrupted, match="SIGINT: the same command resumes it") as error:
            searched(data, "stopped", plan)
        sender.join()
        signal.signal(signal.SIGUSR2, before)
    assert error.value.code == 130
    stopped = opened(data, "stopped", plan)
    done = [trial.number for trial in stopped.finished]
    assert 0 < len(done) < 4
    stopped.run()
    assert [trial.number for trial in stopped.finished][: len(done)] == done
    assert histories(stopped) == histories(searched(data, "whole", plan))


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(data: FashionMNISTDataModule) -> None:
    search = searched(data, "failing", Plan({"batch_size": [16, 9999], "lr": [0.1, 1e38], "epochs": [2]}, [0]))
    assert [result.params["lr"] for result in search.results()] == [0.1]
    errors = dict(failures(search.finished, search.plan))
    assert errors["batch_size=16, lr=1e+38, epochs=2, seed=0"].startswith("DivergedError: val/loss=")
    message = "InputError: batch_size=9999: must be at most 200, the number of training images"
    assert errors["batch_size=9999, seed=0"] == message


@pytest.mark.parametrize("method", ["set_trial_state_values", "set_trial_user_attr"])
def test_a_full_disk_is_one_line_and_ends_no_trial(
    method: str, data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan({"batch_size": [32], "epochs": [1]}, seeds=[0])

    def fail(*_: object, **__: object) -> None:
        raise StorageInternalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, method, fail)
        with pytest.raises(StorageError, match=r"disk is full.*start again"):
            searched(data, "full", plan)
    assert states(searched(data, "full", plan)) == [TrialState.RUNNING, TrialState.COMPLETE]


def test_if_all_trials_fail_one_line_says_why(data: FashionMNISTDataModule) -> None:
    hopeless = searched(data, "hopeless", Plan({"batch_size": [9999]}, [0]))
    with pytest.raises(InputError, match=r"^all trials failed: InputError: batch_size=9999: must be at most 200, "):
        hopeless.results()
    diverged = searched(data, "diverged", Plan({"lr": [1e38], "batch_size": [16]}, [0]))
    with pytest.raises(DivergedError, match=r"^all trials failed: DivergedError: val/loss="):
        diverged.results()
    pruner = optuna.pruners.ThresholdPruner(upper=0.0)
    pruned = searched(data, "pruned", Plan({"lr": [0.1], "batch_size": [16], "epochs": [2]}, [0], pruner=pruner))
    with pytest.raises(InputError, match=r"^all trials were pruned; choose another pruner, and another --name"):
        pruned.results()


@pytest.mark.parametrize("model", [SoftmaxRegression, slow(MLP)])
def test_the_winner_alone_is_tested_and_once(
    data: FashionMNISTDataModule, monkeypatch: pytest.MonkeyPatch, model: type[SoftmaxRegression]
) -> None:
    plan = Plan({"batch_size": [16], "lr": [0.1, 0.5], "epochs": [1, 2]}, [0, 1], model=model)
    search = searched(data, "tested", plan)
    tested = []

    def test(params: dict[str, Value], seed: int) -> dict[str, float]:
        tested.append((params, seed))
        return {"test/acc": seed / 2}

    best = search.results()[0].params
    assert search.test(test) == {"test/acc": [0.0, 0.5]}
    assert search.test(test) == {"test/acc": [0.0, 0.5]}
    assert opened(data, "tested", plan).test(test) == {"test/acc": [0.0, 0.5]}
    assert tested == [(best, 0), (best, 1)]


def test_the_test_scores_are_those_of_a_stack_or_of_the_trainer(data: FashionMNISTDataModule) -> None:
    params: dict[str, Value] = {"lr": 0.1, "batch_size": 16, "epochs": 2}
    stacked = StackTraining(Plan({"lr": [0.1]}, [0]), {}, data).test(params, seed=3)
    own = {"val_size": 100, "source": "synthetic", "synthetic_size": 300}
    alone = LightningTraining(Plan({"lr": [0.1]}, [0]), own, data).test(params, seed=3)
    assert alone == pytest.approx(stacked, rel=1e-4)


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(0), slow(optuna.samplers.TPESampler(seed=0))])
def test_random_and_tpe_draw_from_ranges_and_go_on(
    data: FashionMNISTDataModule, sampler: optuna.samplers.BaseSampler
) -> None:
    space: Space = {"lr": Range(0.01, 1.0, log=True), "batch_size": Range(16, 64), "epochs": [1]}
    searched(data, "drawn", Plan(space, [0, 1], sampler=sampler, trials=5))
    half = opened(data, "drawn", Plan(space, [0, 1], sampler=sampler, trials=5))
    half.plan = Plan(space, [0, 1], sampler=sampler, trials=12)
    half.run(workers=2)
    assert states(half) == [TrialState.COMPLETE] * 12
    results = half.results()
    assert len({result.params["lr"] for result in results}) == 12  # none is proposed again
    for result in results:
        assert 0.01 <= result.params["lr"] <= 1  # type: ignore[operator]
        assert result.params["batch_size"] in range(16, 65)
        assert len(result.history["val/loss"]) == 2


def test_a_folder_keeps_one_plan_and_one_sweep_at_a_time(data: FashionMNISTDataModule) -> None:
    searched(data, "mine", Plan({"lr": [0.1], "epochs": [1]}, [0]))
    with pytest.raises(InputError, match="another plan"):
        opened(data, "mine", Plan({"lr": [0.2], "epochs": [1]}, [0]))
    folder = Path("studies/sweep/mine-quick")
    folder.mkdir(parents=True)
    with locked(folder, ""), pytest.raises(InputError, match=r"another process is at work there.* --name"):
        sweep.run({"lr": [0.1]}, name="mine", source="synthetic", quick=True)


def test_bad_input_is_refused_before_anything_is_kept() -> None:
    with pytest.raises(InputError, match=r"space\.lr: "):
        sweep.run({"lr": ["fast"]}, source="synthetic", quick=True)
    with pytest.raises(InputError, match="workers=0: must be at least 1"):
        sweep.run({"lr": [0.1]}, source="synthetic", quick=True, workers=0)
    with pytest.raises(InputError, match="source=synthetic: Rows has no parameter of this name"):
        sweep.run({"lr": [0.1]}, data=Rows, source="synthetic")
    assert not Path("studies").exists()
    Path("studies").write_text("a file\n")
    with pytest.raises(InputError, match=r"studies/sweep/mine: cannot be written"):
        sweep.run({"lr": [0.1]}, name="mine", source="synthetic")


def test_grid_sampler_by_name_is_the_grid() -> None:
    page = sweep.run({"lr": [0.1], "batch_size": [64]}, "GridSampler", source="synthetic", quick=True)
    assert '"sampler": "grid"' in html.unescape(page.read_text())


def test_a_sampler_that_cannot_choose_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    space: Space = {"lr": Range(0.01, 1.0), "weight_decay": Range(0.0, 0.1)}
    for sampler, why in (
        (optuna.samplers.CmaEsSampler(), "CmaEsSampler: cannot be used .*cmaes"),
        (optuna.samplers.GridSampler({"lr": [0.1]}), "GridSampler: cannot be used .*weight_decay, is not found"),
    ):
        with pytest.raises(InputError, match=f"sampler={why}"):
            sweep.run(space, sampler, source="synthetic")
    assert not Path("studies").exists()


def test_a_sampler_of_optuna_s_draws_as_if_nobody_had_tried_it(data: FashionMNISTDataModule) -> None:
    tried, fresh = (
        Plan({"lr": Range(0.01, 1.0), "batch_size": [64]}, [0], sampler=optuna.samplers.RandomSampler(3), trials=2)
        for _ in range(2)
    )
    check_sampler(tried)
    drawn = [list(histories(searched(data, "tried", tried)))]
    drawn.append(list(histories(searched(data, "fresh", fresh))))
    assert drawn[0] == drawn[1]


def test_there_are_as_many_workers_as_cores_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softmax_regression.studies.sweep.search.cores", lambda: 6)
    asked = [number_of_workers(workers, True) for workers in (None, 2, 100)]
    assert asked == [6, 2, 6]
    assert number_of_workers(4, False) == 1


def table(page: Path) -> list[dict[str, str]]:
    with (page.parent / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_page_the_table_and_tensorboard_have_every_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", "--space", '{"lr": [0.1]}', "--quick"])
    page = sweep.run({"batch_size": [64, 9999], "lr": [0.1, 0.5], "epochs": [5]}, source="synthetic", quick=True)
    assert page == Path("studies/sweep/batch-lr-epochs-synthetic-quick/index.html")
    text = html.unescape(page.read_text())
    assert "came out best of 4 configurations" in text
    assert f"optuna-dashboard sqlite:///{page.parent}/trials.db" in text
    assert (page.parent / "trials.db").exists()
    assert "InputError: batch_size=9999" in text
    assert '"configurations": 8' in text
    assert '"trials": 4,' in text  # two batch sizes with two seeds
    assert len(table(page)) == 2 * 2 * (1 + 2)  # learning rates x seeds x epochs of the two lengths
    runs = sorted((page.parent / "tensorboard").iterdir())
    assert len(runs) == 4
    events = EventAccumulator(str(runs[0]))
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert {path.name for path in page.parent.glob("*.png")} == {"trials.png", "curves.png"}


@pytest.mark.slow
def test_the_commands_on_the_page_repeat_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", "--space", '{"lr": [0.1]}', "--quick"])
    page = sweep.run({"batch_size": [64], "lr": [0.1, 0.5]}, source="synthetic", quick=True)
    text = html.unescape(page.read_text())
    found = re.search(r"(python study\.py.*)\n(softmax-regression fit.*?)<", text)
    assert found
    assert shlex.split(found[1]) == ["python", "study.py", "sweep", "--space", '{"lr": [0.1]}', "--quick"]
    words = shlex.split(found[2])
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options.pop("--early_stopping.patience") == "0"
    assert options.pop("--data.source") == "synthetic"
    seed = seed_everything(int(options.pop("--seed_everything")), verbose=False)
    epochs = int(options.pop("--trainer.max_epochs"))
    groups: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for option, value in options.items():
        group, name = option[2:].split(".")
        groups[group][name] = json.loads(value)
    own = FashionMNISTDataModule(**groups["data"], source="synthetic", seed=seed)
    rows = fitted(SoftmaxRegression(**groups["model"]), own, epochs)
    assert f"ends with val/loss {rows[-1]['val/loss']:.4f}" in " ".join(text.split())


def test_classes_are_short_in_the_figure() -> None:
    value = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}
    assert short_lines(json.dumps(value)) == "SGD, lr: 0.5,\nmomentum: 0.9"
    assert short_lines("torch.optim.Adam") == "Adam"
    assert short_lines("[16, 8]") == "[16, 8]"


@pytest.mark.slow
def test_one_configuration_with_one_seed_is_called_so() -> None:
    page = sweep.run({"lr": [0.1], "epochs": [1]}, seeds=[5], name="one", source="synthetic")
    text = " ".join(page.read_text().split("</style>")[1].split())
    assert "lr=0.1, epochs=1</code> came out best: its val/loss is the lowest, " in text
    assert "(one seed)" in text
    assert "inf" not in text.split("<h2>Learning curves")[0]


@pytest.mark.slow
def test_a_model_that_cannot_be_stacked_is_swept_as_fit_trains_it() -> None:
    space: Space = {"lr": [0.1, 0.3], "hidden": [16], "batch_size": [64]}
    page = sweep.run(space, seeds=[0, 3], model=MLP, source="synthetic", quick=True)
    assert page == Path("studies/sweep/batch-lr-epochs-MLP-synthetic-quick/index.html")
    assert "--model examples.mlp.MLP" in page.read_text()
    rows = table(page)
    assert len(rows) == 2 * 2 * (1 + 2)
    (row,) = [r for r in rows if (r["lr"], r["epochs"], r["seed"], r["epoch"]) == ("0.3", "2", "3", "2")]
    seed_everything(3, verbose=False)
    sizes: Any = {"synthetic_size": 1500, "val_size": 500, "train_size": 1000}
    expected = fitted(MLP(16, lr=0.3), FashionMNISTDataModule(64, source="synthetic", seed=3, **sizes), epochs=2)
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert float(row[name]) == expected[-1][name]


class Net(LightningModule):
    """A module that knows nothing of this project, and calls its metrics by its own names."""

    def __init__(self, act: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 3))
        self.lr = lr

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", cross_entropy(logits, batch[1]))
        self.log("val_hits", (logits.argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.log("test_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class Deep(Net):
    """It has as many layers as it is given widths."""

    def __init__(self, widths: list[int] | None = None) -> None:
        super().__init__(nn.ReLU())
        sizes = [4, *(widths or []), 3]
        self.net = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))


class Changing(Net):
    """It ends its training after as many epochs as it draws, and with some arguments it logs a metric more.

    A callback of its own asks for a logger.
    """

    def __init__(self, extra: bool = False) -> None:
        super().__init__(nn.ReLU())
        self.extra = extra
        self.epochs = int(torch.randint(1, 5, ()))

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.extra:
            self.log("val_extra", 0.5)

    def configure_callbacks(self) -> Callback:
        return LearningRateMonitor()

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = self.trainer.current_epoch + 1 == self.epochs


class Late(Deep):
    """It logs a metric from its second epoch on."""

    def on_validation_epoch_end(self) -> None:
        if self.current_epoch >= 1:
            self.log("val_late", self.current_epoch)


class Rows(LightningDataModule):
    """Rows of four numbers in three classes, in an ordinary DataLoader; which rows, a seed of its own decides."""

    def __init__(self, batch_size: int = 10, seed: int = 7) -> None:
        super().__init__()
        self.batch_size = batch_size
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        self.rows = TensorDataset(x, x[:, :3].argmax(1))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 60)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 60)


def shaken(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of rows, moved a little by Python's random numbers."""
    inputs, labels = zip(*rows, strict=True)
    return torch.stack(inputs) + random.random(), torch.stack(labels)


class Augmented(Rows):
    """Its batches are changed at random in a worker process."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, self.batch_size, shuffle=True, num_workers=1, collate_fn=shaken)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
class TestAnybodysModel:
    SPACE: ClassVar[Space] = {
        "act": ["torch.nn.ReLU", "torch.nn.Tanh"],
        "lr": [0.1, 0.5],
        "batch_size": [20],
        "epochs": [3],
    }

    @pytest.mark.slow
    def test_is_searched_by_what_it_logs_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["study.py", "sweep"])  # which the page shows
        page = sweep.run(self.SPACE, seeds=[0, 1], model=Net, data=Rows, monitor="val_loss")
        rows = table(page)
        assert len(rows) == 2 * 2 * 2 * 3  # activations x rates x seeds x epochs
        (row,) = [
            row
            for row in rows
            if (row["act"], row["lr"], row["seed"], row["epoch"]) == ("torch.nn.Tanh", "0.5", "1", "3")
        ]
        seed_everything(1, verbose=False)
        expected = fitted(Net(nn.Tanh(), 0.5), Rows(20), epochs=3)[-1]
        assert {name: float(row[name]) for name in expected} == expected
        text = page.read_text()
        assert "test_loss" in text
        assert "book" not in text

    def test_sees_the_random_numbers_of_worker_processes_that_fit_sees(self) -> None:
        page = sweep.run({"epochs": [1]}, seeds=[1], model=Deep, data=Augmented, monitor="val_loss")
        (row,) = table(page)
        seed_everything(1, workers=True, verbose=False)  # as the command line does
        assert float(row["val_loss"]) == fitted(Deep(), Augmented(), epochs=1)[-1]["val_loss"]

    def test_may_be_searched_for_the_highest_value(self) -> None:
        page = sweep.run(self.SPACE, seeds=[0], model=Net, data=Rows, monitor="val_hits", mode="max")
        last = [float(row["val_hits"]) for row in table(page) if row["epoch"] == "3"]
        assert last == sorted(last, reverse=True)
        assert "its val_hits is the highest" in " ".join(page.read_text().split())

    def test_that_logs_no_such_metric_is_refused_before_anything_is_kept(self) -> None:
        logged = "train_loss, train_loss_epoch, train_loss_step, val_hits, val_loss"
        with pytest.raises(InputError, match=f"monitor=val/loss: Net logs {logged}; give --monitor one of them"):
            sweep.run(self.SPACE, seeds=[0], model=Net, data=Rows)
        assert not Path("studies").exists()

    def test_may_have_parameters_that_are_lists_or_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--model=test_sweep.Deep", "--data=test_sweep.Rows", "--monitor=val_loss", "--seeds=[0]"]
        assert main(["sweep", *words, '--space={"widths": [[4], null, [4, 3]], "epochs": [1]}']) == 0
        assert capsys.readouterr().err.count("with widths=") == 3

    @pytest.mark.parametrize(("sampler", "mode"), [("grid", "min"), ("random", "max")])
    def test_may_end_its_training_and_log_what_others_do_not(self, sampler: Any, mode: Any) -> None:
        words: dict[str, Any] = {"model": Changing, "data": Rows, "monitor": "val_loss", "mode": mode}
        page = sweep.run({"extra": [True, False], "epochs": [6]}, sampler, 3, [0, 1], **words)
        trained: dict[tuple[str, str], int] = {}
        for row in table(page):
            key = row["extra"], row["seed"]
            trained[key] = trained.get(key, 0) + 1
            assert bool(row["val_extra"]) == (row["extra"] == "True")
        for (_, seed), epochs in trained.items():
            seed_everything(int(seed), verbose=False)
            assert epochs == Changing().epochs
        assert len(set(trained.values())) > 1

    def test_may_log_a_metric_from_a_later_epoch_on(self) -> None:
        page = sweep.run({"epochs": [3]}, seeds=[0], model=Late, data=Rows, monitor="val_loss")
        assert [row["val_late"] for row in table(page)] == ["nan", "1.0", "2.0"]

    @pytest.mark.parametrize(("lowest", "scale"), [(0.5, "log"), (-0.5, "linear")])
    def test_may_have_switches_and_a_loss_below_zero_in_the_figure(self, lowest: float, scale: str) -> None:
        results = []
        for extra in (True, False):
            results.append(Result({"extra": extra}, {"val_loss": torch.tensor([[lowest + extra]])}))
        plan = Plan({"extra": [True, False]}, [0], model=Changing, data=Rows, monitor="val_loss")
        (axes,) = scores_by_hyperparameter(["extra"], results, plan).axes
        assert axes.get_yscale() == scale
        assert [label.get_text() for label in axes.get_xticklabels()] == ["False", "True"]

    def test_that_does_not_always_log_the_monitor_fails_there(self) -> None:
        words: dict[str, Any] = {"model": Changing, "data": Rows, "monitor": "val_extra"}
        page = sweep.run({"extra": [True, False], "epochs": [1]}, seeds=[0], **words)
        assert "InputError: it has no value of val_extra" in page.read_text()

    @pytest.mark.slow
    def test_may_fail_in_one_configuration(self) -> None:
        space: Space = {**self.SPACE, "lr": [0.1, "high"]}
        with pytest.raises(InputError, match=r"space\.lr"):
            sweep.run(space, seeds=[0], model=Net, data=Rows, monitor="val_loss")
        page = sweep.run({**self.SPACE, "lr": [0.1, -1.0]}, seeds=[0], model=Net, data=Rows, monitor="val_loss")
        assert "ValueError: Invalid learning rate: -1.0" in page.read_text()

    @pytest.mark.slow
    def test_quick_does_a_few_minibatches(self) -> None:
        page = sweep.run(self.SPACE, model=Net, data=Rows, monitor="val_loss", quick=True)
        assert page == Path("studies/sweep/batch-lr-epochs-Net-Rows-quick/index.html")


@pytest.mark.slow
@pytest.mark.parametrize("model", [SoftmaxRegression, MLP])
def test_hopeless_trials_are_given_up_on_request(data: FashionMNISTDataModule, model: type[SoftmaxRegression]) -> None:
    space: Space = {"init_std": [0.01], "dropout": [0.0, 0.1, 0.2, 0.3, 0.4, 0.99], "lr": [0.1], "epochs": [3]}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    pruned = searched(data, "pruned", Plan({**space, "batch_size": [64]}, seeds=[0, 1], pruner=pruner, model=model))
    given_up = [trial.params for trial in pruned.study.trials if trial.state == TrialState.PRUNED]
    assert any(params["dropout"] == 0.99 for params in given_up)
    assert all(len(result.history["val/loss"]) == 2 for result in pruned.results())
    whole = searched(data, "whole", Plan({**space, "batch_size": [64]}, seeds=[0, 1], model=model))
    assert histories(pruned).items() <= histories(whole).items()


def test_progress_says_what_is_best_so_far_in_80_columns(
    data: FashionMNISTDataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(data, "lines", Plan(SPACE, seeds=[0, 1]))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"4/4 trials, best val/loss \d\.\d{4} with batch_size=16, lr=0\.\d+, epochs=3", lines[-1])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    searched(data, "bar", Plan(SPACE, seeds=[0, 1]))
    shown = capsys.readouterr().err
    assert "trials, best val/loss" in shown
    assert shown.count("trials, best") < 4  # what is not better is not said
    assert "4/4" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* is experimental")
def test_optuna_s_own_figures_can_be_drawn_of_the_study(data: FashionMNISTDataModule) -> None:
    searched(data, "drawn", Plan(SPACE, seeds=[0, 1])).close()
    storage = optuna.storages.RDBStorage("sqlite:///drawn/trials.db")
    study = optuna.load_study(study_name="drawn", storage=storage)
    assert isinstance(study.best_value, float)
    assert study.best_params["batch_size"] == 16
    assert study.trials_dataframe is not None
    axes: Any = optuna.visualization.matplotlib.plot_slice(study)
    assert len(axes) == 2  # batch size and seed
    storage.engine.dispose()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_twice_and_interrupted_once_it_ends_equal(tmp_path: Path) -> None:
    space = '{"batch_size": [16, 32, 64], "lr": [0.1, 0.3], "train_size": [2000], "epochs": [3, 9]}'
    command = ["sweep", "--source", "synthetic", "--seeds", "[0, 1, 2]", "--space", space, "--name"]
    database = tmp_path / "studies" / "sweep" / "killed" / "trials.db"
    rng = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        before = finished_trials(database)
        process = start_study(tmp_path, [*command, "killed"])
        assert process.pid
        deadline = time.monotonic() + 90
        while finished_trials(database) == before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode in (-number, 128 + number)
    said = (tmp_path / "log.txt").read_text()
    assert said.splitlines()[-1] == "interrupted by SIGINT: the same command resumes it"
    for name in ("killed", "whole"):
        process = start_study(tmp_path, [*command, name])
        process.join(200)
        assert process.exitcode == 0
    killed, whole = (tmp_path / "studies" / "sweep" / name / "trials.csv" for name in ("killed", "whole"))
    assert killed.read_text() == whole.read_text()


def finished_trials(database: Path) -> int:
    """Count the trials that have ended, as another process sees them."""
    import sqlite3

    if not database.exists():
        return 0
    connection = sqlite3.connect(database, timeout=30)
    try:
        return int(connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are being made
        return 0
    finally:
        connection.close()
