"""Which epoch is the best, and what says so: BestCheckpoint, run.json and the rows agree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from commands import fit, manifest, only_run
from softmax_regression import BestCheckpoint, EarlyStopping, LastCheckpoint, RunLogger, RunRecord, SoftmaxRegression
from softmax_regression.errors import InputError
from softmax_regression.reports.reading import read_run
from softmax_regression.runs.checkpoint import read
from softmax_regression.runs.record import saved_best, update_manifest
from softmax_regression.runs.rows import read_rows
from test_model import data

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*sequence of dataloaders")


def best_checkpoint(run: Path) -> dict[str, Any]:
    return read(run / "checkpoints" / "best.ckpt")


def test_the_best_checkpoint_is_of_what_early_stopping_watches(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--early_stopping.monitor=val/acc", "--early_stopping.mode=max", "--model.lr=3") == 0
    run = only_run()
    best = manifest(run)["best"]
    values = [row["val/acc"] for row in read_rows(run)]
    assert (best["monitor"], best["score"]) == ("val/acc", max(values))
    assert best["step"] == best_checkpoint(run)["global_step"]
    assert f"best epoch {best['epoch']}, by val/acc: " in capsys.readouterr().out


def test_a_monitor_of_its_own_wins() -> None:
    own = ("--best_checkpoint.monitor=train/loss", "--early_stopping.monitor=val/acc", "--early_stopping.mode=max")
    assert fit(*own) == 0
    best = manifest(only_run())["best"]
    assert (best["monitor"], best["epoch"]) == ("train/loss", 3)


def test_of_several_validations_in_an_epoch_the_best_is_the_one_that_was_kept() -> None:
    assert fit("--trainer.val_check_interval=0.25", "--model.lr=3", "--early_stopping.patience=0") == 0
    run = only_run()
    best = manifest(run)["best"]
    rows = read_rows(run)
    assert len(rows) == 3 * 4
    assert best["score"] == best["val/loss"] == min(row["val/loss"] for row in rows)
    assert best["step"] == best_checkpoint(run)["global_step"]


@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.parametrize("loaders", [[], {}], ids=["list", "dictionary"])
def test_a_monitor_is_missed_also_where_there_is_no_validation_loader(
    loaders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(monitor: str) -> None:
        best = BestCheckpoint(monitor)
        trainer = Trainer(max_epochs=1, callbacks=[best], logger=RunLogger(), accelerator="cpu", log_every_n_steps=1)
        trainer.fit(SoftmaxRegression(), data().train_dataloader(), loaders)

    train("val/loss")
    assert "no best.ckpt: nothing logs val/loss" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"best_checkpoint\.monitor=val/los: nothing logs it"):
        train("val/los")


def test_the_states_of_other_callbacks_do_not_say_what_was_best() -> None:
    best = {"epoch": 2, "step": 8, "monitor": "val/loss", "score": 0.5}
    states: dict[str, Any] = {"BestCheckpoint{'monitor': 'val/loss'}": {"best": best}}
    states |= {"Mine": {"best": 0.25}, "Other": ["a", "list"]}
    assert saved_best({"callbacks": states}) == best


def test_of_a_run_that_was_killed_the_best_is_what_its_checkpoint_says() -> None:
    assert fit("--model.lr=3") == 0
    run = only_run()
    best = manifest(run)["best"]
    update_manifest(run, status="running", best=None)  # as SIGKILL leaves it
    assert read_run(run).best == {name: value for name, value in best.items() if name not in ("monitor", "score")}


def test_a_checkpoint_of_the_users_own_beside_it_changes_nothing() -> None:
    own = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss")
    assert fit(*own, "--model.lr=3") == 0
    best = manifest(only_run())["best"]
    assert best["monitor"] == "val/loss"
    assert best["step"] == best_checkpoint(only_run())["global_step"]


def test_a_link_to_the_last_checkpoint_of_the_users_own_does_not_change_that_one() -> None:
    options = ("monitor=epoch", "mode=min", "filename=first", "save_last=link")
    flags = [f"--trainer.callbacks.{option}" for option in options]
    assert fit("--trainer.callbacks+=ModelCheckpoint", *flags, "--trainer.max_epochs=3") == 0
    folder = only_run() / "checkpoints"
    assert torch.load(folder / "first.ckpt", weights_only=True)["epoch"] == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2


def test_without_a_best_checkpoint_there_is_no_best() -> None:
    assert fit("--best_checkpoint.monitor=null", "--trainer.max_epochs=1") == 0
    assert "best" not in manifest(only_run())
    assert manifest(only_run())["final"]["epoch"] == 1


class Line(LightningModule):
    """A module with names of its own, whose validation loss is what `losses` says, in their order."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.losses = losses

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        loss: Tensor = self.layer(x).square().mean()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.losses[self.current_epoch] + dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(module: LightningModule, *callbacks: Callback, loaders: int = 1) -> Path:
    loader = DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)
    trainer = Trainer(
        max_epochs=3, callbacks=[*callbacks, RunRecord()], logger=RunLogger(), accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader, [loader] * loaders)
    return only_run()


