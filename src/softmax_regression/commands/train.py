"""The command line `python train.py fit|validate|test|predict`, a LightningCLI whose mistakes are one line.

Exit codes: 0 done; 2, 3, 4, 5 see `errors`; 128 + n: interrupted by signal n, once `fit` has saved its step.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO

from softmax_regression.commands import arguments, checks, resume, running
from softmax_regression.commands.errors import guarded
from softmax_regression.commands.options import COMMANDS, STANDING, add_own, described
from softmax_regression.errors import InputError
from softmax_regression.runs import trust
from softmax_regression.runs.checkpoint import SafeCheckpointIO
from softmax_regression.runs.folder import find_run, open_checkpoint
from softmax_regression.runs.processes import choose_threads, started, together
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.record import RunRecord

# Said by Lightning and TensorBoard about each other's code; nothing that a user here can act on.
FOREIGN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # torchmetrics has summed over the ranks
    "Be aware that when using `ckpt_path`",  # a run of a Trainer of the user's own
    "Checkpoint directory .* exists and is not empty",  # it does when a run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r"torch\.distributed\.nn\.functional\.\w+ is deprecated",  # which Lightning gathers with
    "The `srun` command is available on your system",  # which does not mean that it is wanted
    "The number of training batches .* is smaller than the logging interval",  # nothing is logged on a step
    "Trainer already configured with model summary callbacks",
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # the images are in memory
    "`.*.configure_optimizers` will be overridden",  # as --optimizer asks for
)
CHATTER = (  # what Lightning says of itself as it starts
    "GPU available", "TPU available", "HPU available", "💡 Tip", "`Trainer.fit` stopped", "Seed set to",
    "LOCAL_RANK", "Restoring states", "Restored all states", "Loaded model weights", "`weights_only` was not",
    "Initializing distributed", "[rank:", "-----", "Using bfloat16", "Using 16bit", "SLURM auto-",
    "Loading `train_dataloader`",
)  # fmt: skip


class TrainCLI(LightningCLI):
    """LightningCLI for any model and data module, this project's by default, with run folders.

    Args:
        args: The command line, without the name of the program.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.run: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        common = {"exit_on_error": False, "allow_abbrev": False}
        default = {"default_config_files": [str(arguments.CONF / "default.yaml")], **common}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            parser_kwargs={**common, **{command: dict(default) for command in COMMANDS}},
            args=self._of_run(args),
        )

    def _of_run(self, args: Sequence[str]) -> list[str]:
        """Put the configuration of the run that a checkpoint belongs to before all other options."""
        split = next((i + 1 for i, arg in enumerate(args) if arg in COMMANDS), len(args))
        before, after = list(args[:split]), arguments.arranged(args[split:])
        resumed, named = (arguments.option(args, name) for name in ("resume", "ckpt_path"))
        if resumed and named:
            raise InputError(f"--resume {resumed} --ckpt_path {named}: name one checkpoint; drop one of them")
        if not (given := resumed or named) or not before:
            trust.enforce(arguments.named_by_user(args))
            return [*before, *arguments.with_own_defaults(args), *after]
        path, self.checkpoint = open_checkpoint(given, prefer="last" if before[-1] == "fit" else "best")
        self.run = find_run(path)
        trust.enforce(arguments.named_by_user(args), self.run or path)
        config = resume.config_of(self.run, path, self.checkpoint)
        if not Path(self.run or path, "config.yaml").is_file():
            arguments.check_text(config[-1], str(path))  # which the checkpoint brings along
        return [*before, *config, *after, "--ckpt_path", str(path)]

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed, and what else Lightning does not have."""
        add_own(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the standing callbacks; the order of the images comes from the one seed."""
        for group, callback in STANDING.items():
            parser.add_lightning_class_args(callback, group)
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what `main` was given, which need not be sys.argv; refuse what means nothing."""
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        checks.options(self.config.subcommand, config)
        if not self.checkpoint and (path := config.ckpt_path or config.resume):
            raise InputError(f"{path}: no run goes on because a configuration says so; use --resume")

    def _parse_ckpt_path(self) -> None:
        """Leave the flags alone: where they contradict the checkpoint, `resume.check` says so."""

    def before_instantiate_classes(self) -> None:
        """Choose the number of threads: a run that goes on has as many as before."""
        config = self.config[self.subcommand]
        known = self.checkpoint.get("run", {}).get("threads") if self.subcommand == "fit" else None
        devices = config.trainer.devices
        choose_threads(config.threads or known, devices if isinstance(devices, int) and devices > 0 else 1)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with safe checkpoints and the callbacks that every run has."""
        config, given = self.config[self.subcommand], self.config_init[self.subcommand].trainer
        recorded = config.clone()
        recorded.ckpt_path = recorded.resume = None  # or a new run with it would go on with this one
        text = self._parser(self.subcommand).dump(recorded, skip_none=False)
        callbacks: list[Callback] = [*_listed(given.callbacks), RunRecord(text, config.seed_everything)]
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(EpochProgress())
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs, **started())
        if not any(isinstance(plugin, CheckpointIO) for plugin in _listed(given.plugins)):
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    fit, predict = running.fit, running.predict
    validate = test = running.evaluate


def _listed(value: Any) -> list[Any]:
    """Return what an option holds that takes one, several or none."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be said that a user cannot act on: of Lightning's habits, or by TensorBoard's thread."""

    def told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    names, before = ("lightning.pytorch", "lightning.fabric"), threading.excepthook
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        for handler in handlers:
            handler.addFilter(told)
        with warnings.catch_warnings():
            for message in FOREIGN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        threading.excepthook = before
        for handler in handlers:
            handler.removeFilter(told)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user's mistake is one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
    # A default of Lightning's classes may be an Enum of strings, as Timer's is; write what it says.
    yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

    def command() -> None:
        arguments.check_paths(args)
        if {"-h", "--help", "--help-all"} & set(args) and set(COMMANDS) & set(args):
            print(described(args, "--help-all" in args).format_help())
            return
        with _quiet(), together():
            TrainCLI(args)

    return guarded(command, lambda: described(args, True).get_defaults().keys(branches=False))
