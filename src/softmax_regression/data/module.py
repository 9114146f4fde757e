"""Fashion-MNIST as a LightningDataModule: what is trained on, what is held out, and in which minibatches."""

import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from softmax_regression.data import files as fashion_mnist
from softmax_regression.data import synthetic
from softmax_regression.data.minibatches import Batches
from softmax_regression.errors import InputError
from softmax_regression.data.files import DIRS, Dataset

EVAL_BATCH_SIZE = 5000  # bounds the memory of validation, test and prediction; results do not depend on it


def load(source: str = "fashion-mnist", dirs: Sequence[str] = DIRS, synthetic_size: int = 60_000) -> Dataset:
    """Load the images that `source` names, see `FashionMNISTDataModule`."""
    if source == "fashion-mnist":
        return fashion_mnist.load(dirs)
    test_size = max(10, synthetic_size // 6)
    images, labels = synthetic.draw(synthetic_size + test_size, seed=0)
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    train, test = slice(None, synthetic_size), slice(synthetic_size, None)
    labels = labels.long()
    return Dataset(
        images[train], labels[train], images[test], labels[test], digest, "generated (data.source=synthetic)"
    )


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Shuffle so that every prefix has the classes in the proportions of the whole.

    Held-out sets and subsets are prefixes of this order: stratified, and each contained in every larger one.
    If the classes are equally large, any stretch of it has each of them equally often, to one example.

    Args:
        labels: (n,) int64.
        seed: Decides the order within each class.

    Returns:
        A permutation of range(n), (n,) int64.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    >>> labels[stratified_order(labels, seed=0)].tolist()
    [0, 1, 0, 1, 0, 1, 0, 1]
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]  # by class, shuffled within it
    counts = torch.bincount(labels)
    place = torch.cat([(torch.arange(int(n), dtype=torch.float64) + 0.5) / n for n in counts])
    return shuffled[place.argsort(stable=True)]


