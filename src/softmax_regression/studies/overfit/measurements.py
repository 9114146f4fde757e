"""Long training on few images, and remedies against overfitting: a sweep over sizes, dropouts and weight decays.

Exercise 2 of the book, see model.py: why does the test accuracy fall after a while, and what helps? Each remedy is
a choice among the same runs, made with validation data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule, stratified_order
from softmax_regression.studies import alone
from softmax_regression.studies.learning import Labelled, Scores, Watcher, held_out, learn
from softmax_regression.studies.stacked import CHUNK
from softmax_regression.studies.sweep.results import Result
from softmax_regression.studies.sweep.space import Params, Plan
from softmax_regression.studies.sweep.training import hyperparameters

BATCH_SIZE = 256  # the book's
LR = 0.1  # the book's
PATIENCE = 5  # scorings without a lower validation loss, then early stopping ends the training
MONITOR = "val/loss"


class Size(NamedTuple):
    """A number of training images, how long they are trained on, and how often the models are scored."""

    images: int
    epochs: int
    every: int

    @property
    def scored(self) -> Tensor:
        """Epochs after which the models are scored, (t,) int64."""
        return torch.arange(self.every, self.epochs + 1, self.every)


class Design(NamedTuple):
    """What is run: every size with every dropout, weight decay and seed."""

    sizes: tuple[Size, ...]
    dropouts: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: int

    def size_of(self, params: Params) -> Size:
        """Return the size that a configuration has."""
        for size in self.sizes:
            if size.images == params["train_size"]:
                return size
        raise KeyError(params["train_size"])


FULL = Design(
    (Size(500, 1000, 20), Size(1000, 1000, 20), Size(5000, 300, 5), Size(55_000, 75, 3)),
    (0.0, 0.25, 0.5),
    (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    5,
)
QUICK = Design((Size(50, 60, 6), Size(100, 40, 4)), (0.0, 0.5), (0.0, 0.01), 2)
QUICK_SIZES = {"synthetic_size": 1000, "val_size": 500}
Curves = Mapping[tuple[float, float], Mapping[str, Tensor]]  # dropout, weight decay -> metric -> (seeds, scorings)


@dataclass(frozen=True)
class Remedy:
    """A remedy with the strength that the validation data chose.

    Attributes:
        stop: (s,) int64, the scoring at which the model of each seed was taken.
        curves: Metric -> (s, t) float64, for s seeds and t scorings; dropout is off in scoring.
    """

    name: str
    dropout: float
    decay: float
    stop: Tensor
    curves: Mapping[str, Tensor]

    def taken(self, metric: str) -> list[float]:
        """Return a metric of the models that were taken, one value a seed."""
        taken: list[float] = self.curves[metric].gather(1, self.stop[:, None])[:, 0].tolist()
        return taken


def plan(design: Design, model: type[LightningModule], identity: str, monitor: str = MONITOR) -> Plan:
    """Return the plan: every size with every strength of the remedies that the model has parameters for."""
    known = alone.parameters_of(model)
    space: dict[str, Any] = {"train_size": [size.images for size in design.sizes]}
    if "dropout" in known:
        space["dropout"] = list(design.dropouts)
    if "weight_decay" in known:
        space["weight_decay"] = list(design.decays)
    return Plan(space, list(range(design.seeds)), f"{identity}/{design.sizes}/{monitor}", model=model)


class OverfitTraining:
    """Trains on images that the seed chooses, and scores training, validation and test images every few epochs.

    Args:
        design: Sizes of training sets.
        plan: What is trained.
        data: Has the images.
        monitor: The loss as the model logs it in validation.
    """

    def __init__(self, design: Design, plan: Plan, data: FashionMNISTDataModule, monitor: str = MONITOR) -> None:
        self.design = design
        self.plan = plan
        self.data = data
        self.monitor = monitor

    def check_monitor(self) -> None:
        """Refuse, before anything is trained, a monitor that the model does not log."""
        images, labels = held_out(self.data)["val"]
        loader = Minibatches(images, labels, torch.arange(len(labels)), min(BATCH_SIZE, len(labels)))
        model, params = self.plan.model, {"lr": LR, **hyperparameters(self.plan.first)}
        alone.check_monitor(self.monitor, lambda: (alone.make_model(model, params, 0), loader, loader))

    def train(self, configurations: Sequence[Params], seed: int, watcher: Watcher | None = None) -> list[Scores]:
        """Return the scores of each configuration."""
        size = self.design.size_of(configurations[0])
        images, labels = self.data.loaded.images, self.data.loaded.labels
        own = self.data.train_index
        index = own[stratified_order(labels[own], seed)[: size.images]]
        sets = {"train": (images[index], labels[index]), **held_out(self.data)}
        loader = Minibatches(images, labels, index, min(BATCH_SIZE, len(index)), seed)
        variants = [{"lr": LR, **hyperparameters(params)} for params in configurations]
        if not self.plan.is_stackable:
            return [self._train_alone(variant, loader, size, seed, sets, watcher) for variant in variants]
        return learn(variants, loader, size.epochs, seed, sets, size.every, watcher)

    def _train_alone(
        self,
        variant: Params,
        loader: Minibatches,
        size: Size,
        seed: int,
        sets: Mapping[str, Labelled],
        watcher: Watcher | None,
    ) -> Scores:
        """Train one model by Lightning, and score the weights that it had by its own validation step."""
        loaders = {}
        for stage, (images, labels) in sets.items():
            loaders[stage] = Minibatches(images, labels, torch.arange(len(labels)), CHUNK)
        keeper = alone.WeightKeeper(size.every)
        with isolate_rng():
            module = alone.make_model(self.plan.model, variant, seed)
            alone.train(
                module, loader, size.epochs, watcher, val=loaders["val"], limit_val_batches=0, callbacks=[keeper]
            )
            return alone.score_weights(module, keeper.weights, loaders, self.monitor)


def curves(results: Sequence[Result], size: Size) -> Curves:
    """Return the scores of the configurations with this number of images."""
    found = {}
    for result in results:
        if result.params["train_size"] == size.images:
            strength = float(result.params.get("dropout") or 0), float(result.params.get("weight_decay") or 0)
            found[strength] = {
                name: torch.tensor(values, dtype=torch.float64) for name, values in result.history.items()
            }
    return found


def choose_remedies(runs: Curves) -> list[Remedy]:
    """Choose the strength of each remedy by the validation loss, the mean over the seeds; the first remedy is none."""
    decays = [(dropout, decay) for dropout, decay in runs if decay and not dropout]
    dropouts = [(dropout, decay) for dropout, decay in runs if dropout and not decay]
    remedies = [_choose("none", runs, [(0.0, 0.0)])]
    if decays:
        remedies.append(_choose("weight decay", runs, decays))
    if dropouts:
        remedies.append(_choose("dropout", runs, dropouts))
    has_several = len(remedies) > 1
    remedies.append(_choose("early stopping", runs, [(0.0, 0.0)], stops_early=True))
    if has_several:
        remedies.append(_choose("combination", runs, list(runs), stops_early=True))
    return remedies


def _choose(name: str, runs: Curves, strengths: Sequence[tuple[float, float]], stops_early: bool = False) -> Remedy:
    """Return a remedy with the best strength; models are taken at the end, or where early stopping takes them."""
    candidates = []
    for dropout, decay in strengths:
        found = runs[dropout, decay]
        seeds, scorings = found[MONITOR].shape
        stops = [scorings - 1] * seeds
        if stops_early:
            stops = [early_stop(losses) for losses in found[MONITOR].tolist()]
        candidates.append(Remedy(name, dropout, decay, torch.tensor(stops), found))
    return min(candidates, key=lambda remedy: sum(remedy.taken(MONITOR)))


def early_stop(losses: Sequence[float], patience: int = PATIENCE) -> int:
    """Return where early stopping takes the model: the lowest loss before `patience` losses that are not lower."""
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best
