"""The figure of the book, loss and accuracy by epoch, of one or several runs.

Source: Dive into Deep Learning, classic edition, section 3.6, "Implementation of Softmax Regression from Scratch".
Command: python study.py curve logs/softmax/RUN [RUN ...]
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from softmax_regression.figures.drawings import curves, learning_curves, to_png
from softmax_regression.figures.page import check_output
from softmax_regression.files import write
from softmax_regression.reports.reading import Run, labels_of, read_runs


def run(runs: Sequence[Path], output: Path = Path("logs/curve.png"), force: bool = False) -> Path:
    """Draw the metrics of runs in one figure.

    Args:
        runs: Folders of runs.
        output: The PNG file to write.
        force: Replace a file that this project did not write.

    Raises:
        InputError: No run has metrics, or the file cannot be written.
    """
    check_output(output, force)
    write(to_png(curves_of_runs(read_runs(runs)), dpi=160), output)
    return output


def curves_of_runs(runs: Sequence[Run]) -> Figure:
    """Draw the rows of runs in one figure; the label of a run is what distinguishes it from the others."""
    labels = labels_of(runs)
    return learning_curves({label: curves(run.rows) for label, run in zip(labels, runs, strict=True)})
