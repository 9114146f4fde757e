"""Fashion-MNIST as a LightningDataModule: training, validation and test images in minibatches."""

import math
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FashionMNIST

from softmax_regression.data.datasets import Dataset, generate_dataset, load_files
from softmax_regression.data.image_files import DatasetClass, ImageFiles
from softmax_regression.data.minibatches import Minibatches, to_float_images
from softmax_regression.data.photos import Photos, load_photos
from softmax_regression.errors import InputError, check_choice


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a random permutation of (n,) int64 labels in which every prefix has the class proportions of the whole.

    Validation sets and subsets are prefixes of this order: they are stratified, and a larger one contains a smaller
    one. If all classes are equally large, they occur equally often, give or take one, in any contiguous part.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    >>> labels[stratified_order(labels, seed=0)].tolist()
    [0, 1, 0, 1, 0, 1, 0, 1]
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]  # by class, shuffled within it
    counts = torch.bincount(labels)
    place = torch.cat([(torch.arange(int(n), dtype=torch.float64) + 0.5) / n for n in counts])
    return shuffled[place.argsort(stable=True)]


def check_size(name: str, value: int | None, low: int, high: float = math.inf, expected: str = "") -> None:
    """Refuse a size that is no integer, below `low` or above `high`, in words `expected`; None is accepted."""
    if value is None:
        return
    if not isinstance(value, Integral):
        raise InputError(f"{name}={value!r}: must be a whole number; change data.{name}")
    if value < low:
        raise InputError(f"{name}={value}: must be at least {low}; raise data.{name}")
    if value > high:
        raise InputError(f"{name}={value}: must be {expected or f'at most {high}'}; lower data.{name}")


def split(labels: Tensor, val_size: int, train_size: int | None) -> tuple[Tensor, Tensor]:
    """Return the indices of the validation images and of the training images, for labels (n,) int64."""
    order = stratified_order(labels, seed=0)
    n = len(order)
    check_size("val_size", val_size, 0, n - 1, f"less than {n}, the number of training images")
    rest = order[val_size:]
    n = len(rest)
    check_size("train_size", train_size, 1, n, f"at most {n}, the images left beside data.val_size")
    return order[:val_size], rest[:train_size]


