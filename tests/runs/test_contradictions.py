"""Resuming never lies: what contradicts the checkpoint is an error, what may change takes effect."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from test_resume import assert_same, resume, state

from commands import SMALL, fit, manifest, one_line, only_run
from killed import strike
from marks import slow, slow_but
from softmax_regression import (
    FashionMNISTDataModule,
    LastCheckpoint,
    RunLogger,
    RunRecord,
    SafeCheckpointIO,
    SoftmaxRegression,
)
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.files import locked
from softmax_regression.runs import checkpoint
from softmax_regression.runs.checkpoint import read
from softmax_regression.runs.rows import read_rows

LR_MONITOR = "lightning.pytorch.callbacks.LearningRateMonitor"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last(run: Path) -> dict[str, Any]:
    return read(run / "checkpoints" / "last.ckpt")


CONTRADICTIONS = {
    "--model.lr=0.5": "0.1",
    "--model.schedule=cosine": "constant",
    "--seed_everything=7": "0",
    "--data.batch_size=64": "32",
    "--data.train_size=100": "None",
    "--trainer.precision=bf16-mixed": "None",
    "--trainer.limit_train_batches=3": "None",
    "--trainer.accumulate_grad_batches=2": "1",
    "--early_stopping.monitor=train/loss": "val/loss",
    "--early_stopping.min_delta=0.1": "0.0",
    "--best_checkpoint.monitor=null": "early_stopping",
    "--optimizer=Adam": "None",
    "--trainer.logger.version=other": "None",
}


@pytest.mark.parametrize(
    "flag", slow_but(["--model.lr=0.5", "--data.batch_size=64", "--trainer.logger.version=other"], CONTRADICTIONS)
)
def test_a_flag_that_contradicts_the_checkpoint_is_an_error_that_names_both_values(
    flag: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, name = files(run), flag[2:].partition("=")[0]
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", flag]) == 2
    assert f"{name}=" in (line := one_line(capsys))
    assert f": the run to resume has {CONTRADICTIONS[flag]};" in line
    assert files(run) == before


def test_a_configuration_that_was_edited_contradicts_the_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.5"))
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert "model.lr=0.5: the run to resume has 0.1;" in one_line(capsys)


def test_a_callback_may_be_added_but_not_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1", f"--trainer.callbacks+={LR_MONITOR}") == 0
    resume = ["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]
    capsys.readouterr()
    assert main([*resume, "--trainer.callbacks=null"]) == 2
    assert f"trainer.callbacks=[]: the run to resume has ['{LR_MONITOR}']" in one_line(capsys)
    assert main([*resume, "--trainer.callbacks+=lightning.pytorch.callbacks.Timer"]) == 0
    assert len(read_rows(only_run())) == 2


def test_another_class_is_another_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_model.py").write_text(
        "from softmax_regression import SoftmaxRegression\nclass Other(SoftmaxRegression): pass"
    )
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", "--model=own_model.Other"]) == 2
    assert "model=own_model.Other: the run to resume has softmax_regression.model.Soft" in one_line(capsys)


def test_a_setting_that_is_no_number_is_the_same_when_the_run_goes_on() -> None:
    Path("of_nan.py").write_text(
        "from softmax_regression import SoftmaxRegression\n"
        "class Net(SoftmaxRegression):\n"
        "    def __init__(self, limit: float = float('nan')):\n"
        "        super().__init__()\n"
    )
    assert fit("--trainer.max_epochs=1", "--model=of_nan.Net") == 0
    assert main(["fit", "--resume", str(only_run()), "--trainer.max_epochs=2"]) == 0
    assert len(read_rows(only_run())) == 2


def test_the_same_is_true_of_a_checkpoint_outside_its_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(trained / "checkpoints" / "last.ckpt", "x.ckpt")
    assert fit("--ckpt_path=x.ckpt", "--model.lr=0.5") == 2
    assert "model.lr=0.5: the run to resume has 0.1" in one_line(capsys)
    assert not Path("logs").exists()
    here = ["fit", "--ckpt_path=x.ckpt", "--trainer.logger.save_dir=logs"]
    assert main(here) == 0
    assert "x.ckpt: nothing to resume" in capsys.readouterr().out
    assert not list(Path("logs").glob("*/*"))
    assert main([*here, "--trainer.max_epochs=4"]) == 0
    assert last(only_run())["epoch"] == 3


@pytest.mark.parametrize("lost", [["config.yaml"], slow(["config.yaml", "run.json"])])
def test_a_run_that_lost_its_configuration_has_it_in_its_checkpoints(lost: list[str], run: Path) -> None:
    reference = manifest(run)["final"]["val/loss"]
    for name in lost:
        (run / name).unlink()
    if len(lost) == 1:
        assert main(["validate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
        assert manifest(run)["validate"]["val/loss"] == pytest.approx(reference)
    elsewhere = ["--trainer.logger.save_dir=on"] * (len(lost) - 1)  # where there is no folder of a run any more
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", *elsewhere]) == 0
    assert len(read_rows(run if len(lost) == 1 else only_run(Path("on")))) == 4


@pytest.mark.parametrize("command", ["test", slow("fit")])
def test_a_manifest_that_is_none_is_one_line(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text("[1]")
    before = files(run)
    options = ["--trainer.max_epochs=4"] if command == "fit" else []
    assert main([command, "--ckpt_path", str(run), *options]) == 2
    assert "run.json: not a manifest (it holds a list); delete it\n" in capsys.readouterr().err
    assert files(run) == before


@pytest.mark.slow
def test_other_files_of_the_same_name_are_an_error_and_testing_on_them_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from softmax_regression.data.module import FashionMNISTDataModule

    assert fit("--data.source=files", f"--data.dirs=[{tiny}]") == 0
    run = only_run()
    capsys.readouterr()
    setup = FashionMNISTDataModule.setup

    def other(self: FashionMNISTDataModule, stage: str | None = None) -> None:
        setup(self, stage)
        assert self.data
        self.data = self.data._replace(sha256="0" * 64)

    for warns in (False, True):
        for command in ("test", "validate", "predict"):
            assert main([command, "--ckpt_path", str(run)]) == 0
            warned = "warning: data with SHA-256 000000000000…: the model was trained on"
            assert (warned in capsys.readouterr().err) == warns
        monkeypatch.setattr(FashionMNISTDataModule, "setup", other)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert "data with SHA-256 000000000000…" in one_line(capsys)


@pytest.mark.parametrize("which", ["nowhere", "last", "best", "logs", "empty"])
def test_nothing_to_resume_from_is_an_error(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty", "checkpoints").mkdir(parents=True)
    for flag in ("--resume", "--ckpt_path"):
        assert main(["fit", *SMALL, flag, which]) == 2
        assert which in one_line(capsys)
    assert not Path("logs").exists()


def test_a_configuration_alone_resumes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(f"ckpt_path: {run / 'checkpoints' / 'last.ckpt'}")
    assert fit("--config=x.yaml") == 2
    assert "use --resume" in one_line(capsys)
    options = ["--trainer.max_epochs=1", "--trainer.logger.save_dir=new"]
    assert main(["fit", "--config", str(run / "config.yaml"), *options]) == 0
    assert manifest(only_run(Path("new")))["final"]["epoch"] == 1


STOPPING = "lightning.pytorch.callbacks.EarlyStopping"
ENDS: dict[str, tuple[list[str], str, str]] = {  # options, why it ended, what to do to go on
    "epochs": (["--trainer.max_epochs=1"], "max_epochs=1 reached", "raise trainer.max_epochs to continue"),
    "steps": (["--trainer.max_steps=5"], "max_steps=5 reached", "raise trainer.max_steps to continue"),
    "time": (
        ["--trainer.max_time={seconds: 1}", "--trainer.max_epochs=-1", "--early_stopping.patience=0"],
        "max_time is used up", "raise trainer.max_time to continue",
    ),
    "patience": (
        ["--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=40"],
        "early stopping: val/loss did not improve in the last 3 records; --early_stopping.patience 0 trains on",
        "continue with --early_stopping.patience 4",
    ),
    "a callback": (
        [f"--trainer.callbacks+={STOPPING}", "--trainer.callbacks.monitor=val/acc",
         "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=1"],
        "early stopping: val/acc did not improve in the last 1 records", "a new run with more patience trains on",
    ),
}  # fmt: skip


@pytest.mark.parametrize("limit", slow_but(["epochs"], ENDS))
def test_what_ends_a_run_is_named_and_a_finished_one_is_left_as_it_is(
    limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, stopped, remedy = ENDS[limit]
    assert fit(*options) == 0
    run = only_run()
    assert manifest(run)["stopped"] == stopped
    before = files(run)
    capsys.readouterr()
    assert main(["fit", "--resume", str(run)]) == 0
    assert "nothing to resume (" in (out := capsys.readouterr().out)
    assert remedy in out
    assert files(run) == before


def test_the_manifest_of_a_run_that_was_killed_after_its_last_save_is_completed(run: Path) -> None:
    whole = manifest(run)
    cut = {key: value for key, value in whole.items() if key not in ("final", "best", "stopped", "seconds")}
    (run / "run.json").write_text(json.dumps(cut | {"status": "running"}))
    assert main(["fit", "--resume", str(run)]) == 0
    for key in ("status", "final", "best"):
        assert manifest(run)[key] == whole[key]


def test_more_epochs_take_effect(run: Path) -> None:
    assert resume(run, "--trainer.max_epochs=5") == 0
    assert fit("--trainer.max_epochs=5", "--trainer.logger.version=reference") == 0
    assert_same(state(run), state(run.with_name("reference")))


class Rates(Callback):
    seen: list[float] = []  # noqa: RUF012 (a test reads it)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.slow
def test_a_cosine_schedule_follows_the_new_length_from_the_first_step() -> None:
    assert fit("--model.schedule=cosine", "--trainer.max_epochs=2") == 0
    Rates.seen.clear()
    more = ["--trainer.max_epochs=6", f"--trainer.callbacks+={__name__}.Rates"]
    assert main(["fit", "--resume", str(only_run()), *more]) == 0
    steps, total = 16, 6 * 16
    assert Rates.seen == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * step / total)) for step in range(2 * steps, total)], abs=1e-12
    )
    rows = read_rows(only_run())
    assert [row["lr"] for row in rows[1:]] == pytest.approx([0, *Rates.seen[steps::steps], 0], abs=1e-12)


@pytest.mark.slow
def test_raising_the_patience_goes_on_after_early_stopping() -> None:
    options = ("--model.lr=5", "--data.train_size=64", "--trainer.max_epochs=30")
    assert fit(*options) == 0
    run = only_run()
    stopped = manifest(run)["final"]["epoch"]
    assert stopped < 30
    assert resume(run, "--early_stopping.patience=5") == 0
    assert manifest(run)["final"]["epoch"] > stopped
    assert fit(*options, "--early_stopping.patience=5", "--trainer.logger.version=reference") == 0
    ours, reference = state(run), state(run.with_name("reference"))
    assert_same(ours, reference)


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
    new, refused = run.with_name("new"), []

    def try_lock(folder: Path) -> None:
        with pytest.raises(InputError), locked(folder, ""):
            pass
        refused.append(folder)

    with monkeypatch.context() as patch:
        strike(patch.setattr, "at the end of an epoch", 0, lambda: try_lock(new))
        assert fit("--trainer.max_epochs=1", "--trainer.logger.version=new") == 0
    strike(monkeypatch.setattr, "at the end of an epoch", 0, lambda: try_lock(run))
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 0
    assert refused == [new, run]


def test_a_checkpoint_that_was_replaced_meanwhile_is_not_gone_on_from(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def slowly_locked(folder: Path, remedy: str) -> Iterator[None]:
        """As if it had taken until the process that had the lock came to its end."""
        path = folder / "checkpoints" / "last.ckpt"
        saved = read(path)
        path.write_bytes(checkpoint.dumps(saved | {"global_step": saved["global_step"] + 1}))
        yield

    monkeypatch.setattr("softmax_regression.commands.train.locked", slowly_locked)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 2
    assert "another process has resumed the run" in one_line(capsys)


def test_a_run_is_not_resumed_without_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", "--trainer.logger=false"]) == 2
    assert "drop the flag" in one_line(capsys)


@pytest.mark.parametrize("flag", ["barebones=true", slow("fast_dev_run=2"), slow("enable_checkpointing=false")])
def test_a_run_is_not_resumed_where_nothing_would_be_saved(
    flag: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run)
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4", f"--trainer.{flag}"]) == 2
    err = one_line(capsys)
    assert flag.partition("=")[0] in err
    assert "nothing that a resumed run does would be saved; drop it" in err
    assert files(run) == before


@pytest.mark.parametrize("with_ours", [False, slow(True)])
def test_a_run_with_other_loggers_is_resumed(with_ours: bool, capsys: pytest.CaptureFixture[str]) -> None:
    csv = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: csv}}"
    board = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: board}}"
    loggers = f"[{csv}, {board}, softmax_regression.RunLogger]" if with_ours else csv
    assert fit("--trainer.max_epochs=1", f"--trainer.logger={loggers}") == 0
    run = only_run() if with_ours else only_run(Path("csv"))
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    after = run if with_ours else run.with_name("version_1")
    assert len(read_rows(after)) == 2
    assert (f"this run continues in {after}" in capsys.readouterr().out) is not with_ours


def test_a_run_that_continues_in_another_folder_takes_its_best_checkpoint_along() -> None:
    flags = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--best_checkpoint.mode=max")
    assert fit("--trainer.max_epochs=1", *flags) == 0
    run = only_run(Path("csv"))
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2"]) == 0
    after = run.with_name("version_1")
    assert manifest(after)["best"]["epoch"] == 1  # the loss goes down
    assert read(after / "checkpoints" / "best.ckpt")["epoch"] == 0
    assert main(["test", "--ckpt_path", str(after)]) == 0
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert manifest(after)["test"] == manifest(run)["test"]


def test_a_run_from_python_has_the_optimizer_of_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    data = FashionMNISTDataModule(source="synthetic", synthetic_size=600, val_size=101, batch_size=32)
    callbacks: list[Callback] = [LastCheckpoint(), RunRecord()]
    options: dict[str, Any] = {"accelerator": "cpu", "log_every_n_steps": 1, "plugins": [SafeCheckpointIO()]}
    trainer = Trainer(max_epochs=1, logger=RunLogger(), callbacks=callbacks, **options)
    trainer.fit(SoftmaxRegression(), data)
    before = files(run := only_run())
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=2", "--optimizer=Adam"]) == 2
    assert "the run to resume has None;" in one_line(capsys)
    assert files(run) == before
