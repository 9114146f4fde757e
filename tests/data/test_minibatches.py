from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softmax_regression.data.minibatches import Minibatches, Shuffle

SIZES = {
    "n": st.integers(1, 60),
    "batch_size": st.integers(1, 70),
    "seed": st.none() | st.integers(0, 2**32 - 1),
    "epoch": st.integers(0, 1000),
}


def loader(
    n: int, batch_size: int, seed: int | None = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
) -> Minibatches:
    """A split of n out of n + 3 examples, whose labels, and all pixels, are their numbers in the data set."""
    labels = torch.arange(n + 3)
    images = labels.to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    index = torch.randperm(n + 3, generator=torch.Generator().manual_seed(n))[:n]
    result = Minibatches(images, labels, index, batch_size, seed, rank, world_size)
    result.sampler.set_epoch(epoch)
    return result


def seen(minibatches: Minibatches) -> list[list[int]]:
    """The labels of each minibatch."""
    return [y.tolist() for _, y in minibatches]


def order_of(minibatches: Minibatches) -> list[int]:
    """The labels of an epoch."""
    return list(chain(*seen(minibatches)))


@given(**SIZES, world_size=st.integers(1, 5))
def test_each_example_is_seen_once_an_epoch_on_one_rank(
    n: int, batch_size: int, seed: int | None, epoch: int, world_size: int
) -> None:
    examples: list[int] = []
    for rank in range(world_size):
        share = loader(n, batch_size, seed, epoch, rank, world_size)
        minibatches = seen(share)
        assert len(minibatches) == len(share) == -(-n // batch_size)
        examples += chain(*minibatches)
    assert sorted(examples) == sorted(share.index.tolist())


@given(**SIZES, world_size=st.integers(2, 5))
def test_the_shares_of_a_minibatch_make_up_the_one_of_a_single_process(
    n: int, batch_size: int, seed: int | None, epoch: int, world_size: int
) -> None:
    ranks = [loader(n, batch_size, seed, epoch, rank, world_size) for rank in range(world_size)]
    passes = [iter(rank) for rank in ranks]
    for whole in seen(loader(n, batch_size, seed, epoch)):
        shares = [next(minibatches)[1].tolist() for minibatches in passes]
        sizes = [len(share) for share in shares]
        assert sorted(chain(*shares)) == sorted(whole)
        assert max(sizes) - min(sizes) <= 1
        for rank, size in zip(ranks, sizes, strict=True):
            assert rank.share == pytest.approx(size * world_size / len(whole))


@given(**SIZES)
def test_minibatches_are_full_but_the_last(n: int, batch_size: int, seed: int | None, epoch: int) -> None:
    sizes = [len(labels) for labels in seen(loader(n, batch_size, seed, epoch))]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == n - sum(sizes[:-1])


@given(**SIZES)
def test_images_are_floats_and_belong_to_their_labels(n: int, batch_size: int, seed: int | None, epoch: int) -> None:
    for x, y in loader(n, batch_size, seed, epoch):
        assert x.shape == (len(y), 1, 28, 28)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert torch.equal(x, (y / 255)[:, None, None, None].expand_as(x))


@given(**SIZES, stop=st.integers(0, 20))
def test_a_restored_position_gives_the_remaining_minibatches_once(
    n: int, batch_size: int, seed: int | None, epoch: int, stop: int
) -> None:
    first = loader(n, batch_size, seed, epoch)
    whole = seen(first)
    stop %= len(whole)
    for _ in islice(first, stop):
        pass
    assert first.position == stop
    second = loader(n, batch_size, seed)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(epoch)
    assert seen(second) == whole[stop:]
    assert second.position == 0
    next(iter(second))
    assert seen(second) == whole  # and only once


def test_a_complete_epoch_is_at_position_0_as_soon_as_its_last_minibatch_is_out() -> None:
    minibatches = loader(10, 3)
    positions = [minibatches.position for _ in minibatches]
    assert positions == [1, 2, 3, 0]  # a checkpoint at the end of an epoch is one before the next


@pytest.mark.parametrize("seed", [0, None])
def test_the_state_says_the_epoch_and_counts_for_no_other(seed: int | None) -> None:
    first, second = loader(10, 2, seed, epoch=4), loader(10, 2, seed)
    next(iter(first))
    assert first.state_dict() == {"epoch": 4, "position": 1}
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(5)
    assert seen(second) == seen(loader(10, 2, seed, epoch=5))


def test_a_pass_that_was_left_early_does_not_shorten_the_next() -> None:
    validation = loader(10, 2, seed=None)
    next(iter(validation))  # what a sanity check or a limit on the batches does
    assert order_of(validation) == validation.index.tolist()


def test_a_remainder_smaller_than_the_number_of_ranks_leaves_empty_shares() -> None:
    for rank, size in ((0, 1), (1, 0), (2, 0)):
        *_, (x, y) = loader(9, 4, rank=rank, world_size=3)
        assert x.shape == (size, 1, 28, 28)
        assert len(y) == size


def test_the_data_set_is_that_of_the_split() -> None:
    minibatches = loader(10, 3)
    assert len(minibatches.dataset) == 10
    for position, example in enumerate(minibatches.index.tolist()):
        assert minibatches.dataset[position][1] == example


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    expected = order_of(loader(100, 7, seed=5, epoch=3))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    used = loader(100, 33, seed=5)
    for epoch in (0, 1, 9):
        used.sampler.set_epoch(epoch)
        assert order_of(used) != expected
    used.sampler.set_epoch(3)
    assert order_of(used) == expected == used.order().tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_changes_with_the_seed_and_with_the_epoch() -> None:
    orders = set()
    for seed in (0, 1, 2, 3, 1_000_003, 2**32 - 1):
        shuffle = Shuffle(100, seed)
        for epoch in range(10):
            shuffle.set_epoch(epoch)
            orders.add(tuple(shuffle))
    assert len(orders) == 60


def test_every_place_of_the_order_is_as_likely_for_every_example() -> None:
    shuffle = Shuffle(5, seed=0)
    counts = torch.zeros(5, 5)
    for epoch in range(2000):
        shuffle.set_epoch(epoch)
        counts[torch.arange(5), shuffle.order()] += 1
    assert ((counts - 400) ** 2 / 400).sum() < 45  # chi-squared, 16 degrees of freedom: 1 in 7,000


@pytest.mark.gpu
def test_minibatches_of_a_data_set_on_the_gpu_are_gathered_there() -> None:
    host = loader(100, 7, seed=1)
    device = Minibatches(host.images.cuda(), host.labels.cuda(), host.index, 7, 1)
    for (x, y), (expected_x, expected_y) in zip(device, host, strict=True):
        assert x.is_cuda
        assert torch.equal(x.cpu(), expected_x)
        assert torch.equal(y.cpu(), expected_y)
