"""The four files of Fashion-MNIST, or of a data set like it: find them, verify them, parse them.

Source of the data and of the published checksums: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image
Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747.
"""

import gzip
import hashlib
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from softmax_regression.data.download import MAX_BYTES, from_apt, from_mirror
from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked, reason, write

NAMES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


@dataclass(frozen=True)
class FileSet:
    """A data set in four files, and where they may be."""

    name: str
    class_names: tuple[str, ...]  # what the labels 0, 1, ... mean
    sha256: Mapping[str, str] | None  # of the unpacked bytes, by name; None takes any files of the format
    dirs: tuple[str, ...]  # to look in, in order; a download goes into the first
    mirrors: tuple[str, ...] = ()  # addresses that have the files, packed
    package: str | None = None  # a Debian package that has them, packed

    @property
    def variable(self) -> str:
        """The environment variable that names the only folder that counts, as FASHION_MNIST_DIR does."""
        return re.sub(r"\W", "_", self.name.upper()) + "_DIR"


FASHION_MNIST = FileSet(
    "Fashion-MNIST",
    ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    (
        "data/fashion-mnist", "data/FashionMNIST/raw", "../data/FashionMNIST/raw",  # ours, torchvision, book
        "~/.keras/datasets/fashion-mnist", "../shared/fashion-mnist", "/usr/share/datasets/fashion-mnist",
    ),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    "dataset-fashion-mnist",
)  # fmt: skip


class Dataset(NamedTuple):
    """Training and test images with their labels."""

    images: Tensor  # (n, 28, 28) uint8
    labels: Tensor  # (n,) int64, indices into `class_names`
    test_images: Tensor
    test_labels: Tensor
    sha256: str  # one digest of all four, as hexadecimal digits
    origin: str  # where they came from, for people
    class_names: tuple[str, ...]


def load(files: FileSet = FASHION_MNIST, dirs: Sequence[str] | None = None) -> Dataset:
    """Load a data set from the first folder that has all of it, or download it into the first folder.

    Where the environment variable of `files` names a folder, nothing is downloaded. Of several processes
    that load at the same time, one downloads. `dirs` are folders to look in instead of `files.dirs`.

    Raises:
        InputError: A file is missing, damaged or not what its checksum says, or no source answered.
        StorageError: A download could not be saved.
    """
    named = os.environ.get(files.variable)
    given = [named] if named else files.dirs if dirs is None else dirs
    # Path.expanduser raises for a user without a home.
    folders = [Path(os.path.expanduser(folder)) for folder in given]  # noqa: PTH111
    if not folders:
        raise InputError("dirs=[]: expected at least one folder; add one to data.dirs")
    folder = next((folder for folder in folders if not _missing(folder)), folders[0])
    failures = _download(files, folder) if _missing(folder) and not named else []
    if _missing(folder):
        raise InputError(_not_found(files, folders, failures))
    tensors, digests = zip(*(_read(find(folder)[name], files) for name in NAMES), strict=True)
    images, labels, test_images, test_labels = tensors
    if (len(images), len(test_images)) != (len(labels), len(test_labels)):
        counts = ", ".join(f"{len(tensor)} in {name}" for name, tensor in zip(NAMES, tensors, strict=True))
        raise InputError(f"{folder}: {counts}; expected as many labels as images, replace those files")
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Dataset(images, labels.long(), test_images, test_labels.long(), digest, str(folder), files.class_names)


def find(folder: Path) -> dict[str, Path]:
    """Return the files of a data set that a folder has, by name, unpacked ones rather than packed ones."""
    paths = [(name, folder / (name + suffix)) for suffix in (".gz", "") for name in NAMES]
    # Path.is_file raises in a folder that must not be searched.
    return {name: path for name, path in paths if os.path.isfile(path)}  # noqa: PTH113


def _missing(folder: Path) -> list[str]:
    return [name for name in NAMES if name not in find(folder)]


