"""Lightning as the usual template has it: DataLoader, torchmetrics and `self.log` in every step."""

import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from softmax_regression.commands.quiet import HIDDEN_WARNINGS

from .ours import Clock
from .task import BATCH_SIZE, LR, Outcome, Run, Task, clock, linear

# Lightning advises worker processes, and more frequent logs where epochs are short.
WARNINGS = (*HIDDEN_WARNINGS, ".*does not have many workers", ".*smaller than the logging interval")


class Template(LightningModule):
    """Softmax regression that logs its loss and accuracy by the step and by the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear("cpu")
        self.train_acc = MulticlassAccuracy(10, average="micro")
        self.val_acc = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.linear(x)
        loss = F.cross_entropy(logits, y)
        self.train_acc(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self.linear(x)
        self.val_acc(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR)


def contestant(task: Task) -> Run:
    """Return its fit, timed like this project's."""
    x, y, val_x, val_y = task.tensors()
    train, val = TensorDataset(x, y), TensorDataset(val_x, val_y)

    def run(epochs: int) -> Outcome:
        noted = Clock(task.device)
        stop = EarlyStopping("val_loss", patience=epochs)
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="gpu" if task.device == "cuda" else "cpu",
            devices=1,
            logger=TensorBoardLogger(task.scratch, "template"),
            callbacks=[stop, ModelCheckpoint(monitor="val_loss"), noted],
        )
        start = clock(task.device)
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message)
            trainer.fit(Template(), DataLoader(train, BATCH_SIZE, shuffle=True), DataLoader(val, BATCH_SIZE))
        end, first = clock(task.device), noted.first_step
        metrics = trainer.callback_metrics
        loss, acc = metrics["train_loss_epoch"].item(), metrics["val_acc"].item()
        return Outcome(end - first, first - start, loss, acc)

    return run
