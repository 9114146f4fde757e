"""The next chapter's model, a multilayer perceptron: `python train.py fit --model examples.mlp.MLP`."""

from typing import Any

from torch import nn

from softmax_regression import SoftmaxRegression


class MLP(SoftmaxRegression):
    """784 pixels, `hidden` units with ReLU, the logits; all else is as in softmax regression."""

    def __init__(self, hidden: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers = nn.Linear(28 * 28, hidden), nn.ReLU(), nn.Linear(hidden, self.num_classes)
        self.net = nn.Sequential(*self.net[:2], *layers)  # after flattening and dropout
        for values in self.net.parameters():
            nn.init.normal_(values, std=self.init_std if values.ndim > 1 else 0)
