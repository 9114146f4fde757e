"""The four files of Fashion-MNIST: find them, download them, verify them, parse them.

Source of the data and of the published checksums: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image
Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747.
"""

import errno
import gzip
import hashlib
import math
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

MIRRORS = [
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
]
DIRS = (
    "data/fashion-mnist",
    "data/FashionMNIST/raw",  # torchvision's layout
    "../shared/fashion-mnist",  # shared by sibling checkouts
    "/usr/share/datasets/fashion-mnist",  # Debian's package
)
MAX_BYTES = 64 << 20  # of a file, packed or not; the largest official one has 47 MB
TIMEOUT = 20.0  # seconds a mirror may stay silent
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Checksums(NamedTuple):
    """What a file's bytes must hash to: MD5 and SHA-256 packed, SHA-256 unpacked."""

    md5: str
    packed: str
    unpacked: str


FILES = {
    "train-images-idx3-ubyte": Checksums(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": Checksums(
        "25c81989df183df01b3e8a0aad5dffbe",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": Checksums(
        "bef4ecab320f06d8554ea6380940ec79",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": Checksums(
        "bb300cfdad3c16e7a12a480ee83cd310",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


class Dataset(NamedTuple):
    """Training and test images with their labels.

    Attributes:
        images: (n, 28, 28) uint8, the training images.
        labels: (n,) int64 in 0..9.
        test_images: (m, 28, 28) uint8.
        test_labels: (m,) int64 in 0..9.
        sha256: One digest of all four, as hexadecimal digits.
        origin: Where they came from, for people.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    sha256: str
    origin: str
    class_names: tuple[str, ...] = CLASSES


class FileSet(NamedTuple):
    name: str = "Fashion-MNIST"
    class_names: tuple[str, ...] = CLASSES


FASHION_MNIST = FileSet()


def load(files: FileSet = FASHION_MNIST, dirs: Sequence[str] | None = None) -> Dataset:
    """Load Fashion-MNIST from the first folder that has all of it, or download it into the first of `dirs`.

    If the environment variable FASHION_MNIST_DIR is set, the folder that it names is the only one that
    counts, and nothing is downloaded. Of several processes that load at the same time, one downloads.

    Args:
        dirs: Folders to look in, in order; `~` is expanded.

    Raises:
        InputError: A file is missing, damaged or not what its checksum says, or no source answered.
        StorageError: A download could not be saved.
    """
    named = os.environ.get("FASHION_MNIST_DIR")
    folders = [Path(d).expanduser() for d in ([named] if named else (DIRS if dirs is None else dirs))]
    if not folders:
        raise InputError("dirs=[]: expected at least one folder; add one to data.dirs")
    paths = next((found for folder in folders if len(found := _find(folder)) == len(FILES)), None)
    if paths is None:
        if named:
            raise InputError(_not_found(folders, []))
        _download(folders)
        paths = _find(folders[0])
    images, labels, test_images, test_labels = (_read(paths[name]) for name in FILES)
    digest = hashlib.sha256("".join(sums.unpacked for sums in FILES.values()).encode()).hexdigest()
    origin = str(paths[next(iter(FILES))].parent)
    return Dataset(images, labels.long(), test_images, test_labels.long(), digest, origin)


def _find(folder: Path) -> dict[str, Path]:
    """Return the files that a folder has, by name, packed ones rather than unpacked ones."""
    paths = [(name, folder / (name + suffix)) for suffix in ("", ".gz") for name in FILES]
    # Path.is_file raises in a folder that must not be searched.
    return {name: path for name, path in paths if os.path.isfile(path)}  # noqa: PTH113


def _not_found(folders: Sequence[Path], failures: Sequence[str]) -> str:
    tried = []
    for folder in folders:
        missing = sorted(FILES.keys() - _find(folder))
        names = "all four files" if len(missing) == len(FILES) else ", ".join(missing)
        tried.append(f"{folder} (lacks {names})")
    return (
        f"Fashion-MNIST: not found in {'; '.join([*tried, *failures])}. Put the four official .gz files into "
        f"{folders[0]}, or set FASHION_MNIST_DIR to the folder that has them, or try generated images with "
        "--data.source synthetic"
    )


def _download(folders: Sequence[Path]) -> None:
    """Place what is missing in the first folder, each file whole and verified or not at all."""
    target, mirrors = folders[0], list(MIRRORS)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a silent mirror would hang for ever
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target):  # another process may be downloading them
            for name in sorted(FILES.keys() - _find(target)):
                failures = _fetch(name, target, mirrors)
                if len(failures) == len(mirrors):
                    raise InputError(_not_found(folders, failures))
    except OSError as error:
        reason = _one_line(error)
        raise StorageError(f"{target}: cannot save the download ({reason}); change data.dirs") from error
    finally:
        socket.setdefaulttimeout(before)


def _fetch(name: str, target: Path, mirrors: list[str]) -> list[str]:
    """Download one file from the first mirror that has it; move those that fail to the end of the list.

    Returns:
        The mirrors that failed, each with the reason.
    """
    from torchvision.datasets.utils import download_url  # 1 s to import, needed once

    failures: list[str] = []
    for mirror in tuple(mirrors):
        url = f"{mirror}{name}.gz"
        print(f"downloading {url} into {target}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as folder:
            try:
                download_url(url, folder, md5=FILES[name].md5)
            except (OSError, HTTPException, RuntimeError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _DISK_FULL:
                    raise
                failures.append(f"{url} ({_one_line(error)})")
                mirrors.append(mirrors.pop(mirrors.index(mirror)))
            else:
                Path(folder, f"{name}.gz").replace(target / f"{name}.gz")
                break
    return failures


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _damaged(path: Path, found: str, expected: str) -> InputError:
    return InputError(
        f"{path}: {found}, expected {expected}; delete it, or put the official file in its place"
    )


def _read(path: Path) -> Tensor:
    """Read one verified IDX file, packed or not, as uint8."""
    packed, limit = path.suffix == ".gz", f"at most {MAX_BYTES:,}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _damaged(path, f"{path.stat().st_size:,} bytes", limit)
        data = path.read_bytes()
        unpacked = zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES + 1) if packed else data
    except (OSError, zlib.error) as error:
        raise _damaged(path, f"cannot be read ({_one_line(error)})", "an official file") from error
    if len(unpacked) > MAX_BYTES:
        raise _damaged(path, f"more than {MAX_BYTES:,} bytes when unpacked", limit)
    tensor = parse_idx(unpacked, path)
    sums, got = FILES[path.name.removesuffix(".gz")], hashlib.sha256(data).hexdigest()
    expected = sums.packed if packed else sums.unpacked
    if got != expected:
        raise _damaged(path, f"{len(tensor)} items with SHA-256 {got[:12]}...", f"SHA-256 {expected[:12]}...")
    return tensor


def parse_idx(data: bytes, path: Path) -> Tensor:
    """Parse an IDX file of bytes: images (n, 28, 28) or labels (n,) in 0..9, uint8.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension as
    a big-endian 32-bit integer, then the values (http://yann.lecun.com/exdb/mnist/).

    Args:
        data: The whole file, unpacked.
        path: Its name, which says whether it holds images or labels, and for the error message.

    Raises:
        InputError: The bytes are not such a file.
    """
    ndim = 3 if "images" in path.name else 1
    header = 4 + 4 * ndim
    magic = bytes([0, 0, 8, ndim])
    if data[:4] != magic:
        raise _damaged(path, f"starts with {data[:4].hex() or 'nothing'}", f"the IDX magic {magic.hex()}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if shape[0] == 0 or shape[1:] not in ([], [28, 28]):
        raise _damaged(path, f"its header says {shape}", "[n, 28, 28]" if ndim == 3 else "[n]")
    if len(data) != header + math.prod(shape):
        raise _damaged(path, f"{len(data):,} bytes", f"{header + math.prod(shape):,} as its header says")
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
    if ndim == 1 and tensor.max() > 9:
        raise _damaged(path, f"has the label {int(tensor.max())}", "0 to 9")
    return tensor


def write_idx(tensor: Tensor, path: Path) -> None:
    """Write images (n, 28, 28) or labels (n,), values 0..255, as an IDX file, packed if `path` says .gz."""
    data = bytes([0, 0, 8, tensor.ndim]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    data += tensor.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
