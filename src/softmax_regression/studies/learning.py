"""Softmax regressions trained in a stack, from the initial weights and with the minibatches of `fit`."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack

Scores = dict[str, list[float]]  # metric -> its values, one scoring after another
Labelled = tuple[Tensor, Tensor]  # images (n, 28, 28) uint8, labels (n,) int64
_GENERATOR_LOCK = threading.Lock()  # torch's global generator, one for all threads


# Is called while models are trained, with the epochs that are done and the scores after the last of them, which are
# metric -> (m,) of m models, or empty within an epoch. It may raise an error, which ends the training.
Watcher = Callable[[int, Mapping[str, Tensor]], None]


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
    watch: Watcher | None = None,
) -> list[Scores]:
    """Train softmax regressions together, with the initial weights of `fit --seed_everything SEED`.

    Args:
        variants: Hyperparameters of each model, see `Stack`; equal models are trained once.
        loader: The minibatches that all of them see.
        epochs: Number of epochs.
        seed: Of the initial weights and the dropped pixels.
        sets: What to score, by its stage; of `train`, if it is missing, the means over the epoch's minibatches.
        every: The models are scored after every so many epochs.
        watch: See `Watcher`.
    """
    distinct: list[Mapping[str, Any]] = []
    models = []
    for variant in variants:
        if variant not in distinct:
            distinct.append(variant)
            with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):  # torch's generator is left as it was
                torch.manual_seed(seed)
                models.append(SoftmaxRegression(**variant))
    place = [distinct.index(variant) for variant in variants]
    stack = Stack(models, loader, epochs, seed)
    scores: list[Scores] = [{} for _ in variants]
    for epoch in range(1, epochs + 1):
        if watch:
            watch(epoch - 1, {})
        scored = {"train": stack.train_epoch()}
        if epoch % every:
            continue
        for stage, labelled in sets.items():
            scored[stage] = stack.score(*labelled)
        row = {}
        for stage, of_stage in scored.items():
            row[f"{stage}/loss"] = of_stage.loss[place]
            row[f"{stage}/acc"] = of_stage.acc[place]
        for name, values in row.items():
            for of_model, value in zip(scores, values.tolist(), strict=True):
                of_model.setdefault(name, []).append(value)
        if watch:
            watch(epoch, row)
    return scores
