"""Means of a few seeds, with 95 % intervals."""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (NIST e-Handbook, section 1.3.6.7.2).
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval, which is infinite for a single value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float] | Tensor) -> "Interval":
        """Return the mean of independent values (n,) and Student's interval, slightly too wide for n > 21."""
        values = torch.as_tensor(values, dtype=torch.float64)
        n = len(values)
        if n == 1:
            return cls(values.item(), inf)
        return cls(values.mean().item(), T_QUANTILES[min(n - 2, 19)] * values.std().item() / sqrt(n))

    @property
    def has_zero(self) -> bool:
        """Whether zero lies in the interval."""
        return abs(self.mean) <= self.half

    def __format__(self, sign: str) -> str:
        """Return mean and interval with four digits; the format `+` adds the sign of the mean."""
        if self.half == inf:
            return f"{self.mean:{sign}.4f} (one seed)"
        return f"{self.mean:{sign}.4f} ± {self.half:.4f}"

    def __str__(self) -> str:
        return format(self)
