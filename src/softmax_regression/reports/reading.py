"""Read the folder of a run: how it ended, its settings, its rows of metrics, and the best row."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from softmax_regression.errors import InputError, StorageError
from softmax_regression.experiment.flags import options_of
from softmax_regression.figures.drawings import metrics_of
from softmax_regression.files import locked
from softmax_regression.runs import checkpoint
from softmax_regression.runs.record import read_manifest, saved_best
from softmax_regression.runs.rows import ROWS_FILE, Row, read_rows, split_metric

HIDDEN = ("trainer.callbacks", "trainer.logger", "trainer.enable_", "figures", "ckpt_path", "resume", "output", "force")


class Run(NamedTuple):
    """The content of the folder of a run."""

    folder: Path
    manifest: Mapping[str, Any]  # run.json
    rows: Sequence[Row]  # metrics.csv
    settings: Mapping[str, str]  # see `settings_of`

    @property
    def last(self) -> Row:
        """The last row, empty if there is none."""
        return self.rows[-1] if self.rows else {}

    @property
    def best(self) -> Row:
        """The row of the step that best.ckpt holds, empty if there is none."""
        recorded = self.manifest.get("best") or {}
        for row in self.rows:
            if row["step"] == recorded.get("step"):
                return row
        return {}

    @property
    def scores(self) -> dict[str, Any]:
        """The best or else the last row, and the test metrics; `f1` is `test/f1` if the row has one of its own."""
        row = self.best or self.last
        found = dict(row)
        for name, value in self.manifest.get("test", {}).items():
            is_taken = name in row and split_metric(name)[0] != "test"
            found[f"test/{name}" if is_taken else name] = value
        return found

    @property
    def state(self) -> str:
        """How the run ended; if no end is recorded, it is running while a process has locked its folder."""
        status = str(self.manifest.get("status", "running"))
        if status != "running":
            return status
        try:
            with locked(self.folder, "wait"):
                return "interrupted"
        except InputError:
            return "running"
        except StorageError:
            return "interrupted"


def read_run(folder: Path) -> Run:
    """Read run.json and metrics.csv and, if the run has not ended, best.ckpt.

    An InputError says that one of them is damaged, a StorageError that the system cannot read it.
    """
    manifest = read_manifest(folder)
    best = folder / "checkpoints" / "best.ckpt"
    if manifest.get("status") == "running" and best.is_file():  # run.json has the best of a run that has ended
        manifest["best"] = saved_best(checkpoint.read(best))
    return Run(folder, manifest, read_rows(folder), settings_of(manifest.get("config") or {}))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; those that diverged, cannot be read or have no metrics are left out, with a line on stderr.

    An InputError says that no run is left.
    """
    found = []
    for folder in folders:
        try:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; give that of a run, such as logs/softmax/RUN")
            run = read_run(folder)
            if run.manifest.get("status") == "diverged":
                raise InputError(f"{folder}: diverged")
            if not run.rows:
                raise InputError(f"{folder}: has no metrics in {ROWS_FILE}; give the folder of a run of this version")
            found.append(run)
        except (InputError, StorageError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not found:
        raise InputError("no run is left to be shown; give folders of runs, such as logs/softmax/RUN")
    return found


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return settings by the names of their flags, such as `model.lr`; a class by its group, such as `model`.

    Those of model and data come first.
    """
    found: dict[str, str] = {}
    first = {group: config[group] for group in ("model", "data") if group in config}
    for name, value in options_of({**first, **config}).items():
        if name.startswith(HIDDEN):
            continue
        if name.endswith(".class_path"):
            found[name.removesuffix(".class_path")] = str(value).rpartition(".")[2]
        elif value is None or isinstance(value, str):
            found[name] = value or "none"
        else:
            found[name] = json.dumps(value)
    return found


def _values_of_settings(runs: Sequence[Run]) -> dict[str, Counter[str]]:
    """Return for each setting its values, and how many runs have each."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            counts.setdefault(name, Counter())[value] += 1
    return counts


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the names of the settings in which runs differ."""
    return [name for name, counts in _values_of_settings(runs).items() if len(counts) > 1]


def unusual_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return for each run the settings that have another value in at least half of the runs."""
    counts = _values_of_settings(runs)
    found = []
    for run in runs:
        unusual = {}
        for name, value in run.settings.items():
            if 2 * counts[name][value] <= counts[name].total():
                unusual[name] = value
        found.append(unusual)
    return found


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run: its unusual settings, with its folder if they are not unique."""
    last_words = Counter(name.rpartition(".")[2] for name in differing(runs))
    labels = []
    for unusual in unusual_settings(runs):
        words = []
        for name, value in unusual.items():
            word = name.rpartition(".")[2]
            shown = word if last_words[word] == 1 else name
            words.append(f"{shown}={value}")
        labels.append(shorten(" ".join(words), 40, placeholder=" ..."))
    folders = [run.folder.name for run in runs]
    found = []
    for run, label in zip(runs, labels, strict=True):
        if labels.count(label) > 1 or not label:
            folder = run.folder.name if folders.count(run.folder.name) == 1 else run.folder
            label = f"{folder}: {label}".removesuffix(": ")
        found.append(label)
    return found


def held_out_metrics(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the validation and test metrics or, if there are none, those of the training."""
    metrics = metrics_of(scores)
    held_out = [name for name in metrics if split_metric(name)[0] != "train"]
    return held_out or metrics
