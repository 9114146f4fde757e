"""A step on two processes by three loops: DDP by hand with the same arithmetic, `fit` with the engine, and without.

All three train on the same minibatches of noise, in turn; a ratio is that of two in the same round.
Command: python -m tests.benchmarks.devices
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from examples.mlp import MLP
from lightning.pytorch import Callback, Trainer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.engine import Engine
from softmax_regression.engine.ddp import ExactDDP
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.last_checkpoint import LastCheckpoint

MODELS: dict[str, Callable[[], SoftmaxRegression]] = {"linear": SoftmaxRegression, "MLP": MLP}


def images(steps: int) -> Minibatches:
    """Return this process's share of minibatches of 256 images of noise."""
    generator = torch.Generator().manual_seed(0)
    n = 256 * steps
    x = torch.randint(256, (n, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(10, (n,), generator=generator)
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    return Minibatches(x, y, torch.arange(n), 256, seed=0, rank=rank, world_size=world_size)


def by_hand(make: Callable[[], SoftmaxRegression], steps: int) -> float:
    """Return the seconds of the second epoch of a plain loop."""
    model, loader = make(), images(steps)
    wrapped, optimizer = DistributedDataParallel(model), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        distributed.barrier()
        start = time.perf_counter()
        for x, y in loader:
            logits = wrapped(x)
            loss = model.loss(logits, y)
            model.train_scores.update(logits.detach(), y, loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


class Clock(Callback):
    """The seconds of the last epoch's minibatches."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        distributed.barrier()
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def by_fit(make: Callable[[], SoftmaxRegression], steps: int, engine: bool) -> float:
    """Return the seconds of the second epoch of `Trainer.fit`."""
    clock = Clock()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [Engine(engine), clock, LastCheckpoint()]
    with warnings.catch_warnings(action="ignore"):
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", devices=2, strategy=ExactDDP(), callbacks=callbacks, **options
        )
        trainer.fit(make(), images(steps))
    return clock.seconds


def main() -> None:
    """Print the table; to be started by torchrun, with two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=215)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    if first:
        print("| two processes | ms a step, median (range) | ratio to the loop by hand |\n|---|---|---|")
    for name, make in MODELS.items():
        times: dict[str, list[float]] = {"DDP by hand": [], "`fit`": [], "`fit`, Lightning's own step": []}
        for _ in range(args.rounds):
            times["DDP by hand"].append(1000 * by_hand(make, args.steps) / args.steps)
            times["`fit`"].append(1000 * by_fit(make, args.steps, True) / args.steps)
            times["`fit`, Lightning's own step"].append(1000 * by_fit(make, args.steps, False) / args.steps)
        for loop, values in times.items():
            ratio = median(a / b for a, b in zip(values, times["DDP by hand"], strict=True))
            if first:
                range_of = f"{min(values):.2f} to {max(values):.2f}"
                print(f"| {name}, {loop} | {median(values):.2f} ({range_of}) | {ratio:.2f} |", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