def test_a_loss_that_is_no_number_at_first_is_null_and_then_never_the_best() -> None:
    run = trained(Line([float("nan"), 2.0, 1.0]), BestCheckpoint("val_loss"))
    assert manifest(run)["best"]["epoch"] == 3
    rows = read_rows(run)
    assert [row["val_loss"] for row in rows][1:] == [2.0, 1.0]
    assert "NaN" not in (run / "run.json").read_text()
    json.loads((run / "run.json").read_text())


def test_of_several_loaders_the_first_one_is_watched() -> None:
    run = trained(Line([3.0, 1.0, 2.0]), EarlyStopping("val_loss"), BestCheckpoint(), loaders=2)
    best = manifest(run)["best"]
    assert (best["epoch"], best["monitor"], best["score"]) == (2, "val_loss/dataloader_idx_0", 1.0)
    assert read_rows(run)[1]["val_loss/dataloader_idx_1"] == 2.0


def test_a_metric_that_nothing_logs_is_refused_after_the_first_validation() -> None:
    with pytest.raises(InputError, match=r"best_checkpoint\.monitor=val_f1: nothing logs it; choose one of val_loss"):
        trained(Line([1.0] * 3), BestCheckpoint("val_f1"))


def quiet_trainer(callbacks: list[Callback], **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(accelerator="cpu", callbacks=callbacks, **quiet | options)


def test_callbacks_that_another_trainer_has_used_begin_anew() -> None:
    best, stopping = BestCheckpoint(), EarlyStopping(patience=1)
    callbacks = [best, stopping, RunRecord()]
    quiet_trainer(callbacks, fast_dev_run=True).fit(SoftmaxRegression(), data())
    for lr in (0.1, 0.01):
        trainer = quiet_trainer(callbacks, max_epochs=2, logger=RunLogger())
        torch.manual_seed(0)
        trainer.fit(SoftmaxRegression(lr=lr), data())
        losses = [row["val/loss"] for row in read_rows(Path(str(trainer.log_dir)))]
        assert len(losses) == 2
        assert best.best
        assert best.best["score"] == min(losses) == stopping.best_score
        assert Path(best.best_model_path) == Path(str(trainer.log_dir), "checkpoints/best.ckpt")


def test_callbacks_that_found_nothing_to_watch_look_again_in_the_next_run() -> None:
    best, stopping = BestCheckpoint(), EarlyStopping(patience=2)
    trained(Line([1.0] * 3), best, stopping)
    assert (best.save_top_k, stopping.strict) == (0, False)
    trainer = quiet_trainer([best, stopping], max_epochs=1, logger=RunLogger())
    trainer.fit(SoftmaxRegression(), data())
    assert (best.save_top_k, stopping.strict, stopping.patience) == (1, True, 2)
    assert best.best


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_second_training_of_one_trainer_goes_on() -> None:
    best, stopping = BestCheckpoint(), EarlyStopping()
    trainer = quiet_trainer([best, stopping], max_epochs=1, logger=RunLogger())
    module = SoftmaxRegression()
    trainer.fit(module, data())
    first = best.best
    assert first
    trainer.fit_loop.max_epochs = 2
    module.lr = 100
    trainer.fit(module, data())
    assert best.best == first
    assert (stopping.best_score, stopping.wait_count) == (first["score"], 1)


@pytest.mark.parametrize("moved", ["logs", "elsewhere"])
def test_a_checkpoint_of_the_users_own_finds_its_best_where_the_resumed_run_is_now(moved: str) -> None:
    own = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=epoch", "--trainer.callbacks.mode=min")
    assert fit(*own, "--trainer.max_epochs=1") == 0
    Path("logs").rename(moved)
    run = only_run(Path(moved)).absolute()
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert fit("--resume", str(run), "--trainer.max_epochs=2") == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept


class StateOfItsOwn(ModelCheckpoint):
    """Says itself what is saved of it."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict == {"count": 1}


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_with_a_state_of_its_own_is_resumed(tmp_path: Path) -> None:
    for epochs, path in (1, None), (2, tmp_path / "x" / "checkpoints" / "last.ckpt"):
        callbacks: list[Any] = [StateOfItsOwn(), LastCheckpoint()]
        logger = TensorBoardLogger(tmp_path, "", "x")
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=callbacks, limit_train_batches=2
        )
        trainer.fit(BoringModel(), ckpt_path=path)
    assert trainer.current_epoch == 2
