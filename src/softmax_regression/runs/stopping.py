"""When a run stops, and which of its checkpoints are kept: the standing callbacks of `fit`."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError, Interrupted, StorageError, typed

START = "start.ckpt"  # in a run's folder until its first save: the state before the first step
Mode = Literal["min", "max"]


def folder_of(trainer: Trainer) -> Path | None:
    """Return the folder of a run, its TensorBoard logger's if it has one; all processes take part."""
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    dirs = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    folder = trainer.strategy.broadcast(dirs[0]) if dirs else trainer.log_dir
    return Path(folder or trainer.default_root_dir)


def check_there(run: Path) -> None:
    """Refuse to write a run's folder anew, if somebody has moved or deleted it."""
    if not run.is_dir():
        raise StorageError(f"{run}: has been moved or deleted; put it back, then go on with --resume")


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, on the validation loss, whose patience may be changed when a run is resumed.

    Args:
        monitor: The metric that has to improve.
        patience: Validations without improvement after which the run stops; 0 for never.
        min_delta: The least change that counts as improvement.
        mode: `min` if less is better, `max` if more is.
    """

    def __init__(
        self, monitor: str = "val/loss", patience: int = 3, min_delta: float = 0.0, mode: Mode = "min"
    ) -> None:
        if patience < 0:
            raise InputError(f"early_stopping.patience={patience}: must be at least 1, or 0 for never to stop")
        # A metric of validation is looked at when it is new, not at the end of an epoch without validation.
        at_epoch_end = monitor.startswith("train")
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=at_epoch_end)
        if not patience:
            self.switch_off()

    def switch_off(self) -> None:
        """Never stop, whatever is logged."""
        self.patience, self.strict, self.check_finite = sys.maxsize, False, False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score and the epochs without improvement; whether to stop is decided anew."""
        kept = {name: state_dict[name] for name in ("wait_count", "best_score")}
        super().load_state_dict(self.state_dict() | kept)


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep checkpoints/best.ckpt, of the epoch with the lowest validation loss so far.

    Args:
        monitor: The metric whose best value counts; null for no such checkpoint.
        mode: `min` if less is better, `max` if more is.
    """

    def __init__(self, monitor: str | None = "val/loss", mode: Mode = "min") -> None:
        of_training = True if monitor and monitor.startswith("train") else None
        named: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
        kept: dict[str, Any] = {"save_top_k": 1 if monitor else 0, "save_on_train_epoch_end": of_training}
        super().__init__(filename="best", monitor=monitor, mode=mode, **named, **kept)

    def switch_off(self) -> None:
        """Keep none."""
        self.monitor, self.save_top_k = None, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; a run without one keeps nothing."""
        if stage == "fit" and (folder := folder_of(trainer)):
            self.dirpath = str(folder / "checkpoints")
        elif stage == "fit":
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    # It saves after validations or epochs: no call is needed at each step.
    on_train_batch_end = Callback.on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the epoch was cut short before anything was validated."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, even if the run's folder was moved or is named in another way."""
        here: dict[str, Any] = {"dirpath": self.dirpath, "best_k_models": {}, "kth_best_model_path": ""}
        if state_dict["best_model_path"]:
            path = str(Path(str(self.dirpath), Path(state_dict["best_model_path"]).name))
            here |= {"best_model_path": path, "kth_best_model_path": path}
            here["best_k_models"] = {path: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | here)


