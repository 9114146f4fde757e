"""Ordinary DataLoaders go on where a run stopped: in the order of its epoch, after the batches trained on.

Lightning brings neither back. It warns, and trains on other images.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.random_numbers import RandomState, random_state, set_random_state


class LoaderPosition:
    """Where a run stands in its training data and its random numbers, to go on from there.

    Attributes:
        random: The random numbers of the run to resume, until they are drawn on; empty in a new run.
        order: Those from which the order of its epoch was drawn; empty if no epoch was under way.
        batches: How many batches of the epoch were trained on.
        epoch: The epoch that was under way, counted from 0.
        started: Whether there was a first one.
    """

    def __init__(self) -> None:
        self.random: RandomState = {}
        self.order: RandomState = {}
        self.batches = 0
        self.epoch = 0
        self.started = False

    def set(self, saved: Mapping[str, Any], random: RandomState) -> None:
        """Go on from what `position_of` returned, with the random numbers of this process."""
        self.random = random
        self.order = saved.get("order", {})
        self.batches = saved.get("batches", 0)
        self.epoch = saved.get("epoch", 0)
        self.started = saved.get("started", False)
        if self.batches and saved["several"]:
            print_rank_zero("several training loaders: the epoch that was under way goes on in another order")


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that notes what its order was drawn from, and goes on from a position.

    Attributes:
        position: From which it goes on.
        order: The random numbers before the order of this epoch was drawn from them.
    """

    position: LoaderPosition
    order: RandomState

    def __iter__(self) -> Any:
        """Return the iterator of an epoch, or of the rest of the one that was under way."""
        position = self.position
        if position.order:
            return self._rest_of_epoch()
        goes_on = bool(position.random) and position.started
        if goes_on:  # draws before the training begins, other than a run that was not interrupted
            set_random_state(position.random)
        self.order = random_state()
        iterator = super().__iter__()
        if goes_on and isinstance(self.dataset, IterableDataset):
            position.random = {}  # the first batch is drawn right now
        elif goes_on:
            position.random |= random_state()
        return iterator

    def _rest_of_epoch(self) -> Any:
        self.order, self.position.order = self.position.order, {}
        samplers: list[Any] = [self.sampler, getattr(self.batch_sampler, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):  # which Lightning calls later
                sampler.set_epoch(self.position.epoch)
        with isolate_rng():
            set_random_state(self.order)
            iterator = super().__iter__()
            for _ in range(self.position.batches):
                next(iterator)
        return iterator

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing; that there is a state tells Lightning that this loader goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, see `state_dict`."""


def position_of(trainer: Trainer) -> dict[str, Any]:
    """Return where a run stands in its training data, for a checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    loader = trainer.train_dataloader
    return {
        "order": loader.order if isinstance(loader, ResumableLoader) and not progress.is_last_batch else {},
        "batches": 0 if progress.is_last_batch else progress.current.ready,
        "epoch": trainer.current_epoch,
        "started": trainer.fit_loop.epoch_progress.current.ready > 0,
        "several": isinstance(loader, list | tuple | dict),
    }


def make_loaders_resumable(trainer: Trainer, position: LoaderPosition) -> None:
    """Let the training loaders that a Trainer asks for go on from a position, if they are DataLoaders."""
    strategy: Any = trainer.strategy
    process = strategy.process_dataloader

    def process_dataloader(loader: object) -> object:
        loader = process(loader)
        if trainer.training and isinstance(loader, DataLoader) and not hasattr(loader, "state_dict"):
            kind = type(loader)
            loader.__class__ = type(kind.__name__, (ResumableLoader, kind), {})
        if isinstance(loader, ResumableLoader):
            loader.position = position
            if trainer.max_steps != -1 and position.started and not position.batches:
                # Where max_steps is set, Lightning goes on in the iterator of the epoch before.
                print_rank_zero("max_steps: this DataLoader goes on in another order; max_epochs keeps the order")
        return loader

    strategy.process_dataloader = process_dataloader
