"""The rooms of the package, and which of them may know which: read from the imports, lazy ones too."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "softmax_regression"
ONLY_UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
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


def room(module: Path) -> str:
    """The subpackage of a module, or the module itself where it lies flat."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(module: Path) -> list[str]:
    """Everything that a module imports, by its full name."""
    names = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                names.append(f"{node.module}.{alias.name}")
    return names


def test_a_room_imports_only_rooms_to_its_left() -> None:
    wrong = []
    for module in PACKAGE.rglob("*.py"):
        if room(module) not in KNOWS:  # __init__ and __main__ know everybody
            continue
        known = KNOWS[room(module)] | EVERYWHERE | {room(module)}
        for name in imported(module):
            parts = name.split(".")
            if parts[0] == "softmax_regression" and parts[1] not in known:
                wrong.append(f"{module}: {name}")
    assert wrong == []


def test_every_module_is_in_a_room() -> None:
    rooms = set()
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]:
        rooms.add(room(path))
    assert rooms - {"__init__", "__main__"} == set(KNOWS)


def test_no_module_imports_what_only_unix_has() -> None:
    found = set()
    for module in PACKAGE.rglob("*.py"):
        for name in imported(module):
            found.add(name.partition(".")[0])
    assert "lightning" in found
    assert not ONLY_UNIX & found
