"""Minibatches of images that are kept on one device as uint8, and gathered and converted to float there.

The order of an epoch depends only on (seed, epoch), and each rank takes every world_size-th example of a global
minibatch. So a resumed run, or a run on several devices, has the same minibatches, and each example once an epoch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler, Subset, TensorDataset


class Shuffle(Sampler[int]):
    """A random order of n examples, which depends on the seed and on the epoch that Lightning sets."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return a permutation of range(n), shape (n,), int64, on the CPU."""
        # A different 64-bit seed for each pair, so that (seed + 1, epoch) and (seed, epoch + 1) differ.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.n, generator=generator)

    def __len__(self) -> int:
        """Return n."""
        return self.n

    def __iter__(self) -> Iterator[int]:
        """Yield the examples of the epoch in their order."""
        yield from self.order().tolist()


class InOrder(SequentialSampler):
    """The same order in every epoch; it keeps the epoch, as a saved position is valid in one epoch only."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return range(n), shape (n,), int64, on the CPU."""
        return torch.arange(len(self))


class Minibatches:
    """A loader that gathers each minibatch (x, y) when it is needed.

    x is (b, 1, 28, 28) float32 in [0, 1], y is (b,) int64; b is this rank's share of the global minibatch.

    Args:
        images: (m, 28, 28) uint8, the data set, on the device that gathers.
        labels: (m,) int64, on the same device.
        index: (n,) int64, the examples of the data set that belong to this split.
        batch_size: Examples in a global minibatch, over all ranks; the last one of an epoch may be smaller.
        seed: Seed of the order; None for the order of `index`.
        rank: The rank of this process among `world_size` processes.
        device: The device of the minibatches; None for that of the data set.

    Attributes:
        dataset: The n examples of the split, (uint8 image, class) each.
        sampler: It has the order.
        position: Number of minibatches of this epoch that have been yielded; 0 again after the last one.
        share: This rank's share of the current minibatch, times world_size: 1 if all ranks have equally many examples.
    """

    batch_sampler = None  # Lightning asks every loader that has a sampler for this one too

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.index = index
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.device = device or images.device
        self.dataset = Subset(TensorDataset(images, labels), index)  # type: ignore[arg-type]
        self.sampler = InOrder(index) if seed is None else Shuffle(len(index), seed)
        self.position = 0
        self.share = 1.0
        self._resumed_epoch: int | None = None  # the one that `position` was loaded for

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return -(-len(self.index) // self.batch_size)

    def order(self) -> Tensor:
        """Return the examples of this epoch in their order, (n,) int64, on the device of the data set."""
        return self.index[self.sampler.order()].to(self.images.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the minibatches of this epoch, after a `load_state_dict` only the rest of them."""
        start = 0
        if self._resumed_epoch == self.sampler.epoch:
            start = self.position
        self._resumed_epoch = None
        minibatches = self.order().split(self.batch_size)
        for number in range(start, len(minibatches)):
            whole = minibatches[number]
            own = whole
            if self.world_size > 1:
                own = whole[self.rank :: self.world_size]
            self.share = len(own) * self.world_size / len(whole)
            self.position = (number + 1) % len(minibatches)
            yield self.gather(own)

    def gather(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return examples (b,) as (b, 1, 28, 28) float32 in [0, 1], and their classes (b,)."""
        x = self.images.index_select(0, chosen)  # with uint8, 30 times as fast as images[chosen]
        y = self.labels.index_select(0, chosen)
        return to_float_images(x.to(self.device)), y.to(self.device)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the position in it, for a checkpoint."""
        return {"epoch": self.sampler.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass at a saved position, if that pass is of the same epoch."""
        self._resumed_epoch = state["epoch"]
        self.position = state["position"]


def to_float_images(images: Tensor) -> Tensor:
    """Return uint8 images (b, 28, 28) as (b, 1, 28, 28) float32 in [0, 1]."""
    return images[:, None].float().div_(255)  # twice as fast as uint8 / 255, with the same result
