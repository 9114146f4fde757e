"""Checkpoints: written whole or not at all, verified when read, and never a way to run code."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from softmax_regression.errors import DivergedError, InputError, StorageError

_MARK = b"sha256="
_SEAL = len(_MARK) + 64  # bytes of the comment that ends a checkpoint's zip archive
_MAX_SIZE = 2**30  # bytes, thousands of times what a checkpoint of this model has
_CONTENT = {
    "state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict,
    "FashionMNISTDataModule": dict, "callbacks": dict, "loops": dict, "optimizer_states": list,
    "lr_schedulers": list, "history": list, "sums": dict, "epoch": int, "global_step": int,
}  # fmt: skip
_REMEDY = "give a run's folder or a .ckpt file that `fit` saved"


def write(data: bytes, path: Path) -> None:
    """Write a file so that at any moment, even when killed or out of space, it is the old one or the new one.

    The folder is made if it is missing, its parent is not: a run whose folder has vanished must not go on.

    Raises:
        StorageError: The file could not be written; an old one is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be saved ({error.strerror or error}); free space or make the folder writable, "
            "then go on with --resume"
        ) from error


def sweep(run: Path) -> None:
    """Remove from a run's folder what a process that was killed inside `write` has left there."""
    for debris in run.rglob(".*.tmp"):
        debris.unlink(missing_ok=True)


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
    """Read a checkpoint of this project onto the CPU, and verify it.

    A file without a checksum is refused, even if torch can load it: nothing tells whether it is damaged.

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


def _loads(data: bytes, name: str) -> dict[str, Any]:
    """Return what the bytes of a checkpoint hold, once nothing speaks against it."""
    if data[-64:] != _digest(data[:-64]):
        sealed = data[-_SEAL:].startswith(_MARK)
        why = "its checksum does not hold" if sealed else "cut off, or not saved by `fit`: it has no checksum"
        raise InputError(f"{name}: damaged ({why}); {_REMEDY}")
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{name}: refused, it holds more than tensors and plain data; {_REMEDY}") from error
    except Exception as error:  # a file made to harm can make the unpickler raise anything
        raise InputError(f"{name}: not a readable checkpoint ({type(error).__name__}); {_REMEDY}") from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(key), kind) for key, kind in _CONTENT.items()
    ):
        raise InputError(f"{name}: not a checkpoint of this project; {_REMEDY}")
    if not all(isinstance(weight, Tensor) for weight in checkpoint["state_dict"].values()):
        raise InputError(f"{name}: not a checkpoint of this project; {_REMEDY}")
    if not_finite := _not_finite(checkpoint):
        raise InputError(f"{name}: {not_finite} is not finite; {_REMEDY}")
    return checkpoint


def _not_finite(checkpoint: dict[str, Any]) -> str | None:
    """Name a weight that has a NaN or an infinity, if there is one."""
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


class SafeCheckpointIO(TorchCheckpointIO):
    """How Lightning's Trainer saves and loads checkpoints here: see `write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint to `path`.

        Raises:
            DivergedError: A weight is not finite; nothing is written.
            StorageError: See `write`.
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
