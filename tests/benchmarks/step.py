"""What a training step costs beyond its arithmetic, in microseconds: the smallest model, by three loops.

Then where a step of `fit` goes: loops by hand that do ever more of what it does, on minibatches of 256 images.
Command: python -m tests.benchmarks.step
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.engine import Engine
from softmax_regression.model import SoftmaxRegression

from .ours import Clock


class Loader:
    """The same minibatch of eight examples, so many times."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.batch = torch.randn(8, 4), torch.randint(2, (8,))

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            yield self.batch


class Smallest(LightningModule):
    """Ten numbers to learn, and nothing logged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def by_hand(steps: int) -> float:
    """Return the microseconds of a step of a plain loop."""
    model = Smallest()
    optimizer = model.configure_optimizers()
    start = time.perf_counter()
    for batch_idx, batch in enumerate(Loader(steps)):
        loss = model.training_step(batch, batch_idx)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps * 1e6


def images(steps: int) -> Minibatches:
    """Return minibatches of 256 images of noise."""
    n = 256 * steps
    x = torch.randint(256, (n, 28, 28), dtype=torch.uint8)
    return Minibatches(x, torch.randint(10, (n,)), torch.arange(n), 256, seed=0)


def parts(steps: int) -> dict[str, float]:
    """Return the microseconds of each part of a step of `fit`, as the difference of two loops."""
    loader, model = images(steps), SoftmaxRegression()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def gather(x: Tensor, y: Tensor) -> None: ...

    def forward(x: Tensor, y: Tensor) -> None:
        model.loss(model(x), y)

    def backward(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        model.loss(model(x), y).backward()

    def update(x: Tensor, y: Tensor) -> None:
        backward(x, y)
        optimizer.step()

    def scored(x: Tensor, y: Tensor) -> None:
        logits = model(x)
        loss = model.loss(logits, y)
        model.train_scores.update(logits.detach(), y, loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    taken: dict[str, float] = {}
    for name, part in (
        ("gather, to float", gather), ("forward, loss", forward), ("backward", backward),
        ("optimizer", update), ("exact scores", scored),
    ):  # fmt: skip
        passes = []
        for _ in range(3):
            start = time.perf_counter()
            for x, y in loader:
                part(x, y)
            passes.append((time.perf_counter() - start) / steps * 1e6)
        taken[name] = min(passes) - sum(taken.values())
    for name, engine in (("the engine", True), ("what Lightning's own loop takes more", False)):
        passes = [by_lightning(steps, engine, SoftmaxRegression(), images(steps)) for _ in range(3)]
        taken[name] = min(passes) - sum(taken.values())
    return taken


def by_lightning(
    steps: int, engine: bool, model: LightningModule | None = None, loader: Iterable[object] | None = None
) -> float:
    """Return the microseconds of a step of `Trainer.fit`, with or without the engine, in its second epoch."""
    noted, off = Clock("cpu"), ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with warnings.catch_warnings(action="ignore"):
        options: dict[str, Any] = dict.fromkeys(off, False)
        trainer = Trainer(max_epochs=3, accelerator="cpu", devices=1, callbacks=[Engine(engine), noted], **options)
        trainer.fit(model or Smallest(), loader or Loader(steps))
    return (noted.epochs[2] - noted.epochs[1]) / steps * 1e6


def main(args: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Print the table, and return the microseconds of each loop in each round."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.step")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it names the devices each time
    loops: dict[str, Callable[[int], float]] = {
        "plain loop": by_hand,
        "the engine": lambda steps: by_lightning(steps, True),
        "Lightning's own loop": lambda steps: by_lightning(steps, False),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            times[name].append(loop(options.steps))
    print("| loop | µs a step, median (range) | above the plain loop |\n|---|---|---|")
    for name, values in times.items():
        above = median(a - b for a, b in zip(values, times["plain loop"], strict=True))
        print(f"| {name} | {median(values):.0f} ({min(values):.0f} to {max(values):.0f}) | {above:.0f} |")
    rows = [parts(min(options.steps, 215)) for _ in range(options.rounds)]  # 215: an epoch of `fit`
    print("\n| part of a step of `fit` | µs, median (range) |\n|---|---|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"| {name} | {median(values):.0f} ({min(values):.0f} to {max(values):.0f}) |")
    return times


if __name__ == "__main__":
    main()
