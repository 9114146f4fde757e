"""The commands end to end, in this process, on small generated data; and every way to get them wrong."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from commands import SMALL, fit, manifest, one_line, only_run, scalars
from softmax_regression.commands.train import main
from softmax_regression.data.files import CLASSES
from softmax_regression.runs import checkpoint

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("trained")
    assert fit(f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of it in this test's folder."""
    return shutil.copytree(trained, Path("logs", "softmax", trained.name))


def test_fit_leaves_configuration_manifest_checkpoints_and_events(trained: Path) -> None:
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    others = {p.name for p in trained.iterdir() if not p.name.startswith("events.")}
    assert others == {"config.yaml", "run.json", "checkpoints"}
    record = manifest(trained)
    assert record["status"] == "finished"
    assert record["stopped"] == "max_epochs=3 reached"
    assert record["seed"] == 0
    assert record["config"]["data"]["val_size"] == 101
    assert len(record["data"]["sha256"]) == 64
    assert "generated" in record["data"]["origin"]
    assert record["final"]["epoch"] == 3
    assert record["best"]["val/loss"] <= record["final"]["val/loss"]
    assert set(record["versions"]) >= {"torch", "lightning"}


def test_events_have_one_value_of_each_metric_an_epoch(trained: Path) -> None:
    series = scalars(trained)
    assert set(series) == {"train/loss", "train/acc", "val/loss", "val/acc", "lr"}
    assert all([step for step, _ in values] == [1, 2, 3] for values in series.values())
    assert series["val/acc"][-1][1] == pytest.approx(manifest(trained)["final"]["val/acc"])


