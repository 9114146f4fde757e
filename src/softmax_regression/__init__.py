"""Softmax regression on Fashion-MNIST, a PyTorch Lightning experiment."""

from softmax_regression.classifier import Classifier
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.engine import Engine
from softmax_regression.model import SoftmaxRegression
