"""Which classes may be named: a user may name any, what came along with somebody's run few."""

import re
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.errors import InputError

# Of torch only what options of Lightning's classes take: torch.hub.load and its like run what they are given.
TRUSTED = (
    "lightning", "softmax_regression", "torchmetrics",
    "torch.distributed.algorithms", "torch.nn", "torch.optim", "torch.profiler",
)  # fmt: skip
_NAME = re.compile(r"(?<![\w./-])(?:[^\W\d]\w*\.)+[^\W\d]\w*(?![\w/-])")
_NEVER = {"jsonargparse", *sys.stdlib_module_names}
_allowed: set[str] = set()  # so far: jsonargparse keeps a verdict until it is given another one


def refused(path: str) -> str:
    """Say why a class cannot be had by its name."""
    if path.startswith("__main__."):
        return f"class {path}: is in a script or notebook; no command opens its runs until it is in a module"
    why = "is refused, for naming a class runs its module; copy the module into this folder if you trust it"
    return f"class {path} {why}"


def own_modules(run: Path | None = None) -> list[str]:
    """Return the modules and packages of the user's own, which lie in the folder where the command runs.

    A folder without an `__init__.py` is none, such as logs/, nor is what lies in, or around, a run's folder.
    """
    here, run = Path.cwd(), run and run.resolve()
    paths = [*here.glob("*.py"), *(init.parent for init in here.glob("*/__init__.py"))]
    if run:
        paths = [each for each in paths if each not in (run, *run.parents) and run not in each.parents]
    specs = [PathFinder.find_spec(path.stem) for path in paths if path.stem.isidentifier()]
    # Not a library of the same name, which is what would be imported.
    return sorted(spec.name for spec in specs if spec and here in Path(spec.origin or "").parents)


def enforce(named: Iterable[str] = (), run: Path | None = None) -> None:
    """Let nothing be imported that neither the user names nor this project trusts.

    `named` are texts of the user's own, flags and files. Packages that they name are trusted or, where the
    configuration of the `run` (or checkpoint) that the command reads could name them too, no more of them than
    the class itself. jsonargparse holds each name against the list before it imports it, and then the place
    where the object was defined. Lightning lets it read URLs; this ends that.
    """
    names = [match.group().split(".") for text in named for match in _NAME.finditer(text)]
    users = {".".join(name if run or name[0] == "torch" else name[:1]) for name in names}
    allowed = {name for name in (*TRUSTED, *own_modules(run), *users) if name.split(".")[0] not in _NEVER}
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *(_allowed - allowed)],
        import_path_allowlist=sorted(allowed),
    )
    _allowed.update(allowed)


def path_of(class_: type) -> str:
    """Return the name by which `find_class` finds a class, and a command line takes it."""
    return f"{class_.__module__}.{class_.__qualname__}"


def find_class(path: str, run: Path | None = None) -> type[LightningModule | LightningDataModule]:
    """Import the class of a model or of data that a checkpoint names, or raise an InputError."""
    module, _, name = path.rpartition(".")
    if not any(f"{path}.".startswith(f"{each}.") for each in (*TRUSTED, *own_modules(run))):
        raise InputError(refused(path))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"class {path}: not found ({error}); run the command where its module is") from error
    if not isinstance(found, type) or not issubclass(found, LightningModule | LightningDataModule):
        raise InputError(f"class {path}: no model and no data; give a run of this project")
    return found
