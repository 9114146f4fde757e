"""The settings of a run that was started from Python, as the configuration that `train.py --config` takes."""

import inspect
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeGuard

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from softmax_regression.runs.callbacks import (
    BestCheckpoint,
    EarlyStopping,
    as_list,
    callbacks_of,
    leading_early_stopping,
)
from softmax_regression.runs.checkpoint import plain

# Attributes of a Trainer that are settings, and their values if the argument was not given.
TRAINER_SETTINGS = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_algorithm": None,
    "gradient_clip_val": None,
    "limit_test_batches": 1.0,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "log_every_n_steps": 50,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": None,
    "overfit_batches": 0.0,
    "precision": "32-true",
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": 1.0,
}
FINDERS = (BatchSizeFinder, LearningRateFinder)
# Callbacks that do not change the training, or whose results are recorded instead.
NOT_RECORDED = (callbacks.ModelSummary, callbacks.ProgressBar, *FINDERS)
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
FOUND = ("lr", "learning_rate", "batch_size")  # the arguments that the finders choose
# To LightningCLI, but not to YAML, `1e5` is a number: a text of this form needs quotation marks.
_EXPONENT = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$")
yaml.SafeDumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def class_path_of(kind: type) -> str:
    """Return the module and the name of a class, such as `mine.Net`, as configurations and flags take it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def parser_of(kind: type) -> ArgumentParser:
    """Return a parser for the parameters of a class, in the group `space`; it also finds those behind `**kwargs`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "space", fail_untyped=False)
    return parser


def parameters_of(kind: type) -> dict[str, Any]:
    """Return the parameters of a class with their defaults, None for a parameter without one."""
    return dict(parser_of(kind).get_defaults().as_dict().get("space", {}))


