"""The table that `predict` writes: what `predict_step` returned for each example, of anybody's model and data."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from softmax_regression.errors import InputError
from softmax_regression.files import check_writable, write

# How the first line of a table of ours begins; an empty file may be replaced as well.
_HEADER = re.compile(rb"index,(dataloader,)?(label,|image,)?(predicted|output)|$")
Columns = dict[str, list[Any]]


def choose_path(run: Path | None, output: str | None, force: bool, data: Any) -> Path:
    """Return where the table goes.

    Raises:
        InputError: It cannot be written, or a file of somebody else's is there.
    """
    name = "predictions-photos.csv" if getattr(data, "photos", None) else "predictions.csv"
    path = Path(output) if output else (run or Path()) / name
    if path.is_dir() or str(output).endswith("/"):
        raise InputError(f"{path}: is a folder; give --output a file, such as {path / name}")
    ours = True
    if path.is_file() and not force:
        with path.open("rb") as file:
            ours = _HEADER.match(file.readline()) is not None
    check_writable(path, ours)
    return path


def forward_inputs_only(model: LightningModule) -> None:
    """Let a module without a `predict_step` predict the inputs of (inputs, labels): Lightning's gives it both."""
    if is_overridden("predict_step", model):
        return

    def predict_step(self: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch[0] if isinstance(batch, list | tuple) else batch)

    model.predict_step = MethodType(predict_step, model)  # type: ignore[method-assign]


class PredictionTable(Callback):
    """Keep a row for each example: its index, its label or photo, and what `predict_step` returned for it.

    Args:
        data: The data module; its `class_names`, if it has any, name labels and outputs.

    Attributes:
        rows: Column -> value of each example.
    """

    def __init__(self, data: Any) -> None:
        self.names = [str(name) for name in getattr(data, "class_names", ())]
        self.photos = getattr(data, "photos", None)
        self.rows: list[dict[str, Any]] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *where: Any) -> None:
        """Keep the rows of a batch; `where` is the batch, its number, and that of its loader."""
        batch, _, loader = (*where, 0)[:3]
        columns = columns_of(outputs, self.names)
        labels = _labels(batch)
        for i in range(max(map(len, columns.values()), default=0)):
            index = len(self.rows)
            row: dict[str, Any] = {"index": index}
            if isinstance(trainer.predict_dataloaders, Sequence) and len(trainer.predict_dataloaders) > 1:
                row["dataloader"] = loader
            if self.photos:
                row["image"] = self.photos.paths[index]
            elif i < len(labels):
                row["label"] = _class_name(labels[i], self.names)
            for name, values in columns.items():
                if i < len(values):
                    row[name] = values[i]
            self.rows.append(row)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a CSV whose columns are all that a row has; a cell that a row lacks is empty."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(file.getvalue().encode(), path)


def _labels(batch: Any) -> list[int]:
    """Return the labels (n,) of a batch (inputs, labels, ...); none if it has no such thing."""
    if isinstance(batch, list | tuple) and len(batch) > 1:
        labels = batch[1]
        if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
            return [int(label) for label in labels.tolist()]
    return []


def columns_of(output: Any, class_names: Sequence[str]) -> Columns:
    """Return what `predict_step` returned for a batch of n examples, as columns of n values.

    Args:
        output: A tensor (n, ...), or a dictionary, tuple or list of them; or a list of n values.
        class_names: Names for an output of as many columns, of which the largest is then the prediction.
    """
    if isinstance(output, Mapping) and output.keys() == {"class", "probability", "probabilities"}:  # of a Classifier
        columns: Columns = {}
        columns["predicted"] = [_class_name(label, class_names) for label in output["class"].tolist()]
        columns["probability"] = [f"{value:.6f}" for value in output["probability"].tolist()]
        return columns | _numbers(output["probabilities"], class_names)
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == len(class_names):
        predicted = [class_names[label] for label in output.argmax(1).tolist()]
        return {"predicted": predicted} | _numbers(output, class_names)
    return _nested_columns(output, "output")


def _nested_columns(output: Any, name: str) -> Columns:
    """Return the columns of tensors, arrays, and dictionaries, tuples or lists of them, named by where they lie."""
    if output is None:
        return {}
    if isinstance(output, Mapping):
        return _joined_columns(output.items(), name)
    if isinstance(output, list | tuple):
        if output and isinstance(output[0], Tensor | np.ndarray | Mapping | list | tuple):
            return _joined_columns(enumerate(output), name)
        return {name: list(output)}
    if not isinstance(output, Tensor | np.ndarray | np.generic):
        return {name: [output]}
    values = torch.as_tensor(output).detach().cpu()
    if values.ndim < 2:
        return {name: values.reshape(-1).tolist()}
    values = values.reshape(len(values), -1) if len(values) else values.flatten(1)
    return _numbers(values, [f"{name}.{i}" for i in range(values.shape[1])])


def _joined_columns(parts: Iterable[tuple[Any, Any]], name: str) -> Columns:
    columns: Columns = {}
    for key, value in parts:
        columns |= _nested_columns(value, f"{name}.{key}")
    return columns


def _numbers(values: Tensor, names: Sequence[str]) -> Columns:
    """Return the columns of (n, k) numbers under k names."""
    columns: Columns = {}
    for i, name in enumerate(names):
        column = values[:, i].detach().cpu().tolist()
        columns[name] = [f"{value:.6g}" for value in column]
    return columns


def _class_name(label: int, names: Sequence[str]) -> str:
    if 0 <= label < len(names):
        return names[label]
    return str(label)
