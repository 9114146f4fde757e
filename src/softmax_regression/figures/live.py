"""Curves in a notebook while a model trains."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from softmax_regression.figures.drawings import curves, learning_curves, to_png
from softmax_regression.runs.rows import Row, row_collector


class LiveCurve(Callback):
    """Draw loss, accuracy and other metrics in a notebook while the model trains, as the book's `Animator` does.

    Attributes:
        rows: The metrics of the training so far, a row for each epoch.
    """

    rows: Sequence[Row] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether this is a notebook; if not, print what shows the curves instead."""
        self.rows = row_collector(trainer, self).rows
        ipython: Any = sys.modules.get("IPython")
        self._in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
        self._display: Any = None
        if trainer.is_global_zero and not self._in_notebook:
            print("LiveCurve draws in notebooks; here, look with: tensorboard --logdir logs", file=sys.stderr)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the metrics of the epochs so far."""
        if not self.rows or not self._in_notebook or not trainer.is_global_zero:
            return
        figure = learning_curves({"": curves(self.rows)})
        notebook: Any = import_module("IPython.display")
        picture = notebook.Image(to_png(figure))  # independent of matplotlib's backend
        if self._display:
            self._display.update(picture)
        else:
            self._display = notebook.display(picture, display_id=True)

    on_train_end = on_train_epoch_start
