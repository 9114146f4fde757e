"""Files in the format of MNIST."""

import gzip
import shutil
from pathlib import Path

import torch
from torch import Tensor


def write_idx(tensor: Tensor, path: Path) -> None:
    """Write images (n, 28, 28) or labels (n,), values 0..255, as an IDX file, packed if `path` says .gz.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension as
    a big-endian 32-bit integer, then the values (http://yann.lecun.com/exdb/mnist/).
    """
    data = bytes([0, 0, 8, tensor.ndim])
    for size in tensor.shape:
        data += size.to_bytes(4, "big")
    data += tensor.to(torch.uint8).numpy().tobytes()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    path.write_bytes(data)


def copy_files(folder: Path, place: Path | str) -> Path:
    """Copy a folder of files to a place where they may be changed."""
    copied = Path(shutil.copytree(folder, place))
    copied.chmod(0o755)
    return copied
