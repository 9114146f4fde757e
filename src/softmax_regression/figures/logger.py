"""When the figures of a run are drawn: into TensorBoard, or live in a notebook."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from softmax_regression.data.files import CLASSES
from softmax_regression.data.minibatches import Batches
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.folder import METRICS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = ("confusion_matrix", "predictions", "weights")  # of the validation images, in training


@torch.no_grad()
def score(model: SoftmaxRegression, batches: Batches, trainer: Trainer | None = None) -> Tensor:
    """Return the logits (n, k) of all n images, in the order of `batches.index`.

    Each process of a trainer scores its share, and all of them get the sum.
    """
    logits, start = torch.zeros(len(batches.index), len(CLASSES), device=model.device), 0
    for minibatch in (minibatch for minibatches in batches for minibatch in minibatches):
        images, _, size = minibatch
        share = slice(start + batches.rank, start + size, batches.world_size)
        logits[share] = model(images).float()
        start += size
    return cast(Tensor, trainer.strategy.reduce(logits, reduce_op="sum")) if trainer else logits


class FigureLogger(Callback):
    """Draw the confusion matrix, a grid of predictions and the weights for TensorBoard's page IMAGES.

    Of the validation images after the last epoch, `val/...`, and of the best one, `val_best/...`; after
    `test`, all figures of the test images. All processes score, one draws.

    Args:
        every_n_epochs: Draw after every so many epochs as well; 0 to draw nothing at all.
        histograms: Also keep histograms of the weights, and of the last gradients, of every epoch.
    """

    def __init__(self, every_n_epochs: int | None = None, histograms: bool = False) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise InputError(f"every_n_epochs={every_n_epochs}: must be at least 0; change figures")
        self.every_n_epochs, self.histograms = every_n_epochs, histograms
        self.run: Path | None = None  # where to write what a Trainer without a logger has tested
        self._drawn = 0  # the epoch of the newest figures

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the histograms of the epoch, before validation forgets its last gradients."""
        if self.histograms and trainer.is_last_batch and (writer := self._writer(trainer)):
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, trainer.current_epoch + 1)
                writer.add_histogram(f"gradients/{name}", parameter.grad, trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what is due after this epoch."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and epoch % self.every_n_epochs == 0:
            self._draw_validation(trainer, cast(SoftmaxRegression, pl_module), "val", epoch)
            self._drawn = epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last epoch, and the best one as its checkpoint has kept it."""
        model = cast(SoftmaxRegression, pl_module)
        epoch = len(model.history)
        if self.every_n_epochs == 0:
            return
        if epoch > self._drawn:
            self._draw_validation(trainer, model, "val", epoch)
        for callback in trainer.checkpoint_callbacks:
            if not (isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path):
                continue
            files = trainer.strategy.checkpoint_io
            saved = files.load_checkpoint(callback.best_model_path, weights_only=True)
            best = SoftmaxRegression()
            best.load_state_dict(saved["state_dict"])
            self._draw_validation(trainer, best.to(model.device), "val_best", len(saved["history"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw everything of the test images."""
        model = cast(SoftmaxRegression, pl_module)
        if self.every_n_epochs != 0:
            self._draw(trainer, model, "test", cast(Batches, trainer.test_dataloaders), len(model.history))

    def _draw_validation(self, trainer: Trainer, model: SoftmaxRegression, tag: str, epoch: int) -> None:
        loaders = cast(dict[str, Batches], trainer.val_dataloaders or {})
        if "val" in loaders:
            training = model.training
            self._draw(trainer, model.eval(), tag, loaders["val"], epoch, SHOWN)
            model.train(training)

    def _draw(
        self,
        trainer: Trainer,
        model: SoftmaxRegression,
        tag: str,
        batches: Batches,
        epoch: int,
        names: Collection[str] = (),
    ) -> None:
        from softmax_regression.figures import drawings as figures

        logits, writer = score(model, batches, trainer), self._writer(trainer)
        if not writer:
            return
        weight, bias = model.linear.parameters()
        chosen = batches.index.to(batches.images.device)
        images, labels = batches.images.index_select(0, chosen), batches.labels[chosen]
        for name, draw in figures.drawings(images, labels, logits, weight, bias, CLASSES).items():
            if not names or name in names:
                writer.add_image(f"{tag}/{name}", figures.to_array(draw()), epoch, dataformats="HWC")
        writer.flush()

    def _writer(self, trainer: Trainer) -> "SummaryWriter | None":
        """Return where this process writes to, if it does."""
        if not trainer.is_global_zero:
            return None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                return cast("SummaryWriter", logger.experiment)
        if not self.run:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run))


class LiveCurve(Callback):
    """Draw loss and accuracy in a notebook while the model trains, as the book's `Animator` does."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the figure by one with the epoch that has ended."""
        history = cast(SoftmaxRegression, pl_module).history
        if not history:
            return
        from IPython.display import clear_output, display

        from softmax_regression.figures import drawings as figures

        clear_output(wait=True)
        display(figures.learning_curves({"": curves(history)}))

    on_train_end = on_train_epoch_start


def curves(history: list[dict[str, float]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return epochs (t,) and values (t,) of each metric in t rows, for `figures.learning_curves`."""
    names = [name for name in METRICS if name in history[-1]]
    epochs = torch.tensor([row["epoch"] for row in history])
    return {name: (epochs, torch.tensor([row.get(name, math.nan) for row in history])) for name in names}
