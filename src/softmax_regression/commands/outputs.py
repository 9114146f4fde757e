"""What the commands say in the end and record: scores, the summary of a run, what to type next."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from softmax_regression.data.datasets import Dataset
from softmax_regression.data.photos import Photos
from softmax_regression.errors import InputError, shell_command
from softmax_regression.runs.folder import SavedCheckpoint
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.progress import metrics_text
from softmax_regression.runs.record import results, stop_reason, update_manifest


def summary(trainer: Trainer, run: Path | None) -> str:
    """Return what `fit` says in the end: why it stopped, the metrics, the checkpoints, what to type next."""
    lines = [stop_reason(trainer)]
    words = {"final": "last epoch", "best": "best epoch"}
    for name, row in results(trainer).items():
        if row:
            epoch = row.get("epoch", trainer.current_epoch)
            chosen = f", by {row['monitor']}" if name == "best" else ""
            lines.append(f"{words[name]} {epoch}{chosen}: {metrics_text(row)}")
    if not run:
        return "\n".join([*lines, "nothing is kept: there is no logger"])
    return "\n".join([
        *lines,
        f"checkpoints: {run / 'checkpoints'}",
        "next:",
        f"  {shell_command('train.py', 'test', '--ckpt_path', str(run))}",
        f"  {shell_command('study.py', 'report', str(run))}",
        f"  {shlex.join(['tensorboard', '--logdir', str(run.parent.parent)])}",
    ])  # fmt: skip


def what_is_scored(checkpoint: SavedCheckpoint, data: Any) -> str:
    """Name run, checkpoint and data."""
    origin = type(data).__name__
    for part in (getattr(data, "data", None), getattr(data, "photos", None)):
        if isinstance(part, Dataset | Photos):  # of this project
            origin = part.origin
    if checkpoint.run:
        return f"run {checkpoint.run}, checkpoint {checkpoint.path.name}, data {origin}"
    return f"checkpoint {checkpoint.path}, data {origin}"


def discard_unstarted(folders: Sequence[Path]) -> None:
    """Remove the folders of a run that made no step and is not worth going on with, for a mistake of the user's."""
    mistake = isinstance(sys.exception(), InputError)
    for folder in folders:
        if mistake or not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def record_scores(run: Path | None, trainer: Trainer, command: str, scores: Sequence[Mapping[str, float]]) -> None:
    """Print the scores of a command, a dictionary for each loader; keep them in run.json if they are of all batches."""
    metrics: dict[str, float] = {}
    for row in scores:
        metrics.update(row)
    print_rank_zero(metrics_text(metrics))
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    everything = isinstance(limit, float) and limit == 1  # an int counts batches
    if run and everything and trainer.is_global_zero:
        update_manifest(run, **{command: metrics})
