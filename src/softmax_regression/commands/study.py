"""The command line `python study.py STUDY`: a study measures something and leaves a page with figures.

Exit codes: see `commands.train`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from softmax_regression.commands.arguments import CONF, arranged, check_paths
from softmax_regression.commands.errors import guarded
from softmax_regression.runs import trust


class Study(NamedTuple):
    """A function that runs a study and returns the path of what it wrote, found by name when it is needed."""

    function: str
    help: str
    positional: str | None = None  # its parameter that takes the words that are not flags; a str takes one

    def found(self) -> Callable[..., Any]:
        """Import the function, which takes seconds."""
        module, _, name = self.function.rpartition(".")
        return getattr(import_module(f"softmax_regression.studies.{module}"), name)  # type: ignore[no-any-return]


STUDIES = {
    "numerics": Study("numerics_study.run", "Where softmax and cross-entropy break, and what mends them."),
    "sweep": Study("sweep.run", "Exercise 1: search batch size, learning rate, epochs and more."),
    "overfit": Study("overfit_page.run", "Exercise 2: train for long on few images, and what helps."),
    "curve": Study("curve.run", "Draw loss and accuracy by epoch from the logs of runs.", "runs"),
    "list": Study("report.list_runs", "Runs, their state, data, what differs and best score."),
    "report": Study("report.report", "Show a run: curves, mistakes, weights, calibration.", "which"),
    "compare": Study("report.compare", "Show runs side by side.", "runs"),
    "export": Study("export.run", "Write a checkpoint as ONNX and as a web page that runs it.", "which"),
}


def _parser(chosen: str | None) -> ArgumentParser:
    """Return the parser; only the chosen study is imported."""
    parser = ArgumentParser(
        prog="study.py", description="Studies of softmax regression.", exit_on_error=False
    )
    commands = parser.add_subcommands(metavar="STUDY")
    for name, study in STUDIES.items():
        command = ArgumentParser(exit_on_error=False, default_config_files=[str(CONF / f"{name}.yaml")])
        if name == chosen:
            function = study.found()
            command.add_argument("--config", action="config", help="YAML with any of the options below.")
            if study.positional:
                one = signature(function).parameters[study.positional].annotation is str
                command.add_argument(study.positional, nargs=None if one else "+", type=str if one else Path)
            if "quick" in signature(function).parameters:
                command.add_argument("--quick", action="store_true", help="Do little, to see that it works.")
            command.add_function_arguments(function, skip={study.positional, "quick"} - {None})
        commands.add_subcommand(name, command, help=study.help)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run a study and return the exit code; a mistake is one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    chosen = next((arg for arg in args if arg in STUDIES), None)

    def command() -> None:
        trust.enforce()
        check_paths(args)
        parser = _parser(chosen)
        config = parser.instantiate(parser.parse_args([*args[:1], *arranged(args[1:])]))
        options = {key: value for key, value in config[config.subcommand].items() if key != "config"}
        print(STUDIES[config.subcommand].found()(**options))

    return guarded(command, lambda: signature(STUDIES[chosen].found()).parameters if chosen else ())
