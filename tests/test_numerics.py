import doctest
import math
from collections.abc import Callable

import mpmath  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from softmax_regression import numerics
from softmax_regression.numerics import (
    Reduction,
    cross_entropy,
    log_softmax,
    logsumexp,
    logsumexp_shifted,
    lse0,
    naive_cross_entropy,
    naive_log_softmax,
    naive_logsumexp,
    naive_softmax,
    smooth_max,
    softmax,
)

Map = Callable[[Tensor, int], Tensor]
Exact = npt.NDArray[np.longdouble]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
STABLE: dict[str, tuple[Map, Map]] = {
    "softmax": (softmax, torch.softmax),
    "log_softmax": (log_softmax, torch.log_softmax),
    "logsumexp": (logsumexp, torch.logsumexp),
}
NAIVE: dict[str, tuple[Map, Map]] = {
    "softmax": (naive_softmax, torch.softmax),
    "log_softmax": (naive_log_softmax, torch.log_softmax),
    "logsumexp": (naive_logsumexp, torch.logsumexp),
}
INF = math.inf
law = settings(deadline=None, derandomize=True)
extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="long double is no wider than double here"
)

logits = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=12).map(
    lambda v: torch.tensor(v, dtype=torch.float64)
)


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def exact(x: Tensor) -> dict[str, Exact]:
    """Values, and the gradient of the cross-entropy of label 0, in long double."""
    o = x.detach().double().numpy().astype(np.longdouble)
    k = o.argmax(-1)[:, None]
    m = np.take_along_axis(o, k, -1)
    others = np.exp(o - m)
    np.put_along_axis(others, k, 0, -1)
    total = others.sum(-1, keepdims=True)
    rest = np.log1p(total)
    p = np.exp(o - m) / (1 + total)
    grad = p.copy()
    grad[:, 0] = -p[:, 1:].sum(-1)
    return {"softmax": p, "log_softmax": o - m - rest, "logsumexp": (m + rest)[:, 0], "grad": grad}


