"""Checkpoints: written whole or not at all, verified when read, and never a way to run code."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from softmax_regression.errors import DivergedError, InputError, StorageError


def write(data: bytes, path: Path) -> None:
    """Write a file so that at any moment, even when killed or out of space, it is the old one or the new one.

    Raises:
        StorageError: The file could not be written; an old one is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def read(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU, and verify it.

    Raises:
        InputError: It does not exist, is damaged, would run code, or holds something else.
    """
    remedy = "give a run's folder or a .ckpt file that `fit` saved"
    if "://" in str(path):
        raise InputError(f"{path}: checkpoints are read from files, not from URLs; download it and {remedy}")
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the CRCs, which torch.load does not
        if damaged:
            raise InputError(f"{path}: damaged (checksum of {damaged}); {remedy}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint; {remedy}") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it holds more than tensors and plain values; {remedy}") from error
    except (
        OSError,
        RuntimeError,
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        KeyError,
        NotImplementedError,
    ) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); {remedy}") from error
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "loops", "hyper_parameters"} <= checkpoint.keys()
    ):
        raise InputError(f"{path}: not a checkpoint of this project; {remedy}")
    if not_finite := _not_finite(checkpoint):
        raise InputError(f"{path}: {not_finite} is not finite; {remedy}")
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
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write(buffer.getvalue(), Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint, always with `weights_only=True`; see `read` for what it raises."""
        return read(path)
