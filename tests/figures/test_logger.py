"""What TensorBoard shows of a run beside its scalars, read back from the event files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from commands import fit, one_line, only_run, pictures
from softmax_regression import FashionMNISTDataModule, FigureLogger, LiveCurve, RunLogger, SoftmaxRegression
from softmax_regression.commands.train import main
from softmax_regression.data.minibatches import Batches
from softmax_regression.figures.logger import score
from softmax_regression.runs import checkpoint

ON = "--figures.every_n_epochs=null"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def steps(run: Path) -> dict[str, list[int]]:
    return {tag: sorted(found) for tag, found in pictures(run).items() if tag != "graph"}


def test_the_last_and_the_best_epoch_are_drawn_and_all_of_the_test() -> None:
    assert fit(ON, "--model.lr=20", "--trainer.max_epochs=4") == 0  # so the loss goes up and down
    run = only_run()
    best = len(checkpoint.read(run / "checkpoints" / "best.ckpt")["history"])
    assert best < 4
    names = ("confusion_matrix", "predictions", "weights")
    drawn = {f"{tag}/{name}": [step] for tag, step in (("val", 4), ("val_best", best)) for name in names}
    assert steps(run) == drawn
    images = pictures(run)
    assert images["val/weights"][4] != images["val_best/weights"][best]
    assert main(["test", f"--ckpt_path={run}"]) == 0
    tested = (*names, "calibration", "classes", "worst_mistake")
    assert steps(run) == drawn | {f"test/{name}": [best] for name in tested}


def test_figures_are_drawn_as_often_as_asked() -> None:
    assert fit("--figures.every_n_epochs=2", "--trainer.max_epochs=3") == 0
    assert steps(only_run())["val/weights"] == [2, 3]


def test_a_run_that_goes_on_draws_its_new_last_and_best_epoch() -> None:
    assert fit(ON, "--trainer.max_epochs=2") == 0
    run = only_run()
    assert main(["fit", f"--resume={run}", ON, "--trainer.max_epochs=3"]) == 0
    best = len(checkpoint.read(run / "checkpoints" / "best.ckpt")["history"])
    assert best == 3  # so both are drawn of the same epoch
    found = steps(run)
    assert found["val/weights"] == found["val_best/weights"] == [2, 3]
    images = pictures(run)
    assert images["val/weights"][3] == images["val_best/weights"][3] != images["val/weights"][2]


@pytest.mark.parametrize("options", [("--figures.every_n_epochs=0",), (ON, "--data.val_size=0")])
def test_nothing_is_drawn_when_off_or_where_nothing_is_validated(options: tuple[str, ...]) -> None:
    train = "--trainer.callbacks=softmax_regression.runs.callbacks.LastCheckpoint"
    assert fit(*options, train) == 0
    assert steps(only_run()) == {}


def test_a_negative_interval_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--figures.every_n_epochs=-1") == 2
    assert "every_n_epochs=-1: must be at least 0" in one_line(capsys)


def test_text_has_the_command_and_the_configuration_and_histograms_come_on_request() -> None:
    assert fit("--figures.histograms=true") == 0
    events = EventAccumulator(str(only_run()), size_guidance={"histograms": 0})
    events.Reload()
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in ("command/text_summary", "configuration/text_summary")
    }
    assert texts["command/text_summary"].startswith("    python ")
    assert "batch_size: 32" in texts["configuration/text_summary"]
    names = {f"{kind}/linear.{name}" for kind in ("weights", "gradients") for name in ("weight", "bias")}
    assert set(events.Tags()["histograms"]) == names
    assert [event.step for event in events.Histograms("weights/linear.bias")] == [1, 2, 3]


def test_scores_are_in_the_order_of_the_index() -> None:
    images = torch.randint(256, (70, 28, 28), dtype=torch.uint8)
    model, index = SoftmaxRegression().eval(), torch.randperm(70)[:50]
    shares = [
        score(model, Batches(images, torch.zeros(70).long(), index, 16, 2, rank=rank, world_size=3))
        for rank in range(3)
    ]
    with torch.no_grad():
        assert torch.allclose(torch.stack(shares).sum(0), model(images[index]), atol=1e-6)


def test_a_notebook_shows_the_curve_while_the_model_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    notebook = ModuleType("IPython.display")
    notebook.display = shown.append  # type: ignore[attr-defined]
    notebook.clear_output = lambda wait: shown.clear()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    data = FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600)
    trainer = Trainer(max_epochs=2, logger=False, callbacks=[LiveCurve()], enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(SoftmaxRegression(), data)
    (figure,) = shown
    loss = figure.axes[0]
    assert [len(line.get_xdata()) for line in loss.lines] == [2, 2]


@pytest.mark.parametrize(("monitor", "tags"), [(None, ("val",)), ("val/loss", ("val", "val_best"))])
def test_from_python_it_works_with_checkpoints_of_lightning(monitor: str | None, tags: Sequence[str]) -> None:
    callbacks = [FigureLogger(), ModelCheckpoint(monitor=monitor, auto_insert_metric_name=False)]
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, logger=RunLogger(), callbacks=callbacks,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(SoftmaxRegression(), FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600))
    names = ("confusion_matrix", "predictions", "weights")
    assert steps(only_run()) == {f"{tag}/{name}": [2] for tag in tags for name in names}
