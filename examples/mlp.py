"""The next chapter's model, a multilayer perceptron: `python train.py fit --model examples.mlp.MLP`."""

from typing import Any

from torch import nn

from softmax_regression import SoftmaxRegression


class MLP(SoftmaxRegression):
    """784 pixels, `hidden` units with ReLU, and the logits; the rest is that of softmax regression."""

    def __init__(self, hidden: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        flatten, dropout, _ = self.net
        layers = nn.Linear(28 * 28, hidden), nn.ReLU(), nn.Linear(hidden, self.num_classes)
        self.net = nn.Sequential(flatten, dropout, *layers)
