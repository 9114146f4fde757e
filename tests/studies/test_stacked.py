"""A stacked model ends as the one that the Trainer trains on its own."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks import sweep_speed
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.learning import held_out, learn
from softmax_regression.studies.stacked import Stack

EPOCHS = 3
SEED = 7


def datamodule(seed: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(batch_size=48, val_size=100, source="synthetic", synthetic_size=500, seed=seed)
    data.setup()
    return data


class Logged(Callback):
    """What a module has logged at the end of each epoch, before the next one begins."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > 0:
            self.keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer)

    def keep(self, trainer: Trainer) -> None:
        self.rows.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def train_alone(**hparams: Any) -> tuple[SoftmaxRegression, list[dict[str, float]]]:
    """Train as `fit --seed_everything SEED` does, from Lightning's public entry points."""
    seed_everything(SEED, verbose=False)
    module = SoftmaxRegression(**hparams)
    logged = Logged()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[logged],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=datamodule(SEED))
    return module, logged.rows


@pytest.mark.parametrize(
    "models",
    [
        [{"lr": 0.02}, {"lr": 0.05, "init_std": 0.1}, {"lr": 0.01, "weight_decay": 0.1}],
        [{"momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.3}],
        [{"schedule": "cosine", "lr": 0.1}, {"schedule": "cosine", "lr": 0.2, "weight_decay": 0.01}],
    ],
    ids=["sgd", "momentum", "cosine"],
)
def test_each_model_of_a_stack_scores_as_the_single_run(models: list[dict[str, Any]]) -> None:
    data = datamodule(SEED)
    scores = learn(models, data.train_dataloader(), EPOCHS, SEED, held_out(data))
    for of_model, hparams in zip(scores, models, strict=True):
        assert {len(values) for values in of_model.values()} == {EPOCHS}
        _, rows = train_alone(**hparams)
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert of_model[name] == pytest.approx([row[name] for row in rows], rel=1e-4)


def test_the_weights_of_a_stack_are_those_of_the_single_runs() -> None:
    models = []
    for lr in (0.02, 0.05):
        seed_everything(SEED, verbose=False)
        models.append(SoftmaxRegression(lr))
    stack = Stack(models, datamodule(SEED).train_dataloader(), EPOCHS)
    for _ in range(EPOCHS):
        stack.train_epoch()
    for i, lr in enumerate((0.02, 0.05)):
        module, _ = train_alone(lr=lr)
        weight, bias = module.parameters()
        torch.testing.assert_close(stack.weight.view(-1, 10, 784)[i], weight.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stack.bias.view(-1, 10)[i], bias.detach(), rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_depends_on_the_seed_alone() -> None:
    data = datamodule(SEED)

    def val_loss(seed: int) -> float:
        (scores,) = learn([{"lr": 0.1, "dropout": 0.5}], data.train_dataloader(), EPOCHS, seed, held_out(data))
        return scores["val/loss"][-1]

    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert val_loss(0) == val_loss(0) != val_loss(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    _, rows = train_alone(lr=0.1, dropout=0.5)
    assert val_loss(SEED) == pytest.approx(rows[-1]["val/loss"], rel=0.05)  # other pixels


def test_equal_models_are_trained_once_and_scored_each() -> None:
    data = datamodule(SEED)
    scores = learn([{"lr": 0.1}, {"lr": 0.5}, {"lr": 0.1}], data.train_dataloader(), 1, SEED, held_out(data))
    first, second, third = (of_model["val/loss"] for of_model in scores)
    assert first == third != second


def test_every_so_many_epochs_the_models_are_scored() -> None:
    data = datamodule(SEED)
    (often,) = learn([{"lr": 0.1}], data.train_dataloader(), 4, SEED, held_out(data))
    (seldom,) = learn([{"lr": 0.1}], data.train_dataloader(), 4, SEED, held_out(data), every=2)
    assert seldom["val/loss"] == often["val/loss"][1::2]


def test_models_that_cannot_share_minibatches_are_refused() -> None:
    loader = datamodule(0).train_dataloader()
    with pytest.raises(InputError, match="dropout, schedule, num_classes, loss: must be the same"):
        Stack([SoftmaxRegression(), SoftmaxRegression(dropout=0.5)], loader, 1)
    with pytest.raises(InputError, match="loss=naive"):
        Stack([SoftmaxRegression(loss="naive")], loader, 1)


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
