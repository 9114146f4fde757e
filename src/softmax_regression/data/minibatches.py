"""Minibatches of images that live on one device as uint8, and are gathered and made float there.

The order of an epoch is a function of (seed, epoch) alone, and a rank takes every world_size-th example of
each global minibatch: a resumed run, and a run on several devices, sees the same minibatches, and each
example is seen once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler, Subset, TensorDataset


class Shuffle(Sampler[int]):
    """The order of n examples in an epoch, decided by the seed and by the epoch that Lightning sets."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order is wanted."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return a permutation of range(n), shape (n,), int64, on the CPU."""
        # One 64-bit seed for each pair: neighbouring seeds or epochs must not share an order.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.n, generator=generator)

    def __len__(self) -> int:
        """Return n."""
        return self.n

    def __iter__(self) -> Iterator[int]:
        """Yield the examples of the epoch in their order."""
        yield from self.order().tolist()


class InOrder(SequentialSampler):
    """The same order in every epoch; the epoch is noted, so that a position counts only in the epoch it is of."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return range(n), shape (n,), int64, on the CPU."""
        return torch.arange(len(self))


class Minibatches:
    """A loader that gathers each minibatch (x, y) from the data set when it is asked for.

    x is (b, 1, 28, 28) float32 in [0, 1], y is (b,) int64; b is this rank's share of the global minibatch.

    Args:
        images: (m, 28, 28) uint8, the data set, on the device that gathers.
        labels: (m,) int64, on the same device.
        index: (n,) int64, the examples of the set that belong to this split.
        batch_size: Examples in a global minibatch, over all ranks; the last one of an epoch may be smaller.
        seed: Seed of the order; None for the order of `index`.
        rank: This process among the `world_size` that share each minibatch.
        device: Where the minibatches go; None for the device of the data set.

    Attributes:
        dataset: The n examples of the split, (uint8 image, class) each.
        sampler: What decides the order.
        position: Minibatches of this epoch that have been handed out, or 0 when all have been.
        share: This rank's part of the current minibatch, times world_size: 1 if all ranks have equally many examples.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler for this one too

    def __init__(
        self, images: Tensor, labels: Tensor, index: Tensor, batch_size: int, seed: int | None = None,
        rank: int = 0, world_size: int = 1, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.images, self.labels, self.index, self.batch_size = images, labels, index, batch_size
        self.rank, self.world_size, self.device = rank, world_size, device or images.device
        self.dataset = Subset(TensorDataset(images, labels), index)  # type: ignore[arg-type]
        self.sampler = InOrder(index) if seed is None else Shuffle(len(index), seed)
        self.position, self.share = 0, 1.0
        self._resumed_epoch: int | None = None  # the one that `position` was loaded for

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return -(-len(self.index) // self.batch_size)

    def order(self) -> Tensor:
        """Return the examples of this epoch in their order, (n,) int64, on the device of the data set."""
        return self.index[self.sampler.order()].to(self.images.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the minibatches of this epoch, all of them unless `load_state_dict` says where to go on."""
        start = 0
        if self._resumed_epoch == self.sampler.epoch:
            start = self.position
        self._resumed_epoch = None
        minibatches = self.order().split(self.batch_size)
        for number in range(start, len(minibatches)):
            whole = own = minibatches[number]
            if self.world_size > 1:
                own = whole[self.rank :: self.world_size]
            self.share = len(own) * self.world_size / len(whole)
            self.position = (number + 1) % len(minibatches)
            yield self.gather(own)

    def gather(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return examples (b,) as (b, 1, 28, 28) float32 in [0, 1], and their classes (b,)."""
        x = self.images.index_select(0, chosen)  # of uint8, 30 times as fast as images[chosen]
        y = self.labels.index_select(0, chosen)
        return to_float_images(x.to(self.device)), y.to(self.device)

    def state_dict(self) -> dict[str, int]:
        """Return which epoch this is and how far it has come, for a checkpoint."""
        return {"epoch": self.sampler.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, once and if the next pass is of the same epoch."""
        self._resumed_epoch, self.position = state["epoch"], state["position"]


def to_float_images(images: Tensor) -> Tensor:
    """Return uint8 images (b, 28, 28) as (b, 1, 28, 28) float32 in [0, 1]."""
    return images[:, None].float().div_(255)  # twice as fast as uint8 / 255, and equal to it
