"""What a run computes on, and in which precision: chosen by flags, said in one line, the same results."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torchmetrics import Metric

from commands import fit, manifest, only_run
from marks import slow
from softmax_regression import FashionMNISTDataModule, SoftmaxRegression
from softmax_regression.commands.train import main
from softmax_regression.data.datasets import Dataset
from softmax_regression.engine import Engine
from softmax_regression.metrics import EpochScores
from softmax_regression.runs import checkpoint
from softmax_regression.runs.progress import training_lines
from softmax_regression.runs.rows import RowCallback, read_rows


def last(run: Path) -> dict[str, Any]:
    return checkpoint.read(run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in the usual precision, on the usual device."""
    folder = tmp_path_factory.mktemp("single")
    assert fit(f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        ("64-true", torch.float64, 1e-6),
        ("bf16-mixed", torch.float32, 0.02),
        slow("bf16-true", torch.bfloat16, 0.05),
        slow("16-mixed", torch.float32, 0.02),
    ],
)
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU:UserWarning")  # bf16 takes its place
def test_every_precision_learns_the_same(single: Path, precision: str, dtype: torch.dtype, tolerance: float) -> None:
    assert fit(f"--trainer.precision={precision}", "--model.loss=stable") == 0
    saved = last(only_run())
    assert saved["state_dict"]["net.2.weight"].dtype == dtype
    for row, expected in zip(read_rows(only_run()), read_rows(single), strict=True):
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=tolerance)
        assert row["val/loss"] == pytest.approx(expected["val/loss"], rel=tolerance)
    assert main(["test", f"--ckpt_path={only_run()}"]) == 0
    assert manifest(only_run())["test"]["test/acc"] > 0.5


@pytest.mark.parametrize("loss", ["torch", "stable"])
def test_gradients_that_are_scaled_for_float16_train_the_same(single: Path, loss: str) -> None:
    """On a CPU, where `16-mixed` alone would scale nothing."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=40)
    rows = RowCallback()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, callbacks=[rows], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=MixedPrecision("16-mixed", "cpu", scaler),
    )  # fmt: skip
    model = SoftmaxRegression(loss=cast(Literal["torch", "stable"], loss))
    trainer.fit(model, FashionMNISTDataModule(32, 101, source="synthetic", synthetic_size=600))
    assert scaler.get_scale() == 2.0**15  # it grew once in 48 steps, so that none overflowed
    losses = [row["train/loss"] for row in rows.rows]
    assert losses == sorted(losses, reverse=True)
    assert losses == pytest.approx([row["train/loss"] for row in read_rows(single)], rel=0.02)
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("loss", ["torch", "stable"])
@pytest.mark.parametrize("precision", ["bf16-mixed", slow("64-true")])
def test_logits_of_thousands_stay_finite(precision: str, loss: str) -> None:
    assert fit(f"--trainer.precision={precision}", f"--model.loss={loss}", "--model.init_std=100") == 0
    saved = last(only_run())
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
    assert all(math.isfinite(value) for row in read_rows(only_run()) for value in row.values())
    assert read_rows(only_run())[0]["train/loss"] > 100


def test_images_in_host_memory_give_the_same_bits(single: Path) -> None:
    assert fit("--data.device=host") == 0
    saved = last(only_run())
    assert torch.equal(saved["state_dict"]["net.2.weight"], last(single)["state_dict"]["net.2.weight"])
    assert read_rows(only_run()) == read_rows(single)


def trainer_on(device: str, count: int = 1, origin: str = "the official files", **options: Any) -> Trainer:
    datamodule = FashionMNISTDataModule()
    datamodule.data = cast(Dataset, SimpleNamespace(origin=origin))
    known = {
        "world_size": count,
        "precision": "32-true",
        "callbacks": [Engine(enabled=False)],
        "datamodule": datamodule,
    }
    strategy = SimpleNamespace(root_device=torch.device(device))
    return cast(Trainer, SimpleNamespace(strategy=strategy, **known | options))


def test_a_line_says_what_a_run_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    data = "data: the official files"
    assert training_lines(trainer_on("cpu"))[0] == f"training on CPU, 1 thread; {data}"
    assert training_lines(trainer_on("cpu", 2))[0] == f"training on 2 x CPU, 1 thread; {data}"
    mixed = trainer_on("cuda:0", 4, precision="bf16-mixed")
    assert training_lines(mixed)[0] == f"training on 4 x NVIDIA H100, bf16-mixed; {data}"
    assert training_lines(trainer_on("mps"))[0] == f"training on the GPU of this Mac; {data}"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "1 thread (as asked, there is a GPU)" in training_lines(trainer_on("cpu"))[0]


def test_a_second_line_names_an_unusual_step_and_both_fit_into_a_terminal() -> None:
    lines = training_lines(trainer_on("cpu", origin="the files in " + "a long folder " * 10))
    assert lines[1] == "step: Lightning's own step (engine.enabled is false)"
    assert all(len(line) < 80 for line in lines)


def test_the_loss_of_an_epoch_is_summed_exactly_in_any_precision() -> None:
    """In bfloat16 a sum of 500 cannot take up the loss of one more image."""
    scores = EpochScores({}).to(torch.bfloat16)
    for _ in range(1000):
        scores.update(torch.zeros(2, 10), torch.zeros(2, dtype=torch.long), torch.tensor(0.7))
    loss = cast(Metric, scores.metrics["loss"])
    assert loss.compute() == pytest.approx(0.7, rel=1e-6)
