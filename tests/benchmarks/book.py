"""The book's loop: torchvision's data set, a DataLoader with four workers, sums kept as Python floats.

Source: Dive into Deep Learning, `train_epoch_ch3` and `evaluate_accuracy` of the section on softmax
regression from scratch, which the concise one uses with `nn.Linear`, `nn.CrossEntropyLoss` and SGD.
"""

import struct

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from .task import BATCH_SIZE, LR, Outcome, Run, Task, clock, linear


def contestant(task: Task) -> Run:
    """Return the loop, timed from its first epoch; it starts its workers anew in every one."""
    dataset = _torchvision(task)
    train = Subset(dataset, task.data.train_index.tolist())
    val = Subset(dataset, task.data.val_index.tolist())
    loss_fn = nn.CrossEntropyLoss(reduction="none")

    def run(epochs: int) -> Outcome:
        net = nn.Sequential(nn.Flatten(), linear(task.device))
        updater = torch.optim.SGD(net.parameters(), LR)
        train_iter: DataLoader[list[Tensor]] = DataLoader(train, BATCH_SIZE, shuffle=True, num_workers=4)
        val_iter: DataLoader[list[Tensor]] = DataLoader(val, BATCH_SIZE, num_workers=4)
        start = clock(task.device)
        for _ in range(epochs):
            total_loss = correct = 0.0
            for x, y in train_iter:
                labels = y.to(task.device)
                losses = loss_fn(net(x.to(task.device)), labels)
                updater.zero_grad()
                losses.mean().backward()
                updater.step()
                total_loss += float(losses.sum())
            for x, y in val_iter:
                with torch.no_grad():
                    correct += float((net(x.to(task.device)).argmax(1) == y.to(task.device)).sum())
        return Outcome(clock(task.device) - start, 0.0, total_loss / len(train), correct / len(val))

    return run


def _torchvision(task: Task) -> FashionMNIST:
    """Put the same images where torchvision looks for its own, unpacked."""
    data, raw = task.data.loaded, task.scratch / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, images, labels in (
        ("train", data.images, data.labels),
        ("t10k", data.test_images, data.test_labels),
    ):
        for values, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            shape = struct.pack(f">{values.ndim}I", *values.shape)
            content = bytes([0, 0, 8, values.ndim]) + shape + values.to(torch.uint8).numpy().tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(content)
    return FashionMNIST(str(task.scratch), train=True, transform=ToTensor())
