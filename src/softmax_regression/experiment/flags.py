"""A command line before it is parsed: the flags in it, their order, and the configuration files that they name."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from softmax_regression.errors import InputError
from softmax_regression.files import reason

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf"  # where the package is installed; else the one of the repository
if not CONF.is_dir():
    CONF = PACKAGE.parents[1] / "conf"
MAX_ALIASES = 20  # of YAML anchors; a file with hundreds of them can unfold to more than the memory holds
BASES = {"model": "LightningModule", "data": "LightningDataModule"}
NAME_FILES = ("config", "ckpt_path", "resume", "output", "data.images", "data.dirs")  # flags that take paths


class Flag(NamedTuple):
    """A flag, given as `--name value ...` or `--name=value`; words before the first flag have the name ""."""

    name: str
    values: list[str]
    words: list[str]  # as they were typed


def split_flags(args: Sequence[str]) -> list[Flag]:
    """Return the flags of a command line in their order; an InputError says that one that takes a path has none."""
    flags = [Flag("", [], [])]
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flags.append(Flag(name[2:], [value] if equals else [], [word]))
        elif word == "-c":
            flags.append(Flag("config", [], [word]))
        elif word.startswith("-c"):
            flags.append(Flag("config", [word[2:].lstrip("=")], [word]))
        else:
            flags[-1].values.append(word)
            flags[-1].words.append(word)
    for flag in flags:
        if flag.name in NAME_FILES and flag.values[:1] == [""]:
            raise InputError(f"--{flag.name} '': names nothing; give a path, or drop it")
    return flags


def join_flags(flags: Sequence[Flag]) -> list[str]:
    """Return the words of flags, as a command line."""
    words = []
    for flag in flags:
        words.extend(flag.words)
    return words


def flag_value(args: Sequence[str], name: str) -> str | None:
    """Return the last value that a command line gives a flag; None if there is none."""
    value = None
    for flag in split_flags(args):
        if flag.name == name and flag.values:
            value = flag.values[0]
    return value


def find_command(args: Sequence[str], commands: Iterable[str], expected: str) -> str:
    """Return the command that a command line begins with.

    Raises:
        InputError: It begins with another word, or with flags; the message ends with what is expected.
    """
    names = list(commands)
    if not args:
        raise InputError(f"no command was given{expected}")
    if args[0] in names:
        return args[0]
    for word in args:
        if word in names:
            moved = " ".join([word, *(each for each in args if each != word)])
            raise InputError(f"{args[0]}: put it behind the command\n  {moved}")
    near = difflib.get_close_matches(args[0], names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{args[0]}: no such command{meant}{expected}")


def without_flag(args: Sequence[str], name: str) -> list[str]:
    """Return a command line without a flag."""
    return join_flags([flag for flag in split_flags(args) if flag.name != name])


def find_configurations(args: Sequence[str]) -> list[str]:
    """Return flags with `--config smoke.yaml` as the file in conf/ if there is none of that name in this folder.

    They are in such an order that a flag wins over a file wherever it stands: files come first, then groups such as
    `--model mine.Net`, then single options such as `--model.lr 0.1`.
    """
    flags = []
    for flag in split_flags(args):
        if flag.name == "config" and flag.values:
            path, *others = flag.values
            shipped = CONF / path.removeprefix("conf/")
            if not Path(path).exists() and shipped.parent == CONF and shipped.is_file():
                path = str(shipped)
            if not Path(path).is_file():
                raise InputError(f"{path}: no such file (URLs are not read); give a YAML file like those in conf/")
            check_configuration(Path(path).read_bytes(), path)
            flag = Flag("config", [path], ["--config", path, *others])
        flags.append(flag)
    flags.sort(key=lambda flag: (flag.name != "config", "." in flag.name))
    return join_flags(flags)


def reset_class_defaults(args: Sequence[str]) -> list[str]:
    """Return flags by which a class that the user names starts with its own defaults.

    jsonargparse would keep those of the class that it replaces: `--model Sub`, whose default of lr is another, would
    train with that of SoftmaxRegression. Lightning's base class, which has no defaults, is named in between.
    """
    words = []
    for group, value in named_classes(args).items():
        words += [f"--{group}", f"lightning.pytorch.{BASES[group]}", f"--{group}", value]
    return words


def named_classes(args: Sequence[str]) -> dict[str, str]:
    """Return the classes of model and data that a command line names, in flags or in files."""
    named: dict[str, str] = {}
    for flag in split_flags(args):
        if not flag.values:
            continue
        given = {flag.name: flag.values[0]}
        if flag.name == "config":
            given = options_of(yaml.safe_load(Path(flag.values[0]).read_bytes()))
        for name, value in given.items():
            group = name.removesuffix(".class_path")
            if group in BASES and value:
                named[group] = str(value)
    return named


def options_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what a configuration says, by names such as `model.class_path`, `model.lr` and `trainer.max_epochs`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= options_of(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif name != "init_args":
            found[f"{prefix}{name}"] = value
    return found


def named_texts(args: Sequence[str]) -> list[str]:
    """Return the texts that may name classes: the values of flags, and the files that they name."""
    texts = []
    for flag in split_flags(args):
        for value in flag.values:
            texts.append(value)
            if value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
                texts.append(Path(value).read_text(encoding="utf-8", errors="replace"))
    return texts


def check_configuration(text: str | bytes, source: str) -> None:
    """Refuse a configuration that is no YAML, holds no options, or unfolds without end."""
    try:
        aliases = 0
        for event in yaml.parse(text):
            aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases")
        config = yaml.safe_load(text)
        json.dumps(config, default=str)  # refuses one that contains itself
        if not isinstance(config, dict):
            raise ValueError("it holds no options")
    except (ValueError, TypeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source}: not a configuration ({reason(error)}); give a YAML file as in conf/") from error
