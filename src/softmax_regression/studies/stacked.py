"""Softmax regressions that see the same minibatches, trained at once: one wide matrix product a step.

The models differ in learning rate, weight decay, momentum and initial weights, and each ends as it would on
its own, within float32 rounding. The gradient is written out: with respect to the logits it is the softmax
minus the one-hot label (Dive into Deep Learning, section 4.1, equation 4.1.9).
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_regression.data.minibatches import Batches
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores

SHARED = ("dropout", "schedule", "num_classes", "seed")  # what all models of a stack have in common
CHUNK = 4096  # images made float32, and scored, at a time


class Scores(NamedTuple):
    """Means over a data set, exact.

    Attributes:
        loss: (trials,) float64, cross-entropy in nats.
        acc: (trials,) float64, share of the images classified right.
    """

    loss: Tensor
    acc: Tensor


class Stack:
    """Models with their weights in one tensor, trained together by minibatch SGD.

    Args:
        models: Untrained, alike in `SHARED`; their hyperparameters and initial weights are taken over.
        batches: The training minibatches, on the device to train on.
        epochs: Length of the run, which a cosine schedule needs to know.

    Attributes:
        weight: (trials * k, 784) float32, k consecutive rows for each model.
        bias: (trials * k, 1) float32.

    Raises:
        InputError: The models cannot share their minibatches, or one wants the naive loss.
    """

    def __init__(self, models: Sequence[SoftmaxRegression], batches: Batches, epochs: int) -> None:
        self.batches, self.epoch, self.step = batches, 0, 0
        self.total = epochs * batches.steps_per_epoch
        hparams = [model.hparams for model in models]
        for name in SHARED:
            if len(values := {str(h[name]) for h in hparams}) > 1:
                raise InputError(f"{name}={', '.join(sorted(values))}: must be the same in a stack; make two")
        if any(h["loss"] == "naive" for h in hparams):
            raise InputError("loss=naive: a stack has the stable gradient; use `torch`, or train alone")
        self.shared, self.k, device = hparams[0], hparams[0]["num_classes"], batches.images.device
        self.weight = torch.cat([model.linear.weight.detach() for model in models]).to(device)
        self.bias = torch.cat([model.linear.bias.detach() for model in models])[:, None].to(device)
        self.lr, self.weight_decay, self.momentum = (
            torch.tensor([h[name] for h in hparams], device=device).repeat_interleave(self.k)[:, None]
            for name in ("lr", "weight_decay", "momentum")
        )  # (trials * k, 1) each
        self.decays, self.moves = bool(self.weight_decay.any()), bool(self.momentum.any())
        self.velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.generator = torch.Generator(device)

    def train_epoch(self) -> Scores:
        """Train for one epoch; return the means over its minibatches, each scored before its update."""
        self.batches.sampler.set_epoch(self.epoch)
        self.batches.steps = max(1, CHUNK // self.batches.batch_size)
        sums, n = torch.zeros(2, len(self.lr) // self.k, dtype=torch.float64, device=self.lr.device), 0
        for minibatches in map(list, self.batches):
            labels = torch.cat([y for _, y, _ in minibatches])
            onehot = torch.eye(self.k, device=labels.device)[:, labels]  # (k, chunk)
            x = torch.cat([images for images, _, _ in minibatches]).flatten(1) / 255  # (chunk, 784)
            sizes = [size for *_, size in minibatches]
            pairs = zip(x.split(sizes), onehot.split(sizes, 1), strict=True)
            sums += _sums(torch.cat([self._update(*pair) for pair in pairs], 2), labels)
            n += len(labels)
        self.epoch += 1
        return Scores(*sums / n)

    @torch.no_grad()
    def score(self, images: Tensor, labels: Tensor) -> Scores:
        """Score n images, (n, 28, 28) uint8, with labels (n,) int64, by every model."""
        sums = torch.zeros(2, len(self.lr) // self.k, dtype=torch.float64, device=self.lr.device)
        for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
            sums += _sums(self._log_probs(x.flatten(1) / 255), y)
        return Scores(*sums / len(labels))

    def _log_probs(self, x: Tensor) -> Tensor:
        """Turn x (b, 784) into log-probabilities (trials, k, b)."""
        return torch.addmm(self.bias, self.weight, x.T).view(-1, self.k, len(x)).log_softmax(1)

    def _update(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Make one step on x (b, 784) and onehot (k, b); return the log-probabilities from before it."""
        if self.shared["dropout"]:
            x = x * self._dropout_mask(x)
        log_probs = self._log_probs(x)
        lr = self.lr * self._schedule()
        delta = (log_probs.exp() - onehot).view(len(lr), -1).mul_((1 if self.moves else lr) / len(x))
        if self.moves:
            gradients = (delta @ x, delta.sum(1, keepdim=True))
            for w, v, gradient in zip((self.weight, self.bias), self.velocity, gradients, strict=True):
                v.mul_(self.momentum).add_(gradient).addcmul_(w, self.weight_decay)
                w.addcmul_(v, lr, value=-1)
        else:  # the update, fused with the product that is the gradient
            if self.decays:
                shrink = 1 - lr * self.weight_decay
                self.weight.mul_(shrink)
                self.bias.mul_(shrink)
            self.weight.addmm_(delta, x, alpha=-1)
            self.bias.sub_(delta.sum(1, keepdim=True))
        self.step += 1
        return log_probs

    def _schedule(self) -> float:
        cosine = self.shared["schedule"] == "cosine"
        return 0.5 * (1 + math.cos(math.pi * min(self.step / self.total, 1))) if cosine else 1.0

    def _dropout_mask(self, x: Tensor) -> Tensor:
        """Draw what `SoftmaxRegression` draws for this step, in a generator of its own."""
        keep = 1 - self.shared["dropout"]
        self.generator.manual_seed(self.shared["seed"] * 1_000_003 + self.step)
        return torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)


def pool(workers: int | None) -> ThreadPoolExecutor:
    """Return threads that train a stack each, `workers` of them, at most one a core; None for one a core."""
    n = max(1, min(workers or cores(), cores()))
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(cores() // n,))


def _sums(log_probs: Tensor, labels: Tensor) -> Tensor:
    """log_probs (trials, k, n), labels (n,) -> summed losses and numbers of hits, (2, trials) float64."""
    trials, _, n = log_probs.shape
    of_label = log_probs.gather(1, labels.expand(trials, 1, n))[:, 0]
    hits = of_label >= log_probs.amax(1)  # argmax along this axis takes 25 times as long
    return torch.stack((-of_label.sum(1, dtype=torch.float64), hits.sum(1, dtype=torch.float64)))
