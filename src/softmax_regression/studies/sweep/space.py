"""What a sweep searches: values or ranges of hyperparameters, and which configurations can be trained together."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule
from optuna.distributions import FloatDistribution
from optuna.trial import Trial

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.files import reason
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.class_path import class_path_of
from softmax_regression.studies.alone import make, parameters_of
from softmax_regression.studies.stacked import METRICS

Value = bool | int | float | str | None
Params = dict[str, Value]

BOOK: Params = {"lr": 0.1, "batch_size": 256, "epochs": 10}  # its recipe; a space may leave out any of them
COUNTS = ("batch_size", "epochs", "train_size")  # these are whole numbers, and no parameters of the model
STACKED = ("lr", "weight_decay", "momentum", "init_std")  # in which the models of one stack may differ


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, integers if both are; with `log`, uniform in their logarithm."""

    low: int | float
    high: int | float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> int | float:
        """Let Optuna choose a number."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def check(self) -> None:
        """Raise Optuna's ValueError if no number lies between the ends, or log has an end that is not above 0."""
        FloatDistribution(self.low, self.high, log=self.log)


Space = Mapping[str, Sequence[Value] | Range]


@dataclass(frozen=True)
class Plan:
    """What is searched; a sweep that goes on must have the plan that it began with.

    Args:
        space: Name of a hyperparameter -> what to try.
        seeds: Each configuration is trained with each of them.
        identity: Of the training data.
        sampler: Name of Optuna's sampler; `grid` for all combinations.
        pruner: Name of Optuna's pruner; None for none.
        trials: Number of trials, unless the sampler is `grid`.
        monitor: The metric to search by; that of the last epoch counts.
        mode: Whether less (`min`) or more (`max`) of it is better.

    Raises:
        InputError: It cannot be searched; of values, whatever the model refuses.
    """

    space: Space
    seeds: Sequence[int]
    identity: str = ""
    sampler: str = "grid"
    pruner: str | None = None
    trials: int = 100
    model: type[LightningModule] = SoftmaxRegression
    data: type[LightningDataModule] = FashionMNISTDataModule
    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if not self.space or not self.seeds or self.trials < 1:
            raise InputError("space, seeds and trials: need at least one of each")
        valid = {seed for seed in self.seeds if 0 <= seed < 2**32}
        if len(valid) < len(self.seeds):
            raise InputError(f"seeds={list(self.seeds)}: must be different numbers from 0 to {2**32 - 1}")
        for name, values in self.space.items():
            try:
                self._check(name, values)
            except Exception as error:  # of jsonargparse, or of the user's model
                raise InputError(f"space.{name}: {reason(error)}") from error
        if self.is_stackable and self.monitor not in METRICS[:4]:
            raise InputError(f"monitor={self.monitor}: expected one of {', '.join(METRICS[:4])}")

    def _check(self, name: str, values: Sequence[Value] | Range) -> None:
        known = sorted({*parameters_of(self.model), *parameters_of(self.data), "epochs"})
        if name not in known:
            raise ValueError(f"unknown; expected one of {', '.join(known)}")
        if isinstance(values, Range):
            if self.sampler == "grid":
                raise ValueError("a range has no grid; give a list, or sampler random or tpe")
            values.check()
            values = [values.low, values.high]
        if not values:
            raise ValueError("has no values; give at least one")
        for value in values:
            if name in COUNTS and (not isinstance(value, int) or value < 1):
                raise ValueError(f"expected a whole number, at least 1. Got value: {value}")
            if name in parameters_of(self.model):
                make(self.model, {**self.first, name: value})

    @property
    def first(self) -> Params:
        """The configuration of first values."""
        params: Params = {}
        for name, values in self.space.items():
            if isinstance(values, Range):
                params[name] = values.low
            elif values:
                params[name] = values[0]
        return params

    @property
    def is_stackable(self) -> bool:
        """Whether all models can be trained in a `Stack`, on minibatches that are those of the data module."""
        if self.model is not SoftmaxRegression or not issubclass(self.data, FashionMNISTDataModule):
            return False
        if self.data.train_dataloader is not FashionMNISTDataModule.train_dataloader:
            return False
        losses = self.space.get("loss", [])
        if isinstance(losses, Range) or "naive" in losses:
            return False
        return set(self.space) <= {*parameters_of(self.model), *COUNTS}

    @property
    def stacked(self) -> list[str]:
        """The hyperparameters whose values are trained together, in one trial of a grid."""
        if self.sampler != "grid" or not self.is_stackable:
            return []
        names = list(STACKED)
        if "schedule" not in self.space:  # with a constant learning rate a short run is the beginning of a long one
            names.append("epochs")
        return [name for name in self.space if name in names]

    @property
    def grid(self) -> dict[str, Sequence[Value]]:
        """What the trials of a grid differ in: what is not stacked, and the seed."""
        apart: dict[str, Sequence[Value]] = {}
        for name, values in self.space.items():
            if name not in self.stacked and not isinstance(values, Range):
                apart[name] = list(dict.fromkeys(values))
        return {**apart, "seed": list(self.seeds)}

    @property
    def size(self) -> int:
        """Number of trials."""
        if self.sampler != "grid":
            return self.trials
        return math.prod(len(values) for values in self.grid.values())

    @property
    def configurations(self) -> int:
        """Number of different models, each of which is trained with every seed."""
        if self.sampler != "grid":
            return self.trials
        return self.size // len(self.seeds) * len(self.together({}))

    def suggest(self, trial: Trial) -> Params:
        """Let Optuna's sampler choose what a trial is of."""
        space: Space = self.space
        if self.sampler == "grid":
            space = self.grid
        params: Params = {}
        for name, values in space.items():
            if isinstance(values, Range):
                params[name] = values.suggest(trial, name)
            else:
                params[name] = trial.suggest_categorical(name, values)
        return params

    def together(self, params: Params) -> list[Params]:
        """Return the configurations that a trial trains together: every value of what is stacked."""
        lists = []
        for name in self.stacked:
            values = self.space[name]
            assert not isinstance(values, Range)
            lists.append(list(dict.fromkeys(values)))
        found = []
        for chosen in itertools.product(*lists):
            merged = {**params, **dict(zip(self.stacked, chosen, strict=True))}
            found.append({name: merged[name] for name in self.space if name in merged})
        return found

    def to_json(self) -> str:
        """Return the plan as JSON; the number of trials is given only where it is chosen."""
        entries = asdict(self)
        if self.sampler == "grid":
            del entries["trials"]
        return json.dumps(entries, default=class_path_of)


def count(params: Params, name: str) -> int:
    """Return a configuration's batch size or number of epochs, the book's if it is not searched."""
    value = params.get(name, BOOK[name])
    assert isinstance(value, int)
    return value


def describe(params: Mapping[str, Value]) -> str:
    """Return hyperparameters as people write them: `batch_size=256, lr=0.1`."""
    words = []
    for name, value in params.items():
        if isinstance(value, float):
            words.append(f"{name}={value:.4g}")
        else:
            words.append(f"{name}={value}")
    return ", ".join(words)


def sort_key(value: Value) -> tuple[bool, float, str]:
    """Order numbers by size, before anything else by name."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0, str(value)


def sorted_values(values: Iterable[Value]) -> list[Value]:
    """Return the different values in their order."""
    return sorted(set(values), key=sort_key)
