import csv
import html
import math
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import mpmath  # type: ignore[import-untyped]
import pytest
from torch import Tensor

from softmax_regression.data import synthetic
from softmax_regression.errors import InputError
from softmax_regression.studies.numerics import measurements as numerics_measurements
from softmax_regression.studies.numerics import study as numerics_study
from softmax_regression.studies.numerics.measurements import errors, exact, trainings


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numerics_study.run(tmp_path_factory.mktemp("numerics"), quick=True)


def rows(page: Path, name: str) -> list[dict[str, str]]:
    with (page.parent / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text_of(page: Path) -> str:
    """The page with its character references resolved and its lines joined."""
    return " ".join(html.unescape(page.read_text(encoding="utf-8")).split())


def test_the_folder_has_the_page_its_figures_and_its_numbers(page: Path) -> None:
    figures = ("softmax_error", "log-softmax_error", "vanishing_loss", "training", "logsumexp", "temperature")
    tables = ("failures.csv", "errors.csv", "training.csv")
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"index.html", *tables, *(f"{figure}.png" for figure in figures)}


def test_the_page_states_what_was_measured_and_what_it_used(page: Path) -> None:
    text = text_of(page)
    assert "28 of the 28 scales agree with the prediction to within one step; so the range and the precision" in text
    assert "Of 4 runs with each, 2 broke with the naive loss and 0 with the stable one." in text
    assert f"numerics {shlex.quote(f'--out={page.parent}')} --source=synthetic --seed=0 --quick" in text
    assert "5 rows of logits at 11 scales; 240 steps a training run, generated" in text
    for row in rows(page, "failures.csv"):
        assert f"<td>{float(row['measured']):g} ({float(row['predicted']):.2f})</td>" in text


def test_its_equations_are_mathml(page: Path) -> None:
    found = re.findall("<math.*?</math>", page.read_text(encoding="utf-8"), re.DOTALL)
    shown = ["".join("".join(ElementTree.fromstring(math).itertext()).split()) for math in found]
    assert shown == [
        "pi=exp(oi)Σjexp(oj)", "loss=−logpy", "pi=exp(oi−m)Σjexp(oj−m)", "logpi=oi−m−logΣjexp(oj−m)",
        "loss=m−oy+log1pΣj≠kexp(oj−m),m=ok", "m<TLSE(o/T)≤m+Tlogn",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "meaning"), [("nats", "the unit of natural logarithms"), ("ulp", "unit in the last place")]
)
def test_a_unit_is_explained_where_it_first_stands(page: Path, word: str, meaning: str) -> None:
    text = text_of(page)
    assert text.index(f" {word}, {meaning}") + 1 == text.index(word)


def test_what_is_used_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numerics_measurements, "errors", interrupt)
    with pytest.raises(InterruptedError):
        numerics_study.run(tmp_path, quick=True)
    assert capsys.readouterr().err.startswith("5 rows of logits at 11 scales; 240 steps a training run")


def interrupt(*args: object) -> None:
    raise InterruptedError


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics_measurements, "failures", interrupt)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=r"index\.html: cannot be written"):
        numerics_study.run(file, quick=True)


def test_a_page_of_somebody_else_is_replaced_with_force_only_and_an_own_one_always(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics_measurements, "failures", interrupt)
    (tmp_path / "index.html").write_text("My page")
    with pytest.raises(InputError, match="--force"):
        numerics_study.run(tmp_path, quick=True)
    for folder, force in ((tmp_path, True), (page.parent, False)):
        with pytest.raises(InterruptedError):
            numerics_study.run(folder, quick=True, force=force)


def test_the_naive_loss_breaks_in_float16_and_from_large_weights_and_the_stable_one_nowhere(
    page: Path,
) -> None:
    table = rows(page, "training.csv")
    assert len(table) == 240
    broken = {name for row in table for name, loss in row.items() if not math.isfinite(float(loss))}
    assert broken == {"naive float16 0.01", "naive float32 2"}


def test_a_run_learns_alike_with_both_losses_and_breaks_at_its_first_infinite_one() -> None:
    images, labels = synthetic.generate(500, seed=0)
    runs = trainings(images.flatten(1) / 255, labels.long(), steps=20, seed=0)
    stable, naive, wild_stable, wild_naive = runs[:4]  # in float32, from small and from large weights
    assert stable.losses[-1] < stable.losses[0]
    assert naive.losses == pytest.approx(stable.losses, rel=1e-5)
    assert wild_naive.broken == 1
    assert {stable.broken, naive.broken, wild_stable.broken} == {None}


def test_quick_generated_and_full_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    checked: list[Path] = []

    def stop(path: Path, force: bool) -> None:
        checked.append(path)
        raise InterruptedError

    monkeypatch.setattr(numerics_study, "check_output", stop)
    for options in ({}, {"quick": True}, {"source": "synthetic"}, {"out": Path("mine"), "quick": True}):
        with pytest.raises(InterruptedError):
            numerics_study.run(**options)
    assert [str(path.parent) for path in checked] == [
        "studies/numerics",
        "studies/numerics-quick",
        "studies/numerics-synthetic",
        "mine",
    ]


@pytest.mark.parametrize("row", [(0.0, -25.0), (1.5, 1.5, -3.0), (0.0, -300.0), (1e4, -1e4)])
def test_the_reference_agrees_with_mpmath(row: tuple[float, ...]) -> None:
    reference = exact(row)
    with mpmath.workdps(20_000 if min(row) < -1e3 else 400):
        e = [mpmath.exp(o - max(row)) for o in row]
        p = [v / mpmath.fsum(e) for v in e]
        for name, true in (("softmax", p), ("log-softmax", [mpmath.log(v) for v in p])):
            for got, want in zip(reference[name], true, strict=True):
                assert abs(mpmath.mpf(str(got)) - want) <= abs(want) * 1e-40


def test_errors_are_those_of_the_forms_and_within_their_bounds() -> None:
    measured = errors(rows=3, points=6, seed=0)
    assert all(row.ulps <= row.bound for row in measured if row.form == "stable")
    assert all(row.ulps == math.inf for row in measured if row.form == "naive" and row.scale > 1e3)
    assert max(row.ulps for row in measured if (row.quantity, row.form) == ("log-softmax", "torch")) > 1e9
    assert measured == errors(rows=3, points=6, seed=0)
    assert measured != errors(rows=3, points=6, seed=1)


def test_given_images_are_trained_on_as_rows_in_zero_to_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(x: Tensor, y: Tensor, steps: int, seed: int) -> None:
        assert x.shape == (600, 784)
        assert [x.min().item(), x.max().item()] == [0, 1]
        assert y.bincount().tolist() == [60] * 10
        assert (steps, seed) == (400, 7)
        raise InterruptedError

    monkeypatch.setattr(numerics_measurements, "errors", lambda *_: [])
    monkeypatch.setattr(numerics_measurements, "trainings", stop)
    with pytest.raises(InterruptedError):
        numerics_study.run(tmp_path, dirs=[str(tiny)], seed=7)
