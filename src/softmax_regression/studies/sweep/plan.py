"""What a sweep searches: a space of hyperparameters, and the trials that are drawn from it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import optuna
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from optuna import distributions

from softmax_regression.errors import InputError
from softmax_regression.files import reason
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.trust import path_of
from softmax_regression.studies.learning import options, stackable

Value = int | float | str
Params = dict[str, Value]

BOOK: Params = {"lr": 0.1, "batch_size": 256, "epochs": 10}  # its recipe; a space may leave out the last two
COUNTS = ("batch_size", "epochs", "train_size")  # what is not the model's
STACKABLE = ("lr", "weight_decay", "momentum", "init_std")  # trials that differ in these alone are one stack


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; `log` spreads them evenly in their logarithm."""

    low: int | float
    high: int | float
    log: bool = False


@dataclass(frozen=True)
class Plan:
    """What is searched, and how, see `sweep.run`; a sweep that goes on must have the plan that it began with.

    Args:
        data: Identity of the training data.
        fixed: The trials, in the place of those of a sampler.

    Raises:
        InputError: It cannot be searched; of values, whatever the model refuses.
    """

    space: Mapping[str, Sequence[Value] | Range]
    sampler: str
    trials: int
    seeds: Sequence[int]
    seed: int
    data: str
    prune: bool = False
    model: type[LightningModule] = SoftmaxRegression
    fixed: Sequence[Params] = ()

    def __post_init__(self) -> None:
        if not self.space or not self.seeds or self.trials < 1:
            raise InputError("space, seeds and trials: need at least one of each")
        if len({s for s in self.seeds if 0 <= s < 2**32}) < len(self.seeds):
            raise InputError(f"seeds={self.seeds}: must be different numbers from 0 to {2**32 - 1}")
        parser = options(self.model)
        for name, values in self.space.items():
            try:
                self._check(parser, name, values)
            except Exception as error:  # of Optuna, or of whoever wrote the model
                raise InputError(f"space.{name}: {reason(error)}") from error

    def _check(self, parser: ArgumentParser, name: str, values: Sequence[Value] | Range) -> None:
        names = sorted({*vars(parser.get_defaults().model), *COUNTS})
        if name not in names:
            raise ValueError(f"unknown; expected one of {', '.join(names)}")
        if not values:
            raise ValueError("has no values; give at least one")
        if self.sampler == "grid" and isinstance(values, Range):
            raise ValueError("a range has no grid; give a list, or sampler random or tpe")
        _distribution(values)
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            if name not in COUNTS:
                parser.parse_object({"model": {name: value}})
                self.model(**{name: value})
            elif not isinstance(value, int) or value < 1:
                raise ValueError(f"expected a whole number, at least 1. Got value: {value}")

    @property
    def distributions(self) -> dict[str, distributions.BaseDistribution]:
        """The space, as Optuna has it."""
        return {name: _distribution(values) for name, values in self.space.items()}

    @cached_property
    def queue(self) -> list[Params]:
        """The trials that are known from the start, all but those of TPE, those of a group in a row."""
        drawn = list(self.fixed)
        if self.sampler == "random" and not drawn:
            scratch = optuna.create_study(sampler=optuna.samplers.RandomSampler(self.seed))
            drawn = [scratch.ask(self.distributions).params for _ in range(self.trials)]
        if self.sampler == "grid" and not drawn:
            values = [values for values in self.space.values() if not isinstance(values, Range)]
            drawn = [dict(zip(self.space, chosen, strict=True)) for chosen in itertools.product(*values)]
        drawn = [params for i, params in enumerate(drawn) if params not in drawn[:i]]
        groups = list(dict.fromkeys(map(self.group, drawn)))
        return sorted(drawn, key=lambda params: groups.index(self.group(params)))

    @property
    def size(self) -> int:
        """Number of trials."""
        return len(self.queue) or self.trials

    def group(self, params: Params) -> str:
        """Return what trials must have in common to be trained at once."""
        free = STACKABLE if params.get("schedule") == "cosine" else (*STACKABLE, "epochs")
        alone = not stackable(self.model, params)
        return json.dumps({name: value for name, value in params.items() if alone or name not in free})

    def identity(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self), default=path_of)


def _distribution(values: Sequence[Value] | Range) -> distributions.BaseDistribution:
    if not isinstance(values, Range):
        return distributions.CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return distributions.IntDistribution(values.low, values.high, values.log)
    return distributions.FloatDistribution(values.low, values.high, values.log)


def hparams(params: Params) -> Params:
    """Return those of a trial's parameters that the model takes."""
    return {name: value for name, value in params.items() if name not in COUNTS}


def count(params: Params, name: str) -> int:
    """Return a trial's batch size or number of epochs, the book's if it was not searched."""
    return int((BOOK | params)[name])


def longest(trials: Sequence[Params]) -> int:
    """Return the number of epochs of the longest trial."""
    return max(count(trial, "epochs") for trial in trials)


def describe(params: Mapping[str, Value]) -> str:
    """Return hyperparameters as people write them: `batch_size=256, lr=0.1`."""
    return ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())
