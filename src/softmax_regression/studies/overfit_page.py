"""What long training on few images came to, on one page, with the conclusions that the numbers support.

Command: python study.py overfit
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from softmax_regression.data.files import CLASSES, DIRS
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import learning_curves, weight_templates
from softmax_regression.figures.page import Page, write_csv
from softmax_regression.runs.folder import environment
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.overfit import (
    BATCH_SIZE,
    FULL,
    LR,
    METRICS,
    PATIENCE,
    QUICK,
    Arm,
    Design,
    Runs,
    Size,
    choose_arms,
    train_all,
)


def run(
    out: Path = Path("logs/overfit"),
    source: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    dirs: Sequence[str] = DIRS,
    workers: int | None = None,
    quick: bool = False,
) -> Path:
    """Train with and without remedies, on few images and on all, and write the page.

    Args:
        out: Folder of the page.
        source: `fashion-mnist`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the data in.
        workers: Stacks trained at the same time, at most one a core; None for one a core.
        quick: 50 and 100 images for a few epochs, to see that it works.

    Returns:
        The path of the page.

    Raises:
        InputError: There are too few images, or see `FashionMNISTDataModule`.
    """
    design = QUICK if quick else FULL
    sizes: dict[str, Any] = {"synthetic_size": 1000, "val_size": 500} if quick else {}
    data = FashionMNISTDataModule(source=source, dirs=dirs, **sizes)
    data.setup()
    if len(data.train_index) < design.sizes[-1].images:
        raise InputError(f"{len(data.train_index)} training images: need {design.sizes[-1].images}; use all")
    runs = train_all(design, data, workers)
    arms = {size: choose_arms(design, of_size) for size, of_size in runs.items()}
    return write(out, design, runs, arms, data.loaded.origin)


def write(
    folder: Path,
    design: Design,
    runs: Mapping[Size, Mapping[float, Runs]],
    arms: Mapping[Size, Sequence[Arm]],
    origin: str,
) -> Path:
    """Write the page, its figures and a CSV with all scorings, and return the path of the page.

    Args:
        folder: Where to.
        design: What was run.
        runs: By size and dropout.
        arms: The remedies of each size, the first one is none.
        origin: Where the data came from.
    """
    page = Page("Exercise 2: why test accuracy falls, and what helps")
    for size in design.sizes:
        page.text(conclusion(size, arms[size]))
    _method(page, design)
    for size in design.sizes:
        _size(page, size, arms[size])
    page.heading("How to repeat it")
    manifest = {"data": origin, "design": design._asdict(), **environment()}
    page.preformatted(" ".join(manifest["command"]))
    page.text("Every scoring of every run is in `runs.csv`.")
    page.preformatted(json.dumps(manifest, indent=2))
    write_csv(folder / "runs.csv", list(_rows(design, runs)))
    return page.write(folder)


def conclusion(size: Size, arms: Sequence[Arm]) -> str:
    """Say of one size what happens with no remedy, and which remedies the seeds tell from none."""
    none, best = arms[0], _best(arms[0])
    loss, acc = (_since(none, best, f"test/{name}") for name in ("loss", "acc"))
    text = f"{size.images:,} images. With no remedy the validation loss is least "
    if size.scored[best] == size.epochs:
        text += f"at the end, epoch {size.epochs}: nothing is overfitted yet."
    else:
        text += (
            f"at epoch {size.scored[best]}; from there to epoch {size.epochs} the test loss {_moved(loss)} "
            f"and the test accuracy {_moved(acc)}."
        )
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


def _since(arm: Arm, scoring: int, metric: str) -> Interval:
    """How much a metric changes from a scoring to the last one."""
    values = arm.curves[:, METRICS.index(metric)]
    return Interval.of((values[:, -1] - values[:, scoring]).tolist())


def _moved(change: Interval) -> str:
    if change.has_zero:
        return f"stays within noise ({change:+})"
    return f"{'rises' if change.mean > 0 else 'falls'} by {abs(change.mean):.4f} ± {change.half:.4f}"


def _method(page: Page, design: Design) -> None:
    page.heading("What was done")
    page.text(
        f"Minibatch SGD with the book's learning rate {LR} and batch size {BATCH_SIZE}, at a constant rate, "
        f"with {design.seeds} seeds. A seed decides which images are drawn, balanced over the classes, the "
        "initial weights, the order and the dropped pixels. Training images are scored without dropout."
    )
    decays, dropouts = (", ".join(f"{v:g}" for v in vs[1:]) for vs in (design.decays, design.dropouts))
    page.text(
        f"Weight decay out of {decays} has the least validation loss at the end, the mean over the seeds; "
        f"dropout of pixels out of {dropouts} has it for the first seed. Early stopping takes the model of "
        f"least validation loss before {PATIENCE} scorings with none lower. The combination is the best pair "
        "of a decay and a dropout, none included, with early stopping. The test images chose nothing."
    )
    page.text(
        "± is half of Student's 95 % interval over the seeds, which have their validation and test images in "
        "common; differences are paired by seed. Bands in the figures go from the least to the greatest seed."
    )


def _size(page: Page, size: Size, arms: Sequence[Arm]) -> None:
    page.heading(f"{size.images:,} training images")
    rows = [_row(size, arm, arms[0]) for arm in arms]
    gap = "test − train loss"
    page.table(rows, ["arm", "best epoch", gap, "test/loss", "against none", "test/acc", "against none"])
    name = f"images-{size.images}"
    page.figure(
        learning_curves({"none": _curves(size, arms[0])}), name, f"No remedy, {size.images:,} images."
    )
    others = {_label(arm): _curves(size, arm, ("val", "test")) for arm in _distinct(arms)}
    page.figure(learning_curves(others), f"{name}-remedies", f"The remedies, {size.images:,} images.")
    for arm in (arms[0], arms[-1]):
        caption = f"Weights after epoch {size.epochs}, one seed: {_label(arm)}."
        page.figure(weight_templates(arm.weight[0], CLASSES), f"{name}-weights-{arm.name}", caption)


def _row(size: Size, arm: Arm, none: Arm) -> list[object]:
    gaps = [b - a for a, b in zip(arm.taken("train/loss"), arm.taken("test/loss"), strict=True)]
    columns: list[object] = []
    for metric in ("test/loss", "test/acc"):
        against = "" if arm is none else f"{difference(arm, none, metric):+}"
        columns += [str(Interval.of(arm.taken(metric))), against]
    return [_label(arm), str(int(size.scored[_best(arm)])), str(Interval.of(gaps)), *columns]


def _label(arm: Arm) -> str:
    """Name an arm with what it was tuned to, if anything."""
    if arm.name == "combination":
        return f"{arm.name}: decay {arm.decay:g}, dropout {arm.dropout:g}"
    value = arm.decay or arm.dropout
    return f"{arm.name} {value:g}" if value else arm.name


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    """Arms with curves of their own: early stopping is a point on another one's."""
    first: dict[tuple[float, float], Arm] = {}
    for arm in arms:
        first.setdefault((arm.dropout, arm.decay), arm)
    return list(first.values())


def _curves(
    size: Size, arm: Arm, stages: Sequence[str] = ("train", "val", "test")
) -> dict[str, tuple[Tensor, Tensor]]:
    return {m: (size.scored, arm.curves[:, i]) for i, m in enumerate(METRICS) if m.split("/")[0] in stages}


def _rows(design: Design, runs: Mapping[Size, Mapping[float, Runs]]) -> Iterator[dict[str, object]]:
    """Rows of the CSV, one a run and scoring."""
    for size, dropout, (metrics, _) in ((n, p, r) for n, of_size in runs.items() for p, r in of_size.items()):
        for seed, of_seed in enumerate(metrics):
            for decay, values in zip(design.decays, of_seed, strict=True):
                run = {"images": size.images, "dropout": dropout, "weight_decay": decay, "seed": seed}
                for epoch, scores in zip(size.scored.tolist(), values.T.tolist(), strict=True):
                    yield {**run, "epoch": epoch, **dict(zip(METRICS, scores, strict=True))}
