"""Ordinary DataLoaders go on where a run stopped: in the order of its epoch, after the batches trained on.

Lightning brings neither back. It warns, and trains on other images.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from softmax_regression.runs.loops import validated_batches
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.random_numbers import RandomState, random_state, set_random_state

SOURCES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


@dataclass
class LoaderPosition:
    """Where a run stands in its training data and its random numbers, to go on from there.

    Attributes:
        random: The random numbers of the run to resume, until they are drawn on; empty in a new run.
        generators: The states of the generators and counts that the loader, its samplers and data have of their own.
        order: All those from which the order of its epoch was drawn; empty if no epoch was under way.
        first: Those with which its first batch was drawn; empty if they are the same.
        batches: How many batches of the epoch were trained on.
        epoch: The epoch that was under way, counted from 0.
        started: Whether there was a first one.
        validated: How many batches there were of each validation loader.
        several: Whether there are several training loaders.
    """

    random: RandomState = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    order: dict[str, Any] = field(default_factory=dict)
    first: RandomState = field(default_factory=dict)
    batches: int = 0
    epoch: int = 0
    started: bool = False
    validated: dict[int, int] = field(default_factory=dict)
    several: bool = False

    def set(self, saved: Mapping[str, Any], random: RandomState) -> None:
        """Go on from what `position_of` returned, with the random numbers of this process."""
        vars(self).update(saved, random=random)
        if self.batches and self.several:
            print_rank_zero("several training loaders: the epoch that was under way goes on in another order")


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that notes what its order was drawn from, and goes on from a position.

    Attributes:
        position: From which it goes on.
        order: The random numbers before the order of this epoch was drawn from them.
        first: Those before its first batch: Lightning asks for the iterator of a run's first epoch much earlier.
        counts: What its samplers and data counted when it was made.
    """

    position: LoaderPosition
    order: dict[str, Any]
    first: RandomState
    counts: Mapping[str, Any]

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
            self._set_sources(position.generators)
        self.order = random_state() | self.source_states()
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
        self._set_sources(self.order)
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

    def _sources(self) -> dict[str, tuple[Any, str]]:
        """Return which attributes of the loader, its samplers and its data draw or count, by names."""
        parts: dict[str, Any] = {"loader": self, "sampler": self.sampler, "batches": self.batch_sampler}
        parts["sampler of batches"] = getattr(self.batch_sampler, "sampler", None)
        parts["data"] = self.dataset
        found = {}
        for name, part in parts.items():
            for attribute, value in getattr(part, "__dict__", {}).items():
                draws = isinstance(value, SOURCES) and not isinstance(value, random.SystemRandom)  # it has no state
                if draws or (type(value) is int and part is not self):
                    found[f"{name}.{attribute}"] = part, attribute
        return found

    def all_states(self) -> dict[str, Any]:
        """Return the states of these generators, and all counts."""
        return {name: _state_of(getattr(*where)) for name, where in self._sources().items()}

    def source_states(self) -> dict[str, Any]:
        """Return the states of these generators, and the counts that have changed since the loader was made."""
        states = self.all_states()
        return {
            name: state for name, state in states.items() if type(state) is not int or state != self.counts.get(name)
        }

    def _set_sources(self, states: Mapping[str, Any]) -> None:
        for name, (part, attribute) in self._sources().items():
            if name in states:
                setattr(part, attribute, _with_state(getattr(part, attribute), states[name]))

    def note_first(self) -> None:
        """Note the random numbers before the first batch, unless workers have drawn the order of batches already."""
        if self.num_workers == 0:
            self.first = random_state()

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing; that there is a state tells Lightning that this loader goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, see `state_dict`."""


def _state_of(source: Any) -> Any:
    """Return a count, or the state of a source of random numbers as plain data."""
    if isinstance(source, torch.Generator):
        return source.get_state()
    if isinstance(source, random.Random):
        return source.getstate()
    if isinstance(source, np.random.Generator):
        return json.dumps(source.bit_generator.state, default=np.ndarray.tolist)
    if isinstance(source, np.random.RandomState):
        return json.dumps(source.get_state(legacy=False), default=np.ndarray.tolist)
    return source


def _with_state(source: Any, state: Any) -> Any:
    """Return a count, or a source of random numbers that draws on from a state."""
    if isinstance(source, torch.Generator):
        source.set_state(state.clone())
    elif isinstance(source, random.Random):
        source.setstate(state)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = json.loads(state)
    elif isinstance(source, np.random.RandomState):
        source.set_state(json.loads(state))
    else:
        return state
    return source


def position_of(trainer: Trainer) -> dict[str, Any]:
    """Return where a run stands in its training data, for a checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    loader: Any = trainer.train_dataloader
    resumable = isinstance(loader, ResumableLoader)
    return {
        "order": loader.order if resumable and not progress.is_last_batch else {},
        "first": loader.first if resumable and not progress.is_last_batch else {},
        "generators": loader.source_states() if resumable else {},
        "batches": 0 if progress.is_last_batch else progress.current.ready,
        "epoch": trainer.current_epoch,
        "started": trainer.fit_loop.epoch_progress.current.ready > 0,
        "validated": dict(validated_batches(trainer)),
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
            made: Any = loader
            made.__class__ = type(kind.__name__, (ResumableLoader, kind), {})
            made.counts = made.all_states()
        if isinstance(loader, ResumableLoader):
            loader.position = position
        return loader

    strategy.process_dataloader = process_dataloader
