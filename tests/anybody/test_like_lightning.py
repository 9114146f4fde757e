"""What differed silently from a plain Trainer, beside the table: where a run stops, and how weights are loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zoo import data, loading, modules, odd

import softmax_regression as sr
from commands import age, fit, manifest, only_run, scalars
from marks import slow
from softmax_regression.commands.train import main
from softmax_regression.runs import checkpoint

HERE = Path(__file__).parent
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip
USUAL = ["--trainer.accelerator=cpu", "--figures.every_n_epochs=0", "--data=zoo.data.Own"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*logging interval", "ignore:Be aware that when using `ckpt_path`"
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HERE / "zoo", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_early_stopping_on_a_metric_of_the_training_stops_where_lightnings_does() -> None:
    seed_everything(0, workers=True, verbose=False)
    trainer = Trainer(**QUIET, max_epochs=6, callbacks=[EarlyStopping("fit_loss_epoch", min_delta=0.4, patience=1)])
    trainer.fit(modules.Plain(), data.Own())
    flags = ["--early_stopping.monitor=fit_loss_epoch", "--early_stopping.min_delta=0.4", "--early_stopping.patience=1"]
    assert main(["fit", *USUAL, "--model=zoo.modules.Plain", "--trainer.max_epochs=6", *flags]) == 0
    assert 1 < trainer.current_epoch < 6
    assert manifest(only_run())["final"]["epoch"] == trainer.current_epoch


UNTESTED = """
from lightning.pytorch import LightningDataModule, LightningModule
from zoo.data import Own
from zoo.modules import Plain

class Untested(Plain):
    test_step = LightningModule.test_step

class WithoutTestData(Own):
    test_dataloader = LightningDataModule.test_dataloader

class WithTestData(Plain):
    def test_dataloader(self):
        raise NotImplementedError("not asked by Lightning, for there is a data module")
