"""Remedies are tuned on validation data, and the text says what the numbers say."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.mlp import MLP
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringDataModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.folders import folder_name
from softmax_regression.studies.overfit import measurements as overfit
from softmax_regression.studies.overfit import study
from softmax_regression.studies.overfit.measurements import FULL, Design, Size, choose_remedies, early_stop
from softmax_regression.studies.stacked import Means, Stack
from softmax_regression.studies.sweep.results import Result

SIZE = Size(100, 4, 1)
ORDER = ("train_size", "dropout", "weight_decay", "seed", "epoch")
TINY = Design((Size(30, 4, 2), Size(60, 2, 1)), (0.0, 0.5), (0.0, 0.1), 2)

SCORES = ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY)


@pytest.fixture
def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, most of the time of a small study."""

    def no_page(folder: Path, *_: object, **values: object) -> Path:
        return folder / "index.html"

    monkeypatch.setattr(study, "write_page", no_page)


def curves(val_loss: Sequence[float], test_loss: Sequence[float]) -> dict[str, Tensor]:
    """What came of three seeds with these losses, one a scoring, that hardly differ between the seeds."""
    noise = torch.tensor([-0.001, 0.0, 0.001], dtype=torch.float64)[:, None]
    metrics = {name: torch.full((3, 4), 0.5, dtype=torch.float64) for name in SCORES}
    for name, losses in (("val/loss", val_loss), ("test/loss", test_loss)):
        metrics[name] = torch.tensor(losses, dtype=torch.float64) + noise
    return metrics


def runs(dropout: float, val_loss: Sequence[Sequence[float]], test_loss: Sequence[Sequence[float]]) -> list[Result]:
    """Runs with a dropout and three weight decays."""
    found = []
    for decay, val, test in zip((0.0, 0.01, 0.1), val_loss, test_loss, strict=True):
        found.append(Result({"dropout": dropout, "weight_decay": decay}, curves(val, test)))
    return found


FLAT, RISING, LOW = [1.0, 0.9, 0.9, 0.9], [1.0, 0.8, 0.9, 1.1], [1.0, 0.8, 0.7, 0.7]


def test_remedies_are_chosen_by_validation_loss_and_not_by_test_loss() -> None:
    plain = runs(0.0, [RISING, FLAT, LOW], [RISING, LOW, FLAT])
    dropped = runs(0.5, [FLAT, FLAT, [1.0, 0.6, 0.6, 0.6]], [FLAT, FLAT, FLAT])
    none, decay, dropout, early, combination = choose_remedies([*plain, *dropped])
    assert [none.name, decay.name, dropout.name] == ["none", "weight decay", "dropout"]
    assert [early.name, combination.name] == ["early stopping", "combination"]
    assert decay.result.params == {"dropout": 0.0, "weight_decay": 0.1}
    assert dropout.result.params["dropout"] == 0.5
    assert combination.result.params == {"dropout": 0.5, "weight_decay": 0.1}
    assert [str(decay), str(dropout)] == ["weight decay 0.1", "dropout 0.5"]
    assert [str(early), str(combination)] == ["early stopping", "combination: decay 0.1, dropout 0.5"]
    *_, alone = choose_remedies(
        [*runs(0.0, [RISING, FLAT, FLAT], [FLAT, FLAT, FLAT]), *runs(0.5, [FLAT] * 3, [FLAT] * 3)]
    )
    assert str(alone) == "combination: early stopping alone"
    assert none.stop.tolist() == [3, 3, 3]
    assert early.stop.tolist() == [1, 1, 1]
    assert early.taken("test/loss").tolist() == pytest.approx([0.799, 0.8, 0.801])


def test_a_model_without_remedies_has_early_stopping_alone() -> None:
    none, early = choose_remedies([Result({}, curves(RISING, RISING))])
    assert (none.name, early.name) == ("none", "early stopping")


def test_early_stopping_waits_no_longer_than_its_patience() -> None:
    losses = [3.0, 2.0, 2.5, 2.6, 1.0]
    assert [early_stop(losses, patience) for patience in (1, 2, 3)] == [1, 1, 4]
    assert early_stop([1.0]) == 0


def conclusion(folder: Path, arms: Sequence[Result]) -> str:
    """What the page says first of these runs."""
    plan = overfit.plan(TINY, SoftmaxRegression, "")
    manifest = {"data": "none", "command": "none"}
    page = study.write(folder, {SIZE: choose_remedies(arms)}, plan, manifest).read_text()
    return " ".join(page[page.index("<p>") : page.index("</p>")].split())


