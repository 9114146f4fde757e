"""The metrics of an unfinished epoch in a checkpoint, so that the means of a resumed epoch are those of all batches.

Lightning saves none of what was logged, and torchmetrics saves only persistent states.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.wrappers import MetricTracker

from softmax_regression.engine.callback import results_of_epoch
from softmax_regression.metrics import EpochScores
from softmax_regression.runs.loops import is_epoch_over

# The values that the argument `reduce_fx` of Lightning's `log` can have; a checkpoint holds the index.
REDUCTIONS: tuple[Any, ...] = (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)


def running_metrics(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return what was logged in this process, and the states of the module's metrics, as plain data.

    For each metric, `logged` has the arguments of `self.log` and the sums; `values` are `callback_metrics`, and `sent`
    is what loggers got; `buffers` are those that are in no `state_dict`, such as a queue of what the module computed
    before. Metrics that Lightning resets next, after the current validation or epoch, are left out.
    """
    results = results_of_epoch(trainer)
    about_to_be_reset = _logged_metrics(results_of_epoch(trainer, of_validation=True))
    logged = []
    if is_epoch_over(trainer):
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
    state = {"logged": logged, "metrics": states, "trackers": trackers}
    values = {"values": dict(trainer.callback_metrics), "sent": dict(trainer.logged_metrics)}
    return state | values | {"buffers": _unsaved_buffers(module)}


def load_metrics(module: LightningModule, saved: Mapping[str, Any]) -> None:
    """Load the states of the module's metrics that `running_metrics` returned."""
    for name, tracker in _parts(module, MetricTracker):
        for _ in range(len(tracker), saved["trackers"].get(name, 0)):
            tracker.increment()
    for name, metric in _parts(module, Metric):
        vars(metric).update(saved["metrics"].get(name, {}))


def log_again(trainer: Trainer, module: LightningModule, saved: Mapping[str, Any]) -> None:
    """Log again what was logged in the interrupted epoch, and restore `callback_metrics` and the buffers."""
    results: Any = results_of_epoch(trainer)
    saved = move_data_to_device(dict(saved), trainer.strategy.root_device)
    for logged in saved["logged"]:
        arguments = logged["arguments"]
        value: Any = torch.zeros(())
        if arguments.get("metric_attribute"):
            value = module.get_submodule(arguments["metric_attribute"])
        options = {"reduce_fx": REDUCTIONS[logged["reduction"]], "sync_dist_fn": trainer.strategy.reduce}
        results.log(**arguments, **options, value=value, batch_size=1)
        vars(results[f"{arguments['fx']}.{arguments['name']}"]).update(logged["state"])
    trainer.callback_metrics.update(saved["values"])
    trainer.logged_metrics.update(saved.get("sent", {}))
    for name, buffer in saved["buffers"].items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, buffer)


def _unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a module that are registered with `persistent=False`."""
    found = {}
    for name, buffer in module.named_buffers():
        owner, _, attribute = name.rpartition(".")
        if attribute in module.get_submodule(owner)._non_persistent_buffers_set:
            found[name] = buffer
    return found


def _logged(result: Any) -> dict[str, Any]:
    """Return the arguments of `self.log` for one of Lightning's results, and its sums, as plain data."""
    meta = result.meta
    arguments = {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    for name, value in vars(meta).items():
        if isinstance(value, str | bool):
            arguments[name] = value
    return {"arguments": arguments, "reduction": REDUCTIONS.index(meta.reduce_fx), "state": _state(result)}


def _logged_metrics(results: dict[str, Any]) -> list[Any]:
    """Return the metric objects that were logged and not reset since, and the metrics that they contain."""
    found: list[Any] = []
    for result in results.values():
        if not result.is_tensor and not result.has_reset:
            found.extend(result.value.modules())
    return found


def _parts(module: nn.Module, kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield names and submodules of a class; not those of a Classifier's scores, which it saves itself."""
    for name, part in module.named_children():
        if isinstance(part, kind):
            yield prefix + name, part
        if not isinstance(part, EpochScores):
            yield from _parts(part, kind, f"{prefix}{name}.")


def _state(metric: Metric) -> dict[str, Any]:
    """Return the states of a metric and its other numbers, such as the count of updates or the last value."""
    kept = {}
    for name, value in vars(metric).items():
        if name in metric.metric_state or type(value) in (int, float) or isinstance(value, Tensor):
            kept[name] = value
    return kept
