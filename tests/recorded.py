"""Folders of runs, written by hand: what RunRecord leaves of a run, without the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softmax_regression.runs.record import update_manifest
from softmax_regression.runs.rows import ROWS_FILE, Row, RowsFile


def record(folder: Path, rows: Sequence[Row] = (), settings: Mapping[str, Any] | None = None, **manifest: Any) -> Path:
    """Write run.json and metrics.csv; `settings` are those of SoftmaxRegression."""
    folder.mkdir(parents=True)
    model = {"class_path": "softmax_regression.SoftmaxRegression", "init_args": settings or {}}
    update_manifest(folder, **{"status": "finished", "config": {"model": model}, **manifest})
    if rows:
        RowsFile(folder / ROWS_FILE).save(rows)
    return folder
