"""What long training on few images came to, on one page, with the conclusions that the numbers support."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from softmax_regression.figures.drawings import PALETTE, learning_curves
from softmax_regression.figures.page import write_page
from softmax_regression.studies.intervals import Interval, difference
from softmax_regression.studies.overfit.measurements import BATCH_SIZE, LR, MONITOR, PATIENCE, Remedy, Size
from softmax_regression.studies.sweep.space import Plan

TESTED = {"test/loss": "test loss (nats)", "test/acc": "test accuracy"}


def write(folder: Path, remedies: Mapping[Size, Sequence[Remedy]], plan: Plan, manifest: Mapping[str, object]) -> Path:
    """Write the page of the remedies of each size and its figures, and return the path of the page."""
    figures = {}
    sizes = []
    for size, of_size in remedies.items():
        name = f"images-{size.images}"
        by_epoch = {metric: (size.scored, values) for metric, values in of_size[0].curves.items()}
        figures[name] = learning_curves({"none": by_epoch})
        figures[f"{name}-remedies"] = _remedies_figure(size, of_size)
        sizes.append({"figure": name, **_values(size, of_size)})
    return write_page(
        folder,
        Path(__file__).with_name("overfit.html"),
        figures,
        sizes=sizes,
        plan=plan,
        lr=LR,
        batch_size=BATCH_SIZE,
        patience=PATIENCE,
        manifest=manifest,
        record=json.dumps(manifest, indent=2),
    )


def _values(size: Size, remedies: Sequence[Remedy]) -> dict[str, object]:
    """Return what the template says of one size."""
    none = remedies[0]
    lowest = _lowest(none)
    since = {}
    for metric in _tested(none):
        values = none.curves[metric]
        since[metric] = difference(values[:, -1].tolist(), values[:, lowest].tolist())
    changes = []
    losses = []
    for remedy in remedies:
        loss = remedy.taken("test/loss")
        change = difference(loss, none.taken("test/loss"))
        gap = difference(loss, remedy.taken("train/loss"))
        losses.append([*_row(remedy, none, "test/loss"), gap, str(int(size.scored[_lowest(remedy)]))])
        if remedy is not none:
            changes.append((remedy.name, change))
    accuracies = []
    if "test/acc" in since:
        accuracies = [_row(remedy, none, "test/acc") for remedy in remedies]
    return {
        "images": f"{size.images:,}",
        "epochs": size.epochs,
        "lowest": int(size.scored[lowest]),
        "since": since,
        "changes": sorted(changes, key=lambda change: change[1].mean),
        "losses": losses,
        "accuracies": accuracies,
    }


def _row(remedy: Remedy, none: Remedy, metric: str) -> list[object]:
    """Return a remedy, a metric of it, and the difference from no remedy."""
    values = remedy.taken(metric)
    change = ""
    if remedy is not none:
        change = f"{difference(values, none.taken(metric)):+}"
    return [_label(remedy), Interval.of(values), change]


def _tested(none: Remedy) -> dict[str, str]:
    """Return the metrics of the test images that were logged, with what is written at their axes."""
    if math.isnan(sum(none.taken("test/acc"))):
        return {"test/loss": TESTED["test/loss"]}
    return TESTED


def _lowest(remedy: Remedy) -> int:
    """Return the scoring with the lowest validation loss, the mean over the seeds."""
    return int(remedy.curves[MONITOR].mean(0).argmin())


def _label(remedy: Remedy) -> str:
    """Name a remedy with the strength that was chosen, if it has one."""
    if remedy.name == "combination":
        return f"combination: decay {remedy.decay:g}, dropout {remedy.dropout:g}"
    strength = remedy.decay or remedy.dropout
    if strength:
        return f"{remedy.name} {strength:g}"
    return remedy.name


def _remedies_figure(size: Size, remedies: Sequence[Remedy]) -> Figure:
    """Draw test loss and accuracy, a column of panels for each remedy, against those of no remedy."""
    none = remedies[0]
    drawn = [remedy for remedy in remedies[1:] if remedy.curves is not none.curves]
    columns = max(1, len(drawn))
    tested = _tested(none)
    figure = Figure(figsize=(3 * columns + 1, 3 * len(tested)), layout="constrained")
    panels = figure.subplots(len(tested), columns, squeeze=False, sharex=True, sharey="row")
    for row, (metric, words) in zip(panels, tested.items(), strict=True):
        for axes in row:
            axes.set_title(words, fontsize="medium")
            axes.tick_params(labelleft=True)  # on phones the panels are below one another
            _draw(axes, size.scored, none.curves[metric], "0.4", "none")
            axes.grid(alpha=0.3)
        for i, remedy in enumerate(drawn):
            _draw(row[i], size.scored, remedy.curves[metric], PALETTE[i], _label(remedy))
    for axes in panels[0]:
        axes.legend(fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    return figure


def _draw(axes: Axes, epochs: Tensor, values: Tensor, colour: str, label: str) -> None:
    """Draw the mean over the seeds of values (seeds, scorings), and a few error bars to the lowest and highest."""
    mean = values.mean(0)
    ends = (mean - values.amin(0), values.amax(0) - mean)
    apart = max(1, len(epochs) // 8)
    axes.errorbar(epochs, mean, ends, color=colour, label=label, errorevery=apart, capsize=2, lw=1.5)
