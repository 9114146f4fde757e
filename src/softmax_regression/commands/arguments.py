"""A command line before it is parsed: its options and their order, its files, and what a user names in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from softmax_regression.errors import InputError
from softmax_regression.files import reason

_HERE = Path(__file__).parents[1]
CONF = next((c for c in (_HERE.parents[1] / "conf", _HERE / "conf") if c.is_dir()), _HERE / "conf")
MAX_ALIASES = 20  # of YAML anchors; hundreds of them are a bomb, which takes forever to unfold
PLACES = ("config", "ckpt_path", "resume", "output", "data.images", "data.dirs")  # name files, never a class


class Option(NamedTuple):
    """An option, as `--name value` or `--name=value`, with its values, and the words that it was given as."""

    name: str
    values: list[str]
    words: list[str]


def options(args: Sequence[str]) -> list[Option]:
    """Return the options of a command line, and what stands before the first one under no name."""
    found = [Option("", [], [])]
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append(Option(name[2:], [value] if equals else [], [word]))
        elif word.startswith("-c"):
            found.append(Option("config", [word[2:].lstrip("=")] if word != "-c" else [], [word]))
        else:
            found[-1].values.append(word)
            found[-1].words.append(word)
    return found


def option(args: Sequence[str], name: str) -> str | None:
    """Return the last value that a command line gives an option."""
    return next((o.values[0] for o in reversed(options(args)) if o.name == name and o.values), None)


def sort_flags_after_files(args: Sequence[str]) -> list[str]:
    """Return options so that a flag wins over a file wherever it stands: files, groups, then the rest."""
    ranked = sorted(options(args), key=lambda o: 0 if o.name == "config" else 1 if "." not in o.name else 2)
    return [word for option in ranked for word in option.words]


def reset_class_defaults(args: Sequence[str]) -> list[str]:
    """Return flags that let a class which the user names begin with its own defaults.

    jsonargparse would keep those of the class that it replaces: `--model Sub`, which has another default for
    lr, would train with that of SoftmaxRegression. Lightning's base classes, which have none, come between.
    """
    paths = [Path(o.values[0]) for o in options(args) if o.name == "config" and o.values]
    files, flags = [yaml.safe_load(path.read_bytes()) for path in paths], []
    for group, base in (("model", "LightningModule"), ("data", "LightningDataModule")):
        parts = [file.get(group) for file in files]
        named = [part.get("class_path") if isinstance(part, dict) else part for part in parts]
        named += [option(args, group), option(args, f"{group}.class_path")]
        for last in [name for name in named if name][-1:]:
            flags += [f"--{group}", f"lightning.pytorch.{base}", f"--{group}", last]
    return flags


def class_names_in(args: Sequence[str]) -> list[str]:
    """Return the texts in which a user names classes: flags, and the files that they name."""
    values = [value for o in options(args) if o.name not in PLACES[1:] for value in o.values]
    files = [Path(value) for value in values if value.endswith((".yaml", ".yml", ".json"))]
    return values + [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]


def check_paths(args: Sequence[str]) -> None:
    """Refuse options that name no file, and configurations that are none, before anything is made of them."""
    for name, values, _ in options(args):
        if name in PLACES and values[:1] == [""]:
            raise InputError(f"--{name} '': names nothing; give a path, or drop it")
        if name == "config" and values:
            check_file(values[0])


def check_file(path: str) -> None:
    """Refuse what is no configuration file: folders, devices and URLs, and see `check_text`."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file (URLs are not read); give a YAML file like those in conf/")
    check_text(Path(path).read_bytes(), path)


def check_text(text: str | bytes, source: str) -> None:
    """Refuse a configuration that is no YAML, holds no options, or is a bomb."""
    try:
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases")
        if not isinstance(yaml.safe_load(text), dict):
            raise ValueError("it holds no options")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source}: not a configuration ({reason(error)}); give a YAML file as in conf/") from error
