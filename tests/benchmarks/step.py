"""What a training step costs beyond its arithmetic, in microseconds: the smallest model, by three loops.

Command: python -m tests.benchmarks.step
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from softmax_regression.engine import Engine

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


def by_lightning(steps: int, engine: bool) -> float:
    """Return the microseconds of a step of `Trainer.fit`, with or without the engine, in its second epoch."""
    noted = Clock("cpu")
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Engine(engine), noted],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Smallest(), Loader(steps))
    return (noted.epochs[2] - noted.epochs[1]) / steps * 1e6


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Print the table, and return the median microseconds of each loop."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.step")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
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
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
