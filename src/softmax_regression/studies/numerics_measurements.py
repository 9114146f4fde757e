"""Measured on the forms in `numerics`: where they fail, how far they err, and how training with them goes."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from softmax_regression.numerics import (
    cross_entropy,
    log_softmax,
    naive_cross_entropy,
    naive_log_softmax,
    naive_logsumexp,
    naive_softmax,
    softmax,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STEP = 0.5  # of the grid of logits; bfloat16 holds no finer one near 100
FORMS: dict[str, dict[str, Callable[[Tensor, int], Tensor]]] = {
    "softmax": {"naive": naive_softmax, "torch": torch.softmax, "stable": softmax},
    "log-softmax": {"naive": naive_log_softmax, "torch": torch.log_softmax, "stable": log_softmax},
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive_cross_entropy,
    "torch": torch_cross_entropy,
    "stable": cross_entropy,
}
TRAININGS = ((torch.float32, 0.01), (torch.float32, 2.0), (torch.bfloat16, 0.01), (torch.float16, 0.01))

LIMITS: dict[str, Callable[[torch.finfo], float]] = {  # least: the smallest subnormal, tiny * eps
    "log(max)": lambda info: math.log(info.max),
    "log(max / 10)": lambda info: math.log(info.max / 10),
    "log(2 / least)": lambda info: math.log(2) - math.log(info.tiny) - math.log(info.eps),
    "log(2 / eps)": lambda info: math.log(2 / info.eps),
    "log(1 / tiny)": lambda info: -math.log(info.tiny),
}


class Case(NamedTuple):
    """A failure: `fails`, (s, n) -> (s,), holds for the logits s * direction from some scale s on."""

    what: str
    limit: str
    direction: Sequence[float]
    fails: Callable[[Tensor], Tensor]


class Failure(NamedTuple):
    """The scale at which a case first fails in a dtype, predicted from its finfo and measured on a grid."""

    what: str
    limit: str
    dtype: str
    predicted: float
    measured: float

    @property
    def agrees(self) -> bool:
        """The first point of the grid to fail is the first above the prediction."""
        return 0 <= self.measured - self.predicted <= STEP


class Error(NamedTuple):
    """The worst error at a scale of the logits, in units in the last place; inf where the form fails."""

    quantity: str
    dtype: str
    form: str
    scale: float
    ulps: float


class Training(NamedTuple):
    """The losses of a run, step by step."""

    dtype: str
    init_std: float
    form: str
    losses: list[float]

    @property
    def broken(self) -> int | None:
        """The first step, counted from 1, whose loss is inf or nan."""
        return next((step for step, loss in enumerate(self.losses, 1) if not math.isfinite(loss)), None)


ONE, TEN, PAIR = (1.0, *[0.0] * 9), (1.0,) * 10, (0.0, -1.0)
BREAKDOWNS = [
    Case("softmax(s, 0, …, 0) is nan", "log(max)", ONE, lambda x: naive_softmax(x)[:, 0].isnan()),
    Case("softmax(s, s, …, s) is 0", "log(max / 10)", TEN, lambda x: naive_softmax(x)[:, 0] == 0),
    Case("LSE(s, s, …, s) is inf", "log(max / 10)", TEN, lambda x: naive_logsumexp(x).isinf()),
    Case("softmax(−s, …, −s) is nan", "log(2 / least)", TEN, lambda x: naive_softmax(-x)[:, 0].isnan()),
    Case("LSE(−s, …, −s) is −inf", "log(2 / least)", TEN, lambda x: naive_logsumexp(-x).isinf()),
    Case("log softmax(0, −s) is −inf", "log(2 / least)", PAIR, lambda x: naive_log_softmax(x)[:, 1].isinf()),
]
VANISHINGS = [
    Case("naive loss is 0", "log(2 / eps)", PAIR, lambda x: naive_log_softmax(x)[:, 0] == 0),
    Case("torch's loss is 0", "log(2 / eps)", PAIR, lambda x: x.log_softmax(-1)[:, 0] == 0),
    Case(
        "stable loss is below tiny",
        "log(1 / tiny)",
        PAIR,
        lambda x: log_softmax(x)[:, 0] > -torch.finfo(x.dtype).tiny,
    ),
]


def failures(cases: Sequence[Case]) -> list[Failure]:
    """Each case in each dtype, from the least scale of the grid on."""
    rows = []
    for what, limit, direction, fails in cases:
        for dtype in DTYPES:
            info = torch.finfo(dtype)
            scales = torch.arange(STEP, 1000, STEP, dtype=torch.float64).to(dtype)
            failed = fails(scales[:, None] * torch.tensor(direction, dtype=dtype))
            rows.append(Failure(what, limit, info.dtype, LIMITS[limit](info), scales[failed][0].item()))
    return rows


def errors(rows: int, points: int, seed: int) -> list[Error]:
    """Errors over rows of 10 logits, uniform in [-scale, scale], for scales from 0.1 to 10,000."""
    rng = torch.Generator().manual_seed(seed)
    measured = []
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        for scale in torch.logspace(-1, 4, points).tolist():
            x = (scale * (2 * torch.rand(rows, 10, generator=rng, dtype=torch.float64) - 1)).to(dtype)
            truth = [exact(row) for row in x.tolist()]
            for quantity, forms in FORMS.items():
                for form, f in forms.items():
                    got = f(x, -1).tolist()
                    ulps = max(_ulps(a, b[quantity], info) for a, b in zip(got, truth, strict=True))
                    measured.append(Error(quantity, info.dtype, form, scale, ulps))
    return measured


def exact(row: Sequence[float]) -> dict[str, list[Decimal]]:
    """The softmax and the log-softmax of logits, to 50 digits."""
    with localcontext(prec=50):
        m = Decimal(max(row))
        gaps = sorted((Decimal(o) - m) for o in row)
        others = sum((gap.exp() for gap in gaps[:-1]), Decimal(0))
        small = others < Decimal("1e-25")  # where 1 + others would round
        rest = others - others * others / 2 if small else (1 + others).ln()
        log_p = [Decimal(o) - m - rest for o in row]
        return {"log-softmax": log_p, "softmax": [y.exp() for y in log_p]}


def _ulps(got: Sequence[float], true: Sequence[Decimal], info: torch.finfo) -> float:
    """The worst error of a row, in spacings of the dtype's numbers at the true values."""
    if not all(map(math.isfinite, got)):
        return math.inf
    spacings = (info.eps * 2.0 ** (math.frexp(max(abs(y), info.tiny))[1] - 1) for y in map(float, true))
    return max(
        float(abs(Decimal(a) - b)) / spacing for a, b, spacing in zip(got, true, spacings, strict=True)
    )


