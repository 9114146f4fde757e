"""How a run is opened again: its model, data and Trainer, from its configuration and a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from softmax_regression.experiment.cli import ExperimentCLI
from softmax_regression.runs.folder import SavedCheckpoint, open_checkpoint

NOTHING_ELSE = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.fast_dev_run=false",
    "--trainer.barebones=false",
]


@dataclass(frozen=True)
class OpenedRun:
    """What a checkpoint was saved of, ready to be looked at."""

    folder: Path | None  # of the run, if the checkpoint lies in one
    checkpoint: Path
    saved: dict[str, Any]  # the content of the checkpoint
    model: LightningModule  # with the weights of the checkpoint, evaluating
    data: LightningDataModule | None  # set up; None if the run had no data module
    trainer: Trainer
    config: dict[str, Any]  # the whole configuration of the run


class _Opener(ExperimentCLI):
    """The command line that makes model, data and Trainer of a run, and loads the weights as Lightning does."""

    def __init__(self, flags: Sequence[str], checkpoint: SavedCheckpoint, stage: str) -> None:
        self.stage = stage
        super().__init__("validate", flags, checkpoint)

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Let the Trainer set up model and data and load the weights, and evaluate no batch."""
        assert self.checkpoint is not None
        trainer = self.trainer
        limits = trainer.limit_val_batches, trainer.limit_test_batches, trainer.limit_predict_batches
        trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 0
        options: dict[str, Any] = {"ckpt_path": str(self.checkpoint.path)}
        if self.checkpoint.content.get("run", {}).get("data") is None:
            self.datamodule = None
            options["dataloaders"] = []
        else:
            options["datamodule"] = self.datamodule
        steps = {"validate": "validation_step", "test": "test_step"}
        known = [stage for stage, step in steps.items() if is_overridden(step, model)]
        if self.stage in known:
            getattr(trainer, self.stage)(model, verbose=False, **options)
        elif known:
            getattr(trainer, known[0])(model, verbose=False, **options)
        else:
            model.predict_step = model.training_step  # type: ignore[method-assign] # or Lightning asks for a forward
            trainer.predict(model, **options)
        trainer.limit_val_batches, trainer.limit_test_batches, trainer.limit_predict_batches = limits


def open_run(which: str, prefer: str = "best", flags: Sequence[str] = (), stage: str = "validate") -> OpenedRun:
    """Open a run as `train.py test` does: by its configuration, its classes, and the Trainer that loads the weights.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run, see `open_checkpoint`.
        prefer: The checkpoint of a folder.
        flags: Flags over the run's configuration, such as `--data.dirs=[...]`.
        stage: `validate` or `test`, for which the data module is set up.

    Raises:
        InputError: There is no such run, or it is not what its configuration says.
    """
    checkpoint = open_checkpoint(which, prefer)
    cli = _Opener([*flags, *NOTHING_ELSE], checkpoint, stage)
    config = yaml.safe_load(cli.recorded_configuration())
    opened = checkpoint.run, checkpoint.path, checkpoint.content, cli.model.eval(), cli.datamodule, cli.trainer, config
    return OpenedRun(*opened)
