"""What a resumed run does as before: its settings from Python, what Lightning's finders found, what is frozen."""

from argparse import Namespace
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from torch.utils.data import DataLoader

from commands import fit, manifest, one_line, only_run
from marks import slow
from softmax_regression import (
    BestCheckpoint,
    Engine,
    FashionMNISTDataModule,
    FigureLogger,
    LastCheckpoint,
    RunLogger,
    RunRecord,
    SafeCheckpointIO,
    SoftmaxRegression,
)
from softmax_regression import EarlyStopping as Stopping
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.runs import checkpoint
from softmax_regression.runs.rows import read_rows


class Named(Callback):
    """A callback whose argument is an attribute."""

    def __init__(self, word: str = "none") -> None:
        self.word = word


class Unnamed(Callback):
    """A callback that keeps its argument for itself."""

    def __init__(self, word: str) -> None:
        self.text = word


def from_python(*callbacks: Callback, model: LightningModule | None = None, **options: Any) -> Path:
    data = FashionMNISTDataModule(source="synthetic", synthetic_size=600, val_size=101, batch_size=32)
    if not any(isinstance(callback, LastCheckpoint) for callback in callbacks):
        callbacks += (LastCheckpoint(),)
    trainer = Trainer(
        max_epochs=1, logger=RunLogger(), callbacks=[*callbacks, RunRecord()], accelerator="cpu",
        plugins=[SafeCheckpointIO()], enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(model or SoftmaxRegression(), data)
    return only_run()


def test_the_settings_of_a_run_from_python_hold_when_it_goes_on() -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "limit_train_batches": 8, "gradient_clip_val": 0.5}
    run = from_python(Named("hello"), **options)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {name: config["trainer"][name] for name in options} == options
    (callback,) = config["trainer"]["callbacks"]
    assert callback == {"class_path": f"{__name__}.Named", "init_args": {"word": "hello"}}
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert [row["step"] for row in read_rows(run)] == [4, 8]


def of_config(run: Path) -> list[Any]:
    """The callbacks in the configuration of a run, each as its class and what it was given."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    callbacks = config["trainer"].get("callbacks", [])
    return [(callback["class_path"].rpartition(".")[2], callback["init_args"]) for callback in callbacks]


# What is given to the Trainer, and what its configuration says of it.
RECORDED: dict[str, tuple[Any, Any]] = {
    "no rhythm of epochs": ({"check_val_every_n_epoch": None, "val_check_interval": 5}, None),
    "loaders made anew": ({"reload_dataloaders_every_n_epochs": 1}, None),
    "a rhythm of the clock": ({"val_check_interval": "00:00:01:00"}, {"val_check_interval": {"seconds": 60}}),
    "one batch": ({"limit_val_batches": 1}, None),
    "gradients in validation": ({"inference_mode": False}, None),
    "a time": ({"max_time": "00:00:10:00"}, {"max_time": {"seconds": 600}}),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_a_setting_from_python_is_in_the_configuration(kind: str) -> None:
    options, says = RECORDED[kind]
    settings = yaml.safe_load((from_python(**options) / "config.yaml").read_text())["trainer"]
    says = says or options
    assert {name: settings[name] for name in says} == says


def test_a_setting_that_was_not_given_in_python_is_not_in_the_configuration() -> None:
    settings = yaml.safe_load((from_python() / "config.yaml").read_text())["trainer"]
    assert settings == {"max_epochs": 1, "log_every_n_steps": 1}


def test_callbacks_of_lightning_from_python_are_in_the_configuration() -> None:
    stopping = EarlyStopping("val/acc", mode="max", min_delta=0.01, stopping_threshold=0.99)
    kept = ModelCheckpoint(monitor="val/acc", mode="max", save_top_k=2)
    run = from_python(
        EarlyStopping("val/loss", patience=7), stopping, kept, LearningRateMonitor(), Timer(interval="epoch")
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["early_stopping"]["patience"] == 7
    callbacks = dict(of_config(run))
    assert callbacks.keys() == {"EarlyStopping", "ModelCheckpoint", "LearningRateMonitor", "Timer"}
    assert callbacks["EarlyStopping"]["min_delta"] == 0.01
    assert callbacks["EarlyStopping"]["stopping_threshold"] == 0.99
    assert callbacks["ModelCheckpoint"]["save_top_k"] == 2
    assert callbacks["ModelCheckpoint"]["dirpath"] is None
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert len(list((run / "checkpoints").glob("epoch=*.ckpt"))) == 2


def resumed_callbacks(run: Path) -> list[str]:
    """The keys of the states of callbacks in the last checkpoint of a run."""
    return list(checkpoint.read(run / "checkpoints" / "last.ckpt")["callbacks"])


class Worse(SoftmaxRegression):
    """Its loss rises from epoch to epoch."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, maximize=True)


TWO = [EarlyStopping("val/acc", mode="max", patience=9), Stopping("train/loss", patience=9)]


