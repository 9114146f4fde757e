"""The checkpoint that a run goes on from: saved every epoch, and when the run is interrupted."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import move_data_to_device
from torch.nn.parameter import is_lazy
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError
from softmax_regression.runs.callbacks import folder_of
from softmax_regression.runs.interruption import Interruption
from softmax_regression.runs.loaders import LoaderPosition, make_loaders_resumable, position_of
from softmax_regression.runs.loops import (
    after_each_epoch,
    after_step,
    consumed_loaders,
    continue_run,
    restore_ends,
    validated_batches,
)
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
        self._steps = every_n_train_steps or math.inf
        self._seconds = 60 * (every_n_minutes or math.inf)
        self._saved_at = time.monotonic()
        self._step = 0  # the update that was made last
        self._due = False  # whether a checkpoint is due after the validation that comes now
        self._interruption = Interruption()
        self._position = LoaderPosition()
        self._running = RunningMetrics()
        self._with_best: list[Any] = []
        self.folder: Path | None = None

    @property
    def best_model_path(self) -> str:
        """That of BestCheckpoint or ModelCheckpoint: for "best" Lightning asks whichever Checkpoint stands first."""
        for callback in self._with_best:
            return str(callback.best_model_path)
        return ""

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        for callback in self._with_best[:1]:
            callback.best_model_path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the training loaders go on within an epoch."""
        self._with_best = []
        for callback in trainer.checkpoint_callbacks:
            if callback is not self and hasattr(callback, "best_model_path"):
                self._with_best.append(callback)
        if stage == "fit":
            self._position = LoaderPosition()
            self._running = RunningMetrics()
            make_loaders_resumable(trainer, self._position)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of the random numbers of all processes, and the place in the training data."""
        device = trainer.strategy.root_device
        gather = gather_all_tensors if trainer.world_size > 1 else lambda state: [state]  # torch deprecates Lightning's
        states = random_state(device)
        checkpoint["softmax_regression.random"] = {
            name: [each.cpu() for each in gather(state.to(device))] for name, state in states.items()
        }
        checkpoint["softmax_regression.position"] = position_of(trainer)
        checkpoint["epoch"] = max(trainer.fit_loop.epoch_progress.current.ready - 1, 0)  # also once the epoch is over
        running = self._running.state_dict(trainer, pl_module)
        if any(running.values()):
            checkpoint["softmax_regression.running"] = _of_all(running, trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep both until training goes on; with another number of processes new random numbers are drawn."""
        if trainer.precision == "64-true":  # Lightning has loaded the weights before the module has their type
            trainer.precision_plugin.convert_module(pl_module)
            pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        states = checkpoint.get("softmax_regression.random", {})
        if len(states.get("cpu", ())) == trainer.world_size:
            mine = {name: ranks[trainer.global_rank] for name, ranks in states.items()}
            self._position.set(checkpoint.get("softmax_regression.position", {}), mine)
            if "softmax_regression.running" in checkpoint:
                self._running.load_state_dict(checkpoint["softmax_regression.running"][trainer.global_rank], pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw on where the run left off, and take over the signals after Lightning has set its handlers."""
        self.folder, self._step = folder_of(trainer), trainer.global_step
        if self._position.started:
            continue_run(trainer, pl_module, within_epoch=self._position.batches > 0)
            self._running.go_on(trainer, pl_module)
            validated_batches(trainer).update(self._position.validated)
            if self._position.batches:
                consumed_loaders(trainer)[:] = self._position.consumed
        after_each_epoch(trainer, lambda: self._save(trainer))
        if self._position.random:
            set_random_state(self._position.random, trainer.strategy.root_device)
            self._position.random = {}
        self._interruption.begin(trainer, self.folder)
        lazy = any(is_lazy(weight) for weight in pl_module.parameters())  # until the first batch, and in no checkpoint
        if self.folder and not self._step and not lazy:
            trainer.save_checkpoint(self.folder / INITIAL_CHECKPOINT, weights_only=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch if that is due; the end of an epoch is saved by itself."""
        signals = self._interruption.signals
        signals.wants_save = time.monotonic() - self._saved_at > self._seconds
        signals.at_step(trainer, trainer.fit_loop.total_batch_idx)
        before, self._step, self._due = self._step, trainer.global_step, False
        if self._step == before or trainer.is_last_batch:  # accumulated gradients are in no checkpoint
            return
        self._due = signals.agreed > 0 or signals.save or self._step % self._steps == 0
        if self._due:
            after_step(trainer, lambda: self._save_if_due(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due before the validation: a run that is resumed before one does not make it up."""
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        if self._due:
            self._save(trainer)
            self._interruption.end_if_interrupted(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted by the end of the epoch before, whose metrics are logged by now."""
        self._interruption.end_if_interrupted(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Save, and ask whether the run was interrupted on any process."""
        if self.folder:
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt", weights_only=False)
            if trainer.is_global_zero:
                (self.folder / INITIAL_CHECKPOINT).unlink(missing_ok=True)
        self._saved_at, self._due = time.monotonic(), False
        self._interruption.signals.wants_save = False
        self._interruption.signals.exchange(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted in its last epoch; give the signals back."""
        restore_ends(trainer)
        self._interruption.end_if_interrupted(trainer)
        self._interruption.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, unless one has ended the run."""
        restore_ends(trainer)
        self._interruption.end(exception)


def _of_all(state: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    """Return the states of all processes, on the CPU."""
    states = [move_data_to_device(state, torch.device("cpu"))] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, states[0])
    return states
