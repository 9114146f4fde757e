"""How a run is opened again: its model, data and Trainer, from its configuration and a checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from softmax_regression.experiment.cli import ExperimentCLI
from softmax_regression.figures.scoring import choose_loader
from softmax_regression.runs.checkpoint import about_run
from softmax_regression.runs.folder import open_checkpoint

SWITCHED_OFF = ("logger", "enable_progress_bar", "fast_dev_run", "barebones")  # of the Trainer


class OpenedRun(NamedTuple):
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

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Let the Trainer set up model and data and load the weights, and evaluate no batch."""
        assert self.checkpoint is not None
        trainer = self.trainer
        trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 0
        options: dict[str, Any] = {"ckpt_path": str(self.checkpoint.path)}
        if about_run(self.checkpoint.content).get("data") is None:
            self.datamodule = None
            options["dataloaders"] = []
        else:
            options["datamodule"] = self.datamodule
        if is_overridden("validation_step", model):
            trainer.validate(model, verbose=False, **options)
        elif is_overridden("test_step", model):
            trainer.test(model, verbose=False, **options)
        else:
            model.predict_step = model.training_step  # type: ignore[method-assign] # or Lightning asks for a forward
            trainer.predict(model, **options)


def open_run(
    which: str, prefer: str = "best", flags: Sequence[str] = (), dirs: Sequence[str] | None = None
) -> OpenedRun:
    """Open a run as `train.py test` does: by its configuration, its classes, and the Trainer that loads the weights.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run, see `open_checkpoint`.
        prefer: The checkpoint of a folder.
        flags: Flags over the run's configuration, such as `--data.eval_batch_size=100`.
        dirs: Folders to look for the data in; None for those of the run.

    Raises:
        InputError: There is no such run, or it is not what its configuration says.
    """
    checkpoint = open_checkpoint(which, prefer)
    flags = [*flags, *(f"--trainer.{name}=false" for name in SWITCHED_OFF)]
    if dirs is not None:
        flags.append(f"--data.dirs={json.dumps(dirs)}")
    cli = _Opener("validate", flags, checkpoint)
    warn_of_other_data(checkpoint.content, cli.datamodule)
    config = yaml.safe_load(cli.recorded_configuration())
    opened = checkpoint.run, checkpoint.path, checkpoint.content, cli.model.eval(), cli.datamodule, cli.trainer, config
    return OpenedRun(*opened)


def other_data(saved: dict[str, Any], data: Any) -> str | None:
    """Say so if the images that are loaded are not those of the run that saved the checkpoint."""
    loaded = getattr(data, "data", None)  # None: photos to predict
    expected = about_run(saved).get("sha256")
    found = getattr(loaded, "sha256", None)
    if found is None or expected is None or found == expected:
        return None
    return f"data with SHA-256 {found[:12]}…: the model was trained on {str(expected)[:12]}…"


def warn_of_other_data(saved: dict[str, Any], data: Any) -> None:
    """Print what `other_data` says."""
    other = other_data(saved, data)
    if other:
        print(f"warning: {other}", file=sys.stderr)


def held_out_loader(opened: OpenedRun, stage: str) -> Any:
    """Return the loader of the images of a stage, `val` or `test`, of a run's data or else of its module.

    Of several loaders it is the one with the name of the stage, or else the first; None if there is none.
    """
    name = f"{stage}_dataloader"
    source: Any = opened.model
    if opened.data is not None:
        source = opened.data
    if not is_overridden(name, source):
        return None
    if opened.data is not None:
        source.setup({"val": "fit", "test": "test"}[stage])
    _, loader = choose_loader(getattr(source, name)(), stage) or (0, None)
    return loader
