"""The plain PyTorch loop over float tensors on the device; all others are compared with it."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .task import BATCH_SIZE, LR, Outcome, Run, Task, clock, linear


def contestant(task: Task) -> Run:
    """Return the loop, timed from its first step to its end."""
    tensors = task.tensors()
    return lambda epochs: fit(epochs, *tensors)


def fit(epochs: int, x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor) -> Outcome:
    """Train a fresh model on images (n, 784) and labels (n,), and score it after every epoch."""
    device = x.device.type
    model = linear(device)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    start = clock(device)
    for _ in range(epochs):
        loss, _ = train_epoch(model, optimizer, x, y)
        _, val_acc = score(model, val_x, val_y)
    return Outcome(clock(device) - start, 0.0, loss, val_acc)


def train_epoch(model: nn.Linear, optimizer: torch.optim.SGD, x: Tensor, y: Tensor) -> tuple[float, float]:
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
def score(model: nn.Linear, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    logits = model(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
