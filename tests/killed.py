"""Commands in processes of their own, which may be sent signals, or kill themselves at a chosen moment.

All of them are forked from one server that has imported the package but never computed: real processes,
without the seconds that the import takes.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

Process = ForkServerProcess
CONTEXT: ForkServerContext = get_context("forkserver")
CONTEXT.set_forkserver_preload(["softmax_regression.commands.train", "torch.utils.tensorboard"])


def start(
    folder: Path,
    args: Sequence[str],
    moment: str | None = None,
    call: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Process:
    """Start `train.py` in a folder; its output goes to log.txt there.

    Args:
        folder: Where to run it.
        args: The command line.
        moment: `mid-epoch`, `in validation` or `inside a save`: where it kills itself; None for not.
        call: How many times it comes there before it does.
        environ: Environment variables to add.
    """
    process = CONTEXT.Process(target=_command, args=(folder, list(args), moment, call, environ or {}))
    process.start()
    return process


def _command(
    folder: Path, args: list[str], moment: str | None, call: int, environ: Mapping[str, str]
) -> None:
    import torch

    from softmax_regression.commands.train import main

    os.environ |= environ
    redirect(folder)
    torch.set_num_threads(1)
    if moment:
        _die_at(moment, call)
    sys.exit(main(args))


def redirect(folder: Path) -> None:
    """Go to a folder, and write there in log.txt what would go to stdout and stderr."""
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _die_at(moment: str, call: int) -> None:
    from softmax_regression.model import SoftmaxRegression

    owner, name = {
        "mid-epoch": (SoftmaxRegression, "_learn"),
        "in validation": (SoftmaxRegression, "validation_step"),
        "inside a save": (os, "fsync"),
    }[moment]
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def deadly(*args: Any) -> Any:
        if next(calls) == call:
            if name == "fsync":  # as if only a part had been written
                os.ftruncate(args[0], os.fstat(args[0]).st_size * (call % 4) // 3)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, deadly)


def start_saving(path: Path, moment: str | None, call: int) -> Process:
    """Start a process that saves a checkpoint over and over, and says so by a file named `started`."""
    process = CONTEXT.Process(target=_save_for_ever, args=(path, moment, call))
    process.start()
    return process


def _save_for_ever(path: Path, moment: str | None, call: int) -> None:
    from softmax_regression.runs import checkpoint

    saved = checkpoint.read(path)
    if moment:
        _die_at(moment, call)
    path.with_name("started").touch()
    while True:
        saved["global_step"] += 1
        checkpoint.write(checkpoint.dumps(saved), path)
