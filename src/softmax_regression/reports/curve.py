"""The figure of the book, loss and accuracy by epoch, from the logs of one or several runs.

Source: Dive into Deep Learning, section 4.5.4.
Command: python study.py curve logs/softmax/RUN [RUN ...]
"""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from softmax_regression.errors import InputError, StorageError
from softmax_regression.figures.drawings import Curves, learning_curves, to_png
from softmax_regression.figures.page import check_output
from softmax_regression.files import write
from softmax_regression.runs.record import read_manifest

METRIC = re.compile(r"(train|val|test)[/_](.+)")
T = TypeVar("T")


def run(runs: Sequence[Path], output: Path = Path("logs/curve.png"), force: bool = False) -> Path:
    """Draw the logged metrics of runs over one another.

    Args:
        runs: Folders with TensorBoard events.
        output: The PNG file to write.
        force: Let it replace a file of somebody else's.

    Raises:
        InputError: None of the folders has metrics, or the file cannot be written.
    """
    check_output(output, force)
    write(to_png(learning_curves(readable(runs, read_scalars)), dpi=160), output)
    return output


def readable(runs: Sequence[Path], read: Callable[[Path], T]) -> dict[str, T]:
    """Read runs; one that has diverged or cannot be read is left out, which stderr says, but not all of them."""
    found: dict[str, T] = {}
    names = [each.name for each in runs]
    for each in runs:
        try:
            if read_manifest(each).get("status") == "diverged":
                raise InputError(f"{each}: diverged")
            found[each.name if names.count(each.name) == 1 else str(each)] = read(each)
        except (InputError, StorageError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not found:
        raise InputError("no run is left to be shown; give folders of runs, such as logs/softmax/RUN")
    return found


def read_scalars(run: Path) -> Curves:
    """Return the metrics that a run has logged in training, by epoch; the scalar `epoch` counts from 0."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it finds a graph twice, after a fit and a test
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0: keep all
    if run.is_dir():
        accumulator.Reload()
    logged = {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}
    epoch_of = {event.step: round(event.value) + 1 for event in reversed(logged.get("epoch", []))}
    metrics = {tag: events for tag, events in logged.items() if METRIC.fullmatch(tag)}
    trained = [epoch_of.get(e.step, 0) for tag, es in metrics.items() if tag.startswith("train") for e in es]
    # What a test after training logs has one epoch more.
    ends = {epoch: step for step, epoch in sorted(epoch_of.items()) if epoch <= max(trained, default=0)}
    found = {}
    for tag, events in metrics.items():
        if kept := [event for event in events if event.step <= max(ends.values(), default=event.step)]:
            steps = np.array([event.step for event in kept])
            epochs = np.interp(steps, [-1, *ends.values()], [0, *ends]) if ends else steps
            found[tag] = torch.from_numpy(epochs), torch.tensor([event.value for event in kept])
    if not found:
        raise InputError(f"{run}: has no logged metrics; give the folder of a run, such as logs/softmax/RUN")
    return found
