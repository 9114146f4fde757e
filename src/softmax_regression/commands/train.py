"""The command line `python train.py fit|validate|test|predict`, a LightningCLI whose mistakes are one line.

Exit codes:
    0: Done.
    2: Bad input: flags, configuration, data or checkpoint.
    3: The run diverged; no checkpoint holds a weight that is not finite.
    4: A file could not be saved or read; the last checkpoint that was saved is intact.
    5: Another process of a run on several has ended, or never came.
    130, 143: Interrupted by SIGINT or SIGTERM; `fit` has saved the step that it came to. (138: by SLURM's
        SIGUSR1, and put back in the queue.)
"""

import csv
import io
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from softmax_regression.commands import trust
from softmax_regression.data.files import CLASSES
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, LostProcessError, StorageError
from softmax_regression.figures.logger import FigureLogger
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.callbacks import EpochProgress, Interrupted, RunRecord, best_epoch, stop_reason
from softmax_regression.runs.checkpoint import SafeCheckpointIO
from softmax_regression.runs.folder import (
    METRICS,
    RunLogger,
    find_run,
    metrics_text,
    open_checkpoint,
    read_manifest,
    update_manifest,
)
from softmax_regression.runs.processes import cores, started, together

DEFAULT_CONFIG = Path(__file__).parents[3] / "conf" / "default.yaml"
COMMANDS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation images.",
    "test": "Score a trained model on the test images.",
    "predict": "Write a CSV with the predictions for the test images, or for photos.",
}

# Said by Lightning and TensorBoard about each other's code; nothing that a user here can act on.
FOREIGN_WARNINGS = (
    r"You called `self.log\(.*\)` but have no logger configured",  # test and validate write run.json instead
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # torchmetrics has summed over the ranks
    "Checkpoint directory .* exists and is not empty",  # it does when a run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
)

# Options of the Trainer that decide results, and so must stay, beside those of model and data.
DECIDING = (
    "precision", "limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval",
    "check_val_every_n_epoch",
)  # fmt: skip
# Options of the data that need not stay when a run is resumed.
MAY_CHANGE = {"dirs", "images", "watch_test", "device", "steps_per_execution"}


