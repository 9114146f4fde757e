"""Long training on few images, and what keeps it from overfitting: a sweep whose trials are remedies.

Exercise 2 of Dive into Deep Learning, section 4.5: why does the test accuracy fall after a while, and what
helps? Every remedy is a choice among the same runs, made with validation data.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from optuna.trial import FrozenTrial
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule, stratified_order
from softmax_regression.studies.learning import Each, held_out, learn, options
from softmax_regression.studies.stacked import METRICS
from softmax_regression.studies.sweep.plan import Params, Plan, count, hparams, longest

BATCH_SIZE, LR = 256, 0.1  # the book's
PATIENCE = 5  # scorings without a lower validation loss before early stopping stops


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


FULL = Design(
    (Size(500, 1000, 20), Size(1000, 1000, 20), Size(5000, 300, 5), Size(55_000, 75, 3)),
    (0.0, 0.25, 0.5),
    (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    5,
)
QUICK = Design((Size(50, 60, 6), Size(100, 40, 4)), (0.0, 0.5), (0.0, 0.01), 2)
SMALL: dict[str, Any] = {"synthetic_size": 1000, "val_size": 500}
Curves = Mapping[tuple[float, float], Tensor]  # dropout, weight decay -> (seeds, METRICS, scorings) float64


class Arm(NamedTuple):
    """A remedy as the validation data tuned it.

    Attributes:
        stop: (s,) int64, the scoring at which the model of each seed was taken.
        curves: (s, 6, t) float64, its metrics in the order of METRICS; dropout is off in scoring.
    """

    name: str
    dropout: float
    decay: float
    stop: Tensor
    curves: Tensor

    def taken(self, metric: str) -> list[float]:
        """Return a metric of the models that were taken, one value a seed."""
        values = self.curves[:, METRICS.index(metric)]
        taken: list[float] = values.gather(1, self.stop[:, None])[:, 0].tolist()
        return taken


def plan(design: Design, model: type[LightningModule], data: str) -> Plan:
    """Return the trials of a design in what the model has parameters for, those of large sets first."""
    names = {*vars(options(model).get_defaults().model), "train_size", "epochs"}
    trials: list[Params] = [
        {"train_size": n.images, "epochs": n.epochs, "lr": LR, "dropout": dropout, "weight_decay": decay}
        for n, dropout, decay in itertools.product(design.sizes[::-1], design.dropouts, design.decays)
    ]
    fixed = [{k: v for k, v in trial.items() if k in names} for trial in trials]
    space = {name: sorted({trial[name] for trial in fixed}) for name in fixed[0]}
    return Plan(space, "grid", 1, list(range(design.seeds)), 0, data, model=model, fixed=fixed)


def train(
    design: Design, model: type[LightningModule], data: FashionMNISTDataModule,
    trials: Sequence[Params], seed: int, each: Each,
) -> dict[str, Tensor]:  # fmt: skip
    """Train on images that the seed chooses, for `Sweep`."""
    images, labels, own = data.loaded.images, data.loaded.labels, data.train_index
    index = own[stratified_order(labels[own], seed)[: count(trials[0], "train_size")]]
    sets = {"train": (images[index], labels[index]), **held_out(data)}
    loader = Minibatches(images, labels, index, min(BATCH_SIZE, len(index)), seed)
    every = {size.images: size.every for size in design.sizes}[len(index)]
    return learn(model, [hparams(trial) for trial in trials], loader, longest(trials), seed, sets, every, each)


def curves(trials: Sequence[FrozenTrial], size: Size) -> Curves:
    """Return what came of the trials with a number of images."""
    return {
        (trial.params.get("dropout", 0.0), trial.params.get("weight_decay", 0.0)): torch.tensor(
            [trial.user_attrs["history"][name] for name in METRICS], dtype=torch.float64
        ).movedim(0, 1)
        for trial in trials
        if trial.params["train_size"] == size.images
    }


def choose_arms(runs: Curves) -> list[Arm]:
    """Tune each remedy, where it was run, on the validation loss, the mean over the seeds; the first arm is none."""

    def arm(name: str, dropout: float, decay: float, early: bool = False) -> Arm:
        curves = runs[dropout, decay]
        val_loss = curves[:, METRICS.index("val/loss")]
        last = torch.full((len(val_loss),), val_loss.shape[1] - 1)
        stop = torch.tensor([early_stop(losses) for losses in val_loss.tolist()]) if early else last
        return Arm(name, dropout, decay, stop, curves)

    def best(arms: Sequence[Arm]) -> list[Arm]:
        return sorted(arms, key=lambda arm: sum(arm.taken("val/loss")))[:1]

    tuned = best([arm("weight decay", p, d) for p, d in runs if d and not p])
    tuned += best([arm("dropout", p, d) for p, d in runs if p and not d])
    both = best([arm("combination", p, d, early=True) for p, d in runs]) if tuned else []
    return [arm("none", 0.0, 0.0), *tuned, arm("early stopping", 0.0, 0.0, early=True), *both]


def early_stop(losses: Sequence[float], patience: int = PATIENCE) -> int:
    """Return the position of the least loss before there is none lower for `patience` places."""
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best
