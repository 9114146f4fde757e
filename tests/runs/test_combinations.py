"""Options and habits that meet in one run: the run is that of a plain Trainer, and after a kill resumes bit for bit."""

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

import softmax_regression as sr
from marks import slow, slow_but, table
from softmax_regression.runs.rows import RowCallback

DRAWN = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(47, 6, generator=DRAWN), torch.randint(3, (47,), generator=DRAWN))
HELD_OUT = TensorDataset(torch.randn(19, 6, generator=DRAWN), torch.randint(3, (19,), generator=DRAWN))


@dataclass
class Habits:
    """What somebody's module, data and Trainer do."""

    loader: str = "shuffled"
    validation: str = "one"
    schedule: str = "none"
    averages: bool = False  # add EMAWeightAveraging
    monitors_rate: bool = False
    accumulates_later: bool = False  # add GradientAccumulationScheduler
    ends_early: bool = False  # `on_train_batch_start` returns -1 in the second epoch
    without_loss: bool = False  # `training_step` returns None now and then
    keeps_gradients: bool = False  # `optimizer_zero_grad` sets them to zero
    drops: bool = False
    tells_epoch: bool = False  # `on_train_epoch_start` sets numbers of the data module, the data and `collate_fn`
    stays_in_eval: bool = False  # `on_train_epoch_start` sets a part to eval mode
    logs: dict[str, bool] = field(default_factory=dict)  # options of `self.log`
    trainer: dict[str, Any] = field(default_factory=dict)
    saved_every: int | None = 3
    killed_at: int = 12  # the minibatch, counted over the run
    resumed_from: str = "last.ckpt"


class Net(LightningModule):
    """A classifier with such habits."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.habits = habits
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3 * habits.drops), nn.Linear(8, 3))

    def on_train_epoch_start(self) -> None:
        if self.habits.stays_in_eval:
            self.net[1].eval()
        if self.habits.tells_epoch:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            data.scale = data.collate.scale = data.examples.scale = 1 + 0.1 * self.current_epoch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.habits.ends_early and (self.current_epoch, batch_idx) == (1, 4) else None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.habits.keeps_gradients)

    def step(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        x = x * self.trainer.datamodule.scale  # type: ignore[attr-defined]
        loss = F.cross_entropy(self.net(x.to(self.dtype)), y)
        self.log(f"{stage}_loss", loss, batch_size=len(x), **self.habits.logs)  # type: ignore[arg-type]
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self.habits.without_loss and batch_idx % 4 == 3:
            return None
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.habits.schedule == "epochs":
            return [optimizer], [StepLR(optimizer, 1, 0.5)]
        if self.habits.schedule == "plateau":
            plateau = {"scheduler": ReduceLROnPlateau(optimizer, "max", patience=0), "monitor": "train_loss"}
            return {"optimizer": optimizer, "lr_scheduler": plateau}
        return optimizer


class Stream(IterableDataset[Any]):
    """A shuffled stream without a length."""

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(len(DATA)).tolist():
            yield DATA[i]


class Scaled:
    """A `collate_fn` that scales the inputs."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, examples: list[Any]) -> Any:
        x, y = default_collate(examples)
        return x * self.scale, y


class Examples(Dataset[Any]):
    """The data, scaled."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __getitem__(self, i: int) -> Any:
        x, y = DATA[i]
        return x * self.scale, y


class Loaders(LightningDataModule):
    """The data, in loaders of several kinds."""

    def __init__(self, habits: Habits) -> None:
        super().__init__()
        self.habits = habits
        self.scale = 1.0
        self.collate = Scaled()
        self.examples = Examples()

    def train_dataloader(self) -> Any:
        if self.habits.loader == "stream":
            return DataLoader(Stream(), 8)
        if self.habits.loader == "own generator":
            return DataLoader(DATA, 8, shuffle=True, generator=torch.Generator().manual_seed(3))
        part = Subset(self.examples, range(len(DATA)))
        return DataLoader(part, 8, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> Any:
        if self.habits.validation == "none":
            return []
        return DataLoader(HELD_OUT, 7, shuffle=self.habits.validation == "shuffled")


class Points(Logger):
    """Keep every point that is logged."""

    name = "points"
    version = "0"

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[str, int, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.points.append((name, step or 0, value))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer(Callback):
    """Kill a run before a minibatch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.at:
            raise Killed


