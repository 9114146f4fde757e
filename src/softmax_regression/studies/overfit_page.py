"""What long training on few images came to, on one page, with the conclusions that the numbers support.

Command: python study.py overfit
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningModule
from optuna.trial import FrozenTrial
from torch import Tensor

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import learning_curves
from softmax_regression.figures.page import Page, check_output, write_csv
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.studies import overfit
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.learning import pool
from softmax_regression.studies.overfit import BATCH_SIZE, LR, PATIENCE, Arm, Design, Size
from softmax_regression.studies.stacked import METRICS
from softmax_regression.studies.sweep import Sweep
from softmax_regression.studies.sweep_page import rows
from softmax_regression.studies.sweep_plan import Plan


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
            page = write(out, design, plan, sweep.complete(), images.loaded.origin)
            shutil.rmtree(unfinished)
    return page


def write(folder: Path, design: Design, plan: Plan, trials: Sequence[FrozenTrial], origin: str) -> Path:
    """Write the page, its figures and a CSV with all scorings of the trials, and return the page's path."""
    page = Page("Exercise 2: why test accuracy falls, and what helps")
    arms = {size: overfit.choose_arms(overfit.curves(trials, size)) for size in design.sizes}
    for size in design.sizes:
        page.text(conclusion(size, arms[size]))
    _method(page, plan, origin)
    for size in design.sizes:
        _size(page, size, arms[size])
    page.heading("How to repeat it")
    manifest = {"data": origin, "design": design._asdict(), **environment()}
    page.preformatted(manifest["command"])
    page.text("Every scoring of every run is in `runs.csv`.")
    page.preformatted(json.dumps(manifest, indent=2))
    every = {size.images: size.every for size in design.sizes}
    table = [row for trial in trials for row in rows(plan, trial, every[trial.params["train_size"]])]
    write_csv(folder / "runs.csv", table)
    return page.write(folder)


def conclusion(size: Size, arms: Sequence[Arm]) -> str:
    """Say of one size what happens with no remedy, and which remedies the seeds tell from none."""
    none, best = arms[0], _best(arms[0])
    text = f"{size.images:,} images. With no remedy the validation loss is least "
    if size.scored[best] == size.epochs:
        text += f"at the end, epoch {size.epochs}: nothing is overfitted yet."
    else:
        loss, acc = (_moved(none, best, f"test/{name}") for name in ("loss", "acc"))
        text += f"at epoch {size.scored[best]}; from there to epoch {size.epochs} the test loss {loss} "
        text += f"and the test accuracy {acc}."
    changes = {arm.name: difference(arm, none, "test/loss") for arm in arms[1:]}
    names = sorted(changes, key=lambda name: changes[name].mean)
    for verdict, chosen in (
        ("Lower the test loss at the end", [n for n in names if changes[n].mean < -changes[n].half]),
        ("Raise it", [n for n in names if changes[n].mean > changes[n].half]),
        ("Change it within noise", [n for n in names if changes[n].has_zero]),
    ):
        if chosen:
            text += f" {verdict}: {'; '.join(f'{name} ({changes[name]:+})' for name in chosen)}."
    return text


def difference(arm: Arm, none: Arm, metric: str) -> Interval:
    """Return what an arm changes, paired by seed."""
    return Interval.of([a - b for a, b in zip(arm.taken(metric), none.taken(metric), strict=True)])


def _best(arm: Arm) -> int:
    """The scoring with the least validation loss, the mean over the seeds."""
    return int(arm.curves[:, METRICS.index("val/loss")].mean(0).argmin())


def _moved(arm: Arm, scoring: int, metric: str) -> str:
    """Say how a metric changes from a scoring to the last one."""
    values = arm.curves[:, METRICS.index(metric)]
    change = Interval.of((values[:, -1] - values[:, scoring]).tolist())
    if change.has_zero:
        return f"stays within noise ({change:+})"
    return f"{'rises' if change.mean > 0 else 'falls'} by {abs(change.mean):.4f} ± {change.half:.4f}"


def _method(page: Page, plan: Plan, origin: str) -> None:
    page.heading("What was done")
    decays, dropouts = (plan.space.get(name, "none") for name in ("weight_decay", "dropout"))
    page.text(
        f"Minibatch SGD with the book's learning rate {LR} and batch size {BATCH_SIZE}, with "
        f"{len(plan.seeds)} seeds: a seed decides which images are drawn, balanced over the classes, the "
        "initial weights, the order and the dropped pixels. Training images are scored without dropout."
    )
    page.text(
        f"Of the weight decays {decays} and the dropouts of pixels {dropouts} those of least validation "
        "loss at the end are taken, the mean over the seeds; early stopping takes the model of least "
        f"validation loss before {PATIENCE} scorings with none lower; the combination is the best pair of a "
        "decay and a dropout, stopped early. The test images chose nothing."
    )
    page.text(
        "± is half of Student's 95 % interval over the seeds, which have their validation and test images in "
        "common; differences are paired by seed. Bands in the figures go from the least to the greatest "
        f"seed. Data: {origin}."
    )


def _size(page: Page, size: Size, arms: Sequence[Arm]) -> None:
    name, images = f"images-{size.images}", f"{size.images:,} images"
    page.heading(f"{size.images:,} training images")
    table, against = [_row(size, arm, arms[0]) for arm in arms], "against none"
    page.table(table, ["arm", "best epoch", "test − train loss", "test/loss", against, "test/acc", against])
    page.figure(learning_curves({"none": _curves(size, arms[0])}), name, f"No remedy, {images}.")
    first = {(arm.dropout, arm.decay): arm for arm in arms[::-1]}  # early stopping is a point on none
    distinct = [arm for arm in arms if arm is first[arm.dropout, arm.decay]]
    others = {_label(arm): _curves(size, arm, ("val", "test")) for arm in distinct}
    page.figure(learning_curves(others), f"{name}-remedies", f"The remedies, {images}.")


def _row(size: Size, arm: Arm, none: Arm) -> list[object]:
    gaps = [b - a for a, b in zip(arm.taken("train/loss"), arm.taken("test/loss"), strict=True)]
    columns: list[object] = [_label(arm), str(int(size.scored[_best(arm)])), str(Interval.of(gaps))]
    for metric in ("test/loss", "test/acc"):
        against = "" if arm is none else f"{difference(arm, none, metric):+}"
        columns += [str(Interval.of(arm.taken(metric))), against]
    return columns


def _label(arm: Arm) -> str:
    """Name an arm with what it was tuned to, if anything."""
    if arm.name == "combination":
        return f"{arm.name}: decay {arm.decay:g}, dropout {arm.dropout:g}"
    value = arm.decay or arm.dropout
    return f"{arm.name} {value:g}" if value else arm.name


def _curves(size: Size, arm: Arm, stages: Sequence[str] = ("train", "val", "test")) -> dict[str, tuple[Tensor, Tensor]]:
    return {m: (size.scored, arm.curves[:, i]) for i, m in enumerate(METRICS) if m.split("/")[0] in stages}
