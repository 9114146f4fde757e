"""What a module has logged in an epoch that is under way: the means of a resumed epoch are those of all its batches.

Lightning keeps none of it in a checkpoint, and torchmetrics nothing that is not persistent.
"""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers import MetricTracker

from softmax_regression.engine.callback import results_of_epoch
from softmax_regression.metrics import EpochScores


class RunningMetrics:
    """What was logged before a run was interrupted, until it is added to what is logged since.

    Attributes:
        logged: The sums by the names that Lightning has for them.
    """

    def __init__(self) -> None:
        self.logged: dict[str, dict[str, Tensor]] = {}

    def state_dict(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Return the sums of this process, and the states of the metrics that the module has.

        Those that Lightning is about to reset after a validation are left out.
        """
        logged = dict(self.logged)
        for name, result in results_of_epoch(trainer).items():
            if result.is_tensor and result.meta.on_epoch and not result.has_reset:
                logged[name] = result.metric_state
        about_to_be_reset = _logged_metrics(results_of_epoch(trainer, of_validation=True))
        states = {}
        for name, metric in _parts(module, Metric):
            if not any(metric is each for each in about_to_be_reset):
                states[name] = _state(metric)
        trackers = {name: len(tracker) for name, tracker in _parts(module, MetricTracker)}
        return {"logged": logged, "metrics": states, "trackers": trackers}

    def load_state_dict(self, state: dict[str, Any], module: LightningModule) -> None:
        """Take up the states of the module's metrics, and keep the sums for `add`."""
        self.logged = dict(state["logged"])
        for name, tracker in _parts(module, MetricTracker):
            for _ in range(len(tracker), state.get("trackers", {}).get(name, 0)):
                tracker.increment()
        for name, metric in _parts(module, Metric):
            vars(metric).update(state["metrics"].get(name, {}))

    def add(self, trainer: Trainer) -> None:
        """Add the sums to those of the batches since, once there are any."""
        results = results_of_epoch(trainer)
        for name in list(self.logged):
            if name in results and not results[name].has_reset:
                _merge(results[name], self.logged.pop(name))


def _merge(result: Any, saved: dict[str, Tensor]) -> None:
    """Add saved sums to those of a metric of Lightning's, or take the greater or the less of both."""
    before = saved["value"].to(result.value.device)
    if result.meta.is_max_reduction or result.meta.is_min_reduction:
        result.value = result.meta.reduce_fx(before, result.value)
        return
    result.value = before + result.value
    if result.meta.is_mean_reduction:
        batch_size = saved["cumulated_batch_size"]
        result.cumulated_batch_size = result.cumulated_batch_size + batch_size.to(result.value.device)


def _logged_metrics(results: dict[str, Any]) -> list[Any]:
    """Return the metrics that were given to `self.log`, and those within them."""
    found: list[Any] = []
    for result in results.values():
        if not result.is_tensor:
            found.extend(result.value.modules())
    return found


def _parts(module: nn.Module, kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of a module that are of a kind, by their names, but for the scores that a Classifier keeps."""
    for name, part in module.named_children():
        if isinstance(part, kind):
            yield prefix + name, part
        if not isinstance(part, EpochScores):
            yield from _parts(part, kind, f"{prefix}{name}.")


def _state(metric: Metric) -> dict[str, Any]:
    """Return the states of a metric, and what it counts beside them: updates, extremes, a place in a window."""
    kept = {}
    for name, value in vars(metric).items():
        if name in metric.metric_state or type(value) in (int, float) or isinstance(value, Tensor):
            kept[name] = value
    return kept
