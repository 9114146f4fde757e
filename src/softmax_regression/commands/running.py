"""How the commands of `train.py` run, once everything is made: methods of `train.TrainCLI`."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule

from softmax_regression.classifier import Classifier
from softmax_regression.commands import checks, outputs, resume
from softmax_regression.errors import InputError
from softmax_regression.files import locked, remove_debris
from softmax_regression.runs.callbacks import folder_of
from softmax_regression.runs.folder import RunLogger
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.record import read_manifest

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI


def _check(cli: "TrainCLI") -> None:
    """Refuse what cannot work, once the data are there."""
    command, data = cli.subcommand, cli.datamodule
    if command != "fit" and not cli.checkpoint:
        raise InputError(f"{command}: needs a trained model; give --ckpt_path a run's folder, best or last")
    checks.devices(cli.trainer, data)
    if command != "fit" or hasattr(data, "loaded"):
        data.setup(command)  # on every process: while they are not joined, none waits for another
    checks.classes(cli.model, data)
    if cli.checkpoint:
        checks.shapes(cli.config[command].ckpt_path, cli.model, cli.checkpoint["state_dict"])
    if cli.run:
        read_manifest(cli.run)  # a damaged one would be noticed when there is something to add to it


def fit(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Train, or go on training, in a folder where no other process does."""
    trainer, loggers = cli.trainer, [each for each in cli.trainer.loggers if isinstance(each, RunLogger)]
    _check(cli)
    checks.monitors(trainer, model, cli.datamodule)
    if cli.checkpoint:
        resume.check_resumable(cli.run, cli.checkpoint, cli)
    folders = [] if cli.run else [Path(each.log_dir) for each in loggers]  # which claims them
    with ExitStack() as stack:
        for folder in [cli.run] if cli.run else folders:
            if trainer.is_global_zero:
                stack.enter_context(locked(folder, "start a new run without --resume"))
        if cli.run:
            resume.reopen_run(cli.run, trainer, kwargs["ckpt_path"], cli.checkpoint)
            if trainer.is_global_zero:
                remove_debris(cli.run)
        try:
            if cli.checkpoint and (reason := resume.reason_not_to_resume(trainer, cli.checkpoint)):
                resume.record_end(cli.run, trainer, cli.checkpoint, reason)
                print_rank_zero(f"{cli.run or kwargs['ckpt_path']}: nothing to resume ({reason})")
                return
            trainer.fit(model, **kwargs)
        finally:
            if not trainer.global_step:
                outputs.discard_unstarted(folders)
    print_rank_zero(outputs.summary(trainer, folder_of(trainer)))  # of which all processes take part


def _before_scoring(cli: "TrainCLI") -> None:
    """Say what is scored; a run's scalars stay those of its training, while the figures find its folder."""
    outputs.say_what_is_scored(cli)
    cli.trainer.loggers = [each for each in cli.trainer.loggers if not isinstance(each, RunLogger)]
    cli.config_init[cli.subcommand].figures.run = cli.run


def evaluate(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Print the metrics of the test or the validation images, and keep them in the run's manifest."""
    _check(cli)
    _before_scoring(cli)
    results = getattr(cli.trainer, str(cli.subcommand))(model, **kwargs | {"verbose": False})
    outputs.record_scores(cli, results)


def predict(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Write the predictions as a CSV."""
    _check(cli)
    path = outputs.predictions_path(cli)
    _before_scoring(cli)
    if type(model).predict_step is LightningModule.predict_step:  # which gives the labels to `forward`, too
        model.predict_step = partial(Classifier.predict_step, model)  # type: ignore[arg-type, method-assign]
    batches = cli.trainer.predict(model, **kwargs | {"return_predictions": True})
    if not cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        outputs.write_predictions(path, cli.datamodule, batches or [])
