"""What Lightning promises holds: our model, data and engine, against a plain module in Lightning's own loop.

Images, their order and the first weights are the same; what each flag and callback does is compared.
"""

import csv
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as builtin
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.tuner.tuning import Tuner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_equal import with_optimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from twins import QUIET, same

from marks import slow_but
from softmax_regression import Engine, FashionMNISTDataModule, SoftmaxRegression
from softmax_regression.data.minibatches import Shuffle

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(LightningModule):
    """Softmax regression as anybody would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lr = nn.Linear(784, 10), 0.1

    def forward(self, x: Tensor) -> Any:
        return self.layer(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class Ours(SoftmaxRegression):
    """Softmax regression of the package, logged as usual."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class PlainData(FashionMNISTDataModule):
    """The same images in DataLoaders of torch."""

    def _minibatches(self, images: Any, labels: Any, index: Any, batch_size: Any = None, seed: Any = None) -> Any:
        rows = TensorDataset(images[index][:, None] / 255, labels[index])
        order: dict[str, Any] = {} if seed is None else {"sampler": Shuffle(len(index), seed)}
        return DataLoader(rows, batch_size=batch_size or self.hparams["eval_batch_size"], **order)

    def predict_dataloader(self) -> Any:
        return self.test_dataloader()


class Watch(Callback, Logger):
    """Steps, outputs, learning rates, validations, and what was logged of that which both modules log."""

    name, version = "watch", 0

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.seen.append((trainer.global_step, args[-1], args[0]["loss"]))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                self.seen.append(group["lr"])
        bar = trainer.progress_bar_callback
        if bar:
            self.seen.append((bar.total_train_batches, bar.total_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.seen.append(("validated", trainer.global_step, trainer.sanity_checking, args[-1]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name in ("loss", "lr-SGD") or name.endswith("/samples"):
                self.seen.append((step, name, value))
            if "cpu" in name:  # of which each process has its own
                self.seen.append((step, name))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Writer(builtin.BasePredictionWriter):
    """Notes which images a prediction is of."""

    def write_on_epoch_end(self, trainer: Trainer, module: Any, predictions: Any, batch_indices: Any) -> None:
        self.indices = batch_indices


def frozen(_: Any, module: LightningModule) -> None:
    [*module.parameters()][1].requires_grad = False


def subject(ours: bool, folder: Path, **options: Any) -> tuple[LightningModule, Any, Trainer]:
    """Our side of a comparison or the other: module, data and Trainer."""
    make, make_data = (Ours, FashionMNISTDataModule) if ours else (Plain, PlainData)
    optimizer, callbacks = options.pop("optimizer", None), options.pop("callbacks", list)()
    module: LightningModule = make()
    if optimizer:
        module = with_optimizer(make, optimizer)()
    with torch.no_grad():
        for values in module.parameters():
            values.copy_(torch.linspace(-0.01, 0.01, values.numel()).view_as(values))
    data = make_data(32, 50, 200, "synthetic", synthetic_size=250, eval_batch_size=20)
    for name, value in options.items():
        if callable(value):  # a profiler or a logger, which wants a folder
            options[name] = value(folder)
    usual = QUIET | {"logger": callbacks[-1:], "default_root_dir": folder}
    return module, data, Trainer(**usual | options | {"callbacks": [Engine(ours), *callbacks]})


def made(cls: Any, *args: Any, **kwargs: Any) -> Callable[[], list[Any]]:
    """Return what makes a list of one new callback."""

    def callbacks() -> list[Any]:
        return [cls(*args, **kwargs)]

    return callbacks


def saved(trainer: Trainer) -> list[str]:
    return sorted(path.name for path in Path(trainer.default_root_dir).rglob("*.ckpt"))


def profiled(trainer: Trainer) -> bool:
    text = next(Path(trainer.default_root_dir).glob("*.txt")).read_text()
    return "optimizer_step" in text and "[_TrainingEpochLoop].train_dataloader_next" in text


def events(trainer: Any) -> list[list[int]]:
    board = EventAccumulator(trainer.loggers[0].log_dir)
    board.Reload()
    return [[event.step for event in board.Scalars(name)] for name in ("loss", "val/loss")]


def rows(trainer: Any) -> list[str]:
    lines = Path(trainer.loggers[0].log_dir, "metrics.csv").read_text().splitlines()
    return [row["step"] for row in csv.DictReader(lines) if row["loss"]]


def nothing(trainer: Any) -> None:
    pass


def last_loss(trainer: Any) -> Any:
    return trainer.callbacks[1].last_val


def has_measured(trainer: Any) -> bool:
    elapsed: float = trainer.callbacks[1].time_elapsed()
    return elapsed > 0


def simple_profiler(folder: Path) -> SimpleProfiler:
    return SimpleProfiler(folder, "profile")


def advanced_profiler(folder: Path) -> AdvancedProfiler:
    return AdvancedProfiler(folder, "profile")


def to_eval_mode(trainer: Any, module: LightningModule) -> None:
    module.eval()


def batch_size(batch: Any) -> int:
    return len(batch[0])


SPIKE = made(builtin.SpikeDetection)
TIMED = made(builtin.ModelCheckpoint, train_time_interval=timedelta(0), save_top_k=-1)
RATE = made(builtin.ThroughputMonitor, batch_size, window_size=3)
SAVES: dict[str, Any] = {"enable_checkpointing": True, "effect": saved}
PROMISES: dict[str, dict[str, Any]] = {
    "limit_train_batches": {"limit_train_batches": 1},
    "overfit_batches 1": {"overfit_batches": 1},
    "overfit_batches 2": {"overfit_batches": 2},
    "val_check_interval 1": {"val_check_interval": 1},
    "val_check_interval 5": {"val_check_interval": 5},
    "val_check_interval 0.25": {"val_check_interval": 0.25},
    "val_check_interval, a time": {"val_check_interval": timedelta(0)},
    "log_every_n_steps": {"log_every_n_steps": 3},
    "limit_val_batches": {"limit_val_batches": 1},
    "no validation": {"limit_val_batches": 0},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "max_steps": {"max_steps": 4},
    "num_sanity_val_steps": {"num_sanity_val_steps": 2},
    "accumulate_grad_batches": {"accumulate_grad_batches": 3},
    "gradient_clip_val": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "fast_dev_run": {"fast_dev_run": 2},
    "SimpleProfiler": {"profiler": simple_profiler, "effect": profiled},
    "AdvancedProfiler": {"profiler": advanced_profiler, "effect": profiled},
    "CSVLogger": {"logger": CSVLogger, "log_every_n_steps": 3, "effect": rows},
    "TensorBoardLogger": {"logger": TensorBoardLogger, "log_every_n_steps": 3, "effect": events},
    "TQDMProgressBar": {"callbacks": made(builtin.TQDMProgressBar), "enable_progress_bar": True},
    "RichProgressBar": {"callbacks": made(builtin.RichProgressBar), "enable_progress_bar": True},
    "ModelCheckpoint by steps": SAVES | {"callbacks": made(builtin.ModelCheckpoint, every_n_train_steps=3)},
    "ModelCheckpoint by time": SAVES | {"callbacks": TIMED},
    "LearningRateMonitor": {"callbacks": made(builtin.LearningRateMonitor, "step"), "optimizer": "OneCycle"},
    "LearningRateFinder": {"callbacks": made(builtin.LearningRateFinder, num_training_steps=20)},
    "BatchSizeFinder": {"callbacks": made(builtin.BatchSizeFinder, init_val=16, max_trials=3)},
    "EMAWeightAveraging": {"callbacks": made(builtin.EMAWeightAveraging, decay=0.8)},
    "SWA": {"callbacks": made(builtin.StochasticWeightAveraging, 0.5), "max_epochs": 4},
    "ModelPruning": {"callbacks": made(builtin.ModelPruning, "l1_unstructured", amount=0.5)},
    "frozen parameters": {"callbacks": made(builtin.LambdaCallback, on_fit_start=frozen)},
    "eval mode": {"callbacks": made(builtin.LambdaCallback, on_fit_start=to_eval_mode)},
    "accumulation by epoch": {"callbacks": made(builtin.GradientAccumulationScheduler, {0: 1, 1: 3})},
    "SpikeDetection": {"callbacks": SPIKE, "effect": last_loss},
    "ThroughputMonitor": {"callbacks": RATE, "log_every_n_steps": 1},
    "DeviceStatsMonitor": {"callbacks": made(builtin.DeviceStatsMonitor, True), "log_every_n_steps": 2},
    "Timer": {"callbacks": made(builtin.Timer), "effect": has_measured},
    "OneCycleLR": {"optimizer": "OneCycle"},
    "ReduceLROnPlateau": {"optimizer": "plateau", "max_epochs": 4},
    "StepLR": {"optimizer": "StepLR"},
    "LBFGS": {"optimizer": "LBFGS"},
}


# One of each kind; the others are slow.
QUICK = (
    "limit_train_batches", "overfit_batches 2", "val_check_interval 0.25", "log_every_n_steps", "no validation",
    "check_val_every_n_epoch", "max_steps", "num_sanity_val_steps", "accumulate_grad_batches", "gradient_clip_val",
    "SimpleProfiler", "TensorBoardLogger", "TQDMProgressBar", "ModelCheckpoint by steps", "LearningRateMonitor",
    "EMAWeightAveraging", "frozen parameters", "Timer", "ReduceLROnPlateau",
)  # fmt: skip

# The collection of garbage between two trials takes seconds in a large process.
without_collection = patch("lightning.pytorch.tuner.batch_size_scaling.garbage_collection_cuda", list)


@without_collection
@pytest.mark.parametrize("promise", slow_but(QUICK, PROMISES))
def test_a_run_keeps_the_promise(promise: str, tmp_path: Path) -> None:
    def outcome(ours: bool) -> Any:
        options, watch = PROMISES[promise].copy(), Watch()
        effect, make_callbacks = options.pop("effect", nothing), options.pop("callbacks", list)

        def callbacks() -> list[Any]:
            return [*make_callbacks(), watch]

        options["callbacks"] = callbacks
        module, data, trainer = subject(ours, tmp_path / str(ours), **options)
        trainer.fit(module, data)
        size = data.hparams["batch_size"]
        return [*module.parameters()], watch.seen, size, effect(trainer)

    same(outcome(True), outcome(False), atol=1e-5)  # our layer adds the same products in another order


def found_rate(ours: bool, folder: Path) -> Any:
    module, data, trainer = subject(ours, folder)
    found = Tuner(trainer).lr_find(module, data, num_training=20)
    assert found
    return found.suggestion()


def found_size(ours: bool, folder: Path) -> Any:
    module, data, trainer = subject(ours, folder)
    return Tuner(trainer).scale_batch_size(module, datamodule=data, mode="binsearch", init_val=16)


def indices(ours: bool, folder: Path) -> Any:
    module, data, trainer = subject(ours, folder, callbacks=made(Writer, "epoch"), logger=False)
    trainer.predict(module, data)
    return trainer.callbacks[1].indices  # type: ignore[attr-defined]


@without_collection
@pytest.mark.parametrize("tool", [found_rate, found_size, indices])
def test_a_tool_keeps_its_promise(tool: Callable[[bool, Path], Any], tmp_path: Path) -> None:
    found = tool(True, tmp_path)
    assert found
    assert found == tool(False, tmp_path)


class Usual(SoftmaxRegression):
    """A subclass with another forward, a layer more, and a usual training step."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, 10))

    def forward(self, x: Tensor) -> Any:
        return self.more(super().forward(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def test_what_a_subclass_adds_is_trained() -> None:
    module = Usual()
    before = [values.clone() for values in module.state_dict().values()]
    data = FashionMNISTDataModule(32, 50, 200, "synthetic", synthetic_size=250)
    Trainer(**QUIET, callbacks=[Engine()]).fit(module, data)
    for a, b in zip(before, module.state_dict().values(), strict=True):
        assert not torch.equal(a, b)
