"""Bad inputs: each is one true line and exit code 2 or 4, leaves no run behind, and replaces nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from commands import SMALL, fit, one_line, only_run
from marks import slow
from softmax_regression.commands.train import main
from softmax_regression.runs import checkpoint

RUN = Path("logs/softmax/RUN")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert fit("--trainer.max_epochs=1", f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents() -> dict[str, bytes | str]:
    """Every file and link below the current folder, but for locks, which are empty."""
    files = [path for path in Path().rglob("*") if path.is_symlink() or path.is_file()]
    return {str(p): str(p.readlink()) if p.is_symlink() else p.read_bytes() for p in files if p.name != ".lock"}


WRONG_COMMANDS = [
    ("test", "--ckpt_path"),
    ("test --ckpt_path nowhere", "nowhere: no such checkpoint"),
    ("predict --ckpt_path best", "no run under logs/"),
    ("fit --resume nowhere", "nowhere: no such checkpoint"),
    ("fit --resume=", "--resume '': names nothing"),
    ("test --ckpt_path=", "--ckpt_path '': names nothing"),
    ("fit --resume a --ckpt_path b", "name one checkpoint"),
    ("test --ckpt_path http://127.0.0.1/x.ckpt", "not from URLs"),
    ("test --ckpt_path /dev/zero", "/dev/zero: no such checkpoint file"),
    ("fit --config http://127.0.0.1/x.yaml", "URLs are not read"),
    ("fit --config nowhere.yaml", "nowhere.yaml: no such file"),
    ("fit --config /dev/zero", "/dev/zero: no such file"),
    ("fit --config", "expected one argument"),
    ("fit --config smoke.yaml -x", "unrecognized arguments: -x; see --help"),
    ("fit --trainer nowhere.yaml", "trainer: Unable to load config"),
]


@pytest.mark.parametrize(("args", "named"), WRONG_COMMANDS)
def test_a_wrong_command_is_one_line(args: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args.split()) == 2
    assert named in one_line(capsys)
    assert not contents()


@pytest.mark.parametrize(("args", "line"), [
    ("", "error: no command was given"),
    ("fitt", "error: fitt: no such command; did you mean fit"),
    ("--config x.yaml fit", "error: --config: put it behind the command"),
])  # fmt: skip
def test_a_wrong_command_shows_the_four(args: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args.split()) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == line
    assert "{fit,validate,test,predict}" in second or "fit --config x.yaml" in second


WRONG_OPTIONS = [
    # mistyped
    ("--lr=0.3", "unrecognized arguments: --lr=0.3; did you mean --model.lr"),
    slow("--model.lrr=0.3", "model: Option 'lrr' is not accepted; did you mean --model.lr"),
    slow("--modl.lr=0.3", "did you mean --model.lr"),
    ("--epochs=3", "did you mean --trainer.max_epochs"),
    slow("--trainer.max_epoch=3", "did you mean --trainer.max_epochs\n"),
    slow("--seed=1", "or --seed_everything"),
    slow("--patience=3", "did you mean --early_stopping.patience"),
    ("--optimizer=Adam --optimizer.lrr=3", "optimizer: Option 'lrr' is not accepted; see --help\n"),
    ("--data.images a b", "unrecognized arguments: b; see --help, and write a list as '[a, b]'"),
    slow("-x", "unrecognized arguments: -x; see --help"),
    slow("-trainer.max_epochs=3", "unrecognized arguments: -trainer.max_epochs=3; did you mean --trainer.max_epochs"),
    # wrong values
    ("--data.batch_size=x", "data.batch_size: Expected a int. Got value: x"),
    slow("--data.batch_size=0", "batch_size=0"),
    ("--data.batch_size=500", "batch_size=500"),
    ("--data.dirs=/x", "data.dirs: Expected a Sequence; Given value: /x; write a list as '[a, b]'\n"),
    ("--trainer.max_epochs=", "trainer.max_epochs: Expected a int; Given value:"),
    slow("--data.watch_test", "--data.watch_test: expected a value; give one, such as true"),
    slow("--model.lr=0", "lr=0"),
    ("--model.lr=.nan", "lr=nan"),
    slow("--model.lr=1e400", "lr=inf"),
    slow("--model.lr=0,1", "model.lr: Expected a float. Got value: 0,1"),
    ("--model.schedule=linear", "model.schedule: Expected one of ['constant', 'cosine']. Got value: linear"),
    ("--model.num_classes=3", "model.num_classes=3: the data have 10 classes"),
    slow("--data.val_size=600", "val_size=600"),
    slow("--data.source=mnist", "data.source: Expected one of ['files', 'synthetic']. Got value: mnist"),
    ("--seed_everything=-1", "seed_everything=-1: must be at least 0 and below 2^32"),
    slow("--seed_everything=4294967296", "seed_everything=4294967296"),
    slow("--seed_everything=true", "seed_everything: Expected a int. Got value: True"),
    slow("--threads=0", "threads=0"),
    ("--trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn: is for processes that a notebook starts; give ddp"),
    ("--early_stopping.patience=-1", "early_stopping.patience=-1"),
    (
        "--trainer.callbacks.help=EarlyStopping",
        "Give the full class path to avoid ambiguity: lightning.pytorch.callbacks.EarlyStopping",
    ),
    ("--trainer.callbacks+=EarlyStopping", "every run has an EarlyStopping, which you set by --early_stopping.monitor"),
    ("--early_stopping.monitor=val/accuracy", "val/accuracy of EarlyStopping: nothing logs it"),
    (
        "--early_stopping.monitor=test/loss --data.watch_test=true --trainer.limit_val_batches=0",
        "test/loss of EarlyStopping: nothing logs it; expected train/loss or train/acc",
    ),
    # of the Trainer
    ("--trainer.max_epochs=0", "trainer.max_epochs=0"),
    ("--trainer.accumulate_grad_batches=-1", "trainer.accumulate_grad_batches=-1: must be at least 1, or dropped"),
    slow("--trainer.limit_train_batches=0", "trainer.limit_train_batches=0"),
    slow("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0"),
    slow("--trainer.val_check_interval=0", "trainer.val_check_interval=0"),
    slow("--trainer.max_epochs=-5", "max_epochs"),
    ("--trainer.max_time=soon", "Timer(duration='soon')"),
    ("--trainer.devices=99", "trainer.devices=99"),
    slow("--trainer.accelerator=gpu", "gpu"),
    slow("--trainer.strategy=deepspeed", "DeepSpeed"),
    slow("--trainer.gradient_clip_algorithm=foo --trainer.gradient_clip_val=1", "gradient_clip_algorithm"),
    slow("--trainer.barebones=true --trainer.logger=CSVLogger --trainer.logger.save_dir=x", "barebones"),
    ("--trainer.logger=WandbLogger", "pip install"),
    slow("--trainer.callbacks=3", "trainer.callbacks: Expected a list"),
    ("--trainer.callbacks+=absent.Callback", "No module named 'absent'; it is neither in this folder nor installed\n"),
    slow("--trainer.callbacks+=Absent", "Absent; Given value: Absent; name the class with its module, as mine.Net\n"),
    slow("--trainer.callbacks+=softmax_regression.InputError", "subclass of Callback"),
    (
        "--trainer.callbacks+=LearningRateMonitor --trainer.callbacks.logging_interval=steps",
        "trainer.callbacks.logging_interval: Expected one of ['step', 'epoch']; Given value: steps\n",
    ),
    slow(
        "--trainer.callbacks+=RichProgressBar --trainer.callbacks.leave=maybe",
        "trainer.callbacks.leave: Expected a bool. Got value: maybe\n",
    ),
    slow(
        "--trainer.callbacks+=Timer --trainer.callbacks.durations=3",
        "trainer.callbacks: Option 'durations' is not accepted",
    ),
    slow(
        "--trainer.callbacks+=StochasticWeightAveraging",
        "trainer.callbacks: the following arguments are required: swa_lrs\n",
    ),
    slow("--trainer.callbacks+=Timer --trainer.callbacks.duration=5", "in the format DD:HH:MM:SS.\n"),
    slow(
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStoping",
        "has no attribute 'EarlyStoping'; did you mean lightning.pytorch.callbacks.EarlyStopping\n",
    ),
    slow("--trainer.callbacks+=BackboneFinetuning", "'SoftmaxRegression' object has no attribute 'backbone'"),
    ("--trainer.callbacks+=SpikeDetection", "SpikeDetection: Lightning cannot load its state"),
    (
        "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.filename=best",
        "filename=best of ModelCheckpoint: each run keeps a best.ckpt; give another filename, or a dirpath",
    ),
    (
        "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath=/proc/forbidden",
        "/proc/forbidden: cannot be written",
    ),
    # what goes together
    slow("--optimizer=SGD --optimizer.lr=-1", "Invalid learning rate: -1.0"),
    ("--lr_scheduler=StepLR --lr_scheduler.step_size=1", "goes with --optimizer"),
    slow("--optimizer=Adam --lr_scheduler=StepLR", "lr_scheduler: the following arguments are required: step_size"),
    ("--model=softmax_regression.FashionMNISTDataModule", "subclass of LightningModule"),
    ("--output=x.csv", "--output x.csv: goes with predict"),
    slow("--force", "--force: goes with --output"),
    slow("--data.images=x.png", "--data.images x.png: goes with predict"),
    slow("--trainer.logger.save_dir=/proc/forbidden", "/proc/forbidden"),
    ("--trainer.logger.version=a/b", "cannot make a run folder"),
]


@pytest.mark.parametrize(("options", "named"), WRONG_OPTIONS)
def test_a_wrong_option_is_one_line_and_leaves_no_run(
    options: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "gpu" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert fit(*options.split()) == 2
    assert named in one_line(capsys)
    assert not contents()


WRONG_FILES = [
    ("", "holds no options"),
    slow("- 1", "holds no options"),
    ("trainer: [1, ", "not a configuration"),
    slow("\x00\x01\x02", "not a configuration"),
    slow("a: " + "[" * 1500, "not a configuration", name="nested too deeply"),
    slow("1: 2", "Key must be a string"),
    ("data: &a {dirs: *a}", "not a configuration"),
    ("model: {lrr: 1}", "did you mean --model.lr"),
    slow("trainr: {max_epochs: 3}", "did you mean --trainer.max_epochs"),
    slow("data: {batch_size: many}", "many"),
    slow("seed_everything: 2020-01-01", "seed_everything: Expected a int. Got value: 2020-01-01"),
    slow("model: null", "required"),
    ("model: {class_path: softmax_regression.SoftmaxRegression, init_args: null}", "model: init_args is empty"),
    slow(
        "model: {class_path: softmax_regression.SoftmaxRegression, lr: 1}",
        "not accepted beside other options; put these under init_args",
    ),
    ("early_stopping: null", "early_stopping: is empty; give options of it, or drop it"),
    slow("seed_everything: null", "seed_everything=None: must be at least 0 and below 2^32"),
    ("resume: best", "use --resume"),
    ("model: !!python/object/apply:os.system [touch x]", "not a configuration"),
]


@pytest.mark.parametrize(("text", "named"), WRONG_FILES)
def test_a_wrong_configuration_is_one_line(text: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(text)
    assert fit("--config=x.yaml") == 2
    assert named in one_line(capsys)
    assert list(contents()) == ["x.yaml"]


def test_a_syntax_error_in_the_users_module_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("unfinished.py").write_text("class Net:\n    def forward(self, x:\n")
    before = contents()
    assert fit("--model=unfinished.Net") == 2
    assert "model: '(' was never closed (unfinished.py, line 2)" in one_line(capsys)
    assert contents() == before


PREDICT = f"predict --ckpt_path {RUN} --output "
TEST = f"test --ckpt_path {RUN}"
NOT_OURS, NO_RUN = "not written by this project", "cannot make a run folder"
# The most telling of a longer list: what lies in the way, the command, and what its line says.
PLACES = [
    slow("mkdir o", PREDICT + "o", "o: is a folder"),
    ("true", PREDICT + "new/", "new: is a folder"),
    slow("touch f", PREDICT + "f/x.csv", "f/x.csv: cannot be written"),
    slow("true", PREDICT + "/proc/x.csv", "/proc/x.csv: cannot be written"),
    ("ln -s a b; ln -s b a", PREDICT + "a", "a: cannot be written"),
    slow("echo mine > o.csv", PREDICT + "o.csv", NOT_OURS),
    ("echo index,mine > o.csv", PREDICT + "o.csv", NOT_OURS),
    slow("echo mine > t; ln -s t l", PREDICT + "l", NOT_OURS),
    slow("true", PREDICT + f"{RUN}/run.json", NOT_OURS),
    slow(f"echo mine > {RUN}/predictions.csv", f"predict --ckpt_path {RUN}", NOT_OURS),
    ("true", f"predict --ckpt_path {RUN} --data.images no.png", "no.png"),
    slow("true", f"predict --ckpt_path {RUN} --trainer.devices 2", "predict uses one"),
    ("rm -r logs; echo mine > logs", "fit", NO_RUN),
    slow("rm -r logs; ln -s /nonexistent/x logs", "fit", NO_RUN),
    slow("rm -r logs; ln -s logs logs", "fit", NO_RUN),
    ("true", "fit --trainer.logger.version=RUN", "is another run's"),
    (f"rm -r {RUN}/checkpoints", TEST, "has no checkpoints"),
    slow(f"echo ] >> {RUN}/config.yaml", TEST, "config.yaml: not a configuration"),
    (f"echo 'trainer: /dev/zero' > {RUN}/config.yaml", TEST, "Unable to load config '/dev/zero'"),
    slow(
        f"touch logs/__init__.py; sed -i s/softmax_regression.RunLogger/logs.C/ {RUN}/config.yaml",
        TEST,
        "refused",
    ),
]


@pytest.mark.parametrize(("prepare", "args", "named"), PLACES)
def test_what_lies_in_the_way_is_one_line_and_stays_as_it_is(
    trained: Path, prepare: str, args: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, RUN)
    subprocess.run(prepare, shell=True, check=True)
    before = contents()
    assert main([*args.split(), *(SMALL if args.startswith("fit") else ())]) in (2, 4)
    assert named in one_line(capsys)
    assert contents() == before


@pytest.mark.parametrize("command", ["test", "predict", "fit"])
def test_a_damaged_or_foreign_checkpoint_is_one_line(
    trained: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (trained / "checkpoints" / "last.ckpt").read_bytes()
    saved = checkpoint.read(trained / "checkpoints" / "last.ckpt")
    saved["state_dict"]["net.2.weight"] = saved["state_dict"]["net.2.weight"][:, :100]
    wrong = {"shape (10, 100), the model (10, 784)": checkpoint.dumps(saved), "damaged": good[:-100]}
    for word, data in wrong.items():
        Path("x.ckpt").write_bytes(data)
        assert main([command, *SMALL, "--ckpt_path", "x.ckpt"]) == 2
        line = one_line(capsys)
        assert "x.ckpt: " in line
        assert word in line
        assert list(contents()) == ["x.ckpt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, to whom a folder is read-only")
def test_what_cannot_be_written_is_said_before_the_work(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, RUN)
    for each in (tmp_path, *tmp_path.rglob("*")):
        each.chmod(0o555 if each.is_dir() else 0o444)
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o055)
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("there is no other user in this namespace")
    try:
        for args, code in ((["predict", "--ckpt_path", str(RUN)], 2), (["fit", *SMALL], 2)):
            assert main(args) == code
            assert "Permission denied" in one_line(capsys)
    finally:
        os.seteuid(0)
