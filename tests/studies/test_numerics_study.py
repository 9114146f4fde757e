import base64
import csv
import math
import re
from pathlib import Path

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from softmax_regression.data import synthetic
from softmax_regression.data.files import Dataset
from softmax_regression.studies import numerics_study
from softmax_regression.studies.numerics_measurements import (
    BREAKDOWNS,
    LOSSES,
    VANISHINGS,
    Failure,
    Training,
    errors,
    exact,
    failures,
    train,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numerics_study.run(tmp_path_factory.mktemp("numerics"), quick=True)


def rows(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_folder_has_the_page_its_figures_and_its_numbers(page: Path) -> None:
    figures = {"softmax_error", "log_softmax_error", "vanishing_loss", "training", "logsumexp", "temperature"}
    tables = {"failures.csv", "errors.csv", "training.csv"}
    assert {path.name for path in page.parent.iterdir()} == {
        "index.html",
        *tables,
        *(f"{f}.png" for f in figures),
    }


def test_the_page_is_self_contained(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    embedded = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources}
    assert embedded == {path.read_bytes() for path in page.parent.glob("*.png")}
    assert not re.search(r"https?:|@import|url\(", html)


def test_the_page_states_what_was_measured(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "24 of 24 measured scales are the first step above the prediction." in html
    assert "12 of 12 measured scales" in html
    assert "torch&#x27;s loss is 0, the stable one 1.39e-11, the true one 1.39e-11" in html
    assert "finite numbers in float16, bfloat16, float32, float64" in html
    assert "seed 0, quick" in html
    for row in rows(page, "failures.csv"):
        assert f"<td>{float(row['measured']):g} ({float(row['predicted']):.2f})</td>" in html


@pytest.mark.parametrize(
    "row", failures([*BREAKDOWNS, *VANISHINGS]), ids=lambda row: f"{row.what}-{row.dtype}"
)
def test_a_measured_scale_is_within_one_step_of_the_prediction(row: Failure) -> None:
    assert row.agrees


def test_a_scale_more_than_a_step_off_does_not_agree() -> None:
    assert not Failure("", "", "", predicted=10.0, measured=9.5).agrees
    assert not Failure("", "", "", predicted=10.0, measured=11.0).agrees


def test_the_naive_loss_breaks_in_float16_and_from_large_weights_and_the_stable_one_nowhere(
    page: Path,
) -> None:
    broken = {
        (row["dtype"], row["init_std"], row["form"])
        for row in rows(page, "training.csv")
        if not math.isfinite(float(row["loss"]))
    }
    assert broken == {("float16", "0.01", "naive"), ("float32", "2.0", "naive")}


def test_a_broken_run_is_broken_from_its_first_infinite_loss() -> None:
    assert Training("", 0, "", [1.0, math.inf, math.nan]).broken == 2
    assert Training("", 0, "", [1.0, 0.5]).broken is None


def test_the_three_losses_train_alike_where_nothing_overflows() -> None:
    images, labels = synthetic.draw(500, seed=0)
    x, y = images.flatten(1) / 255, labels.long()
    curves = [train(form, x, y, torch.float32, 0.01, steps=20, seed=0).losses for form in LOSSES]
    assert curves[0][-1] < curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[2] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.parametrize("row", [(0.0, -25.0), (1.5, 1.5, -3.0), (0.0, -300.0), (1e4, -1e4)])
def test_the_reference_agrees_with_mpmath(row: tuple[float, ...]) -> None:
    reference = exact(row)
    with mpmath.workdps(400):
        e = [mpmath.exp(o - max(row)) for o in row]
        p = [v / mpmath.fsum(e) for v in e]
        for got, true in zip(reference["softmax"], p, strict=True):
            assert abs(mpmath.mpf(str(got)) - true) <= true * 1e-40
        if min(row) > -1e3:
            for got, true in zip(reference["log-softmax"], map(mpmath.log, p), strict=True):
                assert abs(mpmath.mpf(str(got)) - true) <= abs(true) * 1e-40


def test_errors_are_those_of_the_forms() -> None:
    measured = errors(rows=3, points=6, seed=0)
    for row in measured:
        if row.form == "stable":
            assert row.ulps <= (0.51 if row.dtype in ("float16", "bfloat16") else 8)
        if row.form == "naive" and row.scale > 1e3:
            assert row.ulps == math.inf
    assert max(r.ulps for r in measured if (r.quantity, r.form) == ("log-softmax", "torch")) > 1e9
    assert measured == errors(rows=3, points=6, seed=0)
    assert measured != errors(rows=3, points=6, seed=1)


def test_given_images_are_trained_on_as_rows_in_zero_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.arange(2 * 28 * 28).reshape(2, 28, 28).remainder(256).to(torch.uint8)
    data = Dataset(images, torch.tensor([3, 4]), images, torch.tensor([3, 4]), "", "here")

    def stop(x: Tensor, y: Tensor, steps: int, seed: int) -> None:
        assert x.shape == (2, 784)
        assert [x.min().item(), x.max().item()] == [0, 1]
        assert y.tolist() == [3, 4]
        assert seed == 7
        raise InterruptedError

    monkeypatch.setattr(numerics_study, "load", lambda *args, **kwargs: data)
    monkeypatch.setattr(numerics_study, "trainings", stop)
    with pytest.raises(InterruptedError):
        numerics_study.run(tmp_path, seed=7, quick=True)
