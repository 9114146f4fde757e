"""The table of all runs."""

from pathlib import Path

import pytest

from recorded import record
from softmax_regression.errors import InputError
from softmax_regression.files import locked
from softmax_regression.reports.list import list_runs


def row(epoch: int, **metrics: float) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, **metrics}


def best(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch}


def test_runs_are_listed_with_their_best_scores_and_what_sets_them_apart(tmp_path: Path) -> None:
    rows = [row(1, val_loss=0.5, val_acc=0.6), row(2, val_loss=0.7, val_acc=0.5)]
    generated = {"origin": "generated (data.source=synthetic)"}
    record(tmp_path / "net" / "b", rows, {"lr": 0.1}, best=best(1), started="2026-01-01")
    record(tmp_path / "net" / "a", rows, {"lr": 0.5}, best=best(1), started="2026-01-02", test={"test_acc": 0.25})
    record(tmp_path / "net" / "c", rows, {"lr": 0.1}, best=best(2), started="2026-01-03", data=generated)
    assert list_runs(tmp_path) == "\n".join(
        [
            f"runs in {tmp_path / 'net'}:",
            "run  state     epoch  val_loss  val_acc  test_acc",
            "b    finished      1    0.5000   0.6000",
            "a    finished      1    0.5000   0.6000    0.2500",
            "    model.lr=0.5",
            "c    finished      2    0.7000   0.5000",
            "    images=generated",
        ]
    )


def test_runs_in_deeper_folders_are_listed_too(tmp_path: Path) -> None:
    record(tmp_path / "project" / "net" / "a", [row(1, val_loss=0.5)], {"lr": 0.1}, best=best(1))
    record(tmp_path / "other" / "b", [row(1, val_loss=0.25)], {"lr": 0.1}, best=best(1))
    listed = list_runs(tmp_path)
    assert "project/net/a" in listed
    assert "other/b" in listed


def test_no_line_is_wider_than_a_terminal_whatever_is_logged_and_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    many = {f"val/a_rather_long_metric_{i}": i / 16 for i in range(8)}
    settings = {f"a_rather_long_setting_{i}": i for i in range(8)}
    for i in range(3):
        changed = settings if i == 0 else dict.fromkeys(settings, 9)
        record(tmp_path / "softmax" / f"2026-11-28_23-11-2{i}", [row(1, **many)], changed)
    lines = list_runs(tmp_path).splitlines()[1:]
    assert max(map(len, lines)) <= 80
    for name, value in many.items():
        assert name in lines[0] or f"{name} {value:.4f}" in "\n".join(lines)
    for name, value in settings.items():
        assert f"model.{name}={value}" in "\n".join(lines)


def test_the_scores_of_a_run_without_a_best_checkpoint_are_of_its_last_epoch(tmp_path: Path) -> None:
    record(tmp_path / "net" / "run", [row(1, val_loss=0.5), row(2, val_loss=0.7)])
    assert list_runs(tmp_path).splitlines()[2:] == [
        "run  finished           0.7000",
        "    no best checkpoint: scores of epoch 2",
    ]


def test_a_test_score_does_not_replace_the_validation_score_of_the_same_name(tmp_path: Path) -> None:
    record(tmp_path / "net" / "run", [row(1, f1=0.75)], best=best(1), test={"f1": 0.5})
    assert list_runs(tmp_path).splitlines()[1:] == [
        "run  state     epoch  test/f1      f1",
        "run  finished      1   0.5000  0.7500",
    ]


def test_a_run_without_validation_has_the_metrics_of_its_training(tmp_path: Path) -> None:
    record(tmp_path / "net" / "run", [row(1, train_loss=0.5)], best=best(1))
    assert list_runs(tmp_path).splitlines()[1:] == [
        "run  state     epoch  train_loss",
        "run  finished      1      0.5000",
    ]


def test_a_run_is_running_as_long_as_a_process_keeps_its_folder(tmp_path: Path) -> None:
    record(tmp_path / "softmax" / "killed", status="running")
    record(tmp_path / "softmax" / "diverged", status="diverged")
    (record(tmp_path / "softmax" / "damaged") / "run.json").write_text("[1]")
    record(tmp_path / "softmax" / "of_another_tool", config="train.yaml")
    at_work = record(tmp_path / "other" / "at_work", status="running")
    (tmp_path / "sweep" / "page").mkdir(parents=True)  # no run
    with locked(at_work):
        lines = list_runs(tmp_path).splitlines()[2:]
    assert lines.count("    no metrics.csv") == 5
    states = [line.split() for line in lines if not line.startswith(" ")]
    assert dict(states) == {
        "softmax/killed": "interrupted",
        "softmax/diverged": "diverged",
        "softmax/damaged": "damaged",
        "softmax/of_another_tool": "damaged",
        "other/at_work": "running",
    }


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no runs; train one"):
        list_runs(tmp_path)
