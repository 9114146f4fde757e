"""How the commands of `train.py` run, once everything is made: methods of `train.TrainCLI`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule

from softmax_regression.commands import checks, outputs, resume
from softmax_regression.errors import InputError
from softmax_regression.files import locked, remove_debris
from softmax_regression.runs.folder import RunLogger

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI


def before_fit(cli: "TrainCLI") -> None:
    """Refuse what cannot work before anything is written."""
    checks.devices(cli.trainer, cli.datamodule)
    if hasattr(cli.datamodule, "loaded"):
        cli.datamodule.setup("fit")  # on every process: while they are not joined, none waits for another
    checks.monitors(cli.trainer, cli.model, cli.datamodule)
    if cli.checkpoint:
        checks.shapes(cli.config[cli.subcommand].ckpt_path, cli.model, cli.checkpoint)
        resume.check(cli.run, cli.checkpoint, cli)
    if not cli.run:
        for logger in cli.trainer.loggers:
            if isinstance(logger, RunLogger):
                _ = logger.version  # claims the folder


def fit(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Train, or go on training, in a folder where no other process does."""
    trainer = cli.trainer
    folders = (Path(each.log_dir) for each in trainer.loggers if isinstance(each, RunLogger))
    with ExitStack() as stack:
        if trainer.is_global_zero and (run := cli.run or next(folders, None)):
            stack.enter_context(locked(run, "start a new run without --resume"))
        if cli.run:
            resume.reopen(cli.run, trainer, kwargs["ckpt_path"], cli.checkpoint)
            if trainer.is_global_zero:
                remove_debris(cli.run)
        try:
            if cli.checkpoint and (reason := resume.end(trainer, cli.checkpoint)):
                resume.record_end(cli.run, trainer, cli.checkpoint, reason)
                outputs.say(trainer, f"{cli.run or kwargs['ckpt_path']}: nothing to resume ({reason})")
                return
            trainer.fit(model, **kwargs)
        finally:
            if not cli.run and not trainer.global_step:
                outputs.discard_unstarted(trainer)
    log_dir = trainer.log_dir if trainer.loggers else None  # all processes take part
    outputs.say(trainer, outputs.summary(trainer, Path(log_dir) if log_dir else None))


def before_scoring(cli: "TrainCLI") -> None:
    """Refuse what cannot work, and say what is scored on what."""
    command, config = cli.subcommand, cli.config[cli.subcommand]
    if not cli.checkpoint:
        raise InputError(f"{command}: needs a trained model; give --ckpt_path a run's folder, best or last")
    checks.devices(cli.trainer, cli.datamodule)
    cli.datamodule.setup(command)
    checks.shapes(config.ckpt_path, cli.model, cli.checkpoint)
    outputs.say_what_is_scored(cli)
    # A run's scalars are those of its training; the figures find its folder.
    cli.trainer.loggers = [each for each in cli.trainer.loggers if not isinstance(each, RunLogger)]
    cli.config_init[command].figures.run = cli.run


def score(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Score the test or the validation images; print the metrics and keep them in the run's manifest."""
    results = getattr(cli.trainer, cli.subcommand)(model, **kwargs | {"verbose": False})
    outputs.keep(cli.run, cli.subcommand, results, cli.trainer)


def predict(cli: "TrainCLI", model: LightningModule, **kwargs: Any) -> None:
    """Write the predictions as a CSV."""
    config, trainer = cli.config[cli.subcommand], cli.trainer
    path = outputs.predictions_path(cli.run, cli.datamodule, config.output, config.force)
    if trainer.world_size > 1:
        raise InputError(f"trainer.devices={trainer.world_size}: predict uses one; drop the option")
    batches = trainer.predict(model, **kwargs | {"return_predictions": True})
    if not trainer.fast_dev_run:
        outputs.write_predictions(path, cli.datamodule, batches or [])
