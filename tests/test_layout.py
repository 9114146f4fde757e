"""The rooms of the package, and which of them may know which: read from the imports, lazy ones too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "softmax_regression"
EVERYWHERE = {"errors", "files"}  # what all may use
KNOWS: dict[str, set[str]] = {  # room -> the rooms to its left that it may know
    "errors": set(),
    "files": set(),
    "numerics": set(),
    "metrics": set(),
    "engine": set(),
    "classifier": {"metrics"},
    "model": {"classifier", "numerics"},
    "data": set(),
    "runs": {"metrics", "engine", "data"},
    "figures": {"data", "runs"},
    "experiment": {"model", "engine", "data", "runs", "figures"},
    "reports": {"metrics", "classifier", "model", "engine", "data", "runs", "figures", "experiment"},
    "studies": {
        "numerics",
        "metrics",
        "classifier",
        "model",
        "engine",
        "data",
        "runs",
        "figures",
        "experiment",
        "reports",
    },
    "commands": {"classifier", "model", "engine", "data", "runs", "figures", "experiment", "studies", "reports"},
}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in KNOWS]


def room(module: Path) -> str:
    """The subpackage of a module, or the module itself where it lies flat."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(module: Path) -> Iterator[str]:
    """The rooms that a module imports anything of."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "softmax_regression":
                found = rest.partition(".")[0]
                assert found in KNOWS, f"{module}: imports from {name}, which is no room"
                yield found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_knows_only_rooms_to_its_left(module: Path) -> None:
    strangers = set(imported(module)) - KNOWS[room(module)] - EVERYWHERE - {room(module)}
    assert not strangers


def test_every_module_is_in_a_room() -> None:
    flat = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert flat | rooms == set(KNOWS)