def _arguments(part: Any) -> dict[str, Any]:
    """Return the arguments with which a model or data module was made, as far as it has saved them or kept them.

    It keeps an argument as an attribute of the same name; all that it has saved may be in one argument. What else it
    has saved are arguments of its parent class.
    """
    parameters = inspect.signature(type(part)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    found = {}
    for name, value in part.hparams_initial.items():
        if not name.startswith("_") and (takes_any or name in parameters):  # LightningCLI adds names with _
            found[name] = value
    for name, parameter in parameters.items():
        if name not in found and name in vars(part):
            found[name] = vars(part)[name]
        elif getattr(part, "_hparams_name", None) == name and parameter.kind is not parameter.VAR_KEYWORD:
            found[name] = dict(part.hparams_initial)
    return found


def _describe_part(part: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration of a model or data module, and the names of the arguments that it lacks."""
    kind = type(part)
    arguments = _arguments(part)
    parameters = inspect.signature(kind).parameters
    known = set(parameters)
    with suppress(Exception):  # of a default that LightningCLI cannot take
        known.update(parameters_of(kind))
    settings: dict[str, Any] = {"class_path": class_path_of(kind), "init_args": {}}
    missing = []
    for name, value in arguments.items():
        where = settings["init_args"]
        if name not in known:
            where = settings.setdefault("dict_kwargs", {})
        try:
            where[name] = plain(value)
        except TypeError:
            missing.append(name)
    for name, parameter in parameters.items():
        if name not in arguments and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            missing.append(name)
    return settings, missing


def hyperparameters_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters for a checkpoint by which `load_from_checkpoint` makes a model or data module again.

    Its arguments may be objects, such as layers: they are made by the parser of LightningCLI, of which these are the
    keys. The module's own `hparams` have the objects themselves.

    Args:
        settings: Of the group `model` or `data` of a configuration.
    """
    arguments = {**settings.get("init_args", {}), **settings.get("dict_kwargs", {})}
    return {"_instantiator": INSTANTIATOR, "_class_path": settings["class_path"], **arguments}


def describe_run(trainer: Trainer, pl_module: LightningModule) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the configuration of a run whose model, data and Trainer were made in Python, and what it lacks.

    These are `missing_arguments` of model and data, named like their flags, such as `model.width`, and
    `missing_callbacks` in words, such as `the callback Average, for its argument weights`.
    """
    config: dict[str, Any] = {"trainer": _trainer_settings(trainer)}
    missing_callbacks = _describe_callbacks(trainer, pl_module, config)
    missing_arguments = []
    for group, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
        if part is not None:
            config[group], missing = _describe_part(part)
            missing_arguments += [f"{group}.{name}" for name in missing]
    config["seed_everything"] = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return config, {"missing_arguments": missing_arguments, "missing_callbacks": missing_callbacks}


def _describe_callbacks(trainer: Trainer, pl_module: LightningModule, config: dict[str, Any]) -> list[str]:
    """Add the callbacks of a run to its configuration; return descriptions of those that cannot be added."""
    missing = []
    own = []  # configurations of the user's callbacks
    config["early_stopping"] = {"patience": 0}
    of_module = [type(callback) for callback in as_list(pl_module.configure_callbacks())]
    candidates = [leading_early_stopping(trainer), *trainer.early_stopping_callbacks]
    stopping = next(filter(_is_plain_early_stopping, candidates), None)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) in of_module:  # the module will make it again
            continue
        if isinstance(callback, BestCheckpoint):
            config["best_checkpoint"] = {"monitor": callback.given_monitor, "mode": callback.given_mode}
        elif stopping and callback is stopping:
            config["early_stopping"] = _early_stopping(stopping)
        elif isinstance(callback, callbacks.Timer) and _argument(callback, "interval") == "step":
            config["trainer"]["max_time"] = _seconds(_argument(callback, "duration"))
        elif isinstance(callback, NOT_RECORDED):
            continue
        elif isinstance(callback, EarlyStopping) or not type(callback).__module__.startswith("softmax_regression."):
            try:
                arguments = _callback_arguments(callback, trainer)
                own.append({"class_path": class_path_of(type(callback)), "init_args": arguments})
            except ValueError as error:
                missing.append(f"the callback {type(callback).__qualname__}, {error}")
        elif hasattr(callback, "flag_group"):
            config[callback.flag_group] = _callback_arguments(callback, trainer)
    if own:
        config["trainer"]["callbacks"] = own
    return missing


def _trainer_settings(trainer: Trainer) -> dict[str, Any]:
    """Return the settings of the Trainer that are not the defaults."""
    settings: dict[str, Any] = {"max_epochs": trainer.max_epochs}
    for name, default in TRAINER_SETTINGS.items():
        value = getattr(trainer, name, default)
        if (type(value), value) != (type(default), default):  # 1 is one batch, 1.0 are all
            settings[name] = getattr(value, "value", value)  # of an Enum
    interval = getattr(trainer, "_val_check_time_interval", None)
    if interval is not None:
        settings["val_check_interval"] = _seconds(interval)
    if not trainer.validate_loop.inference_mode:
        settings["inference_mode"] = False
    if torch.are_deterministic_algorithms_enabled():
        settings["deterministic"] = "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True
    return settings


def _seconds(duration: float | None) -> dict[str, int] | None:
    """Return a duration in seconds in the form of a configuration."""
    return None if duration is None else {"seconds": int(duration)}


def _is_plain_early_stopping(callback: callbacks.EarlyStopping | None) -> TypeGuard[callbacks.EarlyStopping]:
    """Return whether the options of `early_stopping` in a configuration describe a callback completely."""
    if callback is None:
        return False
    thresholds = callback.stopping_threshold, callback.divergence_threshold
    return isinstance(callback, EarlyStopping) or thresholds == (None, None)


def _early_stopping(callback: callbacks.EarlyStopping) -> dict[str, Any]:
    patience = 0 if callback.patience == sys.maxsize else callback.patience
    monitor = getattr(callback, "given_monitor", callback.monitor)  # by which ours finds its state
    settings = {"monitor": monitor, "patience": patience, "mode": callback.mode}
    return settings | {"min_delta": abs(float(callback.min_delta))}


def _callback_arguments(callback: Callback, trainer: Trainer) -> dict[str, Any]:
    """Return the arguments of a callback, read from attributes of the same names.

    Raises:
        ValueError: They or its class cannot be written into a configuration; the message says why.
    """
    kind = type(callback)
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            arguments[name] = plain(_argument(callback, name))
        except (AttributeError, TypeError) as error:
            raise ValueError(f"for its argument {name}") from error
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise ValueError("whose class is in no module")
    if isinstance(callback, callbacks.EarlyStopping):
        arguments["min_delta"] = abs(arguments["min_delta"])  # which has the sign of the mode
    if isinstance(callback, callbacks.Timer):
        arguments["duration"] = _seconds(arguments["duration"])
    if isinstance(callback, callbacks.ModelCheckpoint) and callback.dirpath == f"{trainer.log_dir}/checkpoints":
        arguments["dirpath"] = None  # as where none was given
    return arguments


def _argument(callback: Callback, name: str) -> Any:
    """Return the value of an argument of a callback: of the attribute of the same name, or of that with _ before it."""
    return getattr(callback, name) if hasattr(callback, name) else getattr(callback, f"_{name}")


def add_found_values(config: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> None:
    """Add to a configuration the learning rate and the batch size that Lightning's finders have found."""
    if not callbacks_of(trainer, FINDERS):
        return
    for group, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
        if part is None:
            continue
        arguments = config.get(group, {}).setdefault("init_args", {})
        taken = inspect.signature(type(part)).parameters
        for name in FOUND:
            value = getattr(part, name, part.hparams.get(name))
            if name in taken and isinstance(value, int | float):
                arguments[name] = value