"""


@pytest.mark.parametrize(
    ("model", "data", "tested"),
    [
        ("untested.Untested", "zoo.data.Own", False),
        ("zoo.modules.Plain", "untested.WithoutTestData", False),
        ("untested.WithTestData", "untested.WithoutTestData", False),
        ("zoo.modules.Plain", "zoo.data.Own", True),
    ],
)
def test_fit_proposes_to_test_what_can_be_tested(
    model: str, data: str, tested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("untested.py").write_text(UNTESTED)
    assert main(["fit", *USUAL[:2], f"--model={model}", f"--data={data}", "--trainer.max_epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert " report logs" in printed
    assert (" test --ckpt_path" in printed) == tested
    assert main(["test", "--ckpt_path=last"]) == (0 if tested else 2)


def test_early_stopping_by_flags_beside_ones_own_stops_a_resumed_run_too() -> None:
    own = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=val_loss"]
    flags = ["--early_stopping.monitor=fit_loss", "--early_stopping.mode=max", "--early_stopping.patience=2"]
    model = ["fit", *USUAL, "--model=zoo.modules.Plain", *own, "--trainer.callbacks.patience=9", *flags]
    assert main([*model, "--trainer.max_epochs=1"]) == 0
    run = only_run()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=9"]) == 0
    found = manifest(run)
    assert found["final"]["epoch"] == 3
    assert found["best"]["monitor"] == "fit_loss"


def test_validation_by_the_clock_goes_with_early_stopping() -> None:
    flags = ["--trainer.val_check_interval=00:00:10:00", "--early_stopping.monitor=val_loss", "--trainer.max_epochs=1"]
    assert main(["fit", *USUAL, "--model=zoo.modules.Plain", *flags]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "Renamed",
        slow("OwnKeys"),
        slow("CompiledLate"),
        slow("OwnStateDict"),
        "LogsValidation",
        slow("OnDevice"),
        "Counts",
        "Least",
    ],
)
def test_a_module_that_loads_or_logs_in_its_own_way_is_opened_again(name: str) -> None:
    flags = [f"--model=zoo.loading.{name}", "--best_checkpoint.monitor=val_loss"]
    assert main(["fit", *USUAL, *flags, "--trainer.max_epochs=2"]) == 0
    straight = only_run()
    whole = checkpoint.read(straight / "checkpoints" / "last.ckpt")
    assert main(["fit", *USUAL, *flags, "--trainer.max_epochs=1", "--trainer.logger.save_dir=half"]) == 0
    run = only_run(Path("half"))
    assert main(["test", "--ckpt_path", str(run)]) == 0
    trainer = Trainer(**QUIET)
    (scores,) = trainer.test(
        getattr(loading, name)(), data.Own(), run / "checkpoints" / "best.ckpt", verbose=False, weights_only=True
    )
    assert manifest(run)["test"] == pytest.approx(scores)
    age(run)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert scalars(run) == scalars(straight)
    resumed = checkpoint.read(run / "checkpoints" / "last.ckpt")
    for weight, expected in zip(resumed["state_dict"].values(), whole["state_dict"].values(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("kind", [odd.LateHead, slow(odd.SetupHead)])
def test_an_optimizer_by_a_flag_has_the_weights_that_are_made_late(kind: Any) -> None:
    class WithAdam(kind):  # type: ignore[misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    seed_everything(0, workers=True, verbose=False)
    module = WithAdam()
    Trainer(**QUIET, max_epochs=1).fit(module, data.Own())
    flags = [
        f"--model=zoo.odd.{kind.__name__}",
        "--optimizer=Adam",
        "--optimizer.lr=0.01",
        "--early_stopping.patience=0",
    ]
    assert main(["fit", *USUAL, *flags, "--trainer.max_epochs=1", "--best_checkpoint.monitor=val_loss"]) == 0
    run = only_run()
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert saved.keys() == module.state_dict().keys()
    for name, weight in module.state_dict().items():
        assert torch.equal(saved[name], weight)
    assert main(["test", "--ckpt_path", str(run)]) == 0


def test_callbacks_that_a_module_configures_count_like_those_of_the_trainer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["fit", *USUAL, "--model=zoo.odd.WithCallbacks", "--trainer.max_epochs=9"]
    assert main([*model, "--trainer.logger.version=stopped"]) == 0
    run = only_run()
    found = manifest(run)
    assert found["stopped"] == "early stopping: train/loss did not improve in the last 5 records"
    assert (found["final"]["epoch"], found["final"]["seen"]) == (6, 12)
    assert found["best"]["monitor"] == "train/loss"
    assert main(["fit", "--resume", str(run)]) == 0
    assert "nothing to resume (early stopping: train/loss" in capsys.readouterr().out
    monitored = ["--best_checkpoint.monitor=seen", "--best_checkpoint.mode=max", "--early_stopping.patience=2"]
    assert main([*model, *monitored, "--trainer.logger.version=other"]) == 0
    other = manifest(run.with_name("other"))
    assert other["best"]["score"] == 2 * other["final"]["epoch"] == 6  # the flag was typed, so both stop it


def test_a_module_may_configure_no_callbacks_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd.WithCallbacks, "configure_callbacks", lambda module: None)
    assert main(["fit", *USUAL, "--model=zoo.odd.WithCallbacks", "--trainer.max_epochs=1"]) == 0
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 0


def test_a_checkpoint_that_a_module_configures_does_not_replace_the_best_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", *USUAL, "--model=zoo.odd.WithBest"]) == 2
    assert "filename=best of ModelCheckpoint: each run keeps a best.ckpt" in capsys.readouterr().err
    assert not list(Path().glob("logs/*/*"))


def test_a_run_from_python_of_a_module_with_its_callbacks_goes_on() -> None:
    logger = sr.RunLogger(version="run")
    ours = [sr.BestCheckpoint(), sr.LastCheckpoint(), sr.RunRecord()]
    options = QUIET | {"logger": logger, "enable_checkpointing": True}
    Trainer(**options, max_epochs=2, callbacks=ours).fit(odd.WithCallbacks(), data.Own())
    run = only_run()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=3"]) == 0
    found = manifest(run)
    assert (found["final"]["epoch"], found["final"]["seen"], found["best"]["epoch"]) == (3, 6, 1)


@pytest.mark.parametrize("seed", [slow(42), 7])
def test_data_whose_arguments_have_names_of_ours_are_as_they_say(seed: int) -> None:
    seed_everything(0, workers=True, verbose=False)
    module = modules.Plain()
    Trainer(**QUIET, max_epochs=1).fit(module, odd.SameNames(seed))
    flags = ["--model=zoo.modules.Plain", "--trainer.max_epochs=1", "--best_checkpoint.monitor=val_loss"]
    flags += ["--data=zoo.odd.SameNames", "--data.images=other"]
    if seed != 42:
        flags.append(f"--data.seed={seed}")
    assert main(["fit", *USUAL, *flags]) == 0
    run = only_run()
    for command in (["test", "--ckpt_path"], ["predict", "--ckpt_path"]):
        assert main([*command, str(run)]) == 0
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")
    for name, weight in module.state_dict().items():
        assert torch.equal(saved["state_dict"][name], weight)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0


def test_data_are_prepared_before_they_are_set_up_once() -> None:
    flags = ["--model=zoo.modules.Plain", "--trainer.max_epochs=1", "--best_checkpoint.monitor=val_loss"]
    assert main(["fit", *USUAL[:2], *flags, "--data=zoo.odd.Prepared"]) == 0
    run = only_run()
    for command in ("test", "validate", "predict"):
        Path("prepared").unlink()
        assert main([command, "--ckpt_path", str(run)]) == 0
    assert (run / "predictions.csv").read_text().startswith("index,label,predicted,class 0,class 1,")


def test_a_checkpoint_of_another_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model=zoo.modules.Plain", "--best_checkpoint.monitor=val_loss", "--trainer.max_epochs=1"]
    assert main(["fit", *USUAL, *flags]) == 0
    for name in ("zoo.loading.CompiledLate", "zoo.modules.Manual"):
        capsys.readouterr()
        assert main(["test", "--ckpt_path", str(only_run()), f"--model={name}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("example", ["Small", "Noisy"])
def test_an_example_input_ends_no_run_and_draws_no_random_number(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_everything(0, workers=True, verbose=False)
    module = getattr(loading, example)()
    Trainer(**QUIET, max_epochs=1).fit(module, data.Own())
    flags = [f"--model=zoo.loading.{example}", "--trainer.max_epochs=1", "--best_checkpoint.monitor=val_loss"]
    assert main(["fit", *USUAL, *flags]) == 0
    saved = checkpoint.read(only_run() / "checkpoints" / "last.ckpt")
    for name, weight in module.state_dict().items():
        assert torch.equal(saved["state_dict"][name], weight)
    assert ("no page GRAPHS: " in capsys.readouterr().err) == (example == "Small")


def test_a_checkpoint_of_a_plain_trainer_is_scored_by_the_classes_that_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer = Trainer(**QUIET, max_epochs=1)
    trainer.fit(modules.Plain(), data.Own())
    trainer.save_checkpoint("plain.ckpt")
    (expected,) = trainer.test(modules.Plain(), datamodule=data.Own(), ckpt_path="plain.ckpt", verbose=False)
    capsys.readouterr()
    command = ["--ckpt_path=plain.ckpt", "--trainer.accelerator=cpu", "--model=zoo.modules.Plain"]
    assert main(["test", *command, "--data=zoo.data.Own"]) == 0
    out = capsys.readouterr().out
    for name, value in expected.items():
        assert f"{name.removeprefix('test_')} {value:.4f}" in out
    assert main(["predict", *command, "--data=zoo.data.Own"]) == 0
    assert Path("predictions.csv").is_file()
    for refused in (["test", "--ckpt_path=plain.ckpt"], ["fit", *command], ["fit", "--resume=plain.ckpt"]):
        capsys.readouterr()
        assert main(refused) == 2
        assert "plain.ckpt: does not say what was trained; give a run's folder" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Attribute 'act' is an instance of `nn.Module`")
@pytest.mark.parametrize("name", ["Child", slow("Parent"), slow("Chosen")])
def test_arguments_that_a_module_saves_are_those_that_it_saves_without_a_command_line(name: str) -> None:
    seed_everything(0, workers=True, verbose=False)
    module = getattr(loading, name)()
    Trainer(**QUIET, max_epochs=1).fit(module, data.Own())
    flags = [f"--model=zoo.loading.{name}", "--trainer.max_epochs=1", "--best_checkpoint.monitor=val_loss"]
    assert main(["fit", *USUAL, *flags]) == 0
    run = only_run()
    saved = checkpoint.read(run / "checkpoints" / "last.ckpt")
    for weight, expected in zip(saved["state_dict"].values(), module.state_dict().values(), strict=True):
        assert torch.equal(weight, expected)
    assert main(["test", "--ckpt_path", str(run)]) == 0
    age(run)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0


def test_figures_that_are_left_out_draw_no_random_number(capsys: pytest.CaptureFixture[str]) -> None:
    seed_everything(0, workers=True, verbose=False)
    module = modules.Autoencoder()
    Trainer(**QUIET, max_epochs=2).fit(module, data.Own())
    flags = ["--model=zoo.modules.Autoencoder", "--trainer.max_epochs=2", "--best_checkpoint.monitor=val_loss"]
    assert main(["fit", *USUAL, "--figures.every_n_epochs=1", *flags]) == 0
    assert "figures val/... are left out: " in capsys.readouterr().err
    saved = checkpoint.read(only_run() / "checkpoints" / "last.ckpt")
    for name, weight in module.state_dict().items():
        assert torch.equal(saved["state_dict"][name], weight)


@pytest.mark.parametrize("name", ["1e5", slow("-1.5E+3"), slow("1_0e2")])
def test_a_text_that_looks_like_a_number_stays_a_text(name: str) -> None:
    flags = ["--model=zoo.odd.WithName", f"--model.name={name}", "--trainer.max_epochs=1"]
    assert main(["fit", *USUAL, *flags, "--best_checkpoint.monitor=val_loss"]) == 0
    run = only_run()
    assert main(["test", "--ckpt_path", str(run)]) == 0
    age(run)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    assert checkpoint.read(run / "checkpoints" / "last.ckpt")["hyper_parameters"]["name"] == name


@pytest.mark.filterwarnings("ignore:Attribute 'act' is an instance of `nn.Module`")
def test_load_from_checkpoint_makes_the_layers_that_a_module_was_given() -> None:
    flags = ["--model=zoo.loading.Parent", "--model.hidden=3", "--model.act=torch.nn.GELU", "--trainer.max_epochs=1"]
    assert main(["fit", *USUAL, *flags, "--best_checkpoint.monitor=val_loss"]) == 0
    path = only_run() / "checkpoints" / "last.ckpt"
    module = loading.Parent.load_from_checkpoint(path, weights_only=True)
    assert isinstance(module.net[2], torch.nn.GELU)
    expected = checkpoint.read(path)["state_dict"]
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, expected[name])


def test_load_from_checkpoint_makes_the_default_model_and_data_again() -> None:
    assert fit("--trainer.max_epochs=1", "--model.lr=0.05") == 0
    path = only_run() / "checkpoints" / "last.ckpt"
    assert sr.SoftmaxRegression.load_from_checkpoint(path, weights_only=True).lr == 0.05
    data_module = sr.FashionMNISTDataModule.load_from_checkpoint(path, weights_only=True)
    assert data_module.source == "synthetic"


def test_each_run_of_a_logger_of_a_service_has_the_folder_that_lightning_gives_its_checkpoints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model=zoo.modules.Plain", "--trainer.max_epochs=1", "--trainer.logger=zoo.odd.Service"]
    assert main(["fit", *USUAL, *flags]) == 0
    assert main(["fit", *USUAL, *flags, "--trainer.logger.run=named"]) == 0
    assert len(list(Path("service/project").iterdir())) == 2
    run = Path("service/project/named")
    assert main(["test", "--ckpt_path", str(run)]) == 0
    kept = (run / "run.json").read_bytes()
    capsys.readouterr()
    assert main(["fit", *USUAL, *flags, "--trainer.logger.run=named"]) == 2
    assert f"error: {run}: is another run's; give the logger another name or version" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == kept


def test_what_a_module_adds_to_tensorboard_when_it_is_scored_is_in_its_run() -> None:
    assert main(["fit", *USUAL, "--model=zoo.odd.WritesTexts", "--trainer.max_epochs=1"]) == 0
    run = only_run()
    trained = scalars(run)
    for command in ("test", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
    events = EventAccumulator(str(run)).Reload()
    assert {"test/text_summary", "predict/text_summary"} <= set(events.Tags()["tensors"])
    assert scalars(run) == trained
    assert only_run() == run
