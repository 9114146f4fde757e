"""What came of the configurations of a search, the best one first."""

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
    """What came of a configuration: metric -> (s, t) float64, of s seeds and t scorings."""

    params: Params
    history: dict[str, Tensor]

    def __str__(self) -> str:
        return describe(self.params)

    def curves(self, every: int = 1) -> Curves:
        """Return each metric by epoch, if every `every`th epoch was scored."""
        found = {}
        for name, values in self.history.items():
            found[name] = every * torch.arange(1, values.shape[1] + 1), values
        return found

    def last(self, metric: str) -> Tensor:
        """Return a metric at the end, (s,)."""
        return self.history[metric][:, -1]

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric at the end, with its interval."""
        return Interval.of(self.last(metric))


def ranked(runs: Iterable[Mapping[str, Any]], seeds: Sequence[int], plan: Plan) -> list[Result]:
    """Return the configurations that were trained with all seeds and did not diverge, the best one first.

    `runs` are `params`, `seed` and `scores` of each model that was trained.
    """
    found: dict[str, dict[int, Scores]] = {}
    for run in runs:
        found.setdefault(json.dumps(run["params"]), {})[run["seed"]] = run["scores"]
    results = []
    for params, of_seed in found.items():
        if len(of_seed) < len(seeds):
            continue
        history = {}
        for name in of_seed[seeds[0]]:
            history[name] = torch.tensor([of_seed[seed][name] for seed in seeds], dtype=torch.float64)
        result = Result(json.loads(params), history)
        if result.last(plan.monitor).isfinite().all():
            results.append(result)
    return sorted(results, key=lambda result: result.interval(plan.monitor).mean, reverse=plan.mode == "max")


def failures(trials: Sequence[FrozenTrial], plan: Plan) -> list[tuple[str, str]]:
    """Return what came to nothing, and why."""
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
