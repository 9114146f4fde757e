"""The same work by hand: a plain loop that gathers uint8 images, with what `fit` does once an epoch.

That is a validation pass, a checkpoint of the best epoch and one of the last with the optimizer in it, and
the metrics for TensorBoard. What an experienced user would write who wants nothing but speed.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from .task import BATCH_SIZE, LR, Outcome, Run, Task, clock, linear, mlp

Epoch = Callable[[nn.Module, torch.optim.SGD, Tensor, Tensor, Tensor], tuple[float, float]]


def contestant(task: Task) -> Run:
    """Return the loop for the linear model, timed from its first step to its end."""
    return _run_of(task, linear)


def of_mlp(task: Task) -> Run:
    """Return the loop for the MLP."""
    return _run_of(task, mlp)


def _run_of(task: Task, make: Callable[[str], nn.Module]) -> Run:
    data = task.data.loaded
    images, labels = (t.to(task.device) for t in (data.images.flatten(1), data.labels))
    train, val = (i.to(task.device) for i in (task.data.train_index, task.data.val_index))
    return lambda epochs: fit(epochs, make(task.device), images, labels, train, val, task.scratch / "by-hand")


def fit(
    epochs: int, model: nn.Module, images: Tensor, labels: Tensor, train: Tensor, val: Tensor, folder: Path
) -> Outcome:
    """Train a model on images (m, 784) uint8 and labels (m,), with the duties of every epoch."""
    device = images.device.type
    folder.mkdir(parents=True, exist_ok=True)
    optimizer, best = torch.optim.SGD(model.parameters(), LR), math.inf
    writer = SummaryWriter(str(folder))
    start = clock(device)
    for epoch in range(epochs):
        loss, acc = train_epoch(model, optimizer, images, labels, train)
        val_loss, val_acc = score(model, images, labels, val)
        metrics = {"train/loss": loss, "train/acc": acc, "val/loss": val_loss, "val/acc": val_acc}
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()
        state: dict[str, Any] = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch,
        }
        if val_loss < best:
            best = val_loss
            torch.save(state, folder / "best.pt")
        torch.save(state, folder / "last.pt")
    seconds = clock(device) - start
    writer.close()
    return Outcome(seconds, 0.0, loss, val_acc)


def train_epoch(
    model: nn.Module, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor, train: Tensor
) -> tuple[float, float]:
    """Train on every example once; return the mean loss and the accuracy."""
    total_loss, correct = torch.zeros(2, device=images.device)
    order = train[torch.randperm(len(train), device=images.device)]
    for index in order.split(BATCH_SIZE):
        x, y = images.index_select(0, index).float().div_(255), labels.index_select(0, index)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.detach() * len(y)
        correct += (logits.argmax(1) == y).sum()
    return total_loss.item() / len(train), correct.item() / len(train)


@torch.no_grad()
def score(model: nn.Module, images: Tensor, labels: Tensor, val: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    y = labels.index_select(0, val)
    logits = model(images.index_select(0, val).float().div_(255))
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