def test_the_conclusion_says_what_helps_what_hurts_and_what_is_noise(tmp_path: Path) -> None:
    noisy = runs(0.5, [FLAT, FLAT, FLAT], [FLAT, FLAT, FLAT])
    spread = torch.tensor([0.3, -0.3, 0.0], dtype=torch.float64)
    noisy[0].history["test/loss"][:, -1] += spread
    text = conclusion(tmp_path, [*runs(0.0, [RISING] * 3, [RISING, [2.0] * 4, RISING]), *noisy])
    assert "Without a remedy the validation loss is lowest after epoch 2. From there to epoch 4" in text
    assert "the test loss rises by 0.3000 ± 0.0000, and the test accuracy makes no clear difference (+0.0000" in text
    assert "Early stopping lowered the test loss at the end by 0.3000 ± 0.0000." in text
    assert "Weight decay raised the test loss at the end by 0.9000 ± 0.0000." in text
    assert "Dropout made no clear difference to the test loss at the end" in text
    assert text.count("Dropout") == 1


@pytest.mark.slow
def test_a_loss_that_still_falls_is_not_called_overfitting(tmp_path: Path) -> None:
    falling = [[4.0, 3.0, 2.0, 1.0]] * 3
    text = conclusion(tmp_path, [*runs(0.0, falling, falling), *runs(0.5, falling, falling)])
    assert "the validation loss is lowest at the end, after epoch 4: the model does not overfit yet." in text


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of runs.csv, in a fixed order."""
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    return sorted(rows, key=lambda row: [row.get(name, "") for name in ORDER])


def test_the_page_has_curves_tables_and_conclusions(tmp_path: Path) -> None:
    text = study.run(tmp_path, source="synthetic", quick=True, workers=1).read_text()
    assert "<b>30 images.</b> Without a remedy" in text
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        f"images-{n}{name}" for n in (30, 60) for name in ("", "-remedies")
    }
    rows = table(tmp_path)
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # sizes x dropouts x decays x seeds x scorings
    scored = {(row["train_size"], row["epoch"]) for row in rows}
    assert scored == {("30", "2"), ("30", "4"), ("60", "1"), ("60", "2")}
    assert rows[0].keys() > {"test/acc", "train/loss"}
    assert len({row["val/loss"] for row in rows}) == len(rows)  # seeds differ
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_page")
def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    for workers in (1, 2):
        study.run(tmp_path / str(workers), source="synthetic", quick=True, workers=workers)
    assert table(tmp_path / "1") == table(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.usefixtures("without_page")
def test_what_was_finished_before_an_interruption_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run(tmp_path / "whole", source="synthetic", quick=True, workers=1)
    train_epoch = Stack.train_epoch
    trained: list[Stack] = []

    def stopped(self: Stack) -> Means:
        if len(trained) == 15:
            raise SystemExit
        trained.append(self)
        return train_epoch(self)

    def counted(self: Stack) -> Means:
        trained.append(self)
        return train_epoch(self)

    monkeypatch.setattr(Stack, "train_epoch", stopped)
    with pytest.raises(SystemExit):
        study.run(tmp_path, source="synthetic", quick=True, workers=1)
    assert not (tmp_path / "index.html").exists()
    capsys.readouterr()
    monkeypatch.setattr(Stack, "train_epoch", counted)
    study.run(tmp_path, source="synthetic", quick=True, workers=1)
    assert "8/8 trials" in capsys.readouterr().err
    assert len(trained) < 15 + 2 * 2 * (4 + 2)  # dropouts x seeds x epochs, all of it
    assert table(tmp_path) == table(tmp_path / "whole")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("mine\n")
    with pytest.raises((InputError, StorageError), match="file"):
        study.run(out / "pages", source="synthetic", quick=True)
    with pytest.raises((InputError, StorageError), match="file"):
        study.run(out, source="synthetic", quick=True)
    assert out.read_text() == "mine\n"
    (tmp_path / "index.html").write_text("mine\n")
    with pytest.raises(InputError, match=r"index\.html: exists and was not written by this project.*--force"):
        study.run(tmp_path, source="synthetic", quick=True)
    (tmp_path / "index.html").unlink()
    with locked(tmp_path, ""), pytest.raises(InputError, match=r"another process is at work there.*--out"):
        study.run(tmp_path, source="synthetic", quick=True)


@pytest.mark.slow
def test_a_page_that_cannot_be_written_in_the_end_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: object, **values: object) -> Path:
        raise StorageError(f"{folder}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(study, "write_page", full)
        with pytest.raises(StorageError):
            study.run(tmp_path, source="synthetic", quick=True)
    with monkeypatch.context() as patch:
        patch.delattr(Stack, "train_epoch")
        study.run(tmp_path, source="synthetic", quick=True)
    assert (tmp_path / "index.html").exists()


def test_data_of_which_no_few_images_can_be_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data=BoringDataModule: expected a subclass of FashionMNISTDataModule"):
        study.run(tmp_path, data=BoringDataModule, quick=True)

    class Normalized(FashionMNISTDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] - 0.5, batch[1]

    message = "data=Normalized: overfit takes images without its on_after_batch_transfer"
    with pytest.raises(InputError, match=message):
        study.run(tmp_path, data=Normalized, source="synthetic", quick=True)


def test_too_few_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "QUICK", FULL)
    with pytest.raises(InputError, match="need 55000"):
        study.run(tmp_path, source="synthetic", quick=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_page")
def test_each_kind_of_study_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overfit, "FULL", TINY)
    page = study.run(source="synthetic", quick=True)
    assert page == Path("studies/overfit-synthetic-quick/index.html")
    assert study.run(source="synthetic") == Path("studies/overfit-synthetic/index.html")
    assert folder_name("overfit", model=MLP) == "overfit-MLP"


class Bare(MLP):
    """A model that has none of the remedies."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__(hidden)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "remedies"), [(MLP, 5), (Bare, 2)])