class FashionMNISTDataModule(LightningDataModule):
    """The images, split into training, validation and test, in minibatches gathered on the training device.

    Args:
        batch_size: Images in a minibatch, over all devices together.
        val_size: Images held out of the training set for validation, the same ones in every run; 0 for none.
        train_size: Images to train on, a balanced subset of those left; None for all.
        source: `fashion-mnist`, or `synthetic` for generated stand-ins that need no files.
        dirs: Folders to look for the files in, in order; a download goes into the first.
        synthetic_size: Training images to generate, with a sixth as many for testing.
        images: Photos, or folders of them, for `predict`; None for the test set.
        watch_test: Also score the test set after every epoch, as the figure of the book does.
        device: `auto` keeps the images on the device that trains; `host` keeps them in host memory and
            copies each minibatch, for a set that the device cannot hold.
        steps_per_execution: Minibatches handed to one `training_step`; more cost less overhead.
        seed: Decides the order of the training images.

    Raises:
        InputError: A size is out of range, or the data cannot be had.
    """

    def __init__(
        self,
        batch_size: int = 256,
        val_size: int = 5000,
        train_size: int | None = None,
        source: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
        dirs: Sequence[str] = DIRS,
        synthetic_size: int = 60_000,
        images: list[str] | str | None = None,
        watch_test: bool = False,
        device: Literal["auto", "host"] = "auto",
        steps_per_execution: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name, low, high in (
            ("batch_size", 1, math.inf), ("val_size", 0, math.inf), ("train_size", 1, math.inf),
            ("synthetic_size", 10, 2_000_000), ("steps_per_execution", 1, math.inf),
        ):  # fmt: skip
            value = self.hparams[name]
            if value is not None and not low <= value <= high:
                bound = f"at least {low}" if value < low else f"at most {high}"
                raise InputError(f"{name}={value}: must be {bound}; change data.{name}")
        self.data: Dataset | None = None
        self.photos: tuple[Tensor, list[Path]] | None = None

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process a machine."""
        self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Load the images once and choose the splits; a further call changes nothing.

        Raises:
            InputError: See the class.
        """
        hparams = self.hparams
        if stage == "predict" and hparams["images"]:
            self.photos = self.photos or _load_photos(hparams["images"])
            return
        if self.data is not None:
            return
        data = load(hparams["source"], hparams["dirs"], hparams["synthetic_size"])
        n, val_size = len(data.labels), hparams["val_size"]
        if val_size >= n:
            raise InputError(
                f"val_size={val_size}: must be less than the {n} training images; lower data.val_size"
            )
        order = stratified_order(data.labels, seed=0)
        self.val_index, pool = order[:val_size], order[val_size:]
        train_size = hparams["train_size"] or len(pool)
        if train_size > len(pool):
            raise InputError(
                f"train_size={train_size}: must be at most the {len(pool)} images left for training; "
                "lower data.train_size or data.val_size"
            )
        self.train_index = pool[:train_size]
        if hparams["batch_size"] > train_size:
            raise InputError(
                f"batch_size={hparams['batch_size']}: must be at most the {train_size} training images; "
                "lower data.batch_size"
            )
        self.data = data

    @property
    def loaded(self) -> Dataset:
        """The data, loaded if they are not yet."""
        self.setup()
        assert self.data is not None
        return self.data

    def train_dataloader(self) -> Batches:
        """Return the training minibatches, in an order decided by (seed, epoch)."""
        data, hparams = self.loaded, self.hparams
        steps = 1 if self.trainer and _counts_steps(self.trainer) else hparams["steps_per_execution"]
        return self._batches(
            data.images, data.labels, self.train_index, hparams["batch_size"], steps, hparams["seed"]
        )

    def val_dataloader(self) -> dict[str, Batches]:
        """Return the minibatches to score after each epoch, by the stage that names their metrics."""
        data, loaders = self.loaded, {}
        if self.hparams["val_size"]:
            loaders["val"] = self._batches(data.images, data.labels, self.val_index)
        if self.hparams["watch_test"]:
            loaders["test"] = self.test_dataloader()
        return loaders

    def test_dataloader(self) -> Batches:
        """Return the minibatches of the test set."""
        data = self.loaded
        return self._batches(data.test_images, data.test_labels, torch.arange(len(data.test_labels)))

    def predict_dataloader(self) -> Batches:
        """Return the minibatches of the photos, with the label -1, or of the test set."""
        if self.photos is None:
            return self.test_dataloader()
        images = self.photos[0]
        return self._batches(images, torch.full((len(images),), -1), torch.arange(len(images)))

    def _batches(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        batch_size: int = EVAL_BATCH_SIZE,
        steps: int = 1,
        seed: int | None = None,
    ) -> Batches:
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        device = trainer.strategy.root_device if trainer else None
        if self.hparams["device"] == "auto":
            images, labels = images.to(device), labels.to(device)
        return Batches(images, labels, index, batch_size, steps, seed, rank, world_size, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the data, for a checkpoint."""
        return {"sha256": self.loaded.sha256, "source": self.hparams["source"]}


def _load_photos(images: list[str] | str) -> tuple[Tensor, list[Path]]:
    from softmax_regression.data.photos import load_photos

    photos = load_photos([Path(images)] if isinstance(images, str) else [Path(path) for path in images])
    for path, reason in photos.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if photos.skipped:
        print(f"{len(photos.skipped)} files skipped, {len(photos.paths)} used", file=sys.stderr)
    return photos.images, photos.paths


def _counts_steps(trainer: Trainer) -> bool:
    """Whether something happens every so many minibatches, so that lists must hold one minibatch each."""
    return (
        trainer.max_steps != -1
        or trainer.limit_train_batches != 1.0
        or trainer.val_check_interval != 1.0
        or any(getattr(callback, "_every_n_train_steps", 0) for callback in trainer.checkpoint_callbacks)
    )
