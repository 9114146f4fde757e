"""Figures of the numerics study: measured rows in, matplotlib figures out."""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from softmax_regression.figures.drawings import BLUE, GREEN, ORANGE, VERMILION
from softmax_regression.numerics import log_softmax, logsumexp, smooth_max, softmax
from softmax_regression.studies.numerics_measurements import Error, Training

STYLES = {
    "torch": (GREEN, "-", 3.5),
    "stable": (BLUE, "-", 2),
    "naive": (VERMILION, "--", 1.5),
}  # in this order
TEMPERATURES = {
    0.1: ("black", "o"),
    0.5: (BLUE, "s"),
    1.0: (GREEN, "^"),
    3.0: (ORANGE, "D"),
    10.0: (VERMILION, "v"),
}


def error_figure(rows: Sequence[Error]) -> Figure:
    """Worst error against scale, a panel a dtype; a cross where a form is about to stop being finite."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    fig, panels = _panels(2, 2, height=5.4)
    for ax, dtype in zip(panels, dtypes, strict=True):
        for form, (color, dashes, width) in STYLES.items():
            line = [row for row in rows if (row.dtype, row.form) == (dtype, form)]
            points = [(row.scale, max(row.ulps, 0.1)) for row in line if math.isfinite(row.ulps)]
            ax.loglog(*zip(*points, strict=True), color=color, linestyle=dashes, linewidth=width, label=form)
            if len(points) < len(line):
                _cross(ax, *points[-1], color)
        ax.set(title=dtype, xticks=[0.1, 10, 1000], ylim=(0.07, None))
    fig.supxlabel("scale s of the logits", fontsize="medium")
    fig.supylabel("worst error (ulp)", fontsize="medium")
    _title(fig, f"Error of {rows[0].quantity}")
    return fig


def vanishing_figure() -> Figure:
    """The loss of logits (0, -s) and label 0 against s; a cross at the last one above 0."""
    fig, (ax,) = _panels(1, 1, height=3.6)
    s = torch.arange(0, 110, 0.25)
    x = torch.stack((torch.zeros_like(s), -s), dim=1)
    for label, loss, color, dashes in (
        ("stable, float32", -log_softmax(x), BLUE, "-"),
        ("torch, float32", -x.log_softmax(1), GREEN, "-."),
        ("torch, float16", -x.half().log_softmax(1), ORANGE, "--"),
        ("torch, bfloat16", -x.bfloat16().log_softmax(1), VERMILION, ":"),
    ):
        y = loss[:, 0].float()
        ax.semilogy(s[y > 0], y[y > 0], color=color, linestyle=dashes, label=label)
        _cross(ax, s[y > 0][-1].item(), y[y > 0][-1].item(), color)
    ax.set(title="Loss of the logits (0, −s), label 0", xlabel="gap s", ylabel="loss (nats)")
    ax.legend()
    return fig


def training_figure(rows: Sequence[Training]) -> Figure:
    """Loss against step, a panel a configuration; a vertical line where a form's loss is no longer finite."""
    configurations = list(dict.fromkeys((row.dtype, row.init_std) for row in rows))
    fig, panels = _panels(2, 2, height=5.6)
    for ax, configuration in zip(panels, configurations, strict=True):
        for row in rows:
            if (row.dtype, row.init_std) == configuration:
                color, dashes, width = STYLES[row.form]
                finite = row.losses[: row.broken and row.broken - 1]
                steps = range(1, len(finite) + 1)
                ax.plot(steps, finite, color=color, linestyle=dashes, linewidth=width, label=row.form)
                if row.broken:
                    ax.axvline(row.broken, color=color, linestyle=":", linewidth=2)
        ax.set(title=f"{configuration[0]}, std {configuration[1]:g}", ylim=(0, None))
    fig.supxlabel("step", fontsize="medium")
    fig.supylabel("training loss (nats)", fontsize="medium")
    _title(fig, "Training loss, by type and by std of the initial weights")
    return fig


def logsumexp_figure() -> Figure:
    """LogSumExp of (o, 0) between its bounds, and the smooth maximum at a lower temperature."""
    fig, (ax,) = _panels(1, 1, height=3.6)
    o = torch.linspace(-4, 4, 401)
    x = torch.stack((o, torch.zeros_like(o)), dim=1)
    largest = x.amax(1)
    ax.fill_between(
        o, largest, largest + math.log(2), color=BLUE, alpha=0.15, label="from max to max + log 2"
    )
    ax.plot(o, logsumexp(x), color=BLUE, label="LSE(o, 0)")
    ax.plot(o, smooth_max(x, 0.25), color=ORANGE, linestyle="--", label="T LSE(o / T, 0) at T = 0.25")
    ax.plot(o, largest, color="black", linestyle=":", label="max(o, 0)")
    ax.set(title="LogSumExp, the soft maximum", xlabel="logit o", ylabel="value")
    ax.legend()
    return fig


def temperature_figure(logits: Sequence[float]) -> Figure:
    """Softmax(o / T) of the same logits at several temperatures T."""
    fig, (ax,) = _panels(1, 1, height=3.6)
    for temperature, (color, marker) in TEMPERATURES.items():
        p = softmax(torch.tensor(logits) / temperature)
        ax.plot(range(len(logits)), p, color=color, marker=marker, label=f"T = {temperature:g}")
    ax.set_xticks(range(len(logits)), [f"{o:g}" for o in logits])
    ax.set(
        title="Softmax, the soft argmax",
        xlabel="logit o of the class",
        ylabel="softmax(o / T)",
        ylim=(-0.03, 1.03),
    )
    ax.legend()
    return fig


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure 5.6 inches wide, so that 10-point text is readable on a page and at half its width."""
    fig = Figure(figsize=(5.6, height), layout="constrained")
    axes = fig.subplots(rows, columns, sharex=True, squeeze=False)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return fig, list(axes.flat)


def _title(fig: Figure, title: str) -> None:
    """A title and, below it, one legend for all panels."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(
        handles,
        labels,
        title=title,
        title_fontsize="large",
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
    )


def _cross(ax: Axes, x: float, y: float, color: str) -> None:
    ax.plot(x, y, "x", color=color, markersize=8, markeredgewidth=2.5)
