"""The colours of all figures, and learning curves: tensors in, matplotlib figures out.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which the colour-blind can tell apart; no
meaning hangs on colour alone.
"""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

Curves = Mapping[str, tuple[Tensor, Tensor]]  # metric -> epochs (t,) and values (t,), or (s, t) of s seeds
PRODUCER = "softmax-regression"  # in every picture and page: it may be replaced by a newer one
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", BLACK)
STAGES = ("train", "val", "test")
STROKES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))  # of train, val, test, and others
PANELS = {"loss": "loss", "acc": "accuracy"}  # these two come first
NO_METRICS = ("epoch", "step", "lr")


class Line(NamedTuple):
    """One line of a panel: a metric of a run."""

    run: str
    stage: str
    quantity: str
    epochs: Tensor
    values: Tensor


def split_metric(name: str) -> tuple[str, str]:
    """Return the stage, or the name of the validation set, and the quantity that the name of a metric says.

    >>> split_metric("val_loss"), split_metric("hard/acc"), split_metric("val/loss/dataloader_idx_1")
    (('val', 'loss'), ('hard', 'acc'), ('val, loader 1', 'loss'))
    """
    name, _, loader = name.partition("/dataloader_idx_")
    stage_first = re.fullmatch(r"(train|val|valid|test)[/_](.+)", name)
    stage_last = re.fullmatch(r"(.+)[/_](train|val|valid|test)", name)
    if stage_first:
        stage, quantity = stage_first.groups()
    elif stage_last:
        quantity, stage = stage_last.groups()
    elif "/" in name:
        stage, quantity = name.split("/", 1)
    else:
        stage, quantity = "", name
    if loader:
        stage = f"{stage}, loader {loader}"
    return stage, quantity


def metrics_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics in rows of a run, in the order in which they come.

    Left out are the epoch, the step and the learning rate. Of a metric that Lightning keeps thrice, such as `loss`,
    `loss_step` and `loss_epoch`, the first is enough.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = []
    for name in names:
        base = re.sub(r"_(step|epoch)$", "", name)
        is_copy = base != name and base in names
        if name not in NO_METRICS and not name.startswith("lr-") and not is_copy:
            found.append(name)
    return found


def curves(rows: Sequence[Mapping[str, float]]) -> Curves:
    """Return each metric in rows of a run, at the epochs that were done when it was logged."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if not rows:
        return found
    epochs = epochs_done(rows)
    for name in metrics_of(rows):
        places = [i for i, row in enumerate(rows) if row.get(name) is not None]
        values = torch.tensor([float(rows[i][name]) for i in places])
        found[name] = epochs[places], values
    return found


def epochs_done(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """Return how many epochs were done at each row: a fraction for a validation within an epoch."""
    ends: dict[float, float] = {0: 0}  # epoch -> the step at its last row
    for row in rows:
        ends[row["epoch"]] = row["step"]
    *_, before, last = sorted(ends)
    if before > 0:  # the last epoch may not have come to its end; it is as long as those before
        ends[last] = max(ends[last], ends[before] + (last - before) * ends[before] / before)
    steps = [row["step"] for row in rows]
    return torch.from_numpy(np.interp(steps, list(ends.values()), list(ends)))


def learning_curves(runs: Mapping[str, Curves]) -> Figure:
    """Loss, accuracy and whatever else was scored by epoch, after the figure in the book.

    A panel for each quantity, a stroke for each of train, val, test and further validation sets; of several runs, a
    colour for each. Values of s seeds, (s, t), are drawn as their mean in a band from the lowest to the highest.
    """
    lines = _lines(runs)
    figure, panels = _panels([line.quantity for line in lines])
    stages = list(dict.fromkeys([*STAGES, *(line.stage for line in lines)]))
    strokes = dict(zip(stages, itertools.chain(STROKES, itertools.repeat("-.")), strict=False))
    several = len(runs) > 1
    owners = list(runs) if several else stages
    colours = dict(zip(owners, _colours(len(owners)), strict=True))
    for line in lines:
        owner = line.run if several else line.stage
        _draw(panels[line.quantity], line, colours[owner], strokes[line.stage])
    handles = []
    if several:
        handles = [Line2D([], [], color=colours[run], linewidth=5, label=run) for run in runs]
    for stage in stages:
        if any(line.stage == stage for line in lines):
            colour = "0.3" if several else colours[stage]
            label = stage or "without a stage"
            handles.append(Line2D([], [], color=colour, linestyle=strokes[stage], linewidth=2, label=label))
    _add_legend(figure, handles)
    return figure


def _lines(runs: Mapping[str, Curves]) -> list[Line]:
    lines = []
    for run, metrics in runs.items():
        for metric in metrics_of([metrics]):
            stage, quantity = split_metric(metric)
            lines.append(Line(run, stage, quantity, *metrics[metric]))
    return lines


def _panels(quantities: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure of two columns, with a panel for each quantity: loss, accuracy, then the others."""
    first = [name for name in PANELS if name in quantities]
    names = list(dict.fromkeys([*first, *quantities])) or ["loss"]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 4 * rows), layout="constrained")
    panels = {}
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, i, xlabel="epoch", ylabel=PANELS.get(name, name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[name] = axes
    return figure, panels


def _colours(n: int) -> Sequence[str]:
    """Return n colours: of the palette or, if they are more than it has, of a scale."""
    if n <= len(PALETTE):
        return PALETTE[:n]
    scale = mpl.colormaps["viridis"](np.linspace(0, 0.9, n))
    return list(map(to_hex, scale))


def _draw(axes: Axes, line: Line, colour: str, stroke: Any) -> None:
    """Draw a line and, of several seeds, the band around it; points are marked where they are few."""
    epochs = line.epochs.cpu()
    seeds = np.atleast_2d(line.values.detach().cpu())  # (s, t)
    marker = "o" if len(epochs) <= 20 else ""
    axes.plot(epochs, seeds.mean(0), linestyle=stroke, color=colour, linewidth=2, marker=marker, markersize=4)
    if len(seeds) > 1:
        axes.fill_between(epochs, seeds.min(0), seeds.max(0), color=colour, alpha=0.2, linewidth=0)


def _add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put the legend below the panels, in as many columns as its words leave room for."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    width, height = figure.get_size_inches()
    columns = max(1, int(7 * width) // (5 + longest))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(height + 0.22 * math.ceil(len(handles) / columns))


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Render as a PNG file, which says who wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": PRODUCER})
    return buffer.getvalue()
