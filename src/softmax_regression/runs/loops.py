"""Changes to Lightning's loops, and what only private names give; where one is missing, the loop does as it does."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

T = TypeVar("T")


def steps_done(trainer: Trainer) -> int:
    """Return the number of optimizer steps so far; with manual optimization that of minibatches, as loggers count."""
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def can_test(trainer: Trainer) -> bool:
    """Whether there is a `test_step`, and a `test_dataloader` of the data module or, if there is none, of the model."""
    module = trainer.lightning_module
    source = getattr(trainer, "datamodule", None) or module
    return is_overridden("test_step", module) and is_overridden("test_dataloader", source)


def call_after(loop: Any, function: Callable[[], None]) -> None:
    """Call a function at the end of each iteration of a loop: after all hooks, schedules and logging.

    An iteration of a Trainer's `fit_loop` is an epoch, an iteration of its `epoch_loop` a step.
    """
    end = loop.on_advance_end

    def end_and_call(*args: Any) -> None:
        end(*args)
        function()

    loop.on_advance_end = end_and_call


def call_as_training_begins(trainer: Trainer, function: Callable[[], None]) -> None:
    """Call a function after the hooks `on_train_start`, that of the module among them."""
    loop: Any = trainer.fit_loop
    begin = loop.on_run_start

    def begin_and_call() -> None:
        begin()
        function()

    loop.on_run_start = begin_and_call


def remove_calls(trainer: Trainer) -> None:
    """Undo `call_after` and `call_as_training_begins` for the loops of a Trainer."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        vars(loop).pop("on_advance_end", None)
        vars(loop).pop("on_run_start", None)


def _private(owner: Any, path: str, otherwise: T) -> T:
    """Return an attribute of an attribute, such as `a.b`; `otherwise` if a library does not have it, or not yet."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return otherwise if owner is None else owner


def is_epoch_over(trainer: Trainer) -> bool:
    """Return whether the last step of the epoch is over, with a validation that follows it.

    Of data without a length, `is_last_batch` may not say so: that nothing follows is known once it was asked for.
    """
    nothing_follows = trainer.is_last_batch or _private(trainer.fit_loop, "_data_fetcher.done", False)
    return nothing_follows and not trainer.validating


def waiting_batches(trainer: Trainer) -> int:
    """Return the number of batches that were fetched but not trained on: one if the length of the epoch is unknown."""
    return len(_private(trainer.fit_loop, "_data_fetcher.batches", ()))


def predicted_examples(trainer: Trainer, loader: int, batch: int) -> list[int]:
    """Return the positions in their data set of the examples of a batch to predict; empty if they are not known."""
    loaders = CombinedLoader(trainer.predict_dataloaders).flattened
    batches: list[Any] = _private(loaders[loader], "batch_sampler.seen_batch_indices", [])
    try:
        return [operator.index(place) for place in batches[batch]]
    except (IndexError, TypeError):  # the sampler may yield anything
        return []


def changed_by_hooks(module: LightningModule, batch: Any) -> Any:
    """Return a batch as the hook `on_before_batch_transfer`, of the module or of its data, changes it."""
    return _private(module, "_on_before_batch_transfer", lambda batch: batch)(batch)


def modes_before_validation(trainer: Trainer) -> dict[str, dict[str, bool]]:
    """Return the attribute `training` of each part, such as `model.head`, if a validation has changed it for now."""
    modes: dict[str, bool] = _private(trainer.fit_loop, "epoch_loop.val_loop._module_mode.mode", {})
    if not trainer.validating:
        return {}
    return {f"model.{name}".rstrip("."): {"training": mode} for name, mode in modes.items()}


def file_writer(experiment: Any) -> Any:
    """Return the writer of a SummaryWriter's file, which a second training has to open again."""
    return _private(experiment, "_get_file_writer", lambda: experiment.file_writer)()


