"""A run's folder: which one a name means, what is in it, and when there is none."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from commands import age, fit, manifest, one_line, only_run, scalars
from marks import slow
from softmax_regression import RunLogger, SoftmaxRegression
from softmax_regression.classifier import Batch
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.runs.checkpoint import read
from softmax_regression.runs.folder import open_checkpoint
from softmax_regression.runs.record import update_manifest
from softmax_regression.runs.rows import read_rows
from test_model import data, trainer


def events(run: Path) -> list[Any]:
    """The TensorBoard events of a run."""
    found: list[Any] = []
    for file in run.glob("events.*"):
        found.extend(EventFileLoader(str(file)).Load())
    return found


def steps_of(points: list[tuple[int, float]]) -> list[int]:
    """The steps of a series of scalars."""
    return [step for step, _ in points]


def test_runs_of_the_same_second_have_folders_of_their_own() -> None:
    names = [RunLogger().version for _ in range(3)]
    assert len(set(names)) == 3
    assert sorted(names) == sorted(path.name for path in Path("logs/softmax").iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs").symlink_to("/nonexistent/x")
    assert fit() == 2
    assert "logs/softmax: cannot make a run folder there" in one_line(capsys)


def test_best_and_last_are_of_the_newest_run_on_real_images_which_a_line_names(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update_manifest(run, data={"origin": "the real files"})
    newer, broken = run.with_name("newer"), run.with_name("broken")
    for i, copy in enumerate((newer, broken), 1):
        shutil.copytree(run, copy)
        os.utime(copy / "checkpoints", (2e9 + i, 2e9 + i))
    update_manifest(newer, data={"origin": "generated (data.source=synthetic)"})
    (broken / "run.json").write_text("[1]")
    assert open_checkpoint("best")[0] == broken / "checkpoints" / "best.ckpt"
    assert capsys.readouterr().err == ""
    shutil.rmtree(broken)
    assert open_checkpoint("last")[0] == run / "checkpoints" / "last.ckpt"
    said = f"last: {newer} has generated images, so the newest run is {run}"
    assert said in capsys.readouterr().err
    (run / "checkpoints" / "best.ckpt").unlink()  # as of a run without validation
    assert open_checkpoint("best")[0] == run / "checkpoints" / "last.ckpt"


def test_a_run_whose_logger_has_a_name_with_a_slash_may_be_the_newest(run: Path) -> None:
    deeper = run.parent / "project" / "newest"
    shutil.copytree(run, deeper)
    os.utime(deeper / "checkpoints", (2e9, 2e9))
    assert open_checkpoint("best")[0] == deeper / "checkpoints" / "best.ckpt"


def test_a_run_that_has_saved_nothing_yet_is_opened_to_go_on_only(trained: Path) -> None:
    start = Path("logs", "softmax", "a", "start.ckpt")
    start.parent.mkdir(parents=True)
    shutil.copy(trained / "checkpoints" / "last.ckpt", start)
    assert open_checkpoint(str(start.parent), prefer="last")[0] == start
    for which in (str(start.parent), "best", "last"):
        with pytest.raises(InputError, match="has"):
            open_checkpoint(which)


def test_a_run_is_listed_and_drawn_once_however_often_it_goes_on(run: Path) -> None:
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 0
    graphs = 0
    tags = []
    for event in events(run):
        graphs += event.HasField("graph_def")
        for value in event.summary.value:
            tags.append(value.tag)
    assert graphs == 1
    assert tags.count("_hparams_/session_start_info") == 1
    assert tags.count("val/loss") == 4


class FailsOnce(SoftmaxRegression):
    """Its third step fails, once."""

    has_failed = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == 2 and not self.has_failed:
            self.has_failed = True
            raise ZeroDivisionError
        return super().training_step(batch, batch_idx)


def test_a_trainer_fits_again_after_an_error() -> None:
    module = FailsOnce()
    again = trainer(1, logger=RunLogger(), log_every_n_steps=1)
    with pytest.raises(ZeroDivisionError):
        again.fit(module, data())
    again.fit(module, data())
    assert steps_of(scalars(only_run())["val/loss"])
    tags = [value.tag for event in events(only_run()) for value in event.summary.value]
    assert tags.count("_hparams_/session_start_info") == 1


class LogsAMetric(Callback):
    """As Lightning's documentation shows it for TensorBoard's page HPARAMS."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.logger
        trainer.logger.log_hyperparams(dict(pl_module.hparams), {"hp/metric": 0})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("hp/metric", 0.5)


def test_hparams_has_first_what_one_varies_and_the_metrics_that_are_named() -> None:
    assert fit("--trainer.max_epochs=1", f"--trainer.callbacks+={__name__}.LogsAMetric") == 0
    listed = []
    for event in events(only_run()):
        for value in event.summary.value:
            if value.tag == "_hparams_/experiment":
                listed.append(HParamsPluginData.FromString(value.metadata.plugin_data.content).experiment)
    (experiment,) = listed
    columns = [info.name for info in experiment.hparam_infos]
    assert columns[:4] == ["lr", "batch_size", "max_epochs", "model"]
    assert not {"dirs", "device", "eval_batch_size"} & set(columns)
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"train/loss", "train/acc", "val/loss", "val/acc", "hp/metric"}
    assert [value for _, value in scalars(only_run())["hp/metric"]] == [0, 0.5]
    age(only_run())
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 0
    assert [value for _, value in scalars(only_run())["hp/metric"]] == [0, 0.5, 0.5]


