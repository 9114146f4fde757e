"""An epoch that was under way when a run was killed has the metrics of all its batches."""

from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC
from torchmetrics.wrappers import MetricTracker, MinMaxMetric, Running

from commands import rows_of
from softmax_regression import LastCheckpoint, RunLogger, SoftmaxRegression
from softmax_regression.runs.rows import RowCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")

ROWS: Any = list(torch.linspace(0, 1, 20))  # seven batches of three, the last one smaller


class Killed(BaseException):
    """Stands for SIGKILL."""


class Logging(LightningModule):
    """Log the same numbers in all the ways there are."""

    queue: Tensor

    def __init__(self, killed_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.killed_at = killed_at
        self.mean = MeanMetric()
        self.auroc = BinaryAUROC()
        self.extremes = MinMaxMetric(MeanMetric())
        self.window = Running(MeanMetric(), window=4)
        self.epochs = MetricTracker(MeanMetric(), maximize=False)
        self.outputs: list[Tensor] = []
        self.by_stage: dict[str, list[Tensor]] = defaultdict(list)
        self.steps = 0
        self.latest: deque[Tensor] = deque(maxlen=4)
        self.register_buffer("queue", torch.zeros(1), persistent=False)

    def on_train_epoch_start(self) -> None:
        self.epochs.increment()
        self.total = torch.zeros(())
        self.batches = 0
        self.last: deque[Tensor] = deque(maxlen=2)
        self.sizes: Counter[int] = Counter()
        self.rounded: set[float] = set()
        self.seen: dict[int, int] = defaultdict(int)
        self.log("at the start", float(self.global_step))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.killed_at:
            raise Killed
        value = batch.square().mean()
        self.log("mean of a batch", value, on_step=True, on_epoch=True, batch_size=len(batch))
        for name in ("max", "min", "sum"):
            self.log(name, value, reduce_fx=name, on_epoch=True, on_step=False)
        if batch_idx == 0:
            self.log("of the first batch", value, on_step=True, on_epoch=True, reduce_fx=max)
        self.auroc.update(batch, (batch > 0.5).int())
        for name, metric in (("mean", self.mean), ("window", self.window)):
            metric.update(value)
            self.log(name, metric, on_epoch=True, on_step=False)
        self.extremes(value)
        self.epochs.update(value)
        self.outputs.append(value)
        self.by_stage["train"].append(value)
        self.steps += 1
        self.latest.append(value)
        self.total += value
        self.batches += 1
        self.last.append(value)
        self.sizes.update([len(batch)])
        self.rounded.add(round(value.item(), 1))
        self.seen[batch_idx] += 1
        self.queue = torch.cat([self.queue, value[None]])[-9:]
        self.log("mean of a queue", self.queue.mean(), on_epoch=True)
        return self.weight

    def on_train_epoch_end(self) -> None:
        self.log("auroc", self.auroc.compute())
        self.log_dict({f"extreme {name}": value for name, value in self.extremes.compute().items()})
        self.log("each epoch", self.epochs.compute_all().sum())
        self.log("mean of a list", torch.stack(self.outputs).mean())
        self.outputs.clear()
        self.log("mean of a list in a dictionary", torch.stack(self.by_stage.pop("train")).mean())
        self.log("mean of a sum", self.total / self.batches)
        self.log("mean of the latest", torch.stack([*self.latest]).mean())
        self.log("mean of the last", torch.stack([*self.last]).mean())
        self.log("sizes", float(self.sizes[3]))
        self.log("rounded", float(len(self.rounded)))
        self.log("batches", float(sum(self.seen.values())))
        self.log("steps", float(self.steps))
        self.schedule.step()
        self.log("rate", self.schedule.get_last_lr()[0])
        self.auroc.reset()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
        return optimizer


class CountsExamples(Callback):
    """Counts the examples of an epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.count += len(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("examples", float(self.count))


def logged(
    module: LightningModule,
    version: str,
    path: Path | None = None,
    every: int | None = 2,
    rows: Any = ROWS,
    **options: Any,
) -> dict[str, Tensor]:
    """Train for two epochs, saving every few steps or at the end of epochs; return what was logged in the end."""
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=RunLogger(version=version), log_every_n_steps=1,
        callbacks=[
            CountsExamples(), LastCheckpoint(every_n_train_steps=every), RowCallback(),
            ModelCheckpoint("epochs", version, save_top_k=-1),
        ],
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, 3), ckpt_path=path, weights_only=True)
    return trainer.callback_metrics


def test_what_was_logged_is_that_of_the_run_that_was_not_killed() -> None:
    whole = logged(Logging(), "whole")
    with pytest.raises(Killed):
        logged(Logging(killed_at=9), "killed")
    checkpoint = Path("logs/softmax/killed/checkpoints/last.ckpt")
    with pytest.raises(Killed):  # before anything more was saved
        logged(Logging(killed_at=11), "again", checkpoint)
    resumed = logged(Logging(), "resumed", Path("logs/softmax/again/checkpoints/last.ckpt"))
    assert len(whole) == 31
    assert resumed == whole


class LooksBack(Logging):
    """Looks, at the end of an epoch, at a validation that is over."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", batch.mean() + self.global_step)

    def on_train_epoch_end(self) -> None:
        self.log("seen", 2 * self.trainer.callback_metrics["val"])

    def val_dataloader(self) -> Any:
        return DataLoader(ROWS[:4], 2)


