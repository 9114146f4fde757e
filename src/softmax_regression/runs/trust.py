"""Which classes a configuration may name: what came along with somebody's run may name few."""

import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from jsonargparse import set_parsing_settings

from softmax_regression.errors import InputError

# Of torch only what options of Lightning's classes take: torch.hub.load and its like run what they are given.
TRUSTED = (
    "lightning", "pytorch_lightning", "softmax_regression", "torchmetrics", "torch.distributed.algorithms",
    "torch.nn", "torch.optim", "torch.profiler",
)  # fmt: skip
_NAME = re.compile(r"(?<![\w./-])([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)+(?![\w/-])")


def own_modules() -> list[str]:
    """Return the user's modules and packages in the folder where the command runs."""
    here = Path.cwd()
    packages = [path.parent.name for path in here.glob("*/__init__.py")]
    return sorted(
        name for name in [*packages, *(path.stem for path in here.glob("*.py"))] if name.isidentifier()
    )


def enforce(named: Iterable[str] = ()) -> None:
    """Let no configuration import a class that neither the user named nor this project trusts.

    jsonargparse holds every name that it is given against the list before it imports it, and then the place
    where the object was defined, wherever the name came from. Lightning lets it read URLs; this ends that.

    Args:
        named: Texts of the user's own, flags and files, whose classes are trusted because they name them.
    """
    users = {found.group(1) for text in named for found in _NAME.finditer(text)} - {"jsonargparse"}
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *own_modules(), *sorted(users)],
    )


def find_class(path: str) -> type:
    """Import a class that a checkpoint names.

    Raises:
        InputError: It is neither this project's, a trusted package's nor in the user's own modules, or is not there.
    """
    module, _, name = path.rpartition(".")
    trusted = any(f"{path}.".startswith(f"{each}.") for each in (*TRUSTED, *own_modules()))
    if not trusted:
        raise InputError(
            f"class {path}: refused, for naming a class runs its module; copy its module into this folder "
            f"to use it, or use one of {', '.join(TRUSTED)}"
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"class {path}: not found ({error}); run the command where its module is") from error
    if not isinstance(found, type):
        raise InputError(f"class {path}: not a class; give a run of this project")
    return found
