"""The checkpoint from which a run is resumed: saved after every epoch, and when the run is interrupted."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parameter import is_lazy

from softmax_regression.errors import InputError
from softmax_regression.runs.callbacks import callbacks_of, folder_of
from softmax_regression.runs.interruption import Interruption
from softmax_regression.runs.loaders import LoaderPosition, make_loaders_resumable, position_of
from softmax_regression.runs.loops import (
    call_after,
    consumed_loaders,
    count_skipped_batches,
    end_restart,
    remove_calls,
    restore_loops,
    restore_validation,
    resume_after_step,
)
from softmax_regression.runs.random_numbers import (
    generator_state,
    own_generators,
    random_state,
    set_generator_state,
    set_random_state,
)
from softmax_regression.runs.rows import RowCallback
from softmax_regression.runs.running_metrics import RunningMetrics

INITIAL_CHECKPOINT = "start.ckpt"  # the state before the first step, in the run's folder until last.ckpt is there


class LastCheckpoint(Checkpoint):
    """Save checkpoints/last.ckpt after every epoch, more often if asked for, and when the run is interrupted.

    After SIGINT, SIGTERM or SIGHUP the current step is finished and saved, and the process ends with exit code 130,
    143 or 129; a second signal ends it at once. Under SLURM, SIGUSR1 does the same and puts the job back into the
    queue; SLURM then ends its processes by SIGTERM, so that the exit code is 143 instead of 138.
    The checkpoint has the states of the random number generators: a resumed run draws the same numbers.

    Args:
        every_n_train_steps: Also save every so many steps; null to save only after epochs.
        every_n_minutes: Also save when so many minutes have passed since the last save; null to save only after epochs.
    """

    flag_group = "last_checkpoint"  # of its arguments on the command line
    best_model_path = ""  # Lightning asks the first Checkpoint for it, even if that one keeps no best model

    def __init__(self, every_n_train_steps: int | None = None, every_n_minutes: float | None = None) -> None:
        for name, value in ("every_n_train_steps", every_n_train_steps), ("every_n_minutes", every_n_minutes):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"last_checkpoint.{name}={value}: must be above 0, or null for not")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_minutes = every_n_minutes
        self._steps = every_n_train_steps or math.inf
        self._seconds = 60 * (every_n_minutes or math.inf)
        self._saved_at = time.monotonic()
        self._step = 0  # `global_step` after the last minibatch
        self._due = False  # whether to save after this step, or before the validation that follows it
        self._interruption = Interruption()
        self._position = LoaderPosition()
        self._running = RunningMetrics()
        self._gradients: dict[str, Tensor] = {}  # of the run to resume, until they have been set
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the training loaders to be resumed within an epoch."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined] # so that it is not the first Checkpoint
        if trainer.precision == "64-true":  # Lightning loads the weights before the module has their type
            trainer.precision_plugin.convert_module(pl_module)
        if stage == "fit":
            self._position = LoaderPosition()
            self._running = RunningMetrics()
            make_loaders_resumable(trainer, self._position)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states and running metrics of all processes, and the position in the training data."""
        checkpoint["softmax_regression.random"] = _of_all_processes(random_state(trainer.strategy.root_device), trainer)
        checkpoint["softmax_regression.position"] = position_of(trainer)
        generators = {name: generator_state(each) for name, each in _generators(trainer, pl_module).items()}
        if generators:
            checkpoint["softmax_regression.generators"] = _of_all_processes(generators, trainer)
        # Lightning would write the next epoch if this one is over.
        checkpoint["epoch"] = max(trainer.fit_loop.epoch_progress.current.ready - 1, 0)
        if _keeps_gradients(trainer, pl_module):
            gradients = move_data_to_device(_gradients(pl_module), torch.device("cpu"))
            checkpoint["softmax_regression.gradients"] = _of_all_processes(gradients, trainer)
        running = self._running.state_dict(trainer, pl_module)
        if any(running.values()):
            on_cpu = move_data_to_device(running, torch.device("cpu"))
            checkpoint["softmax_regression.running"] = _of_all_processes(on_cpu, trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_save_checkpoint` has added until training begins; it fits only as many processes as before."""
        if trainer.state.fn != "fit":  # what the training has counted and drawn is nothing to score with
            return
        count_skipped_batches(checkpoint)
        if len(checkpoint.get("softmax_regression.random", [])) != trainer.world_size:
            return
        mine = {}  # the states of this process
        nothing: list[dict[str, Any]] = [{}] * trainer.world_size
        for name in ("random", "generators", "gradients", "running"):
            mine[name] = checkpoint.get(f"softmax_regression.{name}", nothing)[trainer.global_rank]
        self._position.set(checkpoint.get("softmax_regression.position", {}), mine["random"])
        for name, generator in _generators(trainer, pl_module).items():
            if name in mine["generators"]:
                set_generator_state(generator, mine["generators"][name])
        self._gradients = mine["gradients"]
        self._running.load_state_dict(mine["running"], pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore loops and random states of a resumed run, and install the signal handlers, after Lightning's own."""
        self.folder = folder_of(trainer)
        self._step = trainer.global_step
        _restore(trainer, pl_module, self._position, self._running)
        _set_gradients(pl_module, self._gradients)
        self._gradients = {}
        call_after(trainer.fit_loop, partial(self._save, trainer))
        call_after(trainer.fit_loop.epoch_loop, partial(self._save_if_due, trainer))
        if self._position.random:
            set_random_state(self._position.random, trainer.strategy.root_device)
            self._position.random = {}
        self._interruption.begin(trainer, self.folder)
        lazy = any(is_lazy(weight) for weight in pl_module.parameters())  # without values until the first batch
        if self.folder and not self._step and not lazy:
            trainer.save_checkpoint(self.folder / INITIAL_CHECKPOINT, weights_only=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether to save after this step; the end of an epoch is saved anyway."""
        signals = self._interruption.signals
        signals.wants_save = time.monotonic() - self._saved_at > self._seconds
        signals.at_step(trainer, trainer.fit_loop.total_batch_idx)
        self._due = False
        before = self._step
        self._step = trainer.global_step
        if self._step == before or trainer.is_last_batch:  # it is saved between steps, not while gradients accumulate
            return
        self._due = signals.agreed > 0 or signals.save or self._step % self._steps == 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation that follows the step, so that a resumed run need not repeat it."""
        self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the restart of a resumed run, so that Lightning steps the schedules."""
        end_restart(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        if self._due:
            self._save(trainer)
            self._interruption.end_if_interrupted(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted before this epoch; the metrics of the last epoch have been logged by now."""
        self._interruption.end_if_interrupted(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Save, and find out whether any process has received a signal."""
        if self.folder:
            path = self.folder / "checkpoints" / "last.ckpt"
            if trainer.is_global_zero and path.is_symlink():  # to a file of ModelCheckpoint(save_last="link")
                path.unlink()
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                (self.folder / INITIAL_CHECKPOINT).unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._due = False
        self._interruption.signals.wants_save = False
        self._interruption.signals.exchange(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was interrupted in its last epoch; restore the signal handlers and the loops."""
        remove_calls(trainer)
        self._interruption.end_if_interrupted(trainer)
        self._interruption.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers and the loops."""
        remove_calls(trainer)
        self._interruption.end(exception)


def _restore(trainer: Trainer, module: LightningModule, position: LoaderPosition, running: RunningMetrics) -> None:
    """Restore the loops and the metrics of a resumed run, as far as Lightning does not."""
    if position.random and not position.validating:
        resume_after_step(trainer)
    if not position.started:
        return
    restore_loops(trainer, module, within_epoch=position.batches > 0)
    running.log_again(trainer, module)
    for collector in callbacks_of(trainer, RowCallback):
        collector.note_logged(trainer)
    restore_validation(trainer, position.validated, position.validation_loaders)
    if position.ending and not position.batches:  # a callback has saved before these schedules
        trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    if position.batches:
        consumed_loaders(trainer)[:] = position.consumed


def _set_gradients(module: LightningModule, gradients: dict[str, Tensor]) -> None:
    """Give the parameters of a module the gradients that `_gradients` returned."""
    for name, gradient in gradients.items():
        weight = module.get_parameter(name)
        weight.grad = gradient.to(weight.device)


def _generators(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the random number generators that the module, its data and the callbacks have of their own."""
    objects: dict[str, Any] = {"model": module, "data": trainer.datamodule}  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        objects[callback.state_key] = callback
    return own_generators(objects)


def _keeps_gradients(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether the next step may use the gradients that are there now."""
    accumulates = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0
    own = not module.automatic_optimization or is_overridden("optimizer_zero_grad", module)
    return accumulates or own


def _gradients(module: LightningModule) -> dict[str, Tensor]:
    """Return the gradients that the parameters of a module have."""
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def _of_all_processes(state: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    """Return the states that the processes give, in the order of their ranks."""
    states = [state] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, state)
    return states
