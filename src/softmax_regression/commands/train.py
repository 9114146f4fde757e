"""The command line `python train.py fit|validate|test|predict`, a LightningCLI whose mistakes are one line.

Exit codes:
    0: Done.
    2: Bad input: flags, configuration, data or checkpoint.
    3: The run diverged; no checkpoint holds a weight that is not finite.
    4: A file could not be saved or read; the last checkpoint that was saved is intact.
    5: Another process of a run on several has ended, or never came.
    129, 130, 143: Interrupted by SIGHUP, SIGINT or SIGTERM; `fit` has saved the step that it came to.
        (138: by SLURM's SIGUSR1, and put back in the queue.)
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from softmax_regression.commands import checks, outputs, resume
from softmax_regression.commands.arguments import CONF, arranged, check_files, named_by_user, option, with_own_defaults
from softmax_regression.commands.errors import guarded
from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.figures.logger import FigureLogger
from softmax_regression.files import locked, remove_debris
from softmax_regression.runs import threads, trust
from softmax_regression.runs.checkpoint import SafeCheckpointIO
from softmax_regression.runs.folder import RunLogger, find_run, open_checkpoint
from softmax_regression.runs.processes import started, together
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.record import RunRecord
from softmax_regression.runs.stopping import BestCheckpoint, EarlyStopping, LastCheckpoint

COMMANDS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation images.",
    "test": "Score a trained model on the test images.",
    "predict": "Write a CSV with the predictions for the test images, or for photos.",
}
# Callbacks that every run has; each is a group of flags, and `trainer.callbacks` holds the user's own.
STANDING: dict[str, type[Callback]] = {
    "engine": Engine, "early_stopping": EarlyStopping, "best_checkpoint": BestCheckpoint,
    "last_checkpoint": LastCheckpoint, "figures": FigureLogger,
}  # fmt: skip

# Said by Lightning and TensorBoard about each other's code; nothing that a user here can act on.
FOREIGN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # torchmetrics has summed over the ranks
    "Checkpoint directory .* exists and is not empty",  # it does when a run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    "The `srun` command is available on your system",  # which does not mean that it is wanted
    "The number of training batches .* is smaller than the logging interval",  # nothing is logged on a step
    "Trainer already configured with model summary callbacks",
    "The '(train|val|test|predict)_dataloader' does not have many workers",  # the images are in memory
)
CHATTER = (  # what Lightning says of itself as it starts
    "GPU available", "TPU available", "HPU available", "💡 Tip", "`Trainer.fit` stopped", "Seed set to",
    "LOCAL_RANK", "Restoring states", "Restored all states", "Loaded model weights", "`weights_only` was not",
    "Initializing distributed", "[rank:", "-----",
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
        default = {"default_config_files": [str(CONF / "default.yaml")], **common}
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            load_from_checkpoint_support=False,
            parser_kwargs={**common, **{command: dict(default) for command in COMMANDS}},
            args=self._of_run(arranged(args)),
        )

    def _of_run(self, args: list[str]) -> list[str]:
        """Put the configuration of the run that a checkpoint belongs to before all other options."""
        resumed, named = option(args, "resume"), option(args, "ckpt_path")
        if resumed is not None and named is not None:
            raise InputError(
                f"--resume {resumed} --ckpt_path {named}: name one checkpoint; drop one of the flags"
            )
        given = named if resumed is None else resumed
        check_files(args)
        if given is not None and args and args[0] in COMMANDS:
            if not given:
                raise InputError(
                    "--resume '': names no run; give the folder of one, such as logs/softmax/RUN"
                )
            path, self.checkpoint = open_checkpoint(given, prefer="last" if args[0] == "fit" else "best")
            self.run = find_run(path)
            config = resume.config_of(self.run, path, self.checkpoint)
            trust.enforce(named_by_user(args))
            return [args[0], *config, *args[1:], "--ckpt_path", str(path)]
        trust.enforce(named_by_user(args))
        return [*args[:1], *with_own_defaults(args), *args[1:]]

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed."""
        text = "Seed of the initial weights, the order of the images and the dropped pixels."
        parser.add_argument("--seed_everything", type=int, default=0, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what this command line has beside Lightning's own options."""
        for group, callback in STANDING.items():
            parser.add_lightning_class_args(callback, group)
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.add_argument("--resume", help="Go on with the run in this folder, exactly where it stopped.")
        parser.add_argument(
            "--output", help="Where `predict` writes its CSV; the default is in the run's folder."
        )
        parser.add_argument(
            "--force", action="store_true", help="Let --output replace a file of somebody else's."
        )
        text = "CPU threads; the default is one, or what OMP_NUM_THREADS says, see runs/threads.py."
        parser.add_argument("--threads", type=int, help=text)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line that `main` was given, which need not be sys.argv."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leave the flags alone: where they contradict the checkpoint, `resume.check` says so."""

    def before_instantiate_classes(self) -> None:
        """Refuse what Lightning would take for something else, and choose the number of threads."""
        config = self.config[self.subcommand]
        checks.options(self.subcommand, config)
        if not self.checkpoint and (path := config.ckpt_path or config.resume):
            raise InputError(f"{path}: no run goes on because a configuration says so; use --resume")
        known = self.checkpoint.get("run", {}).get("threads") if self.subcommand == "fit" else None
        devices = config.trainer.devices
        threads.choose(config.threads or known, devices if isinstance(devices, int) and devices > 0 else 1)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with safe checkpoints and the callbacks that every run has."""
        config, given = self.config[self.subcommand], self.config_init[self.subcommand].trainer
        several = isinstance(given.callbacks, list)
        callbacks: list[Callback] = [*(given.callbacks if several else filter(None, [given.callbacks]))]
        recorded = config.clone()
        recorded.ckpt_path = recorded.resume = None  # or a new run with it would go on with this one
        text = self._parser(self.subcommand).dump(recorded, skip_none=False)
        callbacks.append(RunRecord(text, config.seed_everything))
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(EpochProgress())
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs, **started())
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the Trainer refuses its options: {' '.join(str(error).split())}") from error
        plugins = given.plugins if isinstance(given.plugins, list) else [given.plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Refuse what cannot work before anything is written."""
        checks.devices(self.trainer, self.datamodule)
        if hasattr(self.datamodule, "loaded"):
            self.datamodule.setup(
                "fit"
            )  # on every process: while they are not joined, none waits for another
        checks.monitors(self.trainer, self.model, self.datamodule)
        if self.checkpoint:
            path = self._get(self.config, "ckpt_path")
            checks.shapes(path, self.model, self.checkpoint)
            resume.check(self.run, self.checkpoint, self)
        if not self.run:
            for logger in self.trainer.loggers:
                if isinstance(logger, RunLogger):
                    _ = logger.version  # claims the folder

    before_validate = before_test = before_predict = lambda self: self._before_scoring()

    def _before_scoring(self) -> None:
        if not self.checkpoint:
            raise InputError(
                f"{self.subcommand}: needs a trained model; give --ckpt_path a run's folder, `best` or `last`"
            )
        checks.devices(self.trainer, self.datamodule)
        self.datamodule.setup(self.subcommand)
        path = self._get(self.config, "ckpt_path")
        checks.shapes(path, self.model, self.checkpoint)
        outputs.say_what_is_scored(self.subcommand, path, self.datamodule, self.checkpoint)
        # A run's scalars are those of its training; the figures find its folder.
        self.trainer.loggers = [each for each in self.trainer.loggers if not isinstance(each, RunLogger)]
        self._get(self.config_init, "figures").run = self.run

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, or go on training, in a folder where no other process does."""
        trainer = self.trainer
        folders = (Path(each.log_dir) for each in trainer.loggers if isinstance(each, RunLogger))
        with ExitStack() as stack:
            if trainer.is_global_zero and (run := self.run or next(folders, None)):
                stack.enter_context(locked(run, "start a new run without --resume"))
            if self.run:
                resume.reopen(self.run, trainer, self._get(self.config, "ckpt_path"), self.checkpoint)
                if trainer.is_global_zero:
                    remove_debris(self.run)
            if self.checkpoint and (reason := resume.end(trainer, self.checkpoint)):
                self._discard_unstarted()
                resume.record_end(self.run, trainer, self.checkpoint, reason)
                rank_zero_only(print)(f"{self.run or kwargs['ckpt_path']}: nothing to resume ({reason})")
                return
            try:
                trainer.fit(model, **kwargs)
            except BaseException:
                self._discard_unstarted()
                raise
        log_dir = trainer.log_dir if trainer.loggers else None  # all processes take part
        if trainer.is_global_zero:
            print(outputs.summary(trainer, Path(log_dir) if log_dir else None))

    def _discard_unstarted(self) -> None:
        if not self.run and not self.trainer.global_step:
            outputs.discard_unstarted(self.trainer)

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Score the test images; print the metrics and keep them in the run's manifest."""
        results = self.trainer.test(model, **kwargs | {"verbose": False})
        outputs.keep(self.run, "test", results, self.trainer)

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Score the validation images; print the metrics and keep them in the run's manifest."""
        results = self.trainer.validate(model, **kwargs | {"verbose": False})
        outputs.keep(self.run, "validate", results, self.trainer)

    def predict(self, model: LightningModule, **kwargs: Any) -> None:
        """Write the predictions as a CSV."""
        config = self.config[self.subcommand]
        path = outputs.predictions_path(self.run, self.datamodule, config.output, config.force)
        if self.trainer.world_size > 1:
            raise InputError(f"trainer.devices={self.trainer.world_size}: predict uses one; drop the option")
        kwargs.pop("return_predictions", None)
        batches = self.trainer.predict(model, return_predictions=True, **kwargs)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            outputs.write_predictions(path, self.datamodule, batches or [])


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be said that a user cannot act on: of Lightning's habits, or by TensorBoard's thread."""

    def told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    handlers = [
        h for name in ("lightning.pytorch", "lightning.fabric") for h in logging.getLogger(name).handlers
    ]
    before = threading.excepthook
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
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
    # A default of Lightning's classes may be an Enum of strings, as Timer's is; write what it says.
    yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a user's own modules, as for `python -m`

    def command() -> None:
        with _quiet(), together():
            TrainCLI(sys.argv[1:] if args is None else args)

    return guarded(command)
