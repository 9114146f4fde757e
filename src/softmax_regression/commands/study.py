"""The command line `python study.py STUDY`: a study measures something and leaves a page with figures."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser

from softmax_regression.commands.messages import run_command
from softmax_regression.errors import InputError
from softmax_regression.experiment.allowed_classes import allow_classes
from softmax_regression.experiment.flags import (
    CONF,
    check_flags,
    find_configurations,
    named_texts,
    sort_flags_after_files,
)


class Study(NamedTuple):
    """A study, or a report on runs."""

    function: str  # module.name; it returns what to print, such as the path of its page
    purpose: str
    positional: str | None = None  # the parameter that takes the words which are no flags

    def load(self) -> Callable[..., object]:
        """Import the function, which takes seconds."""
        module, _, name = self.function.rpartition(".")
        found: Callable[..., object] = getattr(import_module(f"softmax_regression.{module}"), name)
        return found


STUDIES = {
    "numerics": Study("studies.numerics.study.run", "Where softmax and cross-entropy break, and what mends them."),
    "sweep": Study("studies.sweep.study.run", "Exercise 1: search batch size, learning rate, epochs and more."),
    "overfit": Study("studies.overfit.study.run", "Exercise 2: train for long on few images, and what helps."),
    "list": Study("reports.list.list_runs", "List runs: their state, data, scores, and what sets each apart."),
    "curve": Study("reports.curve.run", "Draw loss and accuracy by epoch from the logs of runs.", "runs"),
    "report": Study("reports.report.report", "Show a run: curves, mistakes, weights, calibration.", "which"),
    "compare": Study("reports.compare.compare", "Show runs side by side.", "runs"),
    "export": Study("reports.export.run", "Write a checkpoint as ONNX and as a web page that runs it.", "which"),
}


def _chosen(args: Sequence[str]) -> str | None:
    """Return the study that a command line begins with."""
    if args and args[0] in STUDIES:
        return args[0]
    return None


def _parameters(chosen: str | None) -> dict[str, Parameter]:
    """Return the parameters of a study, which are its options."""
    if chosen is None:
        return {}
    return dict(signature(STUDIES[chosen].load()).parameters)


def _parser(chosen: str | None) -> ArgumentParser:
    """Return the parser; only the chosen study is imported."""
    parser = ArgumentParser(prog="study.py", description="Studies of softmax regression.", exit_on_error=False)
    commands = parser.add_subcommands(metavar="STUDY")
    for name, study in STUDIES.items():
        command = ArgumentParser(exit_on_error=False, default_config_files=[str(CONF / f"{name}.yaml")])
        if name == chosen:
            command.add_argument("--config", action="config", help="YAML with any of the options below.")
            skip: set[str | int] = set()
            if study.positional:
                skip.add(study.positional)
                if _parameters(name)[study.positional].annotation is str:
                    command.add_argument(study.positional, type=str)
                else:
                    command.add_argument(study.positional, nargs="+", type=Path)
            command.add_function_arguments(study.load(), skip=skip)
        commands.add_subcommand(name, command, help=study.purpose)
    return parser


def _with_switches(words: Sequence[str], parameters: dict[str, Parameter]) -> list[str]:
    """Return a command line whose switches, such as `--quick`, have the value that jsonargparse asks for."""
    completed = []
    for word in words:
        parameter = parameters.get(word.removeprefix("--"))
        if word.startswith("--") and parameter and parameter.default is False:
            word = f"{word}=true"
        completed.append(word)
    return completed


def run(args: Sequence[str]) -> None:
    """Run a command line of `study.py`."""
    chosen = _chosen(args)
    check_flags(args)
    flags = sort_flags_after_files(find_configurations(args[1:]))
    allow_classes(named_texts(flags))
    if chosen and STUDIES[chosen].positional and not flags:
        raise InputError(f"{chosen}: no run was given; type `python study.py {chosen} RUN`, a folder under logs/")
    words = _with_switches([*args[:1], *flags], _parameters(chosen))
    parser = _parser(chosen)
    config = parser.instantiate(parser.parse_args(words))
    options = config[config.subcommand].as_dict()
    options.pop("config", None)
    if not 0 <= options.get("seed", 0) < 2**32:
        raise InputError(f"seed={options['seed']}: must be at least 0 and below 2^32")
    print(STUDIES[config.subcommand].load()(**options))


def main(args: Sequence[str] | None = None) -> int:
    """Run a study and return the exit code; a mistake is a line on stderr."""
    words = sys.argv[1:] if args is None else list(args)
    return run_command(partial(run, words), lambda: _parameters(_chosen(words)))
