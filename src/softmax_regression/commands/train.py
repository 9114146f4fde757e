"""The command line `python train.py fit|validate|test|predict`: a LightningCLI whose runs have folders.

Exit codes: 0 done; 2, 3, 4, 5 see `errors`; 128 + n: interrupted by signal n, once `fit` has saved its step.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from softmax_regression.classifier import Classifier
from softmax_regression.commands import checks, outputs, predictions, resume
from softmax_regression.commands.help import COMMANDS, command_help, known_options, usage
from softmax_regression.commands.quiet import LOGGING_INTERVAL
from softmax_regression.commands.running import run_command
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.experiment.cli import ExperimentCLI
from softmax_regression.experiment.flags import find_command, flag_value
from softmax_regression.experiment.opening import warn_of_other_data
from softmax_regression.files import locked, remove_temporary_files, write_csv
from softmax_regression.runs.callbacks import folder_of
from softmax_regression.runs.folder import RunLogger, SavedCheckpoint, open_checkpoint
from softmax_regression.runs.processes import distributed_session, print_rank_zero
from softmax_regression.runs.record import read_manifest
from softmax_regression.runs.rows import keep_logged_rows


def _add_logger(logger: Logger, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
    """Give a Trainer a logger; as the hook `setup` of a callback."""
    trainer.loggers.append(logger)


class TrainCLI(ExperimentCLI):
    """The commands of `train.py`, each a method that LightningCLI calls with the model it has made."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags, and check them before model, data and Trainer are made."""
        super().parse_arguments(parser, args)
        checks.check_options(self.command, self.options)

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train a new run or a resumed one, in a folder that is locked for this process."""
        trainer = self.trainer
        trainer.callbacks += self.model_callbacks  # type: ignore[attr-defined] # until all are checked
        checks.check_devices(trainer, self.datamodule)
        checks.check_callbacks(trainer)
        self._check_data()
        checks.check_monitors(trainer, model, self.datamodule)
        if not isinstance(model, Classifier) or checks.may_log_more(trainer, model):
            warnings.filterwarnings("default", LOGGING_INTERVAL)  # a Classifier logs nothing on a step
        run = None
        if self.checkpoint:
            run = self.checkpoint.run
            kwargs["ckpt_path"] = str(self.checkpoint.path)
            resume.check_resumable(self.checkpoint, trainer, model, self.datamodule, self.flags)
        if trainer.world_size > 1 and not isinstance(self.datamodule, FashionMNISTDataModule):
            name = type(self.datamodule).__name__
            print_rank_zero(f"{name}: each of {trainer.world_size} processes takes minibatches of its batch size")
        folders = [run] if run else []
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and not run:
                folders.append(Path(logger.log_dir))  # this makes the folder
        with ExitStack() as stack:
            if trainer.is_global_zero:
                for folder in folders:
                    stack.enter_context(locked(folder, "start a new run without --resume"))
                    remove_temporary_files(folder)
            try:
                self._fit_in(run, model, kwargs)
            finally:
                if not run and not trainer.global_step:
                    outputs.discard_unstarted(folders)

    def _fit_in(self, run: Path | None, model: LightningModule, kwargs: dict[str, Any]) -> None:
        """Train, unless nothing is left to train; then print the summary."""
        trainer, checkpoint = self.trainer, self.checkpoint
        if checkpoint:
            reason = resume.reason_not_to_resume(trainer, checkpoint.content)
            if reason:
                resume.record_end(run, trainer, checkpoint.content, reason)
                print_rank_zero(f"{run or checkpoint.path}: nothing to resume ({reason})")
                return
            if run:
                resume.reopen_run(run, trainer, checkpoint)
        for callback in self.model_callbacks:  # Lightning asks the model for new ones
            trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        trainer.fit(model, **kwargs)
        print_rank_zero(outputs.summary(trainer, folder_of(trainer)))  # all processes must call `folder_of`

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Print the metrics of the validation data, and keep them in the run's manifest."""
        self._evaluate(self.trainer.validate, model, kwargs)

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Print the metrics of the test data, and keep them in the run's manifest."""
        self._evaluate(self.trainer.test, model, kwargs)

    def _evaluate(self, evaluate: Callable[..., Any], model: LightningModule, kwargs: dict[str, Any]) -> None:
        checkpoint = self._prepare_scoring()
        self._announce(checkpoint)
        kwargs |= {"ckpt_path": str(checkpoint.path), "verbose": False}
        scores = evaluate(model, **kwargs)
        outputs.record_scores(checkpoint.run, self.trainer, self.command, scores)

    def predict(self, model: LightningModule, **kwargs: Any) -> None:
        """Write the predictions as a CSV."""
        checkpoint = self._prepare_scoring()
        trainer = self.trainer
        if trainer.world_size > 1:
            raise InputError(f"{trainer.world_size} processes: predict uses one; drop --trainer.devices, or torchrun")
        path = predictions.choose_path(checkpoint.run, self.options.output, self.options.force, self.datamodule)
        self._announce(checkpoint)
        predictions.forward_inputs_only(model)
        predictions.allow_positional_arguments(self.datamodule)
        table = predictions.PredictionTable(self.datamodule)
        trainer.callbacks.append(table)  # type: ignore[attr-defined]
        kwargs |= {"ckpt_path": str(checkpoint.path), "return_predictions": False}
        trainer.predict(model, **kwargs)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not table.rows:
            print("predictions: predict_step returned nothing, so no table is written")
            return
        write_csv(path, table.rows)
        print(f"predictions: {path}")

    def _prepare_scoring(self) -> SavedCheckpoint:
        """Return the checkpoint to score, after checks of devices and data."""
        if self.checkpoint is None:
            raise InputError(f"{self.command}: needs a trained model; give --ckpt_path a run's folder, best or last")
        checks.check_devices(self.trainer, self.datamodule)
        self._check_data()
        return self.checkpoint

    def _announce(self, checkpoint: SavedCheckpoint) -> None:
        """Print run, checkpoint and data; let figures, but no scalars, be added to the events of the run."""
        print_rank_zero(f"{self.command}: {outputs.what_is_scored(checkpoint, self.datamodule)}")
        warn_of_other_data(checkpoint.content, self.datamodule)
        for logger in [each for each in self.trainer.loggers if isinstance(each, RunLogger)]:
            self.trainer.loggers.remove(logger)
            if checkpoint.run:  # it comes back after Lightning has made the files of the others: it may need none
                logger.reopen_for_scoring(checkpoint.run)
                come_back = LambdaCallback(setup=partial(_add_logger, logger))
                self.trainer.callbacks.insert(0, come_back)  # type: ignore[attr-defined]
        if self.trainer.is_global_zero:
            keep_logged_rows(self.trainer.loggers, repeat(None))
        self.config_init[self.command].figures.run = checkpoint.run

    def _check_data(self) -> None:
        """Refuse data that do not fit the model, before the processes of a run wait for one another."""
        checks.check_data_named(self.checkpoint, self.model, self.flags)
        data = self.datamodule
        if isinstance(data, FashionMNISTDataModule):  # the Trainer sets up any other
            if data.images and self.command != "predict":
                raise InputError(f"--data.images {data.images}: goes with predict; drop it")
            data.setup(self.command)
        checks.check_classes(self.model, data, self.flags)
        if self.checkpoint:
            checks.check_shapes(self.checkpoint, self.model)
            if self.checkpoint.run:
                read_manifest(self.checkpoint.run)  # otherwise a damaged one would be noticed only at the end


def run(args: Sequence[str]) -> None:
    """Run a command line of `train.py`."""
    if {"-h", "--help", "--help-all"} & set(args):
        print(command_help(args))
        return
    command = find_command(args, COMMANDS, f"\nusage: {usage()}")
    flags = args[1:]
    with distributed_session():
        TrainCLI(command, flags, _checkpoint(command, flags))


def _checkpoint(command: str, flags: Sequence[str]) -> SavedCheckpoint | None:
    """Return the checkpoint that the flags name, if they name one; of a run, `last` for `fit`, `best` otherwise."""
    resumed = flag_value(flags, "resume")
    named = flag_value(flags, "ckpt_path")
    if resumed and named:
        raise InputError(f"--resume {resumed} --ckpt_path {named}: name one checkpoint; drop one of them")
    which = resumed or named
    if which is None:
        return None
    return open_checkpoint(which, prefer="last" if command == "fit" else "best")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user's mistake is a line on stderr."""
    words = sys.argv[1:] if args is None else list(args)
    return run_command(partial(run, words), partial(known_options, words))