def test_hparams_and_graphs_are_left_out_where_lightning_logs_no_hyperparameters() -> None:
    assert fit("--trainer.max_epochs=1", "--trainer.enable_autolog_hparams=false") == 0
    for event in events(only_run()):
        assert not event.HasField("graph_def")
        for value in event.summary.value:
            assert not value.tag.startswith("_hparams_")
    assert scalars(only_run())["val/loss"]


def test_tensorboard_has_losses_and_accuracies_first(trained: Path) -> None:
    tags = sorted(scalars(trained))
    assert tags == ["train/acc", "train/loss", "val/acc", "val/loss", "watch/epoch", "watch/lr"]


class ByHand(SoftmaxRegression):
    """Two optimizers, one of which the module steps without Lightning's knowledge."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()  # type: ignore[attr-defined]
        first.zero_grad()
        self.manual_backward(loss)
        first.optimizer.step()
        second.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        weight, bias = self.parameters()
        return [torch.optim.SGD([weight], 0.1), torch.optim.SGD([bias], 0.1)]


def test_training_and_validation_stand_at_the_same_steps_when_the_module_optimizes_itself() -> None:
    assert fit(f"--model={__name__}.ByHand", "--trainer.max_epochs=2") == 0
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=3"]) == 0
    series = scalars(only_run())
    for name in ("train/loss", "val/loss"):
        assert steps_of(series[name]) == [15, 31, 47]
    assert [row["step"] for row in read_rows(only_run())] == [16, 32, 48]


class OwnAxis(SoftmaxRegression):
    """Has the epoch as its x axis, and logs what it likes at the end of it."""

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log("step", float(self.current_epoch))
        for logger in self.loggers:
            logger.log_metrics({"own": 1.0}, step=self.global_step)
            logger.log_metrics({"images": 2.0}, step=32 * self.global_step)


@pytest.mark.slow
def test_what_was_logged_before_the_save_stays_when_a_run_goes_on_whatever_its_x_axis() -> None:
    csv_logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: csv, version: x}}"
    logger = f"--trainer.logger=[softmax_regression.RunLogger, {csv_logger}]"
    assert fit(f"--model={__name__}.OwnAxis", "--trainer.max_epochs=1", logger) == 0
    for epochs in (2, 3):
        age(only_run())
        assert main(["fit", "--resume", str(only_run()), f"--trainer.max_epochs={epochs}"]) == 0
    series = scalars(only_run())
    (path,) = Path("csv").glob("*/x/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name, steps in (("train/loss", [0, 1, 2]), ("own", [16, 32, 48]), ("images", [512, 1024, 1536])):
        assert steps_of(series[name]) == steps
        assert [float(row["step"]) for row in rows if row[name]] == steps


def test_the_rows_of_a_csv_logger_of_a_fixed_name_stay_when_a_run_is_scored_and_goes_on() -> None:
    csv_logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: csv, version: x}}"
    logger = f"--trainer.logger=[softmax_regression.RunLogger, {csv_logger}]"
    assert fit("--trainer.max_epochs=1", logger) == 0
    (path,) = Path("csv").glob("*/x/metrics.csv")
    for command, flag in (("test", "--ckpt_path"), ("fit", "--resume")):
        before = path.read_text().splitlines()
        assert main([command, flag, str(only_run()), "--trainer.max_epochs=2"]) == 0
        assert len(path.read_text().splitlines()) > len(before)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["15", "31"]
    assert [row["step"] for row in rows if row["train/loss"]] == ["15", "31"]


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=2", "--trainer.logger=false"])
def test_a_run_without_a_folder_leaves_nothing(option: str) -> None:
    assert fit(option) == 0
    assert not list(Path().iterdir())


EPOCHS = [(1, 16), (2, 32), (3, 48)]  # and their last steps


@pytest.mark.parametrize(
    ("options", "rows", "validated", "best"),
    [
        (["--trainer.max_steps=5"], [(1, 5)], [], False),  # less than an epoch
        slow(["--trainer.max_steps=20"], [(1, 16), (2, 20)], [15], True),
        slow(["--trainer.limit_val_batches=0"], EPOCHS, [], False),
        (["--trainer.check_val_every_n_epoch=2"], EPOCHS, [31], True),
        slow(["--trainer.num_sanity_val_steps=2"], EPOCHS, [15, 31, 47], True),
        (["--trainer.val_check_interval=0.5", "--trainer.max_epochs=1"], [(1, 8), (1, 16)], [7, 15], True),
        slow(
            ["--best_checkpoint.monitor=train/loss", "--early_stopping.monitor=train/loss"],
            EPOCHS,
            [15, 31, 47],
            True,
        ),
    ],
)
def test_what_a_run_leaves_follows_its_validations(
    options: list[str], rows: list[tuple[int, int]], validated: list[int], best: bool
) -> None:
    assert fit(*options) == 0
    run = only_run()
    saved = read(run / "checkpoints" / "last.ckpt")
    found = read_rows(run)
    assert [(row["epoch"], row["step"]) for row in found] == rows
    assert manifest(run)["status"] == "finished"
    assert [step for step, _ in scalars(run).get("val/loss", [])] == validated
    assert [row["step"] - 1 for row in found if "val/loss" in row] == validated
    assert (run / "checkpoints" / "best.ckpt").exists() == best
    (waited,) = (entry["wait_count"] for name, entry in saved["callbacks"].items() if "EarlyStopping" in name)
    assert waited == 0


def test_the_patience_counts_validations_not_epochs() -> None:
    options = ("--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=40")
    assert fit(*options, "--trainer.check_val_every_n_epoch=3", "--early_stopping.min_delta=1") == 0
    history = read_rows(only_run())
    values = [row["val/loss"] for row in history if "val/loss" in row]
    assert len(history) == 3 * len(values) < 40
    assert all(value > min(values[:-3]) - 1 for value in values[-3:])
