"""Training and test images with their labels: from files, or generated."""

import hashlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import filterfalse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import MNIST, QMNIST, FashionMNIST

from softmax_regression.data.download import download
from softmax_regression.data.image_files import DatasetClass, ImageFiles
from softmax_regression.data.synthetic import generate
from softmax_regression.errors import InputError
from softmax_regression.files import reason, write

USED = (MNIST.__getitem__, QMNIST.__getitem__)  # which give images and labels as they are


class Dataset(NamedTuple):
    """Training and test images with their labels."""

    images: Tensor  # (n, 28, 28) uint8
    labels: Tensor  # (n,) int64, indices into `class_names`
    test_images: Tensor
    test_labels: Tensor
    sha256: str  # one digest of all four, as hexadecimal digits
    origin: str  # where they came from, for messages


def generate_dataset(size: int) -> Dataset:
    """Generate `size` training images, and a sixth as many test images; they are always the same."""
    images, labels = generate(size + max(10, size // 6), seed=0)
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    labels = labels.long()
    origin = "generated (data.source=synthetic)"
    return Dataset(images[:size], labels[:size], images[size:], labels[size:], digest, origin)


def load_files(dataset: DatasetClass = FashionMNIST, dirs: Sequence[str] | str | None = None) -> Dataset:
    """Load a data set from the first folder that has its four files, or download them into the first folder.

    Args:
        dataset: See `ImageFiles`.
        dirs: Folders to search instead of the usual ones. If the environment variable of the data set is set
            (FASHION_MNIST_DIR, MNIST_DIR, ...), only its folder is searched, and nothing is downloaded.

    Raises:
        InputError: A file is missing, damaged or has another checksum, or every download failed.
        StorageError: A download could not be saved.
    """
    files = ImageFiles(dataset)
    named = os.environ.get(files.variable)
    if named:
        dirs = [named]
    folders = search_folders(files, dirs)
    if not folders:
        raise InputError("dirs=[]: expected at least one folder; add one to data.dirs")
    failures: list[str] = []
    folder = first_complete(files, folders)
    if folder is None and not named:
        failures = download(files, folders[0])
        folder = first_complete(files, folders[:1])
    if folder is None:
        raise InputError(_not_found(files, folders, failures))
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary)
        data = _read(files, folder, raw)
        if files.extras.sha256 and not named:
            _keep_unpacked(raw, folders[0] if dirs is None else folder)
    return data


def _keep_unpacked(raw: Path, target: Path) -> None:
    """Copy unpacked files into a folder, which then loads in a third of the time, unless it is read-only."""
    with suppress(OSError):
        if target.exists() and not target.stat().st_mode & 0o200:  # root could write to it nevertheless
            return
        for file in raw.iterdir():
            if not (target / file.name).exists():
                write(file.read_bytes(), target / file.name)


def search_folders(files: ImageFiles, dirs: Sequence[str] | str | None = None) -> list[Path]:
    """Return the folders to search, in order: `dirs`, which may be a single one, or the usual ones."""
    if dirs is None:
        dirs = files.folders
    elif dirs and isinstance(dirs, str):  # each of its characters would be a folder
        dirs = [dirs]
    # Path.expanduser raises for a user without a home.
    return [Path(os.path.expanduser(folder)) for folder in dirs]  # noqa: PTH111


def first_complete(files: ImageFiles, folders: Sequence[Path]) -> Path | None:
    """Return the first folder that has all four files, packed or not."""
    return next(filterfalse(files.missing, folders), None)


def _read(files: ImageFiles, folder: Path, empty: Path) -> Dataset:
    """Verify and read the files of a folder; if one of them is packed, unpack all of them into an empty folder."""
    paths = {name: files.find(folder, name) or folder / name for name in files.names}
    packed = any(path.suffix == ".gz" for path in paths.values())
    raw = empty if packed else folder
    digests = []
    for name, path in paths.items():
        try:
            data, digest = files.read(path, name)
        except (OSError, ValueError, zlib.error) as error:
            raise InputError(f"{path}: {reason(error)}; delete it, or put the official file there") from error
        digests.append(digest)
        if packed:
            (raw / name).write_bytes(data)
    try:
        train, test = files.open(raw, train=True), files.open(raw, train=False)
    except Exception as error:  # torchvision fails in many ways, by assertions, too
        raise InputError(f"{folder}: not four IDX files ({reason(error)}); replace them") from error
    images, labels = _images_and_labels(files, folder, train)
    test_images, test_labels = _images_and_labels(files, folder, test)
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Dataset(images, labels, test_images, test_labels, digest, str(folder))


def _images_and_labels(files: ImageFiles, folder: Path, part: MNIST) -> tuple[Tensor, Tensor]:
    """Return the images (n, 28, 28) uint8 and labels (n,) int64 of the training or test part, after a check of both."""
    if part.transform or part.target_transform or type(part).__getitem__ not in USED:
        instead = "change `data` and `targets` in its __init__, or minibatches in on_after_batch_transfer"
        raise InputError(f"dataset = {files.name}: its transforms and __getitem__ are not used; {instead}")
    images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets)
    if issubclass(files.kind, QMNIST) and labels.ndim == 2:  # (n, 8): the class, and the origin of the digit
        labels = labels[:, 0]
    if images.shape[1:] != (28, 28) or images.dtype != torch.uint8:
        found = f"images of shape {tuple(images.shape)}, {images.dtype}"
        raise InputError(f"{folder}: has {found}, expected (n, 28, 28), torch.uint8; replace them")
    if labels.ndim != 1 or labels.is_floating_point():
        found = f"labels of shape {tuple(labels.shape)}, {labels.dtype}"
        raise InputError(f"{folder}: has {found}, expected (n,), torch.int64; replace them")
    if len(labels) != len(images):
        raise InputError(f"{folder}: has {len(labels)} labels for {len(images)} images; replace one of the files")
    most = len(files.class_names) - 1
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label <= most:
            raise InputError(f"{folder}: has the label {label}, expected 0 to {most}; change `targets` or `classes`")
    return images, labels.long()


def _not_found(files: ImageFiles, folders: Sequence[Path], failures: Sequence[str]) -> str:
    """Return a message with what was tried and what helps, a line each."""
    tried = []
    for folder in folders:
        missing = ", ".join(files.missing(folder)).replace(", ".join(files.names), "all four files")
        tried.append(f"{missing} missing in {folder}")
    lines = "\n".join(f"  {line}"[:80] for line in (*tried, *failures))
    install = f"  apt-get install {files.extras.package}\n" if files.extras.package else ""
    one, two, three, four = files.names
    return f"""{files.name}: not found; tried:
{lines}
one of these helps:
{install}  put these, .gz or unpacked, into {folders[0]}:
    {one}, {two},
    {three}, {four}
  set {files.variable} to the folder that has them
  train on generated images: --data.source synthetic"""
