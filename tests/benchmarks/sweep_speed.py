"""How long 100 stacked trials take, against one run of the book's own loop, in turn on the same images.

Command: python -m tests.benchmarks.sweep_speed
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.stacked import Stack

from . import book
from .task import BATCH_SIZE, Task, clock


def stacked(data: FashionMNISTDataModule, trials: int, epochs: int) -> tuple[float, list[float]]:
    """Train trials that differ in their learning rate; return seconds and their last validation losses."""
    rates = torch.logspace(-3, 0, trials).tolist()
    val = data.loaded.images[data.val_index], data.loaded.labels[data.val_index]
    start = clock()
    stack = Stack([SoftmaxRegression(lr) for lr in rates], data.train_dataloader(), epochs)
    for _ in range(epochs):
        stack.train_epoch()
        losses = stack.score(*val).loss
    return clock() - start, losses.tolist()


def main(args: Sequence[str] | None = None) -> float:
    """Print the seconds of both and their ratio, and return the median ratio of the rounds."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.sweep_speed")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-size", type=int, help="training images (default: all 55,000)")
    parser.add_argument("--source", choices=["files", "synthetic"], default="files")
    options = parser.parse_args(args)
    size = 60_000 if options.train_size is None else options.train_size + 5000
    data = FashionMNISTDataModule(BATCH_SIZE, train_size=options.train_size, source=options.source, synthetic_size=size)
    data.setup()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    stacked(data, options.trials, 1)  # warm up
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        run = book.contestant(Task(data, "cpu", Path(scratch)))
        for _ in range(options.rounds):
            ours, losses = stacked(data, options.trials, options.epochs)
            theirs = run(options.epochs)
            ratios.append(ours / theirs.seconds)
            print(
                f"{options.trials} stacked trials {ours:.1f} s, best val/loss {min(losses):.4f}; "
                f"the book's loop, one run, {theirs.seconds:.1f} s; ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return median(ratios)


if __name__ == "__main__":
    main()
