"""Interruption by a signal: all processes learn of it at the same step, the run is saved, and the command ends."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from softmax_regression.engine.ddp import SharedSignals, new_signals
from softmax_regression.errors import Interrupted, shell_command
from softmax_regression.runs.processes import SIGNALS, Command, install_signal_handlers, restore_signal_handlers


class Interruption:
    """The signal handlers of a run, from its first step to its last.

    Attributes:
        folder: The folder of the run, None if it has none.
        signals: The signals that this process and the others have received.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.signals = SharedSignals()
        self._handlers: dict[int, Any] = {}  # the handlers before those of the run

    def begin(self, trainer: Trainer, folder: Path | None) -> None:
        """Install the signal handlers, after Lightning has installed its own."""
        self.folder = folder
        self.signals = new_signals(trainer)
        if "SLURM_JOB_ID" in os.environ:
            self._handlers = install_signal_handlers([*SIGNALS, "SIGUSR1"], self._on_signal)
            if self._handlers:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py has blocked it
        else:
            self._handlers = install_signal_handlers(SIGNALS, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signals.received:
            raise Interrupted(number, f"at once; {self._remedy()}")
        self.signals.received = number

    def _remedy(self) -> str:
        if not self.folder:
            return "nothing was saved, for the run has no folder"
        command = shell_command("train.py", "fit", "--resume", str(self.folder))
        return f"resume with `{command}`"

    def end_if_interrupted(self, trainer: Trainer) -> None:
        """End the run, which has been saved, if any process has received a signal.

        Raises:
            Interrupted: One has received a signal.
        """
        number = self.signals.agreed
        if not number:
            return
        self._ignore_signals()
        if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
            with suppress(OSError, subprocess.SubprocessError):  # saved, whether or not SLURM can be told
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False, timeout=30)
        if self.folder:
            raise Interrupted(number, f"saved; {self._remedy()}")
        raise Interrupted(number, self._remedy())

    def end(self, exception: BaseException | None = None) -> None:
        """Restore the signal handlers, unless a signal has ended the run: then ignore further signals."""
        if isinstance(exception, Interrupted):
            self._ignore_signals()
            return
        restore_signal_handlers(self._handlers)
        self._handlers = {}

    def _ignore_signals(self) -> None:
        """Ignore further signals, so that the message is printed: `scontrol requeue` sends SIGTERM.

        Lightning restores the handlers of the command before that; `is_ending` tells them to ignore signals.
        """
        Command.is_ending = True
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
