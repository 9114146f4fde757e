"""The curves of runs are drawn from their metrics.csv."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from recorded import record
from softmax_regression.errors import InputError
from softmax_regression.reports import curve
from softmax_regression.reports.reading import labels_of, read_runs, settings_of

ROWS = [
    {"epoch": 1, "step": 10, "lr": 0.1, "val_loss": 2.0},
    {"epoch": 1, "step": 20, "lr": 0.1, "val_loss": 1.0, "loss": 3.0},
    {"epoch": 2, "step": 40, "lr": 0.1, "hard/acc": 0.5, "loss": 1.5},
]


def test_curves_are_of_every_metric_whatever_it_is_called(tmp_path: Path) -> None:
    figure = curve.curves_of_runs(read_runs([record(tmp_path / "run", ROWS)]))
    drawn = {}
    for axes in figure.axes:
        for line in axes.lines:
            drawn[axes.get_ylabel(), str(line.get_linestyle())] = [
                np.array(line.get_xdata()).tolist(),
                np.array(line.get_ydata()).tolist(),
            ]
    assert list(drawn.values()) == [
        [[0.5, 1], [2, 1]],  # val_loss, of a validation within the epoch, too
        [[1, 2], [3, 1.5]],  # loss
        [[2], [0.5]],  # hard/acc
    ]


def test_an_epoch_that_was_cut_short_is_not_drawn_as_a_whole_one(tmp_path: Path) -> None:
    cut = [{"epoch": epoch, "step": step, "lr": 0.1, "val_loss": 1.0} for epoch, step in ((1, 20), (2, 40), (3, 50))]
    figure = curve.curves_of_runs(read_runs([record(tmp_path / "run", cut)]))
    assert np.array(figure.axes[0].lines[0].get_xdata()).tolist() == [1, 2, 2.5]


def test_a_picture_is_written_and_replaced_but_not_somebody_elses(tmp_path: Path) -> None:
    run = record(tmp_path / "run", ROWS)
    output = tmp_path / "figures" / "curve.png"
    assert curve.run([run, run], output) == output
    assert output.read_bytes().startswith(b"\x89PNG")
    assert curve.run([run], output) == output  # once more over its own
    thesis = tmp_path / "thesis.png"
    thesis.write_bytes(b"mine")
    with pytest.raises(InputError, match="was not written by this project"):
        curve.run([run], thesis)
    assert thesis.read_bytes() == b"mine"
    curve.run([run], thesis, force=True)
    assert thesis.read_bytes() != b"mine"


def test_a_bad_run_is_left_out_and_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = record(tmp_path / "good", ROWS)
    damaged = record(tmp_path / "damaged", ROWS)
    (damaged / "run.json").write_text("[1]")
    torn = record(tmp_path / "torn", ROWS)
    (torn / "metrics.csv").write_text("epoch,step\none,two\n")
    diverged = record(tmp_path / "diverged", ROWS, status="diverged")
    old = record(tmp_path / "old")  # before there was a metrics.csv
    runs = read_runs([damaged, torn, diverged, old, good])
    assert [run.folder for run in runs] == [good]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["left out"] * 4
    assert str(damaged / "run.json") in lines[0]
    assert str(torn / "metrics.csv") in lines[1]
    assert lines[2] == f"left out: {diverged}: diverged"
    assert lines[3].startswith(f"left out: {old}: has no metrics in metrics.csv")


def test_only_bad_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run is left to be shown"):
        curve.run([tmp_path, tmp_path / "absent"], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_runs_are_named_after_what_sets_them_apart(tmp_path: Path) -> None:
    slow = record(tmp_path / "monday", ROWS, {"lr": 0.1, "momentum": 0.9})
    fast = record(tmp_path / "friday", ROWS, {"lr": 0.5, "momentum": 0.9})
    assert labels_of(read_runs([slow, fast])) == ["lr=0.1", "lr=0.5"]
    assert labels_of(read_runs([slow])) == ["monday"]


def test_runs_of_the_same_settings_are_named_after_their_folders(tmp_path: Path) -> None:
    first = record(tmp_path / "a" / "run", ROWS, {"lr": 0.1})
    again = Path(shutil.copytree(first, tmp_path / "b" / "run"))
    other = record(tmp_path / "other", ROWS, {"lr": 0.5})
    assert labels_of(read_runs([first, again])) == [str(first), str(again)]
    assert labels_of(read_runs([first, again, other])) == [str(first), str(again), "lr=0.5"]


def test_what_most_runs_have_in_common_is_in_no_label(tmp_path: Path) -> None:
    settings = [{"lr": 0.1, "loss": "torch"}, {"lr": 0.1, "loss": "stable"}, {"lr": 0.5, "loss": "torch"}]
    runs = [record(tmp_path / str(number), ROWS, given) for number, given in enumerate(settings)]
    assert labels_of(read_runs(runs)) == ["0", "loss=stable", "lr=0.5"]


def test_settings_have_the_names_of_the_command_line() -> None:
    config = {
        "model": {"class_path": "mine.Net", "init_args": {"widths": [8, 4], "act": {"class_path": "torch.nn.Tanh"}}},
        "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "A"}], "enable_progress_bar": False},
        "ckpt_path": None,
        "threads": None,
    }
    assert settings_of(config) == {
        "model": "Net",
        "model.widths": "[8, 4]",
        "model.act": "Tanh",
        "trainer.max_epochs": "3",
        "threads": "none",
    }
