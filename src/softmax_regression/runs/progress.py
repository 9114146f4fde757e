"""What a run shows while it goes on: what it trains on, a line an epoch, and how far it is in a terminal."""

import sys
import time
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from softmax_regression.data.module import loaded_images
from softmax_regression.engine import Engine
from softmax_regression.runs.rows import RESERVED, RowCallback

WIDTH = 79  # of a line in a terminal
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


def training_lines(trainer: Trainer) -> list[str]:
    """Say what a run computes on and which data it trains on and, where it is not the usual one, by which step."""
    lines = [shorten(f"training on {_device(trainer)}; data: {_data(trainer)}", WIDTH, placeholder=" ...")]
    engines = [each for each in trainer.callbacks if isinstance(each, Engine)]  # type: ignore[attr-defined]
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
    """Return an epoch with the number of all, unless these are counted in steps or by the clock."""
    last = trainer.max_epochs or -1
    return f"epoch {epoch}/{last}" if last > 0 else f"epoch {epoch}"


def _data(trainer: Trainer) -> str:
    """Name the training data: where they came from or else their class."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    loaded = loaded_images(source)
    if loaded:
        return str(loaded.origin)
    if source is None:
        source = getattr(trainer.train_dataloader, "dataset", trainer.train_dataloader)
    return type(source).__name__


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
            print(*training_lines(trainer), sep="\n", flush=True)
            if getattr(sys.stderr, "isatty", bool)():  # there may be no stderr
                self.on_train_batch_end = self._write_position  # type: ignore[method-assign, assignment]

    def _write_position(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._written > 0.1:
            self._written = time.monotonic()
            share = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
            text = f"\r{_epoch_text(trainer.current_epoch + 1, trainer)}  {share:4.0%}\r"
            print(text, end="", file=sys.stderr, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch that has ended; by now everything that is due at its end is done."""
        epoch, now = trainer.current_epoch, time.perf_counter()
        if epoch > self._shown and trainer.is_global_zero:
            if self.at_row(trainer):
                self.update_row(trainer)
            text = metrics_text(self.rows[-1])
            print(f"{_epoch_text(epoch, trainer)}  {text}  {now - self._began:.2f} s", flush=True)
            self._shown, self._began = epoch, now

    on_train_end = on_train_epoch_start
