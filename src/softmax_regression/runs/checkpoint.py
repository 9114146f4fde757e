"""Checkpoint files: written as a whole or not at all, verified when they are read; reading runs no code in them."""

import io
import pickle
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.parameter import is_lazy

from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.files import write

ZIP_START = b"PK\x03\x04"  # the first bytes of every zip archive
REMEDY = "give a run's folder or a .ckpt file that `fit` saved"
NOT_SERIALIZABLE = "Unable to serialize instance "  # jsonargparse writes this for an object that YAML cannot hold
EXTRA_STATE = "_extra_state"  # a state_dict name with this ending may have any value: see nn.Module.get_extra_state
PLAIN_KINDS = {Tensor, bool, int, float, str, type(None)}  # torch.load reads these with weights_only=True
HANDED_BACK = ".temp.ckpt"  # the weights alone, which the processes of a notebook hand back after a training
RUN = "softmax_regression.run"  # the key of what RunRecord adds to checkpoints
# The entries of every checkpoint of a Trainer, and their types; one of weights alone has no others.
CONTENT = {"state_dict": dict, "loops": dict, "epoch": int, "global_step": int}


def about_run(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `RunRecord` has added to a checkpoint; empty for a checkpoint of a plain Trainer."""
    return dict(checkpoint.get(RUN, {}))


def dumps(content: Any) -> bytes:
    """Return the content of a checkpoint, or a part of it, as the bytes of a file, a zip archive for torch.load."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def plain(value: Any) -> Any:
    """Return a setting as plain data that checkpoints and YAML can hold and LightningCLI can read.

    A path becomes a string, a member of an Enum its name, a dataclass or Namespace a dictionary, and a number of NumPy
    one of Python.

    Raises:
        TypeError: It is an object of another type.
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, PurePath | torch.device):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind) and not str(value).startswith(NOT_SERIALIZABLE):
            return kind(value)
    if value is None:
        return None
    raise TypeError(f"a {type(value).__name__}")


def _with_plain_hyperparameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint whose hyperparameters are plain data; others are left out, as the configuration has them."""
    found = dict(checkpoint)
    for key in (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
        kept = {}
        for name, value in checkpoint.get(key, {}).items():
            with suppress(TypeError):
                kept[name] = plain(value)
        if key in checkpoint:
            found[key] = kept
    return found


def _check_loadable(checkpoint: dict[str, Any]) -> None:
    """Raise an InputError with the name of the entry that could not be read again, if there is one."""
    for name, value in checkpoint.items():
        parts = value if name == "callbacks" else {name: value}
        for part, state in parts.items():
            if not is_plain_data(state) and not _is_loadable(state):
                raise InputError(
                    f"{part}: its state in a checkpoint could not be read again with weights_only=True; "
                    "let it save plain data and tensors"
                )


def is_plain_data(value: Any) -> bool:
    """Return whether an object consists of plain types only; this takes a fraction of the time of `_is_loadable`."""
    kind = type(value)
    if kind in PLAIN_KINDS:
        return True
    if kind in (dict, OrderedDict, Counter):
        value = [*value.keys(), *value.values()]
    elif kind not in (list, tuple, set):
        return False
    return all(map(is_plain_data, value))


def _is_loadable(value: Any) -> bool:
    try:
        torch.load(io.BytesIO(dumps(value)), map_location="meta", weights_only=True)
    except Exception:  # whatever pickle says of it
        return False
    return True


def read(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint of a Trainer, with its tensors on the CPU, and verify the checksums of its archive.

    Raises:
        InputError: It does not exist, is damaged, would run code, or holds something else.
        StorageError: The system cannot read it.
    """
    if "://" in str(path):
        raise InputError(f"{path}: checkpoints are read from files, not from URLs; download it and {REMEDY}")
    try:
        if not Path(path).is_file():
            raise ValueError("no such checkpoint file")
        with Path(path).open("rb") as file:
            data = file.read(len(ZIP_START))
            if data == ZIP_START:  # do not read a large file of another kind
                data += file.read()
        return _loads(data)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}); {REMEDY}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; {REMEDY}") from error


def _loads(data: bytes) -> dict[str, Any]:
    """Return the content of the bytes of a checkpoint, or raise a ValueError that says what is wrong with them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything
        raise ValueError("damaged (cut off), or not a checkpoint") from error
    if damaged:
        raise ValueError("damaged (its checksum does not hold)")
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("refused, it holds more than tensors and plain data") from error
    except Exception as error:  # a malicious file can make the unpickler raise anything
        raise ValueError(f"not a readable checkpoint ({type(error).__name__})") from error
    if not _is_checkpoint(checkpoint):
        raise ValueError("not a checkpoint of a Trainer")
    name = _not_finite(checkpoint)
    if name:
        raise ValueError(f"{name} is not finite")
    return dict(checkpoint)


def _is_checkpoint(value: Any) -> bool:
    """Return whether an object has the entries of a checkpoint of a Trainer."""
    if not isinstance(value, dict):
        return False
    for name, kind in CONTENT.items():
        if not isinstance(value.get(name), kind):
            return False
    for name, weight in value["state_dict"].items():
        if not isinstance(weight, Tensor) and not name.endswith(EXTRA_STATE):
            return False
    return True


def _not_finite(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the name of a weight with NaN or infinity, None if there is none.

    -inf may be an attention mask; a buffer may have anything, such as NaN for a threshold that is not known yet.
    """
    buffers = about_run(checkpoint).get("buffers", ())
    for name, weight in checkpoint["state_dict"].items():
        if name in buffers or not isinstance(weight, Tensor) or is_lazy(weight):
            continue
        if not (weight.isfinite() | (weight == -torch.inf)).all():
            return str(name)
    return None


class SafeCheckpointIO(TorchCheckpointIO):
    """A CheckpointIO for a Trainer that saves by `files.write` and loads by `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint, after it has been checked.

        Raises:
            DivergedError: A weight is not finite; nothing is written.
            InputError: It could not be read again; nothing is written.
        """
        if Path(path).name == HANDED_BACK:
            super().save_checkpoint(checkpoint, path)
            return
        name = _not_finite(checkpoint)
        if name:
            raise DivergedError(
                f"{name} is not finite in epoch {checkpoint['epoch'] + 1}, step {checkpoint['global_step']}: "
                "the run diverged; lower the learning rate"
            )
        checkpoint = _with_plain_hyperparameters(checkpoint)
        _check_loadable(checkpoint)  # the first save comes before the first step
        write(dumps(checkpoint), Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load a checkpoint, always with `weights_only=True`; see `read` for what it raises."""
        return super().load_checkpoint(path) if Path(path).name == HANDED_BACK else read(path)
