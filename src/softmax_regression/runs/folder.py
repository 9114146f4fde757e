"""The folder of a run, logs/<name>/<run>/: its logger, and how its checkpoints are found and read."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from softmax_regression.errors import InputError, StorageError, shell_command
from softmax_regression.files import check_not_moved, reason
from softmax_regression.metrics import learning_rate
from softmax_regression.runs import checkpoint
from softmax_regression.runs.events import dropped_events
from softmax_regression.runs.last_checkpoint import INITIAL_CHECKPOINT
from softmax_regression.runs.loops import file_writer
from softmax_regression.runs.record import read_manifest
from softmax_regression.runs.rows import read_rows

# On TensorBoard's page HPARAMS:
HPARAMS_METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")  # metrics of every run
FIRST_COLUMNS = ("lr", "batch_size", "max_epochs", "model")
NOT_SHOWN = ("dirs", "device", "eval_batch_size", "images", "watch_test")  # they change no result

RENAMED = {"epoch": "watch/epoch", "lr": "watch/lr"}  # scalars that TensorBoard would sort before train/loss


class RunLogger(TensorBoardLogger):
    """A TensorBoardLogger whose run folder is named after the time and belongs to no other run.

    Args:
        save_dir: The folder of all experiments.
        name: The folder of this experiment's runs.
        version: The name of the run, which no other run may have; null for one made of the time.
    """

    def __init__(self, save_dir: str = "logs", name: str = "softmax", version: str | None = None) -> None:
        super().__init__(save_dir, name, None, default_hp_metric=False, log_graph=True)
        self._given_version = version
        self._hparams: dict[str, Any] = {}
        self._hparams_metrics = dict.fromkeys(HPARAMS_METRICS, 0.0)
        self._is_listed = False  # in HPARAMS
        self._is_drawn = False  # in GRAPHS
        self._has_scalars = True  # False after `reopen_for_scoring`

    @property
    def version(self) -> str:
        """The name of the run, which no other run has; the first access makes the folder."""
        if self._version is None:
            is_first = getattr(rank_zero_only, "rank", 0) == 0
            self._version = self._make_folder() if is_first else "of-rank-zero"
        return str(self._version)

    def _make_folder(self) -> str:
        """Make a folder for a new run, and return its name."""
        root = Path(self.root_dir)
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        names = [now, *(f"{now}-{i}" for i in range(1, 1000))]
        if self._given_version:
            names = [str(self._given_version)]
        try:
            root.mkdir(parents=True, exist_ok=True)
            for name in names:
                with suppress(FileExistsError):
                    (root / name).mkdir()
                    return name
        except OSError as error:
            raise InputError(
                f"{root}: cannot make a run folder there ({error.strerror}); "
                "choose another with --trainer.logger.save_dir"
            ) from error
        raise InputError(f"{root / names[0]}: is another run's; choose another name, or --resume that run")

    def reopen(self, run: Path, step: int, batches: int) -> None:
        """Continue in the folder of a run, saved after so many steps and minibatches; what came later is hidden."""
        self._enter(run)
        self._kwargs["purge_step"] = step
        self._is_listed = bool(read_rows(run))
        if getattr(rank_zero_only, "rank", 0) == 0:
            for event in dropped_events(run, step, batches):
                file_writer(self.experiment).event_writer.add_event(event)

    def reopen_for_scoring(self, run: Path) -> None:
        """Let a module add to the events of the run that is scored; what it logs by `self.log` is left out."""
        self._enter(run)
        self._has_scalars = False

    def _enter(self, run: Path) -> None:
        self._root_dir = str(run.parent.parent)
        self._name = run.parent.name
        self._version = run.name
        self._is_drawn = True

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, metrics: Any = None, step: int | None = None) -> None:
        """Collect hyperparameters for the line of the run in HPARAMS, and log metrics, which become columns there.

        The line is written with the first metrics, since TensorBoard reads one line a run.
        """
        self._hparams |= vars(params) if isinstance(params, Namespace) else dict(params)
        if metrics is None:
            return
        named = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        self._hparams_metrics |= named
        step = step or 0
        if step >= self._kwargs.get("purge_step", 0):  # a resumed run has the points before that step already
            self.log_metrics(named, step)

    def _list_run(self) -> None:
        """Write the line of the run in HPARAMS, if it is not there yet and hyperparameters have been logged."""
        if self._is_listed or not self._hparams:
            return
        self._is_listed = True
        from torch.utils.tensorboard.summary import hparams

        shown = {}
        for name in (*FIRST_COLUMNS, *self._hparams):
            if name in self._hparams and name not in NOT_SHOWN and not name.startswith("_"):
                value = self._hparams[name]
                shown[name] = value if isinstance(value, int | float | str) else str(value)
        for summary in hparams(shown, self._hparams_metrics):
            file_writer(self.experiment).add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:  # type: ignore[override]
        """Draw the model on the page GRAPHS, once; Lightning calls this as training begins."""
        trainer = model.trainer
        self._hparams.setdefault("max_epochs", trainer.max_epochs)
        self._hparams.setdefault("model", type(model).__name__)
        lr = learning_rate(trainer)
        if lr is not None:
            self._hparams.setdefault("lr", lr)
        if self._is_drawn:
            return
        self._is_drawn = True
        with warnings.catch_warnings(), isolate_rng():
            warnings.simplefilter("ignore")  # SummaryWriter traces it with torch.jit, which is deprecated
            try:
                super().log_graph(model, input_array)
            except Exception as error:  # a page of TensorBoard must not end a run
                print(f"no page GRAPHS: example_input_array does not go through ({reason(error)})", file=sys.stderr)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars; a StorageError says that the folder of the run has been moved or deleted."""
        if not self._has_scalars:
            return
        check_not_moved(Path(self.log_dir))
        self._list_run()
        named = {RENAMED.get(name, name): value for name, value in metrics.items()}
        super().log_metrics(named, step)

    @rank_zero_only
    def save(self) -> None:
        """Write everything that has been logged so far to the file, if there is one."""
        if self._experiment is not None:
            self._experiment.flush()


