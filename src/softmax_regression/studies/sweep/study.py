"""Exercise 1 of the book, see model.py: change the batch size, the number of epochs and the learning rate.

Command: python study.py sweep
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.files import check_writable, locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.runs.settings import parameters_of
from softmax_regression.studies.alone import make
from softmax_regression.studies.folders import STUDIES, folder_name
from softmax_regression.studies.sweep import page
from softmax_regression.studies.sweep.search import Search, check_sampler, number_of_workers
from softmax_regression.studies.sweep.space import Choices, Plan, Range
from softmax_regression.studies.sweep.storage import without_password
from softmax_regression.studies.sweep.training import LightningTraining, StackTraining, Training

QUICK_SIZES = {"synthetic_size": 1500, "val_size": 500, "train_size": 1000}
QUICK_LIMITS = {"limit_train_batches": 10, "limit_val_batches": 10, "limit_test_batches": 10}  # for other data modules


# In `space` with `Any` alone, the text "no" would become false, and a dictionary that names a class an object.
def run(
    space: Mapping[str, Sequence[str | list | dict | Any] | Range],  # type: ignore[type-arg]
    sampler: Literal["grid", "random", "tpe", "GridSampler"] | BaseSampler = "grid",
    trials: int = 100,
    seeds: Sequence[int] = (0, 1, 2),
    name: str | None = None,
    workers: int | None = None,
    storage: str | None = None,
    model: type[LightningModule] = SoftmaxRegression,
    data: type[LightningDataModule] = FashionMNISTDataModule,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    prune: bool = False,
    pruner: BasePruner | None = None,
    quick: bool = False,
) -> Path:
    """Search, then test the best configuration; return the page. An interrupted search is resumed.

    Args:
        space: What to try: `epochs`, and parameters of model and data, or parts of them, as `optimizer.lr`. In YAML
            `lr: [0.1, 0.3]` for values, `lr: {low: 0.001, high: 1.0, log: true}` for a range, which a grid cannot have.
            As flags `--space '{"lr": [0.1, 0.3], "epochs": [10]}'`, or `--space.lr '[0.1, 0.3]'` to change one of them.
        sampler: `grid` for all combinations, `random`, `tpe`, or a class of Optuna's: `TPESampler --sampler.seed 5`.
        trials: Number of trials, if the sampler is not `grid`.
        seeds: Each configuration is trained with all of them.
        name: The folder is studies/sweep/NAME.
        workers: Number of trials trained at the same time, at most one for each core; null for one for each core.
        storage: URL of a PostgreSQL database that several machines share; its password may be in PGPASSWORD.
        model: Class of the model; models that cannot be stacked are trained one at a time, as `fit` does.
        data: Class of the data module.
        monitor: The metric to search by, which the model logs, after the last epoch.
        mode: `min` if less of it is better, `max` if more is.
        source: `files`, or `synthetic` for generated images.
        dirs: Folders to search for the files.
        prune: End trials early whose first seed is worse than the median of the finished trials at that epoch.
        pruner: A class of Optuna's that decides which trials end early.
        quick: The first and the middle of the values, two epochs, two seeds and few images, to see that it works.

    Raises:
        InputError: The space cannot be searched, the folder has another sweep, or every trial failed.
    """
    if quick:
        seeds = seeds[:2]
        trials = min(trials, 4)
    if prune and pruner is None:
        pruner = MedianPruner()
    plan = Plan(_choices(space, quick), list(seeds), "", _sampler(sampler), pruner, trials, model, data, monitor, mode)
    return _search(plan, name, _options(data, source, dirs, quick), quick, workers, storage)


def _search(
    plan: Plan, name: str | None, options: dict[str, Any], quick: bool, workers: int | None, storage: str | None
) -> Path:
    """Run the search of a plan, test the best configuration and return the page; `options` are for the data module."""
    workers = number_of_workers(workers, plan.is_stackable)
    if plan.sampler:
        check_sampler(plan)
    name = name or folder_name("batch-lr-epochs", plan.model, plan.data, options.get("source", "files"))
    folder = STUDIES / "sweep" / folder_name(name, quick=quick)
    check_writable(folder)
    training = _training(plan, options, quick)
    only_one = locked(folder, "choose another --name") if storage is None else nullcontext()
    with only_one, closing(Search(training.plan, folder, training.train, storage)) as search:
        search.run(workers)
        with nullcontext() if storage is None else locked(folder):
            test = search.test(training.test)
            return page.write(folder, search, test, training, _command(storage))


def _choices(space: Mapping[str, Sequence[Any] | Range], quick: bool) -> dict[str, Choices]:
    """Return what Optuna can choose among: ranges, and values, of which lists and dictionaries become JSON."""
    found: dict[str, Choices] = {}
    for name, values in space.items():
        if isinstance(values, Range):
            found[name] = values
            continue
        if quick:
            values = values[:: max(1, len(values) // 2)][:2]
        found[name] = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    if quick:
        found["epochs"] = [1, 2]
    return found


def _sampler(sampler: BaseSampler | str) -> BaseSampler | None:
    """Return the sampler of a name; None for the grid."""
    if sampler == "random":
        return RandomSampler(seed=0)
    if sampler == "tpe":
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # before Optuna 5
            return TPESampler(seed=0, constant_liar=True)
    if isinstance(sampler, BaseSampler):
        return sampler
    return None


def _options(data: type[LightningDataModule], source: str, dirs: Sequence[str] | None, quick: bool) -> dict[str, Any]:
    """Return the parameters of the data module that are not searched."""
    options: dict[str, Any] = {}
    if source != "files":
        options["source"] = source
    if dirs is not None:
        options["dirs"] = dirs
    for name, value in options.items():
        if name not in parameters_of(data):
            raise InputError(f"{name}={value}: {data.__name__} has no parameter of this name; drop --{name}")
    if quick and issubclass(data, FashionMNISTDataModule):
        options.update(QUICK_SIZES)
        if source == "files":
            del options["synthetic_size"]  # the page shows the options as a command
    return options


def _training(plan: Plan, options: dict[str, Any], quick: bool) -> Training:
    """Load the data, and return the object that trains on them."""
    images = None
    limits: dict[str, int] = {}
    if issubclass(plan.data, FashionMNISTDataModule):
        images = make(plan.data, options)
        plan = replace(plan, identity=f"{images.loaded.sha256}/{len(images.train_index)}")
        if plan.is_stackable:
            return StackTraining(plan, options, images)
    elif quick:
        limits = QUICK_LIMITS
    training = LightningTraining(plan, options, images, limits)
    training.check_monitor()
    return training


def _command(storage: str | None) -> str:
    """Return the command that was typed, without a password."""
    command = str(environment()["command"])
    if storage:  # the command has quotation marks in the form of a shell
        command = command.replace(storage.replace("'", "'\"'\"'"), without_password(storage))
    return command
