"""Where a run reaches into Lightning's loops: once a step or an epoch is over, and where a run goes on."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging


def after_step(trainer: Trainer, call: Callable[[], None]) -> None:
    """Call once this step is over: with the module's own hook, its schedules, and what is logged."""
    loop: Any = trainer.fit_loop.epoch_loop
    end = loop.on_advance_end

    def end_and_call(*args: Any) -> None:
        del loop.on_advance_end
        end(*args)
        call()

    loop.on_advance_end = end_and_call


def after_each_epoch(trainer: Trainer, call: Callable[[], None]) -> None:
    """Call whenever an epoch is over: after all callbacks, schedules, and what is logged."""
    loop: Any = trainer.fit_loop
    end = loop.on_advance_end

    def end_and_call() -> None:
        end_restart(trainer)
        end()
        call()

    loop.on_advance_end = end_and_call


def restore_ends(trainer: Trainer) -> None:
    """Let the end of a step and of an epoch be Lightning's own again."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        vars(loop).pop("on_advance_end", None)


def validated_batches(trainer: Trainer) -> dict[int, int]:
    """Return how many batches of each validation loader there were: the x axis of what is logged at each of them."""
    counts: dict[int, int] = getattr(trainer.fit_loop.epoch_loop.val_loop, "_seen_batches_per_dataloader", {})
    return counts


def training_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders in the order in which the Trainer has asked for them."""
    return list(getattr(trainer.fit_loop._combined_loader, "flattened", ()))


def waiting_batches(trainer: Trainer) -> int:
    """Return how many batches were fetched that are not trained on yet: one if nobody knows the number of all."""
    return len(getattr(trainer.fit_loop._data_fetcher, "batches", ()))


def consumed_loaders(trainer: Trainer) -> list[bool]:
    """Return which of several training loaders have begun again in this epoch, for others are longer."""
    iterator = getattr(trainer.fit_loop._combined_loader, "_iterator", None)
    consumed: list[bool] = getattr(iterator, "_consumed", [])
    return consumed


def continue_run(trainer: Trainer, module: LightningModule, within_epoch: bool) -> None:
    """Bring a Trainer that goes on, within an epoch or at the end of one, to where the run was."""
    loop: Any = trainer.fit_loop
    epoch = trainer.current_epoch
    if within_epoch:  # its hook `on_train_epoch_start` is not called again
        trainer._logger_connector._first_loop_iter = True  # or Lightning forgets what was logged in the epoch
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
    """Let the loop over epochs be as in any other epoch.

    As long as it restarts, it steps no schedule at the end of an epoch; where max_steps is given, it always restarts.
    """
    loop: Any = trainer.fit_loop
    loop.epoch_loop.max_steps, max_steps = -1, trainer.max_steps
    loop.restarting = False
    loop.epoch_loop.max_steps = max_steps
