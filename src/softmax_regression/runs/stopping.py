"""When a run stops, and which of its checkpoints are kept: the standing callbacks of `fit`."""

import math
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError, Interrupted

Mode = Literal["min", "max"]


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
            raise InputError(
                f"early_stopping.patience={patience}: must be at least 1, or 0 for never to stop"
            )
        super().__init__(monitor, min_delta, patience, mode=mode)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where it is validated once an epoch."""
        if self.patience:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric, where it is validated at other times."""
        if self.patience:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score and the epochs without improvement; whether to stop is decided anew."""
        kept = {name: state_dict[name] for name in ("wait_count", "best_score")}
        super().load_state_dict(self.state_dict() | kept)

    def switch_off(self) -> None:
        """Never stop."""
        self.patience = 0

    def stopped(self) -> str | None:
        """Say why this callback ended a run, if it did."""
        if not self.patience or self.wait_count < self.patience:
            return None
        return (
            f"early stopping: {self.monitor} did not improve for {self.patience} validations; "
            "--early_stopping.patience 0 trains to the end"
        )


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep checkpoints/best.ckpt, of the epoch with the lowest validation loss so far.

    Args:
        monitor: The metric whose best value counts; null for no such checkpoint.
        mode: `min` if less is better, `max` if more is.
    """

    def __init__(self, monitor: str | None = "val/loss", mode: Mode = "min") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_top_k=1 if monitor else 0,
        )

    def switch_off(self) -> None:
        """Keep none."""
        self.monitor, self.save_top_k = None, 0

    on_train_batch_end = (
        Callback.on_train_batch_end
    )  # it saves after validations: no call is needed at each step

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

    SIGINT, SIGTERM and SIGHUP let the current step finish, save, and end the process with exit code 130, 143
    or 129; a second one stops at once. Under SLURM, SIGUSR1 does so too and puts the job back in the queue.
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
        self._steps = every_n_train_steps or 0
        self._seconds = timedelta(minutes=every_n_minutes).total_seconds() if every_n_minutes else math.inf
        self._saved_at = time.monotonic()
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._random: dict[str, Any] = {}
        self._gather = False
        self._device = torch.device("cpu")
        self.path: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide where the checkpoint goes; every rank takes part in finding the run folder."""
        folder = trainer.log_dir or trainer.default_root_dir
        if stage == "fit" and trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.path = Path(folder) / "checkpoints" / "last.ckpt"
        self._device, self._gather = trainer.strategy.root_device, trainer.world_size > 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random numbers of each process, (ranks, bytes) uint8."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        gather = gather_all_tensors if self._gather else lambda value: [value]
        return {name: torch.stack(gather(state.to(self._device))).cpu() for name, state in states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the random numbers until training goes on."""
        self._random = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on where the run left off, and take over the signals after Lightning has set its handlers."""
        if "cpu" in self._random and len(self._random["cpu"]) == trainer.world_size:
            torch.set_rng_state(self._random["cpu"][trainer.global_rank])
            if "cuda" in self._random and self._device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"][trainer.global_rank], self._device)
        names = ["SIGINT", "SIGTERM", "SIGHUP", *(["SIGUSR1"] if "SLURM_JOB_ID" in os.environ else [])]
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}
            if "SIGUSR1" in names:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py let it wait

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, f"at once; go on with --resume from what {self.path} holds")
        self._signal = signal.Signals(number)

    def _due(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether the run was interrupted, on any process, and whether it is time to save."""
        due = bool(self._steps and trainer.global_step % self._steps == 0)
        late = time.monotonic() - self._saved_at > self._seconds
        if trainer.world_size == 1:
            return self._signal is not None, due or late
        any_of = trainer.strategy.reduce_boolean_decision  # a signal may reach the ranks at different steps
        return any_of(self._signal is not None, all=False), due or any_of(late, all=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch where that was asked for; the end of an epoch is saved by itself."""
        if trainer.is_last_batch:
            return
        interrupted, due = self._due(trainer)
        if interrupted or due:
            self._save(trainer)
        if interrupted:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, after early stopping and the best checkpoint have seen it."""
        self._save(trainer)
        if self._due(trainer)[0]:
            self._stop(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.path:
            trainer.save_checkpoint(self.path)
        self._saved_at = time.monotonic()

    def _stop(self, trainer: Trainer) -> None:
        mine = torch.tensor(int(self._signal or 0), device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(mine, reduce_op="max"))  # not every rank need have had it
        if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
            with suppress(OSError, subprocess.SubprocessError):  # saved, whether or not SLURM can be told
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
        said = f"saved; go on with `python train.py fit --resume {trainer.log_dir}`"
        raise Interrupted(number, said if self.path else "nothing was saved, for the run has no folder")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.on_train_end(trainer, pl_module)
