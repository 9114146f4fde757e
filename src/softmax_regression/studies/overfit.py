"""Long training on few images, and what keeps it from overfitting.

Exercise 2 of Dive into Deep Learning, section 4.5: why does the test accuracy fall after a while, and what
helps? Every remedy is a choice among the same runs, made with validation data.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from softmax_regression.data.minibatches import Batches
from softmax_regression.data.module import FashionMNISTDataModule, stratified_order
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack, pool

METRICS = tuple(f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc"))
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
    """What is run: every size with every seed, dropout and weight decay."""

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


class Runs(NamedTuple):
    """All runs with one number of images and one dropout; s seeds, d weight decays, t scorings.

    Attributes:
        metrics: (s, d, 6, t) float64, in the order of METRICS; dropout is off in scoring.
        weight: (s, d, 10, 784), after the last epoch.
    """

    metrics: Tensor
    weight: Tensor


class Arm(NamedTuple):
    """A remedy as the validation data tuned it, and what it came to.

    Attributes:
        name: The remedy.
        dropout: Probability of dropping a pixel.
        decay: Weight decay.
        stop: (s,) int64, the scoring at which the model of each seed was taken.
        curves: (s, 6, t) float64, its metrics in the order of METRICS.
        weight: (s, 10, 784), after the last epoch.
    """

    name: str
    dropout: float
    decay: float
    stop: Tensor
    curves: Tensor
    weight: Tensor

    def taken(self, metric: str) -> list[float]:
        """Return a metric of the models that were taken, one value a seed."""
        values = self.curves[:, METRICS.index(metric)]
        taken: list[float] = values.gather(1, self.stop[:, None])[:, 0].tolist()
        return taken


def train_all(
    design: Design, data: FashionMNISTDataModule, workers: int | None = None
) -> dict[Size, dict[float, Runs]]:
    """Train everything, several stacks at a time, each the weight decays of one size, dropout and seed.

    Returns:
        Size -> dropout -> runs; of the dropouts only 0 and, for masks are costly, the one that is best for
        the first seed.
    """
    with (
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar,
        pool(workers) as threads,
    ):
        stacks = len(design.dropouts) + 2 * (design.seeds - 1)
        task = bar.add_task("overfit", total=stacks * sum(n.images * n.epochs for n in design.sizes))

        def job(size: Size, dropout: float, seed: int) -> Runs:
            advance = functools.partial(bar.advance, task, size.images * size.every)
            return _train(design, data, size, dropout, seed, advance)

        def train(jobs: list[tuple[Size, float, int]]) -> dict[tuple[Size, float, int], Runs]:
            return dict(zip(jobs, threads.map(job, *zip(*jobs, strict=True)), strict=True))

        largest_first, val_loss = design.sizes[::-1], METRICS.index("val/loss")
        done = train([(n, p, 0) for n in largest_first for p in design.dropouts])
        last = {key: runs.metrics[0, val_loss, -1].item() for key, runs in done.items()}
        kept = {n: (0.0, min(design.dropouts[1:], key=lambda p: last[n, p, 0])) for n in design.sizes}
        done |= train(
            [(n, p, seed) for n in largest_first for p in kept[n] for seed in range(1, design.seeds)]
        )
    return {
        n: {
            p: Runs(*map(torch.stack, zip(*(done[n, p, s] for s in range(design.seeds)), strict=True)))
            for p in ps
        }
        for n, ps in kept.items()
    }


def _train(
    design: Design,
    data: FashionMNISTDataModule,
    size: Size,
    dropout: float,
    seed: int,
    advance: Callable[[], None],
) -> Runs:
    """Train one stack, on images that the seed chooses; shapes as in `Runs` without s."""
    images, labels = data.loaded.images, data.loaded.labels
    index = data.train_index[stratified_order(labels[data.train_index], seed)[: size.images]]
    models = [SoftmaxRegression(LR, decay, dropout=dropout, seed=seed) for decay in design.decays]
    batches = Batches(images, labels, index, min(BATCH_SIZE, size.images), seed=seed)
    stack, rows = Stack(models, batches, size.epochs), []
    sets = (
        (images[index], labels[index]),
        (images[data.val_index], labels[data.val_index]),
        (data.loaded.test_images, data.loaded.test_labels),
    )
    for epoch in range(1, size.epochs + 1):
        stack.train_epoch()
        if epoch % size.every == 0:
            rows.append(torch.stack([score for part in sets for score in stack.score(*part)]))  # (6, d)
            advance()
    return Runs(torch.stack(rows, -1).movedim(1, 0), stack.weight.view(len(models), 10, -1))


def choose_arms(design: Design, runs: Mapping[float, Runs]) -> list[Arm]:
    """Tune each remedy on the validation loss, the mean over the seeds.

    Args:
        design: What was run.
        runs: Dropout -> the runs with it, of one size.

    Returns:
        None, weight decay, dropout, early stopping, and the best combination of all three.
    """

    def arm(name: str, dropout: float, d: int, early: bool = False) -> Arm:
        curves = runs[dropout].metrics[:, d]
        val_loss = curves[:, METRICS.index("val/loss")]
        last = torch.full((len(val_loss),), val_loss.shape[1] - 1)
        stop = torch.tensor([early_stop(losses) for losses in val_loss.tolist()]) if early else last
        return Arm(name, dropout, design.decays[d], stop, curves, runs[dropout].weight[:, d])

    def val_loss(arm: Arm) -> float:
        return sum(arm.taken("val/loss"))

    decays = range(len(design.decays))
    return [
        arm("none", 0.0, 0),
        min((arm("weight decay", 0.0, d) for d in decays[1:]), key=val_loss),
        min((arm("dropout", p, 0) for p in runs if p), key=val_loss),
        arm("early stopping", 0.0, 0, early=True),
        min((arm("combination", p, d, early=True) for p in runs for d in decays), key=val_loss),
    ]


def early_stop(losses: Sequence[float], patience: int = PATIENCE) -> int:
    """Return the position of the least loss before there is none lower for `patience` places.

    >>> early_stop([3.0, 2.0, 2.5, 2.6, 1.0], patience=2)
    1
    """
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best
