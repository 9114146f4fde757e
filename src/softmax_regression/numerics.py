"""Softmax, LogSumExp and cross-entropy: as they are defined, and with the maximum subtracted.

Source: Dive into Deep Learning, classic edition, section 3.7. The use of log1p, and the way
to the bounds, are those of Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax
functions" (IMA J. Numer. Anal. 41, 2021).

The largest of n logits o_j is m = o_k. The naive forms fail once a logit exceeds log(finfo.max), 88.7 in
float32 and bfloat16 and 11.1 in float16, or all are so low that exp is 0, below -104.0, -92.9 and -17.3. The
stable forms take any finite logits, and -inf for a masked class beside a finite one.

Bounds are relative to the exact value y, unless called absolute, to first order in u = finfo.eps / 2, for
|y| >= finfo.tiny, with `exp` and `log1p` right to one ulp (unit in the last place). They grow with the gaps
m - o_j, as exp makes a relative error of a gap's rounding, up to log(1 / finfo.tiny): there exp underflows.
"""

import torch
from torch import Tensor


def naive_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(o_i) / sum_j exp(o_j), (..., n) -> (..., n): nan, for inf / inf or 0 / 0, where it fails."""
    e = x.exp()
    return e / e.sum(dim, keepdim=True)


def naive_cross_entropy(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """-log(naive_softmax(o)_y), as `cross_entropy`: also inf where the label's probability underflows."""
    return torch.nn.functional.nll_loss(naive_softmax(x, _classes(x)).log(), y, reduction=reduction)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(o_i - m) / sum_j exp(o_j - m), (..., n) -> (..., n); error at most (n + 4 + log n + m - o_i) u.

    >>> softmax(torch.tensor([1000.0, 1000.0, 1000.0]))
    tensor([0.3333, 0.3333, 0.3333])
    """
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """o_i - m - log(sum_j exp(o_j - m)), (..., n) -> (..., n); error at most (n + 3 + max_j(m - o_j)) u.

    >>> log_softmax(torch.tensor([0.0, -25.0]))  # torch.log_softmax: [0, -25]
    tensor([-1.3888e-11, -2.5000e+01])
    """
    m, rest = _split(x, dim)
    return x - m - rest


def logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    """LSE(o) = m + log(sum_j exp(o_j - m)), (..., n) -> (...); absolute error (|y| + (n + 3) log n) u.

    Of a row that is all -inf it is -inf, as in torch and scipy; `softmax` and `log_softmax` are nan there, as in torch.

    >>> logsumexp(torch.tensor([-torch.inf, -torch.inf]))
    tensor(-inf)
    """
    m, rest = _split(x, dim)
    return (m + rest).squeeze(dim)


def cross_entropy(x: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """-log_softmax(o)_y = m - o_y + log(sum_j exp(o_j - m)), in nats, with the error of `log_softmax`.

    Of logits (b, n, ...) of any floating dtype and labels (b, ...) int64, by the "mean" or "sum" over the labels, or
    "none". The gradient, softmax(o) - onehot(y), has an absolute error of at most 4 (n + 1) u.
    """
    return torch.nn.functional.nll_loss(log_softmax(x, _classes(x)), y, reduction=reduction)


def _classes(x: Tensor) -> int:
    """The dimension of the classes in logits (n,), (b, n) or (b, n, ...), as torch's losses have it."""
    return min(1, x.ndim - 1)


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest logit m = o_k, and LSE(o) - m = log1p(sum over j != k of exp(o_j - m))."""
    m, k = x.max(dim, keepdim=True)  # its term is 1; log1p adds it, so that it rounds no other one away
    shift = m.masked_fill(m.isinf(), 0)  # inf - inf is nan
    return m, (x - shift).exp().scatter(dim, k, 0).sum(dim, keepdim=True).log1p()
