"""The settings of a run that was started from Python, as the configuration that `train.py --config` takes."""

import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from softmax_regression.engine import Engine
from softmax_regression.runs.callbacks import BestCheckpoint
from softmax_regression.runs.checkpoint import plain
from softmax_regression.runs.class_path import class_path_of

TRAINER_SETTINGS = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "overfit_batches",
    "precision",
    "val_check_interval",
)
# What a Trainer has of these where nothing was given; of the others, the defaults of its arguments.
DEFAULTS = {
    "limit_test_batches": 1.0,
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "log_every_n_steps": 50,
    "precision": "32-true",
    "val_check_interval": 1.0,
}
# Callbacks that change no result, or that every run of `train.py` has.
NOT_RECORDED = (
    callbacks.Checkpoint,
    callbacks.LearningRateMonitor,
    callbacks.ModelSummary,
    callbacks.ProgressBar,
    Engine,
)
FINDERS = (BatchSizeFinder, LearningRateFinder)
FOUND = ("lr", "learning_rate", "batch_size")  # the arguments that they choose


def init_args(kind: type, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a class that it takes: its parent saves its own, too, which need not be among them."""
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    found = {}
    for name, value in hparams.items():
        if not name.startswith("_") and (takes_any or name in parameters):  # LightningCLI's own begin with _
            found[name] = value
    return found


def describe_run(trainer: Trainer, pl_module: LightningModule) -> tuple[str, list[str]]:
    """Return the configuration of a run as YAML, and what of the run it cannot say."""
    config: dict[str, Any] = {"trainer": _trainer_settings(trainer), "early_stopping": _early_stopping(trainer)}
    missing: list[str] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint):
            config["best_checkpoint"] = {"monitor": callback.monitor, "mode": callback.mode}
        elif _changes_results(callback):
            described = _described(callback, missing)
            if described:
                config["trainer"].setdefault("callbacks", []).append(described)
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    for name, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
        if part is None:
            continue
        given = {}
        for argument, value in init_args(type(part), part.hparams_initial).items():
            try:
                given[argument] = plain(value)
            except TypeError:
                missing.append(f"{name}.{argument}, a {type(value).__name__}")
        config[name] = {"class_path": class_path_of(type(part)), "init_args": given}
        if name == "data":
            seed = given.pop("seed", seed)  # linked there
    return yaml.safe_dump(config | {"seed_everything": seed}, sort_keys=False), missing


def _trainer_settings(trainer: Trainer) -> dict[str, Any]:
    """Return what was given to the Trainer and is no default."""
    parameters = inspect.signature(Trainer.__init__).parameters
    settings = {"max_epochs": trainer.max_epochs}
    for name in TRAINER_SETTINGS:
        value = getattr(trainer, name, None)
        usual = DEFAULTS.get(name, parameters[name].default)
        if value is not None and value != usual:
            settings[name] = getattr(value, "value", value)  # of an Enum
    return settings


def _early_stopping(trainer: Trainer) -> dict[str, Any]:
    for callback in trainer.early_stopping_callbacks:
        patience = 0 if callback.patience == sys.maxsize else callback.patience
        settings = {"monitor": callback.monitor, "patience": patience, "mode": callback.mode}
        return settings | {"min_delta": abs(float(callback.min_delta))}
    return {"patience": 0}


def _changes_results(callback: Callback) -> bool:
    if isinstance(callback, (*NOT_RECORDED, callbacks.EarlyStopping)):
        return False
    return not type(callback).__module__.startswith("softmax_regression.")


def _described(callback: Callback, missing: list[str]) -> dict[str, Any] | None:
    """Return a callback as the configuration has it, its arguments from attributes of the same names."""
    kind = type(callback)
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            arguments[name] = plain(getattr(callback, name))
        except (AttributeError, TypeError):
            missing.append(f"the callback {kind.__qualname__}, for its argument {name}")
            return None
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        missing.append(f"the callback {kind.__qualname__}, whose class is in no module")
        return None
    return {"class_path": class_path_of(kind), "init_args": arguments}


def with_found(config: str, trainer: Trainer, pl_module: LightningModule) -> str:
    """Return a configuration with the learning rate and the batch size that Lightning's finders have found."""
    if not any(isinstance(callback, FINDERS) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return config
    settings = yaml.safe_load(config)
    for group, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
        if part is None:
            continue
        arguments = settings.get(group, {}).setdefault("init_args", {})
        taken = inspect.signature(type(part)).parameters
        for name in FOUND:
            value = getattr(part, name, part.hparams.get(name))
            if name in taken and isinstance(value, int | float):
                arguments[name] = value
    return yaml.safe_dump(settings, sort_keys=False)


def drop_finders(trainer: Trainer) -> None:
    """Let a run that goes on keep what Lightning's finders have found as it began, instead of looking again."""
    trainer.callbacks[:] = [each for each in trainer.callbacks if not isinstance(each, FINDERS)]  # type: ignore[attr-defined]
