"""The LightningCLI of an experiment: any model, any data module, the Trainer, and the callbacks that every run has."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO

from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.experiment.allowed_classes import allow_classes
from softmax_regression.experiment.flags import (
    CONF,
    check_configuration,
    find_configurations,
    named_classes,
    named_texts,
    reset_class_defaults,
    without_flag,
)
from softmax_regression.figures.logger import FigureLogger
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping
from softmax_regression.runs.checkpoint import NOT_SERIALIZABLE, SafeCheckpointIO, about_run
from softmax_regression.runs.folder import RunLogger, SavedCheckpoint
from softmax_regression.runs.last_checkpoint import LastCheckpoint
from softmax_regression.runs.processes import choose_threads, launched_devices, print_rank_zero
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.record import RunRecord

# Callbacks that every run has; each is a group of flags, and `trainer.callbacks` holds the user's own.
DEFAULT_CALLBACKS: dict[str, type[Callback]] = {
    "engine": Engine,
    "early_stopping": EarlyStopping,
    "best_checkpoint": BestCheckpoint,
    "last_checkpoint": LastCheckpoint,
    "figures": FigureLogger,
}
ONE_PROCESS = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


class ExperimentCLI(LightningCLI):
    """LightningCLI for any model and data module, this project's by default.

    A subclass has a method for each command that it knows, as LightningCLI calls them.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        flags: What is typed behind the command.
        checkpoint: The checkpoint that the command starts from; the configuration of its run comes before the flags.

    Attributes:
        options: The parsed options of the command.
    """

    def __init__(self, command: str, flags: Sequence[str], checkpoint: SavedCheckpoint | None = None) -> None:
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
        # A default of Lightning's classes may be an Enum of strings, as Timer's is; write what it says.
        yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)
        self.command = command
        self.checkpoint = checkpoint
        self.flags = find_configurations(flags)
        strict = {"exit_on_error": False, "allow_abbrev": False}
        with_defaults = {"default_config_files": [str(CONF / "default.yaml")], **strict}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={**strict, command: with_defaults},
            args=[command, *self._flags_of_run(), *without_flag(self.flags, "ckpt_path")],
        )

    def _flags_of_run(self) -> list[str]:
        """Return flags that repeat the configuration of the checkpoint's run; classes start anew without one."""
        configuration = _configuration_of(self.checkpoint) if self.checkpoint else None
        if self.checkpoint is None or configuration is None:
            self._check_named()
            allow_classes(named_texts(self.flags))
            return reset_class_defaults(self.flags)
        flags = ["--config", configuration]
        allow_classes(named_texts([*self.flags, *flags]), _came_along_in(self.checkpoint))
        if self.command != "fit":  # one process scores, however many have trained, unless flags say otherwise
            flags += ONE_PROCESS
        return flags

    def _check_named(self) -> None:
        """Refuse a checkpoint of a plain Trainer, unless it is to be scored and its model is named."""
        named = "model" in named_classes(self.flags)
        if self.checkpoint and (self.command == "fit" or not named):
            remedy = "give a run's folder with its config.yaml, or name its --model and --data for test or predict"
            raise InputError(f"{self.checkpoint.path}: does not say what was trained; {remedy}")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the chosen command alone: setting up the parsers of all four takes longer than parsing."""
        return {self.command: super().subcommands()[self.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning does not have."""
        add_own_arguments(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has."""
        for group, callback in DEFAULT_CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags, which need not be those of sys.argv."""
        self.config = parser.parse_args(args)
        self.options = self.config[self.command]
        named = self.options.ckpt_path or (self.options.resume if self.checkpoint is None else None)
        if named:
            raise InputError(f"{named}: no run goes on because a configuration says so; use --resume")

    def before_instantiate_classes(self) -> None:
        """Choose the number of threads: a run that goes on has as many as before."""
        if self.command != "fit":  # what a ModelCheckpoint of the user's own says where there is no logger
            warnings.filterwarnings("ignore", "The dirpath has changed")
        threads = self.options.threads
        if threads is None and self.command == "fit" and self.checkpoint:
            threads = about_run(self.checkpoint.content).get("threads")
        devices = self.options.trainer.devices
        choose_threads(threads, devices if isinstance(devices, int) and devices > 0 else 1)

    def recorded_configuration(self) -> str:
        """Return the whole configuration as YAML, as a new run takes it."""
        text = self.parser.dump(self.config, skip_none=False)
        config = _without_unserializable(yaml.safe_load(text)[self.command])
        config["ckpt_path"] = config["resume"] = None
        return yaml.safe_dump(config, sort_keys=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with safe checkpoints, the record of the run and the callbacks that every run has."""
        config = self.config_init[self.command]
        trainer = config.trainer
        if trainer.barebones:
            _forget_defaults_for_barebones(trainer)
        callbacks = as_list(trainer.callbacks)
        for group, kind in DEFAULT_CALLBACKS.items():
            if self._wants(kind, callbacks):
                callbacks.append(config[group])
        if not trainer.barebones:
            callbacks.append(RunRecord(self.recorded_configuration(), self.options.seed_everything))
            if trainer.enable_progress_bar is not False and not _has(ProgressBar, callbacks):
                callbacks.append(EpochProgress())
        made = Trainer(**{**trainer, "callbacks": callbacks, **kwargs, **launched_devices()})
        if not _has(CheckpointIO, as_list(trainer.plugins)):
            made.strategy.checkpoint_io = SafeCheckpointIO()
        return made

    def _wants(self, kind: type[Callback], own: Sequence[Callback]) -> bool:
        """Whether a default callback is used: not what the Trainer switches off, nor what the user has put instead."""
        trainer = self.options.trainer
        if trainer.barebones:
            return kind is Engine
        if issubclass(kind, Checkpoint):
            return trainer.enable_checkpointing is not False
        if kind is EarlyStopping and _has(LightningEarlyStopping, own):
            typed = [flag for flag in self.flags if flag.startswith("--early_stopping")]
            if not typed and self.command == "fit":
                print_rank_zero("early stopping: as your own callback says; --early_stopping... is not used")
            return bool(typed)
        return True


def add_own_arguments(parser: ArgumentParser) -> None:
    """Add the options that Lightning does not have."""
    text = "Seed of the initial weights, the order of the images and the dropped pixels."
    parser.add_argument("--seed_everything", type=int, default=0, help=text)
    text = "CPU threads; the default is one, or what OMP_NUM_THREADS says, see runs/processes.py."
    parser.add_argument("--threads", type=int, help=text)
    parser.add_argument("--resume", help="Go on with the run in this folder, exactly where it stopped.")
    parser.add_argument("--output", help="Where `predict` writes its CSV; the default is in the run's folder.")
    parser.add_argument("--force", action="store_true", help="Let --output replace a file of somebody else's.")


def _without_unserializable(config: Any) -> Any:
    """Return a configuration without the defaults that YAML cannot hold; a class has them all the same."""
    if isinstance(config, list):
        return [_without_unserializable(value) for value in config]
    if not isinstance(config, dict):
        return config
    kept = {}
    for name, value in config.items():
        text = str(value).removeprefix(NOT_SERIALIZABLE)
        if text == str(value):
            kept[name] = _without_unserializable(value)
        elif text.isidentifier():  # a name, for an argument that takes a function or a name
            kept[name] = text
    return kept


def as_list(value: Any) -> list[Any]:
    """Return what an option holds that takes one, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _has(kind: type, objects: Sequence[Any]) -> bool:
    return any(isinstance(each, kind) for each in objects)


def _came_along_in(checkpoint: SavedCheckpoint) -> Path | None:
    """Return the folder whose modules came along with a checkpoint; not that where the command is typed."""
    folder = checkpoint.run or checkpoint.path.parent
    return None if folder.resolve() == Path.cwd() and not checkpoint.run else folder


def _configuration_of(checkpoint: SavedCheckpoint) -> str | None:
    """Return the file of a run's configuration, or else the text of it in the checkpoint; a plain Trainer has none."""
    if checkpoint.run:
        path = checkpoint.run / "config.yaml"
        if path.is_file():
            check_configuration(path.read_bytes(), str(path))
            return str(path)
    text: str | None = about_run(checkpoint.content).get("config")
    if text:
        check_configuration(text, str(checkpoint.path))
    return text


def _forget_defaults_for_barebones(trainer: Any) -> None:
    """Take back what conf/default.yaml sets and Trainer(barebones=True) does not take beside it."""
    if isinstance(trainer.logger, RunLogger):
        trainer.logger = None
    if trainer.num_sanity_val_steps == 0:
        trainer.num_sanity_val_steps = None
    if trainer.enable_model_summary is False:
        trainer.enable_model_summary = None
