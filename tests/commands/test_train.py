"""The commands end to end, in this process, on small generated data."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from commands import SMALL, fit, manifest, one_line, only_run, scalars
from marks import slow
from softmax_regression.commands.train import TrainCLI, main
from softmax_regression.runs import checkpoint
from softmax_regression.runs.rows import read_rows

ROOT = Path(__file__).parents[2]
MINE = """
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from softmax_regression import SoftmaxRegression
from softmax_regression.runs.rows import read_rows

class Hello(Callback):
    def __init__(self, word: str) -> None:
        self.word = word

    def on_train_start(self, trainer, pl_module) -> None:
        print(self.word)

class Net(SoftmaxRegression):
    def __init__(self, hidden: int = 8, lr: float = 0.25, **kwargs) -> None:
        super().__init__(lr=lr, **kwargs)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))

class Broken(SoftmaxRegression):
    def training_step(self, batch, batch_idx):
        raise ValueError("a bug")

class Plain(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint | {"saved_by": "mine"}, path, storage_options)
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's own in the folder where the command runs."""
    Path("mine.py").write_text(MINE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def last(run: Path) -> dict[str, Any]:
    return checkpoint.read(run / "checkpoints" / "last.ckpt")


def test_fit_leaves_configuration_manifest_checkpoints_and_events(trained: Path) -> None:
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    others = {p.name for p in trained.iterdir() if not p.name.startswith("events.")}
    assert others == {"config.yaml", "run.json", "metrics.csv", "checkpoints", ".lock"}
    record = manifest(trained)
    assert (record["status"], record["stopped"]) == ("finished", "max_epochs=3 reached")
    assert record["config"]["data"]["init_args"]["val_size"] == 101
    assert record["best"]["val/loss"] <= record["final"]["val/loss"]
    series = scalars(trained)
    assert len(series["val/acc"]) == 3
    assert series["val/acc"][-1][1] == pytest.approx(record["final"]["val/acc"])


def test_two_runs_with_one_seed_have_the_same_bits_and_folders_of_their_own() -> None:
    for seed in ("1", "1", "2"):
        assert fit(f"--seed_everything={seed}") == 0
    runs = sorted(Path("logs/softmax").iterdir())
    weights = [checkpoint.read(run / "checkpoints/last.ckpt")["state_dict"]["net.2.weight"] for run in runs]
    assert len(weights) == 3
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_fit_prints_a_line_an_epoch_and_commands_that_can_be_pasted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("train.py").touch()
    assert fit("--trainer.logger.save_dir=my logs") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert all(len(line) <= 80 for line in epochs)
    assert f"  python train.py test --ckpt_path '{only_run(Path('my logs'))}'" in lines
    assert "  tensorboard --logdir 'my logs'" in lines


def test_early_stopping_names_its_flag_and_obeys_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=12")
    assert fit(*options) == 0
    assert "--early_stopping.patience" in capsys.readouterr().out
    assert manifest(only_run())["final"]["epoch"] < 12
    shutil.rmtree("logs")
    assert fit(*options, "--early_stopping.patience", "0") == 0
    assert manifest(only_run())["final"]["epoch"] == 12


def test_without_validation_images_it_says_what_is_off_and_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--data.val_size=0") == 0
    assert "EarlyStopping is off" in capsys.readouterr().out
    assert manifest(only_run())["final"]["epoch"] == 3
    assert [path.name for path in (only_run() / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "file", ["--config x.yaml", slow("--config=x.yaml"), slow("-c x.yaml"), slow("-cx.yaml"), "--trainer t.yaml"]
)
def test_a_flag_wins_over_a_file_wherever_it_stands(file: str) -> None:
    Path("x.yaml").write_text("trainer: {max_epochs: 5, limit_train_batches: 2}")
    Path("t.yaml").write_text("max_epochs: 5\nlimit_train_batches: 2")
    for words in (["--trainer.max_epochs=1", *file.split()], [*file.split(), "--trainer.max_epochs=1"]):
        assert main(["fit", *SMALL, *words]) == 0
        trainer = manifest(only_run())["config"]["trainer"]
        assert (trainer["max_epochs"], trainer["limit_train_batches"]) == (1, 2)
        shutil.rmtree("logs")


@pytest.mark.usefixtures("mine")
def test_a_model_and_a_callback_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--trainer.callbacks+=mine.Hello", "--trainer.callbacks.word", "good morning")
    assert fit(*options, "--model.hidden", "16", "--model", "mine.Net", "--trainer.max_epochs=1") == 0
    assert "good morning" in capsys.readouterr().out
    saved = last(only_run())
    assert saved["state_dict"]["net.1.weight"].shape == (16, 784)
    assert saved["hyper_parameters"]["lr"] == 0.25  # its own default, not that of ours
    assert main(["test", "--ckpt_path", str(only_run())]) == 0
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 0
    assert len(read_rows(only_run())) == 2


def test_an_optimizer_and_a_schedule_by_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--optimizer.lr=0.004", "--optimizer", "Adam", "--lr_scheduler", "StepLR"]
    assert fit(*flags, "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5") == 0
    (state,) = last(only_run())["optimizer_states"]
    assert {"exp_avg", "exp_avg_sq"} < set(state["state"][0])
    assert state["param_groups"][0]["lr"] == 0.004 / 2**3
    assert capsys.readouterr().err == ""


def test_tensorboard_is_named_only_for_a_run_that_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--trainer.max_epochs=1") == 0
    assert "tensorboard" not in capsys.readouterr().out


def test_several_loggers_write_each_their_own() -> None:
    loggers = "[RunLogger, {class_path: CSVLogger, init_args: {save_dir: csv}}]"
    assert fit(f"--trainer.logger={loggers}", "--trainer.max_epochs=1") == 0
    assert (only_run() / "checkpoints" / "last.ckpt").exists()
    assert "val/loss" in (only_run(Path("csv")) / "metrics.csv").read_text()
    csv = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=t")
    assert main(["test", "--ckpt_path", str(only_run()), *csv]) == 0
    assert "test/acc" in (only_run(Path("t")) / "metrics.csv").read_text()


@pytest.mark.usefixtures("mine")
def test_a_checkpoint_io_of_the_users_own_is_used_as_it_is() -> None:
    assert fit("--trainer.plugins+=mine.Plain", "--trainer.max_epochs=1") == 0
    assert last(only_run())["saved_by"] == "mine"


def test_a_profiler_and_a_summary_print(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    options = ("--trainer.profiler=simple", "--trainer.enable_model_summary=true", "--trainer.max_epochs=1")
    assert fit(*options) == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert "FIT Profiler Report" in said
    assert "Trainable params" in said


@pytest.mark.parametrize("which", ["folder", "file", "best", "last"])
def test_test_names_what_it_scores_and_keeps_the_metrics(
    trained: Path, run: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"folder": str(run), "file": str(run / "checkpoints" / "last.ckpt")}.get(which, which)
    assert main(["test", "--ckpt_path", path]) == 0
    first, second = capsys.readouterr().out.splitlines()
    name = "best.ckpt" if which in ("folder", "best") else "last.ckpt"
    assert first == f"test: run {run}, checkpoint {name}, data generated (data.source=synthetic)"
    stored = manifest(run)["test"]
    assert second == f"test loss {stored['test/loss']:.4f} acc {stored['test/acc']:.4f}"
    assert [*trained.parent.iterdir(), *run.parent.iterdir()] == [trained, run]  # no run of its own


def test_a_score_of_a_part_is_not_kept(run: Path) -> None:
    before = manifest(run)
    assert main(["test", "--ckpt_path", str(run), "--data.eval_batch_size=10", "--trainer.limit_test_batches=1"]) == 0
    assert manifest(run) == before


def test_validate_gives_what_fit_logged(run: Path) -> None:
    assert main(["validate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    record = manifest(run)
    assert record["validate"] == {key: record["final"][key] for key in ("val/loss", "val/acc")}


def test_predict_writes_a_row_for_each_test_image(run: Path) -> None:
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    assert main(["test", "--ckpt_path", str(run)]) == 0
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 100
    names = list(rows[0])
    assert names[:4] == ["index", "label", "predicted", "probability"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / 100 == pytest.approx(manifest(run)["test"]["test/acc"])
    for row in rows:
        probabilities = {name: float(row[name]) for name in names[4:]}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(probabilities, key=probabilities.__getitem__) == row["predicted"]


@pytest.mark.slow
def test_one_process_scores_however_many_have_trained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("devices: auto", "devices: 2").replace("strategy: auto", "strategy: ddp")
    )
    for command in ("test", "validate", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
    assert not torch.distributed.is_initialized()
    assert len((run / "predictions.csv").read_text().splitlines()) == 101
    capsys.readouterr()
    assert main(["predict", "--ckpt_path", str(run), "--trainer.devices=2"]) == 2
    assert "2 processes: predict uses one; drop --trainer.devices, or torchrun" in one_line(capsys)


def test_predict_takes_photos_beside_the_test_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Path("photos").mkdir()
    photo = Image.new("RGB", (60, 40), "white")
    photo.paste("navy", (20, 5, 40, 35))
    photo.save("photos/a.png")
    Image.new("L", (28, 28), 0).save("photos/b.png")
    Path("photos/notes.txt").write_text("no image")
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    assert main(["predict", "--ckpt_path", str(run), "--data.images", "photos"]) == 0
    rows = list(csv.DictReader((run / "predictions-photos.csv").read_text().splitlines()))
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    assert "label" in (run / "predictions.csv").read_text()
    out, err = capsys.readouterr()
    assert "notes.txt" in err
    assert "data 2 photos" in out


@pytest.mark.slow
def test_predict_writes_through_devices_pipes_and_links(run: Path) -> None:
    def predict(path: str) -> int:
        return main(["predict", "--ckpt_path", str(run), "--output", path])

    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    assert predict("pipe") == 0
    assert reader.communicate()[0].count("\n") == 101
    Path("there.csv").touch(mode=0o600)  # empty, as mktemp makes it
    Path("link.csv").symlink_to("there.csv")
    assert predict("link.csv") == predict("link.csv") == 0
    assert Path("link.csv").is_symlink()
    assert Path("there.csv").stat().st_mode & 0o777 == 0o600
    assert predict("/dev/null") == 0
    assert Path("/dev/null").is_char_device()
    assert predict("/dev/full") == 4
    Path("own.csv").write_text("index,mine\n")
    assert main(["predict", "--ckpt_path", str(run), "--output", "own.csv", "--force"]) == 0
    assert Path("own.csv").read_text().startswith("index,label")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_runs(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert "# Command: python " in path.read_text()
    if path.stem == "sweep":  # of study.py, see test_space.py
        return
    small = ["--data.source=synthetic", "--data.synthetic_size=6000", "--data.train_size=400"]
    options = ["--trainer.max_epochs=1", "--trainer.devices=1", "--data.batch_size=64"]
    assert main(["fit", f"--config={path}", *small, *options]) == 0


@pytest.mark.usefixtures("mine")
def test_help_shows_ours_first_and_lightnings_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", "mine.Net", "--help"]) == 0
    text = capsys.readouterr().out
    shown = ["--model CLASS", "--model.hidden", "Learning rate, above 0", "--data.batch_size", "--resume", "--help-all"]
    assert [words for words in shown if words not in text] == []
    assert text.count("\n") < 160
    assert "--trainer.max_epochs" not in text
    assert main(["fit", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert text.index("--model.lr") < text.index("--early_stopping.patience") < text.index("--trainer.max_epochs")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--print_config"])
    assert "max_epochs: 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "own", "of_others"),
    [
        ("fit", ("--resume", "--early_stopping.patience"), ("--output", "--force")),
        ("test", ("--ckpt_path RUN",), ("--resume", "--output", "--force", "--early_stopping")),
        ("predict", ("--ckpt_path RUN", "--output", "--force"), ("--resume", "--early_stopping")),
    ],
)
def test_the_help_of_a_command_has_the_options_that_it_takes(
    command: str, own: Sequence[str], of_others: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert [option for option in own if option not in text] == []
    assert [option for option in of_others if option in text] == []


def test_only_the_options_of_the_command_that_was_typed_are_set_up() -> None:
    add = TrainCLI.add_arguments_to_parser
    with mock.patch.object(TrainCLI, "add_arguments_to_parser", autospec=True, side_effect=add) as added:
        assert main(["validate"]) == 2
    assert added.call_count == 1


@pytest.mark.usefixtures("mine")
def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug"):
        fit("--model=mine.Broken")


def test_an_installed_srun_changes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("srun").write_text("#!/bin/sh\n")
    Path("srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    assert fit("--trainer.max_epochs=1") == 0
    assert capsys.readouterr().err == ""


def test_a_lost_output_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", None)
        assert fit("--trainer.max_epoch=1") == 2
        assert fit("--trainer.max_epochs=1") == 0
    assert manifest(only_run())["status"] == "finished"


def test_a_line_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's daemon writes to the same file; its words have stood within a line of ours."""
    written: list[str] = []
    with (tmp_path / "err").open("w") as file:
        monkeypatch.setattr(file, "write", written.append, raising=False)
        monkeypatch.setattr("sys.stderr", file)
        assert fit("--trainer.max_epoch=1") == 2
    (line,) = written
    assert line.startswith("error: ")
    assert line.endswith("\n")


@pytest.mark.parametrize("script", ["train.py", "study.py"])
def test_a_terminal_says_at_once_what_takes_long(script: str) -> None:
    package = Path("fake/softmax_regression/commands")
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / script).write_text("print('imported', flush=True)\nmain = lambda: 0\n")
    shutil.copy(ROOT / script, script)
    command = f"{sys.executable} {script}"
    environment = os.environ | {"PYTHONPATH": "fake"}
    shown = subprocess.run(["script", "-qec", command, "/dev/null"], env=environment, capture_output=True, text=True)
    assert shown.stdout.split("\n") == ["importing torch and lightning ...", "imported", "\x1b[K"]
    piped = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("imported\n", "")


@pytest.mark.slow
def test_the_commands_import_little_beside_lightning() -> None:
    packages = "{name.partition('.')[0] for name in sys.modules}"
    code = (
        f"import sys, lightning.pytorch.cli, torchmetrics, torchvision; before = {packages}; "
        f"import softmax_regression.commands.train; print(*{packages} - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(found.split()) <= {"softmax_regression", "filelock"}


def test_an_epoch_is_shown_without_the_number_of_all_where_only_steps_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        "--trainer.max_epochs=-1",
        "--trainer.max_steps=3",
        "--data.batch_size=100",
        "--figures.every_n_epochs=0",
    ]
    assert main(["fit", *SMALL, *options]) == 0
    assert "\nepoch 1  train loss " in capsys.readouterr().out
