"""The plan of a sweep: values or ranges of hyperparameters, and which configurations are trained together."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.files import reason
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.settings import class_path_of, parameters_of
from softmax_regression.studies.alone import has_parameter, make, parse
from softmax_regression.studies.stacked import METRICS

Value = bool | int | float | str | None
Params = dict[str, Value]

BOOK: Params = {"lr": 0.1, "batch_size": 256, "epochs": 10}  # the book's values
COUNTS = ("batch_size", "epochs", "train_size")  # whole numbers, which are not parameters of the model
BATCH_HOOKS = (
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
STACKED = ("lr", "weight_decay", "momentum", "init_std")  # hyperparameters in which the models of a stack may differ


@dataclass(frozen=True)
class Range:
    """A range of numbers, integers if both ends are integers; with `log`, the logarithm is uniformly distributed."""

    low: int | float
    high: int | float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> int | float:
        """Return a number that Optuna chooses."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


Choices = Sequence[Value] | Range


def values_of(choices: Choices) -> list[Value]:
    """Return the values of a list without repetitions, or the two ends of a range."""
    if isinstance(choices, Range):
        return [choices.low, choices.high]
    return list(dict.fromkeys(choices))


@dataclass(frozen=True)
class Plan:
    """What to search; a sweep that is resumed must have the same plan.

    Raises:
        InputError: It cannot be searched, or the model refuses a value.
    """

    space: Mapping[str, Choices]  # hyperparameter -> values or range
    seeds: Sequence[int]  # each configuration is trained with each of them
    identity: str = ""  # of the training data
    sampler: BaseSampler | None = None  # None for the grid of all combinations
    pruner: BasePruner | None = None  # None to finish every trial
    trials: int = 100  # number of trials of a sampler
    model: type[LightningModule] = SoftmaxRegression
    data: type[LightningDataModule] = FashionMNISTDataModule
    monitor: str = "val/loss"  # the metric to search by, after the last epoch
    mode: Literal["min", "max"] = "min"  # `min` if less of it is better

    def __post_init__(self) -> None:
        if not self.space or not self.seeds or self.trials < 1:
            raise InputError("space, seeds and trials: need at least one of each")
        valid = {seed for seed in self.seeds if 0 <= seed < 2**32}
        if len(valid) < len(self.seeds):
            raise InputError(f"seeds={list(self.seeds)}: must be different numbers from 0 to {2**32 - 1}")
        for name, choices in self.space.items():
            try:
                self._check(name, choices)
            except Exception as error:  # jsonargparse and the user's model raise errors of many types
                raise InputError(f"space.{name}: {reason(error)}") from error
        if self.is_stackable and self.monitor not in METRICS:
            raise InputError(f"monitor={self.monitor}: expected one of {', '.join(METRICS)}")

    def _check(self, name: str, choices: Choices) -> None:
        known = sorted({*parameters_of(self.model), *parameters_of(self.data), "epochs"})
        if name.partition(".")[0] not in known:
            raise ValueError(f"unknown; expected one of {', '.join(known)}")
        if name == "seed":
            raise ValueError("every configuration is trained with each of --seeds; drop it")
        if isinstance(choices, Range):
            if self.is_grid:
                raise ValueError("a range has no grid; give a list, or sampler random or tpe")
            FloatDistribution(choices.low, choices.high, log=choices.log)  # raises a ValueError for an empty range
        if not values_of(choices):
            raise ValueError("has no values; give at least one")
        is_count = name == "epochs"
        if issubclass(self.data, FashionMNISTDataModule):
            is_count = name in COUNTS
        for value in values_of(choices):
            if is_count and (type(value) is not int or value < 1):
                raise ValueError(f"expected a whole number, at least 1. Got value: {value}")
            if has_parameter(self.model, name):
                make(self.model, {**self.first, name: value})
            if has_parameter(self.data, name):
                parse(self.data, {**self.first, name: value})

    @property
    def first(self) -> Params:
        """The configuration of first values."""
        return {name: values_of(choices)[0] for name, choices in self.space.items() if choices}

    @property
    def is_grid(self) -> bool:
        """Whether all combinations are tried."""
        return self.sampler is None

    @property
    def is_stackable(self) -> bool:
        """Whether all models can be trained in a `Stack`, on the minibatches of the data module."""
        if self.model is not SoftmaxRegression or not issubclass(self.data, FashionMNISTDataModule):
            return False
        if changed_batches(self.data):
            return False
        has_subclass = self.data is not FashionMNISTDataModule
        if has_subclass and parameters_of(self.data).get("seed", 0) is not None:  # an order of its own
            return False
        if "naive" in values_of(self.space.get("loss", [])):
            return False
        return set(self.space) <= {*parameters_of(self.model), *COUNTS}

    @property
    def stacked(self) -> list[str]:
        """The hyperparameters of which a trial of a grid trains all values together."""
        if not self.is_grid or not self.is_stackable:
            return []
        names = list(STACKED)
        if "schedule" not in self.space:  # with a constant learning rate, a long run contains the shorter ones
            names.append("epochs")
        return [name for name in self.space if name in names]

    @property
    def grid(self) -> dict[str, list[Value]]:
        """The values by which the trials of a grid differ: hyperparameters that are not stacked, and the seed."""
        stacked = self.stacked
        apart = {name: values_of(choices) for name, choices in self.space.items() if name not in stacked}
        return {**apart, "seed": list(self.seeds)}

    @property
    def size(self) -> int:
        """Number of trials."""
        if not self.is_grid:
            return self.trials
        return math.prod(map(len, self.grid.values()))

    @property
    def configurations(self) -> int:
        """Number of different configurations, each of which is trained with every seed."""
        if not self.is_grid:
            return self.trials
        return self.size // len(self.seeds) * len(self.trained_together({}))

    def suggest(self, trial: Trial) -> Params:
        """Return the hyperparameters that Optuna's sampler chooses for a trial; for a grid also the seed."""
        space: Mapping[str, Choices] = self.space
        if self.is_grid:
            space = self.grid
        params: Params = {}
        for name, choices in space.items():
            if isinstance(choices, Range):
                params[name] = choices.suggest(trial, name)
            else:
                params[name] = trial.suggest_categorical(name, choices)
        return params

    def trained_together(self, params: Params) -> list[Params]:
        """Return the configurations that a trial trains together: all values of the stacked hyperparameters."""
        stacked = self.stacked
        found = []
        for chosen in itertools.product(*(values_of(self.space[name]) for name in stacked)):
            merged = {**params, **dict(zip(stacked, chosen, strict=True))}
            found.append({name: merged[name] for name in self.space if name in merged})
        return found

    def to_json(self) -> str:
        """Return the plan as JSON; for a grid without the number of trials."""
        entries = dict(vars(self))
        if self.is_grid:
            del entries["trials"]
            entries["sampler"] = "grid"
        return json.dumps(entries, default=_plain)


