"""Processes that run commands together, as torchrun or srun would start them, but at once.

They are forked from a server that has imported everything, and are real otherwise: they can be killed.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["softmax_regression.commands.train"])
ROOT = Path(__file__).parents[1]
LIMIT = 100  # seconds that a group may take
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as in train.py; torch reads it as it is imported

Environment = Callable[[int, int], dict[str, str]]  # of a rank of a number of processes


def torchrun(rank: int, n: int) -> dict[str, str]:
    """What torchrun tells its processes, on one node."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "GROUP_WORLD_SIZE": 1}
    return {name: str(value) for name, value in ranks.items()} | {"TORCHELASTIC_RUN_ID": "none"}


def two_nodes(rank: int, n: int) -> dict[str, str]:
    """What torchrun tells its processes, on two nodes of n/2 processes."""
    node, local_rank = divmod(rank, n // 2)
    here = {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": n // 2, "GROUP_RANK": node, "GROUP_WORLD_SIZE": 2}
    return torchrun(rank, n) | {name: str(value) for name, value in here.items()}


def slurm(rank: int, n: int) -> dict[str, str]:
    """What srun tells its processes, on one node."""
    numbers = {"PROCID": rank, "LOCALID": rank, "NTASKS": n, "NTASKS_PER_NODE": n, "STEP_NUM_TASKS": n,
               "STEP_NUM_NODES": 1, "NNODES": 1, "NODEID": 0, "JOB_ID": 4711}  # fmt: skip
    names = {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "softmax"}
    return {f"SLURM_{name}": str(value) for name, value in numbers.items()} | names


def alone(rank: int, n: int) -> dict[str, str]:
    """Nobody started this process but a person."""
    return {}


@dataclass
class Ended:
    """How a process ended: its exit code, or minus the signal that killed it, and what it wrote."""

    code: int | None
    out: str
    err: str


def run_group(
    n: int,
    *commands: Sequence[str],
    environment: Environment = torchrun,
    ranks: Sequence[int] | None = None,
    kill: tuple[int, signal.Signals, int] | None = None,
    env: dict[str, str] | None = None,
    patience: int = 60,
    cores: int = 8,
) -> list[Ended]:
    """Run commands one after the other, in n processes, in the current folder.

    Args:
        n: The number of processes that each believes in.
        commands: Command lines; the first that fails is the last.
        environment: How the processes are told of each other.
        ranks: Those of them that are there; None for all.
        kill: The rank, the signal that it gets, and the update before which it gets it.
        env: Further environment variables.
        patience: Seconds that they wait for each other.
        cores: CPU cores that each believes in.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = range(n) if ranks is None else ranks
    files = [Path(f"group-{time.time_ns()}-{rank}").absolute() for rank in ranks]
    processes = []
    for rank, file in zip(ranks, files, strict=True):
        variables = address | environment(rank, n) | (env or {})
        mine = kill[1:] if kill and kill[0] == rank else None
        arguments = (commands, variables, str(Path.cwd()), str(file), patience, cores, mine)
        processes.append(CONTEXT.Process(target=_work, args=arguments))
    deadline = time.monotonic() + LIMIT
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    texts = [(Path(f"{file}.out"), Path(f"{file}.err")) for file in files]
    return [
        Ended(process.exitcode, out.read_text(), err.read_text())
        for process, (out, err) in zip(processes, texts, strict=True)
    ]


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    """Start a Python program that no server has prepared, in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, *command], env=os.environ | env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what it wrote, once it has ended."""
    try:
        return process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _work(
    commands: Sequence[Sequence[str]], env: dict[str, str], folder: str, output: str, patience: int,
    cores: int, kill: tuple[signal.Signals, int] | None,
) -> None:  # fmt: skip
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))  # for the examples
    os.environ.update(env)
    for number, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT), number)

    from datetime import timedelta

    import torch

    from softmax_regression.commands.train import main
    from softmax_regression.runs import processes

    torch.set_num_threads(1)
    os.sched_getaffinity = lambda pid: set(range(cores))
    processes.TIMEOUT, processes.GRACE = timedelta(seconds=patience), 0
    if kill:
        _signal_itself(*kill)
    for command in commands:
        if code := main(command):
            sys.exit(code)


def _signal_itself(number: signal.Signals, update: int) -> None:
    from softmax_regression.classifier import Classifier

    original, calls = Classifier.training_step, iter(range(1, 10**9))

    def killing(*args: Any) -> Any:
        if next(calls) == update:
            os.kill(os.getpid(), number)
        return original(*args)

    Classifier.training_step = killing  # type: ignore[assignment, method-assign]