@pytest.mark.parametrize("stopping", [slow([]), [Stopping()], slow([Stopping("train/loss", patience=9)]), TWO])
def test_the_best_of_a_run_from_python_stays_the_best_when_it_goes_on(stopping: list[Callback]) -> None:
    run = from_python(*stopping, BestCheckpoint(), model=Worse())
    best = manifest(run)["best"]
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert manifest(run)["best"] == best
    stoppings = [name for name in resumed_callbacks(run) if name.startswith("EarlyStopping")]
    assert len(stoppings) == max(len(stopping), 1)  # without one, the default one, which never stops
    assert checkpoint.read(run / "checkpoints" / "best.ckpt")["global_step"] == best["step"]


def test_callbacks_of_this_project_go_on_with_what_they_were_given() -> None:
    run = from_python(Engine(False), FigureLogger(0, histograms=True), LastCheckpoint(every_n_train_steps=5))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["engine"] == {"enabled": False}
    assert config["figures"] == {"every_n_epochs": 0, "histograms": True}
    assert config["last_checkpoint"] == {"every_n_train_steps": 5, "every_n_minutes": None}
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0


def test_what_cannot_be_recorded_is_refused_when_the_run_shall_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    run = from_python(Unnamed("hello"))
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 2
    assert "with the callback Unnamed, for its argument word, which its configuration cannot say" in one_line(capsys)


class Wide(LightningModule):
    """Keeps `lr` as an attribute, saves what else it is given, and forgets the width and the number of classes."""

    def __init__(
        self,
        width: int = 5,
        classes: int = 10,
        lr: float = 0.1,
        options: dict | None = None,  # type: ignore[type-arg]
        **others: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["width", "classes", "lr"])
        self.lr = lr
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, width), torch.nn.Linear(width, classes))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self.net(batch[0] / 255), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_arguments_of_a_module_from_python_are_those_that_it_saved_or_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    run = from_python(model=Wide(7, 10, 0.3, {"a": 1}, depth=2))
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert config["init_args"] == {"options": {"a": 1}, "lr": 0.3}
    assert config["dict_kwargs"] == {"depth": 2}
    capsys.readouterr()
    resume = ["fit", "--resume", str(run), "--trainer.max_epochs=2"]
    assert main(resume) == 2
    assert one_line(capsys).endswith(
        "give --model.width and --model.classes, which the run from Python has not saved\n"
    )
    resume += ["--model.classes=10"]
    assert main([*resume, "--model.width=5"]) == 2
    assert main([*resume, "--model.width=7"]) == 0


class Kept(LightningDataModule):
    """Keeps its argument, in the way that is older than `save_hyperparameters`."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.examples: Any = [(torch.rand(28, 28), i % 10) for i in range(32)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.examples, self.batch_size)

    val_dataloader = train_dataloader


class OneArgument(Wide):
    """Has all its hyperparameters in one argument."""

    def __init__(self, conf: dict[str, Any]) -> None:
        super().__init__(lr=conf["lr"])
        self.save_hyperparameters(conf)


class InNamespace(LightningModule):
    """Has them in the arguments of a command line, without a type."""

    training_step = Wide.training_step
    validation_step = Wide.validation_step
    configure_optimizers = Wide.configure_optimizers

    def __init__(self, conf) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.save_hyperparameters(conf)
        self.lr = self.hparams["lr"]
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("kind", [OneArgument, InNamespace])
def test_data_keep_their_arguments_and_a_module_may_have_them_in_one(kind: Any) -> None:
    trainer = Trainer(max_epochs=1, logger=RunLogger(), callbacks=[LastCheckpoint(), RunRecord()], accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)  # fmt: skip
    settings = {"lr": 0.3}
    trainer.fit(kind(Namespace(**settings) if kind is InNamespace else settings), Kept(16))
    run = only_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"] == {"batch_size": 16}
    assert config["model"]["init_args"]["conf"]["lr"] == 0.3
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert checkpoint.read(run / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_default_that_a_module_from_python_does_not_keep_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    run = from_python(model=Wide())
    assert "note: model.width is saved nowhere; give --model.width to commands" in capsys.readouterr().err
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 2
    assert "with model.width, which its configuration cannot say; give --model.width, or resume" in one_line(capsys)


@pytest.mark.filterwarnings("ignore:Attribute .criterion. is an instance")
def test_hyperparameters_that_no_checkpoint_can_hold_do_not_stand_in_the_way() -> None:
    class WithPath(SoftmaxRegression):
        def __init__(self, folder: Path = Path("here"), lr: float = 0.1) -> None:
            super().__init__(lr)
            self.save_hyperparameters({"folder": folder, "criterion": torch.nn.MSELoss()})

    run = from_python(model=WithPath())
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")["hyper_parameters"]
    assert saved["folder"] == "here"
    assert "criterion" not in saved


class Colour(StrEnum):
    RED = "r"


@dataclass
class Sizes:
    width: int = 3


def test_settings_become_plain_data_as_a_configuration_takes_them() -> None:
    given = {"c": Colour.RED, "n": np.float64(0.5), "sizes": Sizes(), "namespace": Namespace(a=(1, Path("b")))}
    assert checkpoint.plain(given) == {"c": "RED", "n": 0.5, "sizes": {"width": 3}, "namespace": {"a": [1, "b"]}}
    assert type(checkpoint.plain(given["n"])) is float
    assert type(checkpoint.plain(Colour.RED)) is str
    with pytest.raises(TypeError):
        checkpoint.plain("Unable to serialize instance <function>")  # what jsonargparse writes of a default


def test_a_state_that_could_not_be_read_again_is_refused_before_the_first_step() -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"where": Path("here")}

    with pytest.raises(InputError, match=r"Odd: its state in a checkpoint could not be read again"):
        from_python(Odd())
    assert not read_rows(only_run())


class Late(Callback):
    """Has a path in its state from the second epoch on."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        return {"where": Path("here") if self.epochs > 1 else "here"}


