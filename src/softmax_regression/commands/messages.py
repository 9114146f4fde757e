"""Errors as short messages and exit codes; a bug keeps its traceback."""

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
# The first words of lines in jsonargparse's messages that repeat other lines, or only name types of Python.
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
_LOCAL = re.compile(r"Unexpected import path format: (\S+\.<locals>\.\w+)")
_KEY = re.compile(r'^(?: *- | *)Parser key "([^"]+)":$', re.MULTILINE)
_UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)|ption '(\S+)' is not accepted|not accept option '(\S+)'")


class BrokenPipeSafeStream:
    """A stream that drops what cannot be written, as when a pipe is closed or a disk is full, and raises no error."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream or io.StringIO()
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # for letters that the locale lacks

    def write(self, text: str) -> int:
        """Write a text, or drop it and all later ones."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # or Python complains when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.stream = io.StringIO()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self.stream, name)


def shorten_parser_error(message: str, known: Iterable[str] = ()) -> str:
    """Return a message of jsonargparse without its repetitions; for an unknown option, suggest similar known ones."""
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
    local = _LOCAL.search(message)
    if local:
        return f"{name}: class {local[1]}: is in a function; no command opens its runs until it is in a module"
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", "; ".join(reasons)).replace("a typing.Literal", "one of ")
    return f"{name}: {reason}" if name else reason


def _unknown_option(option: str, known: Iterable[str]) -> str:
    if not option.startswith("-"):
        return f"{option}: one word too many; drop it, or write a list as '[a, b]'"
    names = list(known)
    if option.lstrip("-") in names:
        return f"{option}: no option of the class that is used here; drop it"
    near = _near_options(option.lstrip("-"), names)
    meant = " or ".join(f"--{name}" for name in near)
    return f"{option}: no such option; " + (f"did you mean {meant}" if near else "see --help")


def _near_options(name: str, known: Sequence[str]) -> list[str]:
    """Return at most two known options similar to a mistyped one; `max_epochs` comes before `min_epochs`."""
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
    """Return whether a library raised an error about the options it was given, as when two of them contradict."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    kinds = (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError)
    if isinstance(error, AttributeError):  # a module has no class of this name
        return module.startswith("jsonargparse.")
    return isinstance(error, kinds) and module.startswith(("lightning.", "jsonargparse.", "torch.optim."))


def _own_cause(error: BaseException) -> BaseException:
    """Return the InputError of one of our classes if jsonargparse has wrapped it, else the error itself."""
    cause: BaseException | None = error
    while isinstance(error, ValueError | ArgumentError) and cause:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def describe_error(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return the message and the exit code of an error; None for a bug, which keeps its traceback."""
    error = _own_cause(error)
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, OWN_ERRORS):
        return f"error: {error}", error.exit_code
    if isinstance(error, ArgumentError):
        return f"error: {shorten_parser_error(str(error), known())}", InputError.exit_code
    if isinstance(error, OSError):  # raised by a library that reads or writes files, such as TensorBoard
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
    """Let a signal end a command at once; in training, `LastCheckpoint` installs other handlers."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second signal must not prevent the message
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
        command: The function to run.
        known: Returns the names of all options of the command, with which a mistyped one is compared.
    """
    out, err = BrokenPipeSafeStream(sys.stdout), BrokenPipeSafeStream(sys.stderr)
    path = sys.path.copy()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            with _interruptible(), quiet_lightning():
                sys.path.append(str(Path.cwd()))  # the user's own modules, after all installed ones
                command()
        except BaseException as error:
            found = describe_error(error, known)
            if found is None:
                raise
            if _is_printed(error):
                print(found[0], file=sys.stderr)
            return found[1]
        finally:
            sys.path[:] = path
    return 0


def _is_printed(error: BaseException) -> bool:
    """Return whether this process prints an error: one that all processes of a machine meet is printed once."""
    if isinstance(error, OSError | LostProcessError):
        return True
    if isinstance(error, Interrupted | DivergedError):
        return processes.is_local_rank_zero()
    return processes.is_speaking_process()
