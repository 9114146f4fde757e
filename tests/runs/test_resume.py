"""A run that is killed at any moment and resumed equals the run that was not, bit for bit."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from commands import fit, manifest, only_run, scalars
from killed import strike
from marks import slow, table
from softmax_regression import SoftmaxRegression
from softmax_regression.commands.train import main
from softmax_regression.runs import checkpoint

# Momentum, a schedule and dropout, so that there is optimiser, schedule and random state to lose.
OPTIONS = (
    "--model.momentum=0.9", "--model.lr=0.01", "--model.schedule=cosine", "--model.dropout=0.1",
    "--trainer.max_epochs=4",
)  # fmt: skip
MLP = """
from torch import nn
from softmax_regression import SoftmaxRegression

class MLP(SoftmaxRegression):
    def __init__(self, hidden: int = 16, **kwargs):
        super().__init__(**kwargs)
        self.net = nn.Sequential(*self.net[:2], nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""
EVERY = "--last_checkpoint.every_n_train_steps"
KINDS: dict[str, tuple[int, list[str]]] = {  # steps an epoch, options
    "saved every epoch": (16, []),
    "saved every 3 steps, an MLP": (16, [f"{EVERY}=3", "--model=own_mlp.MLP"]),
    "validated twice an epoch": (16, [f"{EVERY}=4", "--trainer.val_check_interval=0.5"]),
    "accumulated, validated every second epoch": (
        8, [f"{EVERY}=3", "--trainer.accumulate_grad_batches=2", "--trainer.check_val_every_n_epoch=2"],
    ),
}  # fmt: skip
# Where it is killed, one after the other, in epochs.
KILLS = (
    ("mid-epoch", 0.5), ("at the end of an epoch", 1), ("mid-epoch", 1.4), ("in validation", 1.5),
    ("inside a save", 2), ("after a save", 2), ("after the row was logged", 3), ("in validation", 4),
)  # fmt: skip


def state(run: Path) -> dict[str, Any]:
    """Everything about a run that must not depend on whether, and where, it was interrupted."""
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")
    (best,) = (name for name in saved["callbacks"] if "BestCheckpoint" in name)
    paths = {name for name in ModelCheckpoint().state_dict() if "path" in name or name == "best_k_models"}
    saved["callbacks"][best] = {k: v for k, v in saved["callbacks"][best].items() if k not in paths}
    del saved["softmax_regression.run"]["config"]  # which says where the logs are
    return saved | {"scalars": scalars(run)}


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


def kill() -> None:
    raise Killed


def age(run: Path, number: int) -> None:
    """Date a run's events to the second `number`: TensorBoard reads the files of a second in any order."""
    for file in run.glob("events.out.tfevents.1[0-9]*"):
        rest = file.name.removeprefix("events.out.tfevents.").partition(".")[2]
        file.rename(run / f"events.out.tfevents.{number:010}.{rest}")


def resume(run: Path, *options: str, number: int = 1) -> int:
    """Go on with a run, as if it had been interrupted a while ago."""
    age(run, number)
    return main(["fit", "--resume", str(run), *options])


@pytest.mark.parametrize(
    "kind",
    [
        "saved every epoch",
        slow("saved every 3 steps, an MLP"),
        table("validated twice an epoch"),
        slow("accumulated, validated every second epoch"),
    ],
)
def test_a_run_that_is_killed_at_every_moment_resumes_bit_for_bit(kind: str) -> None:
    Path("own_mlp.py").write_text(MLP)
    steps, options = KINDS[kind]
    assert fit(*OPTIONS, *options, "--trainer.logger.save_dir=whole") == 0
    reference, killed = only_run(Path("whole")), 0
    for number, (moment, epochs) in enumerate(KILLS):
        with pytest.MonkeyPatch.context() as patch:
            strike(patch.setattr, moment, int(epochs * steps), kill)
            try:
                _ = resume(only_run(), number=number) if number else fit(*OPTIONS, *options)
            except Killed:
                killed += 1
    assert killed == len(KILLS)
    assert resume(only_run(), number=killed) == 0
    assert_same(state(only_run()), state(reference))
    assert {file.name for file in only_run().rglob("*.*pt")} == {"best.ckpt", "last.ckpt"}
    assert not list(only_run().rglob("*.tmp"))


@pytest.mark.slow
def test_a_run_that_goes_on_forgets_the_scores_of_its_old_checkpoint() -> None:
    assert fit("--trainer.max_epochs=1") == 0
    for command in ("test", "validate"):
        assert main([command, "--ckpt_path", str(only_run()), "--figures.every_n_epochs=0"]) == 0
    assert {"test", "validate"} <= manifest(only_run()).keys()
    assert resume(only_run()) == 0  # nothing to resume
    assert {"test", "validate"} <= manifest(only_run()).keys()
    assert resume(only_run(), "--trainer.max_epochs=2") == 0
    assert not {"test", "validate"} & manifest(only_run()).keys()


def test_a_validation_between_two_steps_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=2", "--trainer.max_epochs=2"]
    assert fit(*options, "--trainer.logger.save_dir=whole") == 0
    step = SoftmaxRegression.training_step
    calls = itertools.count(1)

    def killed(self: Any, *args: Any) -> Any:
        if next(calls) == 20:  # after a validation that followed the save, before the next step
            raise Killed
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SoftmaxRegression, "training_step", killed)
        with pytest.raises(Killed):
            fit(*options)
    assert resume(only_run()) == 0
    whole = only_run(Path("whole"))
    assert (only_run() / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert scalars(only_run()) == scalars(whole)
