"""Plain PyTorch loops over float tensors on the device; all others are compared with the linear one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .task import BATCH_SIZE, DEFAULT_THREADS, LR, Outcome, Run, Task, clock, linear, mlp


def contestant(task: Task) -> Run:
    """Return the loop for the linear model, timed from its first step to its end."""
    x, y, val_x, val_y = task.tensors()
    return lambda epochs: fit(epochs, x, y, val_x, val_y)


def of_mlp(task: Task) -> Run:
    """Return the loop for the MLP."""
    x, y, val_x, val_y = task.tensors()
    return lambda epochs: fit(epochs, x, y, val_x, val_y, mlp)


def default_threads(task: Task) -> Run:
    """Return the loop for the linear model with as many threads as torch chooses by itself."""
    run = contestant(task)

    def with_threads(epochs: int) -> Outcome:
        before = torch.get_num_threads()
        torch.set_num_threads(DEFAULT_THREADS)
        try:
            return run(epochs)
        finally:
            torch.set_num_threads(before)

    return with_threads


def fit(
    epochs: int, x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, make: Callable[[str], nn.Module] = linear
) -> Outcome:
    """Train a fresh model on images (n, 784) and labels (n,), and score it after every epoch."""
    device = x.device.type
    model = make(device)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    start = clock(device)
    for _ in range(epochs):
        loss, _ = train_epoch(model, optimizer, x, y)
        _, val_acc = score(model, val_x, val_y)
    return Outcome(clock(device) - start, 0.0, loss, val_acc)


def train_epoch(model: nn.Module, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Train on every example once; return the mean loss and the accuracy."""
    total_loss, correct = torch.zeros(2, device=x.device)
    for index in torch.randperm(len(x), device=x.device).split(BATCH_SIZE):
        inputs, labels = x[index], y[index]
        logits = model(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    return total_loss.item() / len(x), correct.item() / len(x)


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    logits = model(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
