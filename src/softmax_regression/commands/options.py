"""The options of `train.py`: those that Lightning does not have, and what `--help` says of all."""

from collections.abc import Sequence
from contextlib import suppress

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer

from softmax_regression.commands.arguments import option
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.figures.logger import FigureLogger
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping
from softmax_regression.runs.last_checkpoint import LastCheckpoint
from softmax_regression.runs.trust import find_class

COMMANDS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation images.",
    "test": "Score a trained model on the test images.",
    "predict": "Write a CSV with the predictions for the test images, or for photos.",
}
# Callbacks that every run has; each is a group of flags, and `trainer.callbacks` holds the user's own.
DEFAULT_CALLBACKS: dict[str, type[Callback]] = {
    "engine": Engine, "early_stopping": EarlyStopping, "best_checkpoint": BestCheckpoint,
    "last_checkpoint": LastCheckpoint, "figures": FigureLogger,
}  # fmt: skip
_MORE = (
    "--config FILE: YAML with any of the options, over which flags win. --ckpt_path RUN: a run's folder, a "
    ".ckpt file, or `best` or `last` of the newest run. --model CLASS, --data CLASS: another LightningModule "
    "or LightningDataModule, such as examples.mlp.MLP. --optimizer CLASS, --lr_scheduler CLASS: of torch, "
    "such as Adam, with --optimizer.lr. --trainer.callbacks+=CLASS: your own, as mine.Callback of mine.py in "
    "this folder. --print_config: what would be run. --help-all: Lightning's Trainer as well."
)


def typed_command(args: Sequence[str]) -> str | None:
    """Return the first command of a command line, if it has one."""
    return next((arg for arg in args if arg in COMMANDS), None)


def add_own(parser: ArgumentParser) -> None:
    """Add the options that Lightning does not have."""
    text = "Seed of the initial weights, the order of the images and the dropped pixels."
    parser.add_argument("--seed_everything", type=int, default=0, help=text)
    text = "CPU threads; the default is one, or what OMP_NUM_THREADS says, see runs/processes.py."
    parser.add_argument("--threads", type=int, help=text)
    parser.add_argument("--resume", help="Go on with the run in this folder, exactly where it stopped.")
    parser.add_argument("--output", help="Where `predict` writes its CSV; the default is in the run's folder.")
    parser.add_argument("--force", action="store_true", help="Let --output replace a foreign file.")


def help_parser(args: Sequence[str], everything: bool = False) -> ArgumentParser:
    """Return a parser that knows the options of a command line, for its help and for near misses."""
    command = typed_command(args) or "fit"
    usage = f"python train.py {command} [options]"
    parser = ArgumentParser(usage=usage, description=COMMANDS[command], epilog=_MORE)
    add_own(parser)
    for group, kind in {"model": SoftmaxRegression, "data": FashionMNISTDataModule}.items():
        with suppress(InputError):  # if none is named, or a wrong one
            kind = find_class(option(args, group) or option(args, f"{group}.class_path") or "")
        parser.add_class_arguments(kind, group, fail_untyped=False, skip={"seed"})
    for group, callback in DEFAULT_CALLBACKS.items() if command == "fit" or everything else ():
        parser.add_class_arguments(callback, group)
    if everything:
        parser.add_class_arguments(Trainer, "trainer", skip={"callbacks"})
    return parser
