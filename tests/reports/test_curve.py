"""The curves of runs are read from their logs."""

import shutil
from pathlib import Path

import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from softmax_regression.errors import InputError
from softmax_regression.reports import curve
from softmax_regression.runs.record import update_manifest


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """Two epochs of 20 steps as Lightning logs them, with one validation more, and a test afterwards."""
    with SummaryWriter(tmp_path / "run") as writer:
        for step, epoch, names in (
            (9, 0, ("val/acc",)),
            (19, 0, ("val/acc", "train/loss", "test/loss", "lr")),
            (39, 1, ("val/acc", "train/loss", "test/loss", "lr")),
            (40, 2, ("test/loss", "test/acc")),
        ):
            writer.add_scalar("epoch", epoch, step)
            for name in names:
                writer.add_scalar(name, 1 / (step + 1), step)
    return tmp_path / "run"


def test_metrics_are_read_by_epoch(logged: Path) -> None:
    scalars = curve.read_scalars(logged)
    assert scalars["train/loss"][0].tolist() == [1, 2]
    assert scalars["train/loss"][1].tolist() == pytest.approx([1 / 20, 1 / 40])
    assert scalars["val/acc"][0].tolist() == [0.5, 1, 2]  # epochs done by then


def test_a_test_after_training_is_no_curve_but_a_watched_test_set_is(logged: Path) -> None:
    scalars = curve.read_scalars(logged)
    assert set(scalars) == {"train/loss", "val/acc", "test/loss"}
    assert scalars["test/loss"][0].tolist() == [1, 2]


def test_without_epochs_the_steps_of_the_log_are_drawn(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("val_loss", 1.0, 7)
    assert curve.read_scalars(tmp_path)["val_loss"][0].tolist() == [7]


def test_several_runs_make_one_figure(logged: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures" / "curve.png"
    assert curve.run([logged, logged / ".." / "run"], output) == output
    assert output.read_bytes().startswith(b"\x89PNG")
    assert curve.run([logged], output) == output  # once more over its own


def test_a_bad_run_is_left_out_and_the_rest_is_shown(
    logged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    shutil.copytree(logged, tmp_path / "diverged")
    update_manifest(tmp_path / "diverged", status="diverged", stopped="DivergedError: train/loss=nan")
    (tmp_path / "damaged" / "run.json").write_text("[1]")
    runs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert curve.readable(runs, curve.read_scalars).keys() == {"run"}
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["left out"] * 3
    assert [Path(line.split(": ")[1]).relative_to(tmp_path).parts[0] for line in lines] == [
        "damaged",
        "diverged",
        "empty",
    ]


def test_runs_of_the_same_name_are_told_apart(logged: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run"
    other.parent.mkdir()
    other.symlink_to(logged)
    assert set(curve.readable([logged, other], curve.read_scalars)) == {str(logged), str(other)}


def test_only_bad_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no run is left to be shown"):
        curve.run([tmp_path, tmp_path / "absent"], tmp_path / "curve.png")
    assert capsys.readouterr().err.count("has no logged metrics") == 2
    assert not (tmp_path / "curve.png").exists()


def test_somebody_elses_file_is_not_replaced(logged: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="was not written by this project"):
        curve.run([logged], tmp_path / "thesis.png")
    assert (tmp_path / "thesis.png").read_bytes() == b"mine"
    curve.run([logged], tmp_path / "thesis.png", force=True)
    assert (tmp_path / "thesis.png").read_bytes() != b"mine"
