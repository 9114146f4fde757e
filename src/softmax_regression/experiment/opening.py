"""Open a run again: make its model, data and Trainer from its configuration, and load a checkpoint."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from softmax_regression.errors import InputError
from softmax_regression.experiment.cli import ExperimentCLI
from softmax_regression.figures.scoring import choose_loader
from softmax_regression.runs.checkpoint import about_run
from softmax_regression.runs.folder import SavedCheckpoint, open_checkpoint

SWITCHED_OFF = {"logger": "false", "fast_dev_run": "false", "barebones": "false", "profiler": "null"}  # of the Trainer


class OpenedRun(NamedTuple):
    """The model, data and Trainer of a checkpoint."""

    checkpoint: SavedCheckpoint
    model: LightningModule  # with the weights of the checkpoint, in evaluation mode
    data: LightningDataModule | None  # set up; None if the run had no data module
    trainer: Trainer
    config: dict[str, Any]  # the configuration of the run, without `data` if there is none


class _Opener(ExperimentCLI):
    """The command line that makes model, data and Trainer of a run, and lets Lightning load the weights."""

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Let the Trainer set up model and data and load the weights, without evaluating a batch."""
        assert self.checkpoint is not None
        trainer = self.trainer
        trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 0
        options: dict[str, Any] = {"ckpt_path": str(self.checkpoint.path)}
        if about_run(self.checkpoint.content).get("data", "") is None:
            self.datamodule = None
            options["dataloaders"] = []
        else:
            options["datamodule"] = self.datamodule
        if is_overridden("validation_step", model):
            trainer.validate(model, verbose=False, **options)
        elif is_overridden("test_step", model):
            trainer.test(model, verbose=False, **options)
        else:
            model.predict_step = model.training_step  # type: ignore[method-assign] # Lightning requires one; not called
            trainer.predict(model, **options)


def open_run(which: str, dirs: Sequence[str] | None = None) -> OpenedRun:
    """Open a run as `train.py test` does: from its configuration, with the weights loaded by a Trainer.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run, see `open_checkpoint`.
        dirs: Folders to look for the data in; None for those of the run.

    Raises:
        InputError: There is no such run, or its configuration does not fit the checkpoint.
    """
    checkpoint = open_checkpoint(which)
    flags = [f"--trainer.{name}={value}" for name, value in SWITCHED_OFF.items()]
    if dirs is not None:
        flags.append(f"--data.dirs={json.dumps(dirs)}")
    try:
        cli = _Opener("validate", flags, checkpoint)
    except ArgumentError as error:
        if dirs is not None and "dirs" in str(error):
            raise InputError(
                f"dirs={dirs}: the data of this run have no parameter of this name; drop --dirs"
            ) from error
        raise
    warn_of_other_data(checkpoint.content, cli.datamodule)
    config = cli.recorded_configuration()
    if cli.datamodule is None:
        del config["data"]  # the default one, which was not used
    return OpenedRun(checkpoint, cli.model.eval(), cli.datamodule, cli.trainer, config)


def other_data(saved: dict[str, Any], data: Any) -> str | None:
    """Return a message if the loaded images are not those that the model was trained on, else None."""
    loaded = getattr(data, "data", None)  # None: photos to predict
    expected = about_run(saved).get("sha256")
    found = getattr(loaded, "sha256", None)
    if found is None or expected is None or found == expected:
        return None
    return f"data with SHA-256 {found[:12]}…: the model was trained on {str(expected)[:12]}…"


def warn_of_other_data(saved: dict[str, Any], data: Any) -> None:
    """Print the message of `other_data`, if there is one."""
    other = other_data(saved, data)
    if other:
        print(f"warning: {other}", file=sys.stderr)


def held_out_loader(opened: OpenedRun, stage: str) -> Any:
    """Return the loader of a stage, `val` or `test`, of the data module or, if there is none, of the model.

    Of several loaders it is the one with the name of the stage, or else the first; None if there is none.
    """
    name = f"{stage}_dataloader"
    source: Any = opened.model if opened.data is None else opened.data
    if not is_overridden(name, source):
        return None
    if opened.data is not None:
        source.setup({"val": "fit", "test": "test"}[stage])
    _, loader = choose_loader(getattr(source, name)(), stage) or (0, None)
    return loader
