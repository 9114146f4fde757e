"""The manifest run.json: what was run, on what, how it ended, and how well it did."""

import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from softmax_regression.errors import DivergedError, InputError, StorageError, format_error
from softmax_regression.files import write
from softmax_regression.runs.callbacks import EarlyStopping, folder_of
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.trust import path_of, refused

Row = Mapping[str, float]


def check_there(run: Path) -> None:
    """Refuse to write a run's folder anew, if somebody has moved or deleted it."""
    if not run.is_dir():
        raise StorageError(f"{run}: has been moved or deleted; put it back, then go on with --resume")


def read_manifest(run: Path) -> dict[str, Any]:
    """Read run.json, or return nothing of it if there is none yet; raise an InputError if it is no JSON object."""
    path = run / "run.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a manifest ({error}); delete it") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a manifest (it holds a {type(manifest).__name__}); delete it")
    return manifest


def update_manifest(run: Path, **entries: Any) -> None:
    """Add entries to run.json, or replace them."""
    write(json.dumps(read_manifest(run) | entries, indent=2, default=str).encode(), run / "run.json")


def environment() -> dict[str, Any]:
    """Return what a result depends on beside the configuration: commit, versions, machine, command."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit, versions = None, {"python": platform.python_version()}
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(git, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    for name in ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "softmax-regression"):
        with suppress(ImportError):  # a copy of the folder that was never installed
            versions[name] = version(name)
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    installed = "softmax" in Path(sys.argv[0]).stem or Path(sys.argv[0]).parent.name == "softmax_regression"
    command = shlex.join(["softmax-regression", *sys.argv[1:]] if installed else ["python", *sys.argv])
    return {"git": commit, "versions": versions, "machine": machine, "command": command}


def best_epoch(history: Sequence[Row], monitor: str = "val/loss", mode: str = "min") -> Row:
    """Return the row with the best value of a metric, the first of equals; nothing if no row has one."""
    sign = 1 if mode == "min" else -1
    return min((row for row in history if monitor in row), key=lambda row: sign * row[monitor], default={})


def results(trainer: Trainer, history: Sequence[Row] = ()) -> dict[str, Row]:
    """Return the row of the last epoch and that of the best checkpoint; without a history, what was logged."""
    history = history or getattr(trainer.lightning_module, "history", ())
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    monitor = {"monitor": str(kept[0].monitor), "mode": kept[0].mode} if kept else {}
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"final": history[-1] if history else logged, "best": best_epoch(history, **monitor)}


def stop_reason(trainer: Trainer) -> str:
    """Say why a run that came to its end did so."""
    for callback in trainer.early_stopping_callbacks:
        if message := callback.stopping_reason_message:
            why = message.partition(". ")[0].removeprefix("Monitored metric ")
            why = why.replace(" in the last ", " for ").replace(" records", " validations")
            ours = isinstance(callback, EarlyStopping)
            return f"early stopping: {why}" + "; --early_stopping.patience 0 trains on" * ours
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"max_steps={trainer.max_steps} reached"
    if trainer.max_epochs and 0 < trainer.max_epochs <= trainer.current_epoch:
        return f"max_epochs={trainer.max_epochs} reached"
    left = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
    timed_out = any(seconds is not None and seconds <= 0 for seconds in left)
    return "max_time is used up" if timed_out else "a callback stopped the run"


def init_args(kind: type, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a class that it takes: its parent saves its own, too, which need not be among them."""
    parameters = inspect.signature(kind).parameters
    hparams = {name: value for name, value in hparams.items() if not name.startswith("_")}  # LightningCLI's own
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in hparams.items() if takes_any or name in parameters}


def _described(trainer: Trainer, pl_module: LightningModule) -> str:
    """Return the configuration of a run that was started from Python, as `train.py --config` takes it."""
    stopping = trainer.early_stopping_callbacks
    patience = {"patience": stopping[0].patience if stopping else 0}
    parts: dict[str, Any] = {"trainer": {"max_epochs": trainer.max_epochs}, "early_stopping": patience}
    for name, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
        if part is not None:
            given = init_args(type(part), part.hparams_initial)
            parts[name] = {"class_path": path_of(type(part)), "init_args": given}
    parts["seed_everything"] = parts.get("data", {}).get("init_args", {}).pop("seed", 0)  # linked there
    return yaml.safe_dump(json.loads(json.dumps(parts, default=str)), sort_keys=False)


class RunRecord(Callback):
    """Keep run.json and config.yaml in the run's folder, and in each checkpoint what a command needs of it.

    Args:
        config: The configuration of the run, as YAML; None to take it from model, data and Trainer.
        seed: The seed of the run; None for what `seed_everything` has set.
    """

    def __init__(self, config: str | None = None, seed: int | None = None) -> None:
        self.config, self.seed = config, seed
        self.run: Path | None = None  # on the first process, if there is a logger

    def _update(self, **entries: Any) -> None:
        if self.run:
            check_there(self.run)
            update_manifest(self.run, **entries)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record everything that is known before the first step."""
        self._start, folder = time.perf_counter(), folder_of(trainer)
        self.run = folder if trainer.is_global_zero else None
        self.config = self.config or _described(trainer, pl_module)
        if path_of(type(pl_module)).startswith("__main__."):
            print_rank_zero(f"note: {refused(path_of(type(pl_module)))}", file=sys.stderr)
        seed = os.environ.get("PL_GLOBAL_SEED") if self.seed is None else self.seed
        data = getattr(trainer.datamodule, "loaded", None)  # type: ignore[attr-defined]
        known: dict[str, Any] = {"status": "running", "stopped": None, "seed": seed and int(seed)}
        known["started"] = datetime.now(UTC).isoformat(timespec="seconds")
        known["config"] = yaml.safe_load(str(self.config))
        known["device"] = {"type": str(trainer.strategy.root_device), "count": trainer.world_size}
        known["data"] = {"origin": data.origin, "sha256": data.sha256} if data else {}
        if self.run:
            self._update(**known, threads=torch.get_num_threads(), **environment())
            write(str(self.config).encode(), self.run / "config.yaml")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results."""
        seconds = round(time.perf_counter() - self._start, 3)
        self._update(status="finished", stopped=stop_reason(trainer), seconds=seconds, **results(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, the classes of model and data, and what was trained on."""
        if self.run:
            check_there(self.run)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        known = {"config": self.config, "threads": torch.get_num_threads(), "model": path_of(type(pl_module))}
        known["data"] = path_of(type(datamodule)) if datamodule else None
        known["sha256"] = getattr(getattr(datamodule, "loaded", None), "sha256", None)
        checkpoint["run"] = known

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run did not come to its end."""
        if self.run and (self.run / "run.json").exists():
            status = "diverged" if isinstance(exception, DivergedError) else "interrupted"
            with suppress(InputError, StorageError):  # if the disk is full, `exception` says so already
                self._update(status=status, stopped=format_error(exception))
