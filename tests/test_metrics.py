"""Sums over the images of an epoch that no grouping changes, in a checkpoint and out of it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as in the package)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from softmax_regression.metrics import BATCHES_PER_UPDATE, EpochScores


def scores() -> EpochScores:
    accuracy = MulticlassAccuracy(10, average="micro", validate_args=False)
    return EpochScores({"acc": accuracy}).to(torch.device("cpu"))  # as Lightning moves a module


def minibatches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits, classes and mean loss of minibatches of 0 to 9 images."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        size = int(torch.randint(1, 10, (), generator=generator))
        logits = torch.randn(size, 10, generator=generator)
        y = torch.randint(10, (size,), generator=generator)
        found.append((logits, y, F.cross_entropy(logits, y)))
    return found


@given(st.integers(1, 3 * BATCHES_PER_UPDATE), st.integers(0, 100))
def test_scores_are_the_means_over_all_images(count: int, seed: int) -> None:
    epoch, ours = minibatches(count, seed), scores()
    for each in epoch:
        ours.update(*each)
    logits, y = (torch.cat([each[i] for each in epoch]) for i in (0, 1))
    found = ours.compute()
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert found["acc"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


@given(st.integers(1, 2 * BATCHES_PER_UPDATE), st.integers(0, 2 * BATCHES_PER_UPDATE))
def test_a_checkpoint_in_the_midst_of_an_epoch_changes_no_bit(count: int, saved_after: int) -> None:
    epoch, whole, first, rest = minibatches(count), scores(), scores(), scores()
    for each in epoch:
        whole.update(*each)
    for each in epoch[:saved_after]:
        first.update(*each)
    rest.load_sums(first.sums(world_size=1), rank=0, world_size=1)
    for each in epoch[saved_after:]:
        first.update(*each)
        rest.update(*each)
    assert rest.compute() == first.compute() == whole.compute()


def test_the_sums_of_several_processes_are_taken_up_by_any_number() -> None:
    ours = scores()
    for each in minibatches(7):
        ours.update(*each)
    saved = ours.sums(world_size=1)
    two = {name: {key: 2 * value for key, value in sums.items()} for name, sums in saved.items()}
    expected, of_two, alone, other = ours.compute(), scores(), scores(), scores()
    of_two.load_sums(two, rank=1, world_size=2)
    alone.load_sums(two, rank=0, world_size=1)
    other.load_sums(two, rank=1, world_size=3)
    assert of_two.compute() == alone.compute() == expected
    assert not any(value[0].any() for sums in other.sums(1).values() for value in sums.values())


def test_each_epoch_begins_anew_and_a_share_may_be_empty() -> None:
    ours, empty = scores(), (torch.zeros(0, 10), torch.zeros(0, dtype=torch.long), torch.tensor(float("nan")))
    for each in minibatches(3):
        ours.update(*each)
    ours.compute()
    (one,) = minibatches(1, seed=5)
    ours.update(*one)
    ours.update(*empty)  # the mean loss of no image is no number
    assert ours.compute()["loss"] == pytest.approx(one[2].item())
