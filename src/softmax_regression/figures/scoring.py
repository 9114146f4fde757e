"""The inputs, labels and logits of a loader, from which the figures of a classifier are drawn."""

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
from softmax_regression.runs.callbacks import as_list
from softmax_regression.runs.loops import changed_by_hooks

Scored = tuple[Tensor, Tensor, Tensor]  # inputs (n, ...), labels (n,) and logits (n, k) of a classifier


@contextmanager
def evaluation_mode(trainer: Trainer, module: nn.Module) -> Iterator[None]:
    """Put a Trainer and a module into evaluation mode, without gradients; afterwards restore what they were."""
    stage = trainer.state.stage
    modes = {part: part.training for part in module.modules()}
    if trainer.training:
        trainer.validating = True  # for hooks that change the batches of the training alone
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trainer.state.stage = stage
        for part, training in modes.items():
            part.training = training


def choose_loader(loaders: Any, stage: str) -> tuple[int, Any] | None:
    """Return the position of the loader that the figures of a stage show, and the loader; None if there is none.

    Of several it is the one that has the name of the stage, or else the first that has no name of a stage.
    """
    named = loaders_by_name(loaders)
    names = list(named)
    for name in [stage, *names]:
        if name in names and (name == stage or name not in STAGES):
            return names.index(name), named[name]
    return None


def loaders_by_name(loaders: Any) -> Mapping[Any, Any]:
    """Return the loaders that a hook such as `val_dataloader` has returned, by their names or positions."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    if isinstance(loaders, Mapping):
        return loaders
    return dict(enumerate(as_list(loaders)))


def score(trainer: Trainer, module: LightningModule, loader: Iterable[Any], limit: int | None = None) -> Scored:
    """Return the inputs, labels and logits of a loader, or of its first `limit` batches.

    Each process scores its share, and gets the shares of all. Random states and modes are restored afterwards.

    Raises:
        InputError: The batches do not consist of inputs and labels, or the module does not return logits.
    """
    scored = []
    with isolate_rng(), trainer.precision_plugin.val_step_context(), evaluation_mode(trainer, module):
        for batch in islice(loader, limit):  # the iterator of a DataLoader draws a random number
            inputs, labels = inputs_and_labels(as_in_a_step(trainer, module, batch))
            if labels is None:
                raise InputError("a batch has no classes (n,)")
            logits = module(inputs)
            if not is_logits(logits, inputs):
                raise InputError(f"{type(module).__name__} returns no logits (n, k) of n examples")
            if are_probabilities(logits):
                logits = logits.log()
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


def as_in_a_step(trainer: Trainer, module: LightningModule, batch: Any, device: torch.device | None = None) -> Any:
    """Return a batch of a loader as a step is given it: converted, changed by the hooks, and on the device."""
    converted = trainer.precision_plugin.convert_input(batch)
    return trainer.strategy.batch_to_device(changed_by_hooks(module, converted), device)


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the inputs (n, ...) and the labels (n,) of a batch; None for labels if it has none.

    Raises:
        InputError: It is not clear which tensors these are.
    """
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    inputs = []
    labels = []
    for part in as_list(batch):
        if isinstance(part, Tensor) and part.ndim >= 2:
            inputs.append(part)
        elif isinstance(part, Tensor) and part.ndim == 1 and not part.is_floating_point():
            labels.append(part)
    if len(inputs) != 1 or len(labels) > 1:
        raise InputError("a batch does not hold one tensor of inputs (n, ...) and one of classes (n,)")
    return inputs[0], labels[0] if labels else None


def is_logits(output: Any, inputs: Tensor) -> bool:
    """Return whether an output is logits (n, k) of inputs (n, ...); a reconstruction of the inputs is not."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        return False
    k = output.shape[1]
    return output.is_floating_point() and k > 1 and k != math.prod(inputs.shape[1:])


def are_probabilities(output: Tensor) -> bool:
    """Return whether each row of an output (n, k) is a distribution, as after a softmax."""
    sums = output.double().sum(dim=1)
    return bool((output >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=0.01))
