"""The same experiment on CUDA devices; `pytest -m gpu` on a machine that has one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_resume import EVERY, OPTIONS, Killed, assert_same, kill, resume, state

from commands import SMALL, fit, manifest, only_run
from ddp_worker import run_group, two_nodes
from killed import strike
from softmax_regression.commands.train import main
from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.rows import read_rows

pytestmark = pytest.mark.gpu
GPU = ("--trainer.accelerator=gpu", "--trainer.devices=1")


def test_a_gpu_is_chosen_by_itself_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.devices=1") == 0
    assert f"training on {torch.cuda.get_device_name(0)}; data: " in capsys.readouterr().out
    assert manifest(only_run())["device"]["type"].startswith("cuda")


def test_a_gpu_trains_the_model_of_a_cpu() -> None:
    assert fit(*GPU, "--trainer.logger.save_dir=gpu") == 0
    assert fit("--trainer.accelerator=cpu", "--trainer.logger.save_dir=cpu") == 0
    for row, expected in zip(read_rows(only_run(Path("gpu"))), read_rows(only_run(Path("cpu"))), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert main(["test", f"--ckpt_path={only_run(Path('gpu'))}", "--trainer.accelerator=cpu"]) == 0


def test_a_killed_run_resumes_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*GPU, *OPTIONS, f"{EVERY}=5")
    assert fit(*options, "--trainer.logger.save_dir=whole") == 0
    with monkeypatch.context() as patch:
        strike(patch.setattr, "mid-epoch", 23, kill)
        with pytest.raises(Killed):
            fit(*options)
    assert resume(only_run()) == 0
    assert_same(state(only_run()), state(only_run(Path("whole"))))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("loss", ["torch", "stable"])
def test_every_precision_learns_and_stays_finite(precision: str, loss: str) -> None:
    assert fit(*GPU, "--trainer.logger.save_dir=single") == 0
    assert fit(*GPU, f"--trainer.precision={precision}", f"--model.loss={loss}") == 0
    for row, expected in zip(read_rows(only_run()), read_rows(only_run(Path("single"))), strict=True):
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=0.05)


def test_images_in_host_memory_give_the_same_results() -> None:
    assert fit(*GPU, "--trainer.logger.save_dir=auto") == 0
    assert fit(*GPU, "--data.device=host") == 0
    assert read_rows(only_run()) == pytest.approx(read_rows(only_run(Path("auto"))))


class NoSynchronisation(Callback):
    """Raise where the host waits for the device between the first minibatch of an epoch and the last."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def default_sync_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("default_sync_mode")
def test_the_host_does_not_wait_for_the_device_within_an_epoch() -> None:
    data = FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600)
    trainer = Trainer(
        accelerator="gpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[NoSynchronisation()],
    )  # fmt: skip
    trainer.fit(SoftmaxRegression(), data)
    assert isinstance(trainer.train_dataloader, Minibatches)
    assert trainer.train_dataloader.images.is_cuda


GLOO = """
trainer:
  accelerator: gpu
  strategy:
    class_path: lightning.pytorch.strategies.DDPStrategy
    init_args: {process_group_backend: gloo}
"""


def test_two_processes_share_a_gpu() -> None:
    """NCCL wants a GPU for each; with gloo, and as two nodes of one device, they take the same one."""
    Path("gloo.yaml").write_text(GLOO)
    ended = run_group(2, ["fit", *SMALL, "--trainer.max_epochs=3", "--config=gloo.yaml"], environment=two_nodes)
    assert [process.code for process in ended] == [0, 0], ended
    assert fit(*GPU, "--trainer.logger.save_dir=one") == 0
    for row, expected in zip(read_rows(only_run()), read_rows(only_run(Path("one"))), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_the_model_of_one() -> None:
    from ddp_worker import torchrun

    ended = run_group(2, ["fit", *SMALL, "--trainer.max_epochs=3"], environment=torchrun)
    assert [process.code for process in ended] == [0, 0], ended
    assert fit(*GPU, "--trainer.logger.save_dir=one") == 0
    for row, expected in zip(read_rows(only_run()), read_rows(only_run(Path("one"))), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
