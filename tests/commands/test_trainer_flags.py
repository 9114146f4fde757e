"""Flags of the Trainer that switch something off, or put the user's own in its place, have that effect."""

from pathlib import Path

import pytest
import torch

from commands import SMALL, fit, manifest, only_run
from marks import slow
from softmax_regression.commands.train import main

OTHER_IMAGES = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Large(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(64, 3, 32, 32), torch.randint(10, (64,))), batch_size=8)

    val_dataloader = train_dataloader
"""


STREAM = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from softmax_regression import SoftmaxRegression

class Normed(SoftmaxRegression):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)

class Images(IterableDataset):
    def __iter__(self):
        for y in range(10):
            yield torch.rand(1, 28, 28), y

class Stream(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Images(), batch_size=5)

    val_dataloader = train_dataloader
"""
REFUSED_IN_TRAINING = [
    (["StochasticWeightAveraging", "swa_lrs=0.1"], "Iterable-style datasets are not supported"),
    slow(["ModelPruning", "pruning_fn=l1_unstructured", "amount=5.5"], "amount=5.5 should either be a float in"),
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_checkpointing_a_run_trains_and_keeps_none() -> None:
    assert fit("--trainer.enable_checkpointing=false") == 0
    assert manifest(only_run())["status"] == "finished"
    assert "best" not in manifest(only_run())
    assert not list(Path().rglob("*.ckpt"))


def test_barebones_trains_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.barebones=true") == 0
    assert "nothing is kept" in capsys.readouterr().out
    assert not Path("logs").exists()


def test_an_early_stopping_of_the_users_own_takes_the_place_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"
    options = (own, "--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.patience=1")  # mode min: it gets worse
    assert fit(*options, "--trainer.max_epochs=9") == 0
    assert "early stopping: as your own callback says" in capsys.readouterr().out
    assert manifest(only_run())["final"]["epoch"] == 2
    assert main(["test", "--ckpt_path", str(only_run())]) == 0
    assert "early stopping" not in capsys.readouterr().out
    saved = torch.load(only_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert sum("EarlyStopping" in key for key in saved["callbacks"]) == 1


@pytest.mark.parametrize("monitor", ["epoch", "step"])
def test_a_checkpoint_of_the_users_own_may_watch_the_epoch_or_the_step(monitor: str) -> None:
    own = ("--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.monitor={monitor}")
    assert fit(*own, "--trainer.callbacks.mode=max", "--trainer.callbacks.filename=own") == 0
    assert torch.load(next(Path().rglob("own.ckpt")), weights_only=True)["epoch"] == 2


def test_images_of_another_size_are_one_line_and_leave_no_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("large.py").write_text(OTHER_IMAGES)
    monkeypatch.syspath_prepend(Path.cwd())
    assert main(["fit", "--data=large.Large"]) == 2
    assert "images of 3 x 32 x 32: the model takes 1 x 28 x 28" in capsys.readouterr().err
    assert not list(Path("logs").glob("*/*"))


@pytest.mark.parametrize(("callback", "says"), REFUSED_IN_TRAINING)
def test_what_a_callback_asserts_in_training_is_one_line(
    callback: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("endless.py").write_text(STREAM)
    name, *options = callback
    flags = [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{option}" for option in options)]
    assert main(["fit", "--model=endless.Normed", "--data=endless.Stream", "--trainer.max_epochs=3", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_configuration_of_conf_is_found_from_any_folder() -> None:
    assert main(["fit", "--config=smoke.yaml", *SMALL, "--trainer.max_epochs=1"]) == 0
    assert only_run().parent.name == "smoke"


STEPS = """
from softmax_regression import SoftmaxRegression

class Steps(SoftmaxRegression):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("step_loss", loss)
        return loss
"""


@pytest.mark.parametrize(("model", "warns"), [("softmax_regression.SoftmaxRegression", False), ("steps.Steps", True)])
def test_few_batches_are_warned_of_where_something_is_logged_on_a_step(
    model: str, warns: bool, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(Path.cwd())
    assert fit(f"--model={model}", "--trainer.max_epochs=1") == 0
    assert any("smaller than the logging interval" in str(warning.message) for warning in recwarn) == warns


ENDS_AT_ONCE = """
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Empty(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.int64)))

    val_dataloader = train_dataloader

class Ends(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.should_stop = True
"""


@pytest.mark.filterwarnings("ignore:Total length of `", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trainer.max_time=00:00:00:00"], "max_time is used up"),
        (["--trainer.callbacks+=at_once.Ends"], "a callback stopped the run"),
        (["--data=at_once.Empty"], "there are no training batches"),
        (["--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"], "max_epochs=1 reached"),
    ],
)
def test_a_run_without_a_checkpoint_says_so_instead_of_what_to_type_next(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("at_once.py").write_text(ENDS_AT_ONCE)
    monkeypatch.syspath_prepend(Path.cwd())
    data = () if options[0].startswith("--data") else SMALL
    assert main(["fit", *data, *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert reason in lines
    assert last.startswith("no checkpoint is kept in logs/softmax/")


def test_a_run_that_must_not_stop_yet_does_not_say_another_patience() -> None:
    stopping = ("--early_stopping.patience=1", "--early_stopping.min_delta=10", "--trainer.min_epochs=3")
    assert fit(*stopping, "--trainer.max_epochs=6") == 0
    stopped = manifest(only_run())["stopped"]
    assert stopped.startswith("early stopping: val/loss did not improve in the last 2 records; ")


def test_averaged_weights_that_are_in_no_checkpoint_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    averaging = ("--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1")
    assert fit(*averaging, "--trainer.max_epochs=2") == 0
    assert "no checkpoint has its averaged weights; WeightAveraging saves them" in capsys.readouterr().out


def test_a_barebones_test_logs_nothing_and_keeps_the_scores_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    assert main(["test", "--ckpt_path", str(only_run())]) == 0
    scores = manifest(only_run())["test"]
    assert main(["test", "--ckpt_path", str(only_run()), "--trainer.barebones=true"]) == 0
    assert capsys.readouterr().out.endswith("\nnothing was logged\n")
    assert manifest(only_run())["test"] == scores != {}
