"""The inputs, classes and logits of a loader: what the drawings of a classifier are made from."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import STAGES

Scored = tuple[Tensor, Tensor, Tensor]  # inputs (n, ...), labels (n,) and logits (n, k) of a classifier


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, without gradients; then restore the mode of each of its parts."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def choose_loader(loaders: Any, stage: str) -> tuple[int, Any] | None:
    """Return the loader that the figures of a stage show, after its position; None if there is none.

    Of several it is the one that is named after the stage, or else the first that is not of another stage.
    """
    named = loaders_by_name(loaders)
    names = list(named)
    for name in [stage, *names]:
        if name in names and (name == stage or name not in STAGES):
            return names.index(name), named[name]
    return None


def loaders_by_name(loaders: Any) -> Mapping[Any, Any]:
    """Return what a hook such as `val_dataloader` gave, one loader, several or none, by their names or numbers."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    if isinstance(loaders, Mapping):
        return loaders
    if loaders is None:
        loaders = []
    return dict(enumerate(loaders if isinstance(loaders, list | tuple) else [loaders]))


def score(trainer: Trainer, module: LightningModule, loader: Iterable[Any], limit: int | None = None) -> Scored:
    """Score a loader, or its first `limit` batches.

    Each process scores its share, and all get all shares. Random numbers and modes stay as they are.

    Raises:
        InputError: The batches are not of inputs and their classes, or the module does not return logits.
    """
    scored = []
    with isolate_rng(), trainer.precision_plugin.val_step_context(), evaluation_mode(module):
        for batch in islice(loader, limit):  # of which a DataLoader's iterator draws a random number
            moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            inputs, labels = inputs_and_labels(moved)
            if labels is None:
                raise InputError("a batch has no classes (n,)")
            logits = module(inputs)
            if not is_logits(logits, inputs):
                raise InputError(f"{type(module).__name__} returns no logits (n, k) of n examples")
            scored.append((inputs, labels, logits))
    if not scored:
        raise InputError("there is no batch to draw")
    parts = [torch.cat(part) for part in zip(*scored, strict=True)]
    if trainer.world_size > 1:
        parts = [torch.cat(gather_all_tensors(part)) for part in parts]
    inputs, labels, logits = parts
    low, high = labels.aminmax()
    if low < 0 or high >= logits.shape[1]:
        raise InputError(f"classes are {low} to {high}, and the model tells {logits.shape[1]} apart")
    return inputs, labels, logits


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the inputs (n, ...) of a batch and their classes (n,), or None where it has none.

    Raises:
        InputError: It is not clear which part is the one or the other.
    """
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    parts = batch if isinstance(batch, list | tuple) else [batch]
    inputs = []
    labels = []
    for part in parts:
        if isinstance(part, Tensor) and part.ndim >= 2:
            inputs.append(part)
        elif isinstance(part, Tensor) and part.ndim == 1 and not part.is_floating_point():
            labels.append(part)
    if len(inputs) != 1 or len(labels) > 1:
        raise InputError("a batch does not hold one tensor of inputs (n, ...) and one of classes (n,)")
    return inputs[0], labels[0] if labels else None


def is_logits(output: Any, inputs: Tensor) -> bool:
    """Whether a module has returned logits (n, k) of inputs (n, ...); what has the size of the input is no logits."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        return False
    k = output.shape[1]
    return output.is_floating_point() and k > 1 and k != math.prod(inputs.shape[1:])
