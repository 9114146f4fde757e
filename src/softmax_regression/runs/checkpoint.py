"""Checkpoints: written whole or not at all, verified when read, and never a way to run code."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.nn.parameter import is_lazy

from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.files import write

_MARK = b"sha256="
_SEAL = len(_MARK) + 64  # bytes of the comment that ends a checkpoint's zip archive
_ZIP = b"PK\x03\x04"  # how every zip archive begins
_REMEDY = "give a run's folder or a .ckpt file that `fit` saved"


def dumps(checkpoint: dict[str, Any]) -> bytes:
    """Return a checkpoint as the bytes of its file: a zip archive for torch.load, sealed with a SHA-256.

    The digest is the comment of the archive, which every reader of zip files skips, and covers each byte
    before it: the CRCs of a zip leave out its headers and padding, and torch.load compares none.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    archive = buffer.getvalue()[:-2] + _SEAL.to_bytes(2, "little") + _MARK  # from 0 to the comment's length
    return archive + _digest(archive)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def read(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint that a Trainer has saved onto the CPU, and verify it.

    Of a file that `SafeCheckpointIO` wrote every byte is verified, of another one the content.

    Raises:
        InputError: It does not exist, is damaged, would run code, or holds something else.
        StorageError: The system cannot read it.
    """
    if "://" in str(path):
        raise InputError(f"{path}: checkpoints are read from files, not from URLs; download it and {_REMEDY}")
    try:
        if not Path(path).is_file():
            raise ValueError("no such checkpoint file")
        with Path(path).open("rb") as file:
            data = file.read(len(_ZIP))
            return _loads(data + file.read() if data == _ZIP else b"")  # another file may be endless
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; {_REMEDY}") from error


def _loads(data: bytes) -> dict[str, Any]:
    """Return what the bytes of a checkpoint hold, once nothing speaks against it."""
    wrong: object = False
    try:
        if data[-64:] != _digest(data[:-64]):  # damaged, or another program's
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                wrong = archive.comment or data[-_SEAL:].startswith(_MARK) or archive.testzip()
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything
        raise ValueError("damaged (cut off), or not a checkpoint") from error
    if wrong:
        raise ValueError("damaged (its checksum does not hold)")
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("refused, it holds more than tensors and plain data") from error
    except Exception as error:  # a file made to harm can make the unpickler raise anything
        raise ValueError(f"not a readable checkpoint ({type(error).__name__})") from error
    match checkpoint:
        case {"state_dict": dict(weights), "callbacks": dict(), "loops": dict(), "epoch": int(), "global_step": int()}:
            if all(isinstance(weight, Tensor) for weight in weights.values()):
                if name := _not_finite(weights):
                    raise ValueError(f"{name} is not finite")
                return dict(checkpoint)
    raise ValueError("not a checkpoint of a Trainer")


def _not_finite(weights: dict[str, Tensor]) -> str | None:
    """Name a weight that has a NaN or an infinity, if there is one."""
    for name, weight in weights.items():
        if not is_lazy(weight) and not weight.isfinite().all():
            return name
    return None


class SafeCheckpointIO(TorchCheckpointIO):
    """How Lightning's Trainer saves and loads checkpoints here: see `files.write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint, or raise a DivergedError and write nothing if a weight is not finite."""
        if name := _not_finite(checkpoint["state_dict"]):
            raise DivergedError(
                f"{name} is not finite in epoch {checkpoint['epoch'] + 1}, step {checkpoint['global_step']}: "
                "the run diverged; lower model.lr or model.init_std"
            )
        write(dumps(checkpoint), Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load a checkpoint, always with `weights_only=True`; see `read` for what it raises."""
        return read(path)
