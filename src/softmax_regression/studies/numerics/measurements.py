"""Measured on the forms in `numerics`: where they fail, how far they err, and how training with them goes."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softmax_regression import numerics
from softmax_regression.numerics import log_softmax, naive_softmax

Form = Callable[[Tensor], Tensor]

DTYPES = {torch.finfo(t).dtype: t for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
FORMS: dict[str, dict[str, Form]] = {
    "softmax": {"naive": naive_softmax, "torch": nn.Softmax(-1), "stable": numerics.softmax},
    "log-softmax": {"naive": lambda x: naive_softmax(x).log(), "torch": nn.LogSoftmax(-1), "stable": log_softmax},
}
LOSSES = {"stable": numerics.cross_entropy, "naive": numerics.naive_cross_entropy}
TRAININGS = (("float32", 0.01), ("float32", 2.0), ("bfloat16", 0.01), ("float16", 0.01))
STEP = 0.5  # of the grid of logits; bfloat16 holds no finer one near 100

LIMITS: dict[str, Callable[[torch.finfo], float]] = {  # least: the smallest subnormal, tiny * eps
    "log(max)": lambda info: math.log(info.max),
    "log(max / 10)": lambda info: math.log(info.max / 10),
    "log(2 / least)": lambda info: math.log(2) - math.log(info.tiny * info.eps),
    "log(2 / eps)": lambda info: math.log(2 / info.eps),
    "log(1 / tiny)": lambda info: -math.log(info.tiny),
}
ONE, TEN, PAIR = (1.0, *[0.0] * 9), (1.0,) * 10, (0.0, -1.0)
CASES: tuple[tuple[str, str, Sequence[float], Form], ...] = (  # what fails, from which limit, for s times which logits
    ("softmax(s, 0, …, 0) is nan", "log(max)", ONE, lambda x: naive_softmax(x).isnan()),
    ("LSE(s, s, …, s) is inf", "log(max / 10)", TEN, lambda x: x.exp().sum(1, keepdim=True).isinf()),
    ("softmax(−s, …, −s) is nan", "log(2 / least)", TEN, lambda x: naive_softmax(-x).isnan()),
    ("log softmax(0, −s) is −inf", "log(2 / least)", PAIR, lambda x: naive_softmax(x).log().isinf()),
    ("naive loss of (0, −s) is 0", "log(2 / eps)", PAIR, lambda x: naive_softmax(x).log() == 0),
    ("torch's loss is 0", "log(2 / eps)", PAIR, lambda x: x.log_softmax(1) == 0),
    ("stable loss < tiny", "log(1 / tiny)", PAIR, lambda x: -log_softmax(x) < torch.finfo(x.dtype).tiny),
)


class Failure(NamedTuple):
    """The scale of the logits at which a case first fails, predicted from finfo and measured on a grid."""

    what: str
    limit: str
    dtype: str
    predicted: float
    measured: float


class Error(NamedTuple):
    """The worst error at a scale of the logits, in units in the last place; inf where the form fails."""

    quantity: str
    dtype: str
    form: str
    scale: float
    ulps: float
    bound: float  # of the stable form's error, stated in `numerics`


class Training(NamedTuple):
    """The losses of a run, and the first step, counted from 1, whose loss is inf or nan."""

    dtype: str
    init_std: float
    form: str
    losses: list[float]
    broken: int | None


def failures() -> list[Failure]:
    """Each case in each dtype, from the least scale of the grid on."""
    rows = []
    for what, limit, direction, fails in CASES:
        for name, dtype in DTYPES.items():
            scales = torch.arange(STEP, 1000, STEP).to(dtype)
            failed = fails(scales[:, None] * torch.tensor(direction, dtype=dtype)).any(1)
            rows.append(Failure(what, limit, name, LIMITS[limit](torch.finfo(dtype)), scales[failed][0].item()))
    return rows


def errors(rows: int, points: int, seed: int) -> list[Error]:
    """Errors over rows of 10 logits, uniform in [-scale, scale], for scales from 0.1 to 10,000."""
    rng = torch.Generator().manual_seed(seed)
    measured = []
    for name, dtype in DTYPES.items():
        info = torch.finfo(dtype)
        for scale in torch.logspace(-1, 4, points).tolist():
            x = (scale * (2 * torch.rand(rows, 10, generator=rng, dtype=torch.float64) - 1)).to(dtype)
            truth = [exact(row) for row in x.tolist()]
            gap = min(2 * scale, -math.log(info.tiny))
            bounds = {"softmax": 10 + 4 + math.log(10) + gap, "log-softmax": 10 + 3 + gap}
            for quantity, forms in FORMS.items():
                true = [y for row in truth for y in row[quantity]]
                for form, f in forms.items():
                    worst = max(map(ulps, f(x).flatten().tolist(), true, [info] * len(true)))
                    measured.append(Error(quantity, name, form, scale, worst, bounds[quantity]))
    return measured


def exact(row: Sequence[float]) -> dict[str, list[Decimal]]:
    """The softmax and the log-softmax of logits, in arithmetic of 50 digits."""
    with localcontext(prec=50):
        gaps = [Decimal(o) - Decimal(max(row)) for o in row]
        others = sum((gap.exp() for gap in sorted(gaps)[:-1]), Decimal(0))
        rest = (1 + others).ln() if others > Decimal("1e-25") else others  # to half of the digits, at the least
        log_p = [gap - rest for gap in gaps]
        return {"softmax": [y.exp() for y in log_p], "log-softmax": log_p}


def ulps(got: float, true: Decimal, info: torch.finfo) -> float:
    """The error in spacings of the dtype's numbers at the true value; inf if `got` is inf or nan."""
    spacing = info.eps * 2.0 ** (math.frexp(max(abs(float(true)), info.tiny))[1] - 1)
    return float(abs(Decimal(got) - true)) / spacing if math.isfinite(got) else math.inf


def trainings(x: Tensor, y: Tensor, steps: int, seed: int) -> list[Training]:
    """Train on images (n, d) in [0, 1] by the book's recipe, minibatches of 256 and learning rate 0.1."""
    runs = []
    for (name, init_std), form in product(TRAININGS, LOSSES):
        rng = torch.Generator().manual_seed(seed)
        w = (init_std * torch.randn(x.shape[1], 10, generator=rng)).to(DTYPES[name]).requires_grad_()
        b = torch.zeros(10, dtype=w.dtype, requires_grad=True)
        optimizer, losses = torch.optim.SGD([w, b], lr=0.1), []
        for _ in range(steps):
            batch = torch.randint(len(x), (256,), generator=rng)
            loss = LOSSES[form](x[batch].to(w.dtype) @ w + b, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        broken = next((step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
        runs.append(Training(name, init_std, form, losses, broken))
    return runs
