"""Where softmax and cross-entropy break in floating point, and what the stable forms mend, on one page.

Source: Dive into Deep Learning, "Concise Implementation of Softmax Regression", text and exercises.
Command: python study.py numerics
"""

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy

from softmax_regression.data.files import DIRS
from softmax_regression.data.module import load
from softmax_regression.figures.page import Page, fraction, symbols, write_csv
from softmax_regression.numerics import cross_entropy, log_softmax, logsumexp, naive_softmax, softmax
from softmax_regression.studies.numerics_figures import (
    error_figure,
    logsumexp_figure,
    temperature_figure,
    training_figure,
    vanishing_figure,
)
from softmax_regression.studies.numerics_measurements import (
    BREAKDOWNS,
    DTYPES,
    FORMS,
    LOSSES,
    STEP,
    VANISHINGS,
    Error,
    Failure,
    Training,
    errors,
    failures,
    trainings,
)

NAMES = [torch.finfo(dtype).dtype for dtype in DTYPES]


def run(
    out: Path = Path("logs/numerics"),
    source: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    dirs: Sequence[str] = DIRS,
    seed: int = 0,
    quick: bool = False,
) -> Path:
    """Measure where softmax and cross-entropy break in floating point, and what the stable forms mend.

    Args:
        out: Folder of the page.
        source: What to train on: `fashion-mnist`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the data in.
        seed: Decides random logits, initial weights and minibatches.
        quick: Measure at fewer points, and train for fewer steps on 2,000 generated images.

    Returns:
        The path of the page.

    Raises:
        InputError: The data cannot be had.
    """
    data = load("synthetic", synthetic_size=2000) if quick else load(source, dirs)
    images, labels, origin = data.images, data.labels, data.origin
    scales, vanishing = failures(BREAKDOWNS), failures(VANISHINGS)
    accuracy = errors(rows=5 if quick else 25, points=11 if quick else 31, seed=seed)
    runs = trainings(images.flatten(1) / 255, labels, steps=160 if quick else 400, seed=seed)

    page = Page("Softmax in floating point")
    _definition(page)
    _breakdown(page, scales)
    _accuracy(page, accuracy)
    _vanishing(page, vanishing)
    _training(page, runs, origin)
    _soft_maximum(page)
    page.heading("How this was measured")
    page.preformatted(
        f"python study.py numerics, seed {seed}{', quick' if quick else ''}\n"
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()} CPU\n{origin}"
    )
    write_csv(out / "failures.csv", [row._asdict() for row in scales + vanishing])
    write_csv(out / "errors.csv", [row._asdict() for row in accuracy])
    write_csv(
        out / "training.csv",
        [
            {"dtype": row.dtype, "init_std": row.init_std, "form": row.form, "step": step, "loss": loss}
            for row in runs
            for step, loss in enumerate(row.losses, 1)
        ],
    )
    return page.write(out)


def _definition(page: Page) -> None:
    page.text(
        "A linear layer gives each of n classes a number o, its logit. Softmax turns the logits into "
        "probabilities p, and the loss, cross-entropy, is minus the logarithm of the label's probability:"
    )
    page.equation(symbols("p_i ="), fraction("exp ( o_i )", "Σ_j exp ( o_j )"))
    page.equation(symbols("loss = − log ~ p_y"))
    page.text("On paper nothing can go wrong. In float32, three equal logits, due a third each, get")
    rows = [
        [f"({o:g}, {o:g}, {o:g})", *(f(torch.full((3,), o))[0].item() for f in (naive_softmax, softmax))]
        for o in (10.0, 1000.0, -1000.0)
    ]
    page.table(rows, ["logits", "softmax as defined", "stable softmax"])


