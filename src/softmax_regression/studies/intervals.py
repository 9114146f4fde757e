"""Means with 95 % intervals, from a few seeds."""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import mean, stdev
from typing import NamedTuple

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (NIST e-Handbook, section 1.3.6.7.2).
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval, infinite if there is only one value."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the mean of independent values and Student's interval, a little wide beyond 21 values."""
        n = len(values)
        return cls(mean(values), T_QUANTILES[min(n - 2, 19)] * stdev(values) / sqrt(n) if n > 1 else inf)

    @property
    def has_zero(self) -> bool:
        """Whether the data do not tell the mean from zero."""
        return abs(self.mean) <= self.half

    def __format__(self, sign: str) -> str:
        """Give four digits, `+` also the sign; of one value no interval."""
        return f"{self.mean:{sign}.4f}" + (f" ± {self.half:.4f}" if self.half < inf else " (one seed)")

    def __str__(self) -> str:
        return format(self)
