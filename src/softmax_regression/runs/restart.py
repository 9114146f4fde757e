"""What Lightning leaves out where a run goes on, and a straight run does."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging


def continue_run(trainer: Trainer, module: LightningModule, within_epoch: bool) -> None:
    """Bring a Trainer that goes on, within an epoch or at the end of one, to where the run was."""
    loop: Any = trainer.fit_loop
    epoch = trainer.current_epoch
    if within_epoch:  # its hook `on_train_epoch_start` is not called again
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
