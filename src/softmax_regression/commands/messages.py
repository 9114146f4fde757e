"""Errors as short messages with exit codes; a bug keeps its traceback."""

import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from textwrap import shorten

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.errors import DivergedError, InputError, Interrupted, LostProcessError, StorageError

# What a message says of a class that was named, further in than the line with its name.
_OF_CLASS = re.compile(r"^( *)(?:- )?Problem with given class_path .*\n((?:\1 .*\n?|\n)+)", re.MULTILINE)
_KEY = re.compile(r'^(?: *- | *)Parser key "([^"]+)":$', re.MULTILINE)
# The first words of lines that give no reason.
NO_REASON = (
    "Does not validate against any of",
    "Subtypes:",
    "Errors:",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: [Namespace(",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
# What a reason has in it -> what to do.
REMEDIES = {
    "with name EarlyStopping": "; every run has an EarlyStopping, which you set by --early_stopping.monitor",
    "Option 'class_path' is not accepted": " beside other options; put these under init_args",
    "Expected a dot import path": "; name the class with its module, as mine.Net",
    "^Expected a (list|Sequence)": "; write a list as '[a, b]'",
    r"^No module named '\w+'$": "; it is neither in this folder nor installed",
}
_OPTION = re.compile(r"(?:unrecognized arguments: |ption ')-*([^\s=']+)")
_ABSENT = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_REFUSED = re.compile(r"Importing '([^']+)' is not allowed|import path format: (\S+\.<locals>\.\w+)")


def describe_error(error: BaseException, known: Callable[[], Iterable[str]]) -> tuple[str, int] | None:
    """Return the message and the exit code of an error; None for a bug, which keeps its traceback."""
    error = _own_cause(error)
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
        return f"error: {shorten_parser_error(str(error), known)}{_place(error)}", InputError.exit_code
    return None


def _is_about_options(error: BaseException) -> bool:
    """Return whether a library raised an error about the options it was given, as when two of them contradict."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = modules[-1]
    kinds = (ImportError, ValueError, TypeError, RuntimeError, AssertionError)
    if isinstance(error, MisconfigurationException):  # other packages raise it as Lightning does
        return True
    if isinstance(error, AttributeError):  # a module has no class of this name, or a model no part for a callback
        is_of_callback = modules[-2:] == ["lightning.pytorch.callbacks.finetuning", "torch.nn.modules.module"]
        return is_of_callback or module.startswith("jsonargparse.")
    if isinstance(error, AssertionError) and not str(error):
        return False
    of_options = ("lightning.", "jsonargparse.", "torch.optim.", "torch.nn.utils.prune")
    return isinstance(error, kinds) and module.startswith(of_options)


def _hook_of(error: BaseException) -> str | None:
    """Return the step or loader, such as `Own.predict_dataloader`, that raised an error; None if none did."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = frame.f_code.co_name
    is_hook = hasattr(LightningModule, name) or hasattr(LightningDataModule, name)
    return frame.f_code.co_qualname if is_hook else None


def _place(error: BaseException) -> str:
    """Return in which line of the user's own code the first cause of an error was raised, or nothing."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        path = Path(frame.f_code.co_filename)
        is_library = "site-packages" in path.parts or package == "softmax_regression"
        is_own = not is_library and package not in sys.stdlib_module_names
        place = f" ({path.name}, line {line})" if is_own else ""
    return place


def _own_cause(error: BaseException) -> BaseException:
    """Return the InputError of one of our classes if jsonargparse has wrapped it, else the error itself."""
    cause: BaseException | None = error
    while isinstance(error, ValueError | ArgumentError) and cause:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def shorten_parser_error(message: str, known: Callable[[], Iterable[str]]) -> str:
    """Return the name of an option and what is wrong with it; an unknown one is compared with the `known` ones."""
    names = []
    of_class = _OF_CLASS.search(message)
    while of_class:  # a class may be an argument of another one
        names += _KEY.findall(message[: of_class.start()])
        message = of_class[2]
        of_class = _OF_CLASS.search(message)
    names += _KEY.findall(message)
    reasons: list[str] = []
    for line in _KEY.sub("", message).splitlines():
        text = line.strip().removeprefix("- ")
        if text and not text.startswith(NO_REASON) and text not in reasons:
            reasons.append(text)
    if len(reasons) > 1 and reasons[1].startswith("Not a valid subclass of"):
        del reasons[1]
    name = ".".join(dict.fromkeys(names))
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", "; ".join(reasons)).replace("a typing.Literal", "one of ")
    reason = _with_remedy(name, reason, known)
    return f"{name}: {reason}" if name else reason


def _with_remedy(name: str, reason: str, known: Callable[[], Iterable[str]]) -> str:
    """Return a reason with what to do, where jsonargparse does not say it."""
    refused = _REFUSED.search(reason)
    if refused:
        path = refused[1] or refused[2]
        if path.startswith("__main__.") or refused[2]:
            why = "is in a script or notebook, or in a function; no command opens its runs until it is in a module"
            return f"class {path}: {why}"
        why = "it is of the standard library, or came along with a run; name one of your own modules that wraps it"
        return f"class {path} is refused: {why}"
    absent = _ABSENT.search(reason)
    if absent:
        module = sys.modules.get(absent[1])
        near = get_close_matches(absent[2], dir(module), n=1, cutoff=0.7)
        found = f"did you mean {absent[1]}.{near[0]}" if near else f"the module is {getattr(module, '__file__', None)}"
        return f"{absent[0]}; {found}"
    if "'NoneType' object has no attribute 'keys'" in reason:
        return "init_args is empty; give arguments there, or drop it"
    for part, remedy in REMEDIES.items():
        if re.search(part, reason):
            return f"{reason}{remedy}"
    unknown = _OPTION.search(reason)
    if unknown:
        option = f"{name}.{unknown[1]}"
        near = _near_options(option.removeprefix("."), {*known()} - {option})
        if near:
            return f"{reason}; did you mean --{' or --'.join(near)}"
        reason = f"{reason}; see --help"
        if not name:  # a word that belongs to no option
            reason = f"{reason}, and write a list as '[a, b]'"
    return reason


def _near_options(option: str, known: Iterable[str]) -> list[str]:
    """Return at most two known options that are similar to a mistyped one, or have its last word."""
    group, _, last = option.rpartition(".")
    similarity = {}
    for name in sorted(known):
        part = name.rpartition(".")[2]
        similarity[name] = SequenceMatcher(None, option, name).ratio()
        similarity[name] = max(similarity[name], SequenceMatcher(None, option, part).ratio())
        if name.startswith(group) and f"_{last}_" in f"_{part}_":
            similarity[name] += 1
    nearest = sorted(similarity, key=similarity.__getitem__, reverse=True)[:2]
    best = max(similarity.values(), default=0.0)
    least = min(1.0, max(0.8, best))  # the best one, or all that have the last word
    return [name for name in nearest if similarity[name] >= least]
