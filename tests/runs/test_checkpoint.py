"""Checkpoints that are whole or absent, whatever happens while they are written or to them afterwards."""

import errno
import os
import random
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from commands import fit, manifest, one_line, only_run
from killed import strike
from marks import slow
from softmax_regression import EarlyStopping, FashionMNISTDataModule, RunLogger, RunRecord, SoftmaxRegression
from softmax_regression.commands.train import main
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.experiment.opening import open_run
from softmax_regression.files import remove_temporary_files, write
from softmax_regression.runs.checkpoint import SafeCheckpointIO, dumps, read
from softmax_regression.runs.rows import read_rows

WEIGHT = "net.2.weight"


@pytest.fixture(scope="module")
def good(trained: Path) -> bytes:
    """A checkpoint."""
    return (trained / "checkpoints" / "last.ckpt").read_bytes()


def names(folder: Path) -> list[str]:
    """Everything below it, hidden or not."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def error_of(data: bytes) -> str:
    """The line with which a file of these bytes is refused."""
    Path("x.ckpt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read("x.ckpt")
    assert str(caught.value).startswith("x.ckpt: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Writing


@pytest.mark.parametrize("owner_and_name", ["Path.open", "os.fsync", "Path.replace", "Path.mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    owner_and_name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("folder", "file")
    write(b"old", path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    owner, name = owner_and_name.split(".")
    with monkeypatch.context() as patch:
        patch.setattr({"Path": Path, "os": os}[owner], name, fail)
        with pytest.raises(StorageError, match=os.strerror(code)) as caught:
            write(b"new", path)
    assert "folder/file" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names(Path("folder")) == ["file"]


def test_the_data_are_on_the_disk_before_the_name_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        done.append(f"fsync {os.fstat(fd).st_size}")
        fsync(fd)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append(f"rename in {path.parent == target.parent}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    for data in (b"12345", b"67"):
        write(data, Path("new", "file"))
        assert Path("new", "file").read_bytes() == data
    assert done == ["fsync 5", "rename in True", "fsync 2", "rename in True"]


def test_debris_of_killed_saves_is_removed_and_nothing_else(run: Path) -> None:
    kept = names(run)
    debris = [run / ".run.json.123.tmp", run / "checkpoints" / ".last.ckpt.123.tmp"]
    others = [run / "keep.tmp", run / ".keep", run / "checkpoints" / ".keep.tmp.txt"]
    for path in (*debris, *others):
        path.write_bytes(b"half a f")
    remove_temporary_files(run)
    assert names(run) == sorted([*kept, *(str(path.relative_to(run)) for path in others)])


# Reading


def test_what_was_saved_is_read_back_also_by_plain_torch_and_zip(trained: Path) -> None:
    path = trained / "checkpoints" / "last.ckpt"
    ours, plain = read(path), torch.load(path, weights_only=True)
    assert ours["global_step"] == plain["global_step"] == 48
    assert torch.equal(ours["state_dict"][WEIGHT], plain["state_dict"][WEIGHT])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert SoftmaxRegression.load_from_checkpoint(path, weights_only=True).hparams["lr"] == 0.1


def outcome(data: bytes, expected: dict[str, Any]) -> str:
    """Whether a file with these bytes is refused as damaged or read, as it was saved or otherwise."""
    Path("damaged.ckpt").write_bytes(data)
    try:
        found = read("damaged.ckpt")
    except InputError:
        return "refused"
    return "the same" if dumps(found) == dumps(expected) else "something else"


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.chaos
def test_no_flipped_bit_changes_what_is_read(good: bytes, trained: Path) -> None:
    """In a header or the padding it may do no harm; in the content it is noticed."""
    expected = read(trained / "checkpoints" / "last.ckpt")
    rng = random.Random(0)
    edges = [0, 8 * len(good) - 1, *(8 * (len(good) - n) for n in (1, 64, 65, 71, 72, 73, 93))]
    bits = [*edges, *rng.sample(range(8 * len(good)), 300)]
    outcomes = [outcome(flipped(good, bit), expected) for bit in bits]
    print(
        f"\n{len(bits)} checkpoints with a flipped bit: {outcomes.count('refused')} refused, the others read the same"
    )
    assert outcomes.count("refused") > 200
    assert "something else" not in outcomes


@pytest.mark.chaos
def test_no_truncation_and_nothing_appended_changes_what_is_read(good: bytes, trained: Path) -> None:
    expected = read(trained / "checkpoints" / "last.ckpt")
    rng = random.Random(0)
    lengths = [*range(2), len(good) - 1, *rng.sample(range(len(good)), 100)]
    for length in lengths:
        assert outcome(good[:length], expected) == "refused", f"{length} bytes"
    print(f"\n{len(lengths)} truncated checkpoints, all refused")
    for tail in (b"\0", b"x" * 64, good):
        assert outcome(good + tail, expected) != "something else"
    hole = good[:1000] + bytes(4096) + good[5096:]  # as after a power cut
    assert outcome(hole, expected) == "refused"


CONTENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda saved: [1, 2],
    "nothing": lambda saved: {},
    "no step": lambda saved: {key: saved[key] for key in ("state_dict", "loops", "epoch")},
    "weights that are none": lambda saved: saved | {"state_dict": {WEIGHT: 1}},
    "a NaN": lambda saved: saved | {"state_dict": {WEIGHT: torch.tensor([0, float("nan")])}},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_other_contents_are_refused(trained: Path, content: Callable[[dict[str, Any]], Any]) -> None:
    error_of(dumps(content(read(trained / "checkpoints" / "last.ckpt"))))


def test_what_is_no_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo("pipe")
    Path("huge").touch()
    os.truncate("huge", 2**40)
    for path in ("nowhere", "pipe", "huge", "/dev/zero", str(tmp_path), "/etc/passwd/x.ckpt", "nul\0"):
        with pytest.raises(InputError, match=r"(no such|not a) checkpoint"):
            read(path)


def test_a_file_that_the_system_cannot_read_is_exit_4(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Path.open

    def fail(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".ckpt":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 4
    assert "last.ckpt: cannot be read (Input/output error)" in one_line(capsys)


# What goes wrong in training


def fails(capsys: pytest.CaptureFixture[str], code: int, *options: str) -> str:
    """The one line that a run writes to stderr that had begun before it fails."""
    assert fit(*options) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def fill_disk(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let no file be written any more; root may write anywhere, and quotas are for others."""
    original = Path.open

    def refuse(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            raise OSError(code, os.strerror(code))
        return original(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("code", [errno.ENOSPC, slow(errno.EACCES)])
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_last_good_checkpoint(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch.setattr, "before a save", 32, lambda: fill_disk(patch, code))
        assert f"best.ckpt: cannot be saved ({os.strerror(code)})" in fails(capsys, 4)
    run = only_run()
    assert read(run / "checkpoints" / "last.ckpt")["epoch"] == 0
    assert names(run / "checkpoints") == ["best.ckpt", "last.ckpt"]
    assert main(["fit", "--resume", str(run)]) == 0  # once there is space again
    assert manifest(run)["status"] == "finished"


@pytest.mark.parametrize("gone", ["run", "logs"])
@pytest.mark.parametrize(("moment", "step"), [slow("mid-epoch", 3), ("mid-epoch", 20), slow("after a save", 48)])
def test_a_folder_that_vanishes_ends_the_run_and_is_not_made_again(
    gone: str, moment: str, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def vanish() -> None:
        shutil.move(only_run() if gone == "run" else "logs", "moved")

    strike(monkeypatch.setattr, moment, step, vanish)
    assert "has been moved or deleted; put it back, then continue with --resume" in fails(capsys, 4)
    assert not list(Path("logs").glob("*/*"))


@pytest.mark.parametrize(("what", "quota"), [("checkpoint", 30_000), slow("manifest", 3_000), slow("events", 1_000)])
def test_a_quota_that_is_used_up_ends_the_run(what: str, quota: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # a full disk, but for this process only
    resource.setrlimit(resource.RLIMIT_FSIZE, (quota, before[1]))
    try:
        assert "File too large" in fails(capsys, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [name for name in names(Path("logs")) if name.endswith((".tmp", ".ckpt"))]


DIVERGING = {
    "overflow": ("--model.loss=naive", "--model.init_std=100"),
    "learning rate": ("--model.lr=1e38",),
    "a loss that is finite and means nothing": ("--model.lr=1e30", "--trainer.max_epochs=1"),
    "within an epoch": ("--model.lr=1e38", "--last_checkpoint.every_n_train_steps=1"),
}


@pytest.mark.parametrize("options", DIVERGING.values(), ids=DIVERGING)
def test_a_run_that_diverges_is_exit_3_and_saves_no_weight_that_is_not_finite(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, 3, "--trainer.max_epochs=40", *options)
    assert all(word in line for word in ("epoch", "step", "diverged"))
    for path in Path("logs").rglob("*.ckpt"):
        read(path)  # which refuses such weights
    assert manifest(only_run())["status"] == "diverged"


def test_a_best_that_could_not_be_saved_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    save = SafeCheckpointIO.save_checkpoint

    def fill(self: SafeCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if checkpoint["epoch"] == 1 and "best.ckpt" in str(path):
            raise StorageError("no space left")
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", fill)
    assert fit("--model.lr=0.01") == 4
    run = only_run()
    kept = read(run / "checkpoints" / "best.ckpt")
    assert manifest(run)["best"]["epoch"] == kept["epoch"] + 1 == 1


def test_weights_that_are_not_finite_are_not_saved_over_those_that_are(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    before, saved = path.read_bytes(), read(path)
    saved["state_dict"][WEIGHT][3, 5] = float("inf")
    with pytest.raises(DivergedError, match=rf"{WEIGHT} is not finite in epoch 3, step 48"):
        SafeCheckpointIO().save_checkpoint(saved, path)
    assert path.read_bytes() == before


# What a resumed run finds


@pytest.mark.parametrize("steps", [-1, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_best_and_ends_like_any(
    steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--trainer.max_epochs=2", "--trainer.logger.version=a", f"--trainer.max_steps={steps}") == 0
    shutil.copytree("logs/softmax/a", "logs/softmax/b")
    last = Path("logs/softmax/b/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:-100])
    capsys.readouterr()
    for name in "ab":
        assert main(["fit", "--resume", f"logs/softmax/{name}", "--trainer.max_epochs=4"]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {last}: damaged")
    assert "trying an older one" in err
    a, b = (read(f"logs/softmax/{name}/checkpoints/last.ckpt") for name in "ab")
    assert torch.equal(a["state_dict"][WEIGHT], b["state_dict"][WEIGHT])
    assert read_rows(Path("logs/softmax/a")) == read_rows(Path("logs/softmax/b"))
    assert a["callbacks"].keys() == b["callbacks"].keys()


def test_if_all_checkpoints_are_damaged_nothing_is_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    before = names(Path())
    assert main(["fit", "--resume", str(run)]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert error.startswith("error: ")
    assert names(Path()) == before


@pytest.mark.slow
# Lightning's, about its own ModelCheckpoint
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_the_checkpoint_of_a_plain_trainer_opens_with_every_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in the README's example: Lightning's own ModelCheckpoint, and its way of writing."""
    seed_everything(3)
    data = FashionMNISTDataModule(32, 101, source="synthetic", synthetic_size=600, seed=3)
    trainer = Trainer(
        max_epochs=2, logger=RunLogger(), callbacks=[EarlyStopping(), RunRecord()], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=16,
    )  # fmt: skip
    trainer.fit(SoftmaxRegression(momentum=0.5), data)
    run = only_run()
    (path,) = (run / "checkpoints").iterdir()
    assert manifest(run)["seed"] == 3
    for command in ("test", "validate", "predict"):
        assert main([command, "--ckpt_path", str(run)]) == 0
    assert manifest(run)["validate"]["val/loss"] == pytest.approx(manifest(run)["final"]["val/loss"])
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--model.lr=0.5"]) == 2
    assert "model.lr=0.5: the run to resume has 0.1" in one_line(capsys)
    assert main(["fit", "--resume", str(path), "--trainer.max_epochs=3"]) == 0
    options = ("--seed_everything=3", "--model.momentum=0.5", "--trainer.logger.version=whole")
    assert fit(*options) == 0
    ours, whole = (read(each / "checkpoints" / "last.ckpt") for each in (run, run.with_name("whole")))
    assert torch.equal(ours["state_dict"][WEIGHT], whole["state_dict"][WEIGHT])
    assert read_rows(run) == read_rows(run.with_name("whole"))


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_is_scored_but_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_weights_only=true"]
    assert fit(*options, "--trainer.callbacks.filename=weights", "--trainer.max_epochs=1") == 0
    run = only_run()
    path = str(run / "checkpoints" / "weights.ckpt")
    assert main(["test", "--ckpt_path", str(run)]) == 0
    scores = manifest(run)["test"]
    assert main(["test", "--ckpt_path", path]) == 0
    assert manifest(run)["test"] == scores
    assert open_run(path).data is not None
    capsys.readouterr()
    assert main(["fit", "--resume", path, "--trainer.max_epochs=2"]) == 2
    assert "the checkpoint holds weights alone; give the run's folder" in one_line(capsys)


def test_the_weights_that_the_processes_of_a_notebook_hand_back_are_saved_and_loaded(tmp_path: Path) -> None:
    weights = SoftmaxRegression().state_dict()
    SafeCheckpointIO().save_checkpoint(weights, tmp_path / ".temp.ckpt")
    loaded = SafeCheckpointIO().load_checkpoint(tmp_path / ".temp.ckpt")
    assert torch.equal(loaded[WEIGHT], weights[WEIGHT])
