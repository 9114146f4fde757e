"""The table that `predict` writes: a row for each example, and how any model and data are asked for it."""

import re
import warnings
from itertools import zip_longest
from pathlib import Path
from types import MethodType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader

from softmax_regression.commands.columns import Columns, columns_of, names_of
from softmax_regression.data.module import class_names_of
from softmax_regression.data.photos import Photos
from softmax_regression.errors import InputError
from softmax_regression.figures.scoring import loaders_by_name
from softmax_regression.files import check_writable, reason
from softmax_regression.runs.loops import predicted_examples

# The beginning of a table of this project; an empty file may be replaced as well.
_HEADER = re.compile(rb"index,(dataloader,)?(label,|image,)?(predicted|output)|$")


def choose_path(run: Path | None, output: str | None, force: bool, data: Any) -> Path:
    """Return the path of the table.

    Raises:
        InputError: It cannot be written, or a file that is no such table is there.
    """
    name = "predictions-photos.csv" if _photos_of(data) else "predictions.csv"
    path = Path(output) if output else (run or Path()) / name
    if path.is_dir() or str(output).endswith("/"):
        raise InputError(f"{path}: is a folder; give --output a file, such as {path / name}")
    may_replace = True
    if path.is_file() and not force:
        with path.open("rb") as file:
            may_replace = _HEADER.match(file.readline()) is not None
    check_writable(path, may_replace)
    return path


def _photos_of(data: Any) -> Photos | None:
    """Return the photos that a data module of this project has loaded; None for any other data module."""
    photos = getattr(data, "photos", None)
    return photos if isinstance(photos, Photos) else None


def forward_inputs_only(model: LightningModule) -> None:
    """Give a module without a `predict_step` one that takes the inputs of (inputs, labels); Lightning's takes both."""
    if is_overridden("predict_step", model):
        return

    def predict_step(self: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        try:
            return self(batch[0] if isinstance(batch, list | tuple) else batch)
        except Exception as error:  # the module may be any
            why = reason(error)[:200]
            name = type(self).__name__
            raise InputError(f"{name}: define predict_step; forward fails on the inputs of a batch ({why})") from error

    model.predict_step = MethodType(predict_step, model)  # type: ignore[method-assign]


def allow_positional_arguments(data: LightningDataModule) -> None:
    """Allow positional arguments, as in `DataLoader(images, 16)`, for the loaders of `predict_dataloader`.

    Lightning makes each of these loaders again, with its recorded arguments and some of its own, and fails where both
    have the same one. Without the record it takes the arguments from the attributes of the loader.
    """
    make_loaders = data.predict_dataloader

    def predict_dataloader() -> Any:
        loaders = make_loaders()
        for loader in loaders_by_name(loaders).values():
            if type(loader) is DataLoader:
                vars(loader).pop("__pl_saved_args", None)
        return loaders

    data.predict_dataloader = predict_dataloader  # type: ignore[method-assign]


class PredictionTable(Callback):
    """Collect a row for each example: its index, its label or photo, and what `predict_step` returned for it.

    The index is that of the example in its data set, or the number so far where a loader does not tell it; further
    loaders count on. Where a batch has other than one row for each example, they have the index of its first example.

    Args:
        data: The data module; its `class_names`, if it has any, are names for labels and outputs.

    Attributes:
        rows: For each example, column -> value.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.photos = _photos_of(data)
        self.rows: list[dict[str, Any]] = []
        self._examples = 0  # in all batches so far
        self._starts: dict[int, int] = {}  # loader -> the number of examples of the loaders before

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of a batch."""
        labels = _labels(batch)
        start = self._starts.setdefault(dataloader_idx, self._examples)
        places = [start + place for place in predicted_examples(trainer, dataloader_idx, batch_idx)]
        n = len(places) or _batch_size(batch)
        names = class_names_of(self.data)
        found = columns_of(outputs, names, n)
        count = max(map(len, found.values()), default=0)
        first, end = self._examples, self._examples + count
        columns: Columns = {"index": places or list(range(first, end))}
        if n not in (0, count):
            columns["index"] = columns["index"][:1] * count
        loaders = list(loaders_by_name(trainer.predict_dataloaders))
        if len(loaders) > 1:
            columns["dataloader"] = [loaders[dataloader_idx]] * count
        if self.photos:
            columns["image"] = self.photos.paths[first:end]
        elif count == len(labels):
            columns["label"] = names_of(labels, names)
        columns |= found
        for cells in zip_longest(*columns.values(), fillvalue=""):
            self.rows.append(dict(zip(columns, cells, strict=True)))
        self._examples += n or count


def _batch_size(batch: Any) -> int:
    """Return the number of examples in a batch, 0 if it is not known."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Lightning warns if parts differ in size
            return extract_batch_size(batch)
    except MisconfigurationException:
        return 0


def _labels(batch: Any) -> list[int]:
    """Return the labels (n,) of a batch (inputs, labels, ...); empty if it has none, or several that may be these."""
    if not isinstance(batch, list | tuple):
        return []
    found: list[Tensor] = []
    for part in batch[1:]:
        if isinstance(part, Tensor) and part.ndim == 1 and not part.is_floating_point():
            found.append(part)
    if len(found) != 1:
        return []
    labels: list[int] = found[0].long().tolist()
    return labels