def _download(files: FileSet, target: Path) -> list[str]:
    """Place what a folder lacks, each file whole and verified; return the sources that failed, and why."""
    sources = [(urlsplit(url).netloc or url, partial(from_mirror, url)) for url in files.mirrors]
    if files.package and shutil.which("apt-get"):
        sources.append((f"the package {files.package} (apt-get)", partial(from_apt, files.package)))
    failures: list[str] = []
    with locked(target):  # another process may be downloading them
        for source, fetch in sources:
            if not (names := _missing(target)):
                break
            print(f"downloading {files.name} from {source} into {target}", file=sys.stderr)
            try:
                for name, data in fetch(names):
                    verify(data, name, files)
                    write(data, target / f"{name}.gz")
            except StorageError:
                raise
            except Exception as error:  # whatever it is, the next source may have them
                failures.append(f"{source}: {reason(error)}")
    return failures


def _not_found(files: FileSet, folders: Sequence[Path], failures: Sequence[str]) -> str:
    """Say what was tried and then what helps, a line each."""
    absent = [f"{', '.join(_missing(folder))} missing in {folder}" for folder in folders]
    return "\n".join([
        f"{files.name}: not found; tried:",
        *(f"  {line.replace(', '.join(NAMES), 'all four files')}"[:100] for line in [*absent, *failures]),
        "one of these helps:",
        *([f"  apt-get install {files.package}"] if files.package else []),
        f"  put {{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte, .gz or unpacked, into {folders[0]}",
        f"  set {files.variable} to the folder that has them",
        "  train on generated images: --data.source synthetic",
    ])  # fmt: skip


def _read(path: Path, files: FileSet) -> tuple[Tensor, str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}")
        return verify(path.read_bytes(), path.name.removesuffix(".gz"), files)
    except (OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: {reason(error)}; delete it, or put the official file there") from error


def verify(data: bytes, name: str, files: FileSet) -> tuple[Tensor, str]:
    """Unpack, parse and verify a file -> its values, the SHA-256 of its bytes unpacked, however packed."""
    if data[:2] == b"\x1f\x8b":  # Debian, for one, has packed the official files anew
        data = zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes when unpacked, expected at most that")
    tensor, digest = parse_idx(data, name, len(files.class_names)), hashlib.sha256(data).hexdigest()
    if files.sha256 and digest != (expected := files.sha256[name]):
        raise ValueError(f"{len(tensor)} items with SHA-256 {digest[:12]}..., expected {expected[:12]}...")
    return tensor, digest


def parse_idx(data: bytes, name: str, num_classes: int = 10) -> Tensor:
    """Parse an unpacked IDX file whose `name` says images, (n, 28, 28), or labels, (n,), uint8.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension as
    a big-endian 32-bit integer, then the values (http://yann.lecun.com/exdb/mnist/).

    Raises:
        ValueError: The bytes are not such a file, or a label is not below `num_classes`.
    """
    ndim = 3 if "images" in name else 1
    header, magic = 4 + 4 * ndim, bytes([0, 0, 8, ndim])
    if data[:4] != magic:
        raise ValueError(f"starts with {data[:4].hex() or 'nothing'}, expected the IDX magic {magic.hex()}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if shape[0] == 0 or shape[1:] not in ([], [28, 28]):
        raise ValueError(f"its header says {shape}, expected {'[n, 28, 28]' if ndim == 3 else '[n]'}")
    if len(data) != header + math.prod(shape):
        raise ValueError(f"{len(data):,} bytes, expected {header + math.prod(shape):,} as its header says")
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
    if ndim == 1 and tensor.max() >= num_classes:
        raise ValueError(f"has the label {int(tensor.max())}, expected 0 to {num_classes - 1}")
    return tensor


def write_idx(tensor: Tensor, path: Path) -> None:
    """Write images (n, 28, 28) or labels (n,), values 0..255, as an IDX file, packed if `path` says .gz."""
    data = bytes([0, 0, 8, tensor.ndim]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    data += tensor.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