def test_another_model_has_the_remedies_that_it_has_parameters_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: type[MLP], remedies: int
) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY._replace(sizes=TINY.sizes[:1]))
    text = study.run(tmp_path, model, source="synthetic", quick=True).read_text()
    assert text.count("<tr>") == 2 * (1 + remedies)  # a table of losses and one of accuracies
    assert len(table(tmp_path)) == {5: 2 * 2, 2: 1}[remedies] * 2 * 2


class Foreign(LightningModule):
    """A module that knows nothing of this project, and keeps a part of it out of training mode."""

    def __init__(self, lr: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(784, 10))
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class ByEntropy(Foreign):
    """A module whose loss is not called a loss, and that logs another one in training."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_entropy", cross_entropy(self.net(batch[0]), batch[1]))


@pytest.mark.slow
def test_a_loss_of_another_name_is_not_taken_for_the_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY._replace(sizes=TINY.sizes[:1]))
    page = study.run(tmp_path, ByEntropy, monitor="val_entropy", source="synthetic", quick=True)
    assert {row["val/acc"] for row in table(tmp_path)} == {"nan"}
    text = " ".join(page.read_text().split())
    assert "The loss is val_entropy, as the model logs it" in text
    assert "The optimizer is the model's own" in text


def test_a_model_that_does_not_log_the_monitor_in_validation_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="monitor=train_loss: ByEntropy logs val_entropy; give --monitor one of them"):
        study.run(tmp_path, ByEntropy, monitor="train_loss", source="synthetic", quick=True)

    class Unscored(ByEntropy):
        validation_step: Any = LightningModule.validation_step

    with pytest.raises(InputError, match="model=Unscored: has no validation_step, by which overfit scores it"):
        study.run(tmp_path, Unscored, monitor="train_loss", source="synthetic", quick=True)


def test_remedies_have_something_to_be_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NeedsDropout(Foreign):
        def __init__(self, dropout: float = 0.0) -> None:
            super().__init__(0.1 if dropout else torch.nan, dropout)

    monkeypatch.setattr(overfit, "QUICK", TINY._replace(sizes=TINY.sizes[:1]))
    with pytest.raises(InputError, match=r"images: the training without a remedy failed \(DivergedError: val/loss=nan"):
        study.run(tmp_path, NeedsDropout, monitor="val_loss", source="synthetic", quick=True)


@pytest.mark.slow
def test_a_model_of_anybody_is_scored_by_its_own_validation_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY._replace(sizes=TINY.sizes[:1]))
    with pytest.raises(InputError, match="monitor=val/loss: Foreign logs val_loss; give --monitor one of them"):
        study.run(tmp_path, Foreign, source="synthetic", quick=True)
    text = study.run(tmp_path, Foreign, monitor="val_loss", source="synthetic", quick=True).read_text()
    assert text.count("<tr>") == 1 + 4  # it logs no accuracy: one table, without weight decay
    rows = table(tmp_path)
    assert len(rows) == 2 * 2 * 2
    losses = [float(row["train/loss"]) for row in rows if (row["dropout"], row["seed"]) == ("0.0", "0")]
    assert losses == sorted(losses, reverse=True)
