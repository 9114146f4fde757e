"""Minibatches of a data set that lives on one device, as uint8, and is gathered there.

The order of an epoch is a function of (seed, epoch) alone, and a rank takes every world_size-th example of
each global minibatch: a resumed run, and a run on several devices, sees the same minibatches, and each
example is seen once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# (images (b, 28, 28) uint8, labels (b,) int64, size of the global minibatch that they are a part of)
Minibatch = tuple[Tensor, Tensor, int]


class Shuffle:
    """The order of the examples of an epoch; Lightning calls `set_epoch` as each epoch starts.

    Args:
        n: Number of examples.
        seed: Together with the epoch it decides the order; None keeps the order of the data.
    """

    def __init__(self, n: int, seed: int | None) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order is wanted."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return a permutation of range(n), shape (n,), int64, on the CPU."""
        if self.seed is None:
            return torch.arange(self.n)
        # One 64-bit seed for each pair: neighbouring seeds or epochs must not share an order.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.n, generator=generator)


class Minibatches:
    """Consecutive minibatches, each gathered when its turn comes, so that it is in the cache when it is used.

    Not a list, which Lightning would take apart to move it to the device.

    Args:
        batches: What they are a part of.
        chosen: (n,) int64, the examples in their order, on the device of the data set.
    """

    def __init__(self, batches: "Batches", chosen: Tensor) -> None:
        self.batches, self.chosen = batches, chosen

    def __len__(self) -> int:
        """Return the number of minibatches."""
        return -(-len(self.chosen) // self.batches.batch_size)

    def __iter__(self) -> Iterator[Minibatch]:
        """Yield this rank's share of each."""
        own = self.batches
        for whole in self.chosen.split(own.batch_size):
            mine = whole[own.rank :: own.world_size]
            images = own.images.index_select(0, mine)  # of uint8, 30 times as fast as images[mine]
            yield images.to(own.device), own.labels.index_select(0, mine).to(own.device), len(whole)


class Batches:
    """An iterable over one epoch that yields up to `steps` consecutive minibatches at a time.

    These are what one `training_step` works on (`steps_per_execution` in Keras): the minibatches, and the
    updates made with them, are the same whatever `steps` is.

    Args:
        images: (m, 28, 28) uint8, the data set, on the device that gathers.
        labels: (m,) int64, on the same device.
        index: (n,) int64, the examples of the set that belong to this split.
        batch_size: Examples in a global minibatch, over all ranks; the last one of an epoch may be smaller.
        steps: Minibatches at a time.
        seed: Seed of the order; None for the order of `index`.
        rank: This process among `world_size`.
        world_size: Number of processes that share each minibatch.
        device: Where the minibatches go; None for the device of the data set.

    Attributes:
        sampler: The `Shuffle` that decides the order.
        position: Minibatches of this epoch that have been handed out, or 0 when all have been.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler for this one too

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        batch_size: int,
        steps: int = 1,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or images.device
        self.images, self.labels, self.index = images, labels, index
        self.batch_size, self.steps = batch_size, steps
        self.rank, self.world_size = rank, world_size
        self.sampler = Shuffle(len(index), seed)
        self.position = 0
        self._resumed: int | None = None  # the epoch that `position` was loaded for

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches in an epoch."""
        return -(-len(self.index) // self.batch_size)

    def __len__(self) -> int:
        """Times that `steps` minibatches are handed out in an epoch; the last may be fewer."""
        return -(-self.steps_per_epoch // self.steps)

    def __iter__(self) -> Iterator[Minibatches]:
        """Yield the minibatches of this epoch, all of them unless `load_state_dict` says where to go on."""
        if self._resumed != self.sampler.epoch:  # what an earlier pass left unread does not count
            self.position = 0
        self._resumed = None
        order = self.index[self.sampler.order()].to(self.images.device)
        for end in range(self.steps, self.steps_per_epoch + self.steps, self.steps):
            if end > self.position:
                start = self.position
                self.position = end if end < self.steps_per_epoch else 0
                yield Minibatches(self, order[start * self.batch_size : end * self.batch_size])

    def state_dict(self) -> dict[str, int]:
        """Return which epoch this is and how far it has come, for a checkpoint."""
        return {"epoch": self.sampler.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, once and if the next pass is of the same epoch."""
        self._resumed, self.position = state["epoch"], state["position"]