def random_logits(
    dtype: torch.dtype, count: int = 10_000, n: int = 10
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Rows of uniform logits of scale 0.01 to 10,000, (count, n), and the decade of each row's scale."""
    rng = torch.Generator().manual_seed(0)
    exponent = 6 * torch.rand(count, 1, generator=rng, dtype=torch.float64) - 2
    x = (2 * torch.rand(count, n, generator=rng, dtype=torch.float64) - 1) * 10**exponent
    return x.to(dtype), exponent.squeeze(1).floor().long().numpy()


def error(y: Tensor, true: Exact) -> Exact:
    """|y - true|, with no rounding that counts."""
    return np.asarray(np.abs(y.detach().double().numpy() - true), dtype=np.longdouble)


def ulp(true: Exact, dtype: torch.dtype) -> Exact:
    """Spacing of the dtype's numbers at each value."""
    info = torch.finfo(dtype)
    exponent = np.frexp(np.maximum(np.abs(true), np.longdouble(info.tiny)))[1]
    return np.asarray(np.ldexp(np.longdouble(info.eps), exponent - 1))


def bound(name: str, true: Exact, dtype: torch.dtype, n: int = 10) -> Exact:
    """The bound that the docstring of `name` states."""
    u, size = unit(dtype), np.abs(true)
    if dtype.itemsize < 4:
        wide = bound(name, true, torch.float32, n)
        return np.asarray(u * size + (1 + u) * wide + torch.finfo(dtype).tiny * u, dtype=np.longdouble)
    absolute = {
        "softmax": (n + 6) * size,
        "log_softmax": (n + 5) * size,
        "gradient": 2 * n * (n + 3) * size,
        "logsumexp": size + (n + 3) * np.log(np.longdouble(n)),
    }
    return np.asarray(np.maximum(absolute[name] * u, torch.finfo(dtype).tiny))


def value_and_grad(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x), and the gradient of its elements with weights from 1 to -1."""
    x = x.detach().requires_grad_()
    y = f(x)
    weights = torch.linspace(1, -1, y.numel(), dtype=x.dtype).reshape(y.shape)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), grad


# The book's examples.


@pytest.mark.parametrize("o", [1000.0, -1000.0])
def test_equal_large_logits_are_nan_when_naive_and_a_third_when_stable(o: float) -> None:
    x = torch.full((3,), o)
    assert naive_softmax(x).isnan().all()
    torch.testing.assert_close(softmax(x), torch.full((3,), 1 / 3))
    torch.testing.assert_close(log_softmax(x), torch.full((3,), -math.log(3)))
    assert cross_entropy(x, torch.tensor(0)).item() == pytest.approx(math.log(3))


def test_exp_overflows_and_underflows_and_so_do_the_naive_forms() -> None:
    large, small = torch.tensor([1000.0, 0.0]), torch.tensor([-1000.0, -1000.0])
    assert large.exp()[0] == INF
    assert small.exp()[0] == 0
    assert naive_logsumexp(large) == INF
    assert naive_logsumexp(small) == -INF
    assert naive_log_softmax(torch.tensor([0.0, -1000.0]))[1] == -INF
    assert naive_cross_entropy(torch.tensor([0.0, -1000.0]), torch.tensor(1)) == INF
    assert cross_entropy(torch.tensor([0.0, -1000.0]), torch.tensor(1)) == 1000


def test_the_docstrings_examples_run() -> None:
    result = doctest.testmod(numerics)
    assert result.attempted > 0
    assert result.failed == 0


# Agreement with torch.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize("scale", [1.0, 100.0, 10_000.0])
def test_stable_values_and_gradients_agree_with_torch(name: str, dtype: torch.dtype, scale: float) -> None:
    ours, theirs = STABLE[name]
    x = random_logits(dtype, count=50)[0].double().sign() * scale * torch.linspace(0, 1, 10)
    for got, want in zip(
        value_and_grad(lambda x: ours(x, -1), x.to(dtype)),
        value_and_grad(lambda x: theirs(x, -1), x.to(dtype)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=32 * unit(dtype), atol=32 * unit(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAIVE)
def test_naive_values_and_gradients_agree_with_torch_on_small_logits(name: str, dtype: torch.dtype) -> None:
    ours, theirs = NAIVE[name]
    x = torch.linspace(-3, 3, 10, dtype=dtype)
    for got, want in zip(
        value_and_grad(lambda x: ours(x, -1), x), value_and_grad(lambda x: theirs(x, -1), x), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=32 * unit(dtype), atol=32 * unit(dtype))


@pytest.mark.parametrize("loss", [torch_cross_entropy, cross_entropy, naive_cross_entropy])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_three_losses_agree_where_nothing_overflows(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(64) % 10
    got = value_and_grad(lambda x: loss(x, y), x.to(dtype))
    want = value_and_grad(lambda x: torch_cross_entropy(x, y), x.to(dtype).double())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=32 * unit(dtype), atol=8 * unit(dtype))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", [cross_entropy, naive_cross_entropy])
def test_cross_entropy_takes_any_leading_dimensions_and_dim(
    reduction: Reduction, form: Callable[..., Tensor]
) -> None:
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24).reshape(2, 3, 4) % 5
    want = torch_cross_entropy(x, y, reduction=reduction)
    torch.testing.assert_close(form(x, y, reduction, dim=1), want)
    torch.testing.assert_close(form(x.movedim(1, -1), y, reduction), want)


@pytest.mark.parametrize("forms", [*STABLE.values(), *NAIVE.values()])
def test_any_dim_of_any_shape(forms: tuple[Map, Map]) -> None:
    ours, theirs = forms
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for dim in range(-3, 3):
        torch.testing.assert_close(ours(x, dim), theirs(x, dim))


@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [[-INF, 0, 1], [0, -INF, -INF], [-INF, -INF], [math.nan, 0]])
def test_masked_classes_give_what_torch_gives(name: str, dtype: torch.dtype, row: list[float]) -> None:
    ours, theirs = STABLE[name]
    x = torch.tensor(row, dtype=dtype)
    for got, want in zip(
        value_and_grad(lambda x: ours(x, -1), x), value_and_grad(lambda x: theirs(x, -1), x), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=8 * unit(dtype), atol=4 * unit(dtype), equal_nan=True)


@pytest.mark.parametrize("row", [[0.0, 1, -INF], [-INF, 0, 1], [-INF, -INF, -INF], [math.nan, 0, 1]])
def test_cross_entropy_of_masked_classes_gives_what_torch_gives(row: list[float]) -> None:
    x, y = torch.tensor([row]), torch.tensor([0])
    got = value_and_grad(lambda x: cross_entropy(x, y), x)
    want = value_and_grad(lambda x: torch_cross_entropy(x, y), x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("label", [0, 1])
def test_an_infinite_logit_never_has_a_finite_loss(label: int) -> None:
    for row in ([INF, 0.0], [INF, INF]):
        assert not cross_entropy(torch.tensor([row]), torch.tensor([label])).isfinite()


# Error against references of higher precision.


@extended
def test_the_long_double_reference_agrees_with_fifty_digits() -> None:
    x = random_logits(torch.float64, count=60, n=4)[0]
    reference = exact(x)
    with mpmath.workdps(50):
        for i, row in enumerate(x.tolist()):
            e = [mpmath.exp(v) for v in row]
            total = mpmath.fsum(e)
            for name, true in {
                "softmax": [v / total for v in e],
                "logsumexp": [mpmath.log(total)],
                "grad": [-mpmath.fsum(e[1:]) / total, *(v / total for v in e[1:])],
            }.items():
                for a, b in zip(reference[name][i].reshape(-1), true, strict=True):
                    assert abs(mpmath.mpf(str(a)) - b) <= abs(b) * unit(torch.float64) / 16 + 1e-300


@extended
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STABLE)
def test_errors_are_within_the_bound_and_at_no_scale_one_ulp_above_torch(
    name: str, dtype: torch.dtype
) -> None:
    x, decade = random_logits(dtype)
    ours, theirs = STABLE[name]
    true = exact(x)[name]
    ours_error, torch_error = error(ours(x, -1), true), error(theirs(x, -1), true)
    assert (ours_error <= bound(name, true, dtype)).all()
    for d in range(-2, 4):
        spacing = ulp(true[decade == d], dtype)
        worst, worst_torch = (
            (e[decade == d] / spacing).max(initial=0, where=true[decade == d] != 0)
            for e in (ours_error, torch_error)
        )
        assert worst <= worst_torch + 1


@extended
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_and_its_gradient_are_relatively_accurate(dtype: torch.dtype) -> None:
    x, _ = random_logits(dtype)
    x.requires_grad_()
    loss = cross_entropy(x, torch.zeros(len(x), dtype=torch.int64), "none")
    true = exact(x)
    assert (
        error(loss, -true["log_softmax"][:, 0]) <= bound("log_softmax", true["log_softmax"][:, 0], dtype)
    ).all()
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert (error(grad, true["grad"]) <= bound("gradient", true["grad"], dtype)).all()


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 40), (torch.float32, 25)])
def test_a_confident_loss_survives_where_torchs_vanishes(dtype: torch.dtype, gap: float) -> None:
    x, y = torch.tensor([[0, -gap]], dtype=dtype), torch.tensor([0])
    true = math.log1p(math.exp(-gap))
    assert torch_cross_entropy(x, y) == 0
    loss, grad = value_and_grad(lambda x: cross_entropy(x, y), x)
    assert loss.item() == pytest.approx(true, rel=2 * unit(dtype))
    assert grad[0].tolist() == pytest.approx([-true, true], rel=4 * unit(dtype) + true)


# Laws.


def test_a_shift_by_any_number_leaves_logsumexp_as_it_is() -> None:
    x = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.float64)
    for c in (-600.0, -1.0, 0.0, 2.0, 600.0):
        torch.testing.assert_close(logsumexp_shifted(x, c), logsumexp(x), rtol=0, atol=1e-12)
    assert logsumexp_shifted(x, -800.0) == INF


@law
@given(logits, st.floats(-1e4, 1e4))
def test_softmax_is_a_distribution_in_the_order_of_the_logits_whatever_their_shift(
    x: Tensor, c: float
) -> None:
    p = softmax(x)
    assert ((p >= 0) & (p <= 1)).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-14)
    assert (p[x.argsort()].diff() >= 0).all()
    torch.testing.assert_close(softmax(x + c), p, rtol=0, atol=1e-11)  # x + c itself is rounded
    torch.testing.assert_close(log_softmax(x + c), log_softmax(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(logsumexp(x + c), logsumexp(x) + c, rtol=0, atol=1e-11)


@law
@given(logits)
def test_logsumexp_lies_between_max_and_max_plus_log_n(x: Tensor) -> None:
    rounding = 4 * torch.finfo(x.dtype).eps * max(1.0, x.abs().max().item())
    assert x.max() <= logsumexp(x) <= x.max() + math.log(len(x)) + rounding


@law
@given(st.lists(st.floats(-300, 300), min_size=2, max_size=12))
def test_logsumexp_exceeds_max_in_exact_arithmetic(row: list[float]) -> None:
    x = torch.tensor(row, dtype=torch.float64)
    assert cross_entropy(x, x.argmax()) > 0  # LSE - max, with no cancellation
    with mpmath.workdps(400):
        assert mpmath.log(mpmath.fsum(mpmath.exp(v) for v in row)) > max(row)


def test_logsumexp_meets_its_upper_bound_on_equal_logits_and_its_lower_on_one() -> None:
    assert logsumexp(torch.full((8,), 5.0)).item() == pytest.approx(5 + math.log(8))
    assert logsumexp(torch.tensor([5.0])) == 5


@law
@given(logits, st.lists(st.floats(0, 100), min_size=12, max_size=12))
def test_logsumexp_is_monotone(x: Tensor, more: list[float]) -> None:
    rounding = 4 * torch.finfo(x.dtype).eps * max(1.0, x.abs().max().item())
    assert logsumexp(x + torch.tensor(more, dtype=x.dtype)[: len(x)]) >= logsumexp(x) - rounding


@law
@given(logits, st.lists(st.floats(-1e4, 1e4), min_size=12, max_size=12), st.floats(0, 1))
def test_logsumexp_and_lse0_are_convex(x: Tensor, other: list[float], t: float) -> None:
    z = torch.tensor(other, dtype=x.dtype)[: len(x)]
    for f in (logsumexp, lse0):
        assert f(t * x + (1 - t) * z) <= t * f(x) + (1 - t) * f(z) + 1e-11


small = st.lists(st.floats(-5, 5), min_size=5, max_size=5)


@law
@given(small, st.floats(0.1, 5))
def test_logsumexp_is_flat_along_ones_where_lse0_is_strictly_convex(row: list[float], step: float) -> None:
    x = torch.tensor(row, dtype=torch.float64)

    def sag(f: Callable[[Tensor], Tensor]) -> float:
        return ((f(x) + f(x + 2 * step)) / 2 - f(x + step)).item()

    assert sag(logsumexp) == pytest.approx(0, abs=1e-14)
    assert sag(lse0) > 1e-7


@law
@given(small, small)
def test_lse0_is_strictly_convex_in_every_direction(row: list[float], other: list[float]) -> None:
    x, z = torch.tensor([row, other], dtype=torch.float64)
    apart = (x - z).abs().max().item()
    if apart >= 0.1:
        assert (lse0(x) + lse0(z)) / 2 - lse0((x + z) / 2) > 1e-10


@law
@given(logits)
def test_the_gradient_of_logsumexp_is_softmax(x: Tensor) -> None:
    (grad,) = torch.autograd.grad(logsumexp(x.requires_grad_()), x)
    torch.testing.assert_close(grad, softmax(x).detach(), rtol=1e-14, atol=1e-15)


@law
@given(small, st.integers(0, 4))
def test_the_gradient_of_cross_entropy_is_softmax_minus_one_hot(row: list[float], label: int) -> None:
    x = torch.tensor(row, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(cross_entropy(x, torch.tensor(label)), x)
    one_hot = torch.eye(5, dtype=torch.float64)[label]
    torch.testing.assert_close(grad, softmax(x).detach() - one_hot, rtol=0, atol=1e-15)


def test_gradients_and_second_derivatives_pass_gradcheck() -> None:
    x = torch.tensor([[-2.0, 0.3, 1.0], [4.0, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2, 1])
    for f in (softmax, log_softmax, logsumexp, lse0, naive_softmax, naive_log_softmax, naive_logsumexp):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, y), (x,))
    assert torch.autograd.gradcheck(lambda x: smooth_max(x, 0.7), (x,))


# log(x + a) ~ log x + a / x, and what it means for LogSumExp.


@law
@given(st.floats(1e-3, 1e3), st.floats(1e-9, 1))
def test_log_of_x_plus_a_is_log_x_plus_a_over_x_to_half_the_square(x: float, ratio: float) -> None:
    a = ratio * x
    log_sum = logsumexp(torch.tensor([math.log(x), math.log(a)], dtype=torch.float64)).item()
    shortfall = math.log(x) + a / x - log_sum
    assert -1e-14 <= shortfall <= ratio**2 / 2 + 1e-14


@law
@given(logits)
def test_logsumexp_is_max_plus_the_other_exponentials_to_half_their_square(x: Tensor) -> None:
    s = (x - x.max()).exp().sort().values[:-1].sum()
    shortfall = x.max() + s - logsumexp(x)
    rounding = 4 * torch.finfo(x.dtype).eps * max(1.0, x.abs().max().item())
    assert -rounding <= shortfall <= s**2 / 2 + rounding


# Temperature.


@law
@given(logits, st.floats(1e-300, 100))
def test_smooth_max_exceeds_max_by_at_most_temperature_times_log_n(x: Tensor, temperature: float) -> None:
    y = smooth_max(x, temperature)
    assert y >= x.max()
    assert y.item() <= x.max().item() + temperature * math.log(len(x)) + 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature_to_zero_gives_max_and_argmax(dtype: torch.dtype) -> None:
    x = torch.tensor([3.0, 1.0, 3.5, -8.0], dtype=dtype)
    value, grad = value_and_grad(lambda x: smooth_max(x, 1e-4), x)
    assert value == x.max()
    assert grad.tolist() == softmax(x / 1e-4).tolist() == [0, 0, 1, 0]  # softmax is a soft argmax
    assert softmax(x.double() / 1e6).tolist() == pytest.approx([0.25] * 4, abs=1e-5)


def test_tied_largest_logits_share_the_argmax() -> None:
    value, grad = value_and_grad(lambda x: smooth_max(x, 1e-3), torch.tensor([2.0, 2.0, 1.0]))
    assert value.item() == pytest.approx(2 + 1e-3 * math.log(2))
    assert grad.tolist() == [0.5, 0.5, 0]


def test_smooth_max_of_masked_classes_is_that_of_the_others() -> None:
    assert smooth_max(torch.tensor([-INF, 1.0, 2.0]), 0.5) == smooth_max(torch.tensor([1.0, 2.0]), 0.5)
    assert smooth_max(torch.tensor([-INF, -INF]), 0.5) == -INF


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_smooth_max_needs_a_positive_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature}: must be positive"):
        smooth_max(torch.zeros(2), temperature)
