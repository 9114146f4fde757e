"""When a run stops, and which of its checkpoints are kept: the standing callbacks of `fit`."""

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError, Interrupted, typed
from softmax_regression.runs.processes import SIGNALS, hand_back, hear

START = "start.ckpt"  # in a run's folder until its first save: the state before the first step
Mode = Literal["min", "max"]


def folder_of(trainer: Trainer) -> Path | None:
    """Return the folder of a run, its TensorBoard logger's if it has one; all processes take part."""
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    dirs = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    folder = trainer.strategy.broadcast(dirs[0]) if dirs else trainer.log_dir
    return Path(folder or trainer.default_root_dir)


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
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=monitor.startswith("train"))
        if not patience:
            self.switch_off()

    def switch_off(self) -> None:
        """Never stop, whatever is logged."""
        self.patience, self.strict, self.check_finite = sys.maxsize, False, False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score and the epochs without improvement; whether to stop is decided anew."""
        self.wait_count, self.best_score = state_dict["wait_count"], state_dict["best_score"]


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep checkpoints/best.ckpt, of the epoch with the lowest validation loss so far.

    Args:
        monitor: The metric whose best value counts; null for no such checkpoint.
        mode: `min` if less is better, `max` if more is.
    """

    def __init__(self, monitor: str | None = "val/loss", mode: Mode = "min") -> None:
        of_training = True if monitor and monitor.startswith("train") else None
        options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": of_training}
        super().__init__(filename="best", monitor=monitor, mode=mode, save_top_k=1 if monitor else 0, **options)

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
        here: dict[str, Any] = {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            path = str(Path(str(self.dirpath), "best.ckpt"))
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
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in ("every_n_train_steps", every_n_train_steps), ("every_n_minutes", every_n_minutes):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"last_checkpoint.{name}={value}: must be above 0, or null for not")
        self._steps, self._seconds = every_n_train_steps or math.inf, 60 * (every_n_minutes or math.inf)
        self._saved_at, self._step, self._due = time.monotonic(), 0, False
        self._signal = 0  # the first one that came
        self._handlers: dict[int, Any] = {}
        self._random: dict[str, torch.Tensor] = {}
        self.folder: Path | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the random numbers of each process, (ranks, bytes) uint8."""
        device, states = trainer.strategy.root_device, {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(device)
        gather = gather_all_tensors if trainer.world_size > 1 else lambda state: [state]  # torch deprecates Lightning's
        checkpoint["random"] = {name: torch.stack(gather(state.to(device))).cpu() for name, state in states.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers until training goes on."""
        self._random = checkpoint.get("random", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on where the run left off, and take over the signals after Lightning has set its handlers."""
        self.folder, self._step, self._signal = folder_of(trainer), trainer.global_step, 0
        device, rank = trainer.strategy.root_device, trainer.global_rank
        if len(self._random.get("cpu", ())) == trainer.world_size:
            torch.set_rng_state(self._random["cpu"][rank].clone())  # a row of another tensor crashes torch
            if "cuda" in self._random and device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"][rank], device)
        requeue = ["SIGUSR1"] * ("SLURM_JOB_ID" in os.environ)
        self._handlers = hear([*SIGNALS, *requeue], self._on_signal)
        if requeue and self._handlers:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py let it wait
        if self.folder and not self._step:
            trainer.save_checkpoint(self.folder / START, weights_only=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, f"at once; {self._remedy()}")
        self._signal = number

    def _remedy(self) -> str:
        command = typed("train.py", "fit", "--resume", str(self.folder))
        return f"go on with `{command}`" if self.folder else "nothing was saved, for the run has no folder"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if that is due; the end of an epoch is saved by itself."""
        before, self._step, self._due = self._step, trainer.global_step, False
        if self._step == before or trainer.is_last_batch:  # accumulated gradients are in no checkpoint
            return
        due = self._signal > 0 or time.monotonic() - self._saved_at > self._seconds
        due = trainer.strategy.reduce_boolean_decision(due, all=False)  # a signal may reach them at different steps
        self._due = due or self._step % self._steps == 0
        if self._due and not _validates_now(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due before the validation: a run that is resumed before one does not make it up."""
        if self._due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, after early stopping and the best checkpoint have seen it."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Save; end the run if it was interrupted, on whichever process."""
        if self.folder:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt", weights_only=False)
            if trainer.is_global_zero:
                (self.folder / START).unlink(missing_ok=True)
        self._saved_at, self._due = time.monotonic(), False
        mine = torch.tensor(self._signal, device=trainer.strategy.root_device)
        if number := int(trainer.strategy.reduce(mine, reduce_op="max")):
            if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                with suppress(OSError, subprocess.SubprocessError):  # saved, whether or not SLURM can be told
                    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
            raise Interrupted(number, ("saved; " if self.folder else "") + self._remedy())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        hand_back(self._handlers)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back; if one has ended the run, another must not come between it and its line."""
        if isinstance(exception, Interrupted):
            self._handlers = dict.fromkeys(self._handlers, signal.SIG_IGN)
        self.on_train_end(trainer, pl_module)


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation within the epoch follows the minibatch that was just trained on."""
    every, epochs = trainer.val_check_batch or math.inf, trainer.check_val_every_n_epoch
    trained = trainer.fit_loop.batch_idx if epochs else trainer.fit_loop.total_batch_idx
    in_epoch = (trained + 1) % every == 0
    return trainer.enable_validation and in_epoch and (trainer.current_epoch + 1) % (epochs or 1) == 0
