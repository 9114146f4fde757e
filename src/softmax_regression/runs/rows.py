"""The metrics of a run in rows, one for each epoch and each validation within an epoch, and their file metrics.csv."""

import csv
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from softmax_regression.errors import InputError
from softmax_regression.files import append, check_not_moved, write_csv
from softmax_regression.metrics import learning_rate
from softmax_regression.runs.callbacks import callbacks_of
from softmax_regression.runs.loops import call_after, remove_calls, steps_done

Row = dict[str, float]  # `epoch`, from 1, `step`, the number of steps done, `lr`, and metrics by their names

ROWS_FILE = "metrics.csv"  # in a run's folder
ROWS_FILE_BESIDE_CSV_LOGGER = "rows.csv"  # instead, where a CSVLogger writes its own metrics.csv
RESERVED = ("epoch", "step", "lr")  # columns that are not metrics; what a module logs under these names is left out


def split_metric(name: str) -> tuple[str, str]:
    """Split the name of a metric into its stage, or the name of the validation set, and its quantity.

    >>> split_metric("val_loss"), split_metric("hard/acc"), split_metric("val/loss/dataloader_idx_1")
    (('val', 'loss'), ('hard', 'acc'), ('val, loader 1', 'loss'))
    """
    name, _, loader = name.partition("/dataloader_idx_")
    stage_first = re.fullmatch(r"(train|val|valid|test)[/_](.+)", name)
    stage_last = re.fullmatch(r"(.+)[/_](train|val|valid|test)", name)
    if stage_first:
        stage, quantity = stage_first.groups()
    elif stage_last:
        quantity, stage = stage_last.groups()
    elif "/" in name:
        stage, quantity = name.split("/", 1)
    else:
        stage, quantity = "", name
    if loader:
        stage = f"{stage}, loader {loader}"
    return stage, quantity


class RowCallback(Callback):
    """Collect a row at the end of each epoch and of each validation, with the metrics logged since the row before.

    Attributes:
        rows: The rows so far, the same on all processes; always the same list.
        file: Where they are written to; None for nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.file: RowsFile | None = None
        self._logged: dict[str, object] = {}  # `callback_metrics` at the last row
        self._missing: Sequence[str] = ()  # metrics that no row had when the resumed run was saved
        self._row_at: int | None = None  # the index of the last minibatch before that row, counted over the run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows up to the current step; there are none in a new run."""
        self.rows[:] = [row for row in self.rows if row["step"] <= steps_done(trainer)]
        self.note_logged(trainer)
        self._row_at = None
        call_after(trainer.fit_loop, partial(self.complete_row, trainer, pl_module))

    def note_logged(self, trainer: Trainer) -> None:
        """Leave what is logged by now out of the next row, unless a resumed run was saved before it had a row."""
        self._logged = dict(trainer.callback_metrics)
        for name in self._missing:
            self._logged.pop(name, None)
        self._missing = ()

    def saved(self, trainer: Trainer) -> dict[str, Any]:
        """Return the number of rows, and the names of the metrics that no row has yet, for `restore`."""
        return {"count": len(self.rows), "missing": list(self._new_metrics(trainer))}

    def restore(self, trainer: Trainer, folder: Path, step: int, saved: Mapping[str, Any]) -> None:
        """Begin with the rows up to a step, from the run's folder or that of the run whose checkpoint is resumed."""
        self._missing = saved.get("missing", ())
        path = Path(str(trainer.ckpt_path))
        for before in (folder, path.parent, path.parent.parent):
            rows = [row for row in read_rows(before) if row["step"] <= step][: saved.get("count")]
            if rows:
                self.rows[:] = rows
                if rows[-1]["step"] == steps_done(trainer):
                    self._row_at = trainer.fit_loop.total_batch_idx
                break
        if self.file:
            self.file.save(self.rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of a validation in training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.update_row(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of an epoch, or add to the row of a validation at the same step."""
        self.update_row(trainer)

    def complete_row(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any = None) -> None:
        """Add what was logged after the row: by the module at the end of an epoch, and by later callbacks."""
        if trainer.fit_loop.total_batch_idx == self._row_at:
            self.update_row(trainer)

    on_save_checkpoint = complete_row

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the last row, and leave the loop as it was."""
        self.complete_row(trainer, pl_module)
        remove_calls(trainer)

    def update_row(self, trainer: Trainer) -> None:
        """Put what was logged since the last row into the row of this step, and write it."""
        new = self._new_metrics(trainer)
        self._logged = dict(trainer.callback_metrics)
        if trainer.fit_loop.total_batch_idx == self._row_at:
            self.rows[-1] = new | self.rows[-1] | new  # in this order of columns: training, then validation
        else:
            self._row_at = trainer.fit_loop.total_batch_idx
            row: Row = {"epoch": trainer.current_epoch + 1, "step": steps_done(trainer)}
            lr = learning_rate(trainer)
            if lr is not None:
                row["lr"] = lr
            self.rows.append(row | new)
        epoch_ends_next = trainer.validating and trainer.is_last_batch  # it adds to the row, and then writes it
        if self.file and not epoch_ends_next:
            check_not_moved(self.file.path.parent)
            self.file.save(self.rows)

    def _new_metrics(self, trainer: Trainer) -> Row:
        """Return the metrics that were logged since the last row."""
        new: Row = {}
        for name, value in trainer.callback_metrics.items():
            if name not in RESERVED and not _same(value, self._logged.get(name)):
                new[name] = float(value)
        return new


def row_collector(trainer: Trainer, reader: Callback) -> RowCallback:
    """Return the collector of the rows of a Trainer; if it has none, put one before the callback that reads them."""
    for collector in callbacks_of(trainer, RowCallback):
        return collector
    collector = RowCallback()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    place = callbacks.index(reader)
    trainer.callbacks = [*callbacks[:place], collector, *callbacks[place:]]  # type: ignore[attr-defined]
    return collector


def _same(value: object, before: object) -> bool:
    """Return whether a value has not been logged again: a new value has memory of its own."""
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        return value.data_ptr() == before.data_ptr()
    return value is before


def csv_files(loggers: Iterable[Logger]) -> dict[Path, CSVLogger]:
    """Return the file of each CSVLogger."""
    files = {}
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            files[Path(logger.log_dir, "metrics.csv")] = logger
    return files


def count_logged_rows(loggers: Iterable[Logger]) -> list[int]:
    """Let each CSVLogger write its rows, and return their numbers, 0 where there is no file yet."""
    for logger in csv_files(loggers).values():
        logger.save()
    return [path.read_bytes().count(b"\n") - 1 if path.is_file() else 0 for path in csv_files(loggers)]


def keep_logged_rows(loggers: Iterable[Logger], counts: Iterable[int | None]) -> None:
    """Let each CSVLogger keep so many rows of its run, None for all: by itself it removes its file."""
    for (path, logger), count in zip(csv_files(loggers).items(), counts, strict=False):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)][:count]
        with warnings.catch_warnings(action="ignore"):  # of a directory that is not empty
            writer = logger.experiment  # which removes the file
        writer.metrics = [{name: cell for name, cell in row.items() if cell} for row in rows]
        logger.save()


