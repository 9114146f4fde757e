"""Long training on few images, and remedies against overfitting: a sweep over sizes, dropouts and weight decays.

Exercise 2 of the book, see model.py: why does the test accuracy fall after a while, and what helps? Each remedy
chooses among the same runs, by the validation loss.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule, stratified_order
from softmax_regression.errors import InputError
from softmax_regression.runs.settings import parameters_of
from softmax_regression.studies import alone
from softmax_regression.studies.learning import Labelled, Scores, Watcher, held_out, learn
from softmax_regression.studies.stacked import CHUNK
from softmax_regression.studies.sweep.results import Result
from softmax_regression.studies.sweep.space import Params, Plan, count
from softmax_regression.studies.sweep.training import hyperparameters

BATCH_SIZE = 256  # the book's
LR = 0.1  # the book's
PATIENCE = 5  # of early stopping: how many times the models are scored without a lower validation loss
MONITOR = "val/loss"


class Size(NamedTuple):
    """A number of training images, the number of epochs, and after how many epochs each the models are scored."""

    images: int
    epochs: int
    every: int


class Design(NamedTuple):
    """The design of the study: every size with every dropout, weight decay and seed."""

    sizes: tuple[Size, ...]
    dropouts: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: int

    def size_of(self, params: Params) -> Size:
        """Return the size of a configuration."""
        return {size.images: size for size in self.sizes}[count(params, "train_size")]


FULL = Design(
    (Size(500, 1000, 20), Size(1000, 1000, 20), Size(5000, 300, 5), Size(55_000, 75, 3)),
    (0.0, 0.25, 0.5),
    (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    5,
)
QUICK = Design((Size(50, 60, 6), Size(100, 40, 4)), (0.0, 0.5), (0.0, 0.01), 2)
QUICK_SIZES = {"synthetic_size": 1000, "val_size": 500}


class Remedy(NamedTuple):
    """A remedy against overfitting, with the strength that has the lowest validation loss.

    Attributes:
        result: Its scores, for s seeds and t times of scoring; dropout is off in scoring.
        stop: (s,) int64, for each seed the index of the time at which its model is taken.
    """

    name: str
    result: Result
    stop: Tensor

    def taken(self, metric: str) -> Tensor:
        """Return a metric of the model taken for each seed, (s,)."""
        return self.result.history[metric].gather(1, self.stop[:, None])[:, 0]

    @property
    def lowest(self) -> int:
        """The index of the time with the lowest validation loss, as a mean over the seeds."""
        return int(self.result.history[MONITOR].mean(0).argmin())

    def __str__(self) -> str:
        dropout, decay = strength(self.result)
        if not dropout and not decay:
            return self.name.replace("combination", "combination: early stopping alone")
        if self.name == "combination":
            return f"combination: decay {decay:g}, dropout {dropout:g}"
        return f"{self.name} {decay or dropout:g}"


def plan(design: Design, model: type[LightningModule], identity: str, monitor: str = MONITOR) -> Plan:
    """Return the plan of a design: dropout and weight decay are left out if the model has no such parameter."""
    known = parameters_of(model)
    space: dict[str, Any] = {"train_size": [size.images for size in design.sizes]}
    if "dropout" in known:
        space["dropout"] = list(design.dropouts)
    if "weight_decay" in known:
        space["weight_decay"] = list(design.decays)
    return Plan(space, list(range(design.seeds)), f"{identity}/{design.sizes}/{monitor}", model=model)


@dataclass(frozen=True)
class OverfitTraining:
    """Train on images chosen by the seed, and score training, validation and test images every few epochs."""

    design: Design
    plan: Plan
    data: FashionMNISTDataModule
    monitor: str  # the name of the validation loss; with `acc` in the place of `loss` that of the accuracy

    def check_monitor(self) -> None:
        """Check, before anything is trained, that the model logs the monitor in validation."""
        model = self.plan.model
        if model.validation_step is LightningModule.validation_step:
            raise InputError(f"model={model.__name__}: has no validation_step, by which overfit scores it; add one")
        params = {"lr": LR, **hyperparameters(self.plan.first)}
        alone.check_monitor(self.monitor, lambda: (alone.make_model(model, params, 0), self.data), validates=True)

    def train(self, configurations: Sequence[Params], seed: int, watch: Watcher | None = None) -> list[Scores]:
        """Return the scores of each configuration."""
        size = self.design.size_of(configurations[0])
        images, labels = self.data.loaded.images, self.data.loaded.labels
        own = self.data.train_index
        index = own[stratified_order(labels[own], seed)[: size.images]]
        sets = {"train": (images[index], labels[index]), **held_out(self.data)}
        loader = Minibatches(images, labels, index, min(BATCH_SIZE, len(index)), seed)
        variants = [{"lr": LR, **hyperparameters(params)} for params in configurations]
        if not self.plan.is_stackable:
            return [self._train_alone(variant, loader, size, seed, sets, watch) for variant in variants]
        return learn(variants, loader, size.epochs, seed, sets, size.every, watch)

    def _train_alone(
        self,
        variant: Params,
        loader: Minibatches,
        size: Size,
        seed: int,
        sets: Mapping[str, Labelled],
        watch: Watcher | None,
    ) -> Scores:
        """Train one model by Lightning, keep its weights every few epochs, and score these by its validation step."""
        loaders = {}
        for stage, (images, labels) in sets.items():
            loaders[stage] = Minibatches(images, labels, torch.arange(len(labels)), CHUNK)
        weights = []

        def keep(trainer: Trainer, module: LightningModule) -> None:
            if (trainer.current_epoch + 1) % size.every == 0:
                weights.append(deepcopy(module.state_dict()))

        scores: Scores = {}
        with isolate_rng():
            module = alone.make_model(self.plan.model, variant, seed)
            keeper = LambdaCallback(on_train_epoch_end=keep)
            options: dict[str, Any] = {"callbacks": [keeper]}
            options["check_val_every_n_epoch"] = size.epochs + 1  # no validation: the weights are scored below
            trainer, _ = alone.train(module, loader, size.epochs, watch, loaders["val"], **options)
            for state in weights:
                module.load_state_dict(state)
                for stage, images_of_stage in loaders.items():
                    trainer.validate(module, images_of_stage, verbose=False)
                    logged = alone.numbers_of(trainer.callback_metrics)
                    accuracy = math.nan
                    if "loss" in self.monitor:
                        accuracy = logged.get(self.monitor.replace("loss", "acc"), math.nan)  # it may not be logged
                    scores.setdefault(f"{stage}/loss", []).append(logged[self.monitor])
                    scores.setdefault(f"{stage}/acc", []).append(accuracy)
        return scores


def strength(result: Result) -> tuple[float, float]:
    """Return the dropout and the weight decay of a configuration, 0 if its model has no such parameter."""
    params: Mapping[str, Any] = result.params
    return params.get("dropout", 0.0), params.get("weight_decay", 0.0)


def choose_remedies(results: Sequence[Result]) -> list[Remedy]:
    """Return the remedies, the first of which is none; for each, the strength with the lowest validation loss."""
    kinds: dict[tuple[bool, bool], list[Result]] = {}
    for result in results:
        dropout, decay = strength(result)
        kinds.setdefault((dropout > 0, decay > 0), []).append(result)
    none = kinds[False, False]
    remedies = [_choose("none", none)]
    for name, kind in (("weight decay", (False, True)), ("dropout", (True, False))):
        if kind in kinds:
            remedies.append(_choose(name, kinds[kind]))
    remedies.append(_choose("early stopping", none, stops_early=True))
    if len(kinds) > 1:
        remedies.append(_choose("combination", results, stops_early=True))
    return remedies


def _choose(name: str, results: Sequence[Result], stops_early: bool = False) -> Remedy:
    """Return a remedy with the best strength; models are taken at the end, or where early stopping takes them."""
    candidates = []
    for result in results:
        losses = result.history[MONITOR]
        stop = torch.full((len(losses),), losses.shape[1] - 1)
        if stops_early:
            stop = torch.tensor([early_stop(of_seed) for of_seed in losses.tolist()])
        candidates.append(Remedy(name, result, stop))
    return min(candidates, key=lambda remedy: remedy.taken(MONITOR).sum().item())


def early_stop(losses: Sequence[float], patience: int = PATIENCE) -> int:
    """Return the index of the loss that early stopping keeps: the lowest one before `patience` that are not lower."""
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best
