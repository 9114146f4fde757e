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
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with",
    "Errors:",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: NestedArg(",
    "Given value: [Namespace(",
    "Given value: {'class_path'",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Problem with given class_path",
)
# What a message says of a class that was named, as one of several types that an option may have.
_OF_CLASS = re.compile(r"^( *)- Problem with given class_path .*?(?=^\1- |\Z)", re.MULTILINE | re.DOTALL)
_ABSENT = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
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
    message = _without_other_types(message)
    name = ".".join(dict.fromkeys(_KEY.findall(message)))
    reasons: list[str] = []
    for line in _KEY.sub("", message).splitlines():
        text = line.strip().removeprefix("- ")
        if text and not text.startswith(REPETITIONS) and text not in reasons:
            reasons.append(text)
    if len(reasons) > 1 and reasons[1].startswith("Not a valid subclass of"):
        del reasons[1]
    unknown = _UNKNOWN.search(message)
    if unknown:
        option = unknown[1] or f"--{unknown[2] or unknown[3]}"
        return _unknown_option(f"--{name}.{option.lstrip('-')}" if name else option, known)
    if "'NoneType' object has no attribute 'keys'" in message:
        return f"{name}: init_args is empty; give arguments there, or drop it"
    if "Multiple subclasses with name EarlyStopping" in message:
        remedy = "set it by --early_stopping.monitor, or name lightning.pytorch.callbacks.EarlyStopping for your own"
        return f"{name or 'trainer.callbacks'}: every run has an EarlyStopping; {remedy}"
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
    absent = _ABSENT.search(reason)
    if absent:
        module = sys.modules.get(absent[1])
        near = difflib.get_close_matches(absent[2], dir(module), n=1, cutoff=0.7)
        found = getattr(module, "__file__", None)
        reason = f"{absent[0]}; did you mean {absent[1]}.{near[0]}" if near else f"{absent[0]}; the module is {found}"
    return f"{name}: {reason}" if name else reason


def _without_other_types(message: str) -> str:
    """Return a message that has, if a class was named, only what it says of that class, and the value."""
    for found in _OF_CLASS.finditer(message):
        if "does not correspond to a subclass" not in found[0]:
            return f"{message[: found.start()]}{found[0]}\n{message.splitlines()[-1]}"
    return message


def _unknown_option(option: str, known: Iterable[str]) -> str:
    if option.endswith(".class_path"):
        return f"{option}: has other options beside it; put its arguments under init_args"
    if not option.startswith("-"):
        return f"{option}: one word too many; drop it, or write a list as '[a, b]'"
    names = list(known)
    if option.removeprefix("--") in names:
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
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = modules[-1]
    kinds = (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError)
    if isinstance(error, AttributeError):  # a module has no class of this name, or a model no part for a callback
        is_of_callback = modules[-2:] == ["lightning.pytorch.callbacks.finetuning", "torch.nn.modules.module"]
        return is_of_callback or module.startswith("jsonargparse.")
    return isinstance(error, kinds) and module.startswith(("lightning.", "jsonargparse.", "torch.optim."))


def _place(error: BaseException) -> str:
    """Return in which line of the user's own code the first cause of an error was raised, or nothing."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        path = Path(frame.f_code.co_filename)
        is_library = "site-packages" in path.parts or package == "softmax_regression"
        is_own = not is_library and package not in sys.stdlib_module_names
        place = f" ({path.name}, line {line})" if is_own else ""
    return place


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
        return f"error: {shorten_parser_error(str(error), known())}{_place(error)}", InputError.exit_code
    if isinstance(error, OSError):  # raised by a library that reads or writes files, such as TensorBoard
        return f"error: {error}", StorageError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return shorten(f"error: a checkpoint of another model: {error}", 400), InputError.exit_code
    if _is_about_options(error):
        return f"error: {shorten_parser_error(str(error))}{_place(error)}", InputError.exit_code
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
