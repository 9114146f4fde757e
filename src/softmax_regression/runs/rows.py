"""The rows of a run, one for each epoch and each validation within one: collected from a Trainer, kept as a CSV."""

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from softmax_regression.errors import InputError
from softmax_regression.files import append, write
from softmax_regression.metrics import learning_rate

Row = dict[str, float]  # `epoch`, from 1, `step`, the number of steps done, `lr`, and metrics by their names

ROWS_FILE = "metrics.csv"  # in a run's folder
BESIDE_CSV_LOGGER = "rows.csv"  # its name in the folder of a CSVLogger, whose own file is metrics.csv
RESERVED = ("epoch", "step", "lr")  # what a row says of itself, whatever a module logs under these names


def steps_done(trainer: Trainer) -> int:
    """Return how many steps a run has made, as Lightning's loggers count them.

    That is steps of the optimizer or, where the module steps its optimizers itself, minibatches.
    """
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


class RowCallback(Callback):
    """Collect a row of what was logged at the end of each epoch, and of each validation within one.

    A row has every value of `trainer.callback_metrics` that was logged since the row before.

    Attributes:
        rows: The rows so far, the same on all processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._known: dict[str, object] = {}  # what was logged up to the last row
        self._row_at: int | None = None  # the last minibatch before it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, or go on after the steps that this Trainer has made before."""
        self.rows = [row for row in self.rows if row["step"] <= steps_done(trainer)]
        self._known = dict(trainer.callback_metrics)
        self._row_at = None

    def start_with(self, trainer: Trainer, rows: list[Row]) -> None:
        """Go on after these rows, the last of which may be of the step at which the run stands."""
        self.rows = rows
        if rows[-1]["step"] == steps_done(trainer):
            self._row_at = trainer.fit_loop.total_batch_idx

    def at_row(self, trainer: Trainer) -> bool:
        """Whether the last row is of the step at which the run stands."""
        return trainer.fit_loop.total_batch_idx == self._row_at

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of a validation in training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.update_row(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of an epoch, or what is new to that of a validation at the same step."""
        self.update_row(trainer)

    def update_row(self, trainer: Trainer) -> bool:
        """Put what was logged since the last row into the row of this step; return whether that changed it."""
        logged: dict[str, object] = dict(trainer.callback_metrics)
        new: Row = {}
        for name, value in logged.items():
            if name not in RESERVED and not _same(value, self._known.get(name)):
                new[name] = float(value)  # type: ignore[arg-type]
        self._known = logged
        if self.at_row(trainer):
            self.rows[-1] = new | self.rows[-1] | new  # the training's values before the validation's
            return bool(new)
        self._row_at = trainer.fit_loop.total_batch_idx
        row: Row = {"epoch": trainer.current_epoch + 1, "step": steps_done(trainer)}
        lr = learning_rate(trainer)
        if lr is not None:
            row["lr"] = lr
        self.rows.append(row | new)
        return True


def _same(value: object, before: object) -> bool:
    """Whether a value is still the one that was logged before: Lightning makes a new tensor of each, with its data."""
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        return value.data_ptr() == before.data_ptr()
    return value is before


def keep_logged_rows(loggers: Iterable[Logger], step: int) -> None:
    """Let a CSVLogger go on in its file, which it would begin anew, after the rows of a run's first `step` steps."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        path = Path(logger.log_dir, "metrics.csv")
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
            writer = logger.experiment  # which removes the file
        writer.metrics = [{name: cell for name, cell in row.items() if cell} for row in rows]
        logger.save()


def rows_file(run: Path, loggers: Iterable[Logger]) -> Path:
    """Return where the rows of a run go."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and Path(logger.log_dir) == run:
            return run / BESIDE_CSV_LOGGER
    return run / ROWS_FILE


class RowsFile:
    """The rows of a run as a CSV, to which each row is added as it comes; a metric not logged is an empty cell.

    Args:
        path: Where the file is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = list(RESERVED)  # of the columns in the file
        self._count = 0  # of the rows in the file
        self._last: Row = {}  # the last of them

    def save(self, rows: Sequence[Row]) -> None:
        """Add the rows that are new; write the file anew if the last one before has changed, or there is a new column.

        Raises:
            StorageError: The file could not be written.
        """
        before = self._count
        names = list(self._names)
        for row in rows[max(before - 1, 0) :]:
            names.extend(name for name in row if name not in names)
        is_longer = before > 0 and names == self._names and rows[before - 1] == self._last
        if is_longer and len(rows) == before:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        if is_longer:
            writer.writerows(rows[before:])
            append(text.getvalue().encode(), self.path)
        else:
            writer.writeheader()
            writer.writerows(rows)
            write(text.getvalue().encode(), self.path)
        self._names, self._count = names, len(rows)
        if rows:
            self._last = dict(rows[-1])


def read_rows(run: Path) -> list[Row]:
    """Return the rows of a run, an empty list if it has none; what was not logged is left out.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    path = run / BESIDE_CSV_LOGGER
    if not path.is_file():
        path = run / ROWS_FILE
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # without a row that was cut short as the process was killed
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
