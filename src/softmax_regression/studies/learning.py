"""Softmax regressions trained in a stack, from the initial weights and with the minibatches of `fit`."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack

Scores = dict[str, list[float]]  # metric -> its values, one scoring after another
Labelled = tuple[Tensor, Tensor]  # images (n, 28, 28) uint8, labels (n,) int64
_GENERATOR_LOCK = threading.Lock()  # torch's global generator, one for all threads


class Watcher(Protocol):
    """Is called while models are trained; its methods may raise an error to end the training."""

    def check(self) -> None:
        """Is called at each step, or of a stack at each epoch."""

    def after_epoch(self, epoch: int, scores: Mapping[str, Tensor]) -> None:
        """Is called after an epoch, counted from 1, with the scores of m models: metric -> (m,)."""


def held_out(data: FashionMNISTDataModule) -> dict[str, Labelled]:
    """Return the images and labels for validation and for testing, as `val` and `test`."""
    loaded = data.loaded
    val = data.val_index
    return {"val": (loaded.images[val], loaded.labels[val]), "test": (loaded.test_images, loaded.test_labels)}


def learn(
    variants: Sequence[Mapping[str, Any]],
    loader: Minibatches,
    epochs: int,
    seed: int,
    sets: Mapping[str, Labelled],
    every: int = 1,
    watcher: Watcher | None = None,
) -> list[Scores]:
    """Train softmax regressions together, with the initial weights of `fit --seed_everything SEED`.

    Args:
        variants: Hyperparameters of each of the m models, see `Stack`; equal models are trained once.
        loader: The minibatches that all of them see.
        epochs: Number of epochs.
        seed: Of the initial weights and the dropped pixels.
        sets: What to score, by its stage. Without `train`, the training scores are the means over the epoch's
            minibatches.
        every: The models are scored after every so many epochs.
        watcher: Is called as the training goes on.

    Returns:
        The scores of each model.
    """
    distinct: list[Mapping[str, Any]] = []
    for variant in variants:
        if variant not in distinct:
            distinct.append(variant)
    place = [distinct.index(variant) for variant in variants]
    stack = Stack(_initialized(distinct, seed), loader, epochs, seed)
    scores: list[Scores] = [{} for _ in variants]
    for epoch in range(1, epochs + 1):
        if watcher:
            watcher.check()
        train = stack.train_epoch()
        if epoch % every:
            continue
        row = {"train/loss": train.loss[place], "train/acc": train.acc[place]}
        for stage, (images, labels) in sets.items():
            scored = stack.score(images, labels)
            row[f"{stage}/loss"] = scored.loss[place]
            row[f"{stage}/acc"] = scored.acc[place]
        for name, values in row.items():
            for of_model, value in zip(scores, values.tolist(), strict=True):
                of_model.setdefault(name, []).append(value)
        if watcher:
            watcher.after_epoch(epoch, row)
    return scores


def _initialized(variants: Sequence[Mapping[str, Any]], seed: int) -> list[SoftmaxRegression]:
    """Make models whose initial weights are those of the seed; torch's global generator is left as it was."""
    models = []
    for hparams in variants:
        with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(SoftmaxRegression(**hparams))
    return models
