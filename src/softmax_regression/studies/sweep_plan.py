"""What a sweep searches: a space of hyperparameters, and the trials that are drawn from it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression

Value = int | float | str
Params = Mapping[str, Value]

BOOK = {"lr": 0.1, "batch_size": 256, "epochs": 10}  # its recipe, and the default of what a space leaves out
STACKABLE = ("lr", "weight_decay", "momentum", "init_std")  # trials that differ in these alone are one stack
NAMES = {*signature(SoftmaxRegression).parameters, *BOOK, "train_size"} - {"seed"}
TPE_BATCH = 16  # trials that TPE proposes at a time, which can then be stacked


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; `log` spreads them evenly in their logarithm."""

    low: int | float
    high: int | float
    log: bool = False


@dataclass(frozen=True)
class Plan:
    """What is searched, and how; a sweep that goes on must have the plan that it began with.

    Args:
        space: Name of a hyperparameter -> its values, or the range to draw from.
        sampler: `grid`, `random` or `tpe`.
        trials: Number of trials of `random` and `tpe`.
        seeds: Each trial is trained once with each of them.
        seed: Seed of the sampler.
        data: Identity of the training data.
        prune: Whether to give up a trial that is worse than the median of the finished ones at that epoch.

    Raises:
        InputError: It cannot be searched.
    """

    space: Mapping[str, Sequence[Value] | Range]
    sampler: str
    trials: int
    seeds: Sequence[int]
    seed: int
    data: str
    prune: bool = False

    def __post_init__(self) -> None:
        for name, values in self.space.items():
            if name not in NAMES:
                raise InputError(f"space.{name}: unknown; expected one of {', '.join(sorted(NAMES))}")
            if not values:
                raise InputError(f"space.{name}: has no values; give at least one")
            if self.sampler == "grid" and isinstance(values, Range):
                raise InputError(f"space.{name}: a range has no grid; give a list, or sampler random or tpe")
        if not self.space or not self.seeds or self.trials < 1:
            raise InputError("space, seeds and trials: need at least one of each")

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space, as Optuna has it."""
        return {name: _distribution(values) for name, values in self.space.items()}

    def queue(self) -> list[dict[str, Value]]:
        """Return the trials that are known from the start, all but those of TPE, in a fixed order."""
        if self.sampler == "random":
            scratch = optuna.create_study(sampler=optuna.samplers.RandomSampler(self.seed))
            return [scratch.ask(self.distributions).params for _ in range(self.trials)]
        if self.sampler == "grid":
            values = [values for values in self.space.values() if not isinstance(values, Range)]
            return [dict(zip(self.space, chosen, strict=True)) for chosen in itertools.product(*values)]
        return []


def _distribution(values: Sequence[Value] | Range) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, values.log)
    return FloatDistribution(values.low, values.high, values.log)


def setting(params: Params, name: str) -> Any:
    """Return a trial's value of a hyperparameter, or the default if it was not searched."""
    return params.get(name, BOOK.get(name))


def describe(params: Params) -> str:
    """Return hyperparameters as people write them: `batch_size=256, lr=0.1`."""
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


def key(params: Params) -> list[tuple[str, Value]]:
    """Return what trials must have in common to be trained at once."""
    free = STACKABLE if params.get("schedule") == "cosine" else (*STACKABLE, "epochs")
    return [(name, value) for name, value in params.items() if name not in free]


def epochs_of(params: Params) -> int:
    """Return how many epochs a trial takes."""
    return int(setting(params, "epochs"))
