"""What came of a run, of several side by side, and of all that there are.

Command: python study.py report RUN; python study.py compare RUN RUN ...; python study.py list
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from matplotlib.figure import Figure

from softmax_regression.errors import InputError, StorageError
from softmax_regression.figures.drawings import curves, learning_curves, metrics_of
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.figures.predictions import class_scores, figures_of
from softmax_regression.files import locked
from softmax_regression.reports.curve import read_scalars, readable
from softmax_regression.runs.folder import find_run, open_data, open_model
from softmax_regression.runs.progress import NO_METRICS
from softmax_regression.runs.record import read_manifest
from softmax_regression.runs.rows import read_rows

ON_TOP = ("seed_everything", "model", "data", "trainer.max_epochs", "early_stopping.patience")
ASIDE = ("trainer.callbacks", "trainer.logger", "trainer.enable_", "figures", "ckpt_path", "resume", "output")
MADE_BY = ("data", "git", "versions", "machine")


def report(which: str, out: Path | None = None, dirs: Sequence[str] | None = None, force: bool = False) -> Path:
    """Write the page of a run: its metrics and curves, and what its best model makes of images.

    These are the validation images, and the test images once `train.py test` has scored them.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder of the page; None for `report` in the run's folder.
        dirs: Folders to look for the data in; None for those of the run.
        force: Let it replace a page of somebody else's.

    Raises:
        InputError: There is no such run, its data cannot be had, or the page cannot be written.
    """
    path, model = open_model(which)
    run = find_run(path)
    history = read_rows(run) if run else []
    out = out or (run or Path("logs")) / "report"
    check_output(out / "index.html", force)
    manifest = read_manifest(run) if run else {}
    stage = "test" if "test" in manifest else "validation"
    figures, number, classes = _predicted(model, open_data(path, dirs, "test" if stage == "test" else "fit"), stage)
    with suppress(InputError):  # nothing was logged
        figures["curves"] = learning_curves({"": read_scalars(run) if run else curves(history)})
    rows = _scores(manifest, history)
    metrics = _metrics(rows.values())
    config = manifest.pop("config", None) or {"model": dict(model.hparams)}
    return write_page(
        out,
        Path(__file__).with_name("report.html"),
        figures,
        name=(run or path).name,
        state=f"{_state(run, manifest)}: {manifest.get('stopped') or 'no end was recorded'}. " if run else "",
        checkpoint=path.name,
        origin=manifest.get("data", {}).get("origin", "unknown"),
        options=[[k, word] for k, word in _options(config).items() if k.startswith(ON_TOP) and word != "none"],
        metrics=metrics,
        scores=[[what, *_cells(row, metrics)] for what, row in rows.items() if row],
        shown=f"{number:,} {stage}",
        classes=classes,
        command=manifest.pop("command", "no command was recorded"),
        config=yaml.safe_dump(config, sort_keys=False),
        manifest=json.dumps(manifest, indent=2),
    )


@torch.no_grad()
def _predicted(
    model: LightningModule, data: LightningDataModule | None, stage: str
) -> tuple[dict[str, Figure], int, list[list[object]]]:
    """Return drawings of what a model makes of held out images, their number, and the scores of each class."""
    loaders: Any = data and (data.test_dataloader() if stage == "test" else data.val_dataloader())
    loader = loaders.get("val") if isinstance(loaders, dict) else loaders
    parts = [(x, y, model(x)) for x, y in loader or []]
    if not parts:
        return {}, 0, []
    images, labels, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    names = getattr(data, "class_names", [str(i) for i in range(logits.shape[1])])
    drawn = figures_of(images, labels, logits, names, list(model.parameters()))
    scores = class_scores(logits.argmax(1), labels, len(names)).tolist()
    classes = [[name, *row] for name, row in zip(names, scores, strict=True)]
    return {what: draw() for what, draw in drawn.items()}, len(images), classes


def compare(runs: Sequence[Path], out: Path = Path("logs/compare"), force: bool = False) -> Path:
    """Write a page with the options in which runs differ, their metrics and their curves together.

    Args:
        runs: The folders of runs; one that diverged or cannot be read is left out.
        out: Folder of the page.
        force: Let it replace a page of somebody else's.

    Raises:
        InputError: None can be read, or the page cannot be written.
    """
    check_output(out / "index.html", force)
    found = readable(runs, lambda run: (read_manifest(run), _best(run), read_scalars(run)))
    manifests, scores, scalars = zip(*found.values(), strict=True)
    options = [_options(manifest.get("config", {})) for manifest in manifests]
    usual = _usual(options).items()
    differing = [name for name, word in usual if any(of_run.get(name, word) != word for of_run in options)]
    metrics = [metric for metric in _metrics(scores) if not metric.startswith("train")]
    return write_page(
        out,
        Path(__file__).with_name("compare.html"),
        {"curves": learning_curves(dict(zip(found, scalars, strict=True)))},
        differing=differing,
        metrics=metrics,
        rows=[
            [run, *(of_run.get(name, "") for name in differing), *_cells(row, metrics)]
            for run, of_run, row in zip(found, options, scores, strict=True)
        ],
        commands={
            run: f"{known.get('command', '')}\n\n{json.dumps({key: known.get(key) for key in MADE_BY}, indent=2)}"
            for run, known in zip(found, manifests, strict=True)
        },
    )


def list_runs(logs: Path = Path("logs")) -> str:
    """Return a table of all runs in the order of their start: state, data, scores, what sets each apart.

    Args:
        logs: The folder of all experiments.

    Raises:
        InputError: It has no runs.
    """
    runs = {path.parent for name in ("run.json", "events.out.tfevents*") for path in logs.glob(f"*/*/{name}")}
    if not runs:
        raise InputError(f"{logs}: has no runs; train one with `train.py fit`")
    found = sorted(((run, _manifest(run)) for run in sorted(runs)), key=lambda pair: str(pair[1].get("started", "")))
    options = [_options(manifest.get("config", {})) for _, manifest in found]
    usual = _usual(options)
    table = [("run", "state", "data", "epoch", "val/loss", "val/acc", "test/acc", "what sets it apart")]
    for (run, manifest), of_run in zip(found, options, strict=True):
        scores: Mapping[str, Any] = {}
        with suppress(InputError, StorageError):
            scores = _best(run)
        cells = map(str, _cells(scores, ["val/loss", "val/acc", "test/acc"]))
        odd = " ".join(f"{name}={word}" for name, word in of_run.items() if word != usual[name])
        table.append((str(run), _state(run, manifest), manifest.get("data", {}).get("origin", ""), *cells, odd))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def _manifest(run: Path) -> dict[str, Any]:
    try:
        return read_manifest(run)
    except InputError:
        return {"status": "damaged"}


def _state(run: Path, manifest: Mapping[str, Any]) -> str:
    """Return how a run ended; one without an end is running while a process keeps its folder."""
    if (status := manifest.get("status", "running")) != "running":
        return str(status)
    try:
        with locked(run, "wait"):
            return "interrupted"
    except InputError:
        return "running"
    except StorageError:
        return "interrupted"


def _scores(manifest: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of a run's ends, as it has recorded them, or else as its checkpoint has them."""
    return {
        "last epoch": manifest.get("final") or (history[-1] if history else {}),
        "best epoch": manifest.get("best", {}),
        "test": manifest.get("test", {}),
    }


