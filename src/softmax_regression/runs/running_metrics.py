"""What a module has logged in an epoch that is under way: the means of a resumed epoch are those of all its batches.

Lightning keeps none of it in a checkpoint, and torchmetrics nothing that is not persistent.
"""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers import MetricTracker

from softmax_regression.engine.callback import results_of_epoch
from softmax_regression.metrics import EpochScores

# What `self.log` was told of a value, by the names of its arguments; and how it reduces values to one.
ARGUMENTS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx",
             "metric_attribute")  # fmt: skip
REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)


class RunningMetrics:
    """What was logged before a run was interrupted, until training goes on.

    Attributes:
        logged: What was given to `self.log`, and the sums of it.
    """

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def state_dict(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Return what was logged in this process, and the states of the metrics that the module has.

        Those that Lightning is about to reset, after a validation or an epoch, are left out.
        """
        results = results_of_epoch(trainer)
        about_to_be_reset = _logged_metrics(results_of_epoch(trainer, of_validation=True))
        logged = []
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            about_to_be_reset += _logged_metrics(results)
        else:
            own = dict(_parts(module, Metric))  # a Classifier logs its scores again itself
            for result in results.values():
                if not result.has_reset and (result.is_tensor or result.meta.metric_attribute in own):
                    logged.append(_logged(result))
        states = {}
        for name, metric in _parts(module, Metric):
            if not any(metric is each for each in about_to_be_reset):
                states[name] = _state(metric)
        trackers = {name: len(tracker) for name, tracker in _parts(module, MetricTracker)}
        return {"logged": logged, "metrics": states, "trackers": trackers}

    def load_state_dict(self, state: dict[str, Any], module: LightningModule) -> None:
        """Take up the states of the module's metrics, and keep what was logged for `go_on`."""
        self.logged = state["logged"]
        for name, tracker in _parts(module, MetricTracker):
            for _ in range(len(tracker), state.get("trackers", {}).get(name, 0)):
                tracker.increment()
        for name, metric in _parts(module, Metric):
            vars(metric).update(state["metrics"].get(name, {}))

    def go_on(self, trainer: Trainer, module: LightningModule) -> None:
        """Log again what was logged in the epoch that was under way."""
        results: Any = results_of_epoch(trainer)
        for saved in self.logged:
            arguments = saved["arguments"]
            value: Any = torch.zeros(())
            if arguments["metric_attribute"]:
                value = module.get_submodule(arguments["metric_attribute"])
            options = {"reduce_fx": REDUCTIONS[saved["reduction"]], "sync_dist_fn": trainer.strategy.reduce}
            results.log(**arguments, **options, value=value, batch_size=1)
            state = move_data_to_device(saved["state"], trainer.strategy.root_device)
            vars(results[f"{arguments['fx']}.{arguments['name']}"]).update(state)
        self.logged = []


def _logged(result: Any) -> dict[str, Any]:
    """Return what was given to `self.log` under a name, and the sum of it, as plain data."""
    meta = result.meta
    arguments = {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    for name in ARGUMENTS:
        arguments[name] = getattr(meta, name)
    state = {}
    if result.is_tensor:
        state = result.metric_state
    if meta.on_step:
        state["_forward_cache"] = result._forward_cache
    return {"arguments": arguments, "reduction": REDUCTIONS.index(meta.reduce_fx), "state": state}


def _logged_metrics(results: dict[str, Any]) -> list[Any]:
    """Return the metrics that were given to `self.log` and not reset since, and those within them."""
    found: list[Any] = []
    for result in results.values():
        if not result.is_tensor and not result.has_reset:
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
