"""Trials of a sweep, trained as one stack a seed."""

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from optuna.trial import FrozenTrial

from softmax_regression.data.minibatches import Batches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack
from softmax_regression.studies.sweep_plan import STACKABLE, Params, Plan, Value, epochs_of, setting

History = dict[str, list[list[float]]]  # metric -> seed -> epoch -> value
METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")


def train(
    plan: Plan, data: FashionMNISTDataModule, group: Sequence[FrozenTrial]
) -> Iterator[tuple[list[tuple[FrozenTrial, History | Exception]], dict[int, float]]]:
    """Train a group at once, epoch by epoch; yield the trials that end with each, and how all others do.

    With a constant learning rate a short run is the beginning of a long one, so trials that differ in nothing
    but `epochs` are one model, whose history is read off at several places.

    Args:
        plan: Has the seeds.
        data: Set up.
        group: Trials with the same `key`.

    Yields:
        Trials with their metrics, or why they failed; number -> validation loss of those that go on.
    """
    columns: dict[tuple[tuple[str, Value], ...], int] = {}
    place: dict[int, int] = {}  # trial -> its column of the stacks
    refused: list[tuple[FrozenTrial, History | Exception]] = []
    for trial in group:
        try:
            _check(trial.params)
        except Exception as error:
            refused.append((trial, error))
            continue
        own = tuple((name, trial.params[name]) for name in STACKABLE if name in trial.params)
        place[trial.number] = columns.setdefault(own, len(columns))
    yield refused, {}
    group = [trial for trial in group if trial.number in place]
    if not group:
        return
    longest = max(epochs_of(trial.params) for trial in group)
    models = [group[0].params | dict(own) for own in columns]
    stacks = [make_stack(models, seed, longest, data) for seed in plan.seeds]
    val = data.loaded.images[data.val_index], data.loaded.labels[data.val_index]
    rows = []
    for epoch in range(1, longest + 1):
        rows.append(torch.stack([torch.stack((*s.train_epoch(), *s.score(*val))) for s in stacks]))
        ending = [trial for trial in group if epochs_of(trial.params) == epoch]
        table = torch.stack(rows, -1) if ending else torch.empty(0)  # (seeds, metrics, models, epochs)
        losses = rows[-1][:, METRICS.index("val/loss")].mean(0)
        going_on = {t.number: losses[place[t.number]].item() for t in group if epochs_of(t.params) > epoch}
        yield (
            [(t, {m: table[:, i, place[t.number]].tolist() for i, m in enumerate(METRICS)}) for t in ending],
            going_on,
        )


def make_stack(trials: Sequence[Params], seed: int, epochs: int, data: FashionMNISTDataModule) -> Stack:
    """Return the untrained models of trials with the same `key`, for one seed.

    Raises:
        InputError: There are not enough images for the minibatches, or see `Stack`.
    """
    index = data.train_index[: trials[0].get("train_size")]
    batch_size = setting(trials[0], "batch_size")
    if not 1 <= batch_size <= len(index):
        raise InputError(f"batch_size={batch_size}: must be from 1 to the {len(index)} training images")
    batches = Batches(data.loaded.images, data.loaded.labels, index, batch_size, seed=seed)
    return Stack([_model(params, seed) for params in trials], batches, epochs)


def _model(params: Params, seed: int) -> SoftmaxRegression:
    names = signature(SoftmaxRegression).parameters
    hparams: dict[str, Any] = {name: value for name, value in params.items() if name in names}
    return SoftmaxRegression(**hparams, seed=seed)


def _check(params: Params) -> None:
    """Refuse hyperparameters that are out of range."""
    _model(params, seed=0)
    if epochs_of(params) < 1:
        raise InputError(f"epochs={epochs_of(params)}: must be at least 1")
