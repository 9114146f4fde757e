"""The figures of a run in TensorBoard."""

import copy
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng

from softmax_regression.data.module import class_names_of
from softmax_regression.errors import InputError
from softmax_regression.figures.predictions import figures_of
from softmax_regression.figures.scoring import choose_loader, score
from softmax_regression.files import reason
from softmax_regression.runs.callbacks import BestCheckpoint, callbacks_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

VALIDATION_FIGURES = ("confusion_matrix", "predictions", "weights")  # drawn in training


class FigureLogger(Callback):
    """Draw the confusion matrix, a grid of predictions and the weights for TensorBoard's page IMAGES.

    They show the validation images at the end of training, as `val/...`, and with the best checkpoint, as
    `val_best/...`; after `test`, all figures of the test images. All processes score, one draws. The weights are drawn
    if the module is linear in the pixels. The names of the classes are the data module's `class_names`. The step of a
    figure is the last one, counted from 0, as for scalars.

    Args:
        every_n_epochs: Draw after every so many epochs as well; 0 to draw nothing.
        histograms: Also log histograms of the weights and the last gradients of every epoch; this costs a call at each
            step.
    """

    flag_group = "figures"  # of its arguments on the command line

    def __init__(self, every_n_epochs: int | None = None, histograms: bool = False) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise InputError(f"every_n_epochs={every_n_epochs}: must be at least 0; change figures")
        self.every_n_epochs = every_n_epochs
        self.histograms = histograms
        self.run: Path | None = None  # the folder to write to after `test`, where the Trainer has no logger
        self._drawn = -1  # the step of the newest figures
        self._loaded = 0  # the step of the loaded checkpoint
        self._reasons: set[str] = set()  # why figures were left out; each is printed once
        if histograms:  # a method of the class would be called at each step of every run
            self.on_train_batch_end = self._keep_histograms  # type: ignore[method-assign]

    def _keep_histograms(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the histograms at the last step of an epoch; validation removes the gradients."""
        if not trainer.is_last_batch:
            return
        with self._left_out_on_error(trainer, "histograms"):
            writer = self._writer(trainer)
            if writer is None:
                return
            step = trainer.global_step - 1
            for name, parameter in pl_module.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, step)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        """Keep the step of the checkpoint that `test` loads."""
        self._loaded = checkpoint.get("global_step", 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what is due after this epoch."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, "val", trainer.global_step)
            self._drawn = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures of the trained model and those of the best checkpoint."""
        if self.every_n_epochs == 0:
            return
        if self._drawn != trainer.global_step:
            self._draw(trainer, pl_module, "val", trainer.global_step)
        best = _best_checkpoint(trainer)
        if best:
            self._draw_best(trainer, pl_module, best)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw all figures of the test images."""
        self._draw(trainer, pl_module, "test", trainer.global_step or self._loaded)

    def _draw(self, trainer: Trainer, module: LightningModule, tag: str, step: int) -> None:
        """Draw the figures of a module, all of them or those of the validation images."""
        if self.every_n_epochs == 0:
            return
        with self._left_out_on_error(trainer, f"figures {tag}/..."):
            writer = self._writer(trainer)
            chosen = _choose(trainer, tag.partition("_")[0])
            if writer is None or chosen is None:
                return
            scored = score(trainer, module, *chosen)
            if not trainer.is_global_zero:
                return
            names = class_names_of(getattr(trainer, "datamodule", None))
            figures = figures_of(*scored, names, list(module.parameters()))
            for name, draw in figures.items():
                if tag == "test" or name in VALIDATION_FIGURES:
                    writer.add_figure(f"{tag}/{name}", draw(), max(step - 1, 0), close=False)
            writer.flush()

    def _draw_best(self, trainer: Trainer, module: LightningModule, checkpoint: str) -> None:
        """Draw the figures of the best checkpoint; afterwards the module has its own weights again."""
        with self._left_out_on_error(trainer, "figures val_best/..."):
            saved = trainer.strategy.checkpoint_io.load_checkpoint(checkpoint, weights_only=True)
            trained = copy.deepcopy(module.state_dict())
            try:
                module.load_state_dict(saved["state_dict"], strict=module.strict_loading)
                self._draw(trainer, module, "val_best", saved["global_step"])
            finally:
                module.load_state_dict(trained, strict=module.strict_loading)

    @contextmanager
    def _left_out_on_error(self, trainer: Trainer, what: str) -> Iterator[None]:
        """Print an error once, in one line: a figure must not end a run."""
        with isolate_rng():  # it restores nothing if an error leaves it
            try:
                yield
            except Exception as error:  # of the user's module, loader or classes
                why = reason(error)
                if trainer.is_global_zero and why not in self._reasons:
                    print(f"{what} are left out: {why}", file=sys.stderr)
                self._reasons.add(why)

    def _writer(self, trainer: Trainer) -> "SummaryWriter | None":
        """Return the TensorBoard writer, None if there is none; on all processes, because they score together."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if self.run:
            boards.append(TensorBoardLogger(self.run, name="", version=""))
        return boards[0].experiment if boards else None


def _best_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of best.ckpt or, without a BestCheckpoint, of what another callback has found the best."""
    for callback in (*callbacks_of(trainer, BestCheckpoint), *callbacks_of(trainer, ModelCheckpoint)):
        if callback.monitor and callback.best_model_path:
            return callback.best_model_path
    return None


def _choose(trainer: Trainer, stage: str) -> tuple[Iterable[Any], int | None] | None:
    """Return the loader of a stage that figures show, and the limit of its batches; None if there is no loader."""
    limits = getattr(trainer, f"num_{stage}_batches")
    chosen = choose_loader(getattr(trainer, f"{stage}_dataloaders"), stage)
    if chosen is None:
        return None
    place, loader = chosen
    if place < len(limits) and limits[place] < math.inf:
        return loader, int(limits[place])
    return loader, None
