"""The processes of a run: their number, threads and signals, and how all of them end when one fails."""

import atexit
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from torch import accelerator, distributed, set_num_threads
from torch.distributed import DistError

from softmax_regression.engine.ddp import ExactDDP
from softmax_regression.errors import InputError, Interrupted, LostProcessError

print_rank_zero = rank_zero_only(print)
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # they interrupt a command
TIMEOUT = timedelta(seconds=60)  # to wait for a process that does not start or does not answer
GRACE = 10.0  # seconds in which the first process of a machine can print the error that all of them have met
LEAD = 3.0  # seconds in which the others can meet that error before srun ends them, as soon as the first has ended


class Command:
    """The state of the command that this process runs."""

    is_ending = False  # by a signal or an error: no further signal may prevent its message


def _number(name: str) -> int:
    """Return the number in an environment variable of torchrun or srun; 1 where it is not set."""
    value = os.environ.get(name, "1")
    if not value.isdecimal() or int(value) == 0:
        raise InputError(f"{name}={value}: must be a whole number above 0, or not set")
    return int(value)


def cores() -> int:
    """Return the number of CPU cores of this machine that the processes of a run may use together."""
    if "SLURM_CPUS_ON_NODE" in os.environ:  # of which srun may bind each process to its own
        return _number("SLURM_CPUS_ON_NODE")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(asked: int | None, processes: int) -> None:
    """Set the number of CPU threads of each process: `asked`, or else OMP_NUM_THREADS, or else one.

    One, since two threads are slower as soon as a core is busy: see the table in docs/speed.md.
    """
    if asked is None and not os.environ.get("OMP_NUM_THREADS"):
        asked = 1
    if asked is not None:
        set_num_threads(max(1, min(asked, cores() // processes)))


def launched_devices() -> dict[str, int]:
    """Return `devices` (per node) and `num_nodes` if torchrun or srun has started several processes; else nothing.

    Raises:
        InputError: A machine without a GPU has fewer CPU cores than processes, or a variable is no number.
    """
    for world, nodes, option in (
        ("WORLD_SIZE", "GROUP_WORLD_SIZE", "torchrun --nproc_per_node"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "srun --ntasks-per-node"),
    ):
        total, num_nodes = _number(world), _number(nodes)
        if nodes in os.environ and total > 1:
            devices = total // num_nodes
            most = cores()
            if devices > most and not accelerator.is_available():
                raise InputError(f"{devices} processes: the machine has {most} CPU cores; {option} {most}")
            return {"devices": devices, "num_nodes": num_nodes}
    return {}


def install_signal_handlers(names: Sequence[str], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler for signals, except for those that are ignored, such as SIGHUP under nohup.

    Returns:
        The previous handlers, for `restore_signal_handlers`; empty outside the main thread, where none can be set.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for number in signal.Signals:  # Windows lacks some of the names
        if number.name in names and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    return before


def restore_signal_handlers(handlers: Mapping[int, Any]) -> None:
    """Install the handlers that `install_signal_handlers` has returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def check_equal_epochs(trainer: Trainer) -> None:
    """Refuse training data of which one process has more minibatches than another, for which it would wait."""
    if trainer.world_size == 1 or trainer.max_steps != -1:
        return
    number = trainer.num_training_batches
    numbers = torch.tensor([number, -number], dtype=torch.float64, device=trainer.strategy.root_device)
    most, least = trainer.strategy.reduce(numbers, reduce_op="max").abs().tolist()
    if least < most:
        raise InputError(
            f"process {trainer.global_rank}: {number} training minibatches an epoch, but the processes have "
            f"{least:.0f} to {most:.0f}, and all of them take each step; give them equally many, or "
            f"--trainer.limit_train_batches {least:.0f}"
        )


def is_local_rank_zero() -> bool:
    """Return whether this is the first process of its machine, or the only one."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def is_speaking_process() -> bool:
    """Return whether this process prints an error.

    Before the processes have connected, all of them meet the same error, and only local rank 0 prints it.
    """
    return is_local_rank_zero() or (distributed.is_available() and distributed.is_initialized())


def _destroy_process_group() -> None:
    """End the process group: its threads would abort the interpreter if they were still running at exit."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def distributed_session() -> Iterator[None]:
    """Run a block in which no process waits for ever for another, outlives its parent, or fails silently.

    Raises:
        LostProcessError: Another process has ended or does not answer.
    """
    for entry in StrategyRegistry.values():
        if entry["strategy"] is DDPStrategy:
            entry.update(strategy=ExactDDP, init_params=entry["init_params"] | {"timeout": TIMEOUT})
    # This logger says which process has ended, before the launcher kills the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: NCCL would wait for the dead
    atexit.register(_destroy_process_group)
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and (isinstance(error, DistError) or "gloo" in str(error)):
            atexit.unregister(_destroy_process_group)  # NCCL would wait for the dead
            reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". This is typically")[0]
            raise LostProcessError(
                f"process {getattr(rank_zero_only, 'rank', 0)}: {reason}; another has ended, never came, or "
                "holds the port: see what it said, then continue with --resume"
            ) from error
        if not is_speaking_process() and os.environ.keys() & {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}:
            with suppress(Interrupted):  # as soon as one process has ended, torchrun and srun end the others
                time.sleep(GRACE)
        elif os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" and not distributed.is_initialized():
            time.sleep(LEAD)
        raise
