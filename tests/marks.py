"""Cases of parametrised tests: quick ones, slow ones, and those of long tables, of which .ci/run takes a part.

`pytest -m slow` runs both kinds that are not quick.
"""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any, name: str | None = None) -> Any:
    """A case that is slow."""
    return pytest.param(*values, marks=pytest.mark.slow, id=name)


def table(*values: Any, name: str | None = None) -> Any:
    """A slow case of a long table, which .ci/run leaves out."""
    return pytest.param(*values, marks=(pytest.mark.slow, pytest.mark.table), id=name)


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