class FashionMNISTDataModule(LightningDataModule):
    """The images, split into training, validation and test, in minibatches gathered on the training device.

    For another data set of torchvision's MNIST family, such as KMNIST, a subclass sets `dataset`.

    Args:
        batch_size: Images in a minibatch, over all devices together.
        val_size: Images taken from the training set for validation, the same ones in every run; 0 for none.
        train_size: Images to train on, a balanced subset of the others; null for all of them.
        source: `files`, or `synthetic` for generated images that need no files.
        dirs: Folders to search for the files, in order; downloads go into the first one. null for the usual ones.
        synthetic_size: Training images to generate, with a sixth as many for testing.
        images: Photos, or folders of them, for `predict`; null for the test set.
        watch_test: Also score the test set after every epoch, as the figure of the book does.
        device: `auto` keeps the images on the device that trains; `host` keeps them in host memory and
            copies each minibatch, for a set that the device cannot hold.
        eval_batch_size: Images in a minibatch of validation, test and prediction.
        seed: Seed of the order of the training images; null for that of `seed_everything`.

    Raises:
        InputError: A size is out of range, a word is none of those above, or the data cannot be loaded.
    """

    dataset: ClassVar[DatasetClass] = FashionMNIST

    def __init__(
        self,
        batch_size: int = 256,
        val_size: int = 5000,
        train_size: int | None = None,
        source: Literal["files", "synthetic"] = "files",
        dirs: Sequence[str] | None = None,
        synthetic_size: int = 60_000,
        images: list[str] | str | None = None,
        watch_test: bool = False,
        device: Literal["auto", "host"] = "auto",
        eval_batch_size: int = 1000,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("source", source, ("files", "synthetic"))
        check_choice("device", device, ("auto", "host"))
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.val_size = val_size
        self.train_size = train_size
        self.source = source
        self.dirs = dirs
        self.synthetic_size = synthetic_size
        self.images = images
        self.watch_test = watch_test
        self.device = device
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.data: Dataset | None = None
        self.photos: Photos | None = None
        self._copies: dict[tuple[Tensor, torch.device], Tensor] = {}  # of the tensors of `data`, on other devices
        self._position: dict[str, int] = {}  # the state of the training loader of a resumed run

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, known before the data are loaded."""
        return ImageFiles(type(self).dataset).class_names

    def prepare_data(self) -> None:
        """Download missing files; Lightning calls this in one process of each machine."""
        self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Load the images once and choose the splits; Lightning calls this before it restores a checkpoint."""
        self._position = {}
        check_size("eval_batch_size", self.eval_batch_size, 1)
        if stage == "predict" and self.images is not None:
            self.photos = self.photos or load_photos(self.images)
        elif self.data is None:
            self._load()

    def _load(self) -> None:
        check_size("synthetic_size", self.synthetic_size, 10, 2_000_000)
        if self.source == "synthetic":
            data = generate_dataset(self.synthetic_size)
        else:
            data = load_files(type(self).dataset, self.dirs)
        self.val_index, self.train_index = split(data.labels, self.val_size, self.train_size)
        n = len(self.train_index)
        check_size("batch_size", self.batch_size, 1, n, f"at most {n}, the number of training images")
        self.data = data

    @property
    def loaded(self) -> Dataset:
        """The data; the first access loads them."""
        if self.data is None:
            self.setup()
        assert self.data is not None
        return self.data

    def train_dataloader(self) -> Minibatches:
        """Return the training minibatches, in an order that depends on (seed, epoch)."""
        data = self.loaded
        self.batch_size = min(self.batch_size, len(self.train_index))  # Lightning's BatchSizeFinder tries more
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0  # the same minibatches in every epoch
        seed = None if overfit else self.seed
        loader = self._minibatches(data.images, data.labels, self.train_index, self.batch_size, seed)
        if self._position:
            loader.load_state_dict(self._position)
        return loader

    def val_dataloader(self) -> dict[str, Minibatches]:
        """Return the minibatches to score after each epoch, by the first part of the names of their metrics."""
        loaders = {}
        if self.val_size:
            loaders["val"] = self._minibatches(self.loaded.images, self.loaded.labels, self.val_index)
        if self.watch_test:
            loaders["test"] = self.test_dataloader()
        return loaders

    def test_dataloader(self) -> Minibatches:
        """Return the minibatches of the test set."""
        data = self.loaded
        return self._minibatches(data.test_images, data.test_labels, torch.arange(len(data.test_labels)))

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of the photos, with the label -1, or of the test set."""
        if self.photos:
            images, labels = self.photos.images, torch.full((len(self.photos.images),), -1)
        else:
            images, labels = self.loaded.test_images, self.loaded.test_labels
        # A loader of torch's: Lightning gives callbacks the indices of its images, and processes their shares of it.
        return DataLoader(TensorDataset(to_float_images(images), labels), batch_size=self.eval_batch_size)

    def _minibatches(
        self, images: Tensor, labels: Tensor, index: Tensor, batch_size: int | None = None, seed: int | None = None
    ) -> Minibatches:
        """Return a loader for this process and the device of the Trainer; without a Trainer, for the CPU."""
        rank, world_size, device = _share_of(self.trainer)
        if self.device == "auto":
            images, labels = self._on(device, images), self._on(device, labels)
        return Minibatches(images, labels, index, batch_size or self.eval_batch_size, seed, rank, world_size, device)

    def _on(self, device: torch.device, tensor: Tensor) -> Tensor:
        """Return the copy of a tensor on a device, the same one for all loaders."""
        if (tensor, device) not in self._copies:
            self._copies[tensor, device] = tensor.to(device)
        return self._copies[tensor, device]

    def state_dict(self) -> dict[str, Any]:
        """Return the SHA-256 of the data and the position of the training loader, for a checkpoint."""
        position = {}
        if self.trainer and isinstance(self.trainer.train_dataloader, Minibatches):
            position = self.trainer.train_dataloader.state_dict()
        return {"sha256": self.loaded.sha256, "source": self.source, "position": position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position for `train_dataloader`, until the next `setup`.

        Lightning restores a loader itself, but not if a schedule has needed its number of steps before.
        """
        self._position = state_dict.get("position", {})


def _share_of(trainer: Trainer | None) -> tuple[int, int, torch.device]:
    """Return the rank, the number of processes and the device of a Trainer; without one, those of this process."""
    if trainer is None:
        return 0, 1, torch.device("cpu")
    return trainer.global_rank, trainer.world_size, trainer.strategy.root_device


def loaded_images(data: object) -> Dataset | None:
    """Return the images of a data module of this project; None for any other data module."""
    return data.loaded if isinstance(data, FashionMNISTDataModule) else None


def origin_of(data: object) -> str:
    """Return where the images of a data module of this project come from; for any other one, the name of its class."""
    if not isinstance(data, FashionMNISTDataModule):
        return type(data).__name__
    return data.photos.origin if data.photos else data.loaded.origin


def class_names_of(data: object) -> list[str]:
    """Return the names of the classes that a data module has in `class_names`; empty if it has none."""
    names = getattr(data, "class_names", ())
    return list(map(str, names)) if isinstance(names, list | tuple) else []
