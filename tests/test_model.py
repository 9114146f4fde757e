"""The section's model: its shapes, losses, gradients and schedule, compared with PyTorch written out."""

import doctest
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as in the package)
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

from commands import rows_of
from softmax_regression import FashionMNISTDataModule, InputError, SoftmaxRegression, model
from softmax_regression.runs.rows import RowCallback


def data(**options: Any) -> FashionMNISTDataModule:
    small: dict[str, Any] = {"source": "synthetic", "synthetic_size": 600, "val_size": 101, "batch_size": 32}
    return FashionMNISTDataModule(**small | options)


def trainer(epochs: int = 2, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    callbacks = [*options.pop("callbacks", []), RowCallback()]
    return Trainer(max_epochs=epochs, callbacks=callbacks, **quiet | options)


def trained(epochs: int = 2, seed: int = 0, trainer_options: Any = None, **options: Any) -> SoftmaxRegression:
    seed_everything(seed)
    module = SoftmaxRegression(**options)
    trainer(epochs, **trainer_options or {}).fit(module, data(seed=seed))
    return module


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_the_docstring_example() -> None:
    ran = doctest.testmod(model)
    assert ran.attempted > 0
    assert ran.failed == 0


def test_logits_are_linear_in_the_pixels_whatever_their_type_and_shape() -> None:
    module = SoftmaxRegression()
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    x = images.float() / 255
    weight, bias = module.parameters()
    assert torch.allclose(module(images), x.flatten(1) @ weight.T + bias, atol=1e-6)
    assert torch.equal(module(images), module(x))
    assert torch.equal(module(x), module(x.unsqueeze(1)))


def test_initial_weights_are_normal_with_init_std_and_decided_by_the_seed() -> None:
    def drawn(seed: int, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        weight, bias = SoftmaxRegression(**options).parameters()  # type: ignore[arg-type]
        return weight, bias

    (weight, bias), (again, _), (other, _) = drawn(1), drawn(1), drawn(2, init_std=1.0)
    assert torch.equal(weight, again)
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert other.std().item() == pytest.approx(1.0, rel=0.05)
    assert not bias.any()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "lr": 0.01}, {"weight_decay": 0.1}, {"schedule": "cosine"}])
def test_training_is_minibatch_sgd_written_out(options: dict[str, Any]) -> None:
    module = trained(seed=3, **options)
    source = data(seed=3)
    torch.manual_seed(3)
    reference = SoftmaxRegression(**options)
    lr = reference.hparams["lr"]
    momentum, decay = options.get("momentum", 0.0), options.get("weight_decay", 0.0)
    sgd = torch.optim.SGD(reference.parameters(), lr, momentum, weight_decay=decay)
    minibatches, step = source.train_dataloader(), 0
    for epoch in range(2):
        minibatches.sampler.set_epoch(epoch)
        for x, y in minibatches:
            if "schedule" in options:
                sgd.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / 32)) / 2
            sgd.zero_grad()
            F.cross_entropy(reference(x), y).backward()
            sgd.step()
            step += 1
    for ours, expected in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, expected, atol=1e-7)


@pytest.mark.parametrize("as_floats", [True, False])
def test_it_trains_on_any_loader_of_images_and_classes(as_floats: bool) -> None:
    source = data()
    source.setup()
    images, labels = source.loaded.images, source.loaded.labels
    x = images[:, None] / 255 if as_floats else images
    module = SoftmaxRegression()
    loader = DataLoader(TensorDataset(x, labels), batch_size=32)
    trainer(5).fit(module, loader, loader)
    assert rows_of(module)[-1]["train/acc"] > 0.75
    assert rows_of(module)[-1]["val/acc"] > 0.75


def test_the_three_losses_give_the_same_curve() -> None:
    runs = {loss: trained(loss=loss) for loss in ("torch", "stable", "naive")}
    for loss in ("stable", "naive"):
        for row, expected in zip(rows_of(runs[loss]), rows_of(runs["torch"]), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


def test_two_minibatches_that_are_accumulated_make_the_update_of_one_that_is_as_large() -> None:
    """The loss of an update is the mean of theirs, and that of the epoch the mean over its images."""
    small, large = SoftmaxRegression(), SoftmaxRegression()
    large.load_state_dict(small.state_dict())
    trainer(accumulate_grad_batches=2).fit(small, data(train_size=448))
    trainer().fit(large, data(train_size=448, batch_size=64))
    for row, expected in zip(rows_of(small), rows_of(large), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({}, 32),
        ({"max_steps": 20}, 20),
        ({"limit_train_batches": 5}, 10),
        ({"accumulate_grad_batches": 3}, 12),
    ],
)
def test_the_cosine_schedule_falls_to_0_over_the_run_however_it_is_limited(limits: dict[str, int], steps: int) -> None:
    rates = Rates()
    module = trained(lr=0.2, schedule="cosine", trainer_options={"callbacks": [rates], **limits})
    expected = [0.1 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert rates.seen == pytest.approx(expected)
    assert rows_of(module)[-1]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_constant_rate_stays() -> None:
    assert rows_of(trained(lr=0.2))[-1]["lr"] == 0.2


def test_dropout_drops_in_training_only() -> None:
    module = SoftmaxRegression(dropout=0.5)
    x = torch.rand(4, 1, 28, 28)
    module.eval()
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    assert rows_of(trained(dropout=0.5)) != rows_of(trained())


def test_a_checkpoint_loads_without_running_code(tmp_path: Path) -> None:
    module = trained(lr=0.2)
    module.trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    again = SoftmaxRegression.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.hparams == module.hparams
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))


BAD = [
    ("lr", 0.0),
    ("lr", math.nan),
    ("dropout", 1.0),
    ("momentum", -0.1),
    ("weight_decay", -1.0),
    ("num_classes", 0),
]


CHOICES = [("schedule", "constant or cosine"), ("loss", "torch or stable or naive")]


@pytest.mark.parametrize(("name", "expected"), CHOICES)
def test_a_word_that_is_no_choice_is_refused_from_python_too(name: str, expected: str) -> None:
    options: dict[str, Any] = {name: "linear"}
    with pytest.raises(InputError, match=f"{name}=linear: expected {expected}"):
        SoftmaxRegression(**options)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}={value}: must be .*; change model.{name}"):
        SoftmaxRegression(**{name: value})  # type: ignore[arg-type]


def test_cosine_needs_an_end() -> None:
    with pytest.raises(InputError, match="schedule=cosine"):
        trainer(-1).fit(SoftmaxRegression(schedule="cosine"), data())
