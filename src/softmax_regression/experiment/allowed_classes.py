"""The classes that a configuration may name; jsonargparse checks a name before it imports anything.

A configuration may name classes of installed packages, of this one, and of the user's own modules; never those of the
standard library, nor of modules inside or around the folder of the run whose configuration is read.
"""

import pkgutil
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import set_parsing_settings

DENIED = ("*", "torch.hub")  # everything that is not allowed; torch.hub downloads and runs code
_TOP_LEVEL_NAME = re.compile(r"(?<![\w./-])([^\W\d]\w*)\.[^\W\d]")
_allowed: set[str] = set()  # all names allowed so far: jsonargparse keeps those of an earlier command


def allow_classes(texts: Iterable[str] = (), run: Path | None = None) -> None:
    """Tell jsonargparse which classes the flags and configurations of a command may name.

    Args:
        texts: The flags and configurations; they may name packages that `pkgutil` does not list.
        run: The folder of the run, or the checkpoint, whose configuration is read.
    """
    names = {module.name for module in pkgutil.iter_modules()}
    for text in texts:
        names.update(_TOP_LEVEL_NAME.findall(text))
    allowed = {name for name in names if _is_allowed(name, run)}
    set_parsing_settings(
        config_read_mode_urls_enabled=False,  # LightningCLI lets configurations be read from URLs
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=[*DENIED, *(_allowed - allowed)],
        import_path_allowlist=sorted(allowed),
    )
    _allowed.update(allowed)


def _is_allowed(name: str, run: Path | None) -> bool:
    """Return whether a top-level module is neither of the standard library nor of the folder of the run."""
    if not name.isidentifier() or name in sys.stdlib_module_names or name in ("jsonargparse", "__main__"):
        return False
    if run is None:
        return True
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(name)
    if spec is None:
        return False
    folder = run.resolve()
    for place in filter(None, [spec.origin, *(spec.submodule_search_locations or ())]):
        path = Path(place).resolve()
        if path == folder or path in folder.parents or folder in path.parents:
            return False
    return True