def trainings(x: Tensor, y: Tensor, steps: int, seed: int) -> list[Training]:
    """The naive and the stable loss in each configuration (dtype, init_std) of `TRAININGS`; see `train`."""
    return [
        train(form, x, y, dtype, init_std, steps, seed)
        for dtype, init_std in TRAININGS
        for form in ("stable", "naive")
    ]


def train(
    form: str, x: Tensor, y: Tensor, dtype: torch.dtype, init_std: float, steps: int, seed: int
) -> Training:
    """Train softmax regression by the book's recipe, with parameters and arithmetic in one dtype.

    Args:
        form: Of the loss: naive, torch or stable.
        x: Images, (n, d) in [0, 1].
        y: Labels, (n,) in 0..9.
        dtype: Of parameters, logits and loss.
        init_std: Standard deviation of the initial weights.
        steps: Minibatches of 256, drawn with replacement.
        seed: Decides weights and minibatches.
    """
    rng = torch.Generator().manual_seed(seed)
    w = (init_std * torch.randn(x.shape[1], 10, generator=rng)).to(dtype).requires_grad_()
    b = torch.zeros(10, dtype=dtype, requires_grad=True)
    x, losses = x.to(dtype), []
    for _ in range(steps):
        batch = torch.randint(len(x), (256,), generator=rng)
        loss = LOSSES[form](x[batch] @ w + b, y[batch])
        grads = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():
            for parameter, grad in zip((w, b), grads, strict=True):
                parameter -= 0.1 * grad
        losses.append(loss.item())
    return Training(torch.finfo(dtype).dtype, init_std, form, losses)
