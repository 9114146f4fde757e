"""Resuming never lies: what contradicts the checkpoint is an error, what may change takes effect."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_same, state
from torch import Tensor

from commands import SMALL, fit, manifest, one_line, only_run
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.checkpoint import read


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
    return Path(shutil.copytree(trained, Path("logs", "softmax", trained.name)))


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CONTRADICTIONS = {
    "--model.lr=0.5": ("model.lr=0.5", "0.1"),
    "--model.momentum=0.9": ("model.momentum=0.9", "0.0"),
    "--model.schedule=cosine": ("model.schedule=cosine", "constant"),
    "--model.loss=stable": ("model.loss=stable", "torch"),
    "--seed_everything=7": ("model.seed=7", "0"),
    "--data.batch_size=64": ("data.batch_size=64", "32"),
    "--data.val_size=50": ("data.val_size=50", "101"),
    "--data.train_size=100": ("data.train_size=100", "None"),
    "--data.synthetic_size=700": ("data.synthetic_size=700", "600"),
    "--trainer.precision=bf16-mixed": ("trainer.precision=bf16-mixed", "None"),
    "--trainer.limit_train_batches=3": ("trainer.limit_train_batches=3", "None"),
    "--trainer.val_check_interval=0.5": ("trainer.val_check_interval=0.5", "None"),
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_a_flag_that_contradicts_the_checkpoint_is_an_error_that_names_both_values(
    flag: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", flag]) == 2
    line = one_line(capsys)
    asked, saved = CONTRADICTIONS[flag]
    assert f"{asked}: the run to resume has {saved};" in line
    assert files(run) == before


def test_the_same_is_true_of_a_checkpoint_outside_its_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "checkpoints" / "last.ckpt", "x.ckpt")
    assert fit("--ckpt_path=x.ckpt", "--model.lr=0.5") == 2
    assert "model.lr=0.5: the run to resume has 0.1" in one_line(capsys)
    assert not Path("logs").exists()
    assert fit("--ckpt_path=x.ckpt") == 0
    assert "x.ckpt: nothing to resume" in capsys.readouterr().out
    assert not list(Path("logs").glob("*/*"))
    assert fit("--ckpt_path=x.ckpt", "--trainer.max_epochs=4") == 0
    assert read(only_run() / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_other_data_are_an_error(run: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.source=fashion-mnist", f"--data.dirs=[{tiny}]", "--trainer.max_epochs=4"]
    assert main(["fit", "--resume", str(run), *options]) == 2
    assert "data.source=fashion-mnist: the run to resume has synthetic" in one_line(capsys)


def test_other_files_of_the_same_name_are_an_error_and_testing_on_them_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from softmax_regression.data.module import FashionMNISTDataModule

    options = ["--data.source=fashion-mnist", f"--data.dirs=[{tiny}]"]
    assert fit(*options) == 0
    run = only_run()
    capsys.readouterr()
    for command in ("test", "validate", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
        assert capsys.readouterr().err == ""
    setup = FashionMNISTDataModule.setup

    def other(self: FashionMNISTDataModule, stage: str | None = None) -> None:
        setup(self, stage)
        assert self.data
        self.data = self.data._replace(sha256="0" * 64)

    monkeypatch.setattr(FashionMNISTDataModule, "setup", other)
    for command in ("test", "validate", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
        err = capsys.readouterr().err
        assert err.startswith("warning: data with SHA-256 000000000000…: the model was trained on")
        assert err.count("\n") == 1
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert "data with SHA-256 000000000000…" in one_line(capsys)


@pytest.mark.parametrize("which", ["nowhere", "last", "best", "logs", "empty"])
def test_nothing_to_resume_from_is_an_error(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty", "checkpoints").mkdir(parents=True)
    for flag in ("--resume", "--ckpt_path"):
        assert main(["fit", *SMALL, flag, which]) == 2
        assert which in one_line(capsys)
    assert not Path("logs").exists()


def test_a_configuration_alone_resumes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    capsys.readouterr()
    run = only_run()
    Path("x.yaml").write_text(f"ckpt_path: {run / 'checkpoints' / 'last.ckpt'}")
    assert fit("--config=x.yaml") == 2
    assert "use --resume" in one_line(capsys)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--trainer.max_epochs=1"]) == 0  # a new run
    assert len(list(Path("logs/softmax").iterdir())) == 2
    assert manifest(run)["final"]["epoch"] == 4


def test_a_finished_run_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert main(["fit", "--resume", str(run)]) == 0
    assert "nothing to resume (it has 3 epochs, max_epochs=3)" in capsys.readouterr().out
    assert files(run) == before


def test_the_manifest_of_a_run_that_was_killed_after_its_last_save_is_completed(run: Path) -> None:
    whole = manifest(run)
    cut = {key: value for key, value in whole.items() if key not in ("final", "best", "stopped", "seconds")}
    (run / "run.json").write_text(json.dumps(cut | {"status": "running"}))
    assert main(["fit", "--resume", str(run)]) == 0
    for key in ("status", "final", "best"):
        assert manifest(run)[key] == whole[key]


def test_more_epochs_take_effect(run: Path) -> None:
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=5"]) == 0
    assert fit("--trainer.max_epochs=5", "--trainer.logger.version=reference") == 0
    assert_same(state(run), state(run.with_name("reference")))


def test_a_cosine_schedule_follows_the_new_length_from_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fit("--model.schedule=cosine", "--trainer.max_epochs=2") == 0
    original, lrs = SoftmaxRegression._learn, []

    def learn(self: SoftmaxRegression, *minibatch: Any) -> Tensor:
        lrs.append(self._optimizer.param_groups[0]["lr"])
        return original(self, *minibatch)

    monkeypatch.setattr(SoftmaxRegression, "_learn", learn)
    run = only_run()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=6"]) == 0
    steps, total = 16, 6 * 16
    assert lrs == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * step / total)) for step in range(2 * steps, total)], abs=1e-12
    )
    rows = read(run / "checkpoints" / "last.ckpt")["history"]
    assert [row["lr"] for row in rows[1:]] == pytest.approx([0, *lrs[steps::steps], 0], abs=1e-12)


def test_raising_the_patience_goes_on_after_early_stopping(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=30")
    assert fit(*options) == 0
    run = only_run()
    stopped = manifest(run)["final"]["epoch"]
    assert stopped < 30
    assert main(["fit", "--resume", str(run)]) == 0
    assert "nothing to resume (early stopping" in capsys.readouterr().out
    assert manifest(run)["final"]["epoch"] == stopped
    patience = (
        "--trainer.callbacks=[{class_path: softmax_regression.runs.callbacks.EarlyStopping, init_args: "
        "{patience: 5}}, {class_path: softmax_regression.runs.callbacks.BestCheckpoint}, "
        "{class_path: softmax_regression.runs.callbacks.LastCheckpoint}]"
    )
    assert main(["fit", "--resume", str(run), patience]) == 0
    assert manifest(run)["final"]["epoch"] > stopped
    assert fit(*options, patience, "--trainer.logger.version=reference") == 0
    assert_same(state(run), state(run.with_name("reference")))


def test_a_name_that_another_run_has_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert fit(f"--trainer.logger.version={run.name}") == 2
    assert run.name in one_line(capsys)
    assert files(run) == before


def test_a_run_that_trains_is_not_resumed_by_another_process(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    with locked(run, ""):
        assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert one_line(capsys).startswith(f"error: {run}: another process is at work there; wait for it, or")
    assert files(run) == before
    original, refused = SoftmaxRegression.on_train_epoch_end, 0

    def end(self: SoftmaxRegression) -> None:
        nonlocal refused
        with pytest.raises(InputError), locked(Path(self.trainer.log_dir or ""), ""):
            pass
        refused += 1
        original(self)

    monkeypatch.setattr(SoftmaxRegression, "on_train_epoch_end", end)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 0
    assert fit("--trainer.max_epochs=1", "--trainer.logger.version=new") == 0
    assert refused == 2


def test_a_checkpoint_that_was_replaced_meanwhile_is_not_gone_on_from(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def slowly_locked(folder: Path, remedy: str) -> Iterator[None]:
        """As if it had taken until the process that had the lock came to its end."""
        path = folder / "checkpoints" / "last.ckpt"
        saved = checkpoint.read(path)
        checkpoint.write(checkpoint.dumps(saved | {"global_step": saved["global_step"] + 1}), path)
        yield

    monkeypatch.setattr("softmax_regression.commands.train.locked", slowly_locked)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert "another process has gone on with the run" in one_line(capsys)


def test_a_run_is_not_resumed_outside_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", "--trainer.logger=false"]) == 2
    assert "drop the flag" in one_line(capsys)
