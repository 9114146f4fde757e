"""Remedies are tuned on validation data, and the text says what the numbers say."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from examples.mlp import MLP
from torch import Tensor

from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.overfit import measurements as overfit
from softmax_regression.studies.overfit import page as overfit_page
from softmax_regression.studies.overfit.measurements import FULL, Curves, Design, Size, choose_arms, early_stop
from softmax_regression.studies.stacked import METRICS, Scores, Stack

SIZE = Size(100, 4, 1)
TINY = Design((Size(30, 4, 2), Size(60, 2, 1)), (0.0, 0.5), (0.0, 0.1), 2)

# Lightning's, where SLURM is installed and not used.
pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available on your system")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY)


def curves(val_loss: Sequence[float], test_loss: Sequence[float]) -> Tensor:
    """What came of three seeds with these losses, one a scoring, that hardly differ between the seeds."""
    noise = torch.tensor([-0.001, 0.0, 0.001], dtype=torch.float64)[:, None]
    metrics = torch.full((3, 6, 4), 0.5, dtype=torch.float64)
    for name, losses in (("val/loss", val_loss), ("test/loss", test_loss)):
        metrics[:, METRICS.index(name)] = torch.tensor(losses, dtype=torch.float64) + noise
    return metrics


def runs(dropout: float, val_loss: Sequence[Sequence[float]], test_loss: Sequence[Sequence[float]]) -> Curves:
    """Runs with a dropout and three weight decays."""
    decays = zip((0.0, 0.01, 0.1), val_loss, test_loss, strict=True)
    return {(dropout, decay): curves(val, test) for decay, val, test in decays}


FLAT, RISING, LOW = [1.0, 0.9, 0.9, 0.9], [1.0, 0.8, 0.9, 1.1], [1.0, 0.8, 0.7, 0.7]


def test_remedies_are_chosen_by_validation_loss_and_not_by_test_loss() -> None:
    plain = runs(0.0, [RISING, FLAT, LOW], [RISING, LOW, FLAT])
    dropped = runs(0.5, [FLAT, FLAT, [1.0, 0.6, 0.6, 0.6]], [FLAT, FLAT, FLAT])
    arms = {arm.name: arm for arm in choose_arms({**plain, **dropped})}
    assert list(arms) == ["none", "weight decay", "dropout", "early stopping", "combination"]
    assert (arms["weight decay"].decay, arms["dropout"].dropout) == (0.1, 0.5)
    assert (arms["combination"].dropout, arms["combination"].decay) == (0.5, 0.1)
    assert arms["none"].stop.tolist() == [3, 3, 3]
    assert arms["early stopping"].stop.tolist() == [1, 1, 1]
    assert arms["early stopping"].taken("test/loss") == pytest.approx([0.799, 0.8, 0.801])


def test_a_model_without_remedies_has_early_stopping_alone() -> None:
    assert [arm.name for arm in choose_arms({(0.0, 0.0): curves(RISING, RISING)})] == [
        "none",
        "early stopping",
    ]


def test_early_stopping_waits_no_longer_than_its_patience() -> None:
    losses = [3.0, 2.0, 2.5, 2.6, 1.0]
    assert [early_stop(losses, patience) for patience in (1, 2, 3)] == [1, 1, 4]
    assert early_stop([1.0]) == 0


def conclusion(folder: Path, arms: Curves) -> str:
    """What the page says first of these runs."""
    plan = overfit.plan(TINY, SoftmaxRegression, "")
    manifest = {"data": "none", "command": "none"}
    page = overfit_page.write(folder, {SIZE: choose_arms(arms)}, plan, manifest).read_text()
    return " ".join(page[page.index("<p>") : page.index("</p>")].split())


def test_the_conclusion_says_what_helps_what_hurts_and_what_is_noise(tmp_path: Path) -> None:
    noisy = runs(0.5, [FLAT, FLAT, FLAT], [FLAT, FLAT, FLAT])
    spread = torch.tensor([0.3, -0.3, 0.0], dtype=torch.float64)
    noisy[0.5, 0.0][:, METRICS.index("test/loss"), -1] += spread
    text = conclusion(tmp_path, {**runs(0.0, [RISING] * 3, [RISING, [2.0] * 4, RISING]), **noisy})
    assert "100 images. With no remedy the validation loss is least at epoch 2" in text
    assert "to epoch 4 the test loss rises by 0.3000 ± 0.0000" in text
    assert "the test accuracy stays within noise (+0.0000 ± 0.0000). Lower" in text
    assert "Lower the test loss at the end: early stopping (-0.3000 ± 0.0000)" in text
    assert "Raise it: weight decay (+0.9000 ± 0.0000). Change it within noise: dropout" in text
    assert text.count("dropout") == 1


def test_a_loss_that_still_falls_is_not_called_overfitting(tmp_path: Path) -> None:
    falling = [[4.0, 3.0, 2.0, 1.0]] * 3
    text = conclusion(tmp_path, {**runs(0.0, falling, falling), **runs(0.5, falling, falling)})
    assert "at the end, epoch 4: nothing is overfitted yet" in text


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of runs.csv, in a fixed order, without what names the process."""
    order, own = ("train_size", "dropout", "weight_decay", "seed", "epoch"), ("machine", "trial")
    with (folder / "runs.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in own} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: [row.get(name, "") for name in order])


def test_the_page_has_curves_tables_and_conclusions_and_workers_do_not_matter(tmp_path: Path) -> None:
    text = overfit_page.run(tmp_path, source="synthetic", quick=True, workers=1).read_text()
    assert "30 images. With no remedy the validation loss is least" in text
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        f"images-{n}{name}" for n in (30, 60) for name in ("", "-remedies")
    }
    rows = table(tmp_path)
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # sizes x dropouts x decays x seeds x scorings
    scored = {(row["train_size"], row["epoch"]) for row in rows}
    assert scored == {("30", "2"), ("30", "4"), ("60", "1"), ("60", "2")}
    assert rows[0].keys() > {"test/acc", "train/loss"}
    assert len({row["val/loss"] for row in rows}) == len(rows)  # seeds differ
    overfit_page.run(tmp_path / "two", source="synthetic", quick=True, workers=2)
    assert table(tmp_path / "two") == rows
    assert not list(tmp_path.glob("unfinished/*"))


