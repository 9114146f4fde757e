"""Train any LightningModule as `fit` does, one at a time; its scores are the metrics that it logs."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng

from softmax_regression.engine import Engine
from softmax_regression.errors import InputError
from softmax_regression.runs.rows import RESERVED
from softmax_regression.runs.settings import parameters_of, parser_of
from softmax_regression.studies.learning import Scores, Watcher


def has_parameter(kind: type, name: str) -> bool:
    """Return whether a class has a parameter, such as `lr`, or `optimizer` of which `optimizer.lr` is a part."""
    return name.partition(".")[0] in parameters_of(kind)


def parse(kind: type, params: Mapping[str, Any]) -> Namespace:
    """Return the parameters that a class has, parsed as on a command line; others are ignored."""
    words = []
    for name, value in params.items():
        text = value
        if not isinstance(value, str):
            text = json.dumps(value)
        if has_parameter(kind, name):
            words.append(f"--space.{name}={text}")
    return parser_of(kind).parse_args(words)


def make(kind: type, params: Mapping[str, Any]) -> Any:
    """Make an object with the parameters that its class has, see `parse`."""
    if not parameters_of(kind):
        return kind()
    return parser_of(kind).instantiate(parse(kind, params)).space


def make_model(model: type[LightningModule], params: Mapping[str, Any], seed: int) -> LightningModule:
    """Seed all generators of the process, and make a model."""
    seed_everything(seed, workers=True, verbose=False)  # as the command line does
    module: LightningModule = make(model, params)
    return module


def train(
    module: LightningModule, data: Any, epochs: int, watch: Watcher | None = None, val: Any = None, **options: Any
) -> tuple[Trainer, Scores]:
    """Train a module on one device, with a data module, or with a training loader and the validation loader `val`.

    Returns:
        The Trainer, and metric -> its value at the end of each epoch.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each Trainer would print the devices
    recorder = ScoreRecorder(watch)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[Engine(), recorder, *options.pop("callbacks", [])],
        devices=1,
        logger=DummyLogger(),  # keeps nothing; modules and callbacks may ask for a logger
        log_every_n_steps=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data, val)
    return trainer, recorder.scores


def check_monitor(
    monitor: str, build: Callable[[], tuple[LightningModule, LightningDataModule]], validates: bool = False
) -> None:
    """Train the module and data that `build` makes for one minibatch, and check that the monitor is logged.

    With `validates`, it must be logged in a validation without training.

    Raises:
        InputError: The module does not log it.
    """
    try:
        with isolate_rng():
            module, data = build()
            trainer, scores = train(module, data, 1, limit_train_batches=1, limit_val_batches=1)
            names = set(scores)
            if validates:
                trainer.validate(module, data, verbose=False)
                names = set(trainer.callback_metrics)
    except Exception:  # an error in the user's module; the trials will report it
        return
    if monitor not in names:
        logged = ", ".join(sorted(names)) or "nothing"
        raise InputError(f"monitor={monitor}: {type(module).__name__} logs {logged}; give --monitor one of them")


class ScoreRecorder(Checkpoint):
    """Keep the metrics of each epoch. It is a `Checkpoint` because Lightning calls these after all other callbacks."""

    def __init__(self, watch: Watcher | None = None) -> None:
        self.watch = watch
        self.scores: Scores = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Call the watcher, which may end the training."""
        if self.watch:
            self.watch(trainer.current_epoch, {})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics; one that is first logged in a later epoch is NaN in those before."""
        row = numbers_of(trainer.callback_metrics)
        epoch = trainer.current_epoch + 1
        for name in row:
            self.scores.setdefault(name, [math.nan] * (epoch - 1))
        for name, values in self.scores.items():
            values.append(row.get(name, math.nan))
        if self.watch:
            self.watch(epoch, {name: torch.tensor([value]) for name, value in row.items()})


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers, without `epoch`, `step` and `lr`."""
    return {name: float(value) for name, value in metrics.items() if name not in RESERVED}
