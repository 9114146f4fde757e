"""What the tests of the command line share: a small generated data set, and how to run a command on it."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule

from softmax_regression.commands.train import main
from softmax_regression.runs.rows import Row, RowCallback

SMALL = (
    "--data.source=synthetic",
    "--data.synthetic_size=600",
    "--data.val_size=101",
    "--data.batch_size=32",
    "--figures.every_n_epochs=0",  # they would take longer than the rest
)


def fit(*options: str) -> int:
    """Run `train.py fit` for three epochs of small generated data."""
    return main(["fit", *SMALL, "--trainer.max_epochs=3", *options])


def only_run(logs: Path = Path("logs")) -> Path:
    """The folder of the only run."""
    (run,) = logs.glob("*/*")
    return run


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command has written, all of it to stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def rows_of(module: LightningModule) -> list[Row]:
    """The rows that a module has logged in its last training by `trainer`."""
    callbacks: list[Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
    (rows,) = [callback.rows for callback in callbacks if isinstance(callback, RowCallback)]
    return rows


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar series of a run, as TensorBoard would show it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    series: dict[str, list[tuple[int, float]]] = {}
    for tag in events.Tags()["scalars"]:
        series[tag] = []
        for event in events.Scalars(tag):
            series[tag].append((event.step, event.value))
    return series


def age(run: Path) -> None:
    """Date a run's events long ago: TensorBoard reads the files of one second in any order."""
    for file in run.glob("events.out.tfevents.1[0-9]*"):
        rest = file.name.removeprefix("events.out.tfevents.").partition(".")[2]
        file.rename(run / f"events.out.tfevents.1000000000.{rest}")


def pictures(run: Path) -> dict[str, dict[int, bytes]]:
    """Every picture of a run, tag -> step -> PNG, as TensorBoard shows it.

    What comes after a later step makes TensorBoard's default loader forget that one.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    shown: dict[str, dict[int, bytes]] = {}
    for tag in events.Tags()["images"]:
        for event in events.Images(tag):
            kept = {step: png for step, png in shown.get(tag, {}).items() if step < event.step}
            shown[tag] = kept | {event.step: event.encoded_image_string}
    return shown
