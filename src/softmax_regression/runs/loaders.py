"""Ordinary DataLoaders resume within an epoch: with the order of its examples, after the batches already trained on.

Lightning restores neither: it warns, and trains on other images.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from softmax_regression.runs.loops import is_epoch_over, waiting_batches
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.random_numbers import (
    RandomState,
    own_states,
    random_state,
    set_own_states,
    set_random_state,
)


@dataclass
class LoaderPosition:
    """Where the training loaders of a resumed run begin.

    Attributes:
        random: The states of the global generators, until they have been set; empty in a new run.
        loaders: The state of each loader by its number, see `ResumableLoader.place` and `loader_states`; it is
            removed when the loader is resumed.
        epoch: The current epoch, counted from 0.
        started: Whether any epoch has begun.
        validated: Whether the loaders of the validation have been iterated over.
        places: Number of loaders for which the Trainer has asked so far.
    """

    random: RandomState = field(default_factory=dict)
    loaders: dict[int, dict[str, Any]] = field(default_factory=dict)
    epoch: int = 0
    started: bool = False
    validated: bool = False
    places: int = 0


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that keeps what its order was drawn from, and resumes from a position.

    Its sources are the generators of the loader, see `own_generators`, and the numbers that its samplers, its data and
    its `collate_fn` have as attributes: they count, or a hook sets them.

    Attributes:
        position: The position of the run.
        place: The number of this loader, in the order in which the Trainer has asked for the training loaders.
        order: The states of the global generators and the sources before the order of this epoch was drawn.
        first: These states before the first batch; empty if workers draw the order of the batches earlier.
        batches: Number of batches of this epoch so far.
        counts: The counts when the loader was made, by the names of `_counts`.
    """

    position: LoaderPosition
    place: int
    order: dict[str, Any]
    first: dict[str, Any]
    batches: int
    counts: Mapping[str, int]

    def __iter__(self) -> Any:
        """Return the iterator of an epoch, or of the rest of the interrupted one."""
        position = self.position
        saved = position.loaders.pop(self.place, {})
        resumes = bool(position.random) and position.started
        has_workers = not self.persistent_workers or self._iterator is not None
        if not has_workers and (position.epoch > 0 or (resumes and not saved.get("order"))):
            _start_workers(super().__iter__)
        if saved.get("order"):
            return self._rest_of_epoch(saved)
        if resumes:  # unlike an uninterrupted run, it draws the order before the training begins
            set_random_state(position.random)
        self.order = random_state() | self.source_states()
        iterator = super().__iter__()
        if resumes and isinstance(self.dataset, IterableDataset):
            position.random = {}  # the first batch is drawn right now
        elif resumes:
            position.random |= random_state()
        return self._count(iterator)

    def _count(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of an epoch, and count them."""
        self.batches = 0
        self.first = {}
        if self.num_workers == 0:
            self.first = random_state() | self.source_states()
        for batch in iterator:
            self.batches += 1
            yield batch

    def _rest_of_epoch(self, saved: Mapping[str, Any]) -> Iterator[Any]:
        """Return an iterator over the rest of an epoch; `saved` has the fields that `position_of` returned."""
        samplers: list[Any] = [self.sampler, getattr(self.batch_sampler, "sampler", None)]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):  # Lightning calls it later
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

    def _counts(self) -> dict[str, tuple[Any, str]]:
        """Return, by a name, the object and the attribute of each number of the samplers, the data and `collate_fn`."""
        parts: dict[str, Any] = {"sampler": self.sampler, "batches": self.batch_sampler, "data": self.dataset}
        parts |= {"sampler of batches": getattr(self.batch_sampler, "sampler", None), "collate": self.collate_fn}
        parts["data of a Subset"] = getattr(self.dataset, "dataset", None)
        found = {}
        for name, part in parts.items():
            for attribute, value in getattr(part, "__dict__", {}).items():
                if type(value) in (int, float, bool):
                    found[f"{name}.{attribute}"] = part, attribute
        return found

    def source_states(self) -> dict[str, Any]:
        """Return the states of the generators, and the counts that have changed since the loader was made."""
        states: dict[str, Any] = own_states({"loader": self})
        for name, where in self._counts().items():
            count = getattr(*where)
            if count != self.counts.get(name):
                states[name] = count
        return states

    def set_sources(self, states: Mapping[str, Any]) -> None:
        """Set the generators and counts to what `source_states` returned, other counts to what they first were."""
        set_own_states({"loader": self}, states)
        counts = {**self.counts, **states}
        for name, where in self._counts().items():
            if name in counts:
                setattr(*where, counts[name])

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how pickle makes a copy: pickle does not find the class, which was made in this process."""
        _, kind = type(self).__bases__
        return _new_resumable, (kind,), vars(self)

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing: the presence of this method tells Lightning that the loader resumes within an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, see `state_dict`."""


def _start_workers(begin: Callable[[], object]) -> None:
    """Start persistent workers: this draws a random number, in an uninterrupted run only before its first epoch."""
    print_rank_zero("persistent_workers: what the workers draw at random is other than without the interruption")
    with isolate_rng():
        begin()


def loader_states(trainer: Trainer) -> dict[int, dict[str, Any]]:
    """Return the state of each training loader by its number, for `LoaderPosition.loaders`.

    `generators` are the states of its sources; within an epoch, `order`, `first` and `batches` are its attributes, and
    `waiting` is the number of batches that have been fetched but not trained on.
    """
    is_over = is_epoch_over(trainer)
    every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if is_over and every and trainer.fit_loop.epoch_progress.current.ready % every == 0:
        return {}  # the next epoch has new loaders
    states: dict[int, dict[str, Any]] = {}
    for place, loader in enumerate(CombinedLoader(trainer.train_dataloader).flattened):
        if not isinstance(loader, ResumableLoader):
            continue
        states[place] = {"generators": loader.source_states()}
        if not is_over:
            states[place] |= {"order": loader.order, "first": loader.first}
            states[place] |= {"batches": loader.batches, "waiting": waiting_batches(trainer)}
    return states


def make_loaders_resumable(trainer: Trainer, position: LoaderPosition) -> None:
    """Let the training loaders of a Trainer resume from a position, if they are DataLoaders without a state."""
    strategy: Any = trainer.strategy
    # A partial can be pickled with its Trainer; a function defined in this one could not.
    strategy.process_dataloader = partial(_process_dataloader, strategy.process_dataloader, trainer, position)


def _process_dataloader(
    process: Callable[[object], object], trainer: Trainer, position: LoaderPosition, loader: object
) -> object:
    """Return a loader as the strategy's own method `process` does; one for the training can be resumed."""
    loader = process(loader)
    if not trainer.training:
        if position.validated and getattr(loader, "persistent_workers", False):
            _start_workers(partial(iter, loader))
        return loader
    place = position.places
    position.places += 1
    if isinstance(loader, DataLoader) and not hasattr(loader, "state_dict"):
        made: Any = loader
        # Not by the loader's __setattr__: after an error in a user's `train_dataloader`, Lightning leaves one in place
        # that records what is set, and pickle does not find this class.
        object.__setattr__(made, "__class__", _resumable(type(loader)))
        made.counts = {name: getattr(*where) for name, where in made._counts().items()}
    elif position.started and not hasattr(loader, "state_dict"):
        name = type(loader).__name__
        print_rank_zero(f"{name}: has no state_dict, so its minibatches are other than without the interruption")
    if isinstance(loader, ResumableLoader):
        loader.position = position
        loader.place = place
        loader.batches = 0
        loader.order = {}
        loader.first = {}
        loader.set_sources(position.loaders.get(place, {}).get("generators", {}))
    return loader


def _resumable(kind: type[DataLoader[Any]]) -> type[ResumableLoader]:
    """Return a class of resumable loaders that is otherwise like a class of loaders."""
    return type(kind.__name__, (ResumableLoader, kind), {"__module__": kind.__module__})


def _new_resumable(kind: type[DataLoader[Any]]) -> ResumableLoader:
    """Return a loader without attributes, for pickle."""
    return object.__new__(_resumable(kind))
