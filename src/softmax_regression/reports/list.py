"""A table of all runs, as wide as the terminal.

Command: python study.py list
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from softmax_regression.errors import InputError, shell_command
from softmax_regression.reports.reading import Run, held_out_metrics, read_run, unusual_settings
from softmax_regression.runs.rows import ROWS_FILE, split_metric


def list_runs(logs: Path = Path("logs")) -> str:
    """Return a table of all runs, the oldest first: state, scores of the best epoch, and unusual settings.

    Args:
        logs: The folder of all experiments.

    Raises:
        InputError: There are no runs.
    """
    runs = _all_runs(logs)
    place = Path(os.path.commonpath([run.folder.parent for run in runs]))
    scores = [run.scores for run in runs]
    details = _details(runs)
    columns = [["run"], ["state"], ["epoch"]]
    for run in runs:
        columns[0].append(str(run.folder.relative_to(place)))
        columns[1].append(run.state)
        columns[2].append(str(run.best.get("epoch", "")))
    width = shutil.get_terminal_size().columns  # 80 if the output is no terminal
    for metric in _most_frequent_first(scores):
        values = [_format(of_run.get(metric)) for of_run in scores]
        column = [metric, *values]
        if len(_lines([*columns, column])[0]) <= width:
            columns.append(column)
            continue
        for words, value in zip(details, values, strict=True):
            if value:
                words.insert(0, f"{metric} {value}")
    head, *rows = _lines(columns)
    lines = [f"runs in {place}:", head]
    wrapper = TextWrapper(width, "    ", "    ", break_long_words=False, break_on_hyphens=False)
    for row, words in zip(rows, details, strict=True):
        lines.append(row.rstrip())
        lines += wrapper.wrap("  ".join(words))
    return "\n".join(lines)


def _all_runs(logs: Path) -> list[Run]:
    """Return the runs below a folder, the oldest first."""
    folders: set[Path] = set()
    for name in ("run.json", "config.yaml"):
        folders.update(path.parent for path in logs.rglob(name))
    if not folders:
        raise InputError(f"{logs}: has no runs; train one with `{shell_command('train.py', 'fit')}`")
    runs = list(map(_read, sorted(folders)))
    runs.sort(key=_start_time)
    return runs


def _start_time(run: Run) -> str:
    return str(run.manifest.get("started", ""))


def _read(folder: Path) -> Run:
    """Read a run; its state is `damaged` if its files cannot be read."""
    try:
        return read_run(folder)
    except InputError:
        return Run(folder, {"status": "damaged"}, [], {})


def _most_frequent_first(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics of all runs: those of a stage, such as `val/loss`, first, then by how many runs have them."""
    counts: Counter[str] = Counter()
    for of_run in scores:
        counts.update(held_out_metrics([of_run]))
    of_stages, others = [], []
    for metric, _ in counts.most_common():
        stage, _ = split_metric(metric)
        if stage:
            of_stages.append(metric)
        else:
            others.append(metric)
    return of_stages + others


def _details(runs: Sequence[Run]) -> list[list[str]]:
    """Return for each run the settings that differ from those of most runs, and other facts worth knowing."""
    found = []
    for run, unusual in zip(runs, unusual_settings(runs), strict=True):
        words = [f"{name}={value}" for name, value in unusual.items()]
        if str(run.manifest.get("data", {}).get("origin", "")).startswith("generated"):
            words.append("images=generated")
        if run.last and not run.best:
            words.append(f"no best checkpoint: scores of epoch {run.last['epoch']}")
        if not run.last:
            words.append(f"no {ROWS_FILE}")
        found.append(words)
    return found


def _format(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) < 1e6:
        return f"{value:.4f}"
    return f"{value:.4g}"


def _lines(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table: the first two columns are aligned on the left, the others on the right."""
    padded = []
    for i, column in enumerate(columns):
        width = max(map(len, column))
        alignment = "<" if i < 2 else ">"
        padded.append([f"{cell:{alignment}{width}}" for cell in column])
    return list(map("  ".join, zip(*padded, strict=True)))
