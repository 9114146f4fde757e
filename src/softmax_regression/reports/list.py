"""A table of all runs, for a terminal of 80 columns.

Command: python study.py list
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import TextWrapper

from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import split_metric
from softmax_regression.reports.reading import Run, held_out_metrics, read_run, state_of

WIDTH = 80
WRAPPER = TextWrapper(WIDTH, "    ", "    ", break_long_words=False, break_on_hyphens=False)


def list_runs(logs: Path = Path("logs")) -> str:
    """Return a table of all runs in the order of their start: state, scores, and what sets each apart.

    Args:
        logs: The folder of all experiments.

    Raises:
        InputError: It has no runs.
    """
    folders = {path.parent for name in ("run.json", "config.yaml") for path in logs.glob(f"*/*/{name}")}
    if not folders:
        raise InputError(f"{logs}: has no runs; train one with `train.py fit`")
    runs = [_read(folder) for folder in sorted(folders)]
    runs.sort(key=lambda run: str(run.manifest.get("started", "")))
    place = os.path.commonpath([run.folder.parent for run in runs])
    table = [["run", "state", "best epoch"]]
    for run in runs:
        epoch = run.best.get("epoch", "")
        table.append([str(run.folder.relative_to(place)), state_of(run.folder, run.manifest), str(epoch)])
    details = _what_sets_apart(runs)
    counts = Counter(metric for run in runs for metric in held_out_metrics([run.scores]))
    metrics = [metric for metric, _ in counts.most_common()]
    metrics.sort(key=lambda metric: split_metric(metric)[0] == "")  # validation first; a stable sort
    for metric in metrics:
        values = [_format(run.scores.get(metric)) for run in runs]
        wider = [[*row, cell] for row, cell in zip(table, [metric, *values], strict=True)]
        if max(map(len, _lines(wider))) <= WIDTH:
            table = wider
            continue
        for words, value in zip(details, values, strict=True):
            if value:
                words.insert(0, f"{metric} {value}")
    head, *rows = _lines(table)
    lines = [f"runs in {place}:", head]
    for row, words in zip(rows, details, strict=True):
        lines.append(row)
        if words:
            lines += WRAPPER.wrap("  ".join(words))
    return "\n".join(lines)


def _read(folder: Path) -> Run:
    """Read a run; one whose files hold something else is damaged."""
    try:
        return read_run(folder)
    except InputError:
        return Run(folder, {"status": "damaged"}, [], {})


def _what_sets_apart(runs: Sequence[Run]) -> list[list[str]]:
    """Return for each run the settings that most runs have otherwise, and whether its images are generated."""
    values: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, Counter())[value] += 1
    found = []
    for run in runs:
        words = []
        for name, value in run.settings.items():
            [(usual, _)] = values[name].most_common(1)
            if value != usual:
                words.append(f"{name}={value}")
        if str(run.manifest.get("data", {}).get("origin", "")).startswith("generated"):
            words.append("images=generated")
        if run.last and not run.best:
            words.append(f"no best checkpoint: scores of epoch {run.last['epoch']}")
        found.append(words)
    return found


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table in columns: words begin, and numbers end, below one another."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, state, *numbers in table:
        cells = [name.ljust(widths[0]), state.ljust(widths[1])]
        for number, width in zip(numbers, widths[2:], strict=True):
            cells.append(number.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines
