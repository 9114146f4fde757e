"""Softmax regression on Fashion-MNIST, a PyTorch Lightning experiment."""

from softmax_regression.classifier import Classifier
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.engine import Engine
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.figures.live import LiveCurve
from softmax_regression.figures.logger import FigureLogger
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping
from softmax_regression.runs.checkpoint import SafeCheckpointIO
from softmax_regression.runs.folder import RunLogger
from softmax_regression.runs.last_checkpoint import LastCheckpoint
from softmax_regression.runs.record import RunRecord

__all__ = [
    "BestCheckpoint",
    "Classifier",
    "DivergedError",
    "EarlyStopping",
    "Engine",
    "FashionMNISTDataModule",
    "FigureLogger",
    "InputError",
    "LastCheckpoint",
    "LiveCurve",
    "RunLogger",
    "RunRecord",
    "SafeCheckpointIO",
    "SoftmaxRegression",
    "StorageError",
]