class LastCheckpoint(Checkpoint):
    """Keep checkpoints/last.ckpt: saved every epoch, more often on request, and when the run is interrupted.

    SIGINT, SIGTERM and SIGHUP let the current step finish, save, and end the process with exit code 130, 143
    or 129; a second one stops at once. Under SLURM, SIGUSR1 does so too and puts the job back in the queue,
    which ends its processes by SIGTERM: 143, and not 138, is then seen.
    The checkpoint has the state of the random numbers, so that a resumed run draws what this one would have.

    Args:
        every_n_train_steps: Also save every so many steps; None for not.
        every_n_minutes: Also save when so many minutes have passed since the last time; None for not.

    Raises:
        InputError: An interval is not positive.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        intervals = {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}
        for name, value in intervals.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"last_checkpoint.{name}={value}: must be above 0, or null for not")
        self._steps, self._seconds = every_n_train_steps or 0, 60 * (every_n_minutes or math.inf)
        self._saved_at, self._step, self._due = time.monotonic(), 0, False
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._random: dict[str, Any] = {}
        self._strategy: Strategy | None = None
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; every process takes part."""
        self._strategy = trainer.strategy
        if stage == "fit":
            self.folder, self._signal = folder_of(trainer), None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers of each process, (ranks, bytes) uint8."""
        assert self._strategy is not None
        device, several = self._strategy.root_device, torch.distributed.is_initialized()
        gather = gather_all_tensors if several else lambda state: [state]  # torch deprecates Lightning's
        states = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(device)
        return {name: torch.stack(gather(state.to(device))).cpu() for name, state in states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the random numbers until training goes on."""
        self._random = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on where the run left off, and take over the signals after Lightning has set its handlers."""
        device, rank = trainer.strategy.root_device, trainer.global_rank
        if len(self._random.get("cpu", ())) == trainer.world_size:
            torch.set_rng_state(self._random["cpu"][rank].clone())  # a row of another tensor crashes torch
            if "cuda" in self._random and device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"][rank], device)
        names = ["SIGINT", "SIGTERM", "SIGHUP", *(["SIGUSR1"] if "SLURM_JOB_ID" in os.environ else [])]
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
        if threading.current_thread() is threading.main_thread():
            # What nohup lets a process ignore stays ignored.
            heard = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heard}
            if "SIGUSR1" in names:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py let it wait
        self._step = trainer.global_step
        if self.folder and not self._step:
            trainer.save_checkpoint(self.folder / START, weights_only=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, f"at once; {self._remedy()}")
        self._signal = signal.Signals(number)

    def _remedy(self) -> str:
        command = typed("train.py", "fit", "--resume", str(self.folder))
        return f"go on with `{command}`" if self.folder else "nothing was saved, for the run has no folder"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if that is due; the end of an epoch is saved by itself."""
        step, before = trainer.global_step, self._step
        self._step = step
        # Gradients that are accumulated for the next update are in no checkpoint.
        self._due = step != before and not trainer.is_last_batch and self._is_due(trainer)
        if self._due and not _validates_now(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due before the validation: a run that is resumed before one does not make it up."""
        if self._due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, after early stopping and the best checkpoint have seen it."""
        self._save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the run was interrupted, on any process, or it is time to save."""
        due = self._signal is not None or time.monotonic() - self._saved_at > self._seconds
        if trainer.world_size > 1:  # a signal may reach them at different steps
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        return due or bool(self._steps and trainer.global_step % self._steps == 0)

    def _save(self, trainer: Trainer) -> None:
        """Save; end the run if it was interrupted, on whichever process."""
        if self.folder:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt", weights_only=False)
            if trainer.is_global_zero:
                (self.folder / START).unlink(missing_ok=True)
        self._saved_at, self._due = time.monotonic(), False
        mine = torch.tensor(int(self._signal or 0), device=trainer.strategy.root_device)
        if number := int(trainer.strategy.reduce(mine, reduce_op="max")):
            if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                with suppress(OSError, subprocess.SubprocessError):  # saved, whether or not SLURM can be told
                    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
            raise Interrupted(number, ("saved; " if self.folder else "") + self._remedy())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back; if one has ended the run, another must not come between it and its line."""
        if isinstance(exception, Interrupted):
            self._handlers = dict.fromkeys(self._handlers, signal.SIG_IGN)
        self.on_train_end(trainer, pl_module)


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation within the epoch follows the minibatch that was just trained on."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not isinstance(every, int):
        return False
    if epochs is None:
        return (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return (trainer.fit_loop.batch_idx + 1) % every == 0 and (trainer.current_epoch + 1) % epochs == 0
