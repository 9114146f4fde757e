"""Early stopping and the best checkpoint, and the folder of a run."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from softmax_regression.errors import InputError
from softmax_regression.files import write
from softmax_regression.runs.loops import is_epoch_over, steps_done
from softmax_regression.runs.processes import print_rank_zero

C = TypeVar("C", bound=Callback)
Mode = Literal["min", "max"]
AS_EARLY_STOPPING = "early_stopping"  # as the monitor of BestCheckpoint: what early stopping watches
DEFAULT_MONITOR = "val/loss"  # a Classifier logs it; another module need not


def as_list(value: Any) -> list[Any]:
    """Return one object, several or none, as an option or a hook gives them, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def callbacks_of(trainer: Trainer, kind: type[C] | tuple[type[C], ...]) -> list[C]:
    """Return the callbacks of a Trainer that are of a class, in their order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def leading_early_stopping(trainer: Trainer) -> callbacks.EarlyStopping | None:
    """Return the EarlyStopping that best.ckpt follows: this project's, if it may stop the run, or else the first."""
    for callback in callbacks_of(trainer, EarlyStopping):
        if callback.patience != sys.maxsize:
            return callback
    return next(iter(trainer.early_stopping_callbacks), None)


def folder_of(trainer: Trainer) -> Path | None:
    """Return the folder of a run, that of its RunLogger or another TensorBoardLogger, or else of its first logger.

    A logger without a `log_dir`, such as Weights & Biases', has it where ModelCheckpoint has the folder of its
    checkpoints. All processes must call this.
    """
    if not trainer.loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    boards.sort(key=lambda logger: not hasattr(logger, "reopen"))  # a RunLogger comes first
    logger: Any = [*boards, *trainer.loggers][0]
    folder = getattr(logger, "log_dir", None)
    if folder is None:
        getattr(logger, "experiment", None)  # some know their version only once it has begun
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(folder))


def logged_name(monitor: str, trainer: Trainer) -> str:
    """Return the name under which a metric is logged; of several validation loaders, that of the first one."""
    names = [monitor, f"{monitor}/dataloader_idx_0"]
    loaders = trainer.val_dataloaders
    if isinstance(loaders, dict) and monitor.startswith("val/"):
        names.append(monitor.replace("val", next(iter(loaders)), 1))
    for name in names:
        if name in trainer.callback_metrics:
            return name
    return monitor


