"""When the figures of a run are drawn: into TensorBoard, or live in a notebook."""

import copy
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import curves, figures_of, learning_curves, to_png
from softmax_regression.files import reason

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

VALIDATION_FIGURES = ("confusion_matrix", "predictions", "weights")  # of the validation images, in training


@contextmanager
def evaluation_mode(module: LightningModule) -> Iterator[None]:
    """Let a module evaluate, without gradients; then each of its parts has the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def score(trainer: Trainer, module: LightningModule, loader: Iterable[Any], limit: int | None = None) -> list[Tensor]:
    """Return images (n, ...), labels (n,) and logits (n, k) of a loader, or of its first `limit` batches.

    Each process scores its share, and all get all shares. Random numbers and modes stay as they are.

    Raises:
        InputError: There are no images, classes and logits.
    """
    scored = []
    with isolate_rng(), trainer.precision_plugin.val_step_context(), evaluation_mode(module):
        for batch in islice(loader, limit):  # of which a DataLoader's iterator draws a random number
            x, y = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            scored.append((x, y, module(x)))
    if not scored or scored[0][0].ndim < 3 or [part.ndim for part in scored[0][1:]] != [1, 2]:
        raise InputError("they take batches of images and classes (n,), and logits (n, k)")
    parts = [torch.cat(part) for part in zip(*scored, strict=True)]
    return [torch.cat(gather_all_tensors(part)) for part in parts] if trainer.world_size > 1 else parts


class FigureLogger(Callback):
    """Draw the confusion matrix, a grid of predictions and the weights for TensorBoard's page IMAGES.

    Of the validation images at the end of training, `val/...`, and of the best checkpoint, `val_best/...`;
    after `test`, all figures of the test images. All processes score, one draws. The weights are drawn where
    the module is linear in the pixels; the data module's `class_names` are the names of the classes. Like
    scalars, figures stand at the last step, counted from 0.

    Args:
        every_n_epochs: Draw after every so many epochs as well; 0 to draw nothing at all.
        histograms: Also keep histograms of the weights and the last gradients of every epoch, at the cost of
            a call at each step.
    """

    def __init__(self, every_n_epochs: int | None = None, histograms: bool = False) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise InputError(f"every_n_epochs={every_n_epochs}: must be at least 0; change figures")
        self.every_n_epochs = every_n_epochs
        self.run: Path | None = None  # where to write what a Trainer without a logger has tested
        self._drawn, self._loaded = -1, 0  # the steps of the newest figures and of the loaded checkpoint
        if histograms:  # a method of the class would cost every run a call at each step
            self.on_train_batch_end = self._keep_histograms  # type: ignore[method-assign]

    def _keep_histograms(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep those of an epoch at its last step: validation forgets the gradients."""
        if trainer.is_last_batch and (writer := self._writer(trainer)):
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, trainer.global_step - 1)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradients/{name}", parameter.grad, trainer.global_step - 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        """Learn of which step the weights are that `test` loads."""
        self._loaded = checkpoint.get("global_step", 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what is due after this epoch."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, "val", trainer.global_step)
            self._drawn = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what has been trained, and the best of it as its checkpoint has kept it."""
        if self._drawn != trainer.global_step:
            self._draw(trainer, pl_module, "val", trainer.global_step)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
                self._draw(trainer, pl_module, "val_best", 0, callback.best_model_path)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw everything of the test images."""
        self._draw(trainer, pl_module, "test", trainer.global_step or self._loaded)

    def _draw(self, trainer: Trainer, module: LightningModule, tag: str, step: int, best: str = "") -> None:
        """Draw, of the module or of its best checkpoint; a figure must not end a run that is done."""
        loader, limit = _loader(trainer, tag.partition("_")[0])
        writer = self._writer(trainer)
        if loader is None or writer is None or self.every_n_epochs == 0:
            return
        trained = copy.deepcopy(module.state_dict()) if best else {}
        try:
            if best:
                saved = trainer.strategy.checkpoint_io.load_checkpoint(best, weights_only=True)
                module.load_state_dict(saved["state_dict"])
                step = saved["global_step"]
            images, labels, logits = score(trainer, module, loader, limit)
            if trainer.is_global_zero:
                names = getattr(getattr(trainer, "datamodule", None), "class_names", ())
                figures = figures_of(images, labels, logits, names, list(module.parameters()))
                for name in [name for name in figures if tag == "test" or name in VALIDATION_FIGURES]:
                    writer.add_figure(f"{tag}/{name}", figures[name](), max(step - 1, 0), close=False)
                writer.flush()
        except Exception as error:  # of anybody's module, loader or classes
            if trainer.is_global_zero:
                print(f"figures {tag}/... are left out: {reason(error)}", file=sys.stderr)
        finally:
            if best:
                module.load_state_dict(trained)

    def _writer(self, trainer: Trainer) -> "SummaryWriter | None":
        """Return where to draw, if anywhere; on all processes, for they score together."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        boards += [TensorBoardLogger(self.run, name="", version="")] if self.run else []
        return boards[0].experiment if boards else None


def _loader(trainer: Trainer, stage: str) -> tuple[Iterable[Any] | None, int | None]:
    """Return the loader of `test`, or of the validation set of that name or the first, and its limit."""
    loaders, limits = trainer.val_dataloaders, trainer.num_val_batches
    if stage == "test":
        loaders, limits = trainer.test_dataloaders, trainer.num_test_batches
    if isinstance(loaders, dict):
        loaders = loaders.get(stage)
    if isinstance(loaders, list):
        loaders = loaders[0] if loaders else None
    return loaders, int(limits[0]) if limits and limits[0] < math.inf else None


class LiveCurve(Callback):
    """Draw loss and accuracy in a notebook while the model trains, as the book's `Animator` does."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew; outside a notebook, say what draws the curves there."""
        ipython: Any = sys.modules.get("IPython")
        self._notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self._rows, self._handle = list[dict[str, float]](), None
        if stage == "fit" and trainer.is_global_zero and not self._notebook:
            print("LiveCurve draws in notebooks; here, look with: tensorboard --logdir logs", file=sys.stderr)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the epochs that have ended: a module's `history`, or else what it has logged."""
        if trainer.current_epoch == 0 or not self._notebook or not trainer.is_global_zero:
            return
        notebook: Any = import_module("IPython.display")
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._rows.append({"epoch": trainer.current_epoch, **logged})
        figure = learning_curves({"": curves(getattr(pl_module, "history", self._rows))})
        picture = notebook.Image(to_png(figure))  # a PNG, whatever backend matplotlib has there
        if self._handle:
            self._handle.update(picture)
        else:
            self._handle = notebook.display(picture, display_id=True)

    on_train_end = on_train_epoch_start
