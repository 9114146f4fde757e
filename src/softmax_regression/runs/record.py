"""The manifest run.json: what was run, on what, how it ended, and how well it did."""

import json
import math
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
from textwrap import indent
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import write
from softmax_regression.runs.stopping import EarlyStopping

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "softmax-regression")


def read_manifest(run: Path) -> dict[str, Any]:
    """Read run.json, or return nothing of it if there is none yet.

    Raises:
        InputError: It is not a JSON object.
    """
    path = run / "run.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a manifest ({error}); delete it") from error
    return manifest


def update_manifest(run: Path, **entries: Any) -> None:
    """Add entries to run.json, or replace them."""
    manifest = read_manifest(run) | entries
    write(json.dumps(manifest, indent=2, default=str).encode(), run / "run.json")


def environment() -> dict[str, Any]:
    """Return what a result depends on beside the configuration: commit, versions, machine."""
    return {
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": shlex.join(["python", *sys.argv]),
    }


def _version(package: str) -> str | None:
    with suppress(ImportError):  # a copy of the folder that was never installed
        return version(package)
    return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def best_epoch(
    history: Sequence[Mapping[str, float]], monitor: str = "val/loss", mode: str = "min"
) -> Mapping[str, float]:
    """Return the row with the best value of a metric, the first of equals; nothing if no row has one."""
    rows = [row for row in history if monitor in row]
    sign = 1 if mode == "min" else -1
    return min(rows, key=lambda row: sign * row[monitor], default={})


def stop_reason(trainer: Trainer) -> str:
    """Say why a run that came to its end did so."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and (why := callback.stopped()):
            return why
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"max_steps={trainer.max_steps} reached"
    if trainer.max_epochs and 0 < trainer.max_epochs <= trainer.current_epoch:
        return f"max_epochs={trainer.max_epochs} reached"
    return "a callback stopped the run"  # Timer, an EarlyStopping of Lightning's own, ...


def class_path(thing: object) -> str:
    """Return the name by which a class can be imported."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class RunRecord(Callback):
    """Keep run.json and config.yaml in the run's folder, and in each checkpoint the classes that it needs.

    Args:
        config: The configuration of the run, as YAML; None to take it from model, data and Trainer.
        seed: The seed of the run; None for what `seed_everything` set.
    """

    def __init__(self, config: str | None = None, seed: int | None = None) -> None:
        self.config, self.seed = config, seed
        self.run: Path | None = None
        self._start = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder; without a logger there is none, and no manifest."""
        log_dir = trainer.log_dir
        if stage == "fit" and trainer.loggers and trainer.is_global_zero and log_dir:
            self.run = Path(log_dir)

    def _described(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """The configuration of a run that was started from Python, as `train.py --config` takes it."""
        parts: dict[str, Any] = {"seed_everything": self.seed, "trainer": {"max_epochs": trainer.max_epochs}}
        for name, part in (("model", pl_module), ("data", trainer.datamodule)):  # type: ignore[attr-defined]
            if part is not None:
                parts[name] = {"class_path": class_path(part), "init_args": dict(part.hparams_initial)}
        return yaml.safe_dump(json.loads(json.dumps(parts, default=str)), sort_keys=False)

    def _update(self, **entries: Any) -> None:
        if self.run and self.run.is_dir():
            update_manifest(self.run, **entries)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record everything that is known before the first step."""
        if not self.run:
            return
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        self.config = self.config or self._described(trainer, pl_module)
        write(self.config.encode(), self.run / "config.yaml")
        data = getattr(trainer.datamodule, "loaded", None)  # type: ignore[attr-defined]
        self._start = time.perf_counter()
        self._show(trainer)
        self._update(
            status="running",
            stopped=None,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=self.seed,
            config=yaml.safe_load(self.config),
            device={"type": str(trainer.strategy.root_device), "count": trainer.world_size},
            threads=torch.get_num_threads(),
            data={"origin": data.origin, "sha256": data.sha256} if data else {},
            **environment(),
        )

    def _show(self, trainer: Trainer) -> None:
        """Put command and configuration on TensorBoard's page TEXT, as Markdown's preformatted text."""
        texts = {"command": shlex.join(["python", *sys.argv]), "configuration": str(self.config)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for tag, text in texts.items():
                    logger.experiment.add_text(tag, indent(text, "    "))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results."""
        self._update(
            status="finished",
            stopped=stop_reason(trainer),
            seconds=round(time.perf_counter() - self._start, 3),
            **results(trainer, pl_module),
        )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the classes of model and data, by which a command opens the checkpoint, and what was trained on."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        data = getattr(datamodule, "loaded", None)
        checkpoint["run"] = {
            "model": class_path(pl_module),
            "data": class_path(datamodule) if datamodule else None,
            "sha256": data.sha256 if data else None,
            "threads": torch.get_num_threads(),
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run did not come to its end."""
        if self.run and (self.run / "run.json").exists():
            stopped = " ".join(f"{type(exception).__name__}: {exception}".split())
            status = "diverged" if type(exception).__name__ == "DivergedError" else "interrupted"
            with suppress(StorageError):  # if the disk is full, that is what `exception` says already
                self._update(status=status, stopped=stopped)


def results(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the metrics of the last epoch and of the best one."""
    history = getattr(pl_module, "history", None)
    if not history:
        return {"final": {name: float(value) for name, value in trainer.callback_metrics.items()}, "best": {}}
    monitored = next((c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
    monitor, mode = (monitored.monitor, monitored.mode) if monitored else ("val/loss", "min")  # type: ignore[attr-defined]
    return {"final": history[-1], "best": best_epoch(history, monitor, mode)}