def count_skipped_batches(checkpoint: dict[str, Any]) -> None:
    """Count a minibatch at which `on_train_batch_start` has ended an epoch as one that was trained on.

    Lightning does not, and so finds in no later epoch that a step was over when a checkpoint was saved.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    total, current = progress["total"], progress["current"]
    for name in ("started", "processed", "completed"):
        total[name] = total["ready"] - current["ready"] + current[name]


def resume_after_step(trainer: Trainer) -> None:
    """Let a resumed run begin with the next minibatch, if the step of the last one was over when it was saved.

    Where a validation was due at that step, Lightning would count it again, and step the schedules again.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress.current
    begin = loop.on_run_start

    def begin_with_next(*args: Any) -> None:
        begin(*args)
        loop.restarting = False
        del loop.on_run_start

    if progress.completed == progress.ready:
        loop.on_run_start = begin_with_next


def loop_positions(trainer: Trainer) -> dict[str, Any]:
    """Return for a checkpoint what Lightning does not save of its loops, see `restore_loops`.

    `batches` of this epoch have been trained on, 0 if it is over; `started` and `ending` say whether any epoch has
    begun, and whether one is over but not all that ends it is done; `validating`, whether a callback of a validation
    saves; `validated` are the numbers of batches of each validation loader, the x axis of metrics logged on its steps;
    `made_in` is the epoch in which these loaders were made last, -inf if they are made only once; `consumed` says for
    each of several training loaders whether it has begun again in this epoch, as others are longer.
    """
    loop = trainer.fit_loop.epoch_loop
    epochs: Any = trainer.fit_loop.epoch_progress.current
    made_in = -math.inf
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        made_in = _private(loop, "val_loop._last_val_dl_reload_epoch", made_in)
    return {
        "epoch": trainer.current_epoch,
        "batches": 0 if is_epoch_over(trainer) else loop.batch_progress.current.ready,
        "started": epochs.ready > 0,
        "ending": epochs.processed > epochs.completed,
        "validating": trainer.validating,
        "validated": dict(_private(loop, "val_loop._seen_batches_per_dataloader", {})),
        "made_in": made_in,
        "consumed": list(_private(trainer.fit_loop, "_combined_loader._iterator._consumed", [])),
    }


def restore_loops(trainer: Trainer, module: LightningModule, saved: Mapping[str, Any]) -> None:
    """Restore what `loop_positions` returned, within an epoch or at the end of one."""
    loop: Any = trainer.fit_loop
    epoch = trainer.current_epoch
    within_epoch = saved["batches"] > 0
    if within_epoch:  # its hook `on_train_epoch_start` is not called again
        connector: Any = _private(trainer, "_logger_connector", None)
        if connector:
            connector._first_loop_iter = True  # otherwise Lightning resets what was logged in the epoch
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StochasticWeightAveraging):
                callback.on_train_epoch_start(trainer, module)
        _private(loop, "_combined_loader._iterator._consumed", [])[:] = saved["consumed"]
    else:
        end_restart(trainer)
        loop.reset()
    every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if every:
        loop._last_train_dl_reload_epoch = epoch // every * every  # the loaders have been made for this epoch
        if not within_epoch and epoch % every == 0:
            loop._resuming_from_checkpoint = False  # Lightning begins loaders that it makes for an epoch twice
    if saved["validated"] and trainer.val_dataloaders is None:  # Lightning would make them later, and count from 0
        trainer.validating = True
        loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    _private(loop, "epoch_loop.val_loop._seen_batches_per_dataloader", {}).update(saved["validated"])
    loop.epoch_loop.val_loop._last_val_dl_reload_epoch = saved["made_in"]


def end_restart(trainer: Trainer) -> None:
    """Tell the loop over epochs that it is not restarting any more.

    A restarting loop steps no schedule at the end of an epoch, and with max_steps it would stay restarting.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_loop.max_steps, max_steps = -1, trainer.max_steps
    loop.restarting = False
    loop.epoch_loop.max_steps = max_steps
