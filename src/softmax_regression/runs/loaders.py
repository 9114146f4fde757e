"""Ordinary DataLoaders go on where a run stopped: in the order of its epoch, after the batches trained on.

Lightning brings neither back. It warns, and trains on other images.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from softmax_regression.runs.loops import consumed_loaders, training_loaders, validated_batches, waiting_batches
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.random_numbers import (
    SOURCES,
    RandomState,
    random_state,
    set_random_state,
    set_state,
    state_of,
)


@dataclass
class LoaderPosition:
    """Where a run stands in its training data and its random numbers, to go on from there.

    Attributes:
        random: The random numbers of the run to resume, until they are drawn on; empty in a new run.
        loaders: Of each training loader, by its place among them, see `ResumableLoader.place`; it is taken out once
            the loader goes on.
        batches: How many batches of the epoch were trained on.
        epoch: The epoch that was under way, counted from 0.
        started: Whether there was a first one.
        validated: How many batches there were of each validation loader.
        consumed: Which of several training loaders had begun again in the epoch, because others are longer.
    """

    random: RandomState = field(default_factory=dict)
    loaders: dict[int, dict[str, Any]] = field(default_factory=dict)
    batches: int = 0
    epoch: int = 0
    started: bool = False
    validated: dict[int, int] = field(default_factory=dict)
    consumed: list[bool] = field(default_factory=list)

    def set(self, saved: Mapping[str, Any], random: RandomState) -> None:
        """Go on from what `position_of` returned, with the random numbers of this process."""
        vars(self).update(saved, random=random)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that notes what its order was drawn from, and goes on from a position.

    Attributes:
        position: From which the run goes on.
        place: The number of this loader among those that the run has asked for.
        order: The random numbers, generators and counts before the order of this epoch was drawn from them.
        first: Those before the first batch, unless workers have drawn the order of batches before.
        batches: How many batches it has given since.
        counts: What its samplers and data counted when it was made.
    """

    position: LoaderPosition
    place: int
    order: dict[str, Any]
    first: dict[str, Any]
    batches: int
    counts: Mapping[str, Any]

    def __iter__(self) -> Any:
        """Return the iterator of an epoch, or of the rest of the one that was under way."""
        position = self.position
        saved = position.loaders.pop(self.place, {})
        goes_on = bool(position.random) and position.started
        if self.persistent_workers and (position.epoch > 0 or (goes_on and not saved.get("order"))):
            self._start_workers()
        if saved.get("order"):
            return self._rest_of_epoch(saved)
        if goes_on:  # draws before the training begins, other than a run that was not interrupted
            set_random_state(position.random)
        self.order = random_state() | self.source_states()
        iterator = super().__iter__()
        if goes_on and isinstance(self.dataset, IterableDataset):
            position.random = {}  # the first batch is drawn right now
        elif goes_on:
            position.random |= random_state()
        return self._count(iterator)

    def _start_workers(self) -> None:
        """Start workers that stay: that draws a random number, in the first epoch of a run only."""
        if self._iterator is None:
            print_rank_zero(
                "persistent_workers: what the workers draw at random is other than without the interruption"
            )
            with isolate_rng():
                super().__iter__()

    def _count(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of an epoch, and count them."""
        self.batches = 0
        self.first = {}
        if self.num_workers == 0:
            self.first = random_state() | self.source_states()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.batches += 1
            yield batch

    def _rest_of_epoch(self, saved: Mapping[str, Any]) -> Iterator[Any]:
        """Return an iterator over the batches that are left of an epoch whose beginning was noted."""
        samplers: list[Any] = [self.sampler, getattr(self.batch_sampler, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):  # which Lightning calls later
                sampler.set_epoch(self.position.epoch)
        self.order = saved["order"]
        self.set_sources(self.order)
        with isolate_rng():
            set_random_state(self.order)
            iterator = super().__iter__()
            if saved["first"]:
                set_random_state(saved["first"])
                self.set_sources(saved["first"])
            batches = self._count(iterator)
            for _ in range(saved["batches"] - saved["waiting"]):
                next(batches)
            waiting = [next(batches) for _ in range(saved["waiting"])]
        return itertools.chain(waiting, batches)

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
        states = {}
        for name, (part, attribute) in self._sources().items():
            value = getattr(part, attribute)
            states[name] = value if type(value) is int else state_of(value)
        return states

    def source_states(self) -> dict[str, Any]:
        """Return the states of these generators, and the counts that have changed since the loader was made."""
        states = self.all_states()
        return {
            name: state for name, state in states.items() if type(state) is not int or state != self.counts.get(name)
        }

    def set_sources(self, states: Mapping[str, Any]) -> None:
        """Let these generators draw, and counts count, on from such states."""
        for name, (part, attribute) in self._sources().items():
            if name not in states:
                continue
            value = getattr(part, attribute)
            if type(value) is int:
                setattr(part, attribute, states[name])
            else:
                set_state(value, states[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing; that there is a state tells Lightning that this loader goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, see `state_dict`."""


def position_of(trainer: Trainer) -> dict[str, Any]:
    """Return where a run stands in its training data, for a checkpoint."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    loaders: dict[int, dict[str, Any]] = {}
    for place, loader in enumerate(training_loaders(trainer)):
        if not isinstance(loader, ResumableLoader):
            continue
        loaders[place] = {"generators": loader.source_states()}
        if not progress.is_last_batch:
            loaders[place] |= {"order": loader.order, "first": loader.first}
            loaders[place] |= {"batches": loader.batches, "waiting": waiting_batches(trainer)}
    return {
        "loaders": loaders,
        "batches": 0 if progress.is_last_batch else progress.current.ready,
        "epoch": trainer.current_epoch,
        "started": trainer.fit_loop.epoch_progress.current.ready > 0,
        "validated": dict(validated_batches(trainer)),
        "consumed": list(consumed_loaders(trainer)),
    }


def make_loaders_resumable(trainer: Trainer, position: LoaderPosition) -> None:
    """Let the training loaders that a Trainer asks for go on from a position, if they are DataLoaders."""
    strategy: Any = trainer.strategy
    process = strategy.process_dataloader
    places = itertools.count()

    def process_dataloader(loader: object) -> object:
        loader = process(loader)
        if not trainer.training:
            return loader
        place = next(places)
        if isinstance(loader, DataLoader) and not hasattr(loader, "state_dict"):
            kind = type(loader)
            made: Any = loader
            made.__class__ = type(kind.__name__, (ResumableLoader, kind), {})
            made.counts = made.all_states()
        if isinstance(loader, ResumableLoader):
            loader.position = position
            loader.place = place
            loader.batches, loader.order, loader.first = 0, {}, {}
            loader.set_sources(position.loaders.get(place, {}).get("generators", {}))
        return loader

    strategy.process_dataloader = process_dataloader
