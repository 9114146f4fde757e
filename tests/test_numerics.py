import doctest
import math
from collections.abc import Callable
from decimal import Decimal
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from softmax_regression import numerics
from softmax_regression.numerics import (
    cross_entropy,
    log_softmax,
    logsumexp,
    naive_cross_entropy,
    naive_softmax,
    softmax,
)
from softmax_regression.studies.numerics.measurements import exact

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
STABLE: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (softmax, torch.softmax),
    (log_softmax, torch.log_softmax),
    (logsumexp, torch.logsumexp),
]
INF = math.inf
law = settings(deadline=None, derandomize=True)
logits = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=12).map(lambda row: torch.tensor(row, dtype=torch.float64))


def value_and_grad(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and the gradient of its elements with weights from 1 to -1."""
    x = x.detach().requires_grad_()
    y = f(x)
    weights = torch.linspace(1, -1, y.numel(), dtype=x.dtype).reshape(y.shape)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), grad


@pytest.mark.parametrize("o", [1000.0, -1000.0])
def test_equal_large_logits_are_nan_when_naive_and_a_third_when_stable(o: float) -> None:
    x, y = torch.full((1, 3), o), torch.tensor([0])
    assert naive_softmax(x).isnan().all()
    assert naive_cross_entropy(x, y).isnan()
    torch.testing.assert_close(softmax(x), torch.full((1, 3), 1 / 3))
    assert cross_entropy(x, y).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("dtype", "high", "low"),
    [
        (torch.float32, (88.7, 88.8), (-103.9, -104.0)),
        (torch.bfloat16, (88.5, 89.0), (-92.5, -93.0)),  # no number of the type lies closer
        (torch.float16, (11.08, 11.1), (-17.3, -17.35)),
    ],
)
def test_the_naive_softmax_fails_where_its_docstring_says(
    dtype: torch.dtype, high: tuple[float, float], low: tuple[float, float]
) -> None:
    for good, bad in (high, low):
        assert naive_softmax(torch.tensor([good, min(good, 0)], dtype=dtype)).isfinite().all()
        assert naive_softmax(torch.tensor([bad, min(bad, 0)], dtype=dtype)).isnan().any()


def test_a_probability_that_underflows_has_an_infinite_naive_loss_and_a_finite_stable_one() -> None:
    x, y = torch.tensor([[0.0, -1000.0]]), torch.tensor([1])
    assert naive_cross_entropy(x, y) == INF
    assert cross_entropy(x, y) == 1000


def test_the_docstrings_examples_run() -> None:
    result = doctest.testmod(numerics)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(("ours", "theirs"), [*STABLE, (naive_softmax, torch.softmax)])
def test_values_and_gradients_over_any_dimension_agree_with_torch(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor]
) -> None:
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dim in range(-3, 3):
        got, want = (value_and_grad(partial(f, dim=dim), x) for f in (ours, theirs))
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("row", [[-INF, -INF, -INF], [INF, 0.0, 1.0], [INF, INF, 0.0], [-INF, 2.0, -INF]])
def test_the_logsumexp_of_infinite_logits_is_torchs(row: list[float]) -> None:
    x = torch.tensor([row, [0.0, 1.0, 2.0]])
    assert torch.allclose(logsumexp(x), torch.logsumexp(x, 1))


@pytest.mark.parametrize("row", [[-INF, 0, 1], [0, -INF, -INF], [math.nan, 0, 1]])
def test_masked_classes_give_what_torch_gives(row: list[float]) -> None:
    for forms in STABLE:
        got, want = (value_and_grad(partial(f, dim=-1), torch.tensor(row)) for f in forms)
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("row", [[INF, 0.0], [INF, INF], [math.nan, 0.0]])
def test_a_logit_that_is_no_finite_number_never_has_a_finite_loss(row: list[float]) -> None:
    for label in (0, 1):
        assert not cross_entropy(torch.tensor([row]), torch.tensor([label])).isfinite()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("loss", [cross_entropy, naive_cross_entropy])
def test_the_losses_have_the_classes_where_torch_has_them(loss: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = x.argmin(min(1, len(shape) - 1))
    torch.testing.assert_close(loss(x, y), torch_cross_entropy(x, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [cross_entropy, naive_cross_entropy])
def test_the_losses_agree_with_torch_where_nothing_overflows(
    loss: Callable[..., Tensor], reduction: str, dtype: torch.dtype
) -> None:
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.arange(64) % 10
    got = value_and_grad(lambda x: loss(x, y, reduction=reduction), x)
    want = value_and_grad(lambda x: torch_cross_entropy(x, y, reduction=reduction), x.double())
    eps = torch.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_within_the_bounds_that_the_docstrings_state(dtype: torch.dtype) -> None:
    rng, rows, n = torch.Generator().manual_seed(0), 500, 10
    u, tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    scale = 10 ** (6 * torch.rand(rows, 1, generator=rng, dtype=torch.float64) - 2)
    x = (scale * (2 * torch.rand(rows, n, generator=rng, dtype=torch.float64) - 1)).to(dtype)
    loss = cross_entropy(x.requires_grad_(), torch.zeros(rows, dtype=torch.int64), "none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    columns = (y.tolist() for y in (x, softmax(x), log_softmax(x), logsumexp(x), loss, grad))
    for o, p, log_p, lse, loss_0, grads in zip(*columns, strict=True):
        true = exact(o)
        gaps = [min(max(o) - o_j, -math.log(tiny)) for o_j in o]
        assert loss_0 == -log_p[0]
        for i in range(n):
            true_p, true_log_p = true["softmax"][i], true["log-softmax"][i]
            bound = math.expm1((n + 4 + math.log(n) + gaps[i]) * u)  # of which the docstring has the first order
            assert off(p[i], true_p) <= bound * max(abs(float(true_p)), tiny)
            bound = math.expm1((n + 3 + max(gaps)) * u)
            assert off(log_p[i], true_log_p) <= bound * max(abs(float(true_log_p)), tiny)
            assert off(grads[i], true_p - (i == 0)) <= 4 * (n + 1) * u
        true_lse = Decimal(o[0]) - true["log-softmax"][0]
        assert off(lse, true_lse) <= (abs(float(true_lse)) + (n + 3) * math.log(n)) * u


def off(got: float, true: Decimal) -> float:
    return float(abs(Decimal(got) - true))


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 40), (torch.float32, 25)])
def test_a_confident_loss_survives_where_torchs_vanishes(dtype: torch.dtype, gap: float) -> None:
    x, y = torch.tensor([[0, -gap]], dtype=dtype), torch.tensor([0])
    assert torch_cross_entropy(x, y) == 0
    assert cross_entropy(x, y).item() == pytest.approx(math.exp(-gap), rel=40 * torch.finfo(dtype).eps)


def test_gradients_and_second_derivatives_are_right_also_where_the_largest_logits_tie() -> None:
    x = torch.tensor([[-2.0, 0.3, 1.0], [4.0, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2, 1])
    for f in (softmax, log_softmax, logsumexp, naive_softmax, lambda x: cross_entropy(x, y)):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))
    tied = torch.tensor([2.0, 2.0, 1.0])
    torch.testing.assert_close(value_and_grad(logsumexp, tied)[1], softmax(tied))


@law
@given(logits, st.floats(-1e4, 1e4))
def test_softmax_is_a_distribution_in_the_order_of_the_logits_whatever_their_shift(x: Tensor, c: float) -> None:
    p = softmax(x)
    assert ((p >= 0) & (p <= 1)).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-14)
    assert (p[x.argsort()].diff() >= 0).all()
    torch.testing.assert_close(softmax(x + c), p, rtol=0, atol=1e-11)  # x + c itself is rounded
    torch.testing.assert_close(logsumexp(x + c), logsumexp(x) + c, rtol=0, atol=1e-11)


@law
@given(logits, st.floats(0.01, 100))
def test_logsumexp_at_a_temperature_lies_between_max_and_max_plus_t_log_n(x: Tensor, t: float) -> None:
    rounding = 1e-11
    assert x.max() - rounding <= t * logsumexp(x / t) <= x.max() + t * math.log(len(x)) + rounding


@law
@given(logits, st.lists(st.floats(-1e4, 1e4), min_size=12, max_size=12), st.floats(0, 1))
def test_logsumexp_is_convex_and_grows_with_each_logit(x: Tensor, other: list[float], t: float) -> None:
    z = torch.tensor(other, dtype=x.dtype)[: len(x)]
    assert logsumexp(t * x + (1 - t) * z) <= t * logsumexp(x) + (1 - t) * logsumexp(z) + 1e-11
    assert logsumexp(x.maximum(z)) >= logsumexp(x) - 1e-11


def test_a_temperature_near_zero_makes_softmax_the_argmax_and_a_high_one_uniform() -> None:
    x = torch.tensor([3.0, 1.0, 3.5, -8.0], dtype=torch.float64)
    assert softmax(x / 1e-4).tolist() == [0, 0, 1, 0]
    assert softmax(x / 1e6).tolist() == pytest.approx([0.25] * 4, abs=1e-5)
