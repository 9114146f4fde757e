"""What a run shows while it goes on: what it trains on, a line an epoch, and a bar in a terminal."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from softmax_regression.engine import Engine

if TYPE_CHECKING:
    from rich.progress import Progress


def metrics_text(row: Mapping[str, float]) -> str:
    """Return the metrics of a row for people, by stage.

    >>> metrics_text({"epoch": 1, "train/loss": 0.5, "train/acc": 0.75, "val/loss": 0.6, "lr": 0.1})
    'train loss 0.5000 acc 0.7500  val loss 0.6000'
    """
    stages: dict[str, str] = {}
    for name, value in row.items():
        stage, slash, metric = name.partition("/")
        if slash:
            stages[stage] = f"{stages.get(stage, stage)} {metric} {value:.4f}"
    return "  ".join(stages.values())


def device_choice(trainer: Trainer) -> str:
    """Say what a run computes on and by which step, and why."""
    device, threads = trainer.strategy.root_device, torch.get_num_threads()
    if device.type == "cuda":
        why = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        why = "the GPU of this Mac"
    else:
        found = torch.cuda.is_available() or torch.backends.mps.is_available()
        why = "as asked, there is a GPU" if found else "no GPU found"
        why += f"; {threads} thread{'s' if threads > 1 else ''}" + (" each" if trainer.world_size > 1 else "")
        if trainer.world_size > 1:
            why += "; one process would be faster, the model is small"
    engines = [each.describe(trainer) for each in trainer.callbacks if isinstance(each, Engine)]
    step = engines[0] if engines else "Lightning's own step (no Engine among the callbacks)"
    return f"training on {trainer.world_size} x {device.type} ({why}), precision {trainer.precision}, {step}"


class EpochProgress(ProgressBar):
    """A Rich progress bar of the whole run in a terminal; one line an epoch in a log file or a notebook.

    Lightning's own Rich bar keeps a thread that redraws it, which costs a run of two seconds a quarter of its
    time; this one draws at most ten times a second, between two training steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._drawn = 0.0
        self._shown = 0

    def enable(self) -> None:
        """Do nothing: whether to draw is decided by rank and terminal."""

    def disable(self) -> None:
        """Do nothing, see `enable`; Lightning calls this on all ranks but one."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run trains on; in a terminal, start the bar, and be called at each step to redraw it."""
        self._epoch_start, self._shown = time.perf_counter(), trainer.current_epoch
        if not trainer.is_global_zero:
            return
        print(device_choice(trainer), flush=True)
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(compact=True),
            console=Console(stderr=True), auto_refresh=False,
        )  # fmt: skip
        endless = not trainer.max_epochs or trainer.max_epochs < 0
        self._task = self._bar.add_task("", total=None if endless else trainer.max_epochs)
        self._bar.start()
        self.on_train_batch_end = self._redraw  # type: ignore[method-assign]

    def _redraw(self, trainer: Trainer, *_: Any) -> None:
        """Redraw the bar if the last time was long enough ago."""
        if self._bar and time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            done = trainer.current_epoch + trainer.fit_loop.batch_idx / trainer.num_training_batches
            self._bar.update(self._task, completed=done, refresh=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch that has ended; by now everything that is due at its end is done."""
        self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last epoch and end the bar."""
        self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, now = trainer.current_epoch, time.perf_counter()
        if epoch <= self._shown or not trainer.is_global_zero:
            return
        self._shown = epoch
        history = getattr(pl_module, "history", None)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        text, seconds = metrics_text(history[-1] if history else logged), now - self._epoch_start
        line = f"epoch {epoch}/{trainer.max_epochs}  {text}  {seconds:.2f} s"
        if self._bar:
            self._bar.update(self._task, completed=epoch)
            self._bar.console.print(line, highlight=False, soft_wrap=True)
            self._bar.refresh()
        else:
            print(line, flush=True)
        self._epoch_start = now
