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


def values(scores: EpochScores) -> dict[str, float]:
    """The metrics at the end of an epoch, as Lightning asks for them."""
    return {name: metric.compute().item() for name, metric in scores.metrics.items()}  # type: ignore[operator]


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
    found = values(ours)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert found["acc"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


@given(st.integers(1, 2 * BATCHES_PER_UPDATE), st.integers(0, 2 * BATCHES_PER_UPDATE))
def test_a_checkpoint_in_the_midst_of_an_epoch_changes_no_bit(count: int, saved_after: int) -> None:
    epoch, whole, first, rest = minibatches(count), scores(), scores(), scores()
    for each in epoch:
        whole.update(*each)
    for each in epoch[:saved_after]:
        first.update(*each)
    rest.load(first.saved(), rank=0)
    for each in epoch[saved_after:]:
        first.update(*each)
        rest.update(*each)
    assert values(rest) == values(first) == values(whole)


def test_the_first_process_takes_up_the_scores_of_all() -> None:
    ours, first, second = scores(), scores(), scores()
    for each in minibatches(7):
        ours.update(*each)
    first.load(ours.saved(), rank=0)
    second.load(ours.saved(), rank=1)
    assert values(first) == values(ours)
    assert not any(state.any() for state in second.saved()["states"].values())


def test_each_epoch_begins_anew_and_a_share_may_be_empty() -> None:
    ours, empty = scores(), (torch.zeros(0, 10), torch.zeros(0, dtype=torch.long), torch.tensor(float("nan")))
    for each in minibatches(3):
        ours.update(*each)
    ours.reset()
    (one,) = minibatches(1, seed=5)
    ours.update(*one)
    ours.update(*empty)  # the mean loss of no image is no number
    assert values(ours)["loss"] == pytest.approx(one[2].item())
