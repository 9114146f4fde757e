"""A configuration names the classes that it wants: which ones it may name, checked before any is imported."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from softmax_regression.errors import InputError

TRUSTED = {"lightning", "pytorch_lightning", "torch", "softmax_regression"}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def check_arguments(args: Sequence[str]) -> None:
    """Check a command line, and the configuration files that it names, before anything is made of them.

    Raises:
        InputError: A configuration is missing, empty, no YAML or at a URL, or a class is of another package.
    """
    for before, arg in zip(("", *args), args, strict=False):
        option, _, value = arg.partition("=") if arg.startswith("--") else (before, "", arg)
        if option in ("--config", "-c"):
            if value:
                check_file(value)
        elif option.startswith("--trainer"):
            check_value(_parse(value, option), option)


def check_file(path: str) -> None:
    """Check one configuration file, see `check_arguments`."""
    if "://" in path:
        raise InputError(
            f"{path}: configurations are read from files, not from URLs; download it and read it first"
        )
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a readable configuration ({error}); give a YAML file like those in conf/"
        ) from error
    config = _parse(text, path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no options; give a YAML file like those in conf/")
    check_value(config.get("trainer"), path)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not YAML ({' '.join(str(error).split())})") from error


def check_value(value: Any, source: str) -> None:
    """Refuse a value in which any string names something importable from an untrusted package."""
    for text in _strings(value):
        if text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file():
            check_value(_parse(Path(text).read_text(), text), text)
        elif _DOTTED.fullmatch(text) and (root := text.split(".")[0]) not in TRUSTED and _exists(root):
            raise InputError(
                f"{source}: class {text} is refused, for naming a class runs its module; "
                f"use one of {', '.join(sorted(TRUSTED))}"
            )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _exists(root: str) -> bool:
    """Whether a top-level module of that name could be imported; it is looked for, not run."""
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return True
