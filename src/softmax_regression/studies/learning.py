"""Train softmax regressions in a stack, with the initial weights and the minibatches of `fit`."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack

Scores = dict[str, list[float]]  # metric -> its value each time the model was scored
Labelled = tuple[Tensor, Tensor]  # images (n, 28, 28) uint8, labels (n,) int64
_GENERATOR_LOCK = threading.Lock()  # all threads share torch's global generator
# A function that is called during training, at least after each epoch: with the number of epochs done, and metric ->
# (m,) of m models if they have just been scored, otherwise nothing. It may raise an error to end the training.
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
        loader: The minibatches of all models.
        epochs: Number of epochs.
        seed: Of the initial weights and the dropped pixels.
        sets: Stage -> images to score; without `train`, its scores are means over the minibatches of the epoch.
        every: Score the models after every so many epochs.
        watch: See `Watcher`.
    """
    distinct: list[Mapping[str, Any]] = []
    models = []
    for variant in variants:
        if variant not in distinct:
            distinct.append(variant)
            with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):  # it restores torch's generator
                torch.manual_seed(seed)
                models.append(SoftmaxRegression(**variant))
    place = [distinct.index(variant) for variant in variants]
    stack = Stack(models, loader, epochs, seed)
    scores: list[Scores] = [{} for _ in variants]
    for epoch in range(1, epochs + 1):
        scored = {"train": stack.train_epoch()}
        row: dict[str, Tensor] = {}
        if epoch % every == 0:
            for stage, labelled in sets.items():
                scored[stage] = stack.score(*labelled)
            for stage, of_stage in scored.items():
                row[f"{stage}/loss"] = of_stage.loss[place]
                row[f"{stage}/acc"] = of_stage.acc[place]
        for name, values in row.items():
            for of_model, value in zip(scores, values.tolist(), strict=True):
                of_model.setdefault(name, []).append(value)
        if watch:
            watch(epoch, row)
    return scores
