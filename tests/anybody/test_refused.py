"""What cannot work for somebody's module or data is one true line before the work, with exit code 2."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from zoo import data, modules

from commands import manifest, one_line, only_run
from softmax_regression import LastCheckpoint, RunLogger, RunRecord
from softmax_regression.__main__ import main

HERE = Path(__file__).parent
PLAIN = ["--data=zoo.data.Own", "--figures.every_n_epochs=0", "--trainer.max_epochs=2"]
# Flags of `fit`, and what the line says.
REFUSED = {
    "batches that a Classifier does not take": (
        ["--model=zoo.modules.Ours", "--data=zoo.data.DictBatches"],
        "batches of the type dict: a Classifier takes pairs, images and classes",
    ),
    "a metric of several numbers": (
        ["--model=zoo.odd.VectorMetric"],
        "metric each: its value is no single number but (10,)",
    ),
    "a state that no command could read": (
        ["--model=zoo.odd.WithObject"],
        "history",
    ),
    "images of another size": (
        ["--data=zoo.odd.Small"],
        "images of 3 x 8 x 8: the model takes 1 x 28 x 28",
    ),
    "a class that is not there": (
        ["--model=zoo.modules.Plian"],
        "module 'zoo.modules' has no attribute 'Plian'; did you mean zoo.modules.Plain",
    ),
    "a class of a module that another one hides": (
        ["--model=yaml.Net"],
        "module 'yaml' has no attribute 'Net'; the module is /",
    ),
    "a default that is an array": (
        ["--model=zoo.odd.WithArray"],
        "model: The truth value of an array with more than one element is ambiguous",
    ),
    "an error in the class itself": (
        ["--model=zoo.odd.WithError"],
        "unsupported operand type(s) for +: 'int' and 'str' (odd.py, line ",
    ),
    "a hook with other arguments": (
        ["--model=zoo.odd.OtherArguments"],
        "error: OtherArguments.on_train_batch_end() takes 1 positional argument but 4 were given",
    ),
    "minibatches of no example": (
        ["--model=zoo.modules.Plain", "--data.batch_size=0"],
        "error: batch_size should be a positive integer value, but got batch_size=0",
    ),
    "a callback that needs another one": (
        ["--model=zoo.modules.Plain", "--trainer.callbacks+=zoo.odd.NeedsAnother"],
        "error: NeedsAnother: goes with a ModelCheckpoint",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HERE / "zoo", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that was refused."""
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags, says = REFUSED[kind]
    assert main(["fit", *PLAIN, *flags]) == 2
    assert says in error_of(capsys)
    assert not list(Path().rglob("last.ckpt"))


def test_a_module_with_training_data_of_its_own_is_not_trained_on_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model=zoo.odd.OwnLoaders"]) == 2
    assert "OwnLoaders: its own train_dataloader is not used here" in error_of(capsys)
    assert main(["fit", *PLAIN, "--model=zoo.odd.OwnLoaders"]) == 0


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_a_run_on_loaders_of_a_script_is_not_scored_on_other_data(capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"logger": RunLogger(), "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[LastCheckpoint(), RunRecord()], **options)
    own = data.Own()
    own.setup("fit")
    module = modules.Plain()
    trainer.fit(module, own.train_dataloader(), own.val_dataloader())
    run = only_run()
    for command in (["test", "--ckpt_path"], ["predict", "--ckpt_path"], ["fit", "--resume"]):
        capsys.readouterr()
        assert main([*command, str(run)]) == 2
        assert "was trained with DataLoaders of a script; name its data with --data" in error_of(capsys)
    assert main(["test", "--ckpt_path", str(run), "--data=zoo.data.Own"]) == 0
    assert manifest(run)["test"] == pytest.approx(trainer.test(module, own, verbose=False)[0])


def test_a_schedule_of_a_fixed_length_is_not_gone_on_with_for_more_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *PLAIN, "--model=zoo.odd.OneCycle", "--best_checkpoint.monitor=val_loss"]) == 0
    run = only_run()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=3"]) == 2
    assert "14" in error_of(capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_group_of_parameters_that_came_later_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model=zoo.odd.LateGroup", "--data=zoo.data.Own", "--figures.every_n_epochs=0"]
    assert main(["fit", *flags, "--trainer.max_epochs=2"]) == 0
    capsys.readouterr()
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=3"]) == 2
    assert "let configure_optimizers make all parameter groups" in one_line(capsys)


def test_options_that_other_data_do_not_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *PLAIN, "--model=zoo.modules.Plain", "--best_checkpoint.monitor=val_loss"]) == 0
    for words, says in (
        (["predict", "--ckpt_path=best", "--data.images=x"], "data: Option 'images' is not accepted; see --help"),
        (["report", "best", "--dirs=[x]"], "dirs=['x']: the data of this run have no parameter of this name; drop"),
        (["export", "best", "--dirs=[x]"], "dirs=['x']: the data of this run have no parameter of this name; drop"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        assert says in error_of(capsys)


def test_a_hook_that_a_class_does_not_implement_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model=zoo.odd.WithoutTest", "--best_checkpoint.monitor=val_loss", "--trainer.max_epochs=1"]
    assert main(["fit", *flags, "--data=zoo.odd.WithoutPredictions", "--figures.every_n_epochs=0"]) == 0
    for command, hook in ("test", "WithoutTest.test_step"), ("predict", "WithoutPredictions.predict_dataloader"):
        capsys.readouterr()
        assert main([command, "--ckpt_path=best"]) == 2
        assert f"error: {hook} is not implemented; define it" in error_of(capsys)


def test_a_file_is_no_folder_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain.ckpt").write_bytes(b"mine")
    for command in ("compare", "curve"):
        for which in ("plain.ckpt", "best"):
            capsys.readouterr()
            assert main([command, which]) == 2
            assert f"left out: {which}: no such folder; give that of a run" in capsys.readouterr().err


def test_a_class_in_a_function_is_asked_to_be_in_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    class Local(modules.Plain):
        pass

    options: dict[str, Any] = {"logger": RunLogger(), "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings(action="ignore"):
        Trainer(accelerator="cpu", max_epochs=1, callbacks=[LastCheckpoint(), RunRecord()], **options).fit(
            Local(), data.Own()
        )
    capsys.readouterr()
    assert main(["report", "last"]) == 2
    assert (
        "Local: is in a script or notebook, or in a function; no command opens its runs until it is in a module"
        in error_of(capsys)
    )
