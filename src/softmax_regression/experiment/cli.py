"""The LightningCLI of an experiment: any model, any data module, the Trainer, and the callbacks that every run has."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
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
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping, as_list
from softmax_regression.runs.checkpoint import NOT_SERIALIZABLE, SafeCheckpointIO, about_run
from softmax_regression.runs.folder import RunLogger, SavedCheckpoint
from softmax_regression.runs.last_checkpoint import LastCheckpoint
from softmax_regression.runs.processes import choose_threads, launched_devices, print_rank_zero
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.record import RunRecord
from softmax_regression.runs.settings import FINDERS

# The callbacks of every run, by their group of flags; `trainer.callbacks` is for the user's own.
DEFAULT_CALLBACKS: dict[str, type[Callback]] = {
    Engine.flag_group: Engine,
    EarlyStopping.flag_group: EarlyStopping,
    BestCheckpoint.flag_group: BestCheckpoint,
    LastCheckpoint.flag_group: LastCheckpoint,
    FigureLogger.flag_group: FigureLogger,
}
ONE_PROCESS = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


class ExperimentCLI(LightningCLI):
    """LightningCLI for any model and data module, this project's by default.

    LightningCLI calls the method that is named like the command; subclasses define these methods.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        flags: The words after the command.
        checkpoint: The checkpoint to start from; the flags change the configuration of its run.

    Attributes:
        options: The parsed options of the command.
        model_callbacks: The callbacks that the model itself configures.
    """

    def __init__(self, command: str, flags: Sequence[str], checkpoint: SavedCheckpoint | None = None) -> None:
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
        # Some classes of Lightning, such as Timer, have a member of a string Enum as a default; write its string.
        yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)
        register_type(torch.device, fail_already_registered=False)  # or it could be written, but not read again
        self.command = command
        self.checkpoint = checkpoint
        self.flags = find_configurations(flags)
        self.model_callbacks: list[Callback] = []
        strict = {"exit_on_error": False, "allow_abbrev": False}
        with_defaults = {"default_config_files": [str(CONF / "default.yaml")], **strict}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            load_from_checkpoint_support=False,  # RunRecord adds it; `hparams` are what they are without a CLI
            seed_everything_default=0,
            parser_kwargs={**strict, command: with_defaults},
            args=[command, *self._flags_of_run(), *without_flag(self.flags, "ckpt_path")],
        )

    def _flags_of_run(self) -> list[str]:
        """Return flags with the configuration of the checkpoint's run, and allow the classes that all of them name.

        Without a configuration the flags are those of `reset_class_defaults`.
        """
        configuration = _configuration_of(self.checkpoint) if self.checkpoint else None
        if self.checkpoint and configuration:
            flags = ["--config", configuration]
            untrusted = self.checkpoint.run  # its modules may have been copied together with the checkpoint
            beside = self.checkpoint.path.parent
            if untrusted is None and beside.resolve() != Path.cwd():
                untrusted = beside
            allow_classes(named_texts([*self.flags, *flags]), untrusted)
        else:
            if self.checkpoint and (self.command == "fit" or "model" not in named_classes(self.flags)):
                remedy = "give a run's folder with its config.yaml, or name its --model and --data for test or predict"
                raise InputError(f"{self.checkpoint.path}: does not say what was trained; {remedy}")
            flags = reset_class_defaults(self.flags)
            allow_classes(named_texts(self.flags))
        if self.checkpoint and self.command != "fit":  # one process scores, unless flags say otherwise
            flags += ONE_PROCESS
        return flags

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the chosen command, as making the parsers of all four takes longer than parsing."""
        return {self.command: super().subcommands()[self.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning does not have, in the place of its own `--seed_everything`."""
        add_own_arguments(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups of flags of the default callbacks."""
        for group, callback in DEFAULT_CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the flags given to `__init__`; Lightning's method warns if sys.argv has others."""
        self.config = parser.parse_args(args)
        self.options = self.config[self.command]
        named = self.options.ckpt_path or (self.options.resume if self.checkpoint is None else None)
        if named:
            raise InputError(f"{named}: a configuration resumes no run; use --resume")

    def before_instantiate_classes(self) -> None:
        """Set the number of threads; a resumed run has as many as before."""
        if self.command != "fit":  # a ModelCheckpoint of the user's own says this if there is no logger
            warnings.filterwarnings("ignore", "The dirpath has changed")
        threads = self.options.threads
        if threads is None and self.command == "fit" and self.checkpoint:
            threads = about_run(self.checkpoint.content).get("threads")
        devices = self.options.trainer.devices
        choose_threads(threads, devices if isinstance(devices, int) and devices > 0 else 1)

    def recorded_configuration(self) -> dict[str, Any]:
        """Return the whole configuration as plain data, for `--config`."""
        text = self.parser.dump(_with_absolute_paths(self.config), skip_none=False)
        config: dict[str, Any] = _without_unserializable(yaml.safe_load(text)[self.command])
        config["ckpt_path"] = config["resume"] = None
        return config

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with the default callbacks, the record of the run, and SafeCheckpointIO."""
        config = self.config_init[self.command]
        options = config.trainer
        if options.barebones and isinstance(options.logger, RunLogger):
            options.logger = None  # the default one; Lightning refuses any other in a barebones run
        callbacks = as_list(options.callbacks)
        with suppress(Exception):  # of a module that asks its Trainer, which is not there yet
            self.model_callbacks = as_list(self.model.configure_callbacks())
        own = [*callbacks, *self.model_callbacks]
        groups = [group for group, kind in DEFAULT_CALLBACKS.items() if self._is_on(kind)]
        if EarlyStopping.flag_group in groups and self._has_own_early_stopping(own):
            groups.remove(EarlyStopping.flag_group)
            self.options.early_stopping.patience = 0  # in the configuration that is recorded
            if self.command == "fit":
                print_rank_zero("early stopping: as your own callback says; --early_stopping... is not used")
        callbacks += [config[group] for group in groups]
        if not options.barebones:
            callbacks.append(RunRecord(self.recorded_configuration()))
            if options.enable_progress_bar is not False and not _has(ProgressBar, own):
                callbacks.append(EpochProgress())
        trainer = Trainer(**{**options, "callbacks": callbacks, **kwargs, **launched_devices()})
        if not _has(CheckpointIO, as_list(options.plugins)):
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if self.checkpoint:  # the run keeps what they found at its start
            trainer.callbacks[:] = [each for each in trainer.callbacks if not isinstance(each, FINDERS)]  # type: ignore[attr-defined]
        return trainer

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Let the model have the optimizer of `--optimizer`, if it is given.

        LightningCLI makes it at once, without the weights that the model makes in `setup` or `configure_model`.
        """
        if self.options.get("optimizer") is None:
            return
        add = super()._add_configure_optimizers_method_to_model

        def configure_optimizers(model: LightningModule) -> Any:
            add(subcommand)  # it replaces this method
            return model.configure_optimizers()

        self.model.configure_optimizers = MethodType(configure_optimizers, self.model)

    def _is_on(self, kind: type[Callback]) -> bool:
        """Return whether the options of the Trainer allow a default callback."""
        options = self.options.trainer
        if options.barebones:
            return kind is Engine
        return options.enable_checkpointing is not False or not issubclass(kind, Checkpoint)

    def _has_own_early_stopping(self, own: Sequence[Callback]) -> bool:
        """Return whether one of the user's callbacks stops the run, and neither flags nor the run ask for ours too."""
        typed = any(flag.startswith("--early_stopping") for flag in self.flags)
        used_before = self.checkpoint is not None and self.options.early_stopping.patience > 0
        return _has(LightningEarlyStopping, own) and not typed and not used_before


def add_own_arguments(parser: ArgumentParser, command: str | None = None) -> None:
    """Add the options of this project to a parser: those that a command takes, or those of all commands."""
    text = "Seed of the initial weights, the order of the images and the dropped pixels."
    parser.add_argument("--seed_everything", type=int, default=0, help=text)
    text = "CPU threads; the default is one, or what OMP_NUM_THREADS says, see docs/speed.md."
    parser.add_argument("--threads", type=int, help=text)
    if command in (None, "fit"):
        parser.add_argument("--resume", help="Resume the run in this folder, exactly where it stopped.")
    if command in (None, "predict"):
        parser.add_argument("--output", help="Where `predict` writes its CSV; the default is in the run's folder.")
        text = "Let --output replace a file not written by `predict`."
        parser.add_argument("--force", action="store_true", help=text)


def _with_absolute_paths(value: Any) -> Any:
    """Return parsed options with absolute paths in place of jsonargparse's own, such as Path_fr.

    In a configuration, jsonargparse takes these relative to its folder, which is another one for that of the run.
    """
    if isinstance(value, os.PathLike) and not isinstance(value, Path):
        kind: Any = type(value)
        return kind(os.fspath(value))
    if isinstance(value, list):
        return [_with_absolute_paths(each) for each in value]
    if not isinstance(value, Namespace):
        return value
    options = copy(value)
    for name, each in vars(value).items():
        options[name] = _with_absolute_paths(each)
    return options


def _without_unserializable(config: Any) -> Any:
    """Return a configuration without the values that YAML cannot hold; they are defaults of the classes."""
    if isinstance(config, list):
        return [_without_unserializable(value) for value in config]
    if not isinstance(config, dict):
        return config
    kept = {}
    for name, value in config.items():
        text = str(value).removeprefix(NOT_SERIALIZABLE)
        if text == str(value):
            kept[name] = _without_unserializable(value)
        elif text.isidentifier():  # a string for an argument that takes a function or a string
            kept[name] = text
    return kept


def _has(kind: type, objects: Sequence[Any]) -> bool:
    return any(isinstance(each, kind) for each in objects)


def _configuration_of(checkpoint: SavedCheckpoint) -> str | None:
    """Return the path of a run's configuration, or its text in the checkpoint; None if a plain Trainer saved it."""
    if checkpoint.run:
        path = checkpoint.run / "config.yaml"
        if path.is_file():
            check_configuration(path.read_bytes(), str(path))
            return str(path)
    text: str | None = about_run(checkpoint.content).get("config")
    if text:
        check_configuration(text, str(checkpoint.path))
    return text