def _best(run: Path) -> Mapping[str, Any]:
    """Return the metrics of the best epoch and the test; InputError if the run has recorded none."""
    manifest = read_manifest(run)
    rows = _scores(manifest, read_rows(run))
    if not any(rows.values()):
        raise InputError(f"{run}: has recorded no metrics; give the folder of a run, such as logs/softmax/RUN")
    return {**(rows["best epoch"] or rows["last epoch"]), **rows["test"]}


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    names = metrics_of(rows)
    return [name for name in names if name not in NO_METRICS]


def _cells(row: Mapping[str, Any], metrics: Sequence[str]) -> list[object]:
    values = [row.get(metric) for metric in metrics]
    words = ["" if v is None else f"{v:.4f}" if abs(v) < 1e6 else f"{v:.4g}" for v in values]
    return [row.get("epoch", ""), *words]


def _options(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Name options of one value as on the command line, `model.lr`, and classes by their group, `model`."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        path = prefix[:-1] if name == "class_path" else prefix + name
        if isinstance(value, Mapping):
            flat |= _options(value, prefix if name == "init_args" else f"{path}.")
        elif not isinstance(value, list) and not path.startswith(ASIDE):
            words = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
            flat[path] = words.rpartition(".")[2] if name == "class_path" else words
    return flat


def _usual(options: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return each option as most runs have it."""
    names = dict.fromkeys(chain(*options))
    return {name: Counter(run[name] for run in options if name in run).most_common(1)[0][0] for name in names}