def find_moved_checkpoints(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let each ModelCheckpoint of a resumed run know its files by the present name of their folder.

    It would forget them if that has changed, be it from a relative path to an absolute one.
    """
    folders = Path(str(trainer.ckpt_path)).resolve().parents
    for callback in callbacks_of(trainer, callbacks.ModelCheckpoint):
        state = states.get(callback.state_key, {})  # a subclass may have one of its own
        if "dirpath" in state and Path(str(callback.dirpath)).resolve() in folders:
            states[callback.state_key] = _moved(state, str(state["dirpath"]), str(callback.dirpath))


def _moved(state: Any, before: str, now: str) -> Any:
    """Return the state of a ModelCheckpoint with another folder in its paths."""
    if isinstance(state, dict):
        return {_moved(name, before, now): _moved(value, before, now) for name, value in state.items()}
    return state.replace(before, now, 1) if isinstance(state, str) else state


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, on the validation loss, whose patience may be changed when a run is resumed.

    Args:
        monitor: The metric that has to improve.
        patience: Validations without improvement after which the run stops; 0 for never.
        min_delta: The least change that counts as improvement.
        mode: `min` if less is better, `max` if more is.
    """

    flag_group = "early_stopping"  # of its arguments on the command line
    state_key = ""  # a property in Lightning, which changes with the monitor; here it stays as it was made

    def __init__(
        self, monitor: str = DEFAULT_MONITOR, patience: int = 3, min_delta: float = 0.0, mode: Mode = "min"
    ) -> None:
        if patience < 0:
            raise InputError(f"early_stopping.patience={patience}: must be at least 1, or 0 for never to stop")
        at_epoch_end = True if monitor.startswith("train") else None  # None: Lightning decides in `setup`
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=at_epoch_end)
        self.given_monitor = monitor
        self.state_key = super().state_key
        self._before_off: tuple[int, bool, bool] | None = None  # patience, strict, check_finite; see `_check_default`
        if not patience:
            self.switch_off()

    def switch_off(self) -> None:
        """Never stop, whatever is logged."""
        self.patience = sys.maxsize
        self.strict = False
        self.check_finite = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose whether to check after validations or epochs; Lightning fails if validations are timed.

        The first training of a Trainer begins anew: the callback may have been used by another Trainer.
        """
        if stage == "fit" and not trainer.global_step:
            self._begin_anew()
        if not hasattr(trainer, "val_check_interval"):
            self._check_on_train_epoch_end = False
        super().setup(trainer, pl_module, stage)

    def _begin_anew(self) -> None:
        """Forget another run; the state of a resumed run is loaded later."""
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        self.stopping_reason = callbacks.early_stopping.EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = None
        if self._before_off:
            self.patience, self.strict, self.check_finite = self._before_off
            self._before_off = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, unless it is the default one and the module does not log it."""
        self.monitor = logged_name(self.monitor, trainer)
        self._check_default(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, unless the epoch was ended early: the resumed run checks it at the end."""
        if self._check_on_train_epoch_end and is_epoch_over(trainer):
            self._check_default(trainer)
            super().on_train_epoch_end(trainer, pl_module)

    def _check_default(self, trainer: Trainer) -> None:
        """Switch off if the monitor is the default one and a validation in training has not logged it."""
        in_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        is_missing = self.monitor == DEFAULT_MONITOR and self.monitor not in trainer.callback_metrics
        if in_training and is_missing and self.strict:
            self._before_off = self.patience, self.strict, self.check_finite
            self.switch_off()
            print_rank_zero(f"no early stopping: nothing logs {DEFAULT_MONITOR}; choose with --early_stopping.monitor")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the best score and the number of epochs without improvement, but not the patience."""
        self.wait_count = state_dict["wait_count"]
        self.best_score = state_dict["best_score"]


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep checkpoints/best.ckpt, the weights of the epoch with the best value so far of a metric.

    Args:
        monitor: The metric; `early_stopping` for the one that early stopping watches, or the validation loss if there
            is no early stopping; null to keep no best.ckpt.
        mode: `min` if less is better, `max` if more is; null for that of early stopping, if it watches the same
            metric, or else `min`.

    Attributes:
        best: What best.ckpt holds: `epoch`, from 1, `step`, `monitor` and its `score`; None if there is none.
    """

    flag_group = "best_checkpoint"  # of its arguments on the command line
    state_key = ""  # a property in Lightning, which changes with the monitor; here it stays as it was made

    def __init__(self, monitor: str | None = AS_EARLY_STOPPING, mode: Mode | None = None) -> None:
        self.best: dict[str, Any] | None = None
        self.given_monitor = monitor
        self.given_mode = mode
        self._has_validated = False
        self._watch(monitor, mode or "min")
        self.state_key = super().state_key

    def _watch(self, monitor: str | None, mode: str) -> None:
        """Set the monitor and the mode, as Lightning's `__init__` does."""
        at_epoch_end = True if monitor and monitor.startswith("train") else None
        options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": at_epoch_end}
        super().__init__(filename="best", monitor=monitor, mode=mode, save_top_k=1 if monitor else 0, **options)

    def follow_early_stopping(self, trainer: Trainer) -> None:
        """Take the monitor and the mode of early stopping where none was given."""
        stopping = leading_early_stopping(trainer)
        monitor = self.monitor
        if monitor == AS_EARLY_STOPPING:
            monitor = stopping.monitor if stopping else DEFAULT_MONITOR
        mode: str = self.given_mode or "min"
        if self.given_mode is None and stopping and stopping.monitor == monitor:
            mode = stopping.mode
        if (monitor, mode) != (self.monitor, self.mode):
            self._watch(monitor, mode)

    def switch_off(self) -> None:
        """Keep no best.ckpt in the runs that begin from now on."""
        self.given_monitor = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the monitor and the folder; without a folder nothing is kept.

        The first training of a Trainer begins anew: the callback may have been used by another Trainer.
        """
        if stage == "fit":
            if not trainer.global_step:  # the state of a resumed run is loaded later
                self.best = None
                self._has_validated = False
                self._watch(self.given_monitor, self.given_mode or "min")
            self.follow_early_stopping(trainer)
            folder = folder_of(trainer)
            if folder:
                self.dirpath = str(folder / "checkpoints")
            else:
                self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric is better, unless it is the default one and the module does not log it."""
        if self.monitor:
            self.monitor = logged_name(self.monitor, trainer)
        self._has_validated = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self._has_validated:
            self._check_logged(trainer)
        with self._best_is_kept_on_error():
            super().on_validation_end(trainer, pl_module)

    def _check_logged(self, trainer: Trainer) -> None:
        """Switch off and print a line if nothing logs the default metric.

        Raises:
            InputError: At the end of an epoch, nothing has logged a metric that is not the default one.
        """
        if self.monitor in (None, *trainer.callback_metrics, "epoch", "step"):
            return
        if self.monitor == DEFAULT_MONITOR:
            self.monitor = None  # in this run
            self.save_top_k = 0
            print_rank_zero(f"no best.ckpt: nothing logs {DEFAULT_MONITOR}; choose with --best_checkpoint.monitor")
        elif not trainer.validating:
            logged = ", ".join(trainer.callback_metrics)
            raise InputError(f"best_checkpoint.monitor={self.monitor}: nothing logs it; choose one of {logged}")

    # It saves after validations or epochs; with the empty hook, the engine skips the call at each step.
    on_train_batch_end = Callback.on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the epoch was ended early, before a validation.

        Raises:
            InputError: Nothing logs the metric.
        """
        if self.monitor in (*trainer.callback_metrics, "epoch", "step"):
            with self._best_is_kept_on_error():
                super().on_train_epoch_end(trainer, pl_module)
        elif self._has_validated or not trainer.enable_validation or trainer.val_dataloaders in ([], {}):
            self._check_logged(trainer)

    @contextmanager
    def _best_is_kept_on_error(self) -> Iterator[None]:
        """Set `best` back if best.ckpt could not be saved."""
        before = self.best
        try:
            yield
        except BaseException:
            self.best = before
            raise

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether to save now; if so, set `best`."""
        better = super().check_monitor_top_k(trainer, current)
        if better and current is not None:
            self.best = {"epoch": trainer.current_epoch + 1, "step": steps_done(trainer)}
            self.best |= {"monitor": self.monitor, "score": float(current)}
        return better

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take best.ckpt along if a resumed run continues in another folder, as with a logger that makes a new one."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        here = Path(str(self.dirpath), "best.ckpt")
        if trainer.state.fn != "fit" or not state.get("best") or not self.dirpath or here.exists():
            return
        for before in (Path(str(trainer.ckpt_path)).with_name("best.ckpt"), Path(state["best_model_path"])):
            if trainer.is_global_zero and before.is_file() and not here.exists():
                write(before.read_bytes(), here)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and `best`."""
        return super().state_dict() | {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load `best` and Lightning's state, with the path of best.ckpt where the folder is now."""
        self.best = state_dict.get("best")
        self.current_score = state_dict.get("current_score")
        super().load_state_dict(_moved(state_dict, str(state_dict["dirpath"]), str(self.dirpath)))
