"""Exercise 2 of the book, see model.py: why the test accuracy stops rising, and what helps.

Command: python study.py overfit
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.page import check_output
from softmax_regression.files import locked, write_csv
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.studies.folders import STUDIES, own_name
from softmax_regression.studies.overfit import measurements
from softmax_regression.studies.overfit.measurements import OverfitTraining, choose_remedies, curves
from softmax_regression.studies.overfit.page import write
from softmax_regression.studies.sweep.page import rows
from softmax_regression.studies.sweep.search import Search, number_of_workers


def run(
    out: Path | None = None,
    model: type[LightningModule] = SoftmaxRegression,
    data: type[LightningDataModule] = FashionMNISTDataModule,
    monitor: str = measurements.MONITOR,
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    quick: bool = False,
) -> Path:
    """Train with and without remedies, on few images and on all, or go on with it; return the page.

    Args:
        out: Folder of the page; the default is studies/overfit, with an ending such as `-quick` for another study.
        model: Class of what is trained, with the remedies that it has parameters for.
        data: Class of the data set, a subclass of FashionMNISTDataModule, which can take few of its images.
        monitor: The loss that the model logs in validation; its accuracy is called the same with `acc`.
        source: `files`, or `synthetic` for generated images.
        dirs: Folders to look for the files in.
        workers: Trials trained at the same time, at most one a core; None for one a core.
        force: Let it replace a page of somebody else's.
        quick: 50 and 100 images for a few epochs, to see that it works.

    Raises:
        InputError: There are too few images, or the page cannot be written.
    """
    if not issubclass(data, FashionMNISTDataModule):
        name = FashionMNISTDataModule.__name__
        raise InputError(f"data={data.__name__}: expected a subclass of {name}, to take few of its images")
    out = out or STUDIES / own_name("overfit", model, data, source, quick)
    check_output(out / "index.html", force)
    design = measurements.FULL
    options: dict[str, Any] = {"source": source, "dirs": dirs}
    if quick:
        design = measurements.QUICK
        options |= measurements.QUICK_SIZES
    images = data(**options)
    plan = measurements.plan(design, model, images.loaded.sha256, monitor)
    workers = number_of_workers(workers, plan.is_stackable)
    needed = design.sizes[-1].images
    if len(images.train_index) < needed:
        raise InputError(f"{len(images.train_index)} training images: need {needed}; use all")
    training = OverfitTraining(design, plan, images, monitor)
    if not plan.is_stackable:
        training.check_monitor()
    with locked(out, "choose another --out"):
        return _train(out, training, workers)


def _train(out: Path, training: OverfitTraining, workers: int) -> Path:
    """Run what is left of a plan, then write the table and the page; the database goes when these are there."""
    plan, design = training.plan, training.design
    unfinished = out / "unfinished" / hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
    unfinished.mkdir(parents=True, exist_ok=True)
    with closing(Search(plan, unfinished, training.train)) as search:
        search.run(workers)
        results = search.results()
    table: list[dict[str, object]] = []
    for result in results:
        table.extend(rows(plan.seeds, result, design.size_of(result.params).every))
    write_csv(out / "runs.csv", table)
    remedies = {size: choose_remedies(curves(results, size)) for size in design.sizes}
    manifest = {"data": training.data.loaded.origin, "design": design._asdict(), **environment()}
    page = write(out, remedies, plan, manifest)
    shutil.rmtree(unfinished)
    return page
