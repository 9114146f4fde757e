"""What long training on few images came to, on one page, with the conclusions that the numbers support.

Command: python study.py overfit
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import Curves, learning_curves
from softmax_regression.figures.page import check_output, write_csv, write_page
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.learning import pool
from softmax_regression.studies.overfit import measurements as overfit
from softmax_regression.studies.overfit.measurements import BATCH_SIZE, LR, PATIENCE, Arm, Size
from softmax_regression.studies.stacked import METRICS
from softmax_regression.studies.sweep.page import difference, rows
from softmax_regression.studies.sweep.plan import Plan
from softmax_regression.studies.sweep.search import Sweep


def run(
    out: Path = Path("logs/overfit"),
    model: type[LightningModule] = SoftmaxRegression,
    data: type[FashionMNISTDataModule] = FashionMNISTDataModule,
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    quick: bool = False,
) -> Path:
    """Train with and without remedies, on few images and on all, or go on with it; return the page.

    Args:
        out: Folder of the page.
        model: Class of what is trained, with the remedies that it has parameters for.
        data: Class of the data set.
        source: `files`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the files in.
        workers: Stacks trained at the same time, at most one a core; None for one a core.
        force: Let it replace a page of somebody else's.
        quick: 50 and 100 images for a few epochs, to see that it works.

    Raises:
        InputError: There are too few images, or the page cannot be written.
    """
    check_output(out / "index.html", force)
    design = overfit.QUICK if quick else overfit.FULL
    with pool(model, workers) as threads:
        images = data(source=source, dirs=dirs, **(overfit.SMALL if quick else {}))
        plan = overfit.plan(design, model, images.loaded.sha256)
        if len(images.train_index) < (needed := design.sizes[-1].images):
            raise InputError(f"{len(images.train_index)} training images: need {needed}; use all")
        unfinished = out / "unfinished" / hashlib.sha256(plan.identity().encode()).hexdigest()[:12]
        unfinished.mkdir(parents=True, exist_ok=True)
        with locked(out, "choose another --out"):
            sweep = Sweep(plan, unfinished, partial(overfit.train, design, model, images))
            sweep.search(threads)
            trials, every = sweep.complete(), {size.images: size.every for size in design.sizes}
            table = [row for trial in trials for row in rows(plan, trial, every[trial.params["train_size"]])]
            write_csv(out / "runs.csv", table)
            arms = {size: overfit.choose_arms(overfit.curves(trials, size)) for size in design.sizes}
            manifest = {"data": images.loaded.origin, "design": design._asdict(), **environment()}
            page = write(out, arms, plan, manifest)
            shutil.rmtree(unfinished)
    return page


def write(folder: Path, arms: Mapping[Size, Sequence[Arm]], plan: Plan, manifest: Mapping[str, object]) -> Path:
    """Write the page of the arms of each size and its figures, and return the path of the page."""
    figures, sizes = {}, []
    for size, of_size in arms.items():
        none, name = of_size[0], f"images-{size.images}"
        figures[name] = learning_curves({"none": _curves(size, none)})
        remedies: dict[tuple[float, float], tuple[str, Curves]] = {}
        for arm in of_size:  # early stopping is a point on none
            remedies.setdefault((arm.dropout, arm.decay), (_label(arm), _curves(size, arm, METRICS[2:])))
        figures[f"{name}-remedies"] = learning_curves(dict(remedies.values()))
        changes = [(arm.name, difference(arm.taken("test/loss"), none.taken("test/loss"))) for arm in of_size[1:]]
        least = _best(none)
        since = {m: none.curves[:, METRICS.index(m), [-1, least]].T.tolist() for m in ("test/loss", "test/acc")}
        values = {
            "images": f"{size.images:,}",
            "epochs": size.epochs,
            "least": int(size.scored[least]),
            "moved": {metric: difference(*ends) for metric, ends in since.items()},
            "changes": sorted(changes, key=lambda change: change[1].mean),
            "rows": [_row(size, arm, none) for arm in of_size],
            "figure": name,
        }
        sizes.append(values)
    settings = {"lr": LR, "batch_size": BATCH_SIZE, "patience": PATIENCE, "plan": plan}
    record = json.dumps(manifest, indent=2)
    template = Path(__file__).with_name("overfit.html")
    return write_page(folder, template, figures, sizes=sizes, manifest=manifest, record=record, **settings)


def _best(arm: Arm) -> int:
    """The scoring with the least validation loss, the mean over the seeds."""
    return int(arm.curves[:, METRICS.index("val/loss")].mean(0).argmin())


def _row(size: Size, arm: Arm, none: Arm) -> list[object]:
    gap = difference(arm.taken("test/loss"), arm.taken("train/loss"))
    columns: list[object] = [_label(arm), str(int(size.scored[_best(arm)])), gap]
    for metric in ("test/loss", "test/acc"):
        against = "" if arm is none else f"{difference(arm.taken(metric), none.taken(metric)):+}"
        columns += [Interval.of(arm.taken(metric)), against]
    return columns


def _label(arm: Arm) -> str:
    """Name an arm with what it was tuned to, if anything."""
    if arm.name == "combination":
        return f"{arm.name}: decay {arm.decay:g}, dropout {arm.dropout:g}"
    value = arm.decay or arm.dropout
    return f"{arm.name} {value:g}" if value else arm.name


def _curves(size: Size, arm: Arm, metrics: Sequence[str] = METRICS) -> Curves:
    return {metric: (size.scored, arm.curves[:, METRICS.index(metric)]) for metric in metrics}
