"""The study `numerics`: where softmax and cross-entropy fail in floating point, and how the stable forms avoid it.

Source: the section of the book that model.py names, text and exercises.
Command: python study.py numerics
"""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.figures.drawings import BLUE, GREEN, ORANGE, VERMILION
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.files import write_csv
from softmax_regression.numerics import logsumexp, naive_softmax, softmax
from softmax_regression.studies.folders import STUDIES, folder_name
from softmax_regression.studies.numerics import measurements as measure
from softmax_regression.studies.numerics.measurements import DTYPES, FORMS, Error, Failure, Training

STYLES: dict[str, dict[str, Any]] = {
    "torch": {"color": GREEN, "linestyle": "-", "linewidth": 3.5},
    "stable": {"color": BLUE, "linestyle": "-", "linewidth": 2},
    "naive": {"color": VERMILION, "linestyle": "--", "linewidth": 1.5},
}


def run(
    out: Path | None = None,
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    seed: int = 0,
    quick: bool = False,
    force: bool = False,
) -> Path:
    """Measure where softmax and cross-entropy fail in floating point, and how the stable forms avoid it.

    Args:
        out: Folder of the page; the default is studies/numerics, with an ending such as `-quick` for another study.
        source: Images to train on: `files`, or `synthetic` for generated images that need no files.
        dirs: Folders to search for the data.
        seed: Of the random logits, the initial weights and the minibatches.
        quick: Measure at fewer points, and train for fewer steps on 2,000 generated images.
        force: Replace a page that this project did not write.

    Raises:
        InputError: The page cannot be written, or the data cannot be loaded.
    """
    out = out or STUDIES / folder_name("numerics", source=source, quick=quick)
    check_output(out / "index.html", force)
    rows, scales, steps, size = 25, 31, 400, 60_000
    if quick:
        source = "synthetic"
        rows, scales, steps, size = 5, 11, 240, 2_000
    data = FashionMNISTDataModule(val_size=0, source=source, dirs=dirs, synthetic_size=size).loaded
    used = f"{rows} rows of logits at {scales} scales; {steps} steps a training run, {data.origin}"
    print(used, file=sys.stderr)
    failures = measure.failures()
    errors = measure.errors(rows, scales, seed)
    training = measure.trainings(data.images.flatten(1) / 255, data.labels, steps, seed)
    command = ["python", "study.py", "numerics", f"--out={out}", f"--source={source}", f"--seed={seed}"]
    if quick:
        command.append("--quick")
    return _write(out, failures, errors, training, f"{shlex.join(command)}\n{used}\ntorch {torch.__version__}")


def _write(
    out: Path, failures: Sequence[Failure], errors: Sequence[Error], training: Sequence[Training], measured: str
) -> Path:
    """Write the measurements as CSV files and as a page; return the path of the page."""
    write_csv(out / "failures.csv", [failure._asdict() for failure in failures])
    write_csv(out / "errors.csv", [error._asdict() for error in errors])
    losses = {f"{run.form} {run.dtype} {run.init_std:g}": run.losses for run in training}
    by_step = zip(*losses.values(), strict=True)
    write_csv(out / "training.csv", [dict(zip(losses, step, strict=True)) for step in by_step])
    figures = {"training": _training_figure(training), **_curve_figures()}
    for quantity in FORMS:
        figures[f"{quantity}_error"] = _error_figure([row for row in errors if row.quantity == quantity])
    equal = []
    for logit in (10.0, 1000.0, -1000.0):
        x = torch.full((3,), logit)
        equal.append([f"({logit:g}, {logit:g}, {logit:g})", naive_softmax(x)[0].item(), softmax(x)[0].item()])
    return write_page(
        out,
        Path(__file__).with_name("numerics.html"),
        figures,
        equal=equal,
        step=measure.STEP,
        dtypes=list(DTYPES),
        failures=failures,
        errors=errors,
        share=max(row.ulps / row.bound for row in errors if row.form == "stable"),
        training=training,
        measured=measured,
    )


