"""Trains any LightningModule as `fit` does, one at a time; its scores are the metrics that it logs."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.studies.learning import Scores, Watcher

NOT_SCORES = ("epoch", "step", "lr")  # which a module may log beside its scores
Kind = type[Any]  # of a model or of data


def parser_of(kind: Kind) -> ArgumentParser:
    """Return a parser of what a class is made with, in the group `space`; parameters of `**kwargs` are known, too."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "space", fail_untyped=False)
    return parser


def parameters_of(kind: Kind) -> dict[str, Any]:
    """Return the parameters of a class with their defaults; None where one has none."""
    defaults = parser_of(kind).get_defaults()
    if "space" not in defaults:
        return {}
    return dict(vars(defaults.space))


def make(kind: Kind, params: Mapping[str, Any]) -> Any:
    """Make an object with those of the parameters that its class has, parsed as on a command line."""
    known = parameters_of(kind)
    if not known:
        return kind()
    own = {name: value for name, value in params.items() if name in known}
    parser = parser_of(kind)
    return parser.instantiate(parser.parse_object({"space": own})).space


def make_model(model: type[LightningModule], params: Mapping[str, Any], seed: int) -> LightningModule:
    """Make a model with the initial weights of a seed, which seeds every generator of the process."""
    seed_everything(seed, verbose=False)
    module: LightningModule = make(model, params)
    return module


def train(
    module: LightningModule, data: Any, epochs: int, watcher: Watcher | None = None, val: Any = None, **options: Any
) -> tuple[Trainer, Scores]:
    """Train a module on a data module, or on a loader and `val`.

    Returns:
        The Trainer, and what the module had logged at the end of each epoch: metric -> epochs.
    """
    recorder = ScoreRecorder(watcher)
    trainer = new_trainer(max_epochs=epochs, callbacks=[Engine(), recorder, *options.pop("callbacks", [])], **options)
    trainer.fit(module, data, val)
    return trainer, recorder.scores


def new_trainer(**options: Any) -> Trainer:
    """Return a Trainer for one device, without logger, progress bar and summary."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it names the devices each time
    return Trainer(
        devices=1,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def check_monitor(monitor: str, build: Callable[[], tuple[LightningModule, Any, Any]]) -> None:
    """Refuse a monitor that a module does not log in one minibatch of training and one of validation.

    Args:
        monitor: Name of the metric.
        build: Returns the module, its training data and its validation data, see `train`.

    Raises:
        InputError: The module logs no such metric.
    """
    try:
        with isolate_rng():
            module, data, val = build()
            _, scores = train(module, data, 1, val=val, limit_train_batches=1, limit_val_batches=1)
    except Exception:  # in the user's module; the trials will report it
        return
    if monitor not in scores:
        logged = ", ".join(sorted(scores)) or "nothing"
        raise InputError(f"monitor={monitor}: {type(module).__name__} logs {logged}; give --monitor one of them")


def score_weights(
    module: LightningModule, weights: Sequence[Mapping[str, Tensor]], loaders: Mapping[str, Any], monitor: str
) -> Scores:
    """Score a module by its own validation step, with each of several weights, on the loader of each stage.

    Args:
        module: What is scored.
        weights: One `state_dict` after another.
        loaders: Stage -> its images.
        monitor: The loss as the module logs it in validation, such as `val/loss`; accuracy is logged as `val/acc`.

    Returns:
        `STAGE/loss` and `STAGE/acc` -> a value for each of the weights; accuracy is nan if it is not logged.
    """
    trainer = new_trainer()
    scores: Scores = {}
    for state in weights:
        module.load_state_dict(state)
        for stage, loader in loaders.items():
            trainer.validate(module, loader, verbose=False)
            logged = numbers_of(trainer.callback_metrics)
            scores.setdefault(f"{stage}/loss", []).append(logged[monitor])
            accuracy = logged.get(monitor.replace("loss", "acc"), math.nan)
            scores.setdefault(f"{stage}/acc", []).append(accuracy)
    return scores


class ScoreRecorder(Checkpoint):
    """Keeps what was logged in each epoch. Lightning calls a `Checkpoint` after other callbacks, which may log, too."""

    def __init__(self, watcher: Watcher | None = None) -> None:
        self.watcher = watcher
        self.scores: Scores = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the watcher end the training."""
        if self.watcher:
            self.watcher.check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record every metric that has a value since the first epoch."""
        row = numbers_of(trainer.callback_metrics)
        epoch = trainer.current_epoch + 1
        if epoch == 1:
            self.scores = {name: [] for name in row}
        for name, values in self.scores.items():
            values.append(row.get(name, math.nan))
        if self.watcher:
            tensors = {name: torch.tensor([value]) for name, value in row.items()}
            self.watcher.after_epoch(epoch, tensors)


class WeightKeeper(Callback):
    """Keeps a copy of the weights after every so many epochs."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.weights: list[Mapping[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep them, if it is time."""
        if (trainer.current_epoch + 1) % self.every == 0:
            self.weights.append(deepcopy(pl_module.state_dict()))


def numbers_of(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Return metrics as numbers, without those that count the steps or are what a sweep chooses."""
    numbers = {}
    for name, value in metrics.items():
        if name not in NOT_SCORES:
            numbers[name] = float(cast(Any, value))
    return numbers
