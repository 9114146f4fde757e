"""Checkpoints: written whole or not at all, verified when read, and never a way to run code."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.files import write

_MARK = b"sha256="
_SEAL = len(_MARK) + 64  # bytes of the comment that ends a checkpoint's zip archive
_MAX_SIZE = 2**30  # bytes, thousands of times what a checkpoint of this model has
_CONTENT = {"state_dict": dict, "callbacks": dict, "loops": dict, "epoch": int, "global_step": int}
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
        status = Path(path).stat()
        if not S_ISREG(status.st_mode) or status.st_size > _MAX_SIZE:
            raise InputError(f"{path}: not a checkpoint (no regular file below 1 GiB); {_REMEDY}")
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: no such checkpoint; {_REMEDY}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    return _loads(data, str(path))


def _damage(data: bytes) -> str | None:
    """Say what is wrong with the bytes of a checkpoint, if something is."""
    if data[-64:] == _digest(data[:-64]):
        return None
    if data[-_SEAL:].startswith(_MARK):
        return "its checksum does not hold"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.comment:
                return "its checksum does not hold"
            return archive.testzip() and "the CRC of its content does not hold"
    except Exception:  # a damaged archive makes zipfile raise nearly anything
        return "cut off, or not a checkpoint"


def _loads(data: bytes, name: str) -> dict[str, Any]:
    """Return what the bytes of a checkpoint hold, once nothing speaks against it."""
    if why := _damage(data):
        raise InputError(f"{name}: damaged ({why}); {_REMEDY}")
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{name}: refused, it holds more than tensors and plain data; {_REMEDY}") from error
    except Exception as error:  # a file made to harm can make the unpickler raise anything
        raise InputError(f"{name}: not a readable checkpoint ({type(error).__name__}); {_REMEDY}") from error
    if (
        not isinstance(checkpoint, dict)
        or not all(isinstance(checkpoint.get(key), kind) for key, kind in _CONTENT.items())
        or not all(isinstance(weight, Tensor) for weight in checkpoint["state_dict"].values())
    ):
        raise InputError(f"{name}: not a checkpoint of a Trainer; {_REMEDY}")
    if not_finite := _not_finite(checkpoint):
        raise InputError(f"{name}: {not_finite} is not finite; {_REMEDY}")
    return checkpoint


def _not_finite(checkpoint: dict[str, Any]) -> str | None:
    """Name a weight that has a NaN or an infinity, if there is one."""
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


class SafeCheckpointIO(TorchCheckpointIO):
    """How Lightning's Trainer saves and loads checkpoints here: see `files.write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint to `path`.

        Raises:
            DivergedError: A weight is not finite; nothing is written.
            StorageError: See `files.write`.
        """
        if name := _not_finite(checkpoint):
            raise DivergedError(
                f"{name} is not finite in epoch {checkpoint['epoch'] + 1}, step {checkpoint['global_step']}: "
                "the run diverged; lower model.lr or model.init_std"
            )
        write(dumps(checkpoint), Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint, always with `weights_only=True`; see `read` for what it raises."""
        return read(path)