def changed_batches(data: type[LightningDataModule]) -> list[str]:
    """Return the names of the methods by which a subclass of FashionMNISTDataModule changes the minibatches."""
    return [hook for hook in BATCH_HOOKS if getattr(data, hook) is not getattr(FashionMNISTDataModule, hook)]


def _plain(value: object) -> object:
    """Return a range as a dictionary, a class as its name, and a sampler or pruner as its class and its arguments.

    Only arguments that it keeps and that are not the defaults are in it; not a seed, as a resumed search has another.
    """
    if isinstance(value, Range):
        return vars(value)
    if isinstance(value, type):
        return class_path_of(value)
    arguments = {}
    for name, default in parameters_of(type(value)).items():
        argument = getattr(value, f"_{name}", default)
        is_given = isinstance(argument, int | float | str | dict | BaseSampler | BasePruner) and name != "seed"
        if is_given and argument not in (default, math.inf, -math.inf):
            arguments[name] = argument
    path = class_path_of(type(value))
    return {path: arguments} if arguments else path


def count(params: Params, name: str) -> int:
    """Return an integer of a configuration, such as its batch size; the book's if the configuration has none."""
    value = {**BOOK, **params}[name]
    assert isinstance(value, int)
    return value


def describe(params: Mapping[str, Value]) -> str:
    """Return hyperparameters as text, such as `batch_size=256, lr=0.1`."""
    words = []
    for name, value in params.items():
        if isinstance(value, float):
            words.append(f"{name}={value:.4g}")
        else:
            words.append(f"{name}={value}")
    return ", ".join(words)


def sorted_values(values: Iterable[Value]) -> list[Value]:
    """Return the values without repetitions, sorted: numbers by size, then all others by their text."""
    different = set(values)
    numbers = {value for value in different if isinstance(value, int | float)}
    return [*sorted(numbers), *sorted(different - numbers, key=str)]
