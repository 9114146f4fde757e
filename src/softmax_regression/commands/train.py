"""The command line `python train.py fit|validate|test|predict`, a LightningCLI whose mistakes are one line.

Exit codes: 0 done; 2, 3, 4, 5 see `errors`; 128 + n: interrupted by signal n, once `fit` has saved its step.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO

from softmax_regression.commands import arguments, checks, resume, running
from softmax_regression.commands.messages import run_command
from softmax_regression.commands.options import DEFAULT_CALLBACKS, add_own, help_parser, typed_command
from softmax_regression.errors import InputError
from softmax_regression.runs import trust
from softmax_regression.runs.checkpoint import SafeCheckpointIO
from softmax_regression.runs.folder import find_run, open_checkpoint
from softmax_regression.runs.processes import choose_threads, distributed_session, launched_devices
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.record import RunRecord


class TrainCLI(LightningCLI):
    """LightningCLI for any model and data module, this project's by default, with run folders.

    Args:
        args: The command line, without the name of the program.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.run: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.typed = typed_command(args)
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
            parser_kwargs={**common, **{command: dict(default) for command in self.subcommands()}},
            args=self._of_run(args),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that was typed; to set up the others as well takes longer than to read all flags."""
        known = super().subcommands()
        return {self.typed: known[self.typed]} if self.typed else known

    def _of_run(self, args: Sequence[str]) -> list[str]:
        """Put the configuration of the run that a checkpoint belongs to before all other options."""
        split = args.index(self.typed) + 1 if self.typed else len(args)
        before, after = list(args[:split]), arguments.sort_flags_after_files(args[split:])
        resumed, named = (arguments.option(args, name) for name in ("resume", "ckpt_path"))
        if resumed and named:
            raise InputError(f"--resume {resumed} --ckpt_path {named}: name one checkpoint; drop one of them")
        if not (given := resumed or named) or not before:
            trust.enforce(arguments.class_names_in(args))
            return [*before, *arguments.reset_class_defaults(args), *after]
        path, self.checkpoint = open_checkpoint(given, prefer="last" if before[-1] == "fit" else "best")
        self.run = find_run(path)
        trust.enforce(arguments.class_names_in(args), self.run or path)
        config = resume.config_of(self.run, path, self.checkpoint)
        if not Path(self.run or path, "config.yaml").is_file():
            arguments.check_text(config[-1], str(path))  # which the checkpoint brings along
        if before[-1] != "fit":  # one process scores, however many have trained, unless flags say otherwise
            config += ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
        return [*before, *config, *after, "--ckpt_path", str(path)]

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed, and what else Lightning does not have."""
        add_own(parser)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the standing callbacks; the order of the images comes from the one seed."""
        for group, callback in DEFAULT_CALLBACKS.items():
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
        """Leave the flags alone: where they contradict the checkpoint, `resume.check_resumable` says so."""

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
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs, **launched_devices())
        if not any(isinstance(plugin, CheckpointIO) for plugin in _listed(given.plugins)):
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    fit, predict = running.fit, running.predict
    validate = test = running.evaluate


def _listed(value: Any) -> list[Any]:
    """Return what an option holds that takes one, several or none."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user's mistake is one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
    # A default of Lightning's classes may be an Enum of strings, as Timer's is; write what it says.
    yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

    def command() -> None:
        arguments.check_paths(args)
        if {"-h", "--help", "--help-all"} & set(args) and typed_command(args):
            print(help_parser(args, "--help-all" in args).format_help())
            return
        with distributed_session():
            TrainCLI(args)

    return run_command(command, lambda: help_parser(args, True).get_defaults().keys(branches=False))
