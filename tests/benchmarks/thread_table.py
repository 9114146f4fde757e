"""Milliseconds of an epoch by the number of CPU threads: batch sizes, two models, one core busy or none.

The rule of runs/processes.py stands on this table.
Command: python -m tests.benchmarks.thread_table
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import median

import torch
from torch import nn

from softmax_regression.data.module import FashionMNISTDataModule

from . import busy
from .task import linear, mlp

BATCH_SIZES = (16, 64, 256, 1024, 4096, 8192)
MODELS = {"linear": linear, "MLP": mlp}


def step_seconds(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Return the median seconds of a step of SGD on a minibatch."""
    optimizer, seconds = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(steps + 2):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(x / 255), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return sum(seconds[2:]) / steps


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.thread_table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args(args)
    data = FashionMNISTDataModule(source="synthetic", synthetic_size=10_000, val_size=0)
    data.setup()
    images, labels = data.loaded.images.flatten(1), data.loaded.labels
    loads = ("quiet", "one core busy")
    heads = [f"{n} thread{'s' if n > 1 else ''}, {load}" for load in loads for n in options.threads]
    print(f"| model | batch size | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * (2 * len(options.threads)))
    for name, make in MODELS.items():
        for batch_size in BATCH_SIZES:
            cells = []
            for load in (nullcontext, busy.core):
                with load():
                    for n in options.threads:
                        torch.set_num_threads(n)
                        rounds = [
                            step_seconds(make("cpu"), images[:batch_size], labels[:batch_size], options.steps)
                            for _ in range(options.rounds)
                        ]
                        cells.append(f"{1000 * median(rounds):.2f}")
            print(f"| {name} | {batch_size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
