"""A run that is interrupted by a signal saves the step it came to, says so, and is resumed bit for bit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from test_resume import EVERY, OPTIONS, assert_same, resume, state

import killed
from commands import SMALL, fit, manifest, only_run
from killed import strike
from marks import slow
from softmax_regression.commands.train import main
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import shell_command
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.checkpoint import read

ROOT = Path(__file__).parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# Some minutes: long enough for any test, and over some day if a test is killed.
ENDLESS = ("--trainer.max_epochs=3000", "--early_stopping.patience=0")


@pytest.fixture(autouse=True)
def hangups_are_not_ignored() -> Iterator[None]:
    """Under `nohup` the tests themselves start with SIGHUP ignored, and a run rightly leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(*OPTIONS, f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


def raises(*numbers: signal.Signals) -> Callable[[], None]:
    """What lets signals arrive."""

    def arrive() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return arrive


def handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


@pytest.mark.parametrize(
    ("number", "moment", "at", "step"),
    [
        (signal.SIGINT, "mid-epoch", 21, 22),
        (signal.SIGTERM, "in validation", 32, 32),
        slow(signal.SIGHUP, "at the end of an epoch", 48, 48),
        slow(signal.SIGTERM, "mid-epoch", 63, 64),
    ],
)
def test_a_signal_saves_the_current_step_and_the_run_can_be_resumed(
    number: signal.Signals, moment: str, at: int, step: int, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    with pytest.MonkeyPatch.context() as patch:
        strike(patch.setattr, moment, at, raises(number))
        assert fit(*OPTIONS) == CODES[number]
    assert handlers() == before
    run = only_run()
    line, command = capsys.readouterr().err.splitlines()[-1], shell_command("train.py", "fit", "--resume", str(run))
    assert line == f"interrupted by {number.name}: saved; resume with `{command}`"
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == step
    assert manifest(run)["status"] == "interrupted"
    assert number.name in manifest(run)["stopped"]
    assert resume(run) == 0
    assert manifest(run)["status"] == "finished"
    assert manifest(run)["final"] == manifest(whole)["final"]
    assert_same(state(run), state(whole))


@pytest.mark.parametrize(
    ("options", "at", "step"),
    [
        (["--trainer.accumulate_grad_batches=2"], 9, 10),  # in the first of two minibatches of an update
        slow(["--trainer.val_check_interval=0.5", f"{EVERY}=7"], 23, 24),  # before a validation within an epoch
    ],
)
def test_a_signal_waits_for_what_belongs_together(options: list[str], at: int, step: int) -> None:
    assert fit(*OPTIONS, *options, "--trainer.logger.save_dir=whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        strike(patch.setattr, "mid-epoch", at, raises(signal.SIGTERM))
        assert fit(*OPTIONS, *options) == 143
    assert read(only_run() / "checkpoints" / "last.ckpt")["global_step"] == step
    assert resume(only_run()) == 0
    assert_same(state(only_run()), state(only_run(Path("whole"))))


def test_a_second_signal_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        strike(patch.setattr, "mid-epoch", 21, raises(signal.SIGINT, signal.SIGTERM))
        assert fit(*OPTIONS) == 143
    run = only_run()
    said = f"interrupted by SIGTERM: at once; resume with `{shell_command('train.py', 'fit', '--resume', str(run))}`\n"
    assert capsys.readouterr().err.endswith(said)
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == 16
    assert manifest(run)["status"] == "interrupted"


def test_a_second_signal_while_the_first_one_saves_leaves_a_whole_checkpoint() -> None:
    arrived: list[int] = []

    def again() -> None:
        arrived.append(1)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        strike(patch.setattr, "mid-epoch", 21, raises(signal.SIGINT))
        strike(patch.setattr, "inside a save", 22, again)
        assert fit(*OPTIONS) == 130
    assert read(only_run() / "checkpoints" / "last.ckpt")["global_step"] == 16
    assert resume(only_run()) == 0
    assert arrived == [1]
    assert not list(Path().rglob("*.tmp"))


def test_further_signals_do_not_come_between_the_save_and_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = raises(signal.SIGINT, signal.SIGTERM)
    monkeypatch.setattr(FashionMNISTDataModule, "on_exception", lambda *_: again())
    strike(monkeypatch.setattr, "mid-epoch", 3, raises(signal.SIGINT))
    assert fit(*OPTIONS) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted by SIGINT: saved; resume with")
    assert manifest(only_run())["status"] == "interrupted"


def test_further_signals_do_not_come_between_the_end_of_the_trainer_and_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def teardown(trainer: Trainer) -> None:
        restore_handlers(trainer)
        raises(signal.SIGTERM, signal.SIGINT)()

    restore_handlers = Trainer._teardown
    monkeypatch.setattr(Trainer, "_teardown", teardown)
    strike(monkeypatch.setattr, "mid-epoch", 3, raises(signal.SIGINT))
    assert fit(*OPTIONS) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted by SIGINT: saved; resume with")


def test_a_signal_that_is_ignored_as_by_nohup_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    strike(monkeypatch.setattr, "mid-epoch", 3, raises(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert fit("--trainer.max_epochs=1") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_a_folder_a_signal_says_that_nothing_was_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strike(monkeypatch.setattr, "mid-epoch", 3, raises(signal.SIGINT))
    assert fit("--trainer.logger=false") == 130
    assert "interrupted by SIGINT: nothing was saved, for the run has no folder\n" in capsys.readouterr().err
    assert not list(Path().iterdir())


BEFORE: dict[str, tuple[type, str, Callable[[str], list[str]]]] = {
    "fit, before training": (FashionMNISTDataModule, "setup", lambda run: ["fit", *SMALL]),
    "test": (SoftmaxRegression, "test_step", lambda run: ["test", "--ckpt_path", run]),
    "validate": (SoftmaxRegression, "validation_step", lambda run: ["validate", "--ckpt_path", run]),
    "predict": (SoftmaxRegression, "predict_step", lambda run: ["predict", "--ckpt_path", run]),
}


@pytest.mark.parametrize(("command", "number"), [*zip(BEFORE, [*CODES, signal.SIGINT], strict=True)])
def test_a_signal_where_there_is_nothing_to_save_ends_the_command(
    command: str,
    number: signal.Signals,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, method, args = BEFORE[command]
    files = sorted(whole.rglob("*"))
    monkeypatch.setattr(owner, method, lambda *_: raises(number)())
    assert main(args(str(whole))) == CODES[number]
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted by {number.name}: nothing was saved"
    assert sorted(whole.rglob("*")) == files
    assert not list(Path().rglob("*.*"))


# In processes of their own


@pytest.fixture
def processes() -> Iterator[list[killed.Process]]:
    """Those that must not outlive the test."""
    started: list[killed.Process] = []
    yield started
    for process in started:
        process.kill()
        process.join()


def await_epochs(alive: Callable[[], bool]) -> None:
    """Wait until a process has trained for two epochs."""
    log, end = Path("log.txt"), time.monotonic() + 100
    while not log.exists() or log.read_text().count("\nepoch ") < 2:
        assert alive(), log.read_text()
        assert time.monotonic() < end
        time.sleep(0.01)


def assert_resumes_exactly(run: Path) -> None:
    """Compare a run that is resumed until the end of its epoch with one that was not interrupted."""
    epochs = f"--trainer.max_epochs={read(run / 'checkpoints' / 'last.ckpt')['epoch'] + 1}"
    assert resume(run, epochs) == 0
    assert fit(epochs, ENDLESS[1], "--trainer.logger.save_dir=reference") == 0
    assert_same(state(run), state(only_run(Path("reference"))))


@pytest.mark.slow
def test_a_process_that_gets_a_signal_ends_within_five_seconds(tmp_path: Path, processes: list[killed.Process]) -> None:
    processes.append(process := killed.start(tmp_path, ["fit", *SMALL, *ENDLESS]))
    await_epochs(process.is_alive)
    sent = time.time()
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert time.time() - sent < 5
    assert process.exitcode == 143
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].startswith("interrupted by SIGTERM: saved")
    assert (only_run() / "checkpoints" / "last.ckpt").stat().st_mtime >= sent - 0.1
    assert_resumes_exactly(only_run())


@pytest.mark.slow
def test_sigusr1_puts_a_slurm_job_back_in_the_queue(tmp_path: Path, processes: list[killed.Process]) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/requeued'\n")
    scontrol.chmod(0o755)
    environ = {"SLURM_JOB_ID": "4711", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    processes.append(process := killed.start(tmp_path, ["fit", *SMALL, *ENDLESS], environ=environ))
    await_epochs(process.is_alive)
    os.kill(process.pid or 0, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == 138
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert manifest(only_run())["status"] == "interrupted"


@pytest.mark.slow
def test_the_program_itself_handles_sigint() -> None:
    with Path("log.txt").open("w") as log:
        command = [sys.executable, str(ROOT / "train.py"), "fit", *SMALL, *ENDLESS]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                await_epochs(lambda: process.poll() is None)
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGINT)  # twice, as people do
                assert process.wait(10) == 130  # with the time that the interpreter takes to end
            finally:
                process.kill()
    assert "Traceback" not in (text := Path("log.txt").read_text())
    assert "interrupted by SIGINT: " in text
    assert f"resume with `python {ROOT / 'train.py'} fit --resume" in text
    assert_resumes_exactly(only_run())


@pytest.mark.parametrize("script", ["train.py", "study.py"])
def test_sigint_during_the_imports_is_quiet(script: str) -> None:
    Path("torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, str(ROOT / script)],
        env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
