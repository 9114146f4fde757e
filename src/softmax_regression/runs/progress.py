"""What a run shows while it goes on: what it trains on, a line an epoch, and how far it is in a terminal."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from softmax_regression.engine import Engine
from softmax_regression.runs.rows import RESERVED, RowCallback

NO_METRICS = (*RESERVED, "monitor", "score")


def metrics_text(row: Mapping[str, Any]) -> str:
    """Return the metrics of a row for people, by stage.

    >>> metrics_text({"epoch": 1, "train/loss": 0.5, "train/acc": 0.75, "val_loss": 0.6, "lr": 0.1})
    'train loss 0.5000 acc 0.7500  val loss 0.6000'
    """
    stages: dict[str, str] = {}
    for name, value in row.items():
        if name in NO_METRICS or value is None:
            continue
        stage, slash, metric = name.partition("/")
        if not slash and name.startswith(("train_", "val_", "test_")):
            stage, _, metric = name.partition("_")
        stages[stage] = f"{stages.get(stage, stage)} {metric} {value:.4f}".replace("  ", " ")
    return "  ".join(stages.values())


def device_choice(trainer: Trainer) -> str:
    """Say what a run computes on and by which step, and why."""
    device, threads, count = trainer.strategy.root_device, torch.get_num_threads(), trainer.world_size
    if device.type == "cuda":
        why = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        why = "the GPU of this Mac"
    else:
        found = torch.cuda.is_available() or torch.backends.mps.is_available()
        why = "as asked, there is a GPU" if found else "no GPU found"
        why += f"; {threads} thread{'s' if threads > 1 else ''}"
        why += " each; one process would be faster, the model is small" * (count > 1)
    engines = [each.describe(trainer) for each in trainer.callbacks if isinstance(each, Engine)]  # type: ignore[attr-defined]
    step = engines[0] if engines else "Lightning's own step (no Engine among the callbacks)"
    return f"training on {count} x {device.type} ({why}), precision {trainer.precision}, {step}"


class EpochProgress(RowCallback, ProgressBar):
    """A line an epoch on stdout and, in a terminal, how far the epoch has come, on a line that is replaced.

    Lightning's own bars redraw themselves in a thread or at every step, which costs a run of two seconds a
    quarter of its time; this line is written at most ten times a second.
    """

    _written = 0.0

    def disable(self) -> None:
        """Do nothing: rank and terminal decide whether to write."""

    enable = disable

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run trains on; in a terminal, be called at each step from now on."""
        super().on_train_start(trainer, pl_module)
        self._began, self._shown = time.perf_counter(), trainer.current_epoch
        if trainer.is_global_zero:
            print(device_choice(trainer), flush=True)
            if getattr(sys.stderr, "isatty", bool)():  # there may be no stderr
                self.on_train_batch_end = self._write_position  # type: ignore[method-assign, assignment]

    def _write_position(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._written > 0.1:
            self._written = time.monotonic()
            share = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
            text = f"\repoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {share:4.0%}\r"
            print(text, end="", file=sys.stderr, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch that has ended; by now everything that is due at its end is done."""
        epoch, now = trainer.current_epoch, time.perf_counter()
        if epoch > self._shown and trainer.is_global_zero:
            if self.at_row(trainer):
                self.update_row(trainer)
            text = metrics_text(self.rows[-1])
            print(f"epoch {epoch}/{trainer.max_epochs}  {text}  {now - self._began:.2f} s", flush=True)
            self._shown, self._began = epoch, now

    on_train_end = on_train_epoch_start
