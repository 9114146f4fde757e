"""Softmax regression on Fashion-MNIST, a PyTorch Lightning experiment."""

from softmax_regression.callbacks import BestCheckpoint, EarlyStopping, LastCheckpoint
from softmax_regression.data import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.fashion_mnist import CLASSES
from softmax_regression.figure_logger import FigureLogger, LiveCurve
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import RunLogger

__all__ = [
    "CLASSES",
    "BestCheckpoint",
    "DivergedError",
    "EarlyStopping",
    "FashionMNISTDataModule",
    "FigureLogger",
    "InputError",
    "LastCheckpoint",
    "LiveCurve",
    "RunLogger",
    "SoftmaxRegression",
    "StorageError",
]
