"""Softmax regression on Fashion-MNIST, a PyTorch Lightning experiment."""

from softmax_regression.data.files import CLASSES
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.figures.logger import FigureLogger, LiveCurve
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping, LastCheckpoint
from softmax_regression.runs.folder import RunLogger

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
