"""The command line `python study.py STUDY`, for studies and for reports on runs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from jsonargparse import ArgumentParser

from softmax_regression.commands.running import run_command
from softmax_regression.errors import InputError, shell_command
from softmax_regression.experiment.allowed_classes import allow_classes
from softmax_regression.experiment.flags import CONF, find_command, find_configurations, named_texts


class Study(NamedTuple):
    """A study, or a report on runs."""

    function: str  # module:name of a function that returns the text to print, such as the path of a page
    purpose: str
    positional: str | None = None  # the name of its positional parameter

    def load(self) -> Callable[..., object]:
        """Import the function; this takes seconds."""
        found: Callable[..., object] = resolve_name(f"softmax_regression.{self.function}")
        return found


STUDIES = {
    "numerics": Study("studies.numerics.study:run", "Where softmax and cross-entropy break, and what mends them."),
    "sweep": Study("studies.sweep.study:run", "Exercise 1: search batch size, learning rate, epochs and more."),
    "overfit": Study("studies.overfit.study:run", "Exercise 2: train for long on few images, and what helps."),
    "list": Study("reports.list:list_runs", "List runs: their state, scores and unusual settings."),
    "curve": Study("reports.curve:run", "Draw loss and accuracy by epoch from the logs of runs.", "runs"),
    "report": Study("reports.report:report", "Show a run: curves, mistakes, weights, calibration.", "which"),
    "compare": Study("reports.compare:compare", "Show runs side by side.", "runs"),
    "export": Study("reports.export:run", "Write a checkpoint as ONNX and as a web page that runs it.", "which"),
}


def _parser(name: str, study: Study) -> ArgumentParser:
    """Return the parser of a study, whose options are the parameters of its function."""
    parser = ArgumentParser(
        prog=shell_command("study.py", name),
        description=study.purpose,
        exit_on_error=False,
        default_config_files=list(map(str, CONF.glob(f"{name}.yaml"))),
    )
    parser.add_argument("--config", action="config", help="YAML with any of the options below.")
    if study.positional == "runs":
        text = "Folders of runs, such as logs/softmax/*."
        parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=text)
    elif study.positional:
        text = "A run's folder, a .ckpt file, or `best` or `last` of the newest run."
        parser.add_argument(study.positional, metavar="RUN", help=text)
    parser.add_function_arguments(study.load(), skip={study.positional or ""})
    return parser


def run(args: Sequence[str]) -> None:
    """Run a command line of `study.py`."""
    if args and args[0] in ("-h", "--help"):
        lines = [f"  {name:10}{study.purpose}" for name, study in STUDIES.items()]
        usage = shell_command("study.py", "STUDY")
        print("\n".join([f"usage: {usage} [options]", "", *lines, "", "STUDY --help shows its options."]))
        sys.exit(0)
    name = find_command(args, STUDIES, f"; expected {', '.join(STUDIES)}")
    study, parameters = STUDIES[name], _parameters(args)
    flags = find_configurations(args[1:])
    allow_classes(named_texts(flags))
    if study.positional and not flags:
        usage = shell_command("study.py", name)
        raise InputError(f"{name}: no run was given; type `{usage} RUN`, a folder under logs/")
    switches = {f"--{option}" for option, parameter in parameters.items() if parameter.default is False}
    words = []
    for word, following in zip_longest(flags, flags[1:]):
        needs_value = word in switches and following not in ("true", "false")
        words.append(f"{word}=true" if needs_value else word)  # jsonargparse requires one
    parser = _parser(name, study)
    options = parser.instantiate(parser.parse_args(words)).as_dict()
    options.pop("config")
    if not 0 <= options.get("seed", 0) < 2**32:
        raise InputError(f"seed={options['seed']}: must be at least 0 and below 2^32")
    print(study.load()(**options))


def _parameters(args: Sequence[str]) -> Mapping[str, Parameter]:
    """Return the parameters of the study that a command line names; empty if it names none."""
    if not args or args[0] not in STUDIES:
        return {}
    return signature(STUDIES[args[0]].load()).parameters


def main(args: Sequence[str] | None = None) -> int:
    """Run a study and return the exit code; a mistake is a line on stderr."""
    words = sys.argv[1:] if args is None else list(args)
    return run_command(partial(run, words), partial(_parameters, words))
