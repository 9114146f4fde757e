"""macOS and Windows lack names that Linux has, and Apple's GPU has no float64: nothing here needs them."""

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors import signal_connector
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from commands import fit, manifest, only_run
from softmax_regression import (
    BestCheckpoint,
    EarlyStopping,
    Engine,
    FashionMNISTDataModule,
    LastCheckpoint,
    SoftmaxRegression,
    metrics,
)
from softmax_regression.commands.train import main
from softmax_regression.data.minibatches import Minibatches
from softmax_regression.runs import processes
from softmax_regression.runs.rows import RowCallback
from softmax_regression.studies.stacked import Stack

ROOT = Path(__file__).parents[1]
HIDDEN = {
    signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "SIGKILL", "pthread_sigmask"),
    os: ("sched_getaffinity", "fork", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "fchmod", "uname"),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without the names that Windows lacks, and where a user may make no links."""
    for module, names in HIDDEN.items():
        for name in names:
            monkeypatch.delattr(module, name)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(signal_connector, "_IS_WINDOWS", True)  # Lightning asks by the name of the system
    monkeypatch.setattr(signal, "valid_signals", lambda: {signal.SIGINT, signal.SIGTERM})
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)


def test_the_commands_work_without_these_names(elsewhere: None) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    run = str(only_run())
    assert main(["fit", "--resume", run, "--trainer.max_epochs=2"]) == 0
    assert main(["test", "--ckpt_path", run]) == 0
    assert main(["predict", "--ckpt_path", run, "--output", "out.csv"]) == 0
    assert manifest(only_run())["status"] == "finished"
    assert Path("out.csv").stat().st_size > 1000


def test_cores_without_numbers_are_counted(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert processes.cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processes.cores() == 1


def test_a_child_of_ddp_asks_nothing_of_a_system_that_is_not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(processes, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("no such library"))
    with processes.distributed_session():
        pass


def has_float64(tree: Any) -> bool:
    """Whether a tensor of float64, or one that was moved to the host, is in it."""
    for value in tree_leaves(tree):
        if isinstance(value, Tensor) and (value.dtype == torch.float64 or hasattr(value, "on_host")):
            return True
    return False


class AppleGPU(TorchDispatchMode):
    """Refuses what MPS refuses: a float64 tensor, unless it is made of what is on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not has_float64((args, kwargs)) and has_float64(result):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return result


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FashionMNISTDataModule]:
    """Data that are loaded, before the device is taken for Apple's."""
    data = FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600)
    data.setup()
    cpu = Tensor.cpu

    def to_host(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved = cpu(self, *args, **kwargs).clone()
        moved.on_host = True  # type: ignore[attr-defined]
        return moved

    monkeypatch.setattr(Tensor, "cpu", to_host)
    monkeypatch.setattr(metrics, "_widest", lambda _: torch.float32)  # as of MPS
    with AppleGPU():  # type: ignore[no-untyped-call]
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2).double()
        assert torch.ones(2).cpu().double().sum() == 2
        yield data


@pytest.mark.filterwarnings("ignore")  # a plain Trainer has advice for everybody
def test_training_and_metrics_need_no_float64(gpu: FashionMNISTDataModule) -> None:
    rows = RowCallback()
    callbacks = [Engine(), EarlyStopping(), BestCheckpoint(), LastCheckpoint(), rows]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, num_sanity_val_steps=0, **quiet)
    model = SoftmaxRegression(dropout=0.1, momentum=0.5, weight_decay=0.1, schedule="cosine", loss="stable")
    trainer.fit(model, gpu)
    assert trainer.test(model, gpu, verbose=False)[0]["test/acc"] > 0.2
    assert {"train/loss", "val/acc"} <= rows.rows[-1].keys()


def test_a_sweep_needs_no_float64_on_the_device(gpu: FashionMNISTDataModule) -> None:
    loader = gpu.train_dataloader()
    assert isinstance(loader, Minibatches)
    stack = Stack([SoftmaxRegression(lr=lr, momentum=0.5) for lr in (0.1, 0.2)], loader, epochs=1)
    assert torch.isfinite(stack.train_epoch().loss).all()
    assert stack.score(gpu.loaded.test_images, gpu.loaded.test_labels).loss.dtype == torch.float64
