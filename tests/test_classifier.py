"""What every classifier shares: exact metrics, at the times and of the images that they say."""

import csv
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as in the package)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score
from torchmetrics.wrappers import MinMaxMetric, Running

from commands import rows_of
from softmax_regression import DivergedError, InputError, SoftmaxRegression
from test_model import data, trainer


def fitted(epochs: int = 2, module: SoftmaxRegression | None = None, **options: Any) -> SoftmaxRegression:
    torch.manual_seed(0)
    module = module or SoftmaxRegression()
    trainer(epochs, **options).fit(module, data())
    return module


def test_metrics_weigh_every_example_alike() -> None:
    module, source = fitted(1), data()
    images, labels = source.loaded.images[source.val_index], source.loaded.labels[source.val_index]
    logits = module(images)
    (row,) = rows_of(module)
    assert row["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert row["val/acc"] * 101 == pytest.approx((logits.argmax(1) == labels).sum().item(), abs=1e-4)


class Losses(Callback):
    """The loss of every minibatch, times its images."""

    def __init__(self) -> None:
        self.sum, self.images = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.sum += outputs["loss"].item() * len(batch[1])
        self.images += len(batch[1])


def test_the_training_loss_is_the_mean_over_the_images_of_an_epoch() -> None:
    losses = Losses()
    (row,) = rows_of(fitted(1, callbacks=[losses]))
    assert losses.images == 499
    assert row["train/loss"] == pytest.approx(losses.sum / 499, rel=1e-6)


def test_a_sanity_check_is_in_no_row() -> None:
    assert rows_of(fitted(num_sanity_val_steps=2)) == rows_of(fitted())


def test_an_epoch_without_validation_has_no_value_of_it() -> None:
    rows = rows_of(fitted(4, check_val_every_n_epoch=2))
    for epoch, (row, expected) in enumerate(zip(rows, rows_of(fitted(4)), strict=True), start=1):
        if epoch % 2:
            expected.pop("val/loss")
            expected.pop("val/acc")
        assert row == expected
    for row in rows_of(fitted(limit_val_batches=0)):
        assert "val/loss" not in row


def test_each_validation_within_an_epoch_is_a_row_of_its_own() -> None:
    rows = rows_of(fitted(val_check_interval=0.5))
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 8), (1, 16), (2, 24), (2, 32)]
    assert ["train/loss" in row for row in rows] == [False, True, False, True]
    assert all("val/loss" in row for row in rows)
    assert rows[1::2] == rows_of(fitted())


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("named", [True, False])
def test_each_loader_is_scored_alone(named: bool) -> None:
    """By its name, or as Lightning names those of a list."""
    source = data()
    source.setup()
    x, y = source.loaded.images[:100, None] / 255, source.loaded.labels[:100]
    easy, hard = DataLoader(TensorDataset(x, y), 50), DataLoader(TensorDataset(torch.zeros_like(x), y), 50)
    module = SoftmaxRegression()
    loaders: Any = [easy, hard]
    names = ["val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1"]
    if named:
        loaders = {"val": easy, "hard": hard}
        names = ["val/loss", "hard/loss"]
    trainer(2).fit(module, easy, loaders)
    row = rows_of(module)[-1]
    expected = [F.cross_entropy(module(images), y).item() for images in (x, torch.zeros_like(x))]
    assert [row[name] for name in names] == pytest.approx(expected, rel=1e-6)
    assert len([name for name in row if name.endswith(("loss", "idx_0", "idx_1"))]) == (3 if named else 5)


def test_a_callback_finds_the_training_scores_of_the_epoch() -> None:
    seen = []

    class Looks(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["train/loss"]))

    module = fitted(2, callbacks=[Looks()])
    assert seen == [row["train/loss"] for row in rows_of(module)]


def test_a_module_that_is_trained_again_begins_anew() -> None:
    torch.manual_seed(0)
    module = SoftmaxRegression()
    start = deepcopy(module.state_dict())
    trainer(1).fit(module, data())
    first = rows_of(module)
    module.load_state_dict(start)
    trainer(1).fit(module, data())
    assert rows_of(module) == first


def test_a_metric_that_is_a_vector_is_refused_before_the_first_epoch() -> None:
    class PerClass(SoftmaxRegression):
        def metrics(self) -> dict[str, Metric]:
            return {"f1": MulticlassF1Score(10, average=None)}

    with pytest.raises(InputError, match=r"metric f1: its value is no single number but \(10,\)"):
        fitted(1, PerClass())


@pytest.mark.parametrize("name", ["loss", "f.1", "keys"])
def test_a_metric_of_a_name_that_cannot_be_is_refused(name: str) -> None:
    class Named(SoftmaxRegression):
        def metrics(self) -> dict[str, Metric]:
            return {name: MulticlassAccuracy(10)}

    with pytest.raises(InputError, match=rf"metric {name}: .*; choose another"):
        Named()


