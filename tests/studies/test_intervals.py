import math

import pytest
import torch

from softmax_regression.studies.intervals import Interval


def test_the_interval_of_a_few_values_is_students() -> None:
    interval = Interval.of(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert interval.mean == 0.5
    assert interval.half == pytest.approx(4.303 * 0.25 / math.sqrt(3))
    assert f"{interval} {interval:+}" == f"{interval!s} +{interval!s}" == "0.5000 ± 0.6211 +0.5000 ± 0.6211"


def test_many_values_take_the_last_quantile() -> None:
    assert Interval.of(torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)).half == pytest.approx(
        2.086 * math.sqrt(25 / 99) / 10
    )


def test_one_value_has_no_interval_and_tells_nothing_from_zero() -> None:
    interval = Interval.of(torch.tensor([0.25], dtype=torch.float64))
    assert str(interval) == "0.2500 (one seed)"
    assert interval.has_zero
    assert not Interval.of(torch.tensor([0.25, 0.26], dtype=torch.float64)).has_zero
