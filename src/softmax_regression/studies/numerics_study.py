"""Where softmax and cross-entropy break in floating point, and what the stable forms mend, on one page.

Source: Dive into Deep Learning, "Concise Implementation of Softmax Regression", text and exercises.
Command: python study.py numerics
"""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.figures.drawings import BLUE, GREEN, ORANGE, VERMILION
from softmax_regression.figures.page import Page, check_output, fraction, symbols, write_csv
from softmax_regression.numerics import logsumexp, naive_softmax, softmax
from softmax_regression.studies import numerics_measurements as measure
from softmax_regression.studies.numerics_measurements import DTYPES, FORMS, Error, Failure, Training

STYLES = {"torch": (GREEN, "-", 3.5), "stable": (BLUE, "-", 2), "naive": (VERMILION, "--", 1.5)}


def run(
    out: Path = Path("logs/numerics"),
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    seed: int = 0,
    quick: bool = False,
    force: bool = False,
) -> Path:
    """Measure where softmax and cross-entropy break in floating point, and what the stable forms mend.

    Args:
        out: Folder of the page.
        source: What to train on: `files`, or `synthetic` for generated stand-ins that need none.
        dirs: Folders to look for the data in.
        seed: Decides random logits, initial weights and minibatches.
        quick: Measure at fewer points, and train for fewer steps on 2,000 generated images.
        force: Let it replace a page of somebody else's.

    Raises:
        InputError: The page cannot be written, or the data cannot be had.
    """
    check_output(out / "index.html", force)
    source, size = ("synthetic", 2_000) if quick else (source, 60_000)
    rows, scales, steps = (5, 11, 160) if quick else (25, 31, 400)
    data = FashionMNISTDataModule(val_size=0, source=source, dirs=dirs, synthetic_size=size).loaded
    used = f"{rows} rows of logits at {scales} scales; {steps} steps a training run, {data.origin}"
    print(used, file=sys.stderr)
    failing = measure.failures()
    erring = measure.errors(rows, scales, seed)
    training = measure.trainings(data.images.flatten(1) / 255, data.labels, steps, seed)
    page = Page("Softmax in floating point")
    _breakdown(page, failing)
    _accuracy(page, erring)
    _vanishing(page)
    _training(page, training)
    _soft_maximum(page)
    page.heading("How this was measured")
    command = ["python", "study.py", "numerics", f"--out={out}", f"--source={source}", f"--seed={seed}"]
    page.preformatted(f"{shlex.join(command + ['--quick'] * quick)}\n{used}\ntorch {torch.__version__}")
    columns = {f"{run.form} {run.dtype} {run.init_std:g}": run.losses for run in training}
    by_step = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_csv(out / "training.csv", by_step)
    write_csv(out / "failures.csv", [row._asdict() for row in failing])
    write_csv(out / "errors.csv", [row._asdict() for row in erring])
    return page.write(out)


def _breakdown(page: Page, rows: Sequence[Failure]) -> None:
    page.text(
        "Softmax turns n numbers o, the logits, into probabilities p, and the loss, cross-entropy, is minus "
        "the logarithm of the label's probability, in nats, the unit of natural logarithms: to guess among "
        "ten classes costs log 10 = 2.30 nats."
    )
    page.equation(symbols("p_i ="), fraction("exp ( o_i )", "Σ_j exp ( o_j )"))
    page.equation(symbols("loss = − log ~ p_y"))
    page.text("On paper nothing can go wrong. In float32, three equal logits, due a third each, get")
    equal = {f"({o:g}, {o:g}, {o:g})": torch.full((3,), o) for o in (10.0, 1000.0, -1000.0)}
    table = [[name, naive_softmax(x)[0].item(), softmax(x)[0].item()] for name, x in equal.items()]
    page.table(table, ["logits", "softmax as defined", "stable softmax"])
    page.heading("Where the definitions break")
    page.text(
        "exp(o) is inf above max, the largest number of its type, and 0 below half of least, the smallest "
        "positive one; a sum of ten reaches max earlier, and 1 + exp(−s) is 1 once exp(−s) is below half of "
        "eps, the spacing of numbers at 1. The table gives the first scale s to fail, in steps of "
        f"{measure.STEP:g}, and in brackets the scale predicted from the type alone. LSE is LogSumExp, the "
        "logarithm of the sum of the exponentials; tiny is the smallest number of full precision."
    )
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cases.setdefault((row.what, row.limit), []).append(f"{row.measured:g} ({row.predicted:.2f})")
    page.table([[*case, *cells] for case, cells in cases.items()], ["at scale s", "predicted", *DTYPES])
    agreeing = sum(0 <= row.measured - row.predicted <= measure.STEP for row in rows)
    page.text(f"{agreeing} of {len(rows)} measured scales are the first step above the prediction.")
    page.heading("The mend")
    page.text("With m the largest logit, reduce the fraction by exp(m), and let log and exp cancel:")
    page.equation(symbols("p_i ="), fraction("exp ( o_i − m )", "Σ_j exp ( o_j − m )"))
    page.equation(symbols("log ~ p_i = o_i − m − log Σ_j exp ( o_j − m )"))
    page.text("No exponent exceeds 0 and one is 0: nothing overflows, and nothing is divided by 0.")


