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
from test_resume import OPTIONS, assert_same, state

import killed
from commands import SMALL, fit, manifest, only_run
from softmax_regression.commands.train import main
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.checkpoint import SafeCheckpointIO, read

ROOT = Path(__file__).parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Some minutes: long enough for any test, and over some day if a test is killed.
ENDLESS = (
    "--trainer.max_epochs=3000",
    "--trainer.callbacks=softmax_regression.runs.callbacks.LastCheckpoint",
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert fit(*OPTIONS, f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


def signalled_at(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, *numbers: signal.Signals
) -> None:
    """Let signals arrive just before the call number `call` of a method."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            for number in numbers:
                signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("method", "call", "step"),
    [("_learn", 22, 24), ("validation_step", 2, 32), ("on_train_epoch_end", 3, 48), ("_learn", 63, 64)],
)
def test_a_signal_saves_the_current_step_and_the_run_can_be_resumed(
    number: signal.Signals, method: str, call: int, step: int, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with pytest.MonkeyPatch.context() as patch:
        signalled_at(patch, SoftmaxRegression, method, call, number)
        assert fit(*OPTIONS) == CODES[number]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    run = only_run()
    line = capsys.readouterr().err
    assert line == f"interrupted by {number.name}: saved; go on with `python train.py fit --resume {run}`\n"
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == step
    assert manifest(run)["status"] == "interrupted"
    assert number.name in manifest(run)["stopped"]
    assert main(["fit", "--resume", str(run)]) == 0
    assert manifest(run)["status"] == "finished"
    assert manifest(run)["final"] == manifest(whole)["final"]
    assert_same(state(run), state(whole))


def test_a_second_signal_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signalled_at(patch, SoftmaxRegression, "_learn", 22, signal.SIGINT, signal.SIGINT)
        assert fit(*OPTIONS) == 130
    assert "at once" in capsys.readouterr().err
    run = only_run()
    assert read(run / "checkpoints" / "last.ckpt")["global_step"] == 16
    assert manifest(run)["status"] == "interrupted"


def test_a_second_signal_while_the_first_one_saves_leaves_the_old_checkpoint_whole() -> None:
    with pytest.MonkeyPatch.context() as patch:
        signalled_at(patch, SoftmaxRegression, "_learn", 22, signal.SIGINT)
        signalled_at(patch, os, "fsync", 5, signal.SIGINT)  # type: ignore[arg-type]
        assert fit(*OPTIONS) == 130
    assert read(only_run() / "checkpoints" / "last.ckpt")["global_step"] in (16, 24)
    assert not list(Path().rglob("*.tmp"))


BEFORE: dict[str, tuple[type, str, Callable[[str], list[str]]]] = {
    "fit, before training": (FashionMNISTDataModule, "setup", lambda run: ["fit", *SMALL]),
    "test": (SoftmaxRegression, "test_step", lambda run: ["test", "--ckpt_path", run]),
    "validate": (SoftmaxRegression, "validation_step", lambda run: ["validate", "--ckpt_path", run]),
    "predict": (SoftmaxRegression, "predict_step", lambda run: ["predict", "--ckpt_path", run]),
}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("command", BEFORE)
def test_a_signal_where_there_is_nothing_to_save_ends_the_command(
    number: signal.Signals,
    command: str,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, method, args = BEFORE[command]
    files = sorted(whole.rglob("*"))
    signalled_at(monkeypatch, owner, method, 1, number)
    assert main(args(str(whole))) == CODES[number]
    assert capsys.readouterr().err == f"interrupted by {number.name}: nothing was saved\n"
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


def assert_resumes_exactly(run: Path, tmp_path: Path) -> None:
    """Compare a run that is resumed until the end of its epoch with one that was not interrupted."""
    epochs = read(run / "checkpoints" / "last.ckpt")["epoch"] + 1
    options = (f"--trainer.max_epochs={epochs}", *ENDLESS[1:])
    assert main(["fit", "--resume", str(run), *options]) == 0
    assert fit(*options, f"--trainer.logger.save_dir={tmp_path / 'reference'}") == 0
    assert_same(state(run), state(only_run(tmp_path / "reference")))


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_process_that_gets_a_signal_ends_within_five_seconds(
    number: signal.Signals, tmp_path: Path, processes: list[killed.Process]
) -> None:
    process = killed.start(tmp_path, ["fit", *SMALL, *ENDLESS])
    processes.append(process)
    await_epochs(process.is_alive)
    sent = time.time()
    os.kill(process.pid or 0, number)
    process.join(60)
    assert time.time() - sent < 5
    assert process.exitcode == CODES[number]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[-1].startswith(f"interrupted by {number.name}: saved; go on with")
    run = only_run()
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime >= sent - 0.1
    assert manifest(run)["status"] == "interrupted"
    assert_resumes_exactly(run, tmp_path)


def test_sigusr1_puts_a_slurm_job_back_in_the_queue(tmp_path: Path, processes: list[killed.Process]) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    environ = {"SLURM_JOB_ID": "4711", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = killed.start(tmp_path, ["fit", *SMALL, *ENDLESS], environ=environ)
    processes.append(process)
    await_epochs(process.is_alive)
    os.kill(process.pid or 0, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == 138
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert manifest(only_run())["status"] == "interrupted"


def test_the_program_itself_handles_sigint(tmp_path: Path) -> None:
    with Path("log.txt").open("w") as log:
        command = [sys.executable, str(ROOT / "train.py"), "fit", *SMALL, *ENDLESS]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                await_epochs(lambda: process.poll() is None)
                process.send_signal(signal.SIGINT)
                assert process.wait(10) == 130  # with the time that the interpreter takes to end
            finally:
                process.kill()
    log_text = Path("log.txt").read_text()
    assert "Traceback" not in log_text
    assert "interrupted by SIGINT: saved" in log_text
    assert_resumes_exactly(only_run(), tmp_path)


@pytest.mark.parametrize("script", ["train.py", "study.py"])
def test_sigint_during_the_imports_is_quiet(script: str) -> None:
    Path("torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, str(ROOT / script)],
        env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_signals_are_taken_over_by_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        SafeCheckpointIO, "save_checkpoint", lambda *_, **__: seen.append(signal.getsignal(signal.SIGINT))
    )
    assert fit("--trainer.max_epochs=1") == 0
    assert all(getattr(handler, "__name__", "") == "_on_signal" for handler in seen)
    assert len(seen) == 2