class Stopped(BaseException):
    """What ends a process from outside."""


def test_what_was_finished_before_an_interruption_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overfit_page.run(tmp_path / "whole", source="synthetic", quick=True, workers=1)
    train_epoch, calls = Stack.train_epoch, list[int]()

    def counted(self: Stack, limit: int = 15) -> Scores:
        if len(calls) == limit:
            raise Stopped
        calls.append(1)
        return train_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "train_epoch", counted)
        with pytest.raises(Stopped):
            overfit_page.run(tmp_path, source="synthetic", quick=True, workers=1)
        assert not (tmp_path / "index.html").exists()
        capsys.readouterr()
        patch.setattr(Stack, "train_epoch", lambda self: counted(self, 1000))
        overfit_page.run(tmp_path, source="synthetic", quick=True, workers=1)
    assert "8/8 trials" in capsys.readouterr().err
    assert len(calls) < 15 + 2 * 2 * (4 + 2)  # dropouts x seeds x epochs, all of it
    assert table(tmp_path) == table(tmp_path / "whole")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("mine\n")
    with pytest.raises((InputError, StorageError), match="file"):
        overfit_page.run(out / "pages", source="synthetic", quick=True)
    with pytest.raises((InputError, StorageError), match="file"):
        overfit_page.run(out, source="synthetic", quick=True)
    assert out.read_text() == "mine\n"
    (tmp_path / "index.html").write_text("mine\n")
    with pytest.raises(InputError, match=r"index\.html: exists and was not written by this project.*--force"):
        overfit_page.run(tmp_path, source="synthetic", quick=True)
    (tmp_path / "index.html").unlink()
    with locked(tmp_path, ""), pytest.raises(InputError, match=r"another process is at work there.*--out"):
        overfit_page.run(tmp_path, source="synthetic", quick=True)


def test_a_page_that_cannot_be_written_in_the_end_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: object, **values: object) -> Path:
        raise StorageError(f"{folder}: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(overfit_page, "write_page", full)
        with pytest.raises(StorageError):
            overfit_page.run(tmp_path, source="synthetic", quick=True)
        patch.undo()
        monkeypatch.setattr(overfit, "QUICK", TINY)
        patch.delattr(Stack, "train_epoch")
        overfit_page.run(tmp_path, source="synthetic", quick=True)
    assert (tmp_path / "index.html").exists()


def test_too_few_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "QUICK", FULL)
    with pytest.raises(InputError, match="need 55000"):
        overfit_page.run(tmp_path, source="synthetic", quick=True)


class Bare(MLP):
    """A model that has none of the remedies."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__(hidden)


@pytest.mark.parametrize(("model", "arms"), [(MLP, 5), (Bare, 2)])
def test_another_model_has_the_remedies_that_it_has_parameters_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: type[MLP], arms: int
) -> None:
    monkeypatch.setattr(overfit, "QUICK", TINY._replace(sizes=TINY.sizes[:1]))
    text = overfit_page.run(tmp_path, model, source="synthetic", quick=True).read_text()
    assert text.count("<tr>") == 1 + arms
    assert len(table(tmp_path)) == {5: 2 * 2, 2: 1}[arms] * 2 * 2
