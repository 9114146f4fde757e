"""What the commands leave behind and say: what is scored, metrics, predictions, what to type next."""

import csv
import io
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from softmax_regression.commands.resume import other_data
from softmax_regression.errors import InputError, typed
from softmax_regression.files import check_writable, write
from softmax_regression.runs.folder import RunLogger
from softmax_regression.runs.progress import metrics_text
from softmax_regression.runs.record import results, stop_reason, update_manifest

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI


def say(trainer: Trainer, text: str) -> None:
    """Print for all processes together."""
    if trainer.is_global_zero:
        print(text)


def summary(trainer: Trainer, run: Path | None) -> str:
    """Return what `fit` says in the end: why it stopped, the metrics, the checkpoints, what to type next."""
    lines = [stop_reason(trainer)]
    for name, row in results(trainer, trainer.lightning_module).items():
        if row:
            words = {"final": "last epoch", "best": "best epoch"}[name]
            lines.append(f"{words} {row.get('epoch', trainer.current_epoch)}: {metrics_text(row)}")
    if not run:
        return "\n".join([*lines, "nothing was saved: without a logger a run has no folder"])
    commands = (
        typed("train.py", "test", "--ckpt_path", str(run)),
        typed("study.py", "report", str(run)),
        shlex.join(["tensorboard", "--logdir", str(run.parent.parent)]),
    )
    return "\n".join([*lines, f"checkpoints: {run / 'checkpoints'}", "next:", *(f"  {c}" for c in commands)])


def say_what_is_scored(cli: "TrainCLI") -> None:
    """Name run, checkpoint and data on stderr; warn where the data are not those that were trained on."""
    data, path = cli.datamodule, Path(cli.config[cli.subcommand].ckpt_path)
    loaded, photos = getattr(data, "data", None), getattr(data, "photos", None)
    origin = loaded.origin if loaded else f"{len(photos[1])} photos" if photos else type(data).__name__
    run = f"run {cli.run}, " if cli.run else ""
    name = path.name if cli.run else path
    say(cli.trainer, f"{cli.subcommand}: {run}checkpoint {name}, data {origin}", )
    if other := other_data(cli.checkpoint, data):
        print(f"warning: {other}", file=sys.stderr)


def discard_unstarted(trainer: Trainer) -> None:
    """Remove the folder of a run that failed before its first step."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger) and not Path(logger.log_dir, "run.json").exists():
            shutil.rmtree(logger.log_dir, ignore_errors=True)


def keep(run: Path | None, command: str, rows: Sequence[Mapping[str, float]], trainer: Trainer) -> None:
    """Print the metrics of a command, and keep them in the run's manifest if they are of all images."""
    metrics = {name: value for row in rows for name, value in row.items()}
    limit = trainer.limit_test_batches if command == "test" else trainer.limit_val_batches
    say(trainer, metrics_text(metrics))
    if trainer.is_global_zero and run and isinstance(limit, float) and limit == 1:  # an int counts batches
        update_manifest(run, **{command: metrics})


def predictions_path(run: Path | None, data: Any, output: str | None, force: bool) -> Path:
    """Return where the predictions go, checked before they are made.

    Raises:
        InputError: They cannot be written there, or somebody's file is there.
    """
    name = "predictions-photos.csv" if getattr(data, "photos", None) else "predictions.csv"
    path = Path(output) if output else (run or Path()) / name
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give --output a file, such as {path / name}")
    ours = force or not path.is_file()
    if not ours:
        with path.open("rb") as file:
            ours = re.match(rb"index,(label|image),predicted,|$", file.readline()) is not None
    check_writable(path, ours)
    return path


def write_predictions(path: Path, data: Any, batches: Sequence[Any]) -> None:
    """Write the predictions as CSV: index, label if known, predicted class, probability, all probabilities.

    Args:
        path: The file.
        data: Where the images came from, in the order of the predictions.
        batches: What `predict_step` returned.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    classes, photos = data.class_names, getattr(data, "photos", None)
    if photos is None:
        kind, names = "label", [classes[y] for y in data.loaded.test_labels.tolist()]
    else:
        kind, names = "image", [str(each) for each in photos[1]]
    writer.writerow(["index", kind, "predicted", "probability", *classes])
    columns = [[value for batch in batches for value in batch[key].tolist()] for key in batches[0]]
    for index, (name, predicted, p, all_p) in enumerate(zip(names, *columns, strict=False)):
        writer.writerow([index, name, classes[predicted], f"{p:.6f}", *(f"{p:.6g}" for p in all_p)])
    write(file.getvalue().encode(), path)
    print(f"predictions: {path}")
