import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softmax_regression.data.minibatches import Batches, Minibatches, Shuffle

SIZES = {
    "n": st.integers(1, 60),
    "batch_size": st.integers(1, 70),
    "steps": st.integers(1, 7),
    "seed": st.none() | st.integers(0, 2**32 - 1),
    "epoch": st.integers(0, 1000),
}


def batches(
    n: int,
    batch_size: int,
    steps: int = 1,
    seed: int | None = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """A split of n out of n + 3 examples, whose labels, and all pixels, are their numbers in the data set."""
    labels = torch.arange(n + 3)
    images = labels.to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    index = torch.randperm(n + 3, generator=torch.Generator().manual_seed(n))[:n]
    result = Batches(images, labels, index, batch_size, steps, seed, rank, world_size)
    result.sampler.set_epoch(epoch)
    return result


def flat(lists: list[Minibatches]) -> list[tuple[list[int], int]]:
    """The labels and the global size of each minibatch."""
    return [(y.tolist(), size) for minibatches in lists for _, y, size in minibatches]


def seen(lists: list[Minibatches]) -> list[int]:
    return [label for labels, _ in flat(lists) for label in labels]


@given(**SIZES, world_size=st.integers(1, 5))
def test_each_example_is_seen_once_an_epoch_on_one_rank(
    n: int, batch_size: int, steps: int, seed: int | None, epoch: int, world_size: int
) -> None:
    ranks = [batches(n, batch_size, steps, seed, epoch, rank, world_size) for rank in range(world_size)]
    shards = [list(rank) for rank in ranks]
    assert sorted(label for shard in shards for label in seen(shard)) == sorted(ranks[0].index.tolist())
    assert {len(shard) for shard in shards} == {len(rank) for rank in ranks} == {len(ranks[0])}
    assert {len(flat(shard)) for shard in shards} == {ranks[0].steps_per_epoch}


@given(**SIZES, world_size=st.integers(2, 5))
def test_the_shards_of_a_minibatch_make_up_the_one_of_a_single_process(
    n: int, batch_size: int, steps: int, seed: int | None, epoch: int, world_size: int
) -> None:
    whole = flat(list(batches(n, batch_size, steps, seed, epoch)))
    shards = [
        flat(list(batches(n, batch_size, steps, seed, epoch, rank, world_size))) for rank in range(world_size)
    ]
    for (labels, size), *parts in zip(whole, *shards, strict=True):
        assert size == len(labels)
        assert sorted(label for part, _ in parts for label in part) == sorted(labels)
        assert {part_size for _, part_size in parts} == {size}
        lengths = [len(part) for part, _ in parts]
        assert max(lengths) - min(lengths) <= 1


@given(**SIZES)
def test_minibatches_are_full_but_the_last_and_the_same_whatever_steps_is(
    n: int, batch_size: int, steps: int, seed: int | None, epoch: int
) -> None:
    lists = list(batches(n, batch_size, steps, seed, epoch))
    assert flat(lists) == flat(list(batches(n, batch_size, 1, seed, epoch)))
    sizes = [size for _, size in flat(lists)]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == n - sum(sizes[:-1])
    assert [len(minibatches) for minibatches in lists[:-1]] == [steps] * (len(lists) - 1)
    assert 1 <= len(lists[-1]) <= steps


@given(**SIZES)
def test_images_and_labels_belong_together(
    n: int, batch_size: int, steps: int, seed: int | None, epoch: int
) -> None:
    for x, y, _ in itertools.chain(*batches(n, batch_size, steps, seed, epoch)):
        assert x.shape == (len(y), 28, 28)
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert torch.equal(x, y.to(torch.uint8)[:, None, None].expand(-1, 28, 28))


@given(**SIZES, stop=st.integers(0, 20), resumed_steps=st.integers(1, 7))
def test_a_restored_position_gives_the_remaining_minibatches_once(
    n: int, batch_size: int, steps: int, seed: int | None, epoch: int, stop: int, resumed_steps: int
) -> None:
    whole = flat(list(batches(n, batch_size, steps, seed, epoch)))
    first = batches(n, batch_size, steps, seed, epoch)
    done = flat(list(itertools.islice(first, stop % len(first))))
    assert first.position == len(done)
    state = first.state_dict()

    second = batches(n, batch_size, resumed_steps, seed)
    second.load_state_dict(state)
    second.sampler.set_epoch(epoch)
    assert done + flat(list(second)) == whole
    assert second.position == 0
    next(iter(second))
    assert flat(list(second)) == whole  # and only once


def test_a_complete_epoch_is_at_position_0_as_soon_as_its_last_list_is_out() -> None:
    pass_ = batches(10, 3, steps=2)
    positions = [pass_.position for _ in pass_]
    assert positions == [2, 0]  # a checkpoint at the end of an epoch is one before the next


def test_the_state_says_the_epoch_and_counts_for_no_other() -> None:
    first = batches(10, 2, epoch=4)
    next(iter(first))
    assert first.state_dict() == {"epoch": 4, "position": 1}
    second = batches(10, 2)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(5)
    assert flat(list(second)) == flat(list(batches(10, 2, epoch=5)))


def test_a_pass_that_was_left_early_does_not_shorten_the_next() -> None:
    validation = batches(10, 2, seed=None)
    next(iter(validation))  # what a sanity check or a limit on the batches does
    assert seen(list(validation)) == validation.index.tolist()


def test_a_remainder_smaller_than_the_number_of_ranks_leaves_empty_shards() -> None:
    last = [list(itertools.chain(*batches(9, 4, steps=3, rank=rank, world_size=3)))[-1] for rank in range(3)]
    assert [len(y) for _, y, _ in last] == [1, 0, 0]
    assert [x.shape for x, _, _ in last] == [(1, 28, 28), (0, 28, 28), (0, 28, 28)]
    assert {size for _, _, size in last} == {1}


def test_without_a_seed_the_order_is_that_of_the_index() -> None:
    plain = batches(50, 8, seed=None, epoch=3)
    assert seen(list(plain)) == plain.index.tolist()


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    expected = seen(list(batches(100, 7, seed=5, epoch=3)))
    used = batches(100, 33, steps=4, seed=5)
    for epoch in (0, 1, 9, 3):
        used.sampler.set_epoch(epoch)
        last = seen(list(used))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert last == expected == seen(list(batches(100, 7, seed=5, epoch=3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_changes_with_the_seed_and_with_the_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        shuffle = Shuffle(100, seed)
        shuffle.set_epoch(epoch)
        return tuple(shuffle.order().tolist())

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
def test_batches_of_a_data_set_on_the_gpu_are_gathered_there() -> None:
    host = batches(100, 7, steps=3, seed=1)
    device = Batches(host.images.cuda(), host.labels.cuda(), host.index, 7, 3, 1)

    def on(lists: Batches) -> list[Tensor]:
        return [tensor for minibatches in lists for x, y, _ in minibatches for tensor in (x, y)]

    assert all(tensor.is_cuda for tensor in on(device))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on(host), on(device), strict=True))
