"""What ends a command: every known kind of error is one true line and an exit code; a bug keeps its traceback."""

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError
from softmax_regression.runs.trust import TRUSTED

_REFUSED = re.compile(r"(?:Parser key \"([\w.]+)\")?.*?Importing '([^']+)' is not allowed", re.DOTALL)
_UNKNOWN = re.compile(
    r"(?:Unrecognized arguments|unrecognized arguments): (--[\w.]+)|Option '([\w.]+)' is not accepted"
)
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*?\]|Errors:|- Expected a <class 'NoneType'>"
)


class Words:
    """A stream whose loss costs nothing: what cannot be written to a closed pipe or a full disk is dropped."""

    def __init__(self, stream: object) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, unless nobody reads any more."""
        try:
            self.stream.write(text)  # type: ignore[attr-defined]
            self.stream.flush()  # type: ignore[attr-defined]
        except (OSError, ValueError, AttributeError):
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (open until the end)
        return len(text)

    def __getattr__(self, name: str) -> object:
        """Be the stream in everything else."""
        return getattr(self.stream, name)


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Put what jsonargparse says into one line, and in few words where they are known.

    Args:
        message: What it says.
        options: The options that there are, to find the one that was meant.
    """
    if refused := _REFUSED.search(message):
        option, name = refused.groups()
        return (
            f"{option + ': ' if option else ''}class {name} is refused, for naming a class runs its module; "
            f"use one of {', '.join(TRUSTED)}"
        )
    if unknown := _UNKNOWN.search(message):
        flag = unknown.group(1) or f"--{unknown.group(2)}"
        name = flag.lstrip("-").rpartition(".")[2]
        known = {option.rpartition(".")[2]: option for option in sorted(options, key=len, reverse=True)}
        near = difflib.get_close_matches(name, known, n=1)
        return f"{flag}: no such option" + (f"; did you mean {known[near[0]]}" if near else "")
    return " ".join(_NOISE.sub(" ", message).split())


def _say_once(line: str) -> None:
    """Say what all processes of a machine find wrong alike, as they do until they are joined."""
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if local_rank == "0" or (distributed.is_available() and distributed.is_initialized()):
        print(line, file=sys.stderr)


def _of_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, as it does where options contradict each other."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    return module.startswith(("lightning.", "jsonargparse."))


def exit_code(error: BaseException, options: Iterable[str] = ()) -> int | None:
    """Say what went wrong in one line and return the exit code; None for a bug, which nobody foresaw."""
    if isinstance(error, Interrupted | DivergedError):  # on all processes alike
        prefix = "" if isinstance(error, Interrupted) else "error: "
        rank_zero_only(print)(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, StorageError | LostProcessError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, InputError):
        _say_once(f"error: {error}")
        return error.exit_code
    if isinstance(error, ArgumentError | MisconfigurationException):
        _say_once(f"error: {explain(str(error), options)}; see --help")
        return InputError.exit_code
    if isinstance(error, ImportError | ValueError | TypeError | RuntimeError) and _of_lightning(error):
        _say_once(f"error: {explain(str(error))}; change the option that it names")
        return InputError.exit_code
    if isinstance(error, OSError):  # of a library that writes or reads for us, such as TensorBoard
        print(f"error: {error}; free space or make the folder writable", file=sys.stderr)
        return StorageError.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal end a command wherever it is; `LastCheckpoint` takes them over in training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second one must not come between this one and its line
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, "nothing was saved")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(command: Callable[[], object], options: Callable[[], Iterable[str]] = tuple) -> int:
    """Run a command and return its exit code; a user's mistake is one line on stderr.

    Args:
        command: What to run.
        options: Returns the options that it knows, to find the one that a mistyped one meant.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each if isinstance(each, Words) else Words(each) for each in streams)  # type: ignore[assignment]
    try:
        with _interruptible():
            command()
    except BaseException as error:
        if (code := exit_code(error, options())) is None:
            raise
        return code
    finally:
        sys.stdout, sys.stderr = streams
    return 0
