"""The four files of Fashion-MNIST: find them, download them, verify them, parse them.

Source of the data and of the published checksums: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image
Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747.
"""

import gzip
import hashlib
import os
import socket
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_regression.errors import InputError, StorageError

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
MAX_BYTES = 64 << 20  # of an unpacked file; the largest official one has 47 MB
TIMEOUT = 20.0  # seconds a mirror may stay silent


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


def load(dirs: Sequence[str] = DIRS, download: bool = True) -> Dataset:
    """Load Fashion-MNIST from the first folder that has it, or download it into the first of `dirs`.

    The folder that the environment variable FASHION_MNIST_DIR names comes before all others, and is then the
    only one that counts.

    Args:
        dirs: Folders to look in, in order; `~` is expanded.
        download: Whether to download what no folder has.

    Raises:
        InputError: A file is missing, damaged or not what its checksum says, or no source answered.
        StorageError: A download could not be written.
    """
    named = os.environ.get("FASHION_MNIST_DIR")
    folders = [Path(d).expanduser() for d in ([named] if named else dirs)]
    found = next((folder for folder in folders if all(_find(folder, name) for name in FILES)), None)
    if found is None:
        if named or not download:
            raise InputError(_not_found(folders, []))
        found = folders[0]
        _download(found, folders)
    parts = [_read(path) for name in FILES if (path := _find(found, name))]
    images, labels, test_images, test_labels = parts
    for x, y, split in ((images, labels, "train"), (test_images, test_labels, "t10k")):
        if len(x) != len(y):
            raise InputError(
                f"{found}: {len(x)} {split} images but {len(y)} labels; replace the files with the official ones"
            )
    digest = hashlib.sha256("".join(sums.unpacked for sums in FILES.values()).encode()).hexdigest()
    return Dataset(images, labels.long(), test_images, test_labels.long(), digest, str(found))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _not_found(folders: Sequence[Path], failures: Sequence[str]) -> str:
    tried = []
    for folder in folders:
        missing = [name for name in FILES if not _find(folder, name)]
        tried.append(f"{folder} (lacks {'all four files' if len(missing) == 4 else ', '.join(missing)})")
    return (
        f"Fashion-MNIST: not found in {'; '.join([*tried, *failures])}. Put the four official .gz files into "
        f"{folders[0]}, or set FASHION_MNIST_DIR to the folder that has them, or try generated images with "
        "--data.source synthetic"
    )


def _download(target: Path, folders: Sequence[Path]) -> None:
    """Place the missing files in `target`, each whole and verified or not at all."""
    from torchvision.datasets.utils import download_url  # 1 s to import, needed once

    failures: list[str] = []
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none: a silent mirror would hang for ever
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, sums in FILES.items():
            file = f"{name}.gz"
            for mirror in MIRRORS if not _find(target, name) else ():
                with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as folder:
                    try:
                        download_url(mirror + file, folder, file, sums.md5)
                    except (OSError, RuntimeError, ValueError, EOFError) as error:
                        failures.append(f"{mirror}{file} ({_one_line(error)})")
                        continue
                    Path(folder, file).replace(target / file)
                    break
            if not _find(target, name):
                raise InputError(_not_found(folders, failures))
    except PermissionError as error:
        raise StorageError(f"{target}: cannot save the download ({_one_line(error)}); choose another folder") from error
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read(path: Path) -> Tensor:
    """Read one verified IDX file, packed or not, as uint8."""
    sums = FILES[path.name.removesuffix(".gz")]
    remedy = "delete it to download it again, or copy the official file"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES} bytes, expected an official file; {remedy}")
        data = path.read_bytes()
        packed = path.suffix == ".gz"
        unpacked = zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES + 1) if packed else data
        if len(unpacked) > MAX_BYTES:
            raise InputError(f"{path}: unpacks to more than {MAX_BYTES} bytes; {remedy}")
        tensor = parse_idx(unpacked, path)
    except (OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({_one_line(error)}); {remedy}") from error
    expected, got = (sums.packed if packed else sums.unpacked), hashlib.sha256(data).hexdigest()
    if got != expected:
        raise InputError(f"{path}: SHA-256 is {got[:12]}…, expected {expected[:12]}…: damaged; {remedy}")
    return tensor


def parse_idx(data: bytes, path: Path) -> Tensor:
    """Parse an IDX file of bytes: images (n, 28, 28) or labels (n,), uint8.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension as
    a big-endian 32-bit integer, then the values (http://yann.lecun.com/exdb/mnist/).

    Args:
        data: The whole file, unpacked.
        path: Its name, for the error message.

    Raises:
        InputError: The bytes are not such a file.
    """
    ndim = 3 if "images" in path.name else 1
    header = 4 + 4 * ndim
    magic = bytes([0, 0, 8, ndim])
    if data[:4] != magic:
        raise InputError(f"{path}: starts with {data[:4].hex() or 'nothing'}, expected the IDX magic {magic.hex()}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    size = len(data) - header
    if (ndim == 3 and shape[1:] != [28, 28]) or torch.Size(shape).numel() != size or size == 0:
        raise InputError(f"{path}: has {size} values for shape {shape}, expected as many as (n, 28, 28) or (n,) needs")
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)
    if ndim == 1 and tensor.max() > 9:
        raise InputError(f"{path}: has label {tensor.max()}, expected 0 to 9")
    return tensor


def write_idx(tensor: Tensor, path: Path) -> None:
    """Write images (n, 28, 28) or labels (n,), values 0..255, as an IDX file, packed if `path` ends in .gz."""
    data = bytes([0, 0, 8, tensor.ndim]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    data += tensor.to(torch.uint8).numpy().tobytes()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
