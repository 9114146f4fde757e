"""A run's folder, logs/<name>/<run>/: its name, TensorBoard events, and how a command opens it."""

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

from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import reason
from softmax_regression.metrics import learning_rate
from softmax_regression.runs import checkpoint
from softmax_regression.runs.last_checkpoint import INITIAL_CHECKPOINT
from softmax_regression.runs.record import check_there, read_manifest
from softmax_regression.runs.rows import read_rows

HPARAMS_METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")  # of every run on TensorBoard's page HPARAMS
VARIED_FIRST = ("lr", "batch_size", "max_epochs", "model")  # the first columns there
NO_RESULT_CHANGES = ("dirs", "device", "eval_batch_size", "images", "watch_test")  # by these, so they are no columns

BELOW_METRICS = {"epoch": "watch/epoch", "lr": "watch/lr"}  # their names there, or they would come before train/loss


class RunLogger(TensorBoardLogger):
    """A TensorBoardLogger whose run folder is named after the time and belongs to no other run.

    Args:
        save_dir: The folder of all experiments.
        name: The folder of this experiment's runs.
        version: The name of the run, which no other run may have; None for one made of the time.
    """

    def __init__(self, save_dir: str = "logs", name: str = "softmax", version: str | None = None) -> None:
        super().__init__(save_dir, name, None, default_hp_metric=False, log_graph=True)
        self._wanted = version
        self._hparams: dict[str, Any] = {}
        self._hparams_metrics = dict.fromkeys(HPARAMS_METRICS, 0.0)
        self._is_listed = False  # in HPARAMS
        self._is_drawn = False  # in GRAPHS

    @property
    def version(self) -> str:
        """The name of the run, which no other run has; asked for the first time, it makes the folder."""
        if self._version is None:
            is_first = getattr(rank_zero_only, "rank", 0) == 0
            self._version = self._claim() if is_first else "of-rank-zero"
        return str(self._version)

    def _claim(self) -> str:
        """Make the folder of a new run, and return its name."""
        root = Path(self.root_dir)
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        names = [self._wanted] if self._wanted else [now, *(f"{now}-{i}" for i in range(1, 1000))]
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

    def reopen(self, run: Path, step: int) -> None:
        """Go on in the folder of a run that has made `step` steps; what it logged of later ones is taken back."""
        self._root_dir, self._name, self._version = str(run.parent.parent), run.parent.name, run.name
        self._kwargs["purge_step"] = step
        self._is_drawn = True
        self._is_listed = bool(read_rows(run))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, metrics: Any = None, step: int | None = None) -> None:
        """Keep hyperparameters for the run's line in HPARAMS, and log metrics, which get a column there.

        The line is written with the first metrics, since TensorBoard reads one line a run.
        """
        self._hparams |= vars(params) if isinstance(params, Namespace) else dict(params)
        if metrics is None:
            return
        named = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        self._hparams_metrics |= named
        self.log_metrics(named, step or 0)

    def _list_run(self) -> None:
        """Write the run's line in HPARAMS, once."""
        if self._is_listed:
            return
        self._is_listed = True
        from torch.utils.tensorboard.summary import hparams

        names = [name for name in VARIED_FIRST if name in self._hparams]
        names += [name for name in self._hparams if name not in (*names, *NO_RESULT_CHANGES)]
        shown = {}
        for name in names:
            value = self._hparams[name]
            if not name.startswith("_"):
                shown[name] = value if isinstance(value, int | float | str) else str(value)
        for summary in hparams(shown, self._hparams_metrics):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Tensor | None = None) -> None:  # type: ignore[override]
        """Draw the model for the page GRAPHS, unless it is there already; Lightning calls it as training begins."""
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
            except Exception as error:  # of anybody's module: a page of TensorBoard must not end a run
                print(f"no page GRAPHS: {reason(error)}", file=sys.stderr)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, unless the run's folder is not there any more; TensorBoard sorts them by name."""
        check_there(Path(self.log_dir))
        self._list_run()
        named = {BELOW_METRICS.get(name, name): value for name, value in metrics.items()}
        super().log_metrics(named, step)

    @rank_zero_only
    def save(self) -> None:
        """Hand everything logged so far to the operating system."""
        self.experiment.flush()


class SavedCheckpoint(NamedTuple):
    """A checkpoint that was found and read."""

    path: Path
    content: dict[str, Any]
    run: Path | None  # the folder of its run, if it lies in one


def find_run(path: Path | str) -> Path | None:
    """Return the run folder that `path` is, or is a checkpoint of; None if there is none."""
    folders = (Path(path), *Path(path).parents[:2])
    return next((each for each in folders if (each / "run.json").is_file() or (each / "config.yaml").is_file()), None)


def newest_run(which: str) -> Path:
    """Return the newest run that has a checkpoint, one on generated images only if there is no other.

    Raises:
        InputError: There is none under logs/.
    """
    folders = {path.parent for path in Path("logs").glob("*/*/checkpoints/*.ckpt")}
    newest_first = sorted(folders, key=lambda folder: -folder.stat().st_mtime)
    if not newest_first:
        raise InputError(f"{which}: no run under logs/ has a checkpoint; train one with `train.py fit`")
    newest = newest_first[0].parent
    for folder in newest_first:
        run = folder.parent
        if not data_origin(run).startswith("generated"):
            if run != newest:
                print(f"{which}: {newest} has generated images, so the newest run is {run}", file=sys.stderr)
            return run
    return newest


def data_origin(run: Path) -> str:
    """Return what a run was trained on, as run.json says it; `unknown data` if it does not."""
    try:
        return str(read_manifest(run)["data"]["origin"])
    except (InputError, KeyError, TypeError):
        return "unknown data"


def open_checkpoint(which: str, prefer: str = "best") -> SavedCheckpoint:
    """Find and read a checkpoint: a .ckpt file, of a run's folder, or `best` or `last` of the newest run under logs/.

    Of a folder it is the preferred one, `best` or, to go on with it, `last`; or else the newest good one, which a
    line on stderr says. Raises an InputError if there is none that can be read.
    """
    if which in ("best", "last"):
        prefer, which = which, str(newest_run(which))
    if not Path(which).is_dir():
        return SavedCheckpoint(Path(which), checkpoint.read(which), find_run(which))
    found = Path(which, "checkpoints").glob("*.ckpt")
    files = sorted(found, key=lambda file: (file.stem != prefer, -file.stat().st_mtime))
    if prefer == "last":  # a run that was killed in its first epoch starts it again
        files += Path(which).glob(INITIAL_CHECKPOINT)
    for file in files:
        try:
            return SavedCheckpoint(file, checkpoint.read(file), find_run(file))
        except (InputError, StorageError) as error:
            if file == files[-1]:
                raise
            print(f"warning: {error}; trying an older one", file=sys.stderr)
    raise InputError(f"{which}: has no checkpoints/*.ckpt; give the folder of a run that saved one")