def test_the_run_is_listed_in_hparams_with_its_final_metrics(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    events = EventAccumulator(str(trained))
    events.Reload()
    contents = events.PluginTagToContent("hparams")
    assert metadata.EXPERIMENT_TAG in contents
    start = plugin_data_pb2.HParamsPluginData.FromString(contents[metadata.SESSION_START_INFO_TAG])
    assert start.session_start_info.hparams["lr"].number_value == 0.1
    assert events.Graph() is not None


def test_two_runs_with_one_seed_have_the_same_bits_and_folders_of_their_own() -> None:
    weights = []
    for seed in ("1", "1", "2"):
        assert fit(f"--seed_everything={seed}") == 0
    for folder in sorted(Path("logs/softmax").iterdir()):
        weights.append(checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"]["linear.weight"])
    assert len(weights) == 3
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_several_updates_a_training_step_give_the_same_bits_as_one(tmp_path: Path) -> None:
    weights = []
    for steps in (1, 7, 16):
        logs = tmp_path / str(steps)
        assert fit(f"--data.steps_per_execution={steps}", f"--trainer.logger.save_dir={logs}") == 0
        saved = checkpoint.read(only_run(logs) / "checkpoints" / "last.ckpt")
        weights.append(saved["state_dict"]["linear.weight"])
        assert saved["global_step"] == 3 * 16
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_fit_prints_a_line_an_epoch_and_the_next_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    assert f"  python train.py test --ckpt_path {only_run()}" in lines
    assert "  tensorboard --logdir logs" in lines


def test_fit_draws_a_progress_bar_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert fit() == 0
    out, err = capsys.readouterr()
    assert "epoch 3/3  train/loss" in err
    assert "━" in err
    assert "epoch 3/3" not in out


def test_a_callback_whose_default_is_no_plain_value_is_recorded_and_resumed() -> None:
    assert fit("--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.max_epochs=1") == 0
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 0
    assert "interval: step" in (only_run() / "config.yaml").read_text()


def test_early_stopping_can_fire(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=40") == 0
    assert "early stopping: val/loss did not improve for 3 epochs" in capsys.readouterr().out
    assert manifest(only_run())["final"]["epoch"] < 40


@pytest.mark.parametrize("which", ["folder", "file", "best", "last"])
def test_test_scores_a_run_and_keeps_the_metrics(
    run: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"folder": str(run), "file": str(run / "checkpoints" / "last.ckpt")}.get(which, which)
    assert main(["test", "--ckpt_path", path]) == 0
    out, err = capsys.readouterr()
    stored = manifest(run)["test"]
    assert out == f"test/loss {stored['test/loss']:.4f}  test/acc {stored['test/acc']:.4f}\n"
    assert err == ""
    assert stored["test/acc"] * 100 == pytest.approx(
        round(stored["test/acc"] * 100), abs=1e-4
    )  # of 100 images
    assert len(list(Path("logs/softmax").iterdir())) == 1


def test_validate_gives_what_fit_logged(run: Path) -> None:
    assert main(["validate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    record = manifest(run)
    assert record["validate"] == {key: record["final"][key] for key in ("val/loss", "val/acc")}


def test_predict_writes_a_row_for_each_test_image(run: Path) -> None:
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    assert main(["test", "--ckpt_path", str(run)]) == 0
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 100
    assert list(rows[0])[:4] == ["index", "label", "predicted", "probability"]
    assert sum(row["label"] == row["predicted"] for row in rows) / 100 == pytest.approx(
        manifest(run)["test"]["test/acc"]
    )
    for row in rows:
        probabilities = {name: float(row[name]) for name in CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(probabilities, key=probabilities.__getitem__) == row["predicted"]


def test_predict_takes_photos_and_names_what_is_no_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    photo = Image.new("RGB", (60, 40), "white")
    photo.paste("navy", (20, 5, 40, 35))
    photo.save(photos / "a.png")
    Image.new("L", (28, 28), 0).save(photos / "b.png")
    (photos / "notes.txt").write_text("no image")
    assert main(["predict", "--ckpt_path", str(run), "--data.images", str(photos), "--output", "p.csv"]) == 0
    rows = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_runs(path: Path) -> None:
    if path.stem.startswith("sweep"):
        pytest.skip("a configuration of study.py, see test_sweep.py")
    options = [
        f"--config={path}",
        "--data.source=synthetic",
        "--data.synthetic_size=6000",
        "--data.train_size=400",
    ]
    assert (
        main(["fit", *options, "--trainer.max_epochs=1", "--trainer.devices=1", "--data.batch_size=64"]) == 0
    )
    assert path.read_text().startswith("# ")
    assert "# Command: python " in path.read_text()


def test_the_default_configuration_is_found_from_anywhere() -> None:
    assert Path.cwd() != CONF.parent
    assert fit() == 0
    assert (only_run() / "checkpoints" / "best.ckpt").exists()


def test_print_config_and_help_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--print_config"])
    assert "max_epochs: 10" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for words in ("--model.lr", "Learning rate, above 0", "--data.batch_size", "--resume"):
        assert words in text


NO_FIT = {
    "no command": ([], "subcommand"),
    "unknown command": (["fitt"], "fitt"),
    "unknown flag": (["fit", "--trainer.max_epoch", "3"], "--trainer.max_epoch"),
    "test without a model": (["test"], "--ckpt_path"),
    "missing checkpoint": (["test", "--ckpt_path", "nowhere"], "nowhere"),
    "nothing called best": (["predict", "--ckpt_path", "best"], "logs"),
    "nothing to resume": (["fit", "--resume", "nowhere"], "nowhere"),
    "checkpoint at a URL": (["test", "--ckpt_path", "http://127.0.0.1/x.ckpt"], "not from URLs"),
    "configuration at a URL": (["fit", "--config", "http://127.0.0.1/x.yaml"], "not from URLs"),
    "missing configuration": (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize(("args", "named"), NO_FIT.values(), ids=NO_FIT)
def test_a_wrong_command_is_one_line(args: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert named in one_line(capsys)
    assert not Path("logs").exists()


NO_OPTIONS = [
    ("--data.batch_size=x", "x"),
    ("--data.batch_size=0", "batch_size=0"),
    ("--data.batch_size=-1", "batch_size=-1"),
    ("--data.batch_size=500", "batch_size=500"),
    ("--model.lr=0", "lr=0"),
    ("--model.lr=-0.1", "lr=-0.1"),
    ("--model.lr=.nan", "lr=nan"),
    ("--model.lr=.inf", "lr=inf"),
    ("--model.lr=nan", "nan"),
    ("--model.dropout=1.5", "dropout=1.5"),
    ("--model.momentum=1", "momentum=1"),
    ("--model.schedule=linear", "linear"),
    ("--model.num_classes=0", "num_classes=0"),
    ("--model.num_classes=3", "num_classes=3"),
    ("--data.val_size=600", "val_size=600"),
    ("--data.val_size=-1", "val_size=-1"),
    ("--data.train_size=0", "train_size=0"),
    ("--data.train_size=500", "train_size=500"),
    ("--data.synthetic_size=2000001", "synthetic_size=2000001: must be at most 2000000"),
    ("--data.source=mnist", "mnist"),
    ("--data.steps_per_execution=0", "steps_per_execution=0"),
    ("--trainer.max_epochs=0", "max_epochs=0"),
    ("--trainer.max_epochs=-5", "max_epochs=-5"),
    ("--trainer.devices=99", "devices=99"),
    ("--trainer.accelerator=gpu", "accelerator=gpu"),
    ("--trainer.callbacks.monitor=val/accuracy", "val/accuracy"),
    ("--trainer.callbacks+=os.path.join", "os.path.join"),
    ("--trainer.logger=json.JSONDecoder", "json.JSONDecoder"),
    ("--trainer.gradient_clip_val=1", "clipping"),
    ("--seed_everything=true", "seed_everything"),
    ("--trainer.logger.save_dir=/proc/forbidden", "/proc/forbidden"),
]


@pytest.mark.parametrize(("option", "named"), NO_OPTIONS, ids=[option for option, _ in NO_OPTIONS])
def test_a_wrong_option_is_one_line_and_leaves_no_run(
    option: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if option == "--trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if "monitor" in option:
        option = (
            "--trainer.callbacks=[{class_path: softmax_regression.runs.callbacks.EarlyStopping, "
            "init_args: {monitor: val/accuracy}}]"
        )
    assert fit(option) == 2
    assert named in one_line(capsys)
    assert not Path("logs").exists() or not list(Path("logs").glob("*/*"))


NO_YAML = {
    "empty": ("", "holds no options"),
    "garbled": ("trainer: [1, ", "not YAML"),
    "a list": ("- 1", "holds no options"),
    "unknown key": ("model: {lrr: 1}", "lrr"),
    "wrong type": ("data: {batch_size: many}", "many"),
    "binary": ("\x00\x01\x02", "not YAML"),
    "foreign class": ("trainer: {logger: {class_path: subprocess.Popen, init_args: {args: ls}}}", "refused"),
    "foreign class, deep": (
        "trainer: {callbacks: [{class_path: torch.nn.Linear}, {class_path: a: b}]}",
        "not YAML",
    ),
}


@pytest.mark.parametrize(("text", "named"), NO_YAML.values(), ids=NO_YAML)
def test_a_wrong_configuration_is_one_line(text: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(text)
    assert fit("--config=x.yaml") == 2
    assert named in one_line(capsys)
    assert not Path("logs").exists()


DAMAGES = {
    "empty": "it has no checksum",
    "text": "it has no checksum",
    "truncated": "it has no checksum",
    "flipped": "its checksum does not hold",
    "foreign": "not a checkpoint of this project",
    "shape": "linear.weight has shape (10, 100), the model (10, 784)",
    "not finite": "linear.weight is not finite",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["test", "predict", "fit"])
def test_a_damaged_or_foreign_checkpoint_is_one_line(
    trained: Path, command: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("x.ckpt")
    good = (trained / "checkpoints" / "last.ckpt").read_bytes()
    if damage in ("foreign", "shape", "not finite"):
        saved = checkpoint.read(trained / "checkpoints" / "last.ckpt")
        weight = saved["state_dict"]["linear.weight"]
        saved["state_dict"]["linear.weight"] = weight[:, :100] if damage == "shape" else weight / 0
        path.write_bytes(checkpoint.dumps({"x": 1} if damage == "foreign" else saved))
    else:
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        data = {"empty": b"", "text": b"hello", "truncated": good[:-100], "flipped": bytes(flipped)}
        path.write_bytes(data[damage])
    assert main([command, *SMALL, "--ckpt_path", str(path)]) == 2
    line = one_line(capsys)
    assert "x.ckpt" in line
    assert DAMAGES[damage] in line
    assert not Path("logs").exists()
