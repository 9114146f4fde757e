"""What came of a run, of several side by side, and of all that there are.

Command: python study.py report RUN; python study.py compare RUN RUN ...; python study.py list
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from softmax_regression.errors import InputError, StorageError
from softmax_regression.figures.drawings import (
    LINEAR,
    METRIC,
    class_scores,
    curves,
    drawings,
    learning_curves,
)
from softmax_regression.figures.page import Page, check_output
from softmax_regression.files import locked
from softmax_regression.runs.folder import find_run, open_checkpoint, open_data, open_model
from softmax_regression.runs.record import best_epoch, read_manifest
from softmax_regression.studies.curve import read_scalars, readable

CAPTIONS = {
    "confusion_matrix": "Which classes are taken for which: counts, and shares of the true class.",
    "predictions": "The most confident mistakes, framed, and some images that were classified right.",
    "weights": "The weights of each class as an image: a linear model is one template a class.",
    "calibration": "How often the model is right, against how sure it is; the expected calibration error is "
    "the mean distance between the two.",
    "worst_mistake": "The most confident mistake: what each pixel adds to the logit, pixel times weight.",
}
WORDS = (
    "loss is the mean cross-entropy in nats, minus the natural logarithm of the true class's probability, "
    "so that guessing among ten costs log 10 = 2.303. acc is the share of images classified right."
)
ON_TOP = ("seed_everything", "model", "data", "trainer.max_epochs", "early_stopping.patience")
ASIDE = ("trainer.callbacks", "trainer.logger", "trainer.enable_", "figures", "ckpt_path", "resume", "output")


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
    run, history = find_run(path), getattr(model, "history", [])
    out = out or (run or Path("logs")) / "report"
    check_output(out / "index.html", force)
    manifest = read_manifest(run) if run else {}
    stage = "test" if "test" in manifest else "fit"
    data = open_data(path, dirs, stage)
    page = Page(f"Run {run.name if run else path.name}")
    state = f"{_state(run, manifest)}: {manifest.get('stopped') or 'no end was recorded'}. " if run else ""
    page.text(f"{state}Checkpoint: `{path.name}`. Data: {manifest.get('data', {}).get('origin', 'unknown')}.")
    config = manifest.pop("config", None) or {"model": dict(model.hparams)}
    options = {name: word for name, word in _options(config).items() if name.startswith(ON_TOP)}
    page.table([[name, word] for name, word in options.items() if word != "none"], ["option", "value"])
    _training(page, run, manifest, history)
    _images(page, model, data, stage)
    page.heading("How to repeat it")
    page.preformatted(manifest.pop("command", "no command was recorded"))
    page.preformatted(yaml.safe_dump(config, sort_keys=False), "All options")
    page.preformatted(json.dumps(manifest, indent=2), "Metrics, versions and machine")
    return page.write(out)


def _training(page: Page, run: Path | None, manifest: Mapping[str, Any], history: Sequence[Any]) -> None:
    """Add the metrics of a run, and its curves as it has logged them, or else as its checkpoint has them."""
    rows = {
        "last epoch": manifest.get("final") or (history[-1] if history else {}),
        "best epoch": manifest.get("best") or best_epoch(history),
        "test": manifest.get("test", {}),
    }
    if metrics := _metrics(rows.values()):
        cells = [[what, *_cells(row, metrics)] for what, row in rows.items() if row]
        page.text(WORDS)
        page.table(cells, ["", "epoch", *metrics])
    with suppress(InputError):  # nothing was logged
        figure = learning_curves({"": read_scalars(run) if run else curves(history)})
        page.figure(figure, "curves", "Loss and accuracy by epoch.")


@torch.no_grad()
def _images(page: Page, model: LightningModule, data: LightningDataModule | None, stage: str) -> None:
    """Add what a model makes of the images of the stage `test`, or of those that `fit` validates on."""
    loaders: Any = data and (data.test_dataloader() if stage == "test" else data.val_dataloader())
    loader = loaders.get("val") if isinstance(loaders, dict) else loaders
    parts = [(x, y, model(x)) for x, y in loader or []]
    if not parts:
        page.text("It held out no images to be shown; after `train.py test` the test images are.")
        return
    images, labels, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    names = getattr(data, "class_names", [str(i) for i in range(logits.shape[1])])
    page.heading(f"What it makes of the {len(images):,} {'test' if stage == 'test' else 'validation'} images")
    figures = drawings(images, labels, logits, names, list(model.parameters()))
    for what, draw in figures.items():
        page.figure(draw(), what, CAPTIONS[what])
    if not figures.keys() >= set(LINEAR):
        page.text("What each pixel adds is left out: the model is not linear in the pixels.")
    scores = class_scores(logits.argmax(1), labels, len(names)).tolist()
    rows = [[name, *row] for name, row in zip(names, scores, strict=True)]
    page.table(rows, ["class", "precision", "recall", "F1"])


def compare(runs: Sequence[Path], out: Path = Path("logs/compare"), force: bool = False) -> Path:
    """Write a page with the options in which runs differ, their metrics and their curves together.

    Args:
        runs: The folders of two runs or more; one that diverged or cannot be read is left out.
        out: Folder of the page.
        force: Let it replace a page of somebody else's.

    Raises:
        InputError: There are fewer than two, none can be read, or the page cannot be written.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run: comparing takes two or more; give their folders")
    check_output(out / "index.html", force)
    found = readable(runs, lambda run: (read_manifest(run), _scores(run), read_scalars(run)))
    scores = {name: of_run for name, (_, of_run, _) in found.items()}
    options = _by_option([_options(manifest.get("config", {})) for manifest, _, _ in found.values()])
    differing = {option: words for option, words in options.items() if len({*words} - {""}) > 1}
    metrics = [metric for metric in _metrics(scores.values()) if not metric.startswith("train")]
    page = Page(f"{len(found)} runs side by side")
    page.text(f"Where their options differ, and the metrics of the best epoch. {WORDS}")
    rows = [
        [name, *(words[i] for words in differing.values()), *_cells(scores[name], metrics)]
        for i, name in enumerate(found)
    ]
    page.table(rows, ["run", *differing, "epoch", *metrics])
    logged = learning_curves({name: metrics for name, (_, _, metrics) in found.items()})
    page.figure(logged, "curves", "Loss and accuracy by epoch.")
    page.heading("How to repeat them")
    for name, (manifest, _, _) in found.items():
        known = {key: manifest.get(key) for key in ("data", "git", "versions", "machine")}
        page.preformatted(f"{manifest.get('command', '')}\n\n{json.dumps(known, indent=2)}", name)
    return page.write(out)


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
    read = [(_manifest(run), run) for run in sorted(runs)]
    found = sorted(read, key=lambda pair: str(pair[0].get("started", "")))
    options = _by_option([_options(manifest.get("config", {})) for manifest, _ in found])
    usual = {option: Counter(filter(None, words)).most_common(1)[0][0] for option, words in options.items()}
    table = [("run", "state", "data", "epoch", "val/loss", "val/acc", "test/acc", "what sets it apart")]
    for i, (manifest, run) in enumerate(found):
        scores: Mapping[str, Any] = {}
        with suppress(InputError, StorageError):
            scores = _scores(run)
        cells = map(str, _cells(scores, ["val/loss", "val/acc", "test/acc"]))
        odd = [f"{name}={words[i]}" for name, words in options.items() if words[i] not in ("", usual[name])]
        origin = manifest.get("data", {}).get("origin", "")
        table.append((str(run), _state(run, manifest), origin, *cells, " ".join(odd)))
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


def _scores(run: Path) -> Mapping[str, Any]:
    """Return the metrics of a run's best epoch, and those of its test.

    Raises:
        InputError: It has no manifest and no checkpoint that can be read.
    """
    manifest = read_manifest(run)
    row = manifest.get("best") or manifest.get("final")
    if not row:
        history = open_checkpoint(str(run), prefer="last")[1].get("history", [])
        row = best_epoch(history) or (history[-1] if history else {})
    return {**row, **manifest.get("test", {})}


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if METRIC.fullmatch(name)))


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


def _by_option(runs: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the words of each option, one a run; "" where a run does not say."""
    names = dict.fromkeys(name for options in runs for name in options)
    return {name: [options.get(name, "") for options in runs] for name in names}