def test_a_validation_within_an_epoch_is_found_at_its_end_and_in_no_further_row() -> None:
    straight, resumed = LooksBack(), LooksBack()
    whole = logged(straight, "whole", val_check_interval=4)
    with pytest.raises(Killed):
        logged(LooksBack(killed_at=13), "killed", val_check_interval=4)
    path = Path("logs/softmax/killed/checkpoints/last.ckpt")
    assert logged(resumed, "resumed", path, val_check_interval=4) == whole
    assert rows_of(resumed)[-1] == rows_of(straight)[-1]


class KilledClassifier(SoftmaxRegression):
    """Softmax regression with the same initial weights each time."""

    def __init__(self, killed_at: int | None = None) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.killed_at = killed_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == self.killed_at:
            raise Killed
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_scores_of_a_classifier_are_those_of_the_run_that_was_not_killed() -> None:
    images = torch.linspace(0, 1, 20 * 784).view(20, 1, 28, 28)
    rows = [(image, index % 10) for index, image in enumerate(images)]
    whole = logged(KilledClassifier(), "whole", rows=rows)
    with pytest.raises(Killed):
        logged(KilledClassifier(killed_at=9), "killed", rows=rows)
    checkpoint = Path("logs/softmax/killed/checkpoints/last.ckpt")
    resumed = logged(KilledClassifier(), "resumed", checkpoint, rows=rows)
    assert whole.keys() == {"train/loss", "train/acc", "lr", "examples"}
    assert resumed == whole


def test_metrics_that_count_over_epochs_go_on_at_the_end_of_one() -> None:
    whole = logged(Logging(), "whole")
    with pytest.raises(Killed):
        logged(Logging(killed_at=9), "killed", every=None)
    assert logged(Logging(), "resumed", Path("logs/softmax/killed/checkpoints/last.ckpt")) == whole
    assert logged(Logging(), "of another checkpoint", Path("epochs/killed.ckpt")) == whole


class Begins(Logging):
    """Resets what it has, and draws random numbers, as each training begins."""

    def __init__(self, killed_at: int | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(killed_at)

    def on_train_start(self) -> None:
        for metric in (self.mean, self.auroc, self.extremes, self.window):
            metric.reset()
        self.outputs = []
        torch.rand(3)
        self.log("of the beginning", 1.0, reduce_fx="sum")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("drawn", torch.rand(()), on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("every", [2, None])
def test_what_a_module_resets_and_draws_as_a_training_begins_is_that_of_the_run_that_is_resumed(
    every: int | None,
) -> None:
    whole = logged(Begins(), "whole")
    with pytest.raises(Killed):
        logged(Begins(killed_at=9), "killed", every=every)
    assert logged(Begins(), "resumed", Path("logs/softmax/killed/checkpoints/last.ckpt")) == whole