def _breakdown(page: Page, rows: Sequence[Failure]) -> None:
    page.heading("Where the definitions break")
    page.text(
        "exp(o) is inf when it exceeds max, the largest number of its type, and 0 when it falls below half "
        "of least, the smallest positive one. A sum of ten terms reaches max earlier. The logits below are "
        f"multiples of a scale s that grows in steps of {STEP:g}. The table gives the first s that fails "
        "and, in brackets, the scale predicted from the type alone. LSE is LogSumExp, the logarithm of the "
        "sum of the exponentials."
    )
    _failure_table(page, rows)
    page.text(_agreement(rows))
    page.heading("The mend")
    page.text("With m the largest logit, reduce the fraction by exp(m), and let log and exp cancel:")
    page.equation(symbols("p_i ="), fraction("exp ( o_i − m )", "Σ_j exp ( o_j − m )"))
    page.equation(symbols("log ~ p_i = o_i − m − log Σ_j exp ( o_j − m )"))
    finite = [name for dtype, name in zip(DTYPES, NAMES, strict=True) if _finite_to_the_end(dtype)]
    page.text(
        "No exponent is above 0 and one is 0, so the sum lies between 1 and n, and no probability is rounded "
        "to 0 before its logarithm is taken. On the logits of the table, with s the largest number of the "
        f"type, these forms give nothing but finite numbers in {', '.join(finite) or 'no type'}."
    )


def _finite_to_the_end(dtype: torch.dtype) -> bool:
    """Whether the stable forms are finite for the logits of every breakdown at the largest scale there is."""
    logits = [
        sign * torch.finfo(dtype).max * torch.tensor(case.direction, dtype=dtype)
        for case in BREAKDOWNS
        for sign in (1, -1)
    ]
    return all(bool(f(x).isfinite().all()) for x in logits for f in (softmax, log_softmax, logsumexp))


def _accuracy(page: Page, rows: Sequence[Error]) -> None:
    page.heading("How exact the forms are")
    page.text(
        "Rows of ten random logits between −s and s, compared with 50-digit arithmetic. An error of 1 ulp, "
        "unit in the last place, is one step between neighbouring numbers of the type. A line ends in a "
        "cross where the form stops giving finite numbers."
    )
    table = []
    for quantity in FORMS:
        mine = [row for row in rows if row.quantity == quantity]
        name = f"{quantity.replace('-', '_')}_error"
        page.figure(error_figure(mine), name, f"Worst error of {quantity} against the scale of the logits")
        for dtype in NAMES:
            worst = [_worst(mine, dtype, form) for form in ("naive", "torch", "stable")]
            table.append([quantity, dtype, *worst])
    page.table(table, ["worst error, ulp", "type", "naive, while finite", "torch", "stable"])
    stable, torchs = (max(_worst(rows, dtype, form) for dtype in NAMES) for form in ("stable", "torch"))
    page.text(
        f"Over all scales the stable forms err by {stable:.2g} ulp at most, torch's by up to {torchs:.2g}. "
        "In softmax the difference is the rounding of o − m, an absolute error that exp turns into a "
        "relative one: the stable form here computes what was lost and puts it back. In log-softmax it is "
        "the logarithm of a sum close to 1, the subject of the next section."
    )


def _worst(rows: Sequence[Error], dtype: str, form: str) -> float:
    """The worst finite error over all scales."""
    return max(r.ulps for r in rows if (r.dtype, r.form) == (dtype, form) and math.isfinite(r.ulps))


