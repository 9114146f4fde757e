"""metrics.csv: a row is added as it comes, and what a kill has cut short is left out."""

import csv
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from commands import manifest
from softmax_regression import LiveCurve, RunLogger, RunRecord
from softmax_regression.runs.progress import EpochProgress
from softmax_regression.runs.rows import (
    ROWS_FILE,
    Row,
    RowCallback,
    RowsFile,
    count_logged_rows,
    keep_logged_rows,
    read_rows,
)

NAN = float("nan")
FIRST: Row = {"epoch": 1, "step": 10, "lr": 0.1, "val/loss": 0.5}
SECOND: Row = {"epoch": 2, "step": 20, "lr": 0.1, "val/loss": 0.25}


def test_a_new_row_is_added_to_the_file_which_stays_the_same_file(tmp_path: Path) -> None:
    file = RowsFile(tmp_path / ROWS_FILE)
    rows = [FIRST | {"val/loss": NAN}]
    file.save(rows)
    same = file.path.stat().st_ino
    rows.append(SECOND)
    file.save(rows)
    file.save(rows)
    assert file.path.stat().st_ino == same
    assert file.path.read_text() == "epoch,step,lr,val/loss\n1,10,0.1,nan\n2,20,0.1,0.25\n"


@pytest.mark.parametrize("change", [{"val/loss": 0.75}, {"train/loss": 0.75}], ids=["another value", "a new column"])
def test_a_row_that_changes_is_written_anew(tmp_path: Path, change: Row) -> None:
    file = RowsFile(tmp_path / ROWS_FILE)
    rows = [dict(FIRST)]
    file.save(rows)
    rows[0].update(change)
    rows.append(SECOND)
    file.save(rows)
    assert read_rows(tmp_path) == [FIRST | change, SECOND]


def test_a_row_that_a_kill_has_cut_short_is_left_out(tmp_path: Path) -> None:
    file = RowsFile(tmp_path / ROWS_FILE)
    file.save([FIRST, SECOND])
    whole = file.path.read_bytes()
    for n in range(1, len(b"2,20,0.1,0.25\n") + 1):
        file.path.write_bytes(whole[:-n])
        assert read_rows(tmp_path) == [FIRST]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:.*logging interval")
def test_a_trainer_that_trains_on_adds_to_its_rows_and_another_one_begins_anew() -> None:
    record = RunRecord()
    for epochs, clip in ([1, 2], 0.5), ([1], 0.25):
        trainer = Trainer(
            logger=RunLogger(), callbacks=[record], max_epochs=1, limit_train_batches=2, limit_val_batches=0,
            gradient_clip_val=clip,
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        model = BoringModel()
        trainer.fit(model)
        trainer.fit_loop.max_epochs = len(epochs)
        trainer.fit(model)
        run = Path(str(trainer.log_dir))
        assert [row["epoch"] for row in read_rows(run)] == epochs
        assert f"gradient_clip_val: {clip}" in (run / "config.yaml").read_text()


class CannotTest(BoringModel):
    """Trains, and fails when it is tested."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        raise ZeroDivisionError


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:.*logging interval")
def test_a_training_that_is_over_stays_finished_if_a_test_fails() -> None:
    trainer = Trainer(
        logger=RunLogger(), callbacks=[RunRecord()], max_epochs=1, limit_train_batches=2, limit_val_batches=0,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = CannotTest()
    trainer.fit(model)
    with pytest.raises(ZeroDivisionError):
        trainer.test(model, verbose=False)
    assert manifest(Path(str(trainer.log_dir)))["status"] == "finished"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "kinds",
    [[RunRecord, EpochProgress], [LiveCurve, RunRecord], [EpochProgress, LiveCurve], [LiveCurve]],
    ids=lambda kinds: ", ".join(kind.__name__ for kind in kinds),
)
def test_callbacks_in_any_order_read_the_same_rows(kinds: list[type[Callback]]) -> None:
    trainer = Trainer(
        logger=RunLogger(), callbacks=[kind() for kind in kinds], max_epochs=2, limit_train_batches=2,
        log_every_n_steps=1, limit_val_batches=1, accelerator="cpu", enable_progress_bar=EpochProgress in kinds,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(BoringModel())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(BoringModel())
    (rows,) = [callback.rows for callback in trainer.callbacks if isinstance(callback, RowCallback)]  # type: ignore[attr-defined]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LiveCurve):
            assert callback.rows == rows
    if RunRecord in kinds:
        assert read_rows(Path(str(trainer.log_dir))) == rows


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_what_a_callback_logs_as_an_epoch_begins_is_in_the_row_of_that_epoch() -> None:
    collector = RowCallback()
    callbacks = [LearningRateMonitor("epoch"), collector]
    options: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1, "enable_checkpointing": False}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    Trainer(logger=RunLogger(), callbacks=callbacks, max_epochs=3, accelerator="cpu", **options, **quiet).fit(
        BoringModel()  # divides its learning rate by 10 after each epoch
    )
    assert [row["lr-SGD"] for row in collector.rows] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_what_follows_the_last_epoch_is_not_in_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    drawing = LambdaCallback(on_train_end=lambda *_: time.sleep(0.5))
    trainer = Trainer(
        logger=False, callbacks=[drawing, EpochProgress()], max_epochs=1, limit_train_batches=2, limit_val_batches=1,
        accelerator="cpu", enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert float(capsys.readouterr().out.split()[-2]) < 0.5


def test_each_csv_logger_keeps_its_own_rows_also_where_another_one_has_no_file_yet(tmp_path: Path) -> None:
    idle, used = loggers = [CSVLogger(tmp_path, name, version=0) for name in ("idle", "used")]
    used.log_metrics({"loss": 0.5}, step=1)
    counts = count_logged_rows(loggers)
    for logger in loggers:
        logger.log_metrics({"loss": 0.25}, step=2)
        logger.save()
    keep_logged_rows([CSVLogger(tmp_path, name, version=0) for name in ("idle", "used")], counts)
    assert not Path(idle.log_dir, "metrics.csv").exists()
    with Path(used.log_dir, "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"loss": "0.5", "step": "1"}]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_a_training_leaves_the_loops_of_its_trainer_as_they_were() -> None:
    trainer = Trainer(
        logger=False, callbacks=[RowCallback()], max_epochs=1, limit_train_batches=2, limit_val_batches=0,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    before = set(vars(trainer.fit_loop))
    trainer.fit(BoringModel())
    assert "on_advance_end" not in vars(trainer.fit_loop).keys() - before
