"""A stacked model ends as the one that the Trainer trains on its own."""

import os
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks import sweep_speed
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores
from softmax_regression.studies.stacked import Stack, pool

EPOCHS = 3
# https://github.com/Lightning-AI/pytorch-lightning/issues/21273
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def datamodule(seed: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(
        batch_size=48, val_size=100, source="synthetic", synthetic_size=500, seed=seed
    )
    data.setup()
    return data


def train_alone(hparams: dict[str, Any]) -> SoftmaxRegression:
    """Train with Lightning, from the public entry points."""
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = SoftmaxRegression(**hparams)
    trainer.fit(model, datamodule=datamodule(hparams["seed"]))
    return model


@pytest.mark.parametrize(
    ("shared", "differing"),
    [
        ({"seed": 0}, [{"lr": 0.1}, {"lr": 0.5, "init_std": 0.1}, {"lr": 0.01, "weight_decay": 0.1}]),
        ({"seed": 7}, [{"momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.3}]),
        ({"seed": 1, "dropout": 0.3, "schedule": "cosine"}, [{"lr": 0.1}, {"lr": 0.2, "weight_decay": 0.01}]),
    ],
    ids=["sgd", "momentum", "dropout-cosine"],
)
def test_each_model_of_a_stack_equals_the_single_run(
    shared: dict[str, Any], differing: list[dict[str, float]]
) -> None:
    hparams = [shared | different for different in differing]
    data = datamodule(shared["seed"])
    stack = Stack([SoftmaxRegression(**h) for h in hparams], data.train_dataloader(), EPOCHS)
    val = data.loaded.images[data.val_index], data.loaded.labels[data.val_index]
    rows = [(*stack.train_epoch(), *stack.score(*val)) for _ in range(EPOCHS)]
    for i, h in enumerate(hparams):
        alone = train_alone(h)
        weight, bias = stack.weight.view(-1, 10, 784)[i], stack.bias.view(-1, 10)[i]
        torch.testing.assert_close(weight, alone.linear.weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bias, alone.linear.bias.detach(), rtol=1e-5, atol=1e-5)
        for row, expected in zip(rows, alone.history, strict=True):
            names = ("train/loss", "train/acc", "val/loss", "val/acc")
            assert [t[i].item() for t in row] == pytest.approx([expected[name] for name in names], rel=1e-4)


def test_models_that_cannot_share_minibatches_are_refused() -> None:
    batches = datamodule(0).train_dataloader()
    with pytest.raises(InputError, match=r"dropout=0\.0, 0\.5"):
        Stack([SoftmaxRegression(), SoftmaxRegression(dropout=0.5)], batches, 1)
    with pytest.raises(InputError, match="loss=naive"):
        Stack([SoftmaxRegression(loss="naive")], batches, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with fewer than four cores
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # as the book does
@pytest.mark.filterwarnings(
    r"ignore:os\.fork\(\) was called:RuntimeWarning"
)  # if a test before has imported JAX
def test_the_benchmark_of_stacked_trials_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = sweep_speed.main(
        ["--trials", "3", "--epochs", "1", "--rounds", "1", "--train-size", "300", "--source", "synthetic"]
    )
    assert ratio > 0
    assert "the book's loop, one run" in capsys.readouterr().out


def test_the_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softmax_regression.studies.stacked.cores", lambda: 6)
    for wanted, workers in ((None, 6), (2, 2), (4, 4), (0, 6), (100, 6), (-1, 1)):
        with pool(wanted) as threads:
            assert threads._max_workers == workers
            assert threads.submit(torch.get_num_threads).result() == 6 // workers


def test_cores_are_counted_where_a_process_cannot_be_bound_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert cores() == os.cpu_count()
