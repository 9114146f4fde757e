"""The LightningModule: its shapes, losses, gradients and metrics, compared with PyTorch written out."""

import doctest
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as in the package)
from lightning.pytorch import Trainer

from softmax_regression import FashionMNISTDataModule, InputError, SoftmaxRegression, model


def data(**options: object) -> FashionMNISTDataModule:
    return FashionMNISTDataModule(
        source="synthetic",
        synthetic_size=600,
        val_size=101,
        batch_size=32,
        **options,  # type: ignore[arg-type]
    )


def train(module: SoftmaxRegression, epochs: int = 2, **options: object) -> SoftmaxRegression:
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data(**options))
    return module


def test_the_docstring_example() -> None:
    assert doctest.testmod(model).failed == 0


def test_logits_are_linear_in_the_pixels_whatever_their_type_and_shape() -> None:
    module = SoftmaxRegression(seed=1)
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    x = images.float() / 255
    expected = x.flatten(1) @ module.linear.weight.T + module.linear.bias
    assert torch.allclose(module(images), expected, atol=1e-6)
    assert torch.equal(module(images), module(x))
    assert torch.equal(module(x), module(x.unsqueeze(1)))


def test_initial_weights_are_normal_with_init_std_and_decided_by_the_seed() -> None:
    a, b, c = SoftmaxRegression(seed=1), SoftmaxRegression(seed=1), SoftmaxRegression(seed=2, init_std=1.0)
    torch.rand(1)  # whatever the global generator does
    assert torch.equal(a.linear.weight, b.linear.weight)
    assert a.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert c.linear.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert not a.linear.bias.any()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "lr": 0.01}, {"weight_decay": 0.1}])
def test_training_is_minibatch_sgd_written_out(options: dict[str, float]) -> None:
    module = train(SoftmaxRegression(seed=3, **options), seed=3)  # type: ignore[arg-type]
    source = data(seed=3)
    source.setup()
    reference = SoftmaxRegression(seed=3, **options)  # type: ignore[arg-type]
    sgd = torch.optim.SGD(
        reference.parameters(), reference.hparams["lr"],
        options.get("momentum", 0.0), weight_decay=options.get("weight_decay", 0.0),
    )  # fmt: skip
    batches = source.train_dataloader()
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        for images, labels, _ in itertools.chain(*batches):
            sgd.zero_grad()
            F.cross_entropy(reference(images), labels).backward()
            sgd.step()
    assert torch.allclose(module.linear.weight, reference.linear.weight, atol=1e-7)
    assert torch.allclose(module.linear.bias, reference.linear.bias, atol=1e-7)


def test_the_three_losses_give_the_same_curve() -> None:
    runs = {loss: train(SoftmaxRegression(loss=loss)) for loss in ("torch", "stable", "naive")}
    for loss in ("stable", "naive"):
        for row, expected in zip(runs[loss].history, runs["torch"].history, strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(runs[loss].linear.weight, runs["torch"].linear.weight, atol=1e-6)


def test_metrics_weigh_every_example_alike() -> None:
    module = train(SoftmaxRegression(), epochs=1)
    source = data()
    source.setup()
    assert source.data
    images, labels = source.data.images[source.val_index], source.data.labels[source.val_index]
    logits = module(images)
    row = module.history[0]
    assert row["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert row["val/acc"] * 101 == pytest.approx((logits.argmax(1) == labels).sum().item(), abs=1e-4)


def test_the_cosine_schedule_ends_at_zero_and_the_constant_one_stays() -> None:
    assert train(SoftmaxRegression(schedule="cosine")).history[-1]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert train(SoftmaxRegression(lr=0.2)).history[-1]["lr"] == 0.2


def test_dropout_drops_in_training_only() -> None:
    module = SoftmaxRegression(dropout=0.5)
    x = torch.rand(4, 1, 28, 28)
    module.eval()
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    assert train(module).history != train(SoftmaxRegression()).history


def test_predictions_are_class_probability_and_distribution() -> None:
    module = SoftmaxRegression(init_std=1.0)
    images = torch.randint(256, (7, 28, 28), dtype=torch.uint8)
    found = module.predict_step([(images[:4], torch.zeros(4), 4), (images[4:], torch.zeros(3), 3)], 0)
    assert found["probabilities"].shape == (7, 10)
    assert torch.allclose(found["probabilities"].sum(1), torch.ones(7))
    assert torch.equal(found["class"], module(images).argmax(1))
    assert torch.equal(found["probability"], found["probabilities"].amax(1))


def test_a_checkpoint_loads_without_running_code(tmp_path: Path) -> None:
    module = train(SoftmaxRegression(lr=0.2))
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = SoftmaxRegression.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.hparams == module.hparams
    assert torch.equal(again.linear.weight, module.linear.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("dropout", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1.0),
        ("num_classes", 0),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}={value}: must be .*; change model.{name}"):
        SoftmaxRegression(**{name: value})  # type: ignore[arg-type]


def test_cosine_needs_an_end() -> None:
    trainer = Trainer(max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(InputError, match="schedule=cosine"):
        trainer.fit(SoftmaxRegression(schedule="cosine"), data())
