"""The step of a ReduceLROnPlateau that a checkpoint of an epoch's end lacks: Lightning makes it after the save."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer


def steps_to_come(trainer: Trainer) -> dict[int, float]:
    """Return what each schedule that steps right after this save will see, by its place in `lr_scheduler_configs`."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    metrics = trainer.callback_metrics
    at_end = progress.processed > progress.completed  # while the hooks of an epoch's end are called
    whole = trainer.is_last_batch or trainer.fit_loop.batch_idx + 1 == trainer.num_training_batches
    steps: dict[int, float] = {}
    if not (at_end and whole and trainer.lightning_module.automatic_optimization):
        return steps
    for place, config in enumerate(trainer.lr_scheduler_configs):
        by_epoch = config.reduce_on_plateau and config.interval == "epoch"
        if by_epoch and config.monitor in metrics and (trainer.current_epoch + 1) % config.frequency == 0:
            steps[place] = float(metrics[config.monitor])
    return steps


def make_steps(trainer: Trainer, steps: Mapping[int, float]) -> None:
    """Make the steps that `steps_to_come` returned, as the run begins that goes on."""
    progress = trainer.fit_loop.epoch_loop.scheduler_progress
    for place, value in steps.items():
        progress.increment_ready()
        trainer.lightning_module.lr_scheduler_step(trainer.lr_scheduler_configs[place].scheduler, value)
        progress.increment_completed()
