"""What a run shows while it goes on, and leaves behind: progress, the last checkpoint, the manifest."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import indent
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from softmax_regression.errors import InputError, StorageError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.folder import environment, metrics_text, update_manifest

if TYPE_CHECKING:
    from rich.progress import Progress


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + the signal, as in a shell."""

    def __init__(self, number: int, outcome: str) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}: {outcome}")
        self.code = self.exit_code = 128 + number


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, on the validation loss, whose patience may be changed when a run is resumed.

    Args:
        monitor: The metric that has to fall.
        patience: Epochs without improvement after which the run stops.
        min_delta: The least change that counts as improvement.
    """

    def __init__(self, monitor: str = "val/loss", patience: int = 3, min_delta: float = 0.0) -> None:
        super().__init__(monitor, min_delta, patience, check_on_train_epoch_end=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score and the epochs without improvement; whether to stop is decided anew."""
        kept = {name: state_dict[name] for name in ("wait_count", "best_score")}
        super().load_state_dict(self.state_dict() | kept)


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep checkpoints/best.ckpt, of the epoch with the lowest validation loss so far.

    Args:
        monitor: The metric whose lowest value is the best.
    """

    def __init__(self, monitor: str = "val/loss") -> None:
        super().__init__(
            monitor=monitor,
            filename="best",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, even if the run's folder was moved or is named in another way."""
        here: dict[str, Any] = {
            "dirpath": self.dirpath,
            "best_k_models": {},
            "kth_best_model_path": "",
            "best_model_path": "",
        }
        if state_dict["best_model_path"]:
            path = str(Path(str(self.dirpath), Path(state_dict["best_model_path"]).name))
            here |= {"best_model_path": path, "kth_best_model_path": path}
            here["best_k_models"] = {path: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | here)


