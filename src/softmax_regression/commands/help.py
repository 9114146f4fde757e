"""The help of `train.py`, and the names of its options, with which a mistyped one is compared."""

import inspect
from argparse import SUPPRESS
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pkgutil import resolve_name

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import shell_command
from softmax_regression.experiment.cli import DEFAULT_CALLBACKS, add_own_arguments
from softmax_regression.experiment.flags import BASES, flag_value
from softmax_regression.model import SoftmaxRegression

COMMANDS = {
    "fit": "Train a model.",
    "validate": "Score a trained model on the validation data.",
    "test": "Score a trained model on the test data.",
    "predict": "Write a CSV with the predictions for the test data, or for photos.",
}
_EPILOG = (
    "--config FILE: YAML with any of the options, over which flags win; smoke.yaml and the others of conf/ are found "
    "from any folder. --model CLASS, --data CLASS: another LightningModule or LightningDataModule, such as "
    "examples.mlp.MLP. --optimizer CLASS, --lr_scheduler CLASS: of torch, such as Adam, with --optimizer.lr. "
    "--trainer.callbacks+=CLASS: your own, as mine.Callback of mine.py in this folder. --print_config: what would "
    "be run. --help-all: Lightning's Trainer as well."
)


def usage(command: str = "{" + ",".join(COMMANDS) + "}") -> str:
    """Return the beginning of a command line, such as `python train.py fit`."""
    return f"{shell_command('train.py')} {command}"


def command_help(args: Sequence[str]) -> str:
    """Return the help for a command line; that of a command shows the options of the model and data it names."""
    command = args[0]
    if command in COMMANDS:
        return str(_help_parser(command, args, everything="--help-all" in args).format_help())
    lines = [f"usage: {usage()} [options]", ""]
    for name, text in COMMANDS.items():
        lines.append(f"  {name:10}{text}")
    return "\n".join([*lines, "", f"{usage('fit')} --help shows the options of a command."])


def known_options(args: Sequence[str]) -> Iterable[str]:
    """Return the names of the options that a command line may have."""
    command = args[0] if args and args[0] in COMMANDS else "fit"
    return list(_help_parser(command, args, everything=True).get_defaults().keys(branches=False))


def _help_parser(command: str, flags: Sequence[str], everything: bool) -> ArgumentParser:
    """Return a parser to take the help from; the help of LightningCLI's parser has no options of model and data."""
    parser = ArgumentParser(usage=f"{usage(command)} [options]", description=COMMANDS[command], epilog=_EPILOG)
    add_own_arguments(parser, None if everything else command)
    text = "The checkpoint: a run's folder, a .ckpt file, or `best` or `last` of the newest run."
    parser.add_argument("--ckpt_path", metavar="RUN", help=text)
    for group, default in {"model": SoftmaxRegression, "data": FashionMNISTDataModule}.items():
        kind: type = default
        with suppress(Exception):  # there is no class of that name, or an error in its module
            found = resolve_name(flag_value(flags, group) or flag_value(flags, f"{group}.class_path") or "")
            if isinstance(found, type):
                kind = found
        title = (inspect.getdoc(kind) or kind.__name__).partition("\n")[0]
        shown = parser.add_argument_group(title.removesuffix("."))
        shown.add_argument(f"--{group}", metavar="CLASS", default=SUPPRESS, help=f"Another {BASES[group]}.")
        with suppress(Exception):  # of jsonargparse, if a default is an array
            shown.add_class_arguments(kind, group, as_group=False, fail_untyped=False)
    if command == "fit" or everything:
        for group, callback in DEFAULT_CALLBACKS.items():
            parser.add_class_arguments(callback, group)
    if everything:
        parser.add_class_arguments(Trainer, "trainer", skip={"callbacks"})
    return parser
