"""Softmax regressions with the same minibatches, trained at once: one wide matrix product a step.

The models differ in learning rate, weight decay, momentum and initial weights. Each ends as if it were trained alone,
up to rounding in float32. The gradient is computed by hand: with respect to the logits it is the softmax minus the
one-hot label (Dive into Deep Learning, classic edition, section 3.4).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches, to_float_images
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression, cosine

SHARED = ("dropout", "schedule", "num_classes", "loss")  # hyperparameters that are equal in all models of a stack
CHUNK = 4096  # images that are gathered or scored at a time


class Means(NamedTuple):
    """Exact means over a data set, (models,) float64: cross-entropy in nats, and accuracy."""

    loss: Tensor
    acc: Tensor


METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")  # of a stack, after each epoch of a sweep


class Stack:
    """Models with their weights in one tensor, trained together by minibatch SGD.

    With dropout, the same pixels are dropped for all models. They are drawn by a generator of the stack, and are not
    those that `fit` drops with this seed.

    Args:
        models: Their hyperparameters and initial weights are taken.
        loader: Its images are on the device to train on.
        epochs: Number of epochs to train, for a cosine schedule.
        seed: Of the dropped pixels.

    Attributes:
        weight, bias: (models * k, 784) and (models * k, 1), k consecutive rows for each model.

    Raises:
        InputError: The models differ in one of `SHARED`, or have the naive loss.
    """

    def __init__(self, models: Sequence[SoftmaxRegression], loader: Minibatches, epochs: int, seed: int = 0) -> None:
        self.loader = loader
        self.epoch = 0
        self.step = 0
        self.total = epochs * len(loader)
        self.shared = {name: models[0].hparams[name] for name in SHARED}
        if any(self.shared.items() - model.hparams.items() for model in models):
            raise InputError(f"{', '.join(SHARED)}: must be the same in a stack; make several")
        if self.shared["loss"] == "naive":
            raise InputError("loss=naive: a stack has the stable gradient; train the model alone")
        self.k = self.shared["num_classes"]
        device = loader.images.device
        weights, biases = zip(*[model.net.parameters() for model in models], strict=True)
        self.weight = torch.cat(weights).detach().to(device)
        self.bias = torch.cat(biases).detach()[:, None].to(device)
        self.lr = self._column(models, "lr")
        self.weight_decay = self._column(models, "weight_decay")
        self.momentum = self._column(models, "momentum")
        self.has_decay = bool(self.weight_decay.any())
        self.has_momentum = bool(self.momentum.any())
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.generator = torch.Generator(device).manual_seed(seed)

    def _column(self, models: Sequence[SoftmaxRegression], name: str) -> Tensor:
        """Return a hyperparameter for each row of the weights, (models * k, 1)."""
        values = torch.tensor([float(model.hparams[name]) for model in models], device=self.weight.device)
        return values.repeat_interleave(self.k)[:, None]

    def train_epoch(self) -> Means:
        """Train for one epoch; return the means over its minibatches, each scored before its update."""
        self.loader.sampler.set_epoch(self.epoch)
        size = self.loader.batch_size
        order = self.loader.order()
        onehot = torch.eye(self.k, device=order.device)
        sums = []
        for chosen in order.split(max(1, CHUNK // size) * size):  # several minibatches are gathered at once
            x, y = self.loader.gather(chosen)
            log_probs = []
            for batch, labels in zip(x.flatten(1).split(size), onehot[:, y].split(size, 1), strict=True):
                log_probs.append(self._update(batch, labels))
            sums.append(_sums(torch.cat(log_probs, 2), y))
        self.epoch += 1
        return Means(*torch.stack(sums).sum(0) / len(order))

    @torch.no_grad()
    def score(self, images: Tensor, labels: Tensor) -> Means:
        """Score every model on n images (n, 28, 28) uint8 with labels (n,) int64."""
        sums = []
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            sums.append(_sums(self._log_probs(to_float_images(x).flatten(1)), y))
        return Means(*torch.stack(sums).sum(0) / len(labels))

    def _log_probs(self, x: Tensor) -> Tensor:
        """Return log-probabilities (models, k, b) of x (b, 784)."""
        return torch.addmm(self.bias, self.weight, x.T).view(-1, self.k, len(x)).log_softmax(1)

    def _update(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Make one step on x (b, 784) and onehot (k, b); return the log-probabilities before the step."""
        p = self.shared["dropout"]
        if p:
            x = x * torch.empty_like(x).bernoulli_(1 - p, generator=self.generator).div_(1 - p)
        log_probs = self._log_probs(x)
        lr = self.lr
        if self.shared["schedule"] == "cosine":
            lr = lr * cosine(self.step / self.total)
        delta = (log_probs.exp() - onehot).view(len(lr), -1)  # gradient of the summed loss with respect to the logits
        if self.has_momentum:
            self._step_with_momentum(delta.mul_(1 / len(x)), x, lr)
        else:
            self._step(delta.mul_(lr / len(x)), x, lr)
        self.step += 1
        return log_probs

    def _step_with_momentum(self, delta: Tensor, x: Tensor, lr: Tensor) -> None:
        """Update the weights; `delta` (models * k, b) is the gradient of the mean loss with respect to the logits."""
        gradients = (delta @ x, delta.sum(1, keepdim=True))
        for values, velocity, gradient in zip((self.weight, self.bias), self.velocity, gradients, strict=True):
            velocity.mul_(self.momentum).add_(gradient).addcmul_(values, self.weight_decay)
            values.addcmul_(velocity, lr, value=-1)

    def _step(self, delta: Tensor, x: Tensor, lr: Tensor) -> None:
        """Update the weights by one matrix product; `delta` is the gradient for the logits times the learning rate."""
        if self.has_decay:
            self.weight.mul_(1 - lr * self.weight_decay)
            self.bias.mul_(1 - lr * self.weight_decay)
        self.weight.addmm_(delta, x, alpha=-1)
        self.bias.sub_(delta.sum(1, keepdim=True))


def _sums(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return the summed losses and the numbers of right predictions, (2, models) float64.

    log_probs are (models, k, n), labels (n,).
    """
    of_label = log_probs.gather(1, labels.expand(len(log_probs), 1, -1))[:, 0]
    hits = of_label >= log_probs.amax(1)  # argmax along this axis takes 25 times as long
    return torch.stack((-of_label.sum(1), hits.sum(1).float())).cpu().double()  # MPS has no float64
