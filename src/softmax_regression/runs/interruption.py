"""How a signal interrupts a run: all processes learn of it at the same step, which is saved, and then the run ends."""

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
from softmax_regression.runs.processes import SIGNALS, install_signal_handlers, restore_signal_handlers


class Interruption:
    """The signals of a run, from its first step to its last.

    Attributes:
        folder: The folder of the run, None if it has none.
        signals: What has come, on this process and on the others.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.signals = SharedSignals()
        self._handlers: dict[int, Any] = {}  # those that were there before

    def begin(self, trainer: Trainer, folder: Path | None) -> None:
        """Take over the signals, after Lightning has set its handlers."""
        self.folder = folder
        self.signals = new_signals(trainer)
        if "SLURM_JOB_ID" in os.environ:
            self._handlers = install_signal_handlers([*SIGNALS, "SIGUSR1"], self._on_signal)
            if self._handlers:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # train.py let it wait
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
        return f"go on with `{command}`"

    def end_if_interrupted(self, trainer: Trainer) -> None:
        """End the run, which has been saved, if a signal has come to any process.

        Raises:
            Interrupted: One has.
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
        """Give the signals back, unless one has ended the run."""
        if isinstance(exception, Interrupted):
            self._ignore_signals()
            return
        restore_signal_handlers(self._handlers)
        self._handlers = {}

    def _ignore_signals(self) -> None:
        """Let no other signal come between one that ends the run and its line: `scontrol requeue` sends SIGTERM."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