class TrainCLI(LightningCLI):
    """LightningCLI for one model and one data module, with run folders.

    Args:
        args: The command line, without the name of the program.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.run: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        common = {"exit_on_error": False, "allow_abbrev": False}
        options = {"default_config_files": [str(DEFAULT_CONFIG)], **common}
        super().__init__(
            SoftmaxRegression,
            FashionMNISTDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**common, **{command: dict(options) for command in COMMANDS}},
            args=self._of_run(list(args)),
        )

    def _of_run(self, args: list[str]) -> list[str]:
        """Put the configuration of the run that a checkpoint belongs to before all other options."""
        given = _option(args, "resume") or _option(args, "ckpt_path")
        if given is None or not args or args[0] not in COMMANDS:
            trust.check_arguments(args)
            return args
        path, self.checkpoint = open_checkpoint(given, prefer="last" if args[0] == "fit" else "best")
        self.run = find_run(path)
        config = ["--config", str(self.run / "config.yaml")] if self.run else []
        args = [args[0], *config, *args[1:], "--ckpt_path", str(path)]
        trust.check_arguments(args)
        return args

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed."""
        text = "Seed of the initial weights, the order of the images and the dropped pixels."
        parser.add_argument("--seed_everything", type=int, default=0, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what this command line has beside Lightning's own options."""
        parser.add_lightning_class_args(FigureLogger, "figures")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("seed_everything", "data.seed")
        parser.add_argument("--resume", help="Go on with the run in this folder, exactly where it stopped.")
        parser.add_argument(
            "--output", help="Where `predict` writes its CSV; the default is in the run's folder."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line that `main` was given, which need not be sys.argv."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leave the flags alone: where they contradict the checkpoint, `_check_resume` says so."""

    def before_instantiate_classes(self) -> None:
        """Refuse what Lightning would take for something else, or what does not fit into memory."""
        config = self.config[self.subcommand]
        if config.model.num_classes != len(CLASSES):
            raise InputError(
                f"num_classes={config.model.num_classes}: the data have {len(CLASSES)} classes; "
                "change model.num_classes"
            )
        if not self.checkpoint and (path := config.ckpt_path or config.resume):
            raise InputError(f"{path}: no run goes on because a configuration says so; use --resume")
        trainer = config.trainer
        if trainer.max_epochs is not None and trainer.max_epochs < 1 and not trainer.max_steps > 0:
            raise InputError(
                f"max_epochs={trainer.max_epochs}: must be at least 1; change trainer.max_epochs"
            )

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
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"trainer.accelerator={given.accelerator}, trainer.devices={given.devices}: {error}; "
                "use what this machine has, or `auto`"
            ) from error
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Refuse what cannot work before anything is written."""
        self._check_devices()
        self.datamodule.setup("fit")  # on every process: while they are not joined, none waits for another
        self._check_monitors()
        if self.checkpoint:
            self._check_shapes()
            self._check_resume()
        if not self.run:
            self._check_logger()

    before_validate = before_test = before_predict = lambda self: self._before_scoring()

    def _before_scoring(self) -> None:
        if not self.checkpoint:
            raise InputError(
                f"{self.subcommand}: needs a trained model; give --ckpt_path a run's folder, `best` or `last`"
            )
        self._check_devices()
        self.datamodule.setup(self.subcommand)
        self._check_shapes()
        if other := self._other_data():
            _say_once(f"warning: {other}")
        self.trainer.loggers = []  # a run's scalars are those of its training; the figures find its folder
        self._get(self.config_init, "figures").run = self.run

    def _check_devices(self) -> None:
        if self.trainer.strategy.root_device.type == "cpu" and self.trainer.num_devices > cores():
            raise InputError(
                f"trainer.devices={self.trainer.num_devices}: this machine has {cores()} CPU cores; "
                "lower trainer.devices"
            )
        batch_size = self.datamodule.hparams["batch_size"]
        if batch_size < self.trainer.world_size:
            raise InputError(
                f"batch_size={batch_size}: must be at least 1 for each of {self.trainer.world_size} devices; "
                "raise data.batch_size or lower trainer.devices"
            )

    def _check_shapes(self) -> None:
        saved = self.checkpoint["state_dict"]
        for name, weight in self.model.state_dict().items():
            if name not in saved or saved[name].shape != weight.shape:
                shape = tuple(saved[name].shape) if name in saved else None
                raise InputError(
                    f"ckpt_path={self._get(self.config, 'ckpt_path')}: {name} has shape {shape}, the model "
                    f"{tuple(weight.shape)}; give a checkpoint of this model"
                )

    def _check_monitors(self) -> None:
        data = self.datamodule.hparams
        scored = {"train": True, "val": data["val_size"], "test": data["watch_test"]}
        stages = [stage for stage, wanted in scored.items() if wanted]
        if stages == ["train"]:
            self.trainer.limit_val_batches = 0  # or Lightning warns of an empty loader
        logged = [name for name in METRICS if name.split("/")[0] in stages]
        for callback in (*self.trainer.early_stopping_callbacks, *self.trainer.checkpoint_callbacks):
            monitor = getattr(callback, "monitor", None)
            if monitor is not None and monitor not in logged:
                raise InputError(
                    f"monitor={monitor} of {type(callback).__name__}: nothing logs it here; "
                    f"expected one of {', '.join(logged)}"
                )

    def _check_logger(self) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger):
                _ = logger.version  # claims the folder

    def _other_data(self) -> str | None:
        """Say so if the images that are loaded are not those of the run that saved the checkpoint."""
        data, saved = self.datamodule.data, self.checkpoint["FashionMNISTDataModule"].get("sha256")
        if data is None or data.sha256 == saved:  # None: photos to predict
            return None
        return f"data with SHA-256 {data.sha256[:12]}…: the model was trained on {str(saved)[:12]}…"

    def _check_resume(self) -> None:
        """Refuse flags that contradict the checkpoint."""
        config = yaml.safe_load((self.run / "config.yaml").read_text()) if self.run else {}
        trainer = config.get("trainer", {})
        for group, saved, now in (
            ("model", self.checkpoint["hyper_parameters"], self.model.hparams),
            ("data", self.checkpoint["datamodule_hyper_parameters"], self.datamodule.hparams),
            ("trainer", trainer, {name: self._get(self.config, "trainer")[name] for name in DECIDING}),
        ):
            for name, value in now.items():
                if name in saved and saved[name] != value and name not in MAY_CHANGE:
                    raise InputError(
                        f"{group}.{name}={value}: the run to resume has {saved[name]}; "
                        f"go on with that, or start a new run without --resume"
                    )
        if other := self._other_data():
            raise InputError(f"{other}; give the same files, or start a new run")

    def _reopen(self, run: Path) -> None:
        """Go on in the folder of the run, swept of what a killed process has left there."""
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, RunLogger)]
        if not loggers:
            raise InputError(f"{run}: a run goes on in its folder, which RunLogger keeps; drop the flag")
        for logger in loggers:
            logger.reopen(run, len(self.checkpoint["history"]))
        if self.trainer.is_global_zero:
            checkpoint.sweep(run)

    def _check_unchanged(self) -> None:
        """Refuse to go on from a checkpoint that another process has replaced since it was read."""
        path = self._get(self.config, "ckpt_path")
        if self.run and checkpoint.read(path)["global_step"] != self.checkpoint["global_step"]:
            raise InputError(f"{path}: another process has gone on with the run; start the command again")

    def _end_of_resumed(self) -> str | None:
        """Say why there is nothing left to resume, if so."""
        epochs, steps = len(self.checkpoint["history"]), self.checkpoint["global_step"]
        if self.trainer.max_epochs and 0 < self.trainer.max_epochs <= epochs:
            return f"it has {epochs} epochs, max_epochs={self.trainer.max_epochs}"
        if 0 < self.trainer.max_steps <= steps:
            return f"it has {steps} steps, max_steps={self.trainer.max_steps}"
        for callback in self.trainer.early_stopping_callbacks:
            waited = self.checkpoint["callbacks"].get(callback.state_key, {}).get("wait_count", 0)
            if waited >= callback.patience:
                return f"early stopping: {callback.monitor} did not improve for {waited} epochs"
        return None

    def fit(self, model: SoftmaxRegression, **kwargs: Any) -> None:
        """Train, or go on training, in a folder where no other process does."""
        folders = (Path(each.log_dir) for each in self.trainer.loggers if isinstance(each, RunLogger))
        with ExitStack() as stack:
            if self.trainer.is_global_zero and (run := self.run or next(folders, None)):
                stack.enter_context(locked(run, "start a new run without --resume"))
                self._check_unchanged()
            if self.run:
                self._reopen(self.run)
            self._fit(model, **kwargs)

    def _fit(self, model: SoftmaxRegression, **kwargs: Any) -> None:
        """Train unless there is nothing left to, and say what came of it and what to do with it."""
        if self.checkpoint and (reason := self._end_of_resumed()):
            self._discard_unstarted()
            self._record_end(reason)
            run = self.run or self._get(self.config, "ckpt_path")
            rank_zero_only(print)(
                f"{run}: nothing to resume ({reason}); raise trainer.max_epochs or the patience to go on"
            )
            return
        try:
            self.trainer.fit(model, **kwargs)
        except BaseException:
            self._discard_unstarted()
            raise
        log_dir = self.trainer.log_dir if self.trainer.loggers else None  # all processes take part
        if self.trainer.is_global_zero:
            print(summary(self.trainer, Path(log_dir) if log_dir else None))

    def _record_end(self, reason: str) -> None:
        """Complete the manifest of a run that was killed after its last checkpoint."""
        if self.run and read_manifest(self.run).get("status") != "finished" and self.trainer.is_global_zero:
            history = self.checkpoint["history"]
            ends = {"final": history[-1], "best": best_epoch(history)} if history else {}
            update_manifest(self.run, status="finished", stopped=reason, **ends)

    def _discard_unstarted(self) -> None:
        """Remove the folder of a run that failed before its first step."""
        if self.run or self.trainer.global_step:
            return
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger) and not Path(logger.log_dir, "run.json").exists():
                shutil.rmtree(logger.log_dir, ignore_errors=True)

    def test(self, model: SoftmaxRegression, **kwargs: Any) -> None:
        """Score the test images; print the metrics and keep them in the run's manifest."""
        self._keep("test", self.trainer.test(model, **kwargs | {"verbose": False}))

    def validate(self, model: SoftmaxRegression, **kwargs: Any) -> None:
        """Score the validation images; print the metrics and keep them in the run's manifest."""
        self._keep("validate", self.trainer.validate(model, **kwargs | {"verbose": False}))

    def _keep(self, command: str, results: Sequence[Mapping[str, float]]) -> None:
        metrics = {name: value for row in results for name, value in row.items()}
        if self.trainer.is_global_zero:
            print(metrics_text(metrics))
            if self.run:
                update_manifest(self.run, **{command: metrics})

    def predict(self, model: SoftmaxRegression, **kwargs: Any) -> None:
        """Write the predictions as a CSV."""
        if self.trainer.world_size > 1:
            raise InputError(f"trainer.devices={self.trainer.world_size}: predict uses one; drop the option")
        kwargs.pop("return_predictions", None)
        batches = self.trainer.predict(model, return_predictions=True, **kwargs)
        output = self.config[self.subcommand].output
        path = Path(output) if output else (self.run or Path()) / "predictions.csv"
        checkpoint.write(predictions_csv(self.datamodule, batches or []).encode(), path)
        print(f"predictions: {path}")


def predictions_csv(data: FashionMNISTDataModule, batches: Sequence[Any]) -> str:
    """Return the predictions as CSV: index, label if known, predicted class, probability, all probabilities.

    Args:
        data: Where the images came from, in the order of the predictions.
        batches: What `predict_step` returned.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if data.photos is None:
        kind, names = "label", [CLASSES[y] for y in data.loaded.test_labels.tolist()]
    else:
        kind, names = "image", [str(path) for path in data.photos[1]]
    writer.writerow(["index", kind, "predicted", "probability", *CLASSES])
    columns = [[value for batch in batches for value in batch[key].tolist()] for key in batches[0]]
    for index, (name, predicted, p, all_p) in enumerate(zip(names, *columns, strict=True)):
        writer.writerow([index, name, CLASSES[predicted], f"{p:.6f}", *(f"{p:.6g}" for p in all_p)])
    return file.getvalue()


def summary(trainer: Trainer, run: Path | None) -> str:
    """Return what `fit` says in the end: why it stopped, the metrics, the checkpoints, what to type next."""
    model = cast(SoftmaxRegression, trainer.lightning_module)
    lines = [stop_reason(trainer)]
    if model.history:
        lines.append(f"last epoch {model.history[-1]['epoch']}: {metrics_text(model.history[-1])}")
        if "val/loss" in (best := best_epoch(model.history)):
            lines.append(f"best epoch {best['epoch']}: {metrics_text(best)}")
    if run:
        lines += [
            f"checkpoints: {run / 'checkpoints'}",
            "next:",
            f"  python train.py test --ckpt_path {run}",
            f"  python study.py report {run}",
            f"  tensorboard --logdir {run.parent.parent}",
        ]
    return "\n".join(lines)


def _option(args: Sequence[str], name: str) -> str | None:
    """Return the last value that a command line gives an option, as `--name value` or `--name=value`."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM end a command wherever it is; `LastCheckpoint` takes them over in training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "nothing was saved")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Let TensorBoard's thread not print what it could not write: the main thread raises it again."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


def _say_once(line: str) -> None:
    """Say what all processes of a machine find wrong alike, as they do until they are joined."""
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if local_rank == "0" or (distributed.is_available() and distributed.is_initialized()):
        print(line, file=sys.stderr)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; a user's mistake is one line on stderr."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about the calls that Lightning makes
    # A default of Lightning's classes may be an Enum of strings, as Timer's is; write what it says.
    yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    trust.enforce()
    try:
        with warnings.catch_warnings(), together(), _interruptible(), _quiet_writers():
            for message in FOREIGN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            TrainCLI(sys.argv[1:] if args is None else args)
    except (StorageError, LostProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except InputError as error:
        _say_once(f"error: {error}")
        return error.exit_code
    except DivergedError as error:  # on all processes alike
        rank_zero_only(print)(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (ArgumentError, MisconfigurationException) as error:
        _say_once(f"error: {trust.explain(str(error))}; see `python train.py fit --help`")
        return 2
    except Interrupted as error:  # on all processes alike
        rank_zero_only(print)(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of a library that writes or reads for us, such as TensorBoard
        print(f"error: {error}; free space or make the folder writable", file=sys.stderr)
        return StorageError.exit_code
    return 0