def _vanishing(page: Page, rows: Sequence[Failure]) -> None:
    page.heading("A loss that vanishes")
    page.text(
        "Take two logits, 0 for the label and −s for the other class. The sum of exponentials is 1 + "
        "exp(−s). Once exp(−s) is below eps / 2, half the spacing of numbers at 1, that sum rounds to 1: the "
        "loss is exactly 0, and so is the gradient of the label's logit. Leaving the largest term out of the "
        "sum and taking log1p, which is log(1 + x) without forming 1 + x, keeps every digit down to tiny, "
        "the smallest number of full precision:"
    )
    page.equation(symbols("loss = m − o_y + log1p Σ_j≠k exp ( o_j − m ) , ~ ~ ~ m = o_k"))
    _failure_table(page, rows)
    x, y = torch.tensor([[0.0, -25.0]]), torch.tensor([0])
    page.text(
        f"{_agreement(rows)} For (0, −25) in float32 torch's loss is {torch_cross_entropy(x, y).item():.3g}, "
        f"the stable one {cross_entropy(x, y).item():.3g}, the true one {math.log1p(math.exp(-25)):.3g}."
    )
    page.figure(
        vanishing_figure(), "vanishing_loss", "The loss of the logits (0, −s), whose label is the first"
    )
    doubts = [
        f"{torch.finfo(dtype).eps / 2:.1g} in {name}" for dtype, name in zip(DTYPES, NAMES, strict=True)
    ]
    page.text(
        f"So it matters for labels whose probability is closer to 1 than {', '.join(doubts)}. They hardly "
        "move the weights, but comparing confident models, calibrating them or adding up log-probabilities "
        "needs their loss."
    )


def _training(page: Page, rows: Sequence[Training], origin: str) -> None:
    page.heading("What this does to training")
    page.text(
        f"The book's recipe, minibatches of 256 and learning rate 0.1, for {len(rows[0].losses)} steps on "
        f"{origin}. Weights, logits and loss are of one type; std is the standard deviation of the initial "
        "weights, 0.01 in the book."
    )
    page.figure(
        training_figure(rows),
        "training",
        "Training loss of the naive and of the stable form; dotted where the naive loss is no longer finite",
    )
    table = []
    for stable, naive in zip(rows[::2], rows[1::2], strict=True):
        fate = f"{naive.losses[naive.broken - 1]:g} at step {naive.broken}" if naive.broken else "finite"
        table.append([naive.dtype, f"{naive.init_std:g}", fate, naive.losses[-1], stable.losses[-1]])
    page.table(table, ["type", "std", "naive loss", "naive, last step", "stable, last step"])
    broken = {form: sum(row.broken is not None for row in rows if row.form == form) for form in LOSSES}
    page.text(
        f"Of {len(table)} runs with each, {broken['naive']} broke with the naive loss and {broken['stable']} "
        "with the stable one. A loss of inf or nan makes the gradient, and with it the weights, nan: such a "
        "run never recovers. float16 breaks as soon as logits grow to a dozen; bfloat16 has float32's range."
    )


def _soft_maximum(page: Page) -> None:
    page.heading("LogSumExp is the soft maximum, softmax the soft argmax")
    page.text("LogSumExp exceeds the largest logit m by at most log n, and a temperature T narrows the gap:")
    page.equation(symbols("m < LSE ( o ) ≤ m + log ~ n"))
    page.equation(symbols("m < T ~ LSE ( o / T ) ≤ m + T ~ log ~ n"))
    page.figure(logsumexp_figure(), "logsumexp", "LogSumExp of two logits, o and 0, and its bounds")
    page.text(
        "Its gradient is softmax. As T tends to 0, T LSE(o / T) tends to the maximum, and its gradient, "
        "softmax(o / T), to 1 for the largest logit and 0 for the others: the argmax, one-hot. Softmax is a "
        "soft argmax rather than a soft maximum."
    )
    logits = (0.5, 1.0, 2.0, 3.0, 3.5)
    page.figure(
        temperature_figure(logits), "temperature", "softmax(o / T) of five logits at five temperatures T"
    )


def _failure_table(page: Page, rows: Sequence[Failure]) -> None:
    """A line a case, a column a dtype: the measured scale and, in brackets, the predicted one."""
    cells = {(row.what, row.limit, row.dtype): f"{row.measured:g} ({row.predicted:.2f})" for row in rows}
    cases = dict.fromkeys((row.what, row.limit) for row in rows)
    page.table(
        [[*case, *(cells[*case, name] for name in NAMES)] for case in cases],
        ["at scale s", "predicted", *NAMES],
    )


def _agreement(rows: Sequence[Failure]) -> str:
    agreeing = sum(row.agrees for row in rows)
    return f"{agreeing} of {len(rows)} measured scales are the first step above the prediction."