def _accuracy(page: Page, rows: Sequence[Error]) -> None:
    page.heading("How exact the forms are")
    page.text(
        "Rows of ten random logits between −s and s, compared with 50-digit arithmetic. An error of 1 ulp, "
        "unit in the last place, is one step between neighbouring numbers of the type. A line ends in a "
        "cross where the form stops giving finite numbers; dots bound the error of the stable form."
    )
    finite = [row for row in rows if math.isfinite(row.ulps)]
    table = []
    for quantity, forms in FORMS.items():
        figure = _error_figure([row for row in rows if row.quantity == quantity])
        page.figure(figure, f"{quantity}_error", f"Worst error of {quantity} against the scale of the logits")
        for name in DTYPES:
            mine = [row for row in finite if (row.quantity, row.dtype) == (quantity, name)]
            table.append([quantity, name, *(max(r.ulps for r in mine if r.form == form) for form in forms)])
    page.table(table, ["worst error, ulp", "type", "naive, while finite", "torch", "stable"])
    share = max(row.ulps / row.bound for row in finite if row.form == "stable")
    page.text(
        "Subtracting m costs digits where logits lie far apart: a gap m − o_j is rounded, and exp makes a "
        "relative error of that. So the bounds are n + 4 + log n + g ulp for softmax and n + 3 + g for "
        "log-softmax, g the largest gap whose exponential is not below tiny. The stable forms come to at "
        f"most {share:.2f} of them. In float16 and bfloat16 torch computes in float32 and rounds once, these "
        "do not. Why torch's log-softmax is off by so much more comes next."
    )


def _vanishing(page: Page) -> None:
    page.heading("A loss that vanishes")
    page.text(
        "Take two logits, 0 for the label and −s for the other class. When the sum 1 + exp(−s) rounds to 1, "
        "the loss is 0, which a comparison of confident models, or a sum of log-probabilities, feels. To "
        "leave the largest term out of the sum and take log1p, log(1 + x) without forming 1 + x, keeps it:"
    )
    page.equation(symbols("loss = m − o_y + log1p Σ_j≠k exp ( o_j − m ) , ~ ~ ~ m = o_k"))
    s = torch.arange(0, 110, 0.25)
    x = torch.stack((torch.zeros_like(s), -s), dim=1)
    losses = {form: -f(x)[:, 0] for form, f in reversed(FORMS["log-softmax"].items())}
    figure = _curves("Loss of the logits (0, −s), label 0, in float32", "gap s", "loss (nats)", s, losses)
    figure.axes[0].set_yscale("log", nonpositive="mask")
    page.figure(figure, "vanishing_loss", "The loss of (0, −s), label 0; a line ends where it becomes 0")


def _training(page: Page, runs: Sequence[Training]) -> None:
    page.heading("What this does to training")
    page.text("The book's recipe with weights, logits and loss in one type, from weights of standard deviation std.")
    page.figure(_training_figure(runs), "training", "Training loss; dotted where it is no longer finite")
    table = [[r.dtype, f"{r.init_std:g}", r.form, r.broken or "none", r.losses[-1]] for r in runs]
    page.table(table, ["type", "std", "loss", "first step of inf or nan", "last loss"])
    broken = [run.form for run in runs if run.broken]
    page.text(
        f"Of {len(runs) // 2} runs with each, {broken.count('naive')} broke with the naive loss and "
        f"{broken.count('stable')} with the stable one. A loss of inf or nan makes the weights nan, for "
        "good. float16 breaks as soon as logits grow to a dozen; bfloat16 has float32's range."
    )


