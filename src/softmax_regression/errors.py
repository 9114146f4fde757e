"""The ways a command can fail, each with its exit code (see docs/guarantees.md); commands that help."""

import shlex
import signal
import sys
from pathlib import Path


class InputError(ValueError):
    """A mistake in flags, configuration, data or checkpoints: one line, exit code 2."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss or a weight is not finite any more, or means nothing: one line, exit code 3."""

    exit_code = 3


class StorageError(OSError):
    """A result could not be saved or read back: one line, exit code 4."""

    exit_code = 4


class LostProcessError(RuntimeError):
    """Another process of a run on several has ended, or never came: one line, exit code 5."""

    exit_code = 5


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + the signal, as in a shell."""

    def __init__(self, number: int, outcome: str) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}: {outcome}")
        self.code = self.exit_code = 128 + number


def format_error(error: BaseException) -> str:
    """Return an error with its kind, as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def shell_command(script: str, *words: str) -> str:
    """Return a command of train.py or study.py as it is typed here.

    Both scripts lie in this folder, or beside the one that runs, or the package is installed without them.
    """
    beside = Path(sys.argv[0]).with_name(script)
    if Path(script).is_file():
        program = ["python", script]
    elif sys.argv[0].endswith(".py") and beside.is_file():
        program = ["python", str(beside)]
    else:
        program = ["softmax-regression"]
    return shlex.join([*program, *words])
