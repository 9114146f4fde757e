"""How the time of an epoch and the memory of `fit` grow with the examples and with the batch size."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from softmax_regression.data import synthetic
from softmax_regression.data.datasets import Dataset

from .ours import fit

EXAMPLES = (6_000, 20_000, 60_000, 200_000, 600_000)
BATCH_SIZES = (32, 128, 512, 2048, 8192)
VAL_SIZE = 1000
EPOCHS = 6  # the first one warms up


class Point(NamedTuple):
    """One `fit`.

    Attributes:
        examples: Training images.
        batch_size: Images in a minibatch.
        seconds: Of every epoch but the first.
        memory: The most that the process needed beyond its imports, in MiB.
        data: What the images and labels need, in MiB.
    """

    examples: int
    batch_size: int
    seconds: list[float]
    memory: float
    data: float


def measure(examples: int, batch_size: int, device: str) -> Point:
    """Measure a point in a process of its own, so that the peak of memory is that of this point."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(point, examples, batch_size, device).result()


def point(examples: int, batch_size: int, device: str) -> Point:
    """Run `fit` in this process, on generated images that are repeated where there are more than 60,000."""
    imports = _peak()
    data = _tiled(examples + VAL_SIZE)
    flags = [
        f"--data.val_size={VAL_SIZE}",
        f"--data.batch_size={batch_size}",
        f"--trainer.max_epochs={EPOCHS}",
        "--data.source=synthetic",
        "--figures.every_n_epochs=0",
    ]
    with (
        tempfile.TemporaryDirectory() as logs,
        mock.patch("softmax_regression.data.module.generate_dataset", return_value=data),
        redirect_stdout(StringIO()),
    ):
        done = fit([*flags, f"--trainer.logger.save_dir={logs}"], device)
    size = (data.images.nbytes + data.labels.nbytes) / 2**20
    return Point(examples, batch_size, done.epochs[1:], _peak() - imports, size)


def _tiled(n: int) -> Dataset:
    images, labels = synthetic.generate(min(n, 60_000), seed=0)
    index = torch.arange(n) % len(labels)
    return Dataset(images[index], labels.long()[index], images[:10], labels[:10].long(), "", "generated")


def _peak() -> float:
    """Return the most memory that this process has had, in MiB."""
    # Not resource.getrusage: its ru_maxrss begins with the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