class SavedCheckpoint(NamedTuple):
    """A checkpoint file and what it holds."""

    path: Path
    content: dict[str, Any]
    run: Path | None  # the folder of its run; None if the file is in no run's folder


def find_run(path: Path | str) -> Path | None:
    """Return the folder of a run, which `path` or the folder around it is; None if neither is one."""
    folders = (Path(path), *Path(path).parents[:2])
    return next((each for each in folders if (each / "run.json").is_file() or (each / "config.yaml").is_file()), None)


def newest_run(which: str) -> Path:
    """Return the folder of the newest run that has a checkpoint; one on generated images only if there is no other.

    Raises:
        InputError: There is none under logs/.
    """
    folders = {path.parent for path in Path("logs").rglob("checkpoints/*.ckpt")}
    newest_first = sorted(folders, key=lambda folder: -folder.stat().st_mtime)
    if not newest_first:
        fit = shell_command("train.py", "fit")
        raise InputError(f"{which}: no run under logs/ has a checkpoint; train one with `{fit}`")
    newest = newest_first[0].parent
    for folder in newest_first:
        run = folder.parent
        if not data_origin(run).startswith("generated"):
            if run != newest:
                print(f"{which}: {newest} has generated images, so the newest run is {run}", file=sys.stderr)
            return run
    return newest


def data_origin(run: Path) -> str:
    """Return where the training data of a run came from, as run.json says; `unknown data` if it does not say."""
    try:
        return str(read_manifest(run)["data"]["origin"])
    except (InputError, KeyError, TypeError):
        return "unknown data"


def open_checkpoint(which: str, prefer: str = "best") -> SavedCheckpoint:
    """Find and read a checkpoint: a .ckpt file, of a run's folder, or `best` or `last` of the newest run under logs/.

    In a folder it reads the preferred file, `best` or, to resume the run, `last`. If that one is damaged it reads the
    newest of the others and warns on stderr. An InputError says that there is no readable checkpoint.
    """
    if which in ("best", "last"):
        prefer, which = which, str(newest_run(which))
    if not Path(which).is_dir():
        return SavedCheckpoint(Path(which), checkpoint.read(which), find_run(which))
    found = Path(which, "checkpoints").glob("*.ckpt")
    files = sorted(found, key=lambda file: (file.stem != prefer, -file.stat().st_mtime))
    if prefer == "last":  # a run that was killed in its first epoch has only this one
        files += Path(which).glob(INITIAL_CHECKPOINT)
    for file in files:
        try:
            return SavedCheckpoint(file, checkpoint.read(file), find_run(file))
        except (InputError, StorageError) as error:
            if file == files[-1]:
                raise
            print(f"warning: {error}; trying an older one", file=sys.stderr)
    raise InputError(f"{which}: has no checkpoints/*.ckpt; give the folder of a run that saved one")
