"""The files of Fashion-MNIST, or of another data set of torchvision's MNIST family: names, places, checksums.

Source of the data and of the published checksums: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image
Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747.
"""

import hashlib
import os
import re
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets import EMNIST, MNIST, QMNIST, FashionMNIST

from softmax_regression.errors import InputError
from softmax_regression.files import write

MAX_BYTES = 1 << 30  # of an unpacked file
EMNIST_PARTS = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")

DatasetClass = type[MNIST] | partial[MNIST]


@dataclass(frozen=True)
class Extras:
    """Facts about a data set that torchvision does not have."""

    sha256: dict[str, str] = field(default_factory=dict)  # of the unpacked files; without it, any file is accepted
    folders: tuple[str, ...] = ()  # to search after torchvision's own
    mirrors: tuple[str, ...] = ()  # to try after torchvision's own
    package: str = ""  # name of a Debian package


EXTRAS = {
    FashionMNIST: Extras(
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (
            "data/fashion-mnist",
            "~/.keras/datasets/fashion-mnist",
            "../shared/fashion-mnist",
            "/usr/share/datasets/fashion-mnist",
        ),
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        "dataset-fashion-mnist",
    ),
    MNIST: Extras(
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        ("data/mnist",),
    ),
}


class ImageFiles:
    """The four files of a data set: training images and labels, then test images and labels.

    Args:
        dataset: A class of torchvision's MNIST family, or a `functools.partial` of one with arguments.

    Attributes:
        names: Names of the four unpacked files.
        variable: An environment variable such as FASHION_MNIST_DIR; if it is set, only its folder is searched.
        mirrors: Base URLs for downloads, in order.
        address: The first file to download, relative to a mirror or as a whole URL.
    """

    def __init__(self, dataset: DatasetClass) -> None:
        self.kind: Any = dataset
        self.options: dict[str, Any] = {}
        if isinstance(dataset, partial):
            self.kind, self.options = dataset.func, dataset.keywords
        self.name: str = getattr(self.kind, "__name__", str(self.kind))
        if MNIST not in getattr(self.kind, "__mro__", ()):
            raise InputError(f"dataset = {self.name}: expected a class of torchvision's MNIST family")
        self.variable = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).upper() + "_DIR"
        self.extras = EXTRAS.get(self.kind, Extras())
        self.folders = (f"data/{self.name}/raw", f"../data/{self.name}/raw", *self.extras.folders)
        if not isinstance(self.kind.classes, list | tuple):
            raise InputError(f"{self.name}: its `classes` are no list of names; give the class such an attribute")
        self.class_names = tuple(self.kind.classes)
        self.mirrors: tuple[str, ...] = ("",)
        if issubclass(self.kind, EMNIST):  # one archive with the files of all splits
            split = self.options.get("split", getattr(self.kind, "split", None))
            if split not in EMNIST.splits:
                expected = ", ".join(EMNIST.splits)
                raise InputError(f"{self.name}: split={split}, expected {expected}; write partial(EMNIST, split=...)")
            self.class_names = tuple(EMNIST.classes_split_dict[split])
            self.names = [f"emnist-{split}-{part}-ubyte" for part in EMNIST_PARTS]
            self.address = EMNIST.url
            return
        resources = self.kind.resources
        if issubclass(self.kind, QMNIST):
            resources = resources["train"] + resources["test"]
        else:
            self.mirrors = (*self.kind.mirrors, *self.extras.mirrors)
        self.names = [Path(address).stem for address, _ in resources]
        self.address = resources[0][0]

    def find(self, folder: Path, name: str) -> Path | None:
        """Return the path of a file in a folder, preferably unpacked; None if it is not there."""
        for path in (folder / name, folder / f"{name}.gz"):
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where a folder must not be searched)
                return path
        return None

    def missing(self, folder: Path) -> list[str]:
        """Return the names of the files that a folder lacks."""
        return [name for name in self.names if self.find(folder, name) is None]

    def read(self, path: Path, name: str) -> tuple[bytes, str]:
        """Return the unpacked bytes of a file and their SHA-256; a ValueError or zlib.error if it is another one."""
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":  # gzip, whatever the file is called
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(data, MAX_BYTES + 1)
            if not unpacker.eof:
                raise ValueError(f"cut off, or more than {MAX_BYTES:,} bytes when unpacked")
        digest = hashlib.sha256(data).hexdigest()
        expected = self.extras.sha256.get(name, digest)
        if digest != expected:
            raise ValueError(f"{len(data):,} bytes with SHA-256 {digest[:12]}..., expected {expected[:12]}...")
        return data, digest

    def place(self, source: Path, target: Path) -> None:
        """Verify the files of `source`, then write those that `target` lacks, unpacked, by `files.write`."""
        found = {name: self.read(self.find(source, name) or source / name, name)[0] for name in self.names}
        for name in self.missing(target):
            write(found[name], target / name)

    def open(self, raw: Path, train: bool, download: bool = False, **attributes: Any) -> MNIST:
        """Let torchvision read the training or test part from a folder of unpacked files, or download it there."""
        located = type(self.name, (self.kind,), {"raw_folder": str(raw), **attributes})
        return located(raw, train=train, download=download, **self.options)
