"""Measurements of the forms in `numerics`: where they fail, how large their errors are, and how they train."""

import itertools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softmax_regression import numerics
from softmax_regression.numerics import log_softmax, naive_softmax

Form = Callable[[Tensor], Tensor]


def naive_log_softmax(x: Tensor) -> Tensor:
    """Return the logarithm of the naive softmax."""
    return naive_softmax(x).log()


DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
FORMS: dict[str, dict[str, Form]] = {
    "softmax": {"naive": naive_softmax, "torch": nn.Softmax(-1), "stable": numerics.softmax},
    "log-softmax": {"naive": naive_log_softmax, "torch": nn.LogSoftmax(-1), "stable": log_softmax},
}
LOSSES = {"stable": numerics.cross_entropy, "naive": numerics.naive_cross_entropy}
TRAININGS = (("float32", 0.01), ("float32", 2.0), ("bfloat16", 0.01), ("float16", 0.01))
STEP = 0.5  # of the grid of logits, the spacing of bfloat16 near 100


def limits(info: torch.finfo) -> dict[str, float]:
    """Return the scales of logits at which a form fails, from the range and the precision of a number type."""
    return {
        "log(largest)": math.log(info.max),
        "log(largest / 10)": math.log(info.max / 10),
        "log(2 / smallest)": math.log(2) - math.log(info.tiny * info.eps),
        "log(2 / spacing)": math.log(2 / info.eps),
        "−log(full precision)": -math.log(info.tiny),
    }


# Logits, which are multiplied by a scale s.
ONE = (1.0, *[0.0] * 9)
TEN = (1.0,) * 10
PAIR = (0.0, -1.0)
# A description of a failure, the limit of s from which it occurs, the logits, and a function that tests for it.
CASES: tuple[tuple[str, str, Sequence[float], Form], ...] = (
    ("softmax(s, 0, …, 0) is nan", "log(largest)", ONE, lambda x: naive_softmax(x).isnan()),
    ("sum of ten exp(s) is inf", "log(largest / 10)", TEN, lambda x: x.exp().sum(1, keepdim=True).isinf()),
    ("softmax(−s, …, −s) is nan", "log(2 / smallest)", TEN, lambda x: naive_softmax(-x).isnan()),
    ("log softmax(0, −s) is −inf", "log(2 / smallest)", PAIR, lambda x: naive_log_softmax(x).isinf()),
    ("naive loss of (0, −s) is 0", "log(2 / spacing)", PAIR, lambda x: naive_log_softmax(x) == 0),
    ("torch's loss of (0, −s) is 0", "log(2 / spacing)", PAIR, lambda x: x.log_softmax(1) == 0),
    (
        "stable loss of (0, −s) loses digits",
        "−log(full precision)",
        PAIR,
        lambda x: -log_softmax(x) < torch.finfo(x.dtype).tiny,
    ),
)


class Failure(NamedTuple):
    """The lowest scale of the logits at which a form fails, predicted from finfo and measured on a grid."""

    what: str
    limit: str
    dtype: str
    predicted: float
    measured: float

    def __str__(self) -> str:
        return f"{self.measured:g} ({self.predicted:.2f})"


class Error(NamedTuple):
    """The largest error at a scale of the logits, in units in the last place; inf if the form fails."""

    quantity: str
    dtype: str
    form: str
    scale: float
    ulps: float
    bound: float  # of the stable form's error, stated in `numerics`


class Training(NamedTuple):
    """The loss of each step of a training run."""

    dtype: str
    init_std: float
    form: str
    losses: list[float]

    @property
    def broken(self) -> int | None:
        """The first step, counted from 1, whose loss is inf or nan."""
        for step, loss in enumerate(self.losses, 1):
            if not math.isfinite(loss):
                return step
        return None


def failures() -> list[Failure]:
    """Return the lowest scale of the grid at which each case fails, for each dtype."""
    found = []
    for what, limit, case, fails in CASES:
        for name, dtype in DTYPES.items():
            scales = torch.arange(STEP, 1000, STEP).to(dtype)
            failed = fails(scales[:, None] * torch.tensor(case, dtype=dtype)).any(1)
            predicted = limits(torch.finfo(dtype))[limit]
            found.append(Failure(what, limit, name, predicted, scales[failed][0].item()))
    return found


def errors(rows: int, points: int, seed: int) -> list[Error]:
    """Measure the errors on rows of 10 logits, uniform in [-scale, scale], for scales from 0.1 to 10,000."""
    generator = torch.Generator().manual_seed(seed)
    measured = []
    for dtype in DTYPES:
        for scale in torch.logspace(-1, 4, points).tolist():
            uniform = torch.rand(rows, 10, generator=generator, dtype=torch.float64)
            x = (scale * (2 * uniform - 1)).to(DTYPES[dtype])
            measured.extend(_errors_at(x, dtype, scale))
    return measured


def _errors_at(x: Tensor, dtype: str, scale: float) -> list[Error]:
    """Return the largest error of each form over the rows of x (n, 10)."""
    info = torch.finfo(x.dtype)
    gap = min(2 * scale, -math.log(info.tiny))
    bounds = {"softmax": 10 + 4 + math.log(10) + gap, "log-softmax": 10 + 3 + gap}
    truth = [exact(row) for row in x.tolist()]
    found = []
    for quantity, forms in FORMS.items():
        for form, function in forms.items():
            worst = 0.0
            for got, of_row in zip(function(x).tolist(), truth, strict=True):
                worst = max(worst, *map(partial(ulps, info=info), got, of_row[quantity]))
            found.append(Error(quantity, dtype, form, scale, worst, bounds[quantity]))
    return found


def exact(row: Sequence[float]) -> dict[str, list[Decimal]]:
    """Return the softmax and the log-softmax of logits, in arithmetic of 50 digits."""
    with localcontext(prec=50):
        gaps = [Decimal(logit) - Decimal(max(row)) for logit in row]
        others = Decimal(0)
        for gap in sorted(gaps)[:-1]:
            others += gap.exp()
        rest = others
        if others > Decimal("1e-25"):  # otherwise log(1 + others) = others in 25 digits or more
            rest = (1 + others).ln()
        log_p = [gap - rest for gap in gaps]
        return {"softmax": [y.exp() for y in log_p], "log-softmax": log_p}


def ulps(got: float, true: Decimal, info: torch.finfo) -> float:
    """Return the error in units in the last place of the true value; inf if `got` is inf or nan."""
    if not math.isfinite(got):
        return math.inf
    _, exponent = math.frexp(max(abs(float(true)), info.tiny))
    return float(abs(Decimal(got) - true)) / (info.eps * 2.0 ** (exponent - 1))


def trainings(x: Tensor, y: Tensor, steps: int, seed: int) -> list[Training]:
    """Train on images (n, d) in [0, 1] by the book's recipe, with each number type and each form of the loss."""
    runs = []
    for (dtype, init_std), (form, cross_entropy) in itertools.product(TRAININGS, LOSSES.items()):
        generator = torch.Generator().manual_seed(seed)
        w = (init_std * torch.randn(x.shape[1], 10, generator=generator)).to(DTYPES[dtype]).requires_grad_()
        b = torch.zeros(10, dtype=w.dtype, requires_grad=True)
        optimizer = torch.optim.SGD([w, b], lr=0.1)
        losses = []
        for _ in range(steps):
            batch = torch.randint(len(x), (256,), generator=generator)
            loss = cross_entropy(x[batch].to(w.dtype) @ w + b, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(Training(dtype, init_std, form, losses))
    return runs