def test_a_loss_that_is_no_single_number_is_refused() -> None:
    class Unreduced(SoftmaxRegression):
        def loss(self, logits: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(logits, y, reduction="none")

    with pytest.raises(InputError, match=r"loss of shape \(\d+,\): expected one number; return its mean"):
        fitted(1, Unreduced())


LABELS = {
    "fractions": (torch.ones(4), "labels of the type torch.float32 and shape \\(4,\\): a Classifier takes"),
    "a number for each class": (torch.zeros(4, 10), "labels of the type torch.float32 and shape \\(4, 10\\): a Class"),
    "short numbers": (torch.ones(4).int(), "labels of the type torch.int32 and shape \\(4,\\): a Classifier takes"),
    "texts": (["shirt"] * 4, "labels of the type list: a Classifier takes pairs, images and classes"),
    "too large": (torch.full((4,), 10), "Target 10 is out of bounds. expected classes from 0 to 9; change the labels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_no_classes_are_refused(kind: str) -> None:
    labels, message = LABELS[kind]
    with pytest.raises(InputError, match=message):
        SoftmaxRegression().training_step((torch.zeros(4, 28, 28), labels), 0)  # type: ignore[arg-type]


def test_an_index_error_in_a_loss_of_ones_own_is_shown_as_it_is() -> None:
    class Broken(SoftmaxRegression):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return [logits.mean()][1]

    with pytest.raises(IndexError, match="list index out of range"):
        Broken().training_step((torch.zeros(4, 28, 28), torch.zeros(4).long()), 0)


@pytest.mark.parametrize("kind", [MinMaxMetric, Running], ids=["MinMaxMetric", "Running"])
def test_wrapped_metrics_go_on_in_mid_epoch(kind: Any, tmp_path: Path) -> None:
    class Scored(SoftmaxRegression):
        def metrics(self) -> dict[str, Metric]:
            accuracy = MulticlassAccuracy(10, average="micro")
            if kind is MinMaxMetric:
                return {"acc": Largest(accuracy)}
            return {"acc": Running(accuracy, window=5)}

    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

    torch.manual_seed(0)
    whole, saved, again = Scored(), Scored(), Scored()
    saved.load_state_dict(whole.state_dict())
    fitted(2, whole)
    fitted(2, saved, callbacks=[Saving()])
    assert rows_of(saved) == rows_of(whole)  # saving changes nothing
    trainer(2).fit(again, data(), ckpt_path=tmp_path / "23.ckpt", weights_only=True)
    assert rows_of(again) == rows_of(whole)[1:]


class Largest(MinMaxMetric):
    """The largest value so far, as one number."""

    def compute(self) -> Tensor:  # type: ignore[override]
        value: Tensor = super().compute()["max"]
        return value


def test_loggers_get_the_metrics_of_an_epoch_at_its_last_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fitted(logger=logger, log_every_n_steps=16)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/loss"):
        assert [(row["epoch"], row["step"]) for row in rows if row[name]] == [("0", "15"), ("1", "31")]


def test_predictions_are_class_probability_and_distribution() -> None:
    module = SoftmaxRegression(init_std=1.0)
    images = torch.randint(256, (7, 28, 28), dtype=torch.uint8)
    found = module.predict_step((images, torch.zeros(7)), 0)
    assert torch.allclose(found["probabilities"].sum(1), torch.ones(7))
    assert torch.equal(found["class"], module(images).argmax(1))
    assert torch.equal(found["probability"], found["probabilities"].amax(1))


def test_validation_and_test_hand_their_logits_to_callbacks() -> None:
    got: list[dict[str, Tensor]] = []

    class Listener(Callback):
        def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
            got.append(outputs)

    module = fitted(1)
    (scores,) = trainer(callbacks=[Listener()]).test(module, data(), verbose=False)
    logits, labels = (torch.cat([each[key] for each in got]) for key in ("logits", "labels"))
    assert scores["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_a_metric_of_a_subclass_is_one_of_every_stage_and_of_checkpoints(tmp_path: Path) -> None:
    class Scored(SoftmaxRegression):
        def metrics(self) -> dict[str, Metric]:
            ours = (
                MulticlassF1Score(10, average="macro"),
                MulticlassCalibrationError(10),
            )  # which keeps a list
            return super().metrics() | dict(zip(("f1", "ece"), ours, strict=True))

    class Saving(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

    rows = rows_of(fitted(2, Scored(), callbacks=[Saving()]))
    assert all({"train/f1", "val/f1", "train/ece", "val/ece"} <= row.keys() for row in rows)
    assert 0 < rows[-1]["val/f1"] < 1
    again = Scored()
    trainer(2).fit(again, data(), ckpt_path=tmp_path / "21.ckpt", weights_only=True)
    assert rows_of(again) == rows[1:]


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(DivergedError, match=r"train/loss=nan in epoch 1, noticed at step 16.*lower model.lr"):
        fitted(1, SoftmaxRegression(loss="naive", init_std=100))
