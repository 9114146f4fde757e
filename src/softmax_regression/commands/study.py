"""The command line `python study.py STUDY`: a study measures something and leaves a page with figures.

Exit codes: 0 done, 2 bad input, 3 diverged, 4 could not save, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from softmax_regression.commands import trust
from softmax_regression.errors import DivergedError, InputError, StorageError

CONF = Path(__file__).parents[3] / "conf"


class Study(NamedTuple):
    """A function that runs a study and returns the path of what it wrote, found by name when it is needed."""

    function: str
    help: str
    positional: str | None = None  # its parameter that takes the words that are not flags; a str takes one


STUDIES = {
    "numerics": Study("numerics_study.run", "Where softmax and cross-entropy break, and what mends them."),
    "sweep": Study("sweep.run", "Exercise 1: search batch size, learning rate, epochs and more."),
    "overfit": Study("overfit_page.run", "Exercise 2: train for long on few images, and what helps."),
    "curve": Study("curve.run", "Draw loss and accuracy by epoch from the logs of runs.", "runs"),
    "report": Study("report.report", "Show a run: curves, mistakes, weights, calibration.", "which"),
    "compare": Study("report.compare", "Show runs side by side.", "runs"),
    "export": Study("export.run", "Write a checkpoint as ONNX and as a web page that runs it.", "which"),
}


def _parser(chosen: str | None) -> ArgumentParser:
    """Return the parser; only the chosen study is imported, for that takes seconds."""
    parser = ArgumentParser(
        prog="study.py", description="Studies of softmax regression.", exit_on_error=False
    )
    commands = parser.add_subcommands(metavar="STUDY")
    for name, study in STUDIES.items():
        config = CONF / f"{name}.yaml"
        command = ArgumentParser(exit_on_error=False, default_config_files=[str(config)])
        if name == chosen:
            module, _, attribute = study.function.rpartition(".")
            function = getattr(import_module(f"softmax_regression.studies.{module}"), attribute)
            command.add_argument("--config", action="config", help="YAML with any of the options below.")
            if study.positional:
                one = signature(function).parameters[study.positional].annotation is str
                command.add_argument(study.positional, nargs=None if one else "+", type=str if one else Path)
            else:
                command.add_argument("--quick", action="store_true", help="Do little, to see that it works.")
            command.add_function_arguments(function, skip={study.positional or "quick"})
        commands.add_subcommand(name, command, help=study.help)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run a study and return the exit code; a mistake is one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    trust.enforce()
    try:
        trust.check_arguments(args)
        parser = _parser(next((arg for arg in args if not arg.startswith("-")), None))
        config = parser.instantiate(parser.parse_args(args))
        name = config.subcommand
        options = {key: value for key, value in config[name].items() if key != "config"}
        module, _, attribute = STUDIES[name].function.rpartition(".")
        print(getattr(import_module(f"softmax_regression.studies.{module}"), attribute)(**options))
    except (InputError, DivergedError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ArgumentError as error:
        print(f"error: {trust.explain(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
