"""The colours of all figures, and learning curves: functions from tensors to matplotlib figures.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart;
nothing is shown by colour alone.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmax_regression.runs.rows import RESERVED, split_metric

Curves = Mapping[str, tuple[Tensor, Tensor]]  # metric -> epochs (t,) and values (t,), or (s, t) of s seeds
PRODUCER = "softmax-regression"  # written into every picture and page; only a file that has it may be replaced
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", BLACK)
STAGES = ("train", "val", "test")
STROKES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))  # of train, val, test, and others
PANELS = {"loss": "loss", "acc": "accuracy"}  # these two come first
MAX_PANELS = 24  # with ten times as many, as of a metric for each class, a figure takes a minute


def metrics_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics in rows of a run, in their order, without epoch, step and learning rate.

    Lightning has some metrics under three names, such as `loss`, `loss_step` and `loss_epoch`; only the first is kept.
    """
    names: dict[str, Any] = {}
    for row in rows:
        names.update(row)
    found = []
    for name in names:
        base = re.sub(r"_(step|epoch)$", "", name)
        is_copy = base != name and base in names
        if name not in RESERVED and not name.startswith("lr-") and not is_copy:
            found.append(name)
    return found


def curves(rows: Sequence[Mapping[str, float]]) -> Curves:
    """Return the curve of each metric in the rows of a run."""
    found = {}
    for name in metrics_of(rows):
        values = torch.tensor([row.get(name, math.nan) for row in rows])
        was_logged = torch.tensor([name in row for row in rows])
        found[name] = epochs_done(rows)[was_logged], values[was_logged]
    return found


def epochs_done(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """Return the number of epochs done at each row, a fraction for a validation within an epoch."""
    ends: dict[float, float] = {0: 0}  # epoch -> the step at its last row
    for row in rows:
        ends[row["epoch"]] = row["step"]
    *_, before, last = sorted(ends)
    if before > 0:  # the last epoch may be unfinished; assume that it is as long as the others
        ends[last] = max(ends[last], ends[before] + (last - before) * ends[before] / before)
    steps = [row["step"] for row in rows]
    return torch.from_numpy(np.interp(steps, list(ends.values()), list(ends)))


def learning_curves(runs: Mapping[str, Curves]) -> Figure:
    """Draw loss, accuracy and all other metrics by epoch, after the figure in the book.

    There is a panel for each quantity, and a line style for each of train, val, test and further validation sets; of
    several runs, each has a colour. Values of s seeds, (s, t), are drawn as their mean and a band of their range.
    """
    parts = {metric: split_metric(metric) for metric in metrics_of(runs.values())}
    figure, panels = _panels([quantity for _, quantity in parts.values()])
    used = dict(parts.values())  # its keys are the stages that occur
    stages = list(dict.fromkeys([*STAGES, *used]))
    strokes = dict(zip(stages, itertools.chain(STROKES, itertools.repeat("-.")), strict=False))
    several = len(runs) > 1
    owners = list(runs) if several else stages
    colours = dict(zip(owners, _colours(len(owners)), strict=True))
    for run, metrics in runs.items():
        for metric, (stage, quantity) in parts.items():
            if metric in metrics and quantity in panels:
                owner = run if several else stage
                _draw(panels[quantity], *metrics[metric], colours[owner], strokes[stage])
    for axes in panels.values():
        if not np.isfinite(axes.dataLim.get_points()).all():
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
    handles = []
    if several:
        for run in runs:
            handles.append(Line2D([], [], color=colours[run], linewidth=5, label=run))
    for stage in stages:
        if stage in used:
            colour = "0.3" if several else colours[stage]
            label = stage or "without a stage"
            handles.append(Line2D([], [], color=colour, linestyle=strokes[stage], linewidth=2, label=label))
    _add_legend(figure, handles)
    return figure


def _panels(quantities: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure of two columns, with a panel for each of the first quantities: loss, accuracy, then others."""
    first = [name for name in PANELS if name in quantities]
    found = list(dict.fromkeys([*first, *quantities])) or ["loss"]
    names = found[:MAX_PANELS]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(8.4, 4 * rows), layout="constrained")
    if len(found) > len(names):
        figure.suptitle(f"the first {len(names)} of {len(found)} quantities")
    panels = {}
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, i, xlabel="epoch", ylabel=PANELS.get(name, name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[name] = axes
    return figure, panels


def _colours(n: int) -> Sequence[str]:
    """Return n colours, of the palette if it has as many, else of a colour map."""
    if n <= len(PALETTE):
        return PALETTE[:n]
    scale = mpl.colormaps["viridis"](np.linspace(0, 0.9, n))
    return list(map(to_hex, scale))


def _draw(axes: Axes, epochs: Tensor, values: Tensor, colour: str, stroke: Any) -> None:
    """Draw a line with a marker for each of few points and, for several seeds, a band around it."""
    x = epochs.cpu()
    seeds = np.atleast_2d(values.detach().cpu())  # (s, t)
    marker = "o" if len(x) <= 20 else ""
    axes.plot(x, seeds.mean(0), linestyle=stroke, color=colour, linewidth=2, marker=marker, markersize=4)
    if len(seeds) > 1:
        axes.fill_between(x, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, linewidth=0)


def _add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put the legend below the panels, in as many columns as fit."""
    longest = 0
    for handle in handles:
        longest = max(longest, len(str(handle.get_label())))
    width, height = figure.get_size_inches()
    columns = max(1, int(7 * width) // (5 + longest))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(height + 0.22 * math.ceil(len(handles) / columns))


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return the bytes of a PNG file, with `PRODUCER` in its metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": PRODUCER})
    return buffer.getvalue()
