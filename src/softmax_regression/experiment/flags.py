"""A command line before it is parsed: the flags in it, their order, and the configuration files that they name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from softmax_regression.errors import InputError
from softmax_regression.files import reason

MAX_ALIASES = 20  # of YAML anchors; a file with hundreds of them can unfold to more than the memory holds
NAME_FILES = ("config", "ckpt_path", "resume", "output", "data.images", "data.dirs")  # flags that take paths


def _conf_folder() -> Path:
    """Return conf/ of the repository, or its copy in the installed package."""
    package = Path(__file__).parents[1]
    in_repository = package.parents[1] / "conf"
    if in_repository.is_dir():
        return in_repository
    return package / "conf"


CONF = _conf_folder()


class Flag(NamedTuple):
    """A flag, given as `--name value ...` or `--name=value`; words before the first flag have the name ""."""

    name: str
    values: list[str]
    words: list[str]  # as they were typed


def split_flags(args: Sequence[str]) -> list[Flag]:
    """Return the flags of a command line in their order."""
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


def without_flags(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command line without some flags."""
    return join_flags([flag for flag in split_flags(args) if flag.name not in names])


def sort_flags_after_files(args: Sequence[str]) -> list[str]:
    """Return flags in such an order that a flag wins over a file, wherever it stands.

    Files come first, then groups such as `--model mine.Net`, then single options such as `--model.lr 0.1`.
    """

    def rank(flag: Flag) -> int:
        if flag.name == "config":
            return 0
        return 2 if "." in flag.name else 1

    return join_flags(sorted(split_flags(args), key=rank))


def find_configurations(args: Sequence[str]) -> list[str]:
    """Return flags whose `--config smoke.yaml` is the file of that name in conf/ if there is none in this folder."""
    flags = []
    for flag in split_flags(args):
        if flag.name == "config" and flag.values:
            path = flag.values[0]
            shipped = CONF / path.removeprefix("conf/")
            if not Path(path).exists() and shipped.parent == CONF and shipped.is_file():
                path = str(shipped)
            check_configuration_file(path)
            flag = Flag("config", [path], ["--config", path])
        flags.append(flag)
    return join_flags(flags)


def reset_class_defaults(args: Sequence[str]) -> list[str]:
    """Return flags by which a class that the user names starts with its own defaults.

    jsonargparse would keep those of the class that it replaces: `--model Sub`, whose default of lr is another, would
    train with that of SoftmaxRegression. Lightning's base class, which has no defaults, is named in between.
    """
    words = []
    for group, base in (("model", "LightningModule"), ("data", "LightningDataModule")):
        named = None
        for options in _configurations(args):
            part = options.get(group)
            named = (part.get("class_path") if isinstance(part, dict) else part) or named
        named = flag_value(args, f"{group}.class_path") or flag_value(args, group) or named
        if named:
            words += [f"--{group}", f"lightning.pytorch.{base}", f"--{group}", str(named)]
    return words


def _configurations(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the content of each configuration file of a command line."""
    for flag in split_flags(args):
        if flag.name == "config" and flag.values:
            yield yaml.safe_load(Path(flag.values[0]).read_bytes())


def named_texts(args: Sequence[str]) -> list[str]:
    """Return the texts that may name classes: the values of flags, and the files that they name."""
    texts = []
    for flag in split_flags(args):
        for value in flag.values:
            texts.append(value)
            if value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file():
                texts.append(Path(value).read_text(encoding="utf-8", errors="replace"))
    return texts


def check_flags(args: Sequence[str]) -> None:
    """Refuse flags that take a path and are given an empty one."""
    for flag in split_flags(args):
        if flag.name in NAME_FILES and flag.values[:1] == [""]:
            raise InputError(f"--{flag.name} '': names nothing; give a path, or drop it")


def check_configuration_file(path: str) -> None:
    """Refuse what is no configuration file: a folder, a device, a URL, or a text that is none."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file (URLs are not read); give a YAML file like those in conf/")
    check_configuration(Path(path).read_bytes(), path)


def check_configuration(text: str | bytes, source: str) -> None:
    """Refuse a configuration that is no YAML, holds no options, or unfolds without end."""
    try:
        aliases = 0
        for event in yaml.parse(text):
            aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases")
        if not isinstance(yaml.safe_load(text), dict):
            raise ValueError("it holds no options")
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{source}: not a configuration ({reason(error)}); give a YAML file as in conf/") from error
