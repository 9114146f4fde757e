"""What ends a command: a known kind of error is one true line and an exit code; a bug keeps its traceback."""

import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from softmax_regression.commands.quiet import quiet_lightning
from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError
from softmax_regression.runs.processes import (
    SIGNALS,
    install_signal_handlers,
    is_local_rank_zero,
    is_speaking_process,
    restore_signal_handlers,
)
from softmax_regression.runs.trust import refused

# What jsonargparse says.
_REFUSED = re.compile(r"Importing '([^']+)' is not allowed")
_UNKNOWN = re.compile(r"nrecognized arguments: ([^\s=]+)|ption '(\S+)' is not acc|cept option '(\S+)'")
_REASON = re.compile(r"class_path '(\S+)':\s+(?!\s|Parser)(.+)|(Import path does .+|Unable to load \S+ \S+)")
_EXPECTED = re.compile(r"Expected (?:a )?(?:<class '[\w.]*?(\w+)'>|typing.Literal\[(.+?)\]|(dot import path))")
_TYPES = {"NoneType": "null", "Sequence": "list", "Iterable": "list", "dot import path": "module.Class"}


class BrokenPipeSafeStream:
    """A stream whose loss costs nothing: what a closed pipe or a full disk does not take is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream or io.StringIO()
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # of letters that the locale does not have

    @classmethod
    def over(cls, stream: Any) -> "BrokenPipeSafeStream":
        """Return such a stream over another one, or the stream itself if it is one."""
        return stream if isinstance(stream, cls) else cls(stream)

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
    """Put what jsonargparse says into one line, and in few words; name the known option that is meant."""
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if found := _REFUSED.search(message):
        return f"{key}: {refused(found[1])}"
    if unknown := _UNKNOWN.search(message):
        option = unknown[1] or f"--{key and key + '.'}{unknown[2] or unknown[3]}"
        if not option.startswith("-"):
            return f"{option}: one word too many; drop it, or write a list as '[a, b]'"
        return f"{option}: no such option; {_meant(option, known)}"
    given, named = re.search(r"(?:Got|Given) value: (.*)", message), _REASON.search(message)
    kinds = [_TYPES.get(found[1] or found[3], found[1]) or found[2] for found in _EXPECTED.finditer(message)]
    if not named and not kinds:
        return " ".join(message.split())
    reason = named[2] or named[3] if named else f"expected {' or '.join(dict.fromkeys(kinds))}"
    short = given and "Namespace(" not in given[1]
    return f"{f'{key}={given[1]}' if given and short else key or (named and named[1])}: {reason}"


def _meant(option: str, known: Iterable[str]) -> str:
    """Name the options whose whole name, or whose last part, is nearest to a mistyped one."""
    name, last = option.lstrip("-"), {each: each.rpartition(".")[2] for each in sorted(known)}
    near = difflib.get_close_matches(name, last, n=1, cutoff=0.8)
    if not near and name and "." not in name:
        parts = difflib.get_close_matches(name, set(last.values()), n=2, cutoff=0.7)
        near = [each for each, part in last.items() if part in parts or part.startswith(name)][:3]
    return f"did you mean {' or '.join(f'--{each}' for each in near)}" if near else "see --help"


def _of_options(error: BaseException) -> bool:
    """Whether a library that takes options raised an error itself, as where they contradict each other."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    kinds = (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError)
    return isinstance(error, kinds) and module.startswith(("lightning.", "jsonargparse.", "torch.optim."))


def _line(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return what to say of an error, and the exit code; None for a bug, which nobody foresaw."""
    cause: BaseException | None = error
    while isinstance(error, ValueError | ArgumentError) and cause and not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__  # jsonargparse wraps what a class says of its arguments
    match cause or error:
        case Interrupted() as found:
            return str(found), found.exit_code
        case InputError() | DivergedError() | StorageError() | LostProcessError() as found:
            return f"error: {found}", found.exit_code
        case ArgumentError() as found:
            return f"error: {shorten_parser_error(str(found), known())}", InputError.exit_code
        case OSError() as found:  # of a library that writes or reads for us, such as TensorBoard
            return f"error: {found}", StorageError.exit_code
        case KeyboardInterrupt():
            return "interrupted", 130
        case found:
            return (f"error: {shorten_parser_error(str(found))}", InputError.exit_code) if _of_options(found) else None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal end a command wherever it is; `LastCheckpoint` takes them over in training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second one must not come between this one and its line
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, "nothing was saved")

    before = install_signal_handlers(SIGNALS, interrupt)
    try:
        yield
    finally:
        restore_signal_handlers(before)


def run_command(command: Callable[[], object], known: Callable[[], Iterable[str]]) -> int:
    """Run a command, which knows some options, and return its exit code; a user's mistake is one line."""
    streams, path = (sys.stdout, sys.stderr), sys.path.copy()
    sys.stdout, sys.stderr = (
        each if isinstance(each, BrokenPipeSafeStream) else BrokenPipeSafeStream(each) for each in streams
    )
    try:
        with _interruptible(), quiet_lightning():
            sys.path.append(str(Path.cwd()))  # a user's own modules, which hide none that is installed
            command()
    except BaseException as error:
        if (found := _line(error, known)) is None:
            raise
        # What all processes of a machine find is said once; what one of them finds once they are joined, too.
        alike = isinstance(error, Interrupted | DivergedError)
        if isinstance(error, OSError | LostProcessError) or (is_local_rank_zero() if alike else is_speaking_process()):
            print(found[0], file=sys.stderr)
        return found[1]
    finally:
        (sys.stdout, sys.stderr), sys.path[:] = streams, path
    return 0
