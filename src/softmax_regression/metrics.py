"""Exact metrics over the images of an epoch, at almost no cost for a step."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassStatScores
from torchmetrics.wrappers.abstract import WrapperMetric

from softmax_regression.errors import InputError

BATCHES_PER_UPDATE = 64  # minibatches that are scored at a time, which is much faster than one at a time


def learning_rate(trainer: Trainer) -> float | None:
    """Return the learning rate of the first parameter group; None if the Trainer has no optimizer."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            return float(group["lr"])
    return None


class MeanLoss(MeanMetric):
    """The mean of the losses of images, summed in float64 whatever the dtype of the model.

    The sum of float32 losses is exact, so that it depends neither on the grouping of minibatches nor on checkpoints
    within an epoch.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")  # the other strategies wait for the device at each update

    def update(self, value: Tensor) -> None:  # type: ignore[override]
        """Add the losses (n,) of n images."""
        self.set_dtype(_widest(self.device))  # torchmetrics resets it when the metric is moved to a device
        super().update(value)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Merge the sums of all processes; they must have the same dtype, also if a process had no image."""
        self.set_dtype(_widest(self.device))
        super().sync(*args, **kwargs)

    def reset(self) -> None:
        """Reset the sum, with a dtype that every device has."""
        self.set_dtype(torch.float32)
        super().reset()


class Buffered(WrapperMetric):
    """A metric that is updated with many minibatches at a time, or when its value is computed.

    It is only for metrics that are sums over images, for which the grouping does not matter.

    Attributes:
        metric: The metric to update.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self._waiting: list[tuple[Tensor, ...]] = []
        self._flushed = False  # whether `metric` was updated since `reset`

    @property
    def started(self) -> bool:
        """Whether there was a minibatch since `reset`."""
        return self._flushed or bool(self._waiting)

    def update(self, *batch: Tensor) -> None:
        """Keep the arguments of the metric's `update` for a minibatch: tensors (n, ...) without a gradient."""
        self._waiting.append(batch)
        if len(self._waiting) == BATCHES_PER_UPDATE:
            self.flush()

    def flush(self) -> None:
        """Update the metric with the minibatches that have been kept."""
        if not self._waiting:
            return
        joined = self.join(self._waiting)
        self._waiting = []
        self._flushed = True
        self.metric.update(*joined)

    def join(self, batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """Return the arguments of the metric's `update` for several minibatches."""
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    def compute(self) -> Tensor:
        """Return the value of the metric over all images since `reset`, on all processes."""
        self.flush()
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        """Begin anew."""
        self._flushed = False
        self._waiting = []
        self.metric.reset()


class BufferedLoss(Buffered):
    """The mean loss of images; `update` takes the mean loss of a minibatch and its classes (n,)."""

    def __init__(self) -> None:
        super().__init__(MeanLoss())

    def join(self, batches: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """Return a loss for each image, (n,), which is the mean loss of its minibatch."""
        losses, classes = zip(*batches, strict=True)
        sizes = {y.shape[0] for y in classes}
        if len(sizes) == 1:
            return [torch.stack(losses)[:, None].expand(-1, sizes.pop()).flatten()]
        return [torch.cat([loss.expand(y.shape[0]) for loss, y in batches])]


class EpochScores(nn.Module):
    """The mean loss and other metrics of the images of an epoch, over all processes.

    Args:
        metrics: Name -> a metric of logits (n, k) and classes (n,).

    Attributes:
        metrics: `loss` and the given metrics, as torchmetrics' modules, which Lightning can log.

    Raises:
        InputError: A metric has the name `loss`, or one that no module can have.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self._loss = BufferedLoss()
        self._others: list[Metric] = []
        self.metrics = nn.ModuleDict({"loss": self._loss})
        for name, metric in metrics.items():
            if name in self.metrics:
                raise InputError(f"metric {name}: the mean loss has this name; choose another")
            # Only for counts of images the grouping of minibatches certainly does not matter.
            scored = Buffered(metric) if isinstance(metric, MulticlassStatScores) else metric
            self._others.append(scored)
            try:
                self.metrics[name] = scored
            except KeyError as error:  # names of modules have no dots and are no attributes
                raise InputError(f"metric {name}: {error.args[0]}; choose another name") from error

    @property
    def started(self) -> bool:
        """Whether there was a minibatch since `reset`."""
        return self._loss.started

    def update(self, logits: Tensor, y: Tensor, loss: Tensor) -> None:
        """Add the logits (n, k), classes (n,) and mean loss of a minibatch, without a gradient."""
        self._loss.update(loss, y)
        if y.shape[0] == 0:  # a process may have no share of a small minibatch
            return
        for metric in self._others:
            metric.update(logits, y)

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self._loss, *self._others):
            metric.reset()

    def saved(self) -> dict[str, Any]:
        """Return the states of all metrics for a checkpoint, merged over all processes, which must all call this.

        They are empty if there was no minibatch since `reset`, neither before nor after `load`.
        """
        if not self.started and not self._loss.metric.update_called:
            return {}
        metrics = [each for each in self.modules() if isinstance(each, Metric)]
        for metric in metrics:
            if isinstance(metric, Buffered):
                metric.flush()
        with ExitStack() as stack:
            for metric in metrics:
                stack.enter_context(metric.sync_context())
                metric.persistent(True)
            states = dict(self.metrics.state_dict())
        for metric in metrics:
            metric.persistent(False)
        # Metrics have integers outside their states: the number of updates, or a position in a window.
        counts = [{name: n for name, n in vars(metric).items() if type(n) is int} for metric in metrics]
        return {"states": states, "counts": counts}

    def load(self, saved: Mapping[str, Any], rank: int) -> None:
        """Load what `saved` returned; rank 0 takes all of it, whatever the number of processes."""
        if not saved:
            return
        metrics = [each for each in self.modules() if isinstance(each, Metric)]
        for metric, counts in zip(metrics, saved["counts"], strict=True):
            vars(metric).update(counts)
        if rank == 0:
            states = move_data_to_device(saved["states"], self._loss.device)
            self.metrics.load_state_dict(states)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
