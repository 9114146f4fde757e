"""A page of one run: its scores and curves, and the predictions of its best model for held-out images.

Command: python study.py report RUN
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule

from softmax_regression.classifier import Classifier
from softmax_regression.data.module import class_names_of
from softmax_regression.experiment.opening import OpenedRun, held_out_loader, open_run
from softmax_regression.figures.drawings import curves, learning_curves, metrics_of
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.figures.predictions import class_scores, figures_of, names_of_classes
from softmax_regression.figures.scoring import score
from softmax_regression.files import reason
from softmax_regression.model import SoftmaxRegression
from softmax_regression.reports.reading import Run, read_run, settings_of

ON_TOP = ("seed_everything", "model", "data", "trainer.max_epochs", "early_stopping.patience")


def report(which: str, out: Path | None = None, dirs: Sequence[str] | None = None, force: bool = False) -> Path:
    """Write the page of a run: its scores and curves, and the predictions of its best model.

    The predictions are for the validation images or, after `train.py test`, for the test images. An InputError says
    that there is no such run, that its data cannot be loaded, or that the page cannot be written.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder of the page; null for `report` in the run's folder.
        dirs: Folders to look for the data in; null for those of the run.
        force: Replace a page that this project did not write.
    """
    opened = open_run(which, dirs=dirs)
    path, _, folder = opened.checkpoint
    out = out or (folder or Path("logs")) / "report"
    check_output(out / "index.html", force)
    run = read_run(folder) if folder else Run(path, {}, [], {})
    page: dict[str, Any] = {"figures": {}, "count": 0, "classes": [], "failure": ""}
    try:
        with torch.compiler.set_stance("force_eager"):  # compiling takes longer than it saves here
            page |= _predictions(opened, "test" if "test" in run.manifest else "val")
    except Exception as error:  # model and data may be any
        page["failure"] = reason(error)
    if run.rows:
        page["figures"]["curves"] = learning_curves({"": curves(run.rows)})
    rows = {"best epoch": run.best, "last epoch": run.last, "test": run.manifest.get("test", {})}
    metrics = metrics_of(rows.values())
    scores = [[what, row.get("epoch"), *map(row.get, metrics)] for what, row in rows.items() if row]
    settings = settings_of(opened.config).items()
    num_classes = _classes_to_guess(opened.model)
    return write_page(
        out,
        Path(__file__).with_name("report.html"),
        name=run.folder.name,
        state=run.state if folder else "",
        stopped=run.manifest.get("stopped") or "no end was recorded",
        checkpoint=path.name,
        data=run.manifest.get("data", {}).get("origin") or type(opened.data).__name__,
        of_loaders=opened.data is None,
        metrics=metrics,
        scores=scores,
        num_classes=num_classes,
        guessing=math.log(num_classes),
        settings=[(name, value) for name, value in settings if name.startswith(ON_TOP) and value != "none"],
        command=run.manifest.get("command", "no command was recorded"),
        config=yaml.safe_dump(opened.config, sort_keys=False),
        manifest=json.dumps({**run.manifest, "config": "see above"}, indent=2),
        **page,
    )


def _classes_to_guess(model: LightningModule) -> int:
    """Return the number k of classes if the loss is a mean cross-entropy, so that a guess costs log(k); else 1."""
    if isinstance(model, Classifier) and type(model).loss in (Classifier.loss, SoftmaxRegression.loss):
        return model.num_classes
    return 1


def _predictions(opened: OpenedRun, stage: str) -> dict[str, Any]:
    """Return the values of the page for validation or test images: their number, scores by class, and figures.

    They are those of as many batches as the run was scored on.
    """
    loader = held_out_loader(opened, stage)
    if loader is None:
        return {}
    opened.model.to(opened.trainer.strategy.root_device)
    limit = opened.config["trainer"][f"limit_{stage}_batches"]
    if not isinstance(limit, int):  # a share, or none
        limit = None
    inputs, labels, logits = score(opened.trainer, opened.model, loader, limit)
    k = logits.shape[1]
    names = names_of_classes(class_names_of(opened.data), k)
    drawn = figures_of(inputs, labels, logits, names, list(opened.model.parameters()))
    rows = class_scores(logits.argmax(1), labels, k).tolist()
    return {
        "figures": {name: draw() for name, draw in drawn.items()},
        "stage": stage,
        "count": len(labels),
        "classes": [[name, *row] for name, row in zip(names, rows, strict=True)],
    }
