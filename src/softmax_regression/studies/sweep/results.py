"""The results of the configurations of a search, sorted by their score."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from optuna.trial import FrozenTrial
from torch import Tensor

from softmax_regression.figures.drawings import Curves
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.learning import Scores
from softmax_regression.studies.sweep.space import Params, Plan, describe


class Result(NamedTuple):
    """The scores of a configuration.

    Attributes:
        params: Its hyperparameters.
        history: Metric -> (s, t) float64, for s seeds and t times of scoring; a seed whose module ended its training
            earlier than others keeps its last value.
        times: For each seed the number of times that it was scored; empty if all have t.
    """

    params: Params
    history: dict[str, Tensor]
    times: Sequence[int] = ()

    def __str__(self) -> str:
        return describe(self.params)

    def curves(self, every: int = 1) -> Curves:
        """Return each metric by epoch, if it was scored after every `every` epochs."""
        found = {}
        for name, values in self.history.items():
            found[name] = every * torch.arange(1, values.shape[1] + 1), values
        return found

    def last(self, metric: str) -> Tensor:
        """Return the last value of a metric for each seed, (s,)."""
        return self.history[metric][:, -1]

    def interval(self, metric: str) -> Interval:
        """Return the mean of the last values of a metric, with its interval."""
        return Interval.of(self.last(metric))


def ranked(runs: Iterable[Mapping[str, Any]], seeds: Sequence[int], plan: Plan) -> list[Result]:
    """Return the results of the configurations that were trained with all seeds and did not diverge, the best first.

    A run is a dictionary with the `params`, `seed` and `scores` of a trained model.
    """
    found: dict[str, dict[int, Scores]] = {}
    for run in runs:
        found.setdefault(json.dumps(run["params"]), {})[run["seed"]] = run["scores"]
    results = []
    for params, of_seed in found.items():
        if len(of_seed) < len(seeds):
            continue
        scores = [of_seed[seed] for seed in seeds]
        times = [len(one[plan.monitor]) for one in scores]
        history = {}
        for name in scores[0]:
            if all(name in one for one in scores):
                values = [one[name] + one[name][-1:] * (max(times) - len(one[name])) for one in scores]
                history[name] = torch.tensor(values, dtype=torch.float64)
        result = Result(json.loads(params), history, times)
        if result.last(plan.monitor).isfinite().all():
            results.append(result)
    return sorted(results, key=lambda result: result.interval(plan.monitor).mean, reverse=plan.mode == "max")


def failures(trials: Sequence[FrozenTrial], plan: Plan) -> list[tuple[str, str]]:
    """Return the configurations that failed or diverged, and the reasons."""
    failed = []
    for trial in trials:
        if "error" in trial.user_attrs:
            failed.append((describe(trial.params), trial.user_attrs["error"]))
        for run in trial.user_attrs.get("models", []):
            value = run["scores"][plan.monitor][-1]
            if not math.isfinite(value):
                words = describe({**run["params"], "seed": run["seed"]})
                failed.append((words, f"DivergedError: {plan.monitor}={value}; lower lr"))
    return failed
