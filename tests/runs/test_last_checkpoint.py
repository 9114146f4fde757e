"""LastCheckpoint in a plain Trainer: beside other checkpoints, and with a schedule that looks at a plateau."""

import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from commands import scalars
from softmax_regression import BestCheckpoint, LastCheckpoint
from softmax_regression.errors import Interrupted

pytestmark = pytest.mark.filterwarnings("ignore")


class OnPlateau(BoringModel):
    """A loss that never improves, so that the learning rate falls at the end of each epoch but the first."""

    def __init__(self, frequency: int = 1) -> None:
        super().__init__()
        self.frequency = frequency
        self.rates: list[float] = []

    def on_train_epoch_start(self) -> None:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.tensor(1.0))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        config = {"scheduler": schedule, "monitor": "val/loss", "frequency": self.frequency}
        return {"optimizer": optimizer, "lr_scheduler": config}


def trainer(folder: Path, epochs: int, callbacks: list[Any], **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs, accelerator="cpu", logger=TensorBoardLogger(folder, "", "run"), callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, limit_train_batches=4, limit_val_batches=1, **options,
    )  # fmt: skip


def last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


@pytest.mark.parametrize("frequency", [1, 2])
def test_a_rate_that_fell_on_a_plateau_is_that_of_the_straight_run(frequency: int, tmp_path: Path) -> None:
    seed_everything(1)
    straight = OnPlateau(frequency)
    trainer(tmp_path / "straight", 6, [LastCheckpoint()]).fit(straight)
    for epochs in (2, 3, 6):
        seed_everything(1)
        module = OnPlateau(frequency)
        path = tmp_path / "again" / "run" / "checkpoints" / "last.ckpt"
        options: dict[str, Any] = {"ckpt_path": path, "weights_only": True} if epochs > 2 else {}
        trainer(tmp_path / "again", epochs, [LastCheckpoint()]).fit(module, **options)
    assert module.rates == straight.rates
    assert module.rates[-1] < 1
    ours, theirs = last(tmp_path / "again"), last(tmp_path / "straight")
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    assert (
        ours["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]["total"]
        == (theirs["loops"]["fit_loop"]["epoch_loop.scheduler_progress"]["total"])
    )


class Counting(OnPlateau):
    """Counts its steps itself and logs the count, and with it a loss for which the rate falls every second step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("count", float(self.steps))
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps = checkpoint["steps"]

    def configure_optimizers(self) -> Any:
        config = super().configure_optimizers()
        config["lr_scheduler"] |= {"interval": "step", "monitor": "count", "frequency": 2}
        return config


class Interrupting(Callback):
    """A SIGTERM in the first step of the second epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            signal.raise_signal(signal.SIGTERM)


class Accumulating(GradientAccumulationScheduler):
    def __init__(self) -> None:
        super().__init__({0: 1, 1: 2})


class Averaging(StochasticWeightAveraging):
    def __init__(self) -> None:
        super().__init__(swa_lrs=0.1, swa_epoch_start=1)


class Accumulator(Callback):
    """Sets options of the Trainer for each epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch
        trainer.gradient_clip_val = 0.1 / (1 + trainer.current_epoch)


class Measuring(Callback):
    """Has a metric of its own, and logs what a logger has got before."""

    def __init__(self) -> None:
        self.mean = MeanMetric()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.mean.update(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("mean", self.mean.compute())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("mean_before", trainer.logged_metrics.get("mean", 0.0))


class Swapping(BoringModel):
    """Halves its weights while it is validated."""

    def on_validation_start(self) -> None:
        self.layer.weight.data.mul_(0.5)

    def on_validation_end(self) -> None:
        self.layer.weight.data.mul_(2)


UNDER_WAY = {
    "other weights for a validation at each step": (Swapping, Callback),
    "a count of its own, a schedule by steps": (Counting, Callback),
    "a schedule by epochs": (OnPlateau, Callback),
    "gradients accumulated by epochs": (BoringModel, Accumulating),
    "averaged weights": (BoringModel, Averaging),
    "options of the Trainer that a callback sets": (BoringModel, Accumulator),
    "a metric of a callback": (BoringModel, Measuring),
}


@pytest.mark.parametrize("kind", UNDER_WAY)
def test_a_run_goes_on_within_an_epoch_like_the_straight_run(kind: str, tmp_path: Path) -> None:
    make_module, make_callback = UNDER_WAY[kind]

    def train(name: str, *others: Callback, path: Path | None = None) -> None:
        seed_everything(1)
        options: dict[str, Any] = {"log_every_n_steps": 1, "val_check_interval": 1}
        run = trainer(tmp_path / name, 3, [make_callback(), *others, LastCheckpoint()], **options)
        run.fit(make_module(), ckpt_path=path, weights_only=True)

    train("straight")
    with pytest.raises(Interrupted):
        train("again", Interrupting())
    train("again", path=tmp_path / "again" / "run" / "checkpoints" / "last.ckpt")
    straight, again = last(tmp_path / "straight"), last(tmp_path / "again")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "steps"):
        assert str(again.get(part)) == str(straight.get(part))
    series = scalars(tmp_path / "straight" / "run")
    assert series.keys() == scalars(tmp_path / "again" / "run").keys()
    for name, points in scalars(tmp_path / "again" / "run").items():
        assert sorted(points) == series[name]


@pytest.mark.parametrize("kind", [BestCheckpoint, ModelCheckpoint])
def test_the_best_checkpoint_is_found_behind_the_last_one(kind: Any, tmp_path: Path) -> None:
    best = kind(monitor="val/loss")
    run = trainer(tmp_path, 1, [LastCheckpoint(), best])
    run.fit(module := OnPlateau())
    run.test(module, ckpt_path="best", verbose=False)
    assert best.best_model_path
    assert run.ckpt_path == best.best_model_path


def test_without_a_best_checkpoint_lightning_says_so(tmp_path: Path) -> None:
    run = trainer(tmp_path, 1, [LastCheckpoint()])
    run.fit(module := OnPlateau())
    with pytest.raises(ValueError, match="not configured to save the best model"):
        run.test(module, ckpt_path="best")


def test_other_minibatches_after_a_resume_on_another_number_of_processes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        trainer(tmp_path, 3, [Interrupting(), LastCheckpoint()]).fit(BoringModel())
    saved = last(tmp_path)
    saved["softmax_regression.processes"] *= 2  # as two processes save it
    path = tmp_path / "two.ckpt"
    torch.save(saved, path)
    trainer(tmp_path, 3, [LastCheckpoint()]).fit(BoringModel(), ckpt_path=path, weights_only=True)
    assert "processes: 1 instead of 2; the minibatches of this epoch are other" in capsys.readouterr().out


class Sized(BoringModel):
    """Draws the order of its minibatches from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64), self.batch_size, shuffle=True)


@patch("lightning.pytorch.tuner.batch_size_scaling.garbage_collection_cuda", list)  # it takes seconds
def test_the_training_after_a_search_for_the_batch_size_is_that_of_a_plain_trainer(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [LastCheckpoint()]):
        seed_everything(1)
        module = Sized()
        finder = BatchSizeFinder(max_trials=2, init_val=2)
        trainer(tmp_path / str(len(callbacks)), 1, [finder, *callbacks], default_root_dir=tmp_path).fit(module)
        weights.append(module.layer.weight)
    assert torch.equal(*weights)
