"""Softmax regressions that see the same minibatches, trained at once: one wide matrix product a step.

The models differ in learning rate, weight decay, momentum and initial weights, and each ends as it would on
its own, within float32 rounding. The gradient is written out: with respect to the logits it is the softmax
minus the one-hot label (Dive into Deep Learning, section 4.1, equation 4.1.9).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_regression.classifier import STAGES
from softmax_regression.data.minibatches import Minibatches, Shuffle, to_float_images
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression, cosine

SHARED = ("dropout", "schedule", "num_classes", "loss")  # what all models of a stack have in common
CHUNK = 4096  # images gathered, and scored, at a time


class Scores(NamedTuple):
    """Exact means over a data set, (models,) float64: cross-entropy in nats, share classified right."""

    loss: Tensor
    acc: Tensor


METRICS = tuple(f"{stage}/{name}" for stage in STAGES for name in Scores._fields)


class Stack:
    """Models with their weights in one tensor, trained together by minibatch SGD.

    With dropout all of them lose the same pixels, drawn by a generator of the stack's own: those are not the
    pixels that `fit` drops with this seed.

    The models, alike in `SHARED`, give their hyperparameters and initial weights; a cosine schedule needs to know
    the number of `epochs`, and the data are on the device to train on. Models that cannot share their minibatches,
    or want the naive loss, are an InputError.

    Attributes:
        weight, bias: (models * k, 784) and (models * k, 1), k consecutive rows for each model.
    """

    def __init__(self, models: Sequence[SoftmaxRegression], loader: Minibatches, epochs: int, seed: int = 0) -> None:
        self.loader, self.epoch, self.step, self.total = loader, 0, 0, epochs * len(loader)
        hparams, device = [model.hparams for model in models], loader.images.device
        self.shared = {name: hparams[0][name] for name in SHARED}
        if any(self.shared.items() - h.items() for h in hparams):
            raise InputError(f"{', '.join(SHARED)}: must be the same in a stack; make several")
        if self.shared["loss"] == "naive":
            raise InputError("loss=naive: a stack has the stable gradient; train the model alone")
        self.k = self.shared["num_classes"]
        weights, biases = zip(*(model.net.parameters() for model in models), strict=True)
        self.weight = torch.cat(weights).detach().to(device)
        self.bias = torch.cat(biases).detach()[:, None].to(device)
        self.lr, self.weight_decay, self.momentum = (
            torch.tensor([float(h[name]) for h in hparams], device=device).repeat_interleave(self.k)[:, None]
            for name in ("lr", "weight_decay", "momentum")
        )  # (models * k, 1) each
        self.decays, self.moves = bool(self.weight_decay.any()), bool(self.momentum.any())
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.generator = torch.Generator(device).manual_seed(seed)

    def train_epoch(self) -> Scores:
        """Train for one epoch; return the means over its minibatches, each scored before its update."""
        if isinstance(self.loader.sampler, Shuffle):
            self.loader.sampler.set_epoch(self.epoch)
        size, order = self.loader.batch_size, self.loader.order()
        onehot, sums = torch.eye(self.k, device=order.device), []
        for chosen in order.split(max(1, CHUNK // size) * size):  # several minibatches are gathered at once
            x, y = self.loader.gather(chosen)
            pairs = zip(x.flatten(1).split(size), onehot[:, y].split(size, 1), strict=True)
            sums.append(_sums(torch.cat([self._update(*pair) for pair in pairs], 2), y))
        self.epoch += 1
        return Scores(*torch.stack(sums).sum(0) / len(order))

    @torch.no_grad()
    def score(self, images: Tensor, labels: Tensor) -> Scores:
        """Score n images, (n, 28, 28) uint8, with labels (n,) int64, by every model."""
        return mean_scores(lambda x: self._log_probs(x.flatten(1)), images, labels)

    def _log_probs(self, x: Tensor) -> Tensor:
        """Turn x (b, 784) into log-probabilities (models, k, b)."""
        return torch.addmm(self.bias, self.weight, x.T).view(-1, self.k, len(x)).log_softmax(1)

    def _update(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Make one step on x (b, 784) and onehot (k, b); return the log-probabilities from before it."""
        if p := self.shared["dropout"]:
            x = x * torch.empty_like(x).bernoulli_(1 - p, generator=self.generator).div_(1 - p)
        log_probs, lr = self._log_probs(x), self.lr
        if self.shared["schedule"] == "cosine":
            lr = lr * cosine(self.step / self.total)
        delta = (log_probs.exp() - onehot).view(len(lr), -1).mul_((1 if self.moves else lr) / len(x))
        if self.moves:
            gradients = (delta @ x, delta.sum(1, keepdim=True))
            for w, v, gradient in zip((self.weight, self.bias), self.velocity, gradients, strict=True):
                v.mul_(self.momentum).add_(gradient).addcmul_(w, self.weight_decay)
                w.addcmul_(v, lr, value=-1)
        else:  # the update, fused with the product that is the gradient
            if self.decays:
                self.weight.mul_(1 - lr * self.weight_decay)
                self.bias.mul_(1 - lr * self.weight_decay)
            self.weight.addmm_(delta, x, alpha=-1)
            self.bias.sub_(delta.sum(1, keepdim=True))
        self.step += 1
        return log_probs


def mean_scores(log_probs: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Scores:
    """Score uint8 images (n, 28, 28) by what turns (b, 1, 28, 28) in [0, 1] into (models, k, b)."""
    chunks = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
    sums = torch.stack([_sums(log_probs(to_float_images(x)), y) for x, y in chunks])
    return Scores(*sums.sum(0) / len(labels))


def _sums(log_probs: Tensor, labels: Tensor) -> Tensor:
    """log_probs (models, k, n), labels (n,) -> summed losses and numbers of hits, (2, models) float64."""
    of_label = log_probs.gather(1, labels.expand(len(log_probs), 1, -1))[:, 0]
    hits = of_label >= log_probs.amax(1)  # argmax along this axis takes 25 times as long
    return torch.stack((-of_label.sum(1), hits.sum(1).float())).cpu().double()  # MPS has no float64