def _soft_maximum(page: Page) -> None:
    page.heading("LogSumExp is the soft maximum, softmax the soft argmax")
    page.text("LogSumExp exceeds the largest logit m by at most log n, and a temperature T narrows the gap:")
    page.equation(symbols("m < T ~ LSE ( o / T ) ≤ m + T ~ log ~ n"))
    o = torch.linspace(-4, 4, 401)
    x = torch.stack((o, torch.zeros_like(o)), dim=1)
    curves = {f"T LSE(o / T, 0), T = {t:g}": t * logsumexp(x / t) for t in (1, 0.25)}
    curves |= {"max(o, 0)": x.amax(1), "max(o, 0) + log 2": x.amax(1) + math.log(2)}
    figure = _curves("LogSumExp, the soft maximum", "logit o", "value", o, curves)
    page.figure(figure, "logsumexp", "LogSumExp of two logits, o and 0, and its bounds")
    page.text(
        "Its gradient is softmax(o / T), which as T tends to 0 tends to 1 for the largest logit and 0 for "
        "the others, the argmax: softmax is a soft argmax, not a soft maximum."
    )
    logits = torch.tensor([0.5, 1.0, 2.0, 3.0, 3.5])
    curves = {f"T = {t:g}": softmax(logits / t) for t in (0.1, 0.5, 1, 3)}
    figure = _curves("Softmax, the soft argmax", "logit o of the class", "softmax(o / T)", logits, curves)
    page.figure(figure, "temperature", "softmax(o / T) of five logits at four temperatures T")


def _curves(title: str, x_label: str, y_label: str, x: Tensor, ys: dict[str, Tensor]) -> Figure:
    """Lines over the same x, told apart by colour and stroke; marked where they are few points."""
    fig = Figure(figsize=(5.6, 3.6), layout="constrained")
    ax = fig.subplots()
    ax.set_prop_cycle(color=[BLUE, GREEN, ORANGE, VERMILION], linestyle=["-", "-.", "--", ":"])
    for label, y in ys.items():
        ax.plot(x, y, marker="o" if len(x) < 10 else "", label=label)
    ax.set(title=title, xlabel=x_label, ylabel=y_label)
    ax.legend()
    return fig


def _error_figure(rows: Sequence[Error]) -> Figure:
    """Worst error against scale, a panel a dtype; a cross where a form is about to stop being finite."""
    fig = _panels(f"Worst error of {rows[0].quantity} (ulp)", "scale s of the logits")
    for ax, dtype in zip(fig.axes, DTYPES, strict=True):
        for form, (color, dashes, width) in STYLES.items():
            line = [row for row in rows if (row.dtype, row.form) == (dtype, form)]
            points = [(row.scale, max(row.ulps, 0.1)) for row in line if math.isfinite(row.ulps)]
            ax.loglog(*zip(*points, strict=True), color=color, linestyle=dashes, linewidth=width, label=form)
            if len(points) < len(line):
                ax.plot(*points[-1], "x", color=color, markersize=8, markeredgewidth=2.5)
        ax.loglog([row.scale for row in line], [row.bound for row in line], "k:", label="bound")
        ax.set(title=dtype, xticks=[0.1, 10, 1000], ylim=(0.07, None))
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _training_figure(runs: Sequence[Training]) -> Figure:
    """Loss against step, a panel a configuration; a vertical line where a form's loss is no longer finite."""
    fig = _panels("Training loss (nats)", "step")
    for i, run in enumerate(runs):
        ax, (color, dashes, width) = fig.axes[i // 2], STYLES[run.form]
        steps = range(1, len(run.losses) + 1)
        ax.plot(steps, run.losses, color=color, linestyle=dashes, linewidth=width, label=run.form)
        if run.broken:
            ax.axvline(run.broken, color=color, linestyle=":", linewidth=2)
        ax.set(title=f"{run.dtype}, std {run.init_std:g}", ylim=(0, None))
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _panels(y_label: str, x_label: str) -> Figure:
    """Two by two panels, 5.6 inches wide, so that 10-point text is readable at half a page's width."""
    fig = Figure(figsize=(5.6, 5.4), layout="constrained")
    fig.supxlabel(x_label, fontsize="medium")
    fig.supylabel(y_label, fontsize="medium")
    fig.subplots(2, 2, sharex=True)
    return fig
