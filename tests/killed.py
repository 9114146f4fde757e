"""What happens to a run at a chosen moment: a signal, a kill; and commands in processes of their own.

The processes are forked from one server that has imported the package but never computed: real ones, without
the seconds that the import takes.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from softmax_regression.classifier import Classifier
from softmax_regression.runs import checkpoint
from softmax_regression.runs.checkpoint import SafeCheckpointIO

Process = ForkServerProcess
CONTEXT: ForkServerContext = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["softmax_regression.commands.train", "softmax_regression.commands.study", "torch.utils.tensorboard"]
)

MOMENTS: dict[str, tuple[type, str]] = {
    "mid-epoch": (Classifier, "training_step"),
    "in validation": (Classifier, "validation_step"),
    "at the end of an epoch": (Classifier, "on_train_epoch_end"),
    "after the row was logged": (Classifier, "on_train_epoch_end"),
    "before a save": (SafeCheckpointIO, "save_checkpoint"),
    "inside a save": (SafeCheckpointIO, "save_checkpoint"),
    "after a save": (SafeCheckpointIO, "save_checkpoint"),
}
Setter = Callable[[Any, str, Any], None]  # setattr, or that of pytest's monkeypatch


def strike(set_: Setter, moment: str, step: int, act: Callable[[], Any]) -> None:
    """Let something happen once, at the first such moment of a run that has made `step` steps."""
    owner, name = MOMENTS[moment]
    original, times = getattr(owner, name), count()

    def struck(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = args[0]["global_step"] if name == "save_checkpoint" else self.global_step
        due = now >= step and not next(times)
        if due and moment == "inside a save":
            half = checkpoint.dumps(args[0])[:5000]
            Path(args[1]).with_name(f".{Path(args[1]).name}.{os.getpid()}.tmp").write_bytes(half)
        if due and not moment.startswith("after"):
            act()
        result = original(self, *args, **kwargs)
        if due and moment.startswith("after"):
            act()
        return result

    set_(owner, name, struck)


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def start(
    folder: Path,
    args: Sequence[str],
    moment: str | None = None,
    step: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Process:
    """Start `train.py` in a folder, where its output goes to log.txt; it may kill itself, see `strike`."""
    process = CONTEXT.Process(target=_command, args=(folder, list(args), moment, step, environ or {}))
    process.start()
    return process


def _command(folder: Path, args: list[str], moment: str | None, step: int, environ: Mapping[str, str]) -> None:
    import torch

    from softmax_regression.commands.train import main

    os.environ |= environ
    redirect(folder)
    torch.set_num_threads(1)
    if moment:
        strike(setattr, moment, step, kill)
    sys.exit(main(args))


def start_study(folder: Path, args: Sequence[str]) -> Process:
    """Start `study.py` in a folder, where its output goes to log.txt."""
    process = CONTEXT.Process(target=_study, args=(folder, list(args)))
    process.start()
    return process


def _study(folder: Path, args: list[str]) -> None:
    import torch

    from softmax_regression.commands.study import main

    redirect(folder)
    torch.set_num_threads(1)
    sys.exit(main(args))


def redirect(folder: Path) -> None:
    """Go to a folder, and write there in log.txt what would go to stdout and stderr."""
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def start_saving(path: Path) -> Process:
    """Start a process that saves a checkpoint over and over, and says so by a file named `started`."""
    process = CONTEXT.Process(target=_save_for_ever, args=(path,))
    process.start()
    return process


def _save_for_ever(path: Path) -> None:
    saved = checkpoint.read(path)
    path.with_name("started").touch()
    while True:
        saved["global_step"] += 1
        SafeCheckpointIO().save_checkpoint(saved, path)
