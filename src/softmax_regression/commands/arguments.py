"""A command line before it is parsed: its configuration files, their order, and the run that it names."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml

from softmax_regression.errors import InputError

_HERE = Path(__file__).parents[1]
CONF = next((c for c in (_HERE.parents[1] / "conf", _HERE / "conf") if c.is_dir()), _HERE / "conf")
MAX_ALIASES = 20  # of YAML anchors; hundreds of them are a bomb, which takes forever to unfold
PLACES = (
    "ckpt_path",
    "resume",
    "output",
    "data.images",
    "data.dirs",
)  # options that name files, never a class


def option(args: Sequence[str], name: str) -> str | None:
    """Return the last value that a command line gives an option, as `--name value` or `--name=value`."""
    values = [value for given, value in _pairs(args) if given == name]
    return values[-1] if values else None


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options with their values, and what follows a value under the option before it."""
    name = ""
    for i, arg in enumerate(args):
        if not arg.startswith("--"):
            yield name, arg
            continue
        name, found, value = arg[2:].partition("=")
        if found or i + 1 == len(args) or args[i + 1].startswith("--"):
            yield name, value


def arranged(args: Sequence[str]) -> list[str]:
    """Return a command line with its configuration files first, so that a flag wins wherever it stands."""
    files, rest = [], []
    i = 0
    while i < len(args):
        if args[i] in ("--config", "-c") and i + 1 < len(args):
            files += args[i : i + 2]
            i += 1
        else:
            (files if args[i].startswith("--config=") else rest).append(args[i])
        i += 1
    return [*rest[:1], *files, *rest[1:]]


def with_own_defaults(args: Sequence[str]) -> list[str]:
    """Return flags that let a class which the user names begin with its own defaults.

    jsonargparse would keep those of the class that it replaces: `--model Sub`, which has another default for
    lr, would train with that of SoftmaxRegression. Lightning's base classes, which have none, come between.
    """
    flags: list[str] = []
    for group, base in (("model", "LightningModule"), ("data", "LightningDataModule")):
        parts = [_parse(Path(file).read_text(encoding="utf-8"), file).get(group) for file in _files(args)]
        classes = [part.get("class_path") if isinstance(part, dict) else part for part in parts]
        classes += [option(args, group), option(args, f"{group}.class_path")]
        if named := list(filter(None, classes))[-1:]:
            flags += [f"--{group}", f"lightning.pytorch.{base}", f"--{group}", named[0]]
    return flags


def named_by_user(args: Sequence[str]) -> list[str]:
    """Return the texts in which a user names classes: flags, and the files of --config."""
    flags = [value for name, value in _pairs(args) if name not in (*PLACES, "config")]
    return flags + [Path(value).read_text(encoding="utf-8") for value in _files(args)]


def _files(args: Sequence[str]) -> list[str]:
    short = [value for before, value in zip(args, args[1:], strict=False) if before == "-c"]
    return [value for name, value in _pairs(args) if name == "config" and value] + short


def check_files(args: Sequence[str]) -> None:
    """Check the configuration files that a command line names, before anything is made of them.

    Raises:
        InputError: One is missing, empty, no YAML, a bomb, or at a URL.
    """
    for value in _files(args):
        check_file(value)


def check_file(path: str) -> None:
    """Check one configuration file, see `check_files`."""
    if "://" in path:
        raise InputError(
            f"{path}: configurations are read from files, not from URLs; download it and read it first"
        )
    try:
        if not S_ISREG(Path(path).stat().st_mode):
            raise OSError("no regular file")
        text = Path(path).read_text(encoding="utf-8")
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
