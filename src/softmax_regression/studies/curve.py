"""The figure of the book, loss and accuracy by epoch, from the logs of one or several runs.

Source: Dive into Deep Learning, section 4.5.4.
Command: python study.py curve logs/softmax/RUN [RUN ...]
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import learning_curves
from softmax_regression.runs import checkpoint
from softmax_regression.runs.folder import METRICS


def run(runs: Sequence[Path], output: Path = Path("logs/curve.png")) -> Path:
    """Draw the logged metrics of runs over one another.

    Args:
        runs: Folders with TensorBoard events.
        output: The PNG file to write.

    Returns:
        The path of the PNG file.

    Raises:
        InputError: A folder has no metrics.
    """
    figure = learning_curves({str(path): read_scalars(path) for path in runs})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    checkpoint.write(buffer.getvalue(), output)
    return output


def read_scalars(run: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the metrics that a run has logged, as epochs (t,) and values (t,).

    Raises:
        InputError: There are none.
    """
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0: keep all
    if run.is_dir():
        events.Reload()
    logged = {tag: events.Scalars(tag) for tag in METRICS if tag in events.Tags()["scalars"]}
    if not logged:
        raise InputError(f"{run}: has no logged metrics; give the folder of a run, such as logs/softmax/RUN")
    return {
        tag: (torch.tensor([s.step for s in scalars]), torch.tensor([s.value for s in scalars]))
        for tag, scalars in logged.items()
    }
