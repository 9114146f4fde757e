"""The curves of runs are read from their logs."""

from pathlib import Path

import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from softmax_regression.errors import InputError
from softmax_regression.studies import curve


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    with SummaryWriter(tmp_path / "run") as writer:
        for epoch in (1, 2):
            for name, value in (("train/loss", 0.8), ("test/acc", 0.75), ("lr", 0.1)):
                writer.add_scalar(name, value / epoch, epoch)
    return tmp_path / "run"


def test_metrics_are_read_by_epoch(logged: Path) -> None:
    scalars = curve.read_scalars(logged)
    assert set(scalars) == {"train/loss", "test/acc"}
    epochs, values = scalars["train/loss"]
    assert epochs.tolist() == [1, 2]
    assert values.tolist() == pytest.approx([0.8, 0.4])


def test_several_runs_make_one_figure(logged: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures" / "curve.png"
    assert curve.run([logged, logged / ".." / "run"], output) == output
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no logged metrics"):
        curve.read_scalars(tmp_path)
    with pytest.raises(InputError, match="has no logged metrics"):
        curve.read_scalars(tmp_path / "absent")