@dataclass
class Trained:
    """What is left of a run."""

    weights: dict[str, Tensor]
    points: list[tuple[str, int, float]]
    rows: list[dict[str, float]]
    best: dict[str, Any] | None


def trained(habits: Habits, ours: bool = True, path: Path | None = None, killed_at: int | None = None) -> Trained:
    """Train a module with such habits, by a plain Trainer or with the callbacks of this project."""
    seed_everything(3, verbose=False)
    points, best = Points(), sr.BestCheckpoint("val_loss" if habits.validation != "none" else None)
    callbacks: list[Callback] = []
    if habits.averages:
        callbacks.append(EMAWeightAveraging(decay=0.9))
    if habits.monitors_rate:
        callbacks.append(LearningRateMonitor())
    if habits.accumulates_later:
        callbacks.append(GradientAccumulationScheduler({0: 1, 1: 2}))
    if ours:
        callbacks += [sr.Engine(), sr.LastCheckpoint(habits.saved_every), sr.RunRecord(), best]
    if killed_at is not None:
        callbacks.append(Killer(killed_at))
    loggers = [sr.RunLogger(version="killed" if killed_at else None), points] if ours else [points]
    options: dict[str, Any] = {"max_epochs": 4, "log_every_n_steps": 1, **habits.trainer}
    trainer = Trainer(
        accelerator="cpu", logger=loggers, callbacks=callbacks, enable_checkpointing=ours,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    module = Net(habits)
    if killed_at is None:
        trainer.fit(module, Loaders(habits), ckpt_path=path, weights_only=True)
    else:
        with pytest.raises(Killed):
            trainer.fit(module, Loaders(habits))
    rows = next((each.rows for each in trainer.callbacks if isinstance(each, RowCallback)), [])  # type: ignore[attr-defined]
    return Trained(module.state_dict(), points.points, rows, best.best)


CASES = {
    "an epoch that a hook ends": Habits(ends_early=True, killed_at=16),
    "a rhythm of validation without data for it": Habits(
        validation="none", saved_every=1, killed_at=8, trainer={"val_check_interval": 0.34}
    ),
    "a number of steps, killed before the first save": Habits(
        saved_every=None, killed_at=4, trainer={"max_steps": 11, "max_epochs": -1}
    ),
    "gradients that are set to zero, and a step without a loss": Habits(
        keeps_gradients=True, without_loss=True, killed_at=5
    ),
    "loaders with generators that are made for each epoch": Habits(
        loader="own generator", trainer={"reload_dataloaders_every_n_epochs": 1}, killed_at=14
    ),
    "a stream that ends before its limit": Habits(loader="stream", trainer={"limit_train_batches": 9}, killed_at=14),
    "a validation in every second epoch, logged by step": Habits(
        logs={"on_step": True, "on_epoch": True}, trainer={"check_val_every_n_epoch": 2}, saved_every=1, killed_at=14
    ),
    "a validation on loaders that are made within an epoch": Habits(
        logs={"on_step": True, "on_epoch": True},
        trainer={"check_val_every_n_epoch": None, "val_check_interval": 5, "reload_dataloaders_every_n_epochs": 1},
        saved_every=1,
        killed_at=14,
    ),
    "averaged weights of 64 bits": Habits(averages=True, trainer={"precision": "64-true"}),
    "the best of a validation at the end of an epoch": Habits(
        trainer={"check_val_every_n_epoch": None, "val_check_interval": 6}, resumed_from="best.ckpt", killed_at=14
    ),
    "the best of an epoch after which a schedule steps": Habits(
        schedule="plateau", validation="shuffled", resumed_from="best.ckpt", killed_at=22
    ),
    "the best of a validation between two minibatches of a step": Habits(
        trainer={"val_check_interval": 2, "accumulate_grad_batches": 4, "max_epochs": 2},
        resumed_from="best.ckpt",
        killed_at=3,
        saved_every=None,
    ),
    "two validations at one step": Habits(
        trainer={"val_check_interval": 1, "accumulate_grad_batches": 3}, saved_every=1, killed_at=5
    ),
    "a metric that was logged before the save, and no row has yet": Habits(
        monitors_rate=True,
        trainer={"check_val_every_n_epoch": None, "val_check_interval": 5, "log_every_n_steps": 50},
        killed_at=4,
    ),
    "numbers that a hook tells the data": Habits(tells_epoch=True, killed_at=9),
    "a part in eval mode": Habits(drops=True, stays_in_eval=True, killed_at=4),
    "a part in eval mode, in a validation within an epoch": Habits(
        drops=True, stays_in_eval=True, trainer={"val_check_interval": 3}, resumed_from="best.ckpt", killed_at=4
    ),
}
CHOICES: dict[str, list[Any]] = {
    "loader": ["shuffled", "own generator", "stream"],
    "validation": ["one", "shuffled", "none"],
    "schedule": ["none", "epochs", "plateau"],
    "averages": [False, False, True],
    "monitors_rate": [False, False, True],
    "accumulates_later": [False, False, True],
    "ends_early": [False, False, True],
    "without_loss": [False, False, True],
    "keeps_gradients": [False, False, True],
    "drops": [False, True],
    "logs": [{}, {"on_step": True, "on_epoch": True}],
    "saved_every": [None, 1, 2, 3],
    "killed_at": list(range(2, 11)),
    "resumed_from": ["last.ckpt", "last.ckpt", "best.ckpt"],
}
TRAINER: dict[str, list[Any]] = {
    "accumulate_grad_batches": [1, 1, 3],
    "check_val_every_n_epoch": [1, 1, 2],
    "gradient_clip_val": [None, 0.5],
    "limit_train_batches": [1.0, 5],
    "max_steps": [-1, -1, 11],
    "precision": ["32-true", "bf16-mixed", "64-true"],
    "reload_dataloaders_every_n_epochs": [0, 0, 1, 2],
    "val_check_interval": [1.0, 2, 3],
}


def drawn(seed: int) -> Habits:
    """Draw a combination."""
    draw = random.Random(seed)
    chosen = {name: draw.choice(values) for name, values in CHOICES.items()}
    trainer = {name: draw.choice(values) for name, values in TRAINER.items()}
    if chosen["accumulates_later"]:  # Lightning refuses both
        del trainer["accumulate_grad_batches"]
    return Habits(**chosen, trainer=trainer)


DRAWN_CASES = [0, *(slow(seed, name=str(seed)) for seed in range(1, 6)), *(table(i, name=str(i)) for i in range(6, 60))]
QUICK = (
    "an epoch that a hook ends",
    "a stream that ends before its limit",
    "two validations at one step",
    "numbers that a hook tells the data",
    "a part in eval mode, in a validation within an epoch",
)


def assert_resumed(habits: Habits) -> None:
    """Check that a run is that of a plain Trainer, and the same after a kill."""
    with warnings.catch_warnings(action="ignore"):  # Lightning's advice on small data
        plain = trained(habits, ours=False)
        straight = trained(habits)
        trained(habits, killed_at=habits.killed_at)
        run = Path("logs", "softmax", "killed")
        path = run / "checkpoints" / habits.resumed_from
        if not path.exists():
            path = next(run.rglob("*.ckpt"))
        resumed = trained(habits, path=path)
    for name, weight in straight.weights.items():
        assert torch.equal(weight, plain.weights[name]), name
        assert torch.equal(weight, resumed.weights[name]), name
    assert sorted(straight.points) == sorted(plain.points)
    assert {*resumed.points} <= {*straight.points}
    assert resumed.rows == straight.rows
    assert resumed.best == straight.best


@pytest.mark.parametrize("case", slow_but(QUICK, CASES))
def test_what_meets_in_one_run_is_resumed_bit_for_bit(case: str) -> None:
    assert_resumed(CASES[case])


@pytest.mark.parametrize("seed", DRAWN_CASES)
def test_what_is_drawn_at_random_is_resumed_bit_for_bit(seed: int) -> None:
    assert_resumed(drawn(seed))
