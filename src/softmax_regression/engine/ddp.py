"""What the processes of a run share at its steps: the exact gradient of a minibatch, and signals."""

import signal
import time
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

SECONDS = 0.5  # between two exchanges of signals
MAX_STEPS = 1000  # between two exchanges of signals, if a step takes less than half a millisecond


class ExactDDP(DDPStrategy):
    """Lightning's DDP, whose gradient is the mean over a minibatch even if the shares of it are uneven.

    DDP takes the mean of the processes' gradients, each the mean over a share. Here a share that is smaller
    counts for less, and an empty one for nothing: the training loader says how much, if it is `Minibatches`.
    """

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Let the gradient of a loss count for this process's share of the minibatch."""
        super().pre_backward(closure_loss)
        assert self.lightning_module is not None
        share = getattr(self.lightning_module.trainer.train_dataloader, "share", 1.0)
        if share != 1.0 and closure_loss.requires_grad:
            closure_loss.register_hook(lambda gradient: gradient * share)


class SharedSignals:
    """Which signal has reached any process of a run, known to all of them at the same step.

    To find out costs an exchange, for which the CPU waits on a GPU. The processes exchange about twice a second, at
    steps that all of them know beforehand: the first one measures its steps, and tells the others how many there
    are until the next exchange. A process alone knows at once.

    Attributes:
        received: The number of the first signal that this process has received, 0 for none.
        terminated: Whether it has received a SIGTERM that Lightning would have noted.
        wants_save: Whether this process asks for a checkpoint.
        agreed: The highest number that any process had received at the last exchange.
        save: Whether any process had asked for a checkpoint then.
        sigterm: Whether Lightning had noted a SIGTERM in any process then.
    """

    def __init__(self, processes: int = 1) -> None:
        self.is_alone = processes == 1
        self.received = 0
        self.terminated = False
        self.wants_save = False
        self.agreed = 0
        self.save = False
        self.sigterm = False
        self._batch = -1  # the last one of which `at_step` was told
        self._steps = 0  # since the last exchange
        self._interval = 1  # steps between the last exchange and the next one
        self._exchanged_at = time.monotonic()

    def at_step(self, trainer: Trainer, batch: int) -> None:
        """Exchange if it is time to; to be called by every process for each minibatch, counted over the run."""
        if self.is_alone:
            self.exchange(trainer)
            return
        if batch == self._batch:  # the engine and LastCheckpoint both call
            return
        self._batch = batch
        self._steps += 1
        if self._steps >= self._interval:
            self.exchange(trainer)

    def note_sigterm(self, *_: Any) -> None:
        """Note a SIGTERM, for the next exchange."""
        self.terminated = True

    def exchange(self, trainer: Trainer) -> None:
        """Exchange signals and requests to save with the other processes; all of them must call this."""
        if self.is_alone:
            self.agreed = self.received
            self.save = self.wants_save
            return
        elapsed = max(time.monotonic() - self._exchanged_at, 1e-6)
        wanted = int(self._steps * SECONDS / elapsed)
        # At most twice as many as before: the first steps of a run, or those after a validation, tell little.
        wanted = max(1, min(wanted, 2 * self._interval, MAX_STEPS))
        if not trainer.is_global_zero:
            wanted = 0
        terminated = self.terminated or trainer.received_sigterm
        mine = [float(self.received), float(self.wants_save), float(terminated), float(wanted)]
        tensor = torch.tensor(mine, device=trainer.strategy.root_device)
        reduced = trainer.strategy.reduce(tensor, reduce_op="max")
        agreed, save, sigterm, interval = reduced.tolist()
        self.agreed = int(agreed)
        self.save = save > 0
        self.sigterm = sigterm > 0
        self._interval = int(interval)
        self._steps = 0
        self._exchanged_at = time.monotonic()


_SIGNALS: WeakKeyDictionary[Trainer, SharedSignals] = WeakKeyDictionary()


def new_signals(trainer: Trainer) -> SharedSignals:
    """Return an object for the signals of the run that a Trainer begins; `signals_of` returns the same one."""
    _SIGNALS[trainer] = SharedSignals(trainer.world_size)
    return _SIGNALS[trainer]


def signals_of(trainer: Trainer) -> SharedSignals:
    """Return the one object for the signals of a Trainer's run."""
    return _SIGNALS.get(trainer) or new_signals(trainer)


def share_sigterm(trainer: Trainer) -> None:
    """Let a SIGTERM to one process end all of them, where Lightning's handler would wait for the others for ever."""
    handlers = getattr(signal.getsignal(signal.SIGTERM), "signal_handlers", [])
    lightnings = trainer._signal_connector._sigterm_notifier_fn
    for place, handler in enumerate(handlers):
        if handler == lightnings:
            handlers[place] = signals_of(trainer).note_sigterm
