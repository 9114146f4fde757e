"""This project as users run it, in this process: `fit` with all that conf/default.yaml has on."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

from lightning.pytorch import Callback, LightningModule, Trainer

from softmax_regression.commands import train as cli
from softmax_regression.model import SoftmaxRegression

from .task import BATCH_SIZE, LR, Outcome, Run, Task, clock


class Clock(Callback):
    """Note when the first step and when each epoch starts."""

    def __init__(self, device: str) -> None:
        self.device, self.first_step = device, 0.0
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(clock(self.device))
        self.first_step = self.first_step or self.epochs[0]


class Fit(NamedTuple):
    """Seconds of `Trainer.fit` before the first step starts, from there to its return, and of each epoch."""

    setup: float
    seconds: float
    epochs: list[float]
    model: SoftmaxRegression


def fit(flags: Sequence[str], device: str = "cpu", stop_early: bool = False) -> Fit:
    """Run `fit` with these flags; the data are in memory before its clock starts.

    Args:
        flags: Of `python train.py fit`.
        device: cpu or cuda.
        stop_early: Whether early stopping may stop; else it watches, and every run does the same work.

    Raises:
        RuntimeError: The command failed.
    """
    fits: list[Fit] = []
    trainer_fit = Trainer.fit

    @functools.wraps(trainer_fit)  # LightningCLI makes flags of the signature
    def timed(trainer: Any, model: SoftmaxRegression, *args: Any, **kwargs: Any) -> None:
        for callback in () if stop_early else trainer.early_stopping_callbacks:
            callback.patience = trainer.max_epochs
        noted = Clock(device)
        trainer.callbacks.append(noted)
        start = clock(device)
        trainer_fit(trainer, model, *args, **kwargs)
        end = clock(device)
        epochs = [after - before for before, after in pairwise([*noted.epochs, end])]
        fits.append(Fit(noted.first_step - start, end - noted.first_step, epochs, model))

    accelerator = {"cpu": "cpu", "cuda": "gpu"}[device]
    with mock.patch.object(Trainer, "fit", timed):
        code = cli.main(["fit", f"--trainer.accelerator={accelerator}", "--trainer.devices=1", *flags])
    if code:
        raise RuntimeError(f"fit {' '.join(flags)}: exit code {code}")
    return fits[0]


def contestant(task: Task) -> Run:
    """Return `fit`, timed from the start of the first epoch to the return of `Trainer.fit`."""
    return _fit_of(task, "--figures.every_n_epochs=0")


def with_figures(task: Task) -> Run:
    """Return the same with the figures that `fit` draws for TensorBoard in the end."""
    return _fit_of(task, "--figures.every_n_epochs=null")


def of_mlp(task: Task) -> Run:
    """Return `fit` of examples/mlp.py."""
    return _fit_of(task, "--model=examples.mlp.MLP", "--figures.every_n_epochs=0")


def _fit_of(task: Task, *options: str) -> Run:
    hparams = {name: task.data.hparams[name] for name in ("source", "synthetic_size", "train_size")}
    flags = [f"--data.{name}={value}" for name, value in hparams.items() if value]
    flags += [*options, f"--data.batch_size={BATCH_SIZE}", f"--model.lr={LR}"]

    def run(epochs: int) -> Outcome:
        more = [f"--trainer.max_epochs={epochs}", f"--trainer.logger.save_dir={task.scratch}"]
        done = fit([*flags, *more], task.device)
        last = done.model.trainer.callback_metrics
        return Outcome(done.seconds, done.setup, float(last["train/loss"]), float(last["val/acc"]))

    return run
