"""What ends a command: a known kind of error is a line and an exit code; a bug keeps its traceback."""

import difflib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from softmax_regression.commands.quiet import quiet_lightning
from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError
from softmax_regression.runs import processes

OWN_ERRORS = (InputError, DivergedError, StorageError, LostProcessError)
# Lines of jsonargparse's messages that repeat the others, or speak of Python's types alone.
REPETITIONS = (
    "Does not validate against any of",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: NestedArg(",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Problem with given class_path",
)
_REFUSED = re.compile(r"Importing '([^']+)' is not allowed")
_KEY = re.compile(r'^(?: *- | *)Parser key "([^"]+)":$', re.MULTILINE)
_UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)|ption '(\S+)' is not accepted|not accept option '(\S+)'")


class BrokenPipeSafeStream:
    """A stream whose loss costs nothing: what a closed pipe or a full disk does not take is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream or io.StringIO()
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # of letters that the locale does not have

    def write(self, text: str) -> int:
        """Write, unless nobody reads any more."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # or Python complains when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.stream = io.StringIO()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self.stream, name)


def shorten_parser_error(message: str, known: Iterable[str] = ()) -> str:
    """Return a message of jsonargparse without its repetitions; an unknown option with the known one that is meant."""
    name = ".".join(dict.fromkeys(_KEY.findall(message)))
    reasons: list[str] = []
    for line in _KEY.sub("", message).splitlines():
        text = line.strip().removeprefix("- ")
        if text and not text.startswith(REPETITIONS) and text not in reasons:
            reasons.append(text)
    unknown = _UNKNOWN.search(message)
    if unknown:
        return _unknown_option(unknown[1] or f"--{name and name + '.'}{unknown[2] or unknown[3]}", known)
    if "Multiple subclasses with name EarlyStopping" in message:
        remedy = "set it by --early_stopping.monitor, or name lightning.pytorch.callbacks.EarlyStopping for your own"
        return f"{name}: every run has an EarlyStopping; {remedy}"
    refused = _REFUSED.search(message)
    if refused:
        if refused[1].startswith("__main__."):
            why = "is in a script or notebook; no command opens its runs until it is in a module"
            return f"{name}: class {refused[1]}: {why}"
        why = "it is of the standard library, or came along with a run; name one of your own modules that wraps it"
        return f"{name}: class {refused[1]} is refused: {why}"
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", "; ".join(reasons)).replace("a typing.Literal", "one of ")
    return f"{name}: {reason}" if name else reason


def _unknown_option(option: str, known: Iterable[str]) -> str:
    """Return a line on an option that there is not."""
    if not option.startswith("-"):
        return f"{option}: one word too many; drop it, or write a list as '[a, b]'"
    near = _near_options(option.lstrip("-"), list(known))
    meant = " or ".join(f"--{name}" for name in near)
    return f"{option}: no such option; " + (f"did you mean {meant}" if near else "see --help")


def _near_options(name: str, known: Sequence[str]) -> list[str]:
    """Return at most two options that a mistyped one may mean; max_epochs before min_epochs."""
    group, _, last = name.rpartition(".")
    last_parts = {option: option.rpartition(".")[2] for option in known}
    found = []
    for option, part in last_parts.items():
        if option.startswith(group) and f"_{last}_" in f"_{part}_":
            found.append(option)
    if not found:
        found = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if not found and not group:
        near = difflib.get_close_matches(last, last_parts.values(), n=2, cutoff=0.7)
        found = [option for option in known if last_parts[option] in near]
    return sorted(found, key=lambda option: (".max_" not in option, option))[:2]


def _is_about_options(error: BaseException) -> bool:
    """Whether a library that takes options raised an error itself, as where they contradict each other."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    kinds = (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError)
    return isinstance(error, kinds) and module.startswith(("lightning.", "jsonargparse.", "torch.optim."))


def _own_cause(error: BaseException) -> BaseException:
    """Return what a class of ours said of its arguments, which jsonargparse wraps; or else the error itself."""
    cause: BaseException | None = error
    while isinstance(error, ValueError | ArgumentError) and cause:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def describe_error(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return what to say of an error, and the exit code; None for a bug, which keeps its traceback."""
    error = _own_cause(error)
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, OWN_ERRORS):
        return f"error: {error}", error.exit_code
    if isinstance(error, ArgumentError):
        return f"error: {shorten_parser_error(str(error), known())}", InputError.exit_code
    if isinstance(error, OSError):  # of a library that writes or reads for us, such as TensorBoard
        return f"error: {error}", StorageError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return shorten(f"error: a checkpoint of another model: {error}", 400), InputError.exit_code
    if _is_about_options(error):
        return f"error: {shorten_parser_error(str(error))}", InputError.exit_code
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal end a command wherever it is; `LastCheckpoint` takes them over in training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second one must not come between this one and its line
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, "nothing was saved")

    before = processes.install_signal_handlers(processes.SIGNALS, interrupt)
    try:
        yield
    finally:
        processes.restore_signal_handlers(before)


def run_command(command: Callable[[], object], known: Callable[[], Iterable[str]]) -> int:
    """Run a command and return its exit code; a user's mistake is a line on stderr, not a traceback.

    Args:
        command: What is run.
        known: Gives the names of the options that the command has, for near misses.
    """
    out, err = BrokenPipeSafeStream(sys.stdout), BrokenPipeSafeStream(sys.stderr)
    path = sys.path.copy()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            with _interruptible(), quiet_lightning():
                sys.path.append(str(Path.cwd()))  # a user's own modules, which hide none that is installed
                command()
        except BaseException as error:
            found = describe_error(error, known)
            if found is None:
                raise
            if _speaks_of(error):
                print(found[0], file=sys.stderr)
            return found[1]
        finally:
            sys.path[:] = path
    return 0


def _speaks_of(error: BaseException) -> bool:
    """Whether this process prints an error: what all processes of a machine find is said once."""
    if isinstance(error, OSError | LostProcessError):
        return True
    if isinstance(error, Interrupted | DivergedError):
        return processes.is_local_rank_zero()
    return processes.is_speaking_process()
