"""Ordinary DataLoaders go on where a run stopped: in the order of its epoch, after the batches trained on.

Lightning brings neither back. It warns, and trains on other images.
"""

from collections.abc import Mapping
from typing import Any

import torch
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
        generators: Those of the generators that the loader has of its own.
        order: All those from which the order of its epoch was drawn; empty if no epoch was under way.
        first: Those with which its first batch was drawn; empty if they are the same.
        batches: How many batches of the epoch were trained on.
        epoch: The epoch that was under way, counted from 0.
        started: Whether there was a first one.
    """

    def __init__(self) -> None:
        self.random: RandomState = {}
        self.generators: RandomState = {}
        self.order: RandomState = {}
        self.first: RandomState = {}
        self.batches = 0
        self.epoch = 0
        self.started = False

    def set(self, saved: Mapping[str, Any], random: RandomState) -> None:
        """Go on from what `position_of` returned, with the random numbers of this process."""
        self.random = random
        self.generators = saved.get("generators", {})
        self.order = saved.get("order", {})
        self.first = saved.get("first", {})
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
        first: Those before its first batch: Lightning asks for the iterator of a run's first epoch much earlier.
    """

    position: LoaderPosition
    order: RandomState
    first: RandomState

    def __iter__(self) -> Any:
        """Return the iterator of an epoch, or of the rest of the one that was under way."""
        position = self.position
        goes_on = bool(position.random) and position.started
        if self.persistent_workers and (position.epoch > 0 or (goes_on and not position.order)):
            self._start_workers()
        if position.order:
            return self._rest_of_epoch()
        if goes_on:  # draws before the training begins, other than a run that was not interrupted
            set_random_state(position.random)
            self._set_generators(position.generators)
        self.order = random_state() | self.generator_states()
        self.first = {}
        iterator = super().__iter__()
        if goes_on and isinstance(self.dataset, IterableDataset):
            position.random = {}  # the first batch is drawn right now
        elif goes_on:
            position.random |= random_state()
        return iterator

    def _start_workers(self) -> None:
        """Start workers that stay: that draws a random number, in the first epoch of a run only."""
        if self._iterator is None:
            print_rank_zero(
                "persistent_workers: what the workers draw at random is other than without the interruption"
            )
            with isolate_rng():
                super().__iter__()

    def _rest_of_epoch(self) -> Any:
        self.order, self.position.order = self.position.order, {}
        self.first = self.position.first
        self._set_generators(self.order)
        samplers: list[Any] = [self.sampler, getattr(self.batch_sampler, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):  # which Lightning calls later
                sampler.set_epoch(self.position.epoch)
        with isolate_rng():
            set_random_state(self.order)
            iterator = super().__iter__()
            if self.first:
                set_random_state(self.first)
            for _ in range(self.position.batches):
                next(iterator)
        return iterator

    def _generators(self) -> dict[str, torch.Generator]:
        """Return the generators that the loader and its samplers have of their own, by where they are."""
        batch_sampler = self.batch_sampler
        parts = {"loader": self, "sampler": self.sampler, "batches": batch_sampler}
        parts["sampler of batches"] = getattr(batch_sampler, "sampler", None)
        generators = {}
        for name, part in parts.items():
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generators[name] = generator
        return generators

    def generator_states(self) -> RandomState:
        """Return the states of these generators."""
        return {name: generator.get_state() for name, generator in self._generators().items()}

    def _set_generators(self, states: RandomState) -> None:
        for name, generator in self._generators().items():
            if name in states:
                generator.set_state(states[name].clone())

    def note_first(self) -> None:
        """Note the random numbers before the first batch, unless workers have drawn the order of batches already."""
        if self.num_workers == 0:
            self.first = random_state()

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing; that there is a state tells Lightning that this loader goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, see `state_dict`."""


def position_of(trainer: Trainer) -> dict[str, Any]:
    """Return where a run stands in its training data, for a checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    loader: Any = trainer.train_dataloader
    resumable = isinstance(loader, ResumableLoader)
    return {
        "order": loader.order if resumable and not progress.is_last_batch else {},
        "first": loader.first if resumable and not progress.is_last_batch else {},
        "generators": loader.generator_states() if resumable else {},
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
        return loader

    strategy.process_dataloader = process_dataloader
