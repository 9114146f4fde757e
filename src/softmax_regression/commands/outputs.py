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
from softmax_regression.errors import InputError, shell_command
from softmax_regression.files import check_writable, write
from softmax_regression.runs.processes import print_rank_zero
from softmax_regression.runs.progress import metrics_text
from softmax_regression.runs.record import results, stop_reason, update_manifest

if TYPE_CHECKING:
    from softmax_regression.commands.train import TrainCLI


def summary(trainer: Trainer, run: Path | None) -> str:
    """Return what `fit` says in the end: why it stopped, the metrics, the checkpoints, what to type next."""
    rows, words = results(trainer), {"final": "last epoch", "best": "best epoch"}
    epochs = {name: row.get("epoch", trainer.current_epoch) for name, row in rows.items()}
    lines = [f"{words[name]} {epochs[name]}: {metrics_text(row)}" for name, row in rows.items() if row]
    if not run:
        return "\n".join([stop_reason(trainer), *lines, "nothing is kept: there is no logger"])
    return "\n".join([
        stop_reason(trainer), *lines, f"checkpoints: {run / 'checkpoints'}", "next:",
        f"  {shell_command('train.py', 'test', '--ckpt_path', str(run))}",
        f"  {shell_command('study.py', 'report', str(run))}",
        f"  {shlex.join(['tensorboard', '--logdir', str(run.parent.parent)])}",
    ])  # fmt: skip


def say_what_is_scored(cli: "TrainCLI") -> None:
    """Name run, checkpoint and data; warn where the data are not those that were trained on."""
    data, path = cli.datamodule, Path(cli.config[cli.subcommand].ckpt_path)
    loaded, photos = getattr(data, "data", None), getattr(data, "photos", None)
    origin = loaded.origin if loaded else f"{len(photos[1])} photos" if photos else type(data).__name__
    checkpoint = f"run {cli.run}, checkpoint {path.name}" if cli.run else f"checkpoint {path}"
    print_rank_zero(f"{cli.subcommand}: {checkpoint}, data {origin}")
    if other := other_data(cli.checkpoint, data):
        print(f"warning: {other}", file=sys.stderr)


def discard_unstarted(folders: Sequence[Path]) -> None:
    """Remove the folders of a run that failed before its first step."""
    for folder in folders:
        if not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


def record_scores(cli: "TrainCLI", rows: Sequence[Mapping[str, float]]) -> None:
    """Print the metrics of a command, and keep them in the run's manifest if they are of all images."""
    trainer, metrics = cli.trainer, {name: value for row in rows for name, value in row.items()}
    limit = trainer.limit_test_batches if cli.subcommand == "test" else trainer.limit_val_batches
    print_rank_zero(metrics_text(metrics))
    everything = isinstance(limit, float) and limit == 1  # an int counts batches
    if trainer.is_global_zero and cli.run and everything:
        update_manifest(cli.run, **{str(cli.subcommand): metrics})


def predictions_path(cli: "TrainCLI") -> Path:
    """Return where the predictions go, or refuse it, before they are made."""
    output, force = cli.config[cli.subcommand].output, cli.config[cli.subcommand].force
    name = "predictions-photos.csv" if getattr(cli.datamodule, "photos", None) else "predictions.csv"
    path = Path(output) if output else (cli.run or Path()) / name
    if path.is_dir() or str(output).endswith("/"):
        raise InputError(f"{path}: is a folder; give --output a file, such as {path / name}")
    ours = force or not path.is_file()
    if not ours:
        with path.open("rb") as file:
            ours = re.match(rb"index,(label|image),predicted,|$", file.readline()) is not None
    check_writable(path, ours)
    if cli.trainer.world_size > 1:
        raise InputError(f"{cli.trainer.world_size} processes: predict uses one; drop --trainer.devices, or torchrun")
    return path


def write_predictions(path: Path, data: Any, batches: Sequence[Any]) -> None:
    """Write as CSV what `predict_step` returned: index, label or photo, predicted class, probabilities."""
    file, photos, classes = io.StringIO(), getattr(data, "photos", None), data.class_names
    if photos is None:
        kind, names = "label", [classes[y] for y in data.loaded.test_labels.tolist()]
    else:
        kind, names = "image", [str(each) for each in photos[1]]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["index", kind, "predicted", "probability", *classes])
    columns = [[value for batch in batches for value in batch[key].tolist()] for key in batches[0]]
    for index, (name, predicted, p, all_p) in enumerate(zip(names, *columns, strict=False)):
        writer.writerow([index, name, classes[predicted], f"{p:.6f}", *(f"{p:.6g}" for p in all_p)])
    write(file.getvalue().encode(), path)
    print(f"predictions: {path}")
