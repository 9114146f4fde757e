"""The output of the commands: scores, the summary of a run, the next commands to type."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from softmax_regression.data.module import origin_of
from softmax_regression.errors import InputError, shell_command
from softmax_regression.runs.folder import SavedCheckpoint
from softmax_regression.runs.loops import can_test
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.progress import metrics_text
from softmax_regression.runs.record import results, stop_reason, update_manifest


def summary(trainer: Trainer, run: Path | None) -> str:
    """Return the last lines of `fit`: why it stopped, the metrics, the checkpoints, the next commands to type."""
    lines = [stop_reason(trainer)]
    found = results(trainer)
    if "final" in found:
        row = found["final"]
        lines.append(f"last epoch {row['epoch']}: {metrics_text(row) or 'nothing was logged'}")
    if "best" in found:
        row = found["best"]
        lines.append(f"best epoch {row['epoch']}, by {row['monitor']}: {metrics_text(row)}")
    if not run:
        return "\n".join([*lines, "nothing is kept: there is no logger"])
    if not any(run.glob("checkpoints/*.ckpt")):
        return "\n".join([*lines, f"no checkpoint is kept in {run}"])
    lines += [f"checkpoints: {run / 'checkpoints'}", "next:"]
    if can_test(trainer):
        lines.append(f"  {shell_command('train.py', 'test', '--ckpt_path', str(run))}")
    lines.append(f"  {shell_command('study.py', 'report', str(run))}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        lines.append(f"  {shlex.join(['tensorboard', '--logdir', str(run.parent.parent)])}")
    return "\n".join(lines)


def what_is_scored(checkpoint: SavedCheckpoint, data: Any) -> str:
    """Return the names of the run, the checkpoint and the data as one line."""
    if checkpoint.run:
        return f"run {checkpoint.run}, checkpoint {checkpoint.path.name}, data {origin_of(data)}"
    return f"checkpoint {checkpoint.path}, data {origin_of(data)}"


def discard_unstarted(folders: Sequence[Path]) -> None:
    """Remove the folders of a run that made no step, if nothing was recorded or a mistake of the user ended it."""
    mistake = isinstance(sys.exception(), InputError)
    for folder in folders:
        if mistake or not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def record_scores(run: Path | None, trainer: Trainer, command: str, scores: Sequence[Mapping[str, float]]) -> None:
    """Print the scores of each loader; write them to run.json, unless only some of the batches were scored."""
    metrics: dict[str, float] = {}
    for row in scores:
        metrics.update(row)
    print_rank_zero(metrics_text(metrics) or "nothing was logged")
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    everything = isinstance(limit, float) and limit == 1  # an int counts batches
    if run and everything and trainer.is_global_zero and not trainer.barebones:  # which logs nothing
        update_manifest(run, **{command: metrics})
