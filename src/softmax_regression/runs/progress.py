"""What a run prints: the device and the data, a line for each epoch, and in a terminal the progress of the epoch."""

import sys
import time
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from softmax_regression.data.module import origin_of
from softmax_regression.engine import Engine
from softmax_regression.runs.callbacks import callbacks_of
from softmax_regression.runs.rows import RESERVED, row_collector, split_metric

WIDTH = 79  # of a line in a terminal
NO_METRICS = (*RESERVED, "monitor", "score")


def metrics_text(row: Mapping[str, Any]) -> str:
    """Return the metrics of a row as text, grouped by stage.

    >>> metrics_text({"epoch": 1, "train/loss": 0.5, "train/acc": 0.75, "val_loss": 0.6, "lr": 0.1})
    'train loss 0.5000 acc 0.7500  val loss 0.6000'
    """
    stages: dict[str, str] = {}
    for name, value in row.items():
        if name not in NO_METRICS and value is not None:
            stage, metric = split_metric(name)
            stages[stage] = f"{stages.get(stage, stage)} {metric} {value:.4f}".strip()
    return "  ".join(stages.values())


def training_lines(trainer: Trainer) -> list[str]:
    """Return a line with device and data, and a second one if the training step is not the lean one."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        data = getattr(trainer.train_dataloader, "dataset", trainer.train_dataloader)
    lines = [shorten(f"training on {_device(trainer)}; data: {origin_of(data)}", WIDTH, placeholder=" ...")]
    engines = callbacks_of(trainer, Engine)
    step = engines[0].describe(trainer) if engines else "Lightning's own step (no Engine among the callbacks)"
    if step != "lean step":
        lines.append(shorten(f"step: {step}", WIDTH, placeholder=" ..."))
    return lines


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    count = trainer.world_size
    if device.type == "cuda":
        text = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        text = "the GPU of this Mac"
    else:
        threads = torch.get_num_threads()
        text = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        if torch.cuda.is_available() or torch.backends.mps.is_available():
            text += " (as asked, there is a GPU)"
    if count > 1:
        text = f"{count} x {text}"
    return text if trainer.precision == "32-true" else f"{text}, {trainer.precision}"


def _epoch_text(epoch: int, trainer: Trainer) -> str:
    """Return `epoch 3/10`, or `epoch 3` if the length of the run is given in steps or as a time."""
    last = trainer.max_epochs or -1
    return f"epoch {epoch}/{last}" if last > 0 else f"epoch {epoch}"


class EpochProgress(ProgressBar):
    """Print a line for each epoch on stdout and, in a terminal, the progress within the epoch on stderr.

    Lightning's own progress bars take a quarter of a run of two seconds, as they are drawn in a thread or at every
    step; this one is written at most ten times a second.
    """

    _written = 0.0

    def disable(self) -> None:
        """Do nothing: the rank and the terminal decide whether anything is printed."""

    enable = disable

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print device and data; in a terminal, install the hook for each step."""
        self._rows = row_collector(trainer, self).rows
        self._began = self._ended = time.perf_counter()
        self._shown = trainer.current_epoch
        if trainer.is_global_zero:
            print(*training_lines(trainer), sep="\n", flush=True)
            if getattr(sys.stderr, "isatty", bool)():  # there may be no stderr
                self.on_train_batch_end = self._write_position  # type: ignore[method-assign, assignment]

    def _write_position(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._written > 0.1:
            self._written = time.monotonic()
            share = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
            text = f"\r{_epoch_text(trainer.current_epoch + 1, trainer)}  {share:4.0%}\r"
            print(text, end="", file=sys.stderr, flush=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time: what is drawn at the end of the run is no part of its last epoch."""
        self._ended = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the last epoch, after all hooks of its end."""
        epoch = trainer.current_epoch
        if epoch > self._shown and self._rows and trainer.is_global_zero:
            text = metrics_text(self._rows[-1])
            print(f"{_epoch_text(epoch, trainer)}  {text}  {self._ended - self._began:.2f} s", flush=True)
            self._shown = epoch
            self._began = time.perf_counter()

    on_train_end = on_train_epoch_start
