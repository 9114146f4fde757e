"""Anybody's module on anybody's data: every command does what a plain Trainer does, or says why not in one line.

A cell of the table is a case of `cases.py`.
"""

import csv
import io
import itertools
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ODD, TRAINER, Case, table
from plain_trainer import EPOCHS, LOG_EVERY, Plain, train_plainly

from commands import age, manifest, only_run, scalars
from marks import slow
from softmax_regression.__main__ import main
from softmax_regression.runs import checkpoint

HERE = Path(__file__).parent
# These are quick. Of the others, which are slow, .ci/run takes these; the rest, of the marker `table`, is for a change
# of how runs are trained, kept or opened, and takes half an hour.
QUICK = ("Plain, a list of loaders", "InjectedModule, dict batches", "Lazy, own data")
OFTEN = (
    "Ours, our data",
    "InjectedOptimizer, a dict of loaders",
    "Compiled, own data",
    "Manual, our data",
    "Autoencoder, a list of loaders",
    "wrapped metrics of ours",
    "a stream",
    "validated twice an epoch",
)
REFUSED = ("Ours, dict batches",)  # see test_refused.py


def parameters() -> Iterator[Any]:
    """Yield every cell of the table."""
    for name, case in {**table(), **ODD, **TRAINER}.items():
        if name in REFUSED:
            continue
        marks = []
        if name not in QUICK:
            marks.append(pytest.mark.slow)
        if name not in (*QUICK, *OFTEN):
            marks.append(pytest.mark.table)
        yield pytest.param(case, id=name, marks=marks)


# What Lightning says of these modules to a plain Trainer, too.
pytestmark = pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`")


@dataclass
class Cell:
    """A case, once `fit` has been typed with some flags: its run, what it printed, and what a plain Trainer does."""

    case: Case
    flags: list[str]
    run: Path
    printed: list[str]
    plain: Plain


@pytest.fixture(scope="module", params=parameters())
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("cell")
    shutil.copytree(HERE / "zoo", folder / "zoo")
    flags = ["--trainer.accelerator=cpu", "--figures.every_n_epochs=0"]
    flags += [f"--trainer.max_epochs={EPOCHS}", f"--trainer.log_every_n_steps={LOG_EVERY}", *case.flags]
    if not case.monitor.startswith("val/loss"):
        flags += [f"--early_stopping.monitor={case.monitor}", f"--best_checkpoint.monitor={case.monitor}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        with redirect_stdout(io.StringIO()) as output:
            assert main(["fit", *flags]) == 0
        yield Cell(case, flags, only_run(), output.getvalue().splitlines(), train_plainly(case, Path("plain")))


def rows_of(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, without the cells that are empty."""
    rows = []
    with (run / "metrics.csv").open() as file:
        for cells in csv.DictReader(file):
            rows.append({name: float(cell) for name, cell in cells.items() if cell})
    return rows


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that was refused."""
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_fit_trains_to_the_weights_of_a_plain_trainer(cell: Cell) -> None:
    saved = checkpoint.read(cell.run / "checkpoints" / "last.ckpt")
    for name, weight in cell.plain.weights.items():
        if name.startswith("teacher"):  # which its module keeps out of checkpoints
            continue
        assert torch.equal(saved["state_dict"][name], weight), name


def test_tensorboard_shows_the_points_of_a_plain_trainer(cell: Cell) -> None:
    logged = {name.removeprefix("watch/"): points for name, points in scalars(cell.run).items()}
    if "lr" not in cell.plain.scalars:
        logged.pop("lr", None)
    assert logged == cell.plain.scalars


def test_metrics_csv_has_what_a_plain_trainer_has_logged_by_the_end_of_each_epoch(cell: Cell) -> None:
    last = {round(row["epoch"]): row for row in rows_of(cell.run)}
    assert [*last] == [epoch + 1 for epoch in range(len(cell.plain.epochs))]
    for row, plain in zip(last.values(), cell.plain.epochs, strict=True):
        for name in row.keys() & plain.keys():  # a plain Trainer keeps what was logged in an earlier epoch
            assert row[name] == pytest.approx(plain[name]), name
    assert set().union(*rows_of(cell.run)) == {"epoch", "step", "lr"}.union(*cell.plain.epochs)


def test_the_best_is_what_a_plain_checkpoint_keeps(cell: Cell) -> None:
    best = manifest(cell.run)["best"]
    assert best["monitor"] == cell.case.monitor
    assert best["score"] == pytest.approx(cell.plain.best)


@pytest.mark.slow
def test_every_command_that_fit_prints_can_be_typed_and_shows_the_scores(
    cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    following = cell.printed[cell.printed.index("next:") + 1 :]
    assert [shlex.split(line)[1] for line in following] == ["test", "report", "--logdir"]
    for line in following[:2]:
        assert main(shlex.split(line)[1:]) == 0
    page = (cell.run / "report" / "index.html").read_text()
    assert shows(page, cell.plain.best)
    assert cell.case.monitor in page
    assert main(["compare", str(cell.run)]) == 0
    assert shows(Path("logs/compare/index.html").read_text(), cell.plain.best)
    capsys.readouterr()
    assert main(["list"]) == 0
    assert shows(capsys.readouterr().out, cell.plain.best)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scores_are_those_of_a_plain_trainer(cell: Cell, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--ckpt_path", str(cell.run)]) == 0
    assert manifest(cell.run)[command] == pytest.approx(cell.plain.scores[command])
    assert capsys.readouterr().err == ""


def test_predict_writes_a_row_for_each_image_or_says_why_not(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["predict", "--ckpt_path", str(cell.run)])
    path = cell.run / "predictions.csv"
    if cell.case.predicted:
        assert code == 0
        assert path.read_text().count("\n") == 1 + cell.case.predicted
    else:
        assert code == 2
        assert "predict" in refused(capsys)
        assert not path.exists()


def shows(text: str, value: float) -> bool:
    """Whether a text has a number, rounded in one of the ways of the reports."""
    return any(format(value, digits) in text for digits in (".3f", ".4f", ".4g"))


@pytest.mark.slow
def test_export_writes_onnx_or_says_why_not(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    code = main(["export", str(cell.run)])
    exported = (cell.run / "export" / "model.onnx").is_file()
    if code == 2:
        refused(capsys)
    assert (code, exported) in ((0, True), (2, False))


class Killed(BaseException):
    """Stands for SIGKILL where a new process for each kill would take too long: nobody handles it."""


@pytest.mark.parametrize("every", [slow("epoch"), "3 steps"])
def test_a_run_that_is_killed_and_resumed_is_the_one_that_was_not(
    cell: Cell, every: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(cell.case.module())
    step: Any = kind.training_step
    calls = itertools.count(1)

    def killed(self: Any, *args: Any) -> Any:
        if next(calls) == 9:  # within an epoch
            raise Killed
        return step(self, *args)

    logs = every.replace(" ", "-")
    flags = [*cell.flags, f"--trainer.logger.save_dir={logs}"]
    if every != "epoch":
        flags.append("--last_checkpoint.every_n_train_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_step", killed)
        with pytest.raises(Killed):
            main(["fit", *flags])
    run = only_run(Path(logs))
    age(run)
    assert main(["fit", "--resume", str(run)]) == 0
    resumed, whole = (checkpoint.read(each / "checkpoints" / "last.ckpt") for each in (run, cell.run))
    assert resumed["global_step"] == whole["global_step"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight), name
    # ROWS
    assert scalars(run) == scalars(cell.run)
