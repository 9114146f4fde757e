"""The checkpoint that a run goes on from: saved every epoch, and when the run is interrupted."""

import math
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import move_data_to_device
from torch.nn.parameter import is_lazy
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError, Interrupted, shell_command
from softmax_regression.runs.callbacks import folder_of
from softmax_regression.runs.loaders import LoaderPosition, make_loaders_resumable, position_of
from softmax_regression.runs.processes import SIGNALS, install_signal_handlers, restore_signal_handlers
from softmax_regression.runs.random_numbers import random_state, set_random_state
from softmax_regression.runs.running_metrics import RunningMetrics

INITIAL_CHECKPOINT = "start.ckpt"  # in a run's folder until its first save: the state before the first step


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
        self._position = LoaderPosition()
        self._running = RunningMetrics()
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the training loaders go on within an epoch."""
        if stage == "fit":
            self._position = LoaderPosition()
            self._running = RunningMetrics()
            make_loaders_resumable(trainer, self._position)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the state of the random numbers of each process, (ranks, n), and the place in the training data."""
        device = trainer.strategy.root_device
        gather = gather_all_tensors if trainer.world_size > 1 else lambda state: [state]  # torch deprecates Lightning's
        states = random_state(device)
        checkpoint["random"] = {name: torch.stack(gather(state.to(device))).cpu() for name, state in states.items()}
        checkpoint["position"] = position_of(trainer)
        if checkpoint["position"]["batches"]:
            checkpoint["running"] = _of_all(self._running.state_dict(trainer, pl_module), trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep both until training goes on; with another number of processes new random numbers are drawn."""
        if trainer.precision == "64-true":  # Lightning has loaded the weights before the module has their type
            trainer.precision_plugin.convert_module(pl_module)
            pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        states = checkpoint.get("random", {})
        if len(states.get("cpu", ())) == trainer.world_size:
            mine = {name: ranks[trainer.global_rank] for name, ranks in states.items()}
            self._position.set(checkpoint.get("position", {}), mine)
            if "running" in checkpoint:
                self._running.load_state_dict(checkpoint["running"][trainer.global_rank], pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on where the run left off, and take over the signals after Lightning has set its handlers."""
        self.folder, self._step, self._signal = folder_of(trainer), trainer.global_step, 0
        if self._position.random:
            set_random_state(self._position.random, trainer.strategy.root_device)
            self._position.random = {}
        requeue = ["SIGUSR1"] * ("SLURM_JOB_ID" in os.environ)
        self._handlers = install_signal_handlers([*SIGNALS, *requeue], self._on_signal)
        if requeue and self._handlers:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py let it wait
        lazy = any(is_lazy(weight) for weight in pl_module.parameters())  # until the first batch, and in no checkpoint
        if self.folder and not self._step and not lazy:
            trainer.save_checkpoint(self.folder / INITIAL_CHECKPOINT, weights_only=False)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise Interrupted(number, f"at once; {self._remedy()}")
        self._signal = number

    def _remedy(self) -> str:
        command = shell_command("train.py", "fit", "--resume", str(self.folder))
        return f"go on with `{command}`" if self.folder else "nothing was saved, for the run has no folder"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if that is due; the end of an epoch is saved by itself."""
        if self._running.logged:
            self._running.add(trainer)
        before, self._step, self._due = self._step, trainer.global_step, False
        if self._step == before or trainer.is_last_batch:  # accumulated gradients are in no checkpoint
            return
        due = self._signal > 0 or time.monotonic() - self._saved_at > self._seconds
        due = trainer.strategy.reduce_boolean_decision(due, all=False)  # a signal may reach them at different steps
        self._due = due or self._step % self._steps == 0
        if self._due and not _validates_now(trainer):
            self._save(trainer)
            self._leave_if_interrupted(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due before the validation: a run that is resumed before one does not make it up."""
        if self._due:
            self._save(trainer)
            self._leave_if_interrupted(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, after early stopping and the best checkpoint have seen it."""
        self._save(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted, once the loggers have what Lightning hands them after an epoch's end."""
        self._leave_if_interrupted(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.folder:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt", weights_only=False)
            if trainer.is_global_zero:
                (self.folder / INITIAL_CHECKPOINT).unlink(missing_ok=True)
        self._saved_at, self._due = time.monotonic(), False

    def _leave_if_interrupted(self, trainer: Trainer) -> None:
        """End the run if a signal came, to whichever process."""
        mine = torch.tensor(self._signal, device=trainer.strategy.root_device)
        if number := int(trainer.strategy.reduce(mine, reduce_op="max")):
            if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                with suppress(OSError, subprocess.SubprocessError):  # saved, whether or not SLURM can be told
                    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
            raise Interrupted(number, ("saved; " if self.folder else "") + self._remedy())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted in its last epoch, or give the signals back."""
        self._leave_if_interrupted(trainer)
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        restore_signal_handlers(self._handlers)
        self._handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back; if one has ended the run, another must not come between it and its line."""
        if isinstance(exception, Interrupted):
            self._handlers = dict.fromkeys(self._handlers, signal.SIG_IGN)
        self._give_signals_back()


def _of_all(state: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    """Return the states of all processes, on the CPU."""
    states = [move_data_to_device(state, torch.device("cpu"))] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, states[0])
    return states


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation within the epoch follows the minibatch that was just trained on."""
    every, epochs = trainer.val_check_batch or math.inf, trainer.check_val_every_n_epoch
    trained = trainer.fit_loop.batch_idx if epochs else trainer.fit_loop.total_batch_idx
    in_epoch = (trained + 1) % every == 0
    return trainer.enable_validation and in_epoch and (trainer.current_epoch + 1) % (epochs or 1) == 0