class RowsFile:
    """The CSV file of the rows of a run; each new row is appended, and a metric that a row lacks is an empty cell.

    Args:
        path: Of the file, which `save` makes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = list(RESERVED)  # of the columns in the file
        self._count = 0  # of the rows in the file
        self._last: Row = {}  # the last of them

    def save(self, rows: Sequence[Row]) -> None:
        """Append the new rows; write the whole file if there is a new column or the last row in the file has changed.

        Raises:
            StorageError: The file could not be written.
        """
        before = self._count
        names = list(dict.fromkeys(chain(self._names, *rows[max(before - 1, 0) :])))
        if before and names == self._names and rows[before - 1] == self._last:
            text = io.StringIO()
            csv.DictWriter(text, names, lineterminator="\n").writerows(rows[before:])
            append(text.getvalue().encode(), self.path)
        else:
            write_csv(self.path, rows, names)
        self._names = names
        self._count = len(rows)
        if rows:
            self._last = dict(rows[-1])


def rows_file(run: Path, loggers: Iterable[Logger]) -> RowsFile:
    """Return the file for the rows of a run; it has another name if a CSVLogger writes a metrics.csv there."""
    if run / ROWS_FILE in csv_files(loggers):
        return RowsFile(run / ROWS_FILE_BESIDE_CSV_LOGGER)
    return RowsFile(run / ROWS_FILE)


def read_rows(run: Path) -> list[Row]:
    """Return the rows of a run, an empty list if it has none; a row has no entry for an empty cell.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    path = run / ROWS_FILE_BESIDE_CSV_LOGGER
    if not path.is_file():
        path = run / ROWS_FILE
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # without the incomplete last row of a killed process
        for cells in csv.DictReader(io.StringIO(whole, newline="")):
            row = {name: float(cell) for name, cell in cells.items() if cell}
            row["epoch"] = int(row["epoch"])
            row["step"] = int(row["step"])
            rows.append(row)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"{path}: not the rows of a run ({type(error).__name__}: {error}); delete it") from error
    return rows
