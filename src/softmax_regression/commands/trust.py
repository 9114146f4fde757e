"""A configuration names the classes that it wants: which ones it may name, decided before any is imported."""

import re
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

from softmax_regression.errors import InputError

# Of torch only what options of Lightning's classes take: torch.hub.load and its like run what they are given.
TRUSTED = (
    "lightning", "pytorch_lightning", "softmax_regression", "torch.distributed.algorithms", "torch.nn",
    "torch.optim", "torch.profiler",
)  # fmt: skip
MAX_ALIASES = 20  # of YAML anchors; hundreds of them are a bomb, which takes forever to unfold
_REFUSED = re.compile(r"(?:Parser key \"([\w.]+)\")?.*?Importing '([^']+)' is not allowed", re.DOTALL)


def enforce() -> None:
    """Let no option or configuration file of this process import another class, or come from a URL.

    jsonargparse holds every name that it is given against the list before it imports it, and then the place
    where the object was defined, wherever the name came from. Lightning lets it read URLs; this ends that.
    """
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=list(TRUSTED),
    )


def explain(message: str) -> str:
    """Put what jsonargparse says of an option into one line, and in few words if it refused a class."""
    if refused := _REFUSED.search(message):
        option, name = refused.groups()
        return (
            f"{option + ': ' if option else ''}class {name} is refused, for naming a class runs its module; "
            f"use one of {', '.join(TRUSTED)}"
        )
    return " ".join(message.split())


def check_arguments(args: Sequence[str]) -> None:
    """Check the configuration files that a command line names, before anything is made of them.

    Raises:
        InputError: One is missing, empty, no YAML, a bomb, or at a URL.
    """
    for before, arg in zip(("", *args), args, strict=False):
        option, _, value = arg.partition("=") if arg.startswith("--") else (before, "", arg)
        if option in ("--config", "-c") and value:
            check_file(value)


def check_file(path: str) -> None:
    """Check one configuration file, see `check_arguments`."""
    if "://" in path:
        raise InputError(
            f"{path}: configurations are read from files, not from URLs; download it and read it first"
        )
    try:
        if not S_ISREG(Path(path).stat().st_mode):
            raise OSError("no regular file")
        text = Path(path).read_text()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable configuration ({error}); give a YAML file like those in conf/"
        ) from error
    if not isinstance(_parse(text, path), dict):
        raise InputError(f"{path}: holds no options; give a YAML file like those in conf/")


def _parse(text: str, source: str) -> Any:
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        if aliases > MAX_ALIASES:
            raise InputError(f"{source}: {aliases} aliases, more than {MAX_ALIASES}; write them out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: not YAML ({' '.join(str(error).split())})") from error
