"""Several runs on one page."""

import re
from pathlib import Path

import pytest

from recorded import record
from softmax_regression.errors import InputError
from softmax_regression.reports.compare import compare

ROW = {"epoch": 3, "step": 30, "lr": 0.1, "train_loss": 0.1, "val_loss": 0.25, "hard/acc": 0.75}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table, row by row, the head first."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        found.append([re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows])
    return found


def test_scores_come_first_then_the_settings_in_which_runs_differ(tmp_path: Path) -> None:
    best = {"epoch": 3, "step": 30, "monitor": "val_loss", "score": 0.25}
    slow = record(tmp_path / "slow", [ROW], {"lr": 0.1, "dropout": 0.5}, best=best, test={"test_loss": 0.5})
    fast = record(tmp_path / "fast", [ROW | {"val_loss": 0.125}], {"lr": 0.5, "dropout": 0.5})
    page = text_of(compare([slow, fast], tmp_path / "page"))
    scores, settings = tables(page)
    assert scores == [
        ["run", "best epoch", "val_loss", "hard/acc", "test_loss"],
        ["lr=0.1", "3", "0.2500", "0.7500", "0.5000"],
        ["lr=0.5", "", "0.1250", "0.7500", ""],  # without a best checkpoint
    ]
    assert settings == [["run", "model.lr"], ["lr=0.1", "0.1"], ["lr=0.5", "0.5"]]
    assert page.index("val_loss") < page.index("<img") < page.index("The settings in which they differ")
    assert "2 runs side by side" in page


def test_the_best_epoch_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    rows = [ROW | {"epoch": epoch, "step": 10 * epoch, "val_loss": 1 / epoch} for epoch in (1, 2, 4)]
    best = {"epoch": 2, "step": 20, "monitor": "mine", "score": 7.0}  # by whatever was monitored
    page = text_of(compare([record(tmp_path / "run", rows, best=best)], tmp_path / "page"))
    [[head, cells]] = tables(page)
    assert dict(zip(head, cells, strict=True)) | {"run": ""} == {
        "run": "", "best epoch": "2", "val_loss": "0.5000", "hard/acc": "0.7500",
    }  # fmt: skip


def test_of_one_run_nothing_is_compared(tmp_path: Path) -> None:
    page = text_of(compare([record(tmp_path / "run", [ROW])], tmp_path / "page"))
    assert "<h1>One run</h1>" in page
    assert "differ" not in page


def test_somebody_elses_page_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "index.html"
    theirs.write_text("mine")
    run = record(tmp_path / "run", [ROW])
    with pytest.raises(InputError, match="was not written by this project"):
        compare([run], tmp_path)
    assert theirs.read_text() == "mine"
    compare([run], tmp_path, force=True)
    assert theirs.read_text() != "mine"
