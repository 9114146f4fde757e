"""Trains any LightningModule as `fit` does, one at a time; its scores are the metrics that it logs."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.seed import isolate_rng

from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.runs.rows import RESERVED
from softmax_regression.studies.learning import Scores, Watcher

Kind = type[Any]  # of a model or of data


def parser_of(kind: Kind) -> ArgumentParser:
    """Return a parser of what a class is made with, in the group `space`; parameters of `**kwargs` are known, too."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "space", fail_untyped=False)
    return parser


def parameters_of(kind: Kind) -> dict[str, Any]:
    """Return the parameters of a class with their defaults; None where one has none."""
    found: dict[str, Any] = parser_of(kind).get_defaults().as_dict().get("space", {})
    return found


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
    module: LightningModule, data: Any, epochs: int, watch: Watcher | None = None, val: Any = None, **options: Any
) -> tuple[Trainer, Scores]:
    """Train a module on one device, on a data module or on a loader and `val`.

    Returns:
        The Trainer, and what the module had logged at the end of each epoch: metric -> epochs.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it names the devices each time
    recorder = ScoreRecorder(watch)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[Engine(), recorder, *options.pop("callbacks", [])],
        devices=1,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data, val)
    return trainer, recorder.scores


def check_monitor(monitor: str, build: Callable[[], tuple[LightningModule, LightningDataModule]]) -> None:
    """Refuse a monitor that the module which `build` makes does not log in one minibatch each of its data.

    Raises:
        InputError: It logs no such metric.
    """
    try:
        with isolate_rng():
            module, data = build()
            _, scores = train(module, data, 1, limit_train_batches=1, limit_val_batches=1)
    except Exception:  # in the user's module; the trials will report it
        return
    if monitor not in scores:
        logged = ", ".join(sorted(scores)) or "nothing"
        raise InputError(f"monitor={monitor}: {type(module).__name__} logs {logged}; give --monitor one of them")


class ScoreRecorder(Checkpoint):
    """Keeps what was logged in each epoch. Lightning calls a `Checkpoint` after other callbacks, which may log, too."""

    def __init__(self, watch: Watcher | None = None) -> None:
        self.watch = watch
        self.scores: Scores = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the watcher end the training."""
        if self.watch:
            self.watch(trainer.current_epoch, {})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record every metric that has a value since the first epoch."""
        row = numbers_of(trainer.callback_metrics)
        epoch = trainer.current_epoch + 1
        if epoch == 1:
            self.scores = {name: [] for name in row}
        for name, values in self.scores.items():
            values.append(row.get(name, math.nan))
        if self.watch:
            self.watch(epoch, {name: torch.tensor([value]) for name, value in row.items()})


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers, without those that count the steps or are what a sweep chooses."""
    return {name: float(value) for name, value in metrics.items() if name not in RESERVED}
