"""The record of a run: run.json (what was run, on what, how it ended, its scores), metrics.csv and config.yaml."""

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
from lightning.pytorch.callbacks import BaseFinetuning, Timer

from softmax_regression.data.module import loaded_images, origin_of
from softmax_regression.errors import DivergedError, InputError, StorageError, format_error
from softmax_regression.files import check_not_moved, write
from softmax_regression.runs.callbacks import BestCheckpoint, EarlyStopping, callbacks_of, folder_of
from softmax_regression.runs.checkpoint import RUN, about_run
from softmax_regression.runs.events import mark_saved
from softmax_regression.runs.loops import steps_done
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.rows import Row, RowCallback, count_logged_rows, read_rows, row_collector, rows_file
from softmax_regression.runs.settings import add_found_values, class_path_of, describe_run, hyperparameters_of


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the content of run.json, empty if there is no such file; an InputError if it is no JSON object."""
    path = run / "run.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a manifest ({error}); delete it") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a manifest (it holds a {type(manifest).__name__}); delete it")
    for name in ("best", "config", "data", "test"):
        entry = manifest.get(name) or {}
        if not isinstance(entry, dict):
            raise InputError(f"{path}: not a manifest ({name} is a {type(entry).__name__}); delete it")
    return manifest


def update_manifest(run: Path, without: Sequence[str] = (), /, **entries: Any) -> None:
    """Add entries to run.json, or replace or remove them; NaN and infinity, which JSON does not have, become null."""
    kept = {name: value for name, value in read_manifest(run).items() if name not in without}
    text = json.dumps(kept | entries, default=str)
    manifest = json.loads(text, parse_constant=lambda constant: None)
    write(json.dumps(manifest, indent=2).encode(), run / "run.json")


def environment() -> dict[str, Any]:
    """Return what a result depends on, apart from the configuration: commit, versions, machine, command."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit, versions = None, {"python": platform.python_version()}
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(git, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    for name in ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "softmax-regression"):
        with suppress(ImportError):  # a copy of the folder that was never installed
            versions[name] = version(name)
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    program = Path(sys.argv[0])
    installed = program.stem == "softmax-regression" or program.parent.name == "softmax_regression"
    command = shlex.join(["softmax-regression", *sys.argv[1:]] if installed else ["python", *sys.argv])
    return {"git": commit, "versions": versions, "machine": machine, "command": command}


