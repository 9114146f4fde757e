"""A stacked model ends as the one that the Trainer trains on its own."""

import os
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from benchmarks import sweep_speed
from commands import rows_of
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores
from softmax_regression.runs.rows import RowCallback
from softmax_regression.studies.learning import held_out, learn, pool
from softmax_regression.studies.stacked import Stack

EPOCHS = 3
SEED = 7
# Lightning's, where SLURM is installed and not used.
pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available on your system")


def datamodule(seed: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(batch_size=48, val_size=100, source="synthetic", synthetic_size=500, seed=seed)
    data.setup()
    return data


def train_alone(model: type[LightningModule], hparams: dict[str, Any]) -> LightningModule:
    """Train as `fit --seed_everything SEED` does, from Lightning's public entry points."""
    seed_everything(SEED, verbose=False)
    module = model(**hparams)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[RowCallback()],
    )
    trainer.fit(module, datamodule=datamodule(SEED))
    return module


@pytest.mark.parametrize(
    ("shared", "differing"),
    [
        ({}, [{"lr": 0.1}, {"lr": 0.5, "init_std": 0.1}, {"lr": 0.01, "weight_decay": 0.1}]),
        ({}, [{"momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.3}]),
        ({"schedule": "cosine", "loss": "stable"}, [{"lr": 0.1}, {"lr": 0.2, "weight_decay": 0.01}]),
    ],
    ids=["sgd", "momentum", "cosine"],
)
def test_each_model_of_a_stack_equals_the_single_run(shared: dict[str, Any], differing: list[dict[str, float]]) -> None:
    hparams, data = [shared | different for different in differing], datamodule(SEED)
    scores = learn(SoftmaxRegression, hparams, data.train_dataloader(), EPOCHS, SEED, held_out(data))
    assert {values.shape for values in scores.values()} == {(len(hparams), EPOCHS)}
    for i, h in enumerate(hparams):
        alone = train_alone(SoftmaxRegression, h)
        assert isinstance(alone, SoftmaxRegression)
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            expected = [row[name] for row in rows_of(alone)]
            assert scores[name][i].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_weights_of_a_stack_are_those_of_the_single_runs() -> None:
    models, rates = [], (0.1, 0.5)
    for lr in rates:
        seed_everything(SEED, verbose=False)
        models.append(SoftmaxRegression(lr))
    stack = Stack(models, datamodule(SEED).train_dataloader(), EPOCHS)
    for _ in range(EPOCHS):
        stack.train_epoch()
    for i, lr in enumerate(rates):
        weight, bias = train_alone(SoftmaxRegression, {"lr": lr}).parameters()
        torch.testing.assert_close(stack.weight.view(-1, 10, 784)[i], weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stack.bias.view(-1, 10)[i], bias.detach(), rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_depends_on_the_seed_alone() -> None:
    data, half = datamodule(SEED), [{"lr": 0.1, "dropout": 0.5}]

    def val_loss(seed: int) -> float:
        scores = learn(SoftmaxRegression, half, data.train_dataloader(), EPOCHS, seed, held_out(data))
        return scores["val/loss"][0, -1].item()

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert val_loss(0) == val_loss(0) != val_loss(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    alone = train_alone(SoftmaxRegression, {"lr": 0.1, "dropout": 0.5})
    assert isinstance(alone, SoftmaxRegression)
    assert val_loss(SEED) == pytest.approx(rows_of(alone)[-1]["val/loss"], rel=0.05)  # other pixels


def test_models_that_cannot_share_minibatches_are_refused() -> None:
    loader = datamodule(0).train_dataloader()
    with pytest.raises(InputError, match="dropout, schedule, num_classes, loss: must be the same"):
        Stack([SoftmaxRegression(), SoftmaxRegression(dropout=0.5)], loader, 1)
    with pytest.raises(InputError, match="loss=naive"):
        Stack([SoftmaxRegression(loss="naive")], loader, 1)


class Tiny(SoftmaxRegression):
    """What no stack can hold: a class of somebody else's."""

    def __init__(self, lr: float = 0.1, dropout: float = 0.5) -> None:
        super().__init__(lr, dropout=dropout)
        self.head = torch.nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(super().forward(x).relu())
        return logits


class Foreign(LightningModule):
    """A module that knows nothing of this project, and keeps a part of it out of training mode."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.Dropout(0.5))
        self.lr, self.modes = lr, set[tuple[bool, bool]]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits

    def on_train_start(self) -> None:
        self.net[2].eval()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.modes.add((self.training, self.net[2].training))
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


@pytest.mark.parametrize(
    ("model", "hparams"), [(Tiny, {"lr": 0.3}), (SoftmaxRegression, {"loss": "naive", "dropout": 0.2})]
)
def test_what_cannot_be_stacked_is_trained_alone_and_equals_fit(
    model: type[SoftmaxRegression], hparams: dict[str, Any]
) -> None:
    data = datamodule(SEED)
    scores = learn(model, [hparams], data.train_dataloader(), EPOCHS, SEED, held_out(data))
    alone = train_alone(model, hparams)
    assert isinstance(alone, SoftmaxRegression)
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        assert scores[name].tolist() == [pytest.approx([row[name] for row in rows_of(alone)], rel=1e-6)]


def test_a_module_of_no_class_of_ours_is_trained_and_scored_and_ends_when_told() -> None:
    data, epochs, modules = datamodule(SEED), [], []

    class Seen(Foreign):
        def on_fit_start(self) -> None:
            modules.append(self)

    def each(epoch: int, scores: Any) -> bool:
        epochs.append(epoch)
        return epoch < 4

    scores = learn(Seen, [{}], data.train_dataloader(), 9, SEED, held_out(data), 2, each)
    assert epochs == [2, 4]
    assert scores.keys() == {"val/loss", "val/acc", "test/loss", "test/acc"}
    assert scores["val/loss"][0, 1] < scores["val/loss"][0, 0]
    assert modules[0].modes == {(True, False)}  # scoring leaves each part in the mode that it had


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with fewer than four cores
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # as the book does
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")  # if a test before has imported JAX
def test_the_benchmark_of_stacked_trials_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ratio = sweep_speed.main(
        ["--trials", "3", "--epochs", "1", "--rounds", "1", "--train-size", "300", "--source", "synthetic"]
    )
    printed = capsys.readouterr().out
    assert "the book's loop, one run" in printed
    assert f"median ratio {ratio:.2f}" in printed


def test_each_worker_computes_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softmax_regression.studies.learning.cores", lambda: 6)
    for model, wanted, workers in (
        (SoftmaxRegression, None, 6),
        (SoftmaxRegression, 2, 2),
        (SoftmaxRegression, 100, 6),
        (Tiny, 4, 1),
    ):
        with pool(model, wanted) as threads:
            assert threads._max_workers == workers
            assert threads.submit(torch.get_num_threads).result() == 1


@pytest.mark.parametrize("workers", [0, -5])
def test_less_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(InputError, match=f"workers={workers}: must be at least 1"), pool(Tiny, workers):
        pass


def test_cores_are_counted_where_a_process_cannot_be_bound_to_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert cores() == os.cpu_count()
