"""Run a command: its output, signals, and exit code."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from softmax_regression.commands.messages import describe_error
from softmax_regression.commands.quiet import quiet_lightning
from softmax_regression.errors import DivergedError, Interrupted, LostProcessError
from softmax_regression.runs import processes


class BrokenPipeSafeStream:
    """A stream that drops what cannot be written, as when a pipe is closed or a disk is full, and raises no error.

    A line is written at once, so that no other process writes into it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream or io.StringIO()
        self._line = ""  # as far as it has been written
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # for letters that the locale lacks

    def write(self, text: str) -> int:
        """Keep a text until its line ends."""
        self._line += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what is kept, or drop it and all later texts."""
        text, self._line = self._line, ""
        try:
            if text:
                self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # or Python complains when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.stream = io.StringIO()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self.stream, name)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first signal end a command at once, and ignore others; training has handlers of its own."""
    processes.Command.is_ending = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not processes.Command.is_ending:
            processes.Command.is_ending = True
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
    with redirect_stdout(out), redirect_stderr(err), _interruptible():
        try:
            with quiet_lightning():
                sys.path.append(str(Path.cwd()))  # the user's own modules, after all installed ones
                command()
        except BaseException as error:
            processes.Command.is_ending = True
            found = describe_error(error, known)
            if found is None:
                raise
            message, code = found
            if _is_printed(error):
                print(message, file=sys.stderr)
            return code
        finally:
            sys.path[:] = path
            out.flush()
            err.flush()
    return 0


def _is_printed(error: BaseException) -> bool:
    """Return whether this process prints an error: one that all processes of a machine meet is printed once."""
    if isinstance(error, OSError | LostProcessError):
        return True
    if isinstance(error, Interrupted | DivergedError):
        return processes.is_local_rank_zero()
    return processes.is_speaking_process()
