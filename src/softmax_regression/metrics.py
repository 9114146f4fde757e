"""Exact metrics over the images of an epoch, at next to no cost for a step."""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.utilities.distributed import gather_all_tensors

BATCHES_PER_UPDATE = 64  # minibatches that are scored at a time; so many scores are computed once, not 64 times


class EpochScores(nn.Module):
    """The mean loss and other metrics of the images seen since `reset`, over all processes.

    Args:
        metrics: Name -> a metric of logits (n, k) and classes (n,).

    Attributes:
        metrics: `loss` and the metrics that were given.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        # Neither waits for the device to look for a NaN: the loss of an epoch shows it.
        self.loss = MeanMetric(nan_strategy="disable")
        self.others = MetricCollection(dict(metrics), compute_groups=False)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seen = False  # whether there is anything to compute

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EpochScores":
        """Go where the module goes, but sum in float64 whatever the weights become.

        That is exact for float32 losses, so that a save in the midst of an epoch changes no bit of the sum.
        """
        device = fn(torch.zeros(0, device=self.loss.device)).device
        if device != self.loss.device:
            self.loss.set_dtype(torch.float32)  # one of the two may have no other
        self.loss.to(device)
        self.loss.set_dtype(_widest(device))  # torchmetrics forgets it on the way
        self.others.to(device)
        return self

    def update(self, logits: Tensor, y: Tensor, loss: Tensor) -> None:
        """Take the logits (n, k), classes (n,) and mean loss of a minibatch, without a gradient."""
        self._waiting.append((logits, y, loss))
        if len(self._waiting) == BATCHES_PER_UPDATE:
            self._score()

    def _score(self) -> None:
        # Sums that do not show where a run was interrupted; `to(device)` makes torchmetrics forget the type.
        self.loss.set_dtype(_widest(self.loss.device))
        if not self._waiting:
            return
        logits, y, losses = zip(*self._waiting, strict=True)
        self._waiting, self._seen = [], True
        sizes = torch.tensor([len(part) for part in y], device=y[0].device)
        # Once for each image: torchmetrics 1.9 forgets a weight where it does not look for NaNs.
        self.loss.update(torch.stack(losses).repeat_interleave(sizes))
        if sum(map(len, y)):  # a process may have no share of a small minibatch
            self.others.update(torch.cat(logits), torch.cat(y))

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, and begin anew; none if a step of a user's own scored nothing."""
        self._score()
        if not self._seen:
            return {}
        with warnings.catch_warnings():  # that nothing came since `load_sums`
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")
            values = {"loss": self.loss.compute(), **self.others.compute()}
        self.reset()
        return {name: value.item() for name, value in values.items()}

    def reset(self) -> None:
        """Forget what was seen."""
        self._waiting, self._seen = [], False
        self.loss.reset()
        self.others.reset()

    def _metrics(self) -> dict[str, Metric]:
        return {"loss": self.loss, **{str(name): metric for name, metric in self.others.items()}}

    def sums(self, world_size: int) -> dict[str, dict[str, list[Tensor]]]:
        """Return the state of each metric, a tensor of each process, for a checkpoint; all take part."""
        self._score()
        if not self._seen:
            return {}
        gather = gather_all_tensors if world_size > 1 else lambda value: [value]
        return {
            name: {key: gather(_joined(value)) for key, value in metric.metric_state.items()}
            for name, metric in self._metrics().items()
        }

    def load_sums(self, sums: Mapping[str, Mapping[str, list[Tensor]]], rank: int, world_size: int) -> None:
        """Take up what `sums` returned; on another number of processes one of them takes it all."""
        self._seen = bool(sums)
        for name, metric in self._metrics().items():
            for key, ranks in sums.get(name, {}).items():
                mine = ranks[rank : rank + 1] if len(ranks) == world_size else ranks[: len(ranks) * (rank == 0)]
                before = metric.metric_state[key]
                setattr(metric, key, list(mine) if isinstance(before, list) else sum(mine, before))


def _joined(state: Tensor | list[Tensor]) -> Tensor:
    """Return the state of a metric as one tensor; that of an area under a curve is a list of batches."""
    return state if isinstance(state, Tensor) else torch.cat(state) if state else torch.zeros(0)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