def results(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return `final`, the last row of a run, and `best`, the row that best.ckpt holds; each only if there is one."""
    rows: list[Row] = []
    best = None
    for collector in callbacks_of(trainer, RowCallback):
        rows = collector.rows
    for checkpoint in callbacks_of(trainer, BestCheckpoint):
        best = checkpoint.best
    return _final_and_best(rows, best)


def saved_best(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the value of `BestCheckpoint.best` that a checkpoint has saved."""
    best = None
    for name, state in saved.get("callbacks", {}).items():
        if name.startswith("BestCheckpoint"):  # the state of another callback may hold anything
            best = state.get("best", best)
    return best


def saved_results(run: Path, saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the `results` of a run at the step at which it saved a checkpoint."""
    rows = [row for row in read_rows(run) if row["step"] <= saved_step(saved)]
    return _final_and_best(rows, saved_best(saved))


def _final_and_best(rows: Sequence[Row], best: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if rows:
        found["final"] = dict(rows[-1])
    if best:
        found["best"] = dict(best)
        for row in rows:
            if row["step"] == best["step"]:
                found["best"] = {**row, **best}
    return found


def saved_step(saved: Mapping[str, Any]) -> int:
    """Return the number of steps at which a checkpoint was saved, see `steps_done`."""
    return int(about_run(saved).get("step", saved["global_step"]))


def stop_reason(trainer: Trainer) -> str:
    """Return in words why a run ended."""
    for callback in trainer.early_stopping_callbacks:
        message = callback.stopping_reason_message
        if message:  # Monitored metric val/loss did not improve in the last 3 records. Best score: ...
            why = message.partition(". ")[0].removeprefix("Monitored metric ")
            remedy = "; --early_stopping.patience 0 trains on" if isinstance(callback, EarlyStopping) else ""
            return f"early stopping: {why}{remedy}"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"max_steps={trainer.max_steps} reached"
    if trainer.max_epochs and 0 < trainer.max_epochs <= trainer.current_epoch:
        return f"max_epochs={trainer.max_epochs} reached"
    if trainer.num_training_batches == 0:
        return "there are no training batches"
    left = [timer.time_remaining() for timer in callbacks_of(trainer, Timer)]
    timed_out = any(seconds is not None and seconds <= 0 for seconds in left)
    return "max_time is used up" if timed_out else "a callback stopped the run"


def _restore_frozen(module: LightningModule, names: Sequence[str] | None) -> None:
    """Freeze what was frozen in a checkpoint, and nothing else: a hook may freeze everything as a run begins."""
    if names is None:
        return
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in names


class RunRecord(Callback):
    """Write run.json, metrics.csv and config.yaml, and add to each checkpoint what commands need to open it.

    Args:
        config: The configuration of the run; None to take it from model, data and Trainer, for each run.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}
        self._describes_itself = config is None
        self.run: Path | None = None  # on the first process, if there is a logger
        self._text = ""  # `config` as YAML, once the training begins
        self._missing: dict[str, list[str]] = {}  # of a run from Python, see `describe_run`
        self._saved: Mapping[str, Any] | None = None  # parts of the checkpoint of a resumed run

    def _update(self, **entries: Any) -> None:
        """Add entries to run.json, and remove the scores of checkpoints that this training replaces."""
        if self.run:
            check_not_moved(self.run)
            update_manifest(self.run, ("test", "validate"), **entries)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the number of steps of a resumed run, which says how many rows it has."""
        self._saved = {RUN: about_run(checkpoint), "global_step": checkpoint["global_step"]}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record everything that is known before the first step."""
        rows = row_collector(trainer, self)
        self._start = time.perf_counter()
        folder = folder_of(trainer)
        before, self.run = self.run, None
        if folder and trainer.is_global_zero:
            if folder != before and not self._saved and (folder / "run.json").exists():
                raise InputError(f"{folder}: is another run's; give the logger another name or version")
            self.run = folder
        if self._describes_itself:
            self.config, self._missing = describe_run(trainer, pl_module)
        add_found_values(self.config, trainer, pl_module)
        self._text = yaml.safe_dump(self.config, sort_keys=False)
        finetunes = callbacks_of(trainer, BaseFinetuning)
        if self._saved and (finetunes or not self._describes_itself):  # a script may freeze other parts than before
            _restore_frozen(pl_module, about_run(self._saved).get("frozen"))
        if type(pl_module).__module__ == "__main__":
            note = "is in a script or notebook; no command opens its runs until it is in a module"
            print_rank_zero(f"note: class {class_path_of(type(pl_module))}: {note}", file=sys.stderr)
        for name in self._missing.get("missing_arguments", []):
            note = f"{name} is saved nowhere; give --{name} to commands that open this run"
            print_rank_zero(f"note: {note}", file=sys.stderr)
        rows.file = None
        if self.run:
            write(self._text.encode(), self.run / "config.yaml")  # some loggers have made no folder
            self._update(**self._facts(trainer), **environment())
            rows.file = rows_file(self.run, trainer.loggers)
        if folder and self._saved and trainer.ckpt_path:
            rows.restore(trainer, folder, saved_step(self._saved), about_run(self._saved).get("rows", {}))
        self._saved = None

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        """Return the entries of run.json that are known as the training begins."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        data = {"origin": origin_of(datamodule) if datamodule else "DataLoaders of a script"}
        images = loaded_images(datamodule)
        if images:
            data["sha256"] = images.sha256
        return {
            "status": "running",
            "stopped": None,
            "seed": seed and int(seed),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": self.config,
            "device": {"type": str(trainer.strategy.root_device), "count": trainer.world_size},
            "data": data,
            "threads": torch.get_num_threads(),
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the results."""
        seconds = round(time.perf_counter() - self._start, 3)
        self._update(status="finished", stopped=stop_reason(trainer), seconds=seconds, **results(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, the classes of model and data, the SHA-256 of the data, and the number of steps."""
        if self.run:
            check_not_moved(self.run)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint[RUN] = {
            "config": self._text,
            "threads": torch.get_num_threads(),
            "model": class_path_of(type(pl_module)),
            "data": class_path_of(type(datamodule)) if datamodule else None,
            "sha256": getattr(loaded_images(datamodule), "sha256", None),
            "step": steps_done(trainer),
            "batches": trainer.fit_loop.total_batch_idx,
            "rows": row_collector(trainer, self).saved(trainer),
            "frozen": [name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad],
            "buffers": [name for name, _ in pl_module.named_buffers()],
            **self._missing,
        }
        if not self._describes_itself:
            for part, group in (pl_module, "model"), (datamodule, "data"):
                if part is not None and checkpoint.get(part.CHECKPOINT_HYPER_PARAMS_NAME) == "kwargs":
                    checkpoint[part.CHECKPOINT_HYPER_PARAMS_KEY] = hyperparameters_of(self.config[group])
        if trainer.is_global_zero:
            mark_saved(trainer.loggers, steps_done(trainer), checkpoint[RUN]["batches"])
            checkpoint[RUN]["csv_rows"] = count_logged_rows(trainer.loggers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the training was interrupted or diverged."""
        if self.run and trainer.state.fn == "fit" and (self.run / "run.json").exists():
            status = "diverged" if isinstance(exception, DivergedError) else "interrupted"
            with suppress(InputError, StorageError):  # if the disk is full, `exception` says so already
                self._update(status=status, stopped=format_error(exception), **results(trainer))
