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
from torch.nn.parameter import is_lazy

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.runs.attributes import Attributes
from softmax_regression.runs.callbacks import callbacks_of, find_moved_checkpoints, folder_of
from softmax_regression.runs.interruption import Interruption
from softmax_regression.runs.loaders import LoaderPosition, loader_states, make_loaders_resumable
from softmax_regression.runs.loops import (
    call_after,
    call_as_training_begins,
    count_skipped_batches,
    end_restart,
    loop_positions,
    remove_calls,
    restore_loops,
    resume_after_step,
)
from softmax_regression.runs.processes import check_equal_epochs, print_rank_zero
from softmax_regression.runs.random_numbers import own_states, random_state, set_own_states, set_random_state
from softmax_regression.runs.rows import RowCallback
from softmax_regression.runs.running_metrics import load_metrics, log_again, running_metrics

INITIAL_CHECKPOINT = "start.ckpt"  # the state before the first step, in the run's folder until last.ckpt is there

DRAWN = ("loaders.", "data.")  # names of generators from which the loaders have drawn before the training begins


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
        self._due = False  # whether to save after this step, and the validation that follows it
        self._interruption = Interruption()
        self._position = LoaderPosition()
        self._attributes = Attributes()
        self._saved: dict[str, Any] = {}  # of the run to resume, until its training begins
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the training loaders to be resumed within an epoch."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined] # so that it is not the first Checkpoint
        if trainer.precision == "64-true":  # Lightning loads the weights before the module has their type
            trainer.precision_plugin.convert_module(pl_module)
        if stage == "fit":
            self._position = LoaderPosition()
            self._attributes = Attributes()
            self._saved = {}
            make_loaders_resumable(trainer, self._position)
            remove_calls(trainer)  # of a training that has not begun
            call_as_training_begins(trainer, partial(self._begin, trainer, pl_module))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of all processes, and the position in loops and training data."""
        checkpoint["softmax_regression.loops"] = loop_positions(trainer)
        state = _state_of_process(trainer, pl_module) | {"attributes": self._attributes.changed(trainer, pl_module)}
        state = move_data_to_device(state, torch.device("cpu"))
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["softmax_regression.processes"] = states
        # Lightning would write the next epoch if this one is over.
        checkpoint["epoch"] = max(trainer.fit_loop.epoch_progress.current.ready - 1, 0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_save_checkpoint` has added until training begins; it fits only as many processes as before."""
        if trainer.state.fn != "fit":  # what the training has counted and drawn is nothing to score with
            return
        if Path(str(trainer.ckpt_path)).name.startswith(".scale_batch_size"):  # BatchSizeFinder: no run is resumed
            return
        find_moved_checkpoints(trainer, checkpoint["callbacks"])
        count_skipped_batches(checkpoint)
        states = checkpoint.get("softmax_regression.processes", [])
        loops = checkpoint.get("softmax_regression.loops", {})
        if len(states) != trainer.world_size:
            if states and loops["batches"] and not isinstance(trainer.datamodule, FashionMNISTDataModule):  # type: ignore[attr-defined]
                now = f"processes: {trainer.world_size} instead of {len(states)}"
                print_rank_zero(f"{now}; the minibatches of this epoch are other than without the interruption")
            return
        self._saved = states[trainer.global_rank] | {"loops": loops}
        self._position.random = self._saved["random"]
        self._position.loaders = self._saved.get("loaders", {})
        self._position.epoch = loops["epoch"]
        self._position.started = loops["started"]
        made_once = not trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        self._position.validated = made_once and (bool(loops["validated"]) or trainer.num_sanity_val_steps > 0)
        set_own_states(_owners_of_generators(trainer, pl_module), self._saved["generators"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers, after Lightning's own."""
        check_equal_epochs(trainer)
        self.folder = folder_of(trainer)
        self._step = trainer.global_step
        call_after(trainer.fit_loop, partial(self._save, trainer))
        call_after(trainer.fit_loop.epoch_loop, partial(self._save_if_due, trainer))
        self._interruption.begin(trainer, self.folder)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore loops, metrics and random states of a resumed run, or save the state before the first step."""
        self._attributes.begin(trainer, module, self._saved.get("attributes", {}))
        if self._saved:
            _restore(trainer, module, self._saved)
            self._saved = {}
        if self._position.random:
            set_random_state(self._position.random, trainer.strategy.root_device)
            self._position.random = {}
        lazy = any(is_lazy(weight) for weight in module.parameters())  # without values until the first batch
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


def _state_of_process(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return what a resumed run needs of this process: generators, loaders, metrics, gradients for the next step."""
    gradients = {}
    if _keeps_gradients(trainer, module):
        for name, weight in module.named_parameters():
            if weight.grad is not None:
                gradients[name] = weight.grad
    return {
        "random": random_state(trainer.strategy.root_device),
        "generators": own_states(_owners_of_generators(trainer, module)),
        "loaders": loader_states(trainer),
        "metrics": running_metrics(trainer, module),
        "gradients": gradients,
    }


def _restore(trainer: Trainer, module: LightningModule, saved: dict[str, Any]) -> None:
    """Restore the loops, metrics and gradients of a resumed run, as far as Lightning does not."""
    loops = saved["loops"]
    if not loops["validating"]:
        resume_after_step(trainer)
    load_metrics(module, saved["metrics"])
    generators = {name: saved["generators"][name] for name in saved["generators"] if not name.startswith(DRAWN)}
    set_own_states(_owners_of_generators(trainer, module), generators)  # again: a hook may have made new ones
    if loops["started"]:
        restore_loops(trainer, module, loops)
        log_again(trainer, module, saved["metrics"])
        for collector in callbacks_of(trainer, RowCallback):
            collector.note_logged(trainer)
        if loops["ending"] and not loops["batches"]:  # a callback has saved before these schedules
            trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    for name, gradient in saved["gradients"].items():
        weight = module.get_parameter(name)
        weight.grad = gradient.to(weight.device)


def _owners_of_generators(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the data, the module and the callbacks, which may have random number generators of their own."""
    data = {"loaders": trainer.train_dataloader, "data": trainer.datamodule}  # type: ignore[attr-defined]
    objects: dict[str, Any] = {**data, "model": module}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        objects[callback.state_key] = callback
    return objects


def _keeps_gradients(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether the next step may use the gradients that are there now."""
    accumulates = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0
    own = not module.automatic_optimization or is_overridden("optimizer_zero_grad", module)
    return accumulates or own
