"""What ends a command: every known kind of error is one true line and an exit code; a bug keeps its traceback."""

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError
from softmax_regression.runs.trust import REFUSED

_REFUSED = re.compile(r"Importing '([^']+)' is not allowed")
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (\S+)|Option '([^']+)' is not accepted")
_REASON = re.compile(r"Problem with given class_path '([^']*)':\s+(?!\s|Parser key)(.+)|(Import path does .+)")
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\]|(dot import path))")
_TYPES = {
    "NoneType": "null", "Sequence": "a list", "Iterable": "a list", "list": "a list",
    "dot import path": "the name of a class with its module",
}  # fmt: skip


class Words:
    """A stream whose loss costs nothing: what a closed pipe or a full disk does not take is dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # of letters that the locale does not have

    def write(self, text: str) -> int:
        """Write, unless nobody reads any more."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError, AttributeError):
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (open until the end)
            with suppress(OSError, ValueError, AttributeError):  # or Python complains when it ends
                os.dup2(nowhere.fileno(), self.stream.fileno())
            self.stream = nowhere
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self.stream, name)


def explain(message: str, known: Iterable[str] = ()) -> str:
    """Put what jsonargparse says into one line, and in few words where they are known.

    Args:
        message: What it says.
        known: The options that there are, to find the one that was meant.
    """
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if refused := _REFUSED.search(message):
        return f"{key}: class {refused[1]} {REFUSED}"
    if unknown := _UNKNOWN.search(message):
        option = unknown[1] or f"--{key and key + '.'}{unknown[2]}"
        return f"{option}: no such option{_meant(option, known)}"
    given = re.search(r"(?:Got|Given) value: (.*)", message)
    kinds = [_TYPES.get(found[1] or found[3], found[1]) or found[2] for found in _EXPECTED.finditer(message)]
    reasons = [found[2] or found[3] for found in _REASON.finditer(message)]
    reasons = reasons or [f"expected {' or '.join(dict.fromkeys(kinds))}"] if kinds else []
    if not reasons:
        return " ".join(message.split())
    named = _REASON.search(message)
    what = f"{key}={given[1]}" if key and given and "Namespace(" not in given[1] else named and named[1]
    return f"{what}: {' '.join(reasons[0].split())}"


def _meant(option: str, known: Iterable[str]) -> str:
    """Name the options whose whole name, or whose last part, is nearest to a mistyped one."""
    if not option.startswith("-"):
        return "; a list is written as '[a, b]'"
    name, last = option.lstrip("-"), {each: each.rpartition(".")[2] for each in sorted(known)}
    near = difflib.get_close_matches(name, last, n=1, cutoff=0.8)
    if not near and name and "." not in name:
        parts = difflib.get_close_matches(name, set(last.values()), n=2, cutoff=0.7)
        near = [each for each, part in last.items() if part in parts or part.startswith(name)][:3]
    return f"; did you mean {' or '.join(f'--{each}' for each in near)}" if near else "; see --help"


def _of_lightning(error: BaseException) -> bool:
    """Whether a library that is made of options raised an error, as where they contradict each other."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    return module.startswith(("lightning.", "jsonargparse.", "torch.optim."))


def _line(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return what to say of an error, and the exit code; None for a bug, which nobody foresaw."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if isinstance(error, ValueError | ArgumentError):  # jsonargparse wraps what a class says of its arguments
        error = next((each for each in causes if isinstance(each, InputError)), error)
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, InputError | DivergedError | StorageError | LostProcessError):
        return f"error: {error}", error.exit_code
    if isinstance(error, ArgumentError):
        return f"error: {explain(str(error), known())}", InputError.exit_code
    if isinstance(error, MisconfigurationException | ImportError | ValueError | TypeError | RuntimeError):
        return (f"error: {explain(str(error))}", InputError.exit_code) if _of_lightning(error) else None
    if isinstance(error, OSError):  # of a library that writes or reads for us, such as TensorBoard
        return f"error: {error}; free space or make the folder writable", StorageError.exit_code
    return ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else None


def _say(line: str, error: BaseException) -> None:
    """Say a line once, where all processes of a machine find the same."""
    if isinstance(error, Interrupted | DivergedError):
        rank_zero_only(print)(line, file=sys.stderr)
        return
    alone = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
    joined = distributed.is_available() and distributed.is_initialized()  # what one finds, another need not
    if alone or joined or not isinstance(error, ValueError | ArgumentError | MisconfigurationException):
        print(line, file=sys.stderr)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a signal end a command wherever it is; `LastCheckpoint` takes them over in training."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second one must not come between this one and its line
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number, "nothing was saved")

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()
    asked = [each for each in signals if in_main and signal.getsignal(each) != signal.SIG_IGN]  # as nohup does
    before = {number: signal.signal(number, interrupt) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(command: Callable[[], object], known: Callable[[], Iterable[str]] = tuple) -> int:
    """Run a command and return its exit code; a user's mistake is one line on stderr.

    Args:
        command: What to run.
        known: Returns the options that it knows, to find the one that a mistyped one meant.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each if isinstance(each, Words) else Words(each) for each in streams)  # type: ignore[assignment]
    try:
        with _interruptible():
            command()
    except BaseException as error:
        if (found := _line(error, known)) is None:
            raise
        _say(found[0], error)
        return found[1]
    finally:
        sys.stdout, sys.stderr = streams
    return 0
