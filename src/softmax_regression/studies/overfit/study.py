"""Exercise 2 of the book, see model.py: why the test accuracy stops rising, and what helps.

Command: python study.py overfit
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from matplotlib.figure import Figure

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import PALETTE, learning_curves
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.files import locked, write_csv
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.studies.folders import STUDIES, folder_name
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.overfit import measurements
from softmax_regression.studies.overfit.measurements import MONITOR, OverfitTraining, Remedy, Size, choose_remedies
from softmax_regression.studies.sweep.page import error_bars, rows
from softmax_regression.studies.sweep.results import Result, failures
from softmax_regression.studies.sweep.search import Search, number_of_workers
from softmax_regression.studies.sweep.space import Plan, changed_batches

TESTED = {"test/loss": "test loss", "test/acc": "test accuracy"}


def run(
    out: Path | None = None,
    model: type[LightningModule] = SoftmaxRegression,
    data: type[LightningDataModule] = FashionMNISTDataModule,
    monitor: str = MONITOR,
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    workers: int | None = None,
    force: bool = False,
    quick: bool = False,
) -> Path:
    """Train with and without remedies, on few images and on all; return the page. An interrupted study is resumed.

    Args:
        out: Folder of the page; the default is studies/overfit, with an ending such as `-quick` for another study.
        model: Class of the model; remedies for which it has no parameter are left out.
        data: Class of the data module, a subclass of FashionMNISTDataModule, which can train on few of its images.
        monitor: Name of the validation loss; that of the accuracy has `acc` in the place of `loss`, if that is in it.
        source: `files`, or `synthetic` for generated images.
        dirs: Folders to search for the files.
        workers: Number of trials trained at the same time, at most one for each core; null for one for each core.
        force: Replace a page that this project did not write.
        quick: 50 and 100 images for a few epochs, to see that it works.

    Raises:
        InputError: There are too few images, or the page cannot be written.
    """
    if not issubclass(data, FashionMNISTDataModule):
        raise InputError(f"data={data.__name__}: expected a subclass of FashionMNISTDataModule, to take few images")
    hooks = changed_batches(data)
    if hooks:
        raise InputError(f"data={data.__name__}: overfit takes images without its {', '.join(hooks)}; drop --data")
    out = out or STUDIES / folder_name("overfit", model, data, source, quick)
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
    """Run the unfinished trials of a plan, then write the table and the page, and remove the database."""
    plan, design = training.plan, training.design
    unfinished = out / "unfinished" / hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
    unfinished.mkdir(parents=True, exist_ok=True)
    with closing(Search(plan, unfinished, training.train)) as search:
        search.run(workers)
        results = search.results()
        failed = failures(search.finished, plan)
    table: list[dict[str, object]] = []
    of_size: dict[Size, list[Result]] = {size: [] for size in design.sizes}
    for result in results:
        size = design.size_of(result.params)
        table.extend(rows(plan.seeds, result, size.every))
        of_size[size].append(result)
    write_csv(out / "runs.csv", table)
    for size, found in of_size.items():
        if not any(measurements.strength(result) == (0, 0) for result in found):
            raise InputError(
                f"{size.images} images: the training without a remedy failed ({failed[0][1]}), so that remedies have "
                f"nothing to be compared with; to try again, delete {unfinished}"
            )
    remedies = {size: choose_remedies(found) for size, found in of_size.items()}
    manifest = {"data": training.data.loaded.origin, "design": design._asdict(), **environment()}
    page = write(out, remedies, plan, manifest, training.monitor)
    shutil.rmtree(unfinished)
    with suppress(OSError):  # another design may be unfinished
        unfinished.parent.rmdir()
    return page


def write(
    folder: Path,
    remedies: Mapping[Size, Sequence[Remedy]],
    plan: Plan,
    manifest: Mapping[str, object],
    monitor: str = MONITOR,
) -> Path:
    """Write the page of the remedies for each size; return its path."""
    figures = {}
    sizes = []
    for size, of_size in remedies.items():
        none = of_size[0]
        tested = list(TESTED)
        if none.taken("test/acc").isnan().any():  # it is not logged
            tested.remove("test/acc")
        figures[f"images-{size.images}"] = learning_curves({"none": none.result.curves(size.every)})
        figures[f"images-{size.images}-remedies"] = _remedies_figure(size, of_size, tested)
        sizes.append((size, of_size, tested))
    return write_page(
        folder,
        Path(__file__).with_name("overfit.html"),
        figures,
        sizes=sizes,
        names=TESTED,
        interval=Interval.of,
        plan=plan,
        ours=issubclass(plan.model, SoftmaxRegression),
        monitor=monitor,
        lr=measurements.LR,
        batch_size=measurements.BATCH_SIZE,
        patience=measurements.PATIENCE,
        manifest=manifest,
        record=json.dumps(manifest, indent=2),
    )


def _remedies_figure(size: Size, remedies: Sequence[Remedy], tested: Sequence[str]) -> Figure:
    """Draw test loss and accuracy of each remedy, a column of panels, together with those of no remedy."""
    none = remedies[0]
    drawn = [remedy for remedy in remedies if remedy.result is not none.result]
    columns = max(1, len(drawn))
    figure = Figure(figsize=(3 * columns + 1, 3 * len(tested)), layout="constrained")
    panels = figure.subplots(len(tested), columns, squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(panels, tested, strict=True):
        for i, axes in enumerate(row):
            axes.set_title(TESTED[metric].replace("loss", "loss (nats)"), fontsize="medium")
            axes.tick_params(labelleft=True)  # on phones the panels are below one another
            axes.grid(alpha=0.3)
            for remedy in (none, *drawn[i : i + 1]):
                colour = "0.4" if remedy is none else PALETTE[i]
                epochs, values = remedy.result.curves(size.every)[metric]
                apart = max(1, len(epochs) // 8)
                error_bars(axes, epochs, values.T, color=colour, label=str(remedy), errorevery=apart, capsize=2, lw=1.5)
    for axes in panels[0]:
        axes.legend(fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    return figure
