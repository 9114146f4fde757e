"""Remedies are tuned on validation data, and the text says what the numbers say."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.studies import overfit_page
from softmax_regression.studies.overfit import (
    FULL,
    METRICS,
    Design,
    Runs,
    Size,
    choose_arms,
    early_stop,
    train_all,
)
from softmax_regression.studies.overfit_page import conclusion, difference

SIZE = Size(100, 4, 1)
DESIGN = Design((SIZE,), (0.0, 0.5), (0.0, 0.01, 0.1), 3)


def runs(val_loss: list[list[float]], test_loss: list[list[float]]) -> Runs:
    """Runs with these losses, [weight decay][scoring], that hardly differ between the seeds."""
    noise = torch.tensor([-0.001, 0.0, 0.001], dtype=torch.float64)[:, None, None]
    metrics = torch.full((3, 3, 6, 4), 0.5, dtype=torch.float64)
    for name, losses in (("val/loss", val_loss), ("test/loss", test_loss)):
        metrics[:, :, METRICS.index(name)] = torch.tensor(losses, dtype=torch.float64) + noise
    return Runs(metrics, torch.zeros(3, 3, 10, 784))


FLAT, RISING, LOW = [1.0, 0.9, 0.9, 0.9], [1.0, 0.8, 0.9, 1.1], [1.0, 0.8, 0.7, 0.7]


def test_remedies_are_chosen_by_validation_loss_and_not_by_test_loss() -> None:
    plain = runs([RISING, FLAT, LOW], [RISING, LOW, FLAT])
    dropped = runs([FLAT, FLAT, [1.0, 0.6, 0.6, 0.6]], [FLAT, FLAT, FLAT])
    arms = {arm.name: arm for arm in choose_arms(DESIGN, {0.0: plain, 0.5: dropped})}
    assert list(arms) == ["none", "weight decay", "dropout", "early stopping", "combination"]
    assert (arms["weight decay"].decay, arms["dropout"].dropout) == (0.1, 0.5)
    assert (arms["combination"].dropout, arms["combination"].decay) == (0.5, 0.1)
    assert arms["none"].stop.tolist() == [3, 3, 3]
    assert arms["early stopping"].stop.tolist() == [1, 1, 1]
    assert arms["early stopping"].taken("test/loss") == pytest.approx([0.799, 0.8, 0.801])


def test_early_stopping_waits_no_longer_than_its_patience() -> None:
    losses = [3.0, 2.0, 2.5, 2.6, 1.0]
    assert [early_stop(losses, patience) for patience in (1, 2, 3)] == [1, 1, 4]
    assert early_stop([1.0]) == 0


def test_the_conclusion_says_what_helps_what_hurts_and_what_is_noise() -> None:
    noisy = runs([FLAT, FLAT, FLAT], [FLAT, FLAT, FLAT])
    noisy.metrics[:, 0, METRICS.index("test/loss"), -1] += torch.tensor([0.3, -0.3, 0.0], dtype=torch.float64)
    arms = choose_arms(DESIGN, {0.0: runs([RISING] * 3, [RISING, [2.0] * 4, RISING]), 0.5: noisy})
    text = conclusion(SIZE, arms)
    assert "With no remedy the validation loss is least at epoch 2" in text
    assert "to epoch 4 the test loss rises by 0.3000 ± 0.0000" in text
    assert "the test accuracy stays within noise" in text
    assert "Lower the test loss at the end: early stopping (-0.3000 ± 0.0000)" in text
    assert "Raise it: weight decay (+0.9000 ± 0.0000)" in text
    assert "Change it within noise: dropout" in text
    assert text.count("dropout") == 1
    assert difference(arms[1], arms[0], "test/loss").mean == pytest.approx(0.9)


def test_a_loss_that_still_falls_is_not_called_overfitting() -> None:
    falling = runs([[4.0, 3.0, 2.0, 1.0]] * 3, [[4.0, 3.0, 2.0, 1.0]] * 3)
    text = conclusion(SIZE, choose_arms(DESIGN, {0.0: falling, 0.5: falling}))
    assert "at the end, epoch 4: nothing is overfitted yet" in text


@pytest.fixture(scope="module")
def data() -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, val_size=100, source="synthetic", synthetic_size=400)
    data.setup()
    return data


def test_runs_do_not_depend_on_the_workers_and_seeds_differ(data: FashionMNISTDataModule) -> None:
    design = Design((Size(40, 2, 1),), (0.0, 0.2, 0.5), (0.0, 0.1), 2)

    def metrics(workers: int) -> dict[float, Tensor]:
        return {
            dropout: r.metrics for dropout, r in train_all(design, data, workers)[design.sizes[0]].items()
        }

    one, two = metrics(1), metrics(2)
    assert len(one) == 2  # no dropout, and the better of the two for the first seed
    for dropout, values in one.items():
        assert values.shape == (2, 2, 6, 2)
        torch.testing.assert_close(values, two[dropout])
        assert not torch.allclose(values[0], values[1])


def test_too_few_images_are_refused() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overfit_page, "QUICK", FULL)
        with pytest.raises(InputError, match="need 55000"):
            overfit_page.run(source="synthetic", quick=True)


def test_the_page_has_curves_tables_templates_and_conclusions(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overfit_page, "QUICK", Design((Size(30, 4, 2),), (0.0, 0.5), (0.0, 0.1), 2))
        page = overfit_page.run(tmp_path, source="synthetic", quick=True)
    text = page.read_text()
    assert "30 images. With no remedy the validation loss is least" in text
    for name in ("", "-remedies", "-weights-none", "-weights-combination"):
        assert (tmp_path / f"images-30{name}.png").exists()
    header, *rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert header.startswith("images,dropout,weight_decay,seed,epoch,train/loss")
    assert len(rows) == 2 * 2 * 2 * 2  # dropouts x decays x seeds x scorings
