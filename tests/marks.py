"""Cases of parametrised tests of which some are quick, and the others run with `pytest -m slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any, name: str | None = None) -> Any:
    """A case that is slow."""
    return pytest.param(*values, marks=pytest.mark.slow, id=name)


def slow_but(quick: Iterable[str], cases: Iterable[str]) -> list[Any]:
    """All names of cases; those that are not quick are slow."""
    names = set(quick)
    parameters: list[Any] = []
    for name in cases:
        if name in names:
            names.remove(name)
            parameters.append(name)
        else:
            parameters.append(slow(name, name=name))
    assert not names, "no such case"
    return parameters
