"""Errors as short messages with exit codes; a bug keeps its traceback."""

import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from types import ModuleType

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError

_KEY = re.compile(r'Parser key "([^"]+)".*:\s*')
# The first words of a message of jsonargparse that repeats the message of its cause, an error further in.
REPEATS_CAUSE = ("Does not validate against any of", "Problem with given class_path", "- Expected a path but")
IN_SCRIPT = "is in a script or notebook, or in a function; no command opens its runs until it is in a module"
# What a reason has in it -> what to do.
REMEDIES = {
    "with name EarlyStopping": "; every run has an EarlyStopping, which you set by --early_stopping.monitor",
    "Option 'class_path' is not accepted": " beside other options; put these under init_args",
    "Expected a dot import path": "; name the class with its module, as mine.Net",
    "Expected a list": "; write a list as '[a, b]'",
    "Expected a Sequence": "; write a list as '[a, b]'",
    "<locals>": f": {IN_SCRIPT}",
    "loaded state dict": "; let configure_optimizers make all parameter groups that the run had when it was saved",
}
LIBRARIES = (  # that check what they are given, or call it, as the engine calls hooks in Lightning's place
    "lightning.",
    "softmax_regression.engine.",
    "torch.distributed.distributed_c10d",
    "torch.nn.parallel.distributed",
    "torch.nn.utils.prune",
    "torch.optim.",
    "torch.utils.data.",
)
_OPTION = re.compile(r"(?:unrecognized arguments: |ption ')-*([^\s=']+)")
_REFUSED = re.compile(r"Importing '(\S+)' is not allowed")


def describe_error(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return the message and the exit code of an error; None for a bug, which keeps its traceback."""
    causes = _causes(error)
    if isinstance(error, ValueError | ArgumentError):  # jsonargparse has wrapped what one of our classes raised
        error = next((cause for cause in causes if isinstance(cause, InputError)), error)
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, InputError | DivergedError | LostProcessError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):  # a StorageError, or of a library that reads or writes files
        return f"error: {error}", StorageError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return shorten(f"error: a checkpoint of another model: {error}", 400), InputError.exit_code
    if isinstance(error, NotImplementedError) and _hook_of(error):
        return f"error: {_hook_of(error)} is not implemented; define it, or name another class", InputError.exit_code
    if isinstance(error, ArgumentError) or _is_about_options(error):
        return f"error: {shorten_parser_error(error, known)}{_place(causes[-1])}", InputError.exit_code
    return None


def _is_about_options(error: BaseException) -> bool:
    """Return whether a library raised an error about the options it was given, as when two of them contradict."""
    if isinstance(error, MisconfigurationException):  # other packages raise it as Lightning does
        return True
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(module.startswith("jsonargparse.") for module in modules):  # it imports and makes what options name
        return isinstance(error, Exception)
    if modules[-2:] == ["lightning.pytorch.callbacks.finetuning", "torch.nn.modules.module"]:
        return isinstance(error, AttributeError)  # the model has no part for a callback
    if isinstance(error, AssertionError) and not str(error):
        return False
    kinds = (ImportError, ValueError, TypeError, RuntimeError, AssertionError)
    return isinstance(error, kinds) and modules[-1].startswith(LIBRARIES)


def _hook_of(error: BaseException) -> str | None:
    """Return the step or loader, such as `Own.predict_dataloader`, that raised an error; None if none did."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = frame.f_code.co_name
    is_hook = hasattr(LightningModule, name) or hasattr(LightningDataModule, name)
    return frame.f_code.co_qualname if is_hook else None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, the first cause last."""
    causes = []
    cause: BaseException | None = error
    while cause:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _place(error: BaseException) -> str:
    """Return in which line of the user's own code an error was raised, or nothing."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        path = Path(frame.f_code.co_filename)
        is_library = "site-packages" in path.parts or package == "softmax_regression"
        is_own = not is_library and package not in sys.stdlib_module_names
        place = f" ({path.name}, line {line})" if is_own else ""
    return place


def shorten_parser_error(error: BaseException, known: Callable[[], Iterable[str]]) -> str:
    """Return the name of an option and what is wrong with it; an unknown one is compared with the `known` ones.

    jsonargparse raises an error for each level of nested options, which repeats the message of the error within.
    """
    names: dict[str, None] = {}
    outer = ""
    reason = str(error)
    while True:
        key = _KEY.match(reason)
        if key:
            names[key[1]] = None
            reason = reason[key.end() :]
        if error.__cause__ is None or not reason.lstrip().startswith(REPEATS_CAUSE):
            break
        outer = reason
        error = error.__cause__
        reason = str(error)
    if reason.startswith("Expected") and "Errors:" in outer:
        reason = _reasons_of_types(outer)
    reason = " ".join(reason.split()).replace("a typing.Literal", "one of ")
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason)
    name = ".".join(names)
    reason = _with_remedy(name, reason, error, known)
    return f"{name}: {reason}" if name else reason


def _reasons_of_types(message: str) -> str:
    """Return the reason for each type that an option may have, but None, and the value, out of their message."""
    errors, _, value = message.partition("Errors:")[2].partition("Given value type:")
    reasons = []
    for reason in map(str.strip, re.split(r"\n {1,2}- ", errors)[1:]):  # one space fewer if the value is empty
        if "NoneType" not in reason and reason not in reasons:
            reasons.append(reason)
    value = value.partition("Given value: ")[2]
    if not value.startswith(("Namespace(", "[Namespace(", "NestedArg(")):
        reasons.append(f"Given value: {value}")
    return "; ".join(reasons)


def _with_remedy(name: str, reason: str, error: BaseException, known: Callable[[], Iterable[str]]) -> str:
    """Return the reason of an error with what to do, where jsonargparse does not say it."""
    refused = _REFUSED.search(reason)
    if refused and refused[1].startswith("__main__."):
        return f"class {refused[1]}: {IN_SCRIPT}"
    if refused:
        why = "it is of the standard library, or came along with a run; name one of your own modules that wraps it"
        return f"class {refused[1]} is refused: {why}"
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{reason}; it is neither in this folder nor installed"
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        near = get_close_matches(str(error.name), dir(error.obj), n=1, cutoff=0.7)
        if near:
            return f"{reason}; did you mean {error.obj.__name__}.{near[0]}"
        return f"{reason}; the module is {error.obj.__file__}"
    if "'NoneType' object has no attribute 'keys'" in reason:
        return "init_args is empty; give arguments there, or drop it"
    for part, remedy in REMEDIES.items():
        if part in reason:
            return f"{reason}{remedy}"
    unknown = _OPTION.search(reason)
    if unknown is None:
        return reason
    option = f"{name}.{unknown[1]}"
    similar = _similar_options(option.removeprefix("."), {*known()} - {option})
    if similar:
        return f"{reason}; did you mean --{' or --'.join(similar)}"
    if name:
        return f"{reason}; see --help"
    return f"{reason}; see --help, and write a list as '[a, b]'"  # a word that belongs to no option


def _similar_options(option: str, known: Iterable[str]) -> list[str]:
    """Return the known options that have the last word of a mistyped one, at most two, or else one that is similar."""
    group, _, last = option.rpartition(".")
    names: dict[str, str] = {}  # each name, and what is behind its last dot -> the name
    same_word = []
    for name in sorted(sorted(known), key=len):
        part = name.rpartition(".")[2]
        names[part] = names[name] = name
        if name.startswith(group) and f"_{last}_" in f"_{part}_":
            same_word.append(name)
    similar = get_close_matches(option, names, n=1, cutoff=0.8)
    return same_word[:2] or [names[text] for text in similar]