def test_a_state_that_turns_into_such_a_one_ends_the_run_and_leaves_what_was_saved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit("--trainer.max_epochs=3", f"--trainer.callbacks+={__name__}.Late") == 2
    assert "Late: its state in a checkpoint could not be read again" in capsys.readouterr().err
    assert checkpoint.read(only_run() / "checkpoints" / "last.ckpt")["epoch"] == 0


class WithExtraState(SoftmaxRegression):
    extra: Any = None

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 7}

    def set_extra_state(self, state: Any) -> None:
        WithExtraState.extra = state


def test_a_state_of_a_module_need_not_be_a_tensor() -> None:
    assert fit(f"--model={__name__}.WithExtraState", "--trainer.max_epochs=1") == 0
    assert main(["test", "--ckpt_path", str(only_run())]) == 0
    assert WithExtraState.extra == {"seen": 7}


def test_pruning_goes_not_on_which_a_line_says(capsys: pytest.CaptureFixture[str]) -> None:
    prune = ["--trainer.callbacks+=ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"]
    assert fit("--trainer.max_epochs=1", *prune, "--trainer.callbacks.amount=0.1") == 0
    assert main(["test", "--ckpt_path", str(only_run())]) == 0
    capsys.readouterr()
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 2
    assert "ModelPruning: a pruned run cannot be resumed" in one_line(capsys)


# Lightning's, of the training that looks for the rate
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_learning_rate_that_was_found_is_recorded_and_used() -> None:
    finder = ("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=20")
    assert fit("--trainer.max_epochs=1", *finder) == 0
    run = only_run()
    found = manifest(run)["config"]["model"]["init_args"]["lr"]
    assert found != 0.1
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=3"]) == 0
    rows = read_rows(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == pytest.approx([found] * 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_batch_size_that_was_found_is_at_most_the_number_of_images() -> None:
    assert fit("--trainer.max_epochs=1", "--trainer.callbacks+=BatchSizeFinder") == 0
    run = only_run()
    assert manifest(run)["config"]["data"]["init_args"]["batch_size"] == 499
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert [row["step"] for row in read_rows(run)] == [1, 2]


class OneCycle(SoftmaxRegression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_schedule_of_a_fixed_length_is_not_gone_on_with_for_longer(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(f"--model={__name__}.OneCycle", "--trainer.max_epochs=1") == 0
    run = only_run()
    before = (run / "run.json").read_bytes()
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 2
    assert "max_epochs=2: the run's learning rate schedule ends after 16 steps, with max_epochs=1" in one_line(capsys)
    assert (run / "run.json").read_bytes() == before


class Unfreeze(BaseFinetuning):
    """Train the bias from the first epoch on, and all from the second."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            parameter.requires_grad = name.endswith("bias")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            for parameter in pl_module.parameters():
                parameter.requires_grad = True


class Thaws(SoftmaxRegression):
    """Freezes its weights in a hook, and trains them from the second epoch on."""

    def on_fit_start(self) -> None:
        self.net[-1].weight.requires_grad = False

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.net[-1].weight.requires_grad = True


@pytest.mark.slow
@pytest.mark.parametrize("unfreeze", [f"--trainer.callbacks+={__name__}.Unfreeze", f"--model={__name__}.Thaws"])
def test_what_was_unfrozen_stays_so_when_a_run_goes_on(unfreeze: str) -> None:
    assert fit(unfreeze, "--trainer.logger.version=whole", "--trainer.max_epochs=4") == 0
    assert fit(unfreeze, "--trainer.logger.version=resumed", "--trainer.max_epochs=2") == 0
    whole, resumed = Path("logs/softmax/whole"), Path("logs/softmax/resumed")
    assert main(["fit", "--resume", str(resumed), "--trainer.max_epochs=4"]) == 0
    assert read_rows(resumed) == read_rows(whole)
