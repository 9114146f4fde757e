"""The command line `python study.py STUDY`: a study measures something and leaves a page with figures."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from softmax_regression.commands.arguments import CONF, check_paths, class_names_in, sort_flags_after_files
from softmax_regression.commands.messages import run_command
from softmax_regression.errors import InputError
from softmax_regression.runs import trust

# A function that returns what to print, such as the path of its page; what it is for; which of its parameters
# takes the words that are not flags.
STUDIES = {
    "numerics": ("studies.numerics.study.run", "Where softmax and cross-entropy break, and what mends them.", None),
    "sweep": ("studies.sweep.search.run", "Exercise 1: search batch size, learning rate, epochs and more.", None),
    "overfit": ("studies.overfit.page.run", "Exercise 2: train for long on few images, and what helps.", None),
    "list": ("reports.report.list_runs", "List runs: their state, data, scores, and what sets each apart.", None),
    "curve": ("reports.curve.run", "Draw loss and accuracy by epoch from the logs of runs.", "runs"),
    "report": ("reports.report.report", "Show a run: curves, mistakes, weights, calibration.", "which"),
    "compare": ("reports.report.compare", "Show runs side by side.", "runs"),
    "export": ("reports.export.run", "Write a checkpoint as ONNX and as a web page that runs it.", "which"),
}


def _function(study: str) -> Callable[..., object]:
    """Import the function of a study, which takes seconds."""
    module, _, name = STUDIES[study][0].rpartition(".")
    return getattr(import_module(f"softmax_regression.{module}"), name)  # type: ignore[no-any-return]


def _parser(chosen: str | None) -> ArgumentParser:
    """Return the parser; only the chosen study is imported."""
    parser = ArgumentParser(prog="study.py", description="Studies of softmax regression.", exit_on_error=False)
    commands = parser.add_subcommands(metavar="STUDY")
    for name, (_, text, words) in STUDIES.items():
        command = ArgumentParser(exit_on_error=False, default_config_files=[str(CONF / f"{name}.yaml")])
        if name == chosen:
            command.add_argument("--config", action="config", help="YAML with any of the options below.")
            if words:
                one = signature(_function(name)).parameters[words].annotation is str
                command.add_argument(words, nargs=None if one else "+", type=str if one else Path)
            command.add_function_arguments(_function(name), skip={words} if words else None)
        commands.add_subcommand(name, command, help=text)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run a study and return the exit code; a mistake is one line on stderr."""
    args = sys.argv[1:] if args is None else list(args)
    chosen = next((arg for arg in args if arg in STUDIES), None)

    def known() -> dict[str, Any]:
        parameters = signature(_function(chosen)).parameters if chosen else {}
        return {name: parameter.default for name, parameter in parameters.items()}

    def command() -> None:
        check_paths(args)
        trust.enforce(class_names_in(args))
        switches = {f"--{name}": f"--{name}=true" for name, default in known().items() if default is False}
        words = [switches.get(word, word) for word in [*args[:1], *sort_flags_after_files(args[1:])]]
        parser = _parser(chosen)
        config = parser.instantiate(parser.parse_args(words))
        options = {name: value for name, value in config[config.subcommand].items() if name != "config"}
        if not 0 <= (seed := options.get("seed", 0)) < 2**32:
            raise InputError(f"seed={seed}: must be at least 0 and below 2^32")
        print(_function(config.subcommand)(**options))

    return run_command(command, known)