def _curve_figures() -> dict[str, Figure]:
    """Draw the vanishing loss, LogSumExp as a soft maximum, and softmax as a soft argmax."""
    gaps = torch.arange(0, 110, 0.25)
    pair = torch.stack((torch.zeros_like(gaps), -gaps), dim=1)
    losses = {form: -FORMS["log-softmax"][form](pair)[:, 0] for form in ("stable", "torch", "naive")}
    vanishing = _curves("Loss of the logits (0, −s), label 0, in float32", "gap s", "loss (nats)", gaps, losses)
    vanishing.axes[0].set_yscale("log", nonpositive="mask")
    o = torch.linspace(-4, 4, 401)
    pair = torch.stack((o, torch.zeros_like(o)), dim=1)
    soft = {f"T LogSumExp(o / T, 0), T = {t:g}": t * logsumexp(pair / t) for t in (1, 0.25)}
    soft |= {"max(o, 0)": pair.amax(1), "max(o, 0) + log 2": pair.amax(1) + math.log(2)}
    x = torch.tensor([0.5, 1.0, 2.0, 3.0, 3.5])
    shares = {f"T = {t:g}": softmax(x / t) for t in (0.1, 0.5, 1, 3)}
    return {
        "vanishing_loss": vanishing,
        "logsumexp": _curves("LogSumExp, the soft maximum", "logit o", "value", o, soft),
        "temperature": _curves("Softmax, the soft argmax", "logit o of the class", "softmax(o / T)", x, shares),
    }


def _curves(title: str, x_label: str, y_label: str, x: Tensor, ys: dict[str, Tensor]) -> Figure:
    """Draw lines over the same x, with different colours and line styles, and markers if there are few points."""
    fig = Figure(figsize=(5.6, 3.6), layout="constrained")
    ax = fig.subplots()
    ax.set_prop_cycle(color=[BLUE, GREEN, ORANGE, VERMILION], linestyle=["-", "-.", "--", ":"])
    for label, y in ys.items():
        ax.plot(x, y, marker="o" if len(x) < 10 else "", label=label)
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.legend()
    return fig


def _error_figure(rows: Sequence[Error]) -> Figure:
    """Draw the largest error against the scale, a panel for each dtype; a cross is the last finite point of a form."""
    fig = _panels(f"Worst error of {rows[0].quantity} (ulp)", "scale s of the logits")
    for ax, dtype in zip(fig.axes, DTYPES, strict=True):
        for form, style in STYLES.items():
            line = [row[3:] for row in rows if (row.dtype, row.form) == (dtype, form)]
            scale, ulps, bound = torch.tensor(line, dtype=torch.float64).T
            x, y = scale[ulps.isfinite()], ulps[ulps.isfinite()].clamp(min=0.1)
            ax.loglog(x, y, label=form, **style)
            if len(x) < len(line):
                ax.plot(x[-1], y[-1], "x", color=style["color"], markersize=8, markeredgewidth=2.5)
        ax.loglog(scale, bound, "k:", label="bound")
        ax.set(title=dtype, xticks=[0.1, 10, 1000], ylim=(0.07, None))
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _training_figure(runs: Sequence[Training]) -> Figure:
    """Draw the loss by step, a panel for each configuration; a vertical line is the first loss that is not finite."""
    fig = _panels("Training loss (nats)", "step")
    for i, run in enumerate(runs):
        ax, style = fig.axes[i // 2], STYLES[run.form]
        ax.plot(range(1, len(run.losses) + 1), run.losses, label=run.form, **style)
        if run.broken:
            ax.axvline(run.broken, color=style["color"], linestyle=":", linewidth=2)
        ax.set(title=f"{run.dtype}, std {run.init_std:g}", ylim=(0, None))
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _panels(y_label: str, x_label: str) -> Figure:
    """Make two by two panels, 5.6 inches wide: text of 10 points is still readable at half the width of a page."""
    fig = Figure(figsize=(5.6, 5.4), layout="constrained")
    fig.supxlabel(x_label, fontsize="medium")
    fig.supylabel(y_label, fontsize="medium")
    fig.subplots(2, 2, sharex=True)
    return fig
