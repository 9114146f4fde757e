"""Changes to Lightning's loops, and what only private names give; where one is missing, the loop does as it does."""

import operator
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.utilities import CombinedLoader


def steps_done(trainer: Trainer) -> int:
    """Return the number of optimizer steps so far; with manual optimization that of minibatches, as loggers count."""
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def call_after(loop: Any, function: Callable[[], None]) -> None:
    """Call a function at the end of each iteration of a loop: after all hooks, schedules and logging.

    An iteration of a Trainer's `fit_loop` is an epoch, an iteration of its `epoch_loop` a step.
    """
    end = loop.on_advance_end

    def end_and_call(*args: Any) -> None:
        end(*args)
        function()

    loop.on_advance_end = end_and_call


def remove_calls(trainer: Trainer) -> None:
    """Undo `call_after` for the loops of a Trainer."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        vars(loop).pop("on_advance_end", None)


def _private(owner: Any, path: str, otherwise: Any) -> Any:
    """Return an attribute of an attribute, such as `a.b`; `otherwise` if a library does not have it, or not yet."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return otherwise if owner is None else owner


def validated_batches(trainer: Trainer) -> dict[int, int]:
    """Return the number of batches so far of each validation loader, the x axis of metrics logged on its steps."""
    counts: dict[int, int] = _private(trainer.fit_loop.epoch_loop, "val_loop._seen_batches_per_dataloader", {})
    return counts


def waiting_batches(trainer: Trainer) -> int:
    """Return the number of batches that were fetched but not trained on: one if the length of the epoch is unknown."""
    return len(_private(trainer.fit_loop, "_data_fetcher.batches", ()))


def consumed_loaders(trainer: Trainer) -> list[bool]:
    """Return for each of several training loaders whether it has begun again in this epoch, as others are longer."""
    consumed: list[bool] = _private(trainer.fit_loop, "_combined_loader._iterator._consumed", [])
    return consumed


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


def file_writer(experiment: Any) -> Any:
    """Return the writer of a SummaryWriter's file, which a second training has to open again."""
    return _private(experiment, "_get_file_writer", lambda: experiment.file_writer)()


def restore_loops(trainer: Trainer, module: LightningModule, within_epoch: bool) -> None:
    """Restore the part of a resumed run's loops that Lightning does not, within an epoch or at the end of one."""
    loop: Any = trainer.fit_loop
    epoch = trainer.current_epoch
    if within_epoch:  # its hook `on_train_epoch_start` is not called again
        connector = _private(trainer, "_logger_connector", None)
        if connector:
            connector._first_loop_iter = True  # otherwise Lightning resets what was logged in the epoch
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
                callback.on_train_epoch_start(trainer, module)
    else:
        end_restart(trainer)
        loop.reset()
        epoch -= 1  # the last one that has begun
    every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if every:
        loop._last_train_dl_reload_epoch = epoch // every * every


def end_restart(trainer: Trainer) -> None:
    """Tell the loop over epochs that it is not restarting any more.

    A restarting loop steps no schedule at the end of an epoch, and with max_steps it would stay restarting.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_loop.max_steps, max_steps = -1, trainer.max_steps
    loop.restarting = False
    loop.epoch_loop.max_steps = max_steps
