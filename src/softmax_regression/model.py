"""Softmax regression as a LightningModule.

Source: "Concise Implementation of Softmax Regression", Dive into Deep Learning, section 3.7 of the classic edition,
https://classic.d2l.ai/chapter_linear-networks/softmax-regression-concise.html.
"""

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from softmax_regression import numerics
from softmax_regression.classifier import Classifier
from softmax_regression.errors import InputError, check_choice

LOSSES: dict[str, Callable[..., Tensor]] = {
    "torch": F.cross_entropy,
    "stable": numerics.cross_entropy,
    "naive": numerics.naive_cross_entropy,
}

MAX_FLOAT = torch.finfo(torch.float32).max


class NarrowLinear(nn.Linear):
    """nn.Linear computed as W xᵀ instead of x Wᵀ, which takes half the time if W has few rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b, (n, in_features) -> (n, out_features)."""
        return torch.addmm(self.bias[:, None], self.weight, x.T).T


class SoftmaxRegression(Classifier):
    """A linear model of images, trained by minibatch SGD on the cross-entropy of its logits.

    Args:
        lr: Learning rate, above 0; the first one if `schedule` is cosine.
        weight_decay: L2 penalty on weights and biases, as in torch.optim.SGD.
        momentum: Momentum of SGD, in [0, 1).
        dropout: Probability, in [0, 1), with which a pixel is dropped in training.
        schedule: `constant`, or `cosine` to let the learning rate fall to 0 over the run.
        loss: `torch` for F.cross_entropy; `stable` and `naive` for the forms in `numerics`.
        init_std: Standard deviation of the initial weights, from N(0, init_std²); biases start at 0.
        num_classes: Number of classes.

    Attributes:
        net: Pixels (n, 1, 28, 28) in [0, 1] -> logits (n, num_classes).

    Raises:
        InputError: A value is out of range, or none of the words above.

    >>> SoftmaxRegression()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        dropout: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        loss: Literal["torch", "stable", "naive"] = "torch",
        init_std: float = 0.01,
        num_classes: int = 10,
    ) -> None:
        _check("lr", lr, may_be_zero=False)
        _check("weight_decay", weight_decay)
        _check("momentum", momentum, below=1)
        _check("dropout", dropout, below=1)
        _check("init_std", init_std)
        _check("num_classes", num_classes, may_be_zero=False)
        check_choice("schedule", schedule, ("constant", "cosine"))
        check_choice("loss", loss, tuple(LOSSES))
        super().__init__(num_classes)
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.schedule = schedule
        self.init_std = init_std
        self.loss_function = LOSSES[loss]
        linear = NarrowLinear(28 * 28, num_classes)
        nn.init.normal_(linear.weight, std=init_std)
        nn.init.zeros_(linear.bias)
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(dropout) if dropout else nn.Identity(), linear)
        self.example_input_array = torch.zeros(1, 1, 28, 28)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images.

        Args:
            x: (n, 1, 28, 28) or (n, 28, 28), float in [0, 1] or uint8 in 0..255.

        Returns:
            (n, num_classes) logits; `softmax(1)` of them are the probabilities.

        Raises:
            InputError: The images have another size or colours.
        """
        if x.shape[1:].numel() != 28 * 28 and isinstance(self.net[-1], NarrowLinear):
            size = " x ".join(map(str, x.shape[1:]))
            raise InputError(f"images of {size}: the model takes 1 x 28 x 28; name a model for yours with --model")
        if not x.is_floating_point():
            x = x / 255
        return cast(Tensor, self.net(x.to(self.dtype)))

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats, of logits (n, k) and classes y (n,)."""
        return self.loss_function(logits, y)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return minibatch SGD, and its learning rate as a function of the step if it is not constant."""
        optimizer = torch.optim.SGD(self.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError("schedule=cosine: needs the end of the run; set trainer.max_epochs or max_steps")
        schedule = LambdaLR(optimizer, lambda step: cosine(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def cosine(done: float) -> float:
    """Return the factor of the learning rate, from 1 to 0, when a fraction `done` of the run, from 0 to 1, is over."""
    return (1 + math.cos(math.pi * min(done, 1))) / 2


def _check(name: str, value: float, below: float = MAX_FLOAT, may_be_zero: bool = True) -> None:
    """Refuse a value that is below 0, is 0 where it must not be, or is not below `below`."""
    if not 0 <= value < below or (value == 0 and not may_be_zero):
        low = "at least 0" if may_be_zero else "above 0"
        raise InputError(f"{name}={value}: must be {low} and below {below:.3g}; change model.{name}")
