"""LeNet with ReLU and maximum pooling: `python train.py fit --model examples.lenet.LeNet`."""

from typing import Any

from torch import nn

from softmax_regression import SoftmaxRegression


class LeNet(SoftmaxRegression):
    """Two convolutions and three linear layers, see section 6.6 of the book's classic edition."""

    def __init__(self, init_std: float = 0.1, **kwargs: Any) -> None:
        super().__init__(init_std=init_std, **kwargs)
        relu, pool, image = nn.ReLU(), nn.MaxPool2d(2), nn.Unflatten(1, (1, 28, 28))
        convolutions = nn.Conv2d(1, 6, 5, padding=2), relu, pool, nn.Conv2d(6, 16, 5), relu, pool
        layers = nn.Linear(400, 120), relu, nn.Linear(120, 84), relu, nn.Linear(84, self.num_classes)
        self.net = nn.Sequential(*self.net[:2], image, *convolutions, nn.Flatten(), *layers)
        for values in self.net.parameters():
            nn.init.normal_(values, std=init_std if values.ndim > 1 else 0)
