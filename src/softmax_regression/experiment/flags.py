"""The words of a command line before jsonargparse parses them: flags, their order, and configuration files."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from softmax_regression.errors import InputError
from softmax_regression.files import reason

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf"  # of an installed package
if not CONF.is_dir():
    CONF = PACKAGE.parents[1] / "conf"  # of the repository
MAX_ALIASES = 20  # of YAML anchors; with hundreds of nested aliases a small file fills the memory
BASES = {"model": "LightningModule", "data": "LightningDataModule"}
PATH_FLAGS = ("config", "ckpt_path", "resume", "output", "data.images", "data.dirs")


class Flag(NamedTuple):
    """A flag and its values, `--name value ...` or `--name=value`; the name of words before the first flag is ""."""

    name: str
    values: list[str]
    words: list[str]  # of flag and values, as they were typed


def split_flags(args: Sequence[str]) -> list[Flag]:
    """Return the flags of a command line in order; an InputError if one lacks its value."""
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
        if flag.name in PATH_FLAGS and flag.values[:1] == [""]:
            raise InputError(f"--{flag.name} '': names nothing; give a path, or drop it")
        if "." in flag.name and not flag.values and not flag.name.endswith("help"):
            raise InputError(f"--{flag.name}: expected a value; give one, such as true")
    return flags


def join_flags(flags: Sequence[Flag]) -> list[str]:
    """Return the words of flags, as a command line."""
    words = []
    for flag in flags:
        words.extend(flag.words)
    return words


def flag_value(args: Sequence[str], name: str) -> str | None:
    """Return the value of a flag, the last one if it is given several times; None if it is not given."""
    value = None
    for flag in split_flags(args):
        if flag.name == name and flag.values:
            value = flag.values[0]
    return value


def find_command(args: Sequence[str], commands: Collection[str], expected: str) -> str:
    """Return the first word of a command line, which must be a command.

    Raises:
        InputError: It is no command; the message ends with `expected`.
    """
    if not args:
        raise InputError(f"no command was given{expected}")
    if args[0] in commands:
        return args[0]
    for word in args:
        if word in commands:
            moved = " ".join([word, *(each for each in args if each != word)])
            raise InputError(f"{args[0]}: put it behind the command\n  {moved}")
    near = difflib.get_close_matches(args[0], commands, n=1)
    meant = f"; did you mean {near[0]}" if near else ""
    raise InputError(f"{args[0]}: no such command{meant}{expected}")


def without_flag(args: Sequence[str], name: str) -> list[str]:
    """Return a command line without a flag."""
    return join_flags([flag for flag in split_flags(args) if flag.name != name])


def find_configurations(args: Sequence[str]) -> list[str]:
    """Return flags in which `--config smoke.yaml` is the path in conf/, unless there is such a file in this folder.

    They are sorted so that later ones win: configuration files, then groups such as `--model mine.Net`, then single
    options such as `--model.lr 0.1`.
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
    """Return flags that come before the user's, so that a class that the user names has its own defaults.

    Otherwise jsonargparse keeps the values of the class that is replaced: `--model Sub` would train with the `lr` of
    SoftmaxRegression. These flags first choose Lightning's base class, which has no parameters, and then the class.
    """
    words = []
    for group, value in named_classes(args).items():
        words += [f"--{group}", f"lightning.pytorch.{BASES[group]}", f"--{group}", value]
    return words


def named_classes(args: Sequence[str]) -> dict[str, str]:
    """Return the class names of `model` and `data` in the flags and configuration files of a command line."""
    named: dict[str, str] = {}
    for flag in split_flags(args):
        if not flag.values:
            continue
        given = {flag.name: flag.values[0]}
        if flag.name == "config":
            given = options_of(yaml.safe_load(Path(flag.values[0]).read_bytes()))
        for name, value in given.items():
            group = name.removesuffix(".class_path")
            beside = Path(flag.values[0]).parent / str(value)  # a file that a configuration names
            if group in BASES and value:
                named[group] = str(beside if flag.name == "config" and beside.is_file() else value)
    return named


def options_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration as a flat dictionary with keys such as `model.class_path` and `trainer.max_epochs`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= options_of(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif name != "init_args":
            found[f"{prefix}{name}"] = value
    return found


def named_texts(args: Sequence[str]) -> list[str]:
    """Return the texts that may name classes: the values of flags, and the content of YAML and JSON files in them."""
    texts = []
    for flag in split_flags(args):
        for value in flag.values:
            texts.append(value)
            if value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
                texts.append(Path(value).read_text(encoding="utf-8", errors="replace"))
    return texts


def check_configuration(text: str | bytes, source: str) -> None:
    """Refuse a configuration that is no YAML, holds no options, has too many aliases, or contains itself."""
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
