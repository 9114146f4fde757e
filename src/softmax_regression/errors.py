"""Errors with their exit codes (see docs/guarantees.md), and the text of commands for messages."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """A mistake in flags, configuration, data or checkpoints: one line, exit code 2."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss or a weight is not finite or too large: one line, exit code 3."""

    exit_code = 3


class StorageError(OSError):
    """A result could not be saved or read back: one line, exit code 4."""

    exit_code = 4


class LostProcessError(RuntimeError):
    """Another process of a run has ended or has not started: one line, exit code 5."""

    exit_code = 5


class Interrupted(SystemExit):
    """A signal ended the command; the exit code is 128 + the signal, as in a shell."""

    def __init__(self, number: int, outcome: str) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}: {outcome}")
        self.code = self.exit_code = 128 + number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices; a command line does so by itself, Python does not."""
    if value not in choices:
        raise InputError(f"{name}={value}: expected {' or '.join(choices)}")


def format_error(error: BaseException) -> str:
    """Return the type and the message of an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def shell_command(script: str, *words: str) -> str:
    """Return a command of train.py or study.py as the user can type it in the current folder.

    The scripts are in this folder, or in that of the running script, or the package is installed without them.
    """
    beside = Path(sys.argv[0]).with_name(script)
    if Path(script).is_file():
        program = ["python", script]
    elif sys.argv[0].endswith(".py") and beside.is_file():
        program = ["python", str(beside)]
    else:
        program = ["softmax-regression"]
    return shlex.join([*program, *words])
