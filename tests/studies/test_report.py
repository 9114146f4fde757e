"""Pages of runs: one by itself, several side by side."""

import json
import re
from pathlib import Path

import pytest

from commands import fit, one_line
from softmax_regression.commands import study as studies
from softmax_regression.commands.train import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in the learning rate."""
    logs = tmp_path_factory.mktemp("logs")
    for lr in ("0.1", "0.5"):
        assert (
            fit(f"--model.lr={lr}", f"--trainer.logger.save_dir={logs}", f"--trainer.logger.name=lr{lr}") == 0
        )
    return sorted(logs.glob("*/*"))


def page_of(capsys: pytest.CaptureFixture[str]) -> str:
    return Path(capsys.readouterr().out.split()[-1]).read_text()


def test_a_report_shows_the_validation_images_until_the_test_images_were_scored(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert studies.main(["report", str(runs[0])]) == 0
    page = page_of(capsys)
    assert "101 validation images" in page
    assert page.count("<img") == 7
    history = json.loads((runs[0] / "run.json").read_text())["final"]
    assert f"{history['val/loss']:.4f}" in page
    assert (runs[0] / "report" / "confusion_matrix.png").exists()
    assert main(["test", f"--ckpt_path={runs[0]}"]) == 0
    capsys.readouterr()
    assert studies.main(["report", str(runs[0] / "checkpoints" / "last.ckpt")]) == 0
    assert "100 test images" in page_of(capsys)


def test_a_comparison_names_what_differs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = runs[0].parents[1] / "compared"
    assert studies.main(["compare", *map(str, runs), f"--out={out}"]) == 0
    page = page_of(capsys)
    differing = re.findall(r"<tr><td>([\w.]+)</td><td>0.1</td><td>0.5</td>", page)
    assert differing == ["model.lr"]
    assert "model.momentum</td>" not in page
    rows = re.findall(r"<tr><td>[^<]*</td><td>(\w+ epoch)", page)
    assert rows == ["last epoch", "best epoch"] * 2


def test_one_run_has_nothing_to_be_compared_with(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert studies.main(["compare", str(runs[0])]) == 2
    assert "comparing takes two or more" in one_line(capsys)


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies.main(["report", str(tmp_path)]) == 2
    assert "has no checkpoints" in one_line(capsys)
