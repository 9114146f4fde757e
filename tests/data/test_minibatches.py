import itertools

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


@given(**SIZES, world_size=st.integers(1, 5))
def test_each_example_is_seen_once_an_epoch_on_one_rank(
    n: int, batch_size: int, seed: int | None, epoch: int, world_size: int
) -> None:
    ranks = [loader(n, batch_size, seed, epoch, rank, world_size) for rank in range(world_size)]
    shards = [seen(rank) for rank in ranks]
    assert sorted(itertools.chain(*itertools.chain(*shards))) == sorted(ranks[0].index.tolist())
    assert {len(shard) for shard in shards} == {len(rank) for rank in ranks} == {-(-n // batch_size)}


@given(**SIZES, world_size=st.integers(2, 5))
def test_the_shares_of_a_minibatch_make_up_the_one_of_a_single_process(
    n: int, batch_size: int, seed: int | None, epoch: int, world_size: int
) -> None:
    ranks = [loader(n, batch_size, seed, epoch, rank, world_size) for rank in range(world_size)]
    for whole, *parts in zip(seen(loader(n, batch_size, seed, epoch)), *ranks, strict=True):
        shares = [y.tolist() for _, y in parts]
        assert sorted(itertools.chain(*shares)) == sorted(whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        weights = [rank.share for rank in ranks]  # of the minibatch that was handed out last
        assert weights == pytest.approx([len(share) * world_size / len(whole) for share in shares])
        assert sum(weights) == pytest.approx(world_size)


@given(**SIZES)
def test_minibatches_are_full_but_the_last(n: int, batch_size: int, seed: int | None, epoch: int) -> None:
    sizes = [len(labels) for labels in seen(loader(n, batch_size, seed, epoch))]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == n - sum(sizes[:-1])


@given(**SIZES)
def test_images_are_floats_and_belong_to_their_labels(n: int, batch_size: int, seed: int | None, epoch: int) -> None:
    for x, y in loader(n, batch_size, seed, epoch):
        assert x.shape == (len(y), 1, 28, 28)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(x, (y / 255)[:, None, None, None].expand_as(x))


@given(**SIZES, stop=st.integers(0, 20))
def test_a_restored_position_gives_the_remaining_minibatches_once(
    n: int, batch_size: int, seed: int | None, epoch: int, stop: int
) -> None:
    first, second = loader(n, batch_size, seed, epoch), loader(n, batch_size, seed)
    whole = seen(first)
    done = [y.tolist() for _, y in itertools.islice(first, stop % len(first))]
    assert first.position == len(done)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(epoch)
    assert done + seen(second) == whole
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
    assert list(itertools.chain(*seen(validation))) == validation.index.tolist()


def test_a_remainder_smaller_than_the_number_of_ranks_leaves_empty_shares() -> None:
    last = [list(loader(9, 4, rank=rank, world_size=3))[-1] for rank in range(3)]
    assert [len(y) for _, y in last] == [1, 0, 0]
    assert [x.shape for x, _ in last] == [(1, 1, 28, 28), (0, 1, 28, 28), (0, 1, 28, 28)]


def test_the_data_set_is_that_of_the_split() -> None:
    minibatches = loader(10, 3)
    assert len(minibatches.dataset) == 10
    assert [int(minibatches.dataset[i][1]) for i in range(10)] == minibatches.index.tolist()


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    expected = list(itertools.chain(*seen(loader(100, 7, seed=5, epoch=3))))
    used = loader(100, 33, seed=5)
    for epoch in (0, 1, 9, 3):
        used.sampler.set_epoch(epoch)
        last = list(itertools.chain(*seen(used)))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert last == expected == used.order().tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_changes_with_the_seed_and_with_the_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        shuffle = Shuffle(100, seed)
        shuffle.set_epoch(epoch)
        return tuple(shuffle)

    seeds = [*range(10), 1_000_003, 2**32 - 1]
    orders = {order(seed, epoch) for seed in seeds for epoch in range(10)}
    assert len(orders) == len(seeds) * 10


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
