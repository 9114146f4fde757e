"""A run that is killed at any moment and resumed equals the run that was not, bit for bit."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import fit, only_run, scalars
from softmax_regression.commands.train import main
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint

# Momentum, a schedule and dropout, so that there is optimiser, schedule and random state to lose.
OPTIONS = (
    "--model.momentum=0.9", "--model.lr=0.01", "--model.schedule=cosine", "--model.dropout=0.1",
    "--data.steps_per_execution=4", "--trainer.max_epochs=4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


EVERY = {"every epoch": (), "every 3 steps": ("--trainer.callbacks.every_n_train_steps=3",)}


@pytest.fixture(scope="module", params=EVERY)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that is not interrupted, and the options that it was started with."""
    folder = tmp_path_factory.mktemp("whole")
    options = [*OPTIONS, *EVERY[request.param]]
    assert fit(*options, f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder), options


def state(run: Path) -> dict[str, Any]:
    """Everything about a run that must not depend on whether it was interrupted."""
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")
    callbacks = {
        name: {key: value for key, value in entry.items() if "path" not in key and key != "best_k_models"}
        for name, entry in saved["callbacks"].items()
    }
    keep = ("state_dict", "optimizer_states", "lr_schedulers", "history", "sums", "epoch", "global_step")
    return {key: saved[key] for key in keep} | {"callbacks": callbacks, "scalars": scalars(run)}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Compare to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


class Killed(BaseException):
    """Stands for SIGKILL where a new process for each kill would take too long: nobody handles it."""


def killed_at(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, before: bool = True
) -> None:
    """Let the call number `call` of a function be the last thing that the process does."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)
    # A killed process handles nothing: neither callbacks nor manifest may notice.
    monkeypatch.setattr("lightning.pytorch.trainer.call._interrupt", lambda trainer, exception: None)


MOMENTS: dict[str, tuple[object, str, int, bool]] = {
    "mid-epoch": (SoftmaxRegression, "_learn", 21, True),
    "at the end of an epoch": (SoftmaxRegression, "on_train_epoch_end", 2, True),
    "after the row was logged": (SoftmaxRegression, "on_train_epoch_end", 3, False),
    "in validation": (SoftmaxRegression, "validation_step", 2, True),
    "before a save": (checkpoint.SafeCheckpointIO, "save_checkpoint", 5, True),
    "after a save": (checkpoint.SafeCheckpointIO, "save_checkpoint", 5, False),
    "between flush and rename": (os, "fsync", 9, False),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_resumes_bit_for_bit(
    whole: tuple[Path, list[str]], moment: tuple[object, str, int, bool]
) -> None:
    reference, options = whole
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, *moment)
        with pytest.raises(Killed):
            fit(*options)
    run = only_run()
    assert main(["fit", "--resume", str(run)]) == 0
    assert only_run() == run
    assert_same(state(run), state(reference))
    assert not list(run.rglob("*.tmp"))
