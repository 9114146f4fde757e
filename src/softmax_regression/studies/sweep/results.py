"""What came of the configurations of a search, the best one first."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, NoReturn

from optuna.trial import FrozenTrial

from softmax_regression.errors import DivergedError, InputError
from softmax_regression.studies.learning import Scores
from softmax_regression.studies.sweep.space import Params, Plan, describe


class Result(NamedTuple):
    """What came of a configuration: metric -> a list for each seed, one value a scoring."""

    params: Params
    history: dict[str, list[list[float]]]

    def last(self, metric: str) -> list[float]:
        """Return a metric at the end, one value a seed."""
        return [of_seed[-1] for of_seed in self.history[metric]]


def ranked(runs: Iterable[Mapping[str, Any]], seeds: Sequence[int], plan: Plan) -> list[Result]:
    """Return the configurations that were trained with every seed and did not diverge, the best one first.

    Args:
        runs: `params`, `seed` and `scores` of each model that was trained.
        seeds: Those that a configuration must have been trained with.
        plan: Says by which metric.
    """
    found: dict[str, dict[int, Scores]] = {}
    for run in runs:
        found.setdefault(json.dumps(run["params"]), {})[run["seed"]] = run["scores"]
    results = []
    for params, of_seed in found.items():
        if len(of_seed) < len(seeds):
            continue
        history: dict[str, list[list[float]]] = {}
        for seed in seeds:
            for name, values in of_seed[seed].items():
                history.setdefault(name, []).append(values)
        result = Result(json.loads(params), history)
        if math.isfinite(sum(result.last(plan.monitor))):
            results.append(result)
    return sorted(results, key=lambda result: mean(result.last(plan.monitor)), reverse=plan.mode == "max")


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


def refuse(failed: Sequence[tuple[str, str]], folder: Path) -> NoReturn:
    """Say in one line why no configuration came to its end."""
    errors = sorted({error for _, error in failed})
    kind: type[Exception] = InputError
    if all(error.startswith("DivergedError") for error in errors):
        kind = DivergedError
    raise kind(f"all trials failed: {'; '.join(errors[:3])}; to try again, delete {folder}")
