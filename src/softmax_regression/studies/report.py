"""What came of a run, and of several side by side, as self-contained pages.

Command: python study.py report RUN; python study.py compare RUN RUN ...
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from softmax_regression.data.files import CLASSES, DIRS
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import class_scores, confusion_counts, drawings, learning_curves
from softmax_regression.figures.logger import curves
from softmax_regression.figures.page import Page
from softmax_regression.runs.callbacks import best_epoch
from softmax_regression.runs.folder import METRICS, find_run, open_checkpoint, open_model, read_manifest

CAPTIONS = {
    "confusion_matrix": "Which classes are taken for which: counts, and shares of the true class.",
    "predictions": "The most confident mistakes, framed, and some images that were classified right.",
    "weights": "The weights of each class as an image: a linear model is ten templates.",
    "calibration": "How often the model is right, against how sure it is.",
    "classes": "Precision, recall and F1 of each class.",
    "worst_mistake": "The most confident mistake: what each pixel adds to the logit, pixel times weight.",
}


def report(which: str, out: Path | None = None, dirs: Sequence[str] = DIRS) -> Path:
    """Show a run: its metrics and curves, and what its best model makes of the validation images.

    Once `train.py test` has scored the test images, they are shown instead.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder of the page; None for `report` in the run's folder.
        dirs: Folders to look for the data in.

    Returns:
        The path of the page.

    Raises:
        InputError: There is no such run, or its data cannot be had.
    """
    path, model = open_model(which)
    run = find_run(path)
    manifest = read_manifest(run) if run else {}
    saved = open_checkpoint(str(run or path), prefer="last")[1]
    stage = "test" if "test" in manifest else "val"
    images, labels, data = _images(saved, stage, dirs)
    name = run.name if run else path.name
    page = Page(f"Run {name}")
    page.text(
        f"{manifest.get('status', 'unknown end')}: {manifest.get('stopped', 'no manifest')}. "
        f"Data: {data.loaded.origin}. Checkpoint: `{path.name}`."
    )
    if saved["history"]:
        page.table(*_metrics({name: {"history": saved["history"], **manifest}}))
        page.figure(learning_curves({"": curves(saved["history"])}), "curves", "Loss and accuracy by epoch.")
    if len(images):
        with torch.no_grad():
            logits = model(images)
        page.heading(
            f"What it makes of the {len(images):,} {'test' if stage == 'test' else 'validation'} images"
        )
        weight, bias = model.linear.parameters()
        for what, draw in drawings(images, labels, logits, weight, bias, CLASSES).items():
            page.figure(draw(), what, CAPTIONS[what])
        counts = confusion_counts(labels, logits.argmax(1), len(CLASSES))
        scores = zip(CLASSES, class_scores(counts).tolist(), strict=True)
        rows = [[name, *(f"{score:.3f}" for score in row)] for name, row in scores]
        page.table(rows, ["class", "precision", "recall", "F1"])
    page.heading("How to repeat it")
    page.preformatted(" ".join(manifest.get("command", [])))
    page.preformatted(
        yaml.safe_dump(manifest.pop("config", dict(saved["hyper_parameters"])), sort_keys=False)
    )
    page.preformatted(json.dumps(manifest, indent=2))
    return page.write(out or (run or Path("logs")) / "report")


def compare(runs: Sequence[Path], out: Path = Path("logs/compare")) -> Path:
    """Show where the configurations of runs differ, their metrics side by side, and their curves together.

    Args:
        runs: The folders of two runs or more.
        out: Folder of the page.

    Returns:
        The path of the page.

    Raises:
        InputError: A folder is no run, or there are fewer than two.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run: comparing takes two or more; give their folders")
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        history = open_checkpoint(str(run), prefer="last")[1]["history"]
        name = run.name if len({other.name for other in runs}) == len(runs) else str(run)
        found[name] = {"history": history, **read_manifest(run)}
    page = Page(f"{len(found)} runs side by side")
    page.table(*_metrics(found))
    page.figure(
        learning_curves({name: curves(r["history"]) for name, r in found.items()}), "curves", "By epoch."
    )
    page.heading("Where their configurations differ")
    configs = [_flat(run.get("config", {})) for run in found.values()]
    names = {name: None for config in configs for name in config}  # in the order of the first that has it
    rows = [[name, *(str(config.get(name)) for config in configs)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        page.table(rows, ["option", *found])
    else:
        page.text("Nowhere.")
    for name, entries in found.items():
        page.heading(name)
        page.preformatted(" ".join(entries.get("command", [])))
        page.preformatted(
            json.dumps({k: entries.get(k) for k in ("git", "versions", "machine", "data")}, indent=2)
        )
    return page.write(out)


def _images(
    saved: Mapping[str, Any], stage: str, dirs: Sequence[str]
) -> tuple[Tensor, Tensor, FashionMNISTDataModule]:
    """Return the test or validation images (n, 28, 28) of a checkpoint's run, labels (n,), and all data."""
    hparams = saved["datamodule_hyper_parameters"]
    try:
        chosen = {name: hparams[name] for name in ("val_size", "source", "synthetic_size")}
        data = FashionMNISTDataModule(1, dirs=dirs, **chosen)
        loaded = data.loaded
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{error}: its settings of the data are not of this project; train a run anew"
        ) from error
    if loaded.sha256 != saved["FashionMNISTDataModule"].get("sha256"):
        print("warning: these are not the images that the run was trained with", file=sys.stderr)
    if stage == "test":
        return loaded.test_images, loaded.test_labels, data
    return loaded.images[data.val_index], loaded.labels[data.val_index], data


def _metrics(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[list[object]], list[str]]:
    """Return the rows of a table and its headers: of each run the last and the best epoch, and the test."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for name, run in runs.items():
        history = run["history"]
        if history:
            rows += [(name, "last epoch", history[-1]), (name, "best epoch", best_epoch(history))]
        rows += [(name, "test", run["test"])] if "test" in run else []
    metrics = [metric for metric in METRICS if any(metric in row for *_, row in rows)]
    table: list[list[object]] = [
        [name, what, row.get("epoch", ""), *(f"{row[m]:.4f}" if m in row else "" for m in metrics)]
        for name, what, row in rows
    ]
    return table, ["run", "", "epoch", *metrics]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Name nested options as on the command line, `trainer.max_epochs`."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