class LastCheckpoint(Checkpoint):
    """Keep checkpoints/last.ckpt: saved every epoch, more often on request, and when the run is interrupted.

    SIGINT and SIGTERM let the current `training_step` finish, save, and end the process with exit code 130 or
    143; a second one stops at once. Under SLURM, SIGUSR1 does so too and puts the job back in the queue.

    Args:
        every_n_train_steps: Also save every so many steps; None for not.
        every_n_minutes: Also save when so many minutes have passed since the last time; None for not.

    Raises:
        InputError: An interval is not positive.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_n_minutes", every_n_minutes),
        ):
            if value is not None and value <= 0:
                raise InputError(f"{name}={value}: must be above 0, or null for not")
        self._every_n_train_steps = every_n_train_steps or 0
        self._interval = (
            timedelta(minutes=every_n_minutes).total_seconds() if every_n_minutes else float("inf")
        )
        self._saved_at = time.monotonic()
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self.path = Path("last.ckpt")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide where the checkpoint goes; every rank takes part in finding the run folder."""
        if stage == "fit":
            self.path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals, after Lightning has set handlers of its own."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            signals.append(signal.SIGUSR1)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, f"at once; go on with --resume from what {self.path} holds")
        self._signal = signal.Signals(number)

    def _interrupted(self, trainer: Trainer) -> bool:
        # A signal may reach the ranks at different steps: all stop as soon as one has it.
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _stop(self, trainer: Trainer) -> None:
        mine = torch.tensor(self._signal or 0, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(mine, reduce_op="max"))  # not every rank need have had it
        if number == signal.SIGUSR1 and trainer.is_global_zero:
            with suppress(OSError):  # the run is saved, whether or not SLURM can be told
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
        what = trainer.log_dir if trainer.loggers else self.path
        raise Interrupted(number, f"saved; go on with `python train.py fit --resume {what}`")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch where that was asked for; the end of an epoch is saved by itself."""
        if trainer.is_last_batch:
            return
        interrupted = self._interrupted(trainer)
        due = self._every_n_train_steps and trainer.global_step % self._every_n_train_steps == 0
        late = self._interval < math.inf and trainer.strategy.reduce_boolean_decision(
            time.monotonic() - self._saved_at > self._interval, all=False
        )
        if interrupted or due or late:
            self._save(trainer)
        if interrupted:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, after early stopping and the best checkpoint have seen it."""
        self._save(trainer)
        if self._interrupted(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.on_train_end(trainer, pl_module)


class RunRecord(Callback):
    """Keep run.json: what was run, on what, how it ended, and how well it did.

    Args:
        config: The configuration of the run, as YAML; kept in config.yaml.
        seed: The seed of the run.
    """

    def __init__(self, config: str, seed: int) -> None:
        self.config, self.seed = config, seed
        self.run: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; without a logger there is none, and no manifest."""
        log_dir = trainer.log_dir
        if stage == "fit" and trainer.loggers and trainer.is_global_zero and log_dir:
            self.run = Path(log_dir)

    def _update(self, **entries: Any) -> None:
        if self.run:
            update_manifest(self.run, **entries)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record everything that is known before the first step."""
        if not self.run:
            return
        checkpoint.write(self.config.encode(), self.run / "config.yaml")
        data = trainer.datamodule.loaded  # type: ignore[attr-defined]
        self._start = time.perf_counter()
        self._show(trainer)
        self._update(
            status="running",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=self.seed,
            config=yaml.safe_load(self.config),
            device={"type": str(trainer.strategy.root_device), "count": trainer.world_size},
            data={"origin": data.origin, "sha256": data.sha256},
            **environment(),
        )

    def _show(self, trainer: Trainer) -> None:
        """Put command and configuration on TensorBoard's page TEXT, as Markdown's preformatted text."""
        texts = {"command": " ".join(["python", *sys.argv]), "configuration": self.config}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for tag, text in texts.items():
                    logger.experiment.add_text(tag, indent(text, "    "))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results."""
        if not self.run:
            return
        history = cast(SoftmaxRegression, pl_module).history
        self._update(
            status="finished",
            stopped=stop_reason(trainer),
            seconds=round(time.perf_counter() - self._start, 3),
            final=history[-1] if history else {},
            best=best_epoch(history) if history else {},
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run did not come to its end."""
        if self.run and (self.run / "run.json").exists():
            stopped = " ".join(f"{type(exception).__name__}: {exception}".split())
            with suppress(StorageError):  # if the disk is full, that is what `exception` says already
                self._update(status="interrupted", stopped=stopped)


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Return the row with the lowest validation loss, or the last where nothing was validated."""
    return min(history, key=lambda row: (row.get("val/loss", math.inf), -row["epoch"]))


def stop_reason(trainer: Trainer) -> str:
    """Say why a run that came to its end did so."""
    for callback in trainer.early_stopping_callbacks:
        if callback.wait_count >= callback.patience:
            return f"early stopping: {callback.monitor} did not improve for {callback.patience} epochs"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"max_steps={trainer.max_steps} reached"
    return f"max_epochs={trainer.max_epochs} reached"


def device_choice(trainer: Trainer) -> str:
    """Say what a run computes on, and why."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        why = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        why = "the GPU of this Mac"
    else:
        found = torch.cuda.is_available() or torch.backends.mps.is_available()
        why = "as asked, there is a GPU" if found else "no GPU found"
        why += f"; threads of each: {torch.get_num_threads()}"
        if trainer.world_size > 1:
            why += "; one would be faster, the model is small"
    return f"training on {trainer.world_size} x {device.type} ({why}), precision {trainer.precision}"


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
        """Start the bar."""
        self._epoch_start, self._shown = time.perf_counter(), trainer.current_epoch
        if trainer.is_global_zero:
            print(device_choice(trainer), flush=True)
        if not (trainer.is_global_zero and sys.stderr.isatty()):
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

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
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
        history = cast(SoftmaxRegression, pl_module).history
        epoch, now = trainer.current_epoch, time.perf_counter()
        if epoch <= self._shown or not history or not trainer.is_global_zero:
            return
        self._shown = epoch
        text, seconds = metrics_text(history[-1]), now - self._epoch_start
        line = f"epoch {epoch}/{trainer.max_epochs}  {text}  {seconds:.2f} s"
        if self._bar:
            self._bar.update(self._task, completed=epoch)
            self._bar.console.print(line, highlight=False, soft_wrap=True)
            self._bar.refresh()
        else:
            print(line, flush=True)
        self._epoch_start = now
