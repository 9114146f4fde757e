"""Softmax, LogSumExp and cross-entropy: as they are defined, and as they can be computed.

Source: Dive into Deep Learning, "Concise Implementation of Softmax Regression"; error analysis after
Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (IMA J. Numer.
Anal. 41, 2021).

Here o_j are the n logits, m is the largest, LSE is LogSumExp. The naive forms fail once a logit exceeds
log(finfo.max), 88.7 in float32 and 11.1 in float16, or all are far below 0. The stable forms take any finite
logits, and -inf for a masked class; two or more that are all -inf give what torch gives.

Error bounds are relative to the exact value y, to first order in u = finfo.eps / 2, for |y| >= finfo.tiny,
with `exp` and `log1p` right to one ulp. They do not grow with the logits, as those of the usual code do, for
what rounding loses in o_j - m is put back. float16 and bfloat16 are computed in float32 and rounded once, to
within u |y|.
"""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def naive_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(o_i) / sum_j exp(o_j), as defined: (..., n) -> (..., n).

    nan (inf / inf) when a logit exceeds log(finfo.max), nan (0 / 0) when every exponential underflows.
    """
    e = x.exp()
    return e / e.sum(dim, keepdim=True)


def naive_log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of `naive_softmax`, (..., n) -> (..., n): also -inf where a probability underflows."""
    return naive_softmax(x, dim).log()


def naive_logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    """log(sum_j exp(o_j)), as defined, (..., n) -> (...): infinite where the sum overflows or underflows."""
    return x.exp().sum(dim).log()


def naive_cross_entropy(x: Tensor, y: Tensor, reduction: Reduction = "mean", dim: int = -1) -> Tensor:
    """Minus the logarithm of the label's `naive_softmax`; arguments as for `cross_entropy`."""
    return _pick(naive_log_softmax(x, dim), y, reduction, dim)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(o_i - m) / sum_j exp(o_j - m): no exponential exceeds 1 and one is 1, so nothing overflows.

    Args:
        x: Logits, (..., n), any floating dtype.
        dim: The dimension of the n classes.

    Returns:
        Probabilities, shape and dtype of x, with a relative error of at most (n + 6) u.

    >>> softmax(torch.tensor([1000.0, 1000.0, 1000.0]))
    tensor([0.3333, 0.3333, 0.3333])
    """
    *_, gaps, lost = _gaps(_wide(x), dim)
    e = _exp(gaps, lost)
    return (e / e.sum(dim, keepdim=True)).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """o_i - m - log(sum_j exp(o_j - m)), (..., n) -> (..., n); relative error at most (n + 5) u.

    The largest logit puts a 1 into the sum; left out, with log1p for log, it cannot swallow the others.

    >>> log_softmax(torch.tensor([0.0, -25.0]))  # torch.log_softmax: [0, -25]
    tensor([-1.3888e-11, -2.5000e+01])
    """
    _, k, gaps, lost = _gaps(_wide(x), dim)
    return (gaps + (lost - _rest(k, gaps, lost, dim))).to(x.dtype)


def logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    """LSE(o) = m + log(sum_j exp(o_j - m)), (..., n) -> (...); error at most (|y| + (n + 3) log n) u."""
    m, k, gaps, lost = _gaps(_wide(x), dim)
    rest = _rest(k, gaps, lost, dim).where(m.isfinite(), 0.0)
    return (m + rest).squeeze(dim).to(x.dtype)


def logsumexp_shifted(x: Tensor, c: float, dim: int = -1) -> Tensor:
    """LSE(o) = c + log(sum_j exp(o_j - c)), (..., n) -> (...); for any c with m - c < log(finfo.max)."""
    return c + naive_logsumexp(x - c, dim)


def lse0(x: Tensor, dim: int = -1) -> Tensor:
    """LSE of (0, o_1, ..., o_n), (..., n) -> (...): strictly convex, where LSE is flat along (1, ..., 1)."""
    return logsumexp(torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x], dim), dim)


def smooth_max(x: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """T LSE(o / T), (..., n) -> (...): between m and m + T log n, so the maximum as T -> 0.

    Its gradient is softmax(o / T), which tends to the one-hot argmax.

    Raises:
        ValueError: The temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive; the limit at 0 is max")
    z = _wide(x)
    m = z.detach().amax(dim, keepdim=True)
    m = m.where(m.isfinite(), 0.0)  # subtracted before the division, which could overflow
    return (m.squeeze(dim) + temperature * logsumexp((z - m) / temperature, dim)).to(x.dtype)


def cross_entropy(x: Tensor, y: Tensor, reduction: Reduction = "mean", dim: int = -1) -> Tensor:
    """-log_softmax(o)[y] = m - o_y + log(sum_j exp(o_j - m)); relative error at most (n + 5) u an example.

    The gradient, softmax(o) - onehot(y), has relative error at most 2 n (n + 3) u, even as p_y -> 1.

    Args:
        x: Logits, (..., n), any floating dtype.
        y: Labels, (...), int64, from 0 to n - 1.
        reduction: "mean" or "sum" over all examples, or "none".
        dim: The dimension of the n classes.

    Returns:
        The loss in nats, dtype of x: a scalar, or (...) for "none".

    >>> cross_entropy(torch.tensor([[0.0, -25.0]]), torch.tensor([0]))  # torch: 0
    tensor(1.3888e-11)
    """
    return _pick(log_softmax(_wide(x), dim), y, reduction, dim).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """The same values, in float32 at least."""
    return x.float() if x.dtype.itemsize < 4 else x


def _gaps(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest logit m, its index k, the gaps o_j - m, and what their rounding lost (Knuth's TwoSum).

    Gap k is a constant 0 (nan if m is infinite): o_k counts through m alone, so no part of its gradient
    cancels.
    """
    m, k = x.max(dim, keepdim=True)
    gaps = x - m
    with torch.no_grad():
        v = gaps - x
        lost = ((x - (gaps - v)) - (m + v)).nan_to_num()  # nan where a gap is infinite
    return m, k, gaps.scatter(dim, k, (m - m).detach()), lost


def _exp(gaps: Tensor, lost: Tensor) -> Tensor:
    """exp(gaps + lost), to first order in lost."""
    e = gaps.exp()
    return e.addcmul(e, lost)


def _rest(k: Tensor, gaps: Tensor, lost: Tensor, dim: int) -> Tensor:
    """LSE(o) - m = log1p(sum over j != k of exp(o_j - m)), between 0 and log n."""
    return _exp(gaps, lost).scatter(dim, k, 0.0).sum(dim, keepdim=True).log1p()


def _pick(log_p: Tensor, y: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """The loss of the labels y, from log-probabilities."""
    loss = -log_p.gather(dim, y.unsqueeze(dim)).squeeze(dim)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
