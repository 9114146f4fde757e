"""The work that every contestant does: the book's recipe on the same images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from softmax_regression.data.module import FashionMNISTDataModule

BATCH_SIZE = 256
LR = 0.1
INIT_STD = 0.01
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice, before a benchmark makes it


class Outcome(NamedTuple):
    """What a run took and came to.

    Attributes:
        seconds: All epochs, with a validation pass after each where the library can.
        setup: Seconds before that, of compiling, loggers and the like.
        loss: Mean training loss over the examples of the last epoch; None where the library has none.
        acc: Accuracy on held-out images in the end.
    """

    seconds: float
    setup: float
    loss: float | None
    acc: float


Run = Callable[[int], Outcome]  # trains from fresh weights for so many epochs


@dataclass(frozen=True)
class Task:
    """The images, the device to train on, and a folder for whatever a run leaves behind."""

    data: FashionMNISTDataModule
    device: str
    scratch: Path

    def tensors(self) -> tuple[Tensor, ...]:
        """Return training images (n, 784) float32 in [0, 1], labels (n,), and both of the validation set."""
        data, splits = self.data.loaded, (self.data.train_index, self.data.val_index)
        parts = (t for i in splits for t in (flat(data.images[i]), data.labels[i]))
        return tuple(part.to(self.device) for part in parts)

    def arrays(self) -> "tuple[np.ndarray, ...]":
        """Return `tensors` as NumPy arrays."""
        return tuple(part.numpy(force=True) for part in self.tensors())


def flat(images: Tensor) -> Tensor:
    """Return images (n, 28, 28) uint8 as (n, 784) float32 in [0, 1]."""
    return images.flatten(1) / 255


def linear(device: str) -> nn.Linear:
    """Return a model with weights from N(0, 0.01²) and biases of 0."""
    layer = nn.Linear(784, 10, device=device)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(device: str) -> nn.Module:
    """Return the model of examples/mlp.py, with weights from N(0, 0.01²) and biases of 0."""
    hidden, last = nn.Linear(784, 256, device=device), nn.Linear(256, 10, device=device)
    for values in (*hidden.parameters(), *last.parameters()):
        nn.init.normal_(values, std=INIT_STD if values.ndim > 1 else 0)
    return nn.Sequential(hidden, nn.ReLU(), last)


def clock(device: str = "cpu") -> float:
    """Return the time in seconds, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
