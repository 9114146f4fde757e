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

from commands import fit, manifest, one_line, only_run
from softmax_regression.commands.train import main
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.callbacks import BestCheckpoint
from softmax_regression.runs.checkpoint import SafeCheckpointIO, dumps, read, sweep, write


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


def test_a_written_file_replaces_the_old_one_and_makes_the_folder() -> None:
    for data in (b"one", b"two"):
        write(data, Path("folder", "file"))
        assert Path("folder", "file").read_bytes() == data
    assert names(Path()) == ["folder", "folder/file"]


def test_a_folder_whose_parent_has_vanished_is_not_made_again() -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        write(b"new", Path("run", "checkpoints", "last.ckpt"))
    assert names(Path()) == []


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
    write(b"12345", Path("file"))
    assert done == ["fsync 5", "rename in True"]


# Reading


def test_what_was_saved_is_read_back_also_by_plain_torch_and_zip(trained: Path, good: bytes) -> None:
    path = trained / "checkpoints" / "last.ckpt"
    ours, plain = read(path), torch.load(path, weights_only=True)
    assert ours["global_step"] == plain["global_step"] == 48
    assert torch.equal(ours["state_dict"]["linear.weight"], plain["state_dict"]["linear.weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256=")
    assert SoftmaxRegression.load_from_checkpoint(path, weights_only=True).hparams["lr"] == 0.1


@pytest.mark.chaos
def test_no_flipped_bit_goes_unnoticed(good: bytes) -> None:
    rng = random.Random(0)
    edges = [0, 8 * len(good) - 1, *(8 * (len(good) - n) for n in (1, 64, 65, 71, 72, 73, 93))]
    bits = [*edges, *rng.sample(range(8 * len(good)), 300)]
    for bit in bits:
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        assert "damaged" in error_of(bytes(flipped)), f"bit {bit}"
    print(f"\n{len(bits)} checkpoints with a flipped bit, all noticed")


@pytest.mark.chaos
def test_no_truncation_and_nothing_appended_goes_unnoticed(good: bytes) -> None:
    rng = random.Random(0)
    lengths = [*range(2), len(good) - 1, *rng.sample(range(len(good)), 100)]
    for length in lengths:
        assert "damaged" in error_of(good[:length]), f"{length} bytes"
    print(f"\n{len(lengths)} truncated checkpoints, all noticed")
    for tail in (b"\0", b"x" * 64, good):
        assert "damaged" in error_of(good + tail)
    assert "damaged" in error_of(good[:1000] + bytes(4096) + good[5096:])  # a hole, as after a power cut


def test_a_checkpoint_without_a_checksum_is_refused(good: bytes) -> None:
    torch.save(torch.load(_file(good), weights_only=True), "plain.ckpt")
    assert "it has no checksum" in error_of(Path("plain.ckpt").read_bytes())


def _file(data: bytes) -> Path:
    Path("good.ckpt").write_bytes(data)
    return Path("good.ckpt")


CONTENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda saved: [1, 2],
    "nothing": lambda saved: {},
    "another model's": lambda saved: {key: saved[key] for key in ("state_dict", "loops", "epoch")},
    "no history": lambda saved: saved | {"history": None},
    "weights that are none": lambda saved: saved | {"state_dict": {"linear.weight": 1}},
    "a NaN": lambda saved: saved | {"state_dict": {"linear.weight": torch.tensor([0, float("nan")])}},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_other_contents_are_refused(good: bytes, content: Callable[[dict[str, Any]], Any]) -> None:
    error_of(dumps(content(read(_file(good)))))


def test_what_is_no_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo("pipe")
    Path("huge").touch()
    os.truncate("huge", 2**31)
    for path in ("nowhere", "pipe", "huge", "/dev/zero", str(tmp_path), "nul\0", "/etc/passwd/x.ckpt"):
        with pytest.raises(InputError, match=r"(no such|not a) checkpoint"):
            read(path)


def test_a_file_that_the_system_cannot_read_is_exit_4(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 4
    assert "last.ckpt: cannot be read (Input/output error)" in one_line(capsys)


# What goes wrong in training

LATE = (SafeCheckpointIO, "save_checkpoint", 4)  # a save in the second of three epochs


def from_call(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, act: Callable[[], Any]
) -> None:
    """Do something just before the call number `call` of a function, and each one after it."""
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= call:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def last_lines(capsys: pytest.CaptureFixture[str]) -> str:
    """What a run that had begun wrote to stderr, which is one line."""
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        from_call(patch, *LATE, lambda: patch.setattr(os, "fsync", lambda fd: no_space()))
        assert fit() == 4
    assert "last.ckpt: cannot be saved (No space left on device)" in last_lines(capsys)
    run = only_run()
    assert read(run / "checkpoints" / "last.ckpt")["epoch"] == 0
    assert names(run / "checkpoints") == ["best.ckpt", "last.ckpt"]
    assert main(["fit", "--resume", str(run)]) == 0  # once there is space again
    assert manifest(run)["status"] == "finished"


@pytest.mark.parametrize("gone", ["run", "logs"])
def test_a_folder_that_vanishes_ends_the_run(
    gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from_call(
        monkeypatch, *LATE, lambda: shutil.rmtree(only_run() if gone == "run" else "logs", ignore_errors=True)
    )
    assert fit() == 4
    assert "cannot be saved (No such file or directory)" in last_lines(capsys)
    assert not list(Path().rglob("*.ckpt"))


def test_a_folder_that_becomes_forbidden_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Path.open

    def forbid(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:  # root may write anywhere
        if "w" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        from_call(patch, *LATE, lambda: patch.setattr(Path, "open", forbid))
        assert fit() == 4
    assert "last.ckpt: cannot be saved (Permission denied)" in last_lines(capsys)
    assert read(only_run() / "checkpoints" / "last.ckpt")["epoch"] == 0


@pytest.mark.parametrize(("what", "quota"), [("checkpoint", 30_000), ("manifest", 3_000), ("events", 1_000)])
def test_a_quota_that_is_used_up_ends_the_run(
    what: str, quota: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # a full disk, but for this process only
    resource.setrlimit(resource.RLIMIT_FSIZE, (quota, before[1]))
    try:
        assert fit() == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in last_lines(capsys)
    assert not [name for name in names(Path("logs")) if name.endswith((".tmp", ".ckpt"))]


DIVERGING = {
    "overflow": ("--model.loss=naive", "--model.init_std=100"),
    "learning rate": ("--model.lr=1e38",),
    "within an epoch": ("--model.lr=1e38", "--trainer.callbacks.every_n_train_steps=1"),
}


@pytest.mark.parametrize("options", DIVERGING.values(), ids=DIVERGING)
def test_a_run_that_diverges_is_exit_3_and_saves_no_weight_that_is_not_finite(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*options, "--trainer.max_epochs=40") == 3
    assert (line := last_lines(capsys)).count("epoch") >= 1
    assert "step" in line
    assert "diverged" in line
    for path in Path("logs").rglob("*.ckpt"):
        read(path)  # which refuses such weights
    assert manifest(only_run())["status"] == "interrupted"


def test_weights_that_are_not_finite_are_not_saved_over_those_that_are(good: bytes) -> None:
    path, saved = _file(good), read(_file(good))
    saved["state_dict"]["linear.weight"][3, 5] = float("inf")
    with pytest.raises(DivergedError, match=r"linear.weight is not finite in epoch 3, step 48"):
        SafeCheckpointIO().save_checkpoint(saved, path)
    assert path.read_bytes() == good


# What a resumed run finds


@pytest.fixture
def started(capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of one epoch, to be resumed to two."""
    assert fit("--trainer.max_epochs=1") == 0
    capsys.readouterr()
    return only_run()


def test_a_damaged_last_checkpoint_is_replaced_by_the_newest_good_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "last.ckpt").write_bytes((checkpoints / "last.ckpt").read_bytes()[:-100])
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=4"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: ")
    assert "last.ckpt: damaged" in err
    assert "trying an older one" in err
    assert err.count("\n") == 1
    assert read(checkpoints / "last.ckpt")["epoch"] == 3


def test_a_run_resumed_from_the_best_checkpoint_ends_like_one_resumed_from_the_last(tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=2", "--trainer.logger.version=a") == 0
    shutil.copytree("logs/softmax/a", "logs/softmax/b")
    Path("logs/softmax/b/checkpoints/last.ckpt").write_bytes(b"damaged")
    for name in "ab":
        assert main(["fit", "--resume", f"logs/softmax/{name}", "--trainer.max_epochs=4"]) == 0
    a, b = (read(f"logs/softmax/{name}/checkpoints/last.ckpt") for name in "ab")
    assert torch.equal(a["state_dict"]["linear.weight"], b["state_dict"]["linear.weight"])
    assert a["history"] == b["history"]
    assert (
        a["callbacks"]["EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"]
        == (b["callbacks"]["EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}"])
    )


def test_if_all_checkpoints_are_damaged_nothing_is_resumed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    before = names(Path())
    assert main(["fit", "--resume", str(run)]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ")
    assert error.startswith("error: ")
    assert names(Path()) == before


def test_debris_of_killed_saves_is_swept_when_the_run_is_resumed(started: Path) -> None:
    debris = [started / ".run.json.123.tmp", started / "checkpoints" / ".last.ckpt.123.tmp"]
    for path in debris:
        path.write_bytes(b"half a f")
    assert main(["fit", "--resume", str(started), "--trainer.max_epochs=2"]) == 0
    assert not [path for path in debris if path.exists()]


def test_sweeping_removes_nothing_else() -> None:
    for name in ("keep.tmp", ".keep", "keep.ckpt", "sub/.keep.tmp.txt", "sub/.last.ckpt.7.tmp"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    sweep(Path())
    assert names(Path()) == [".keep", "keep.ckpt", "keep.tmp", "sub", "sub/.keep.tmp.txt"]


def test_lightning_saves_through_safe_checkpoints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    monkeypatch.setattr(checkpoint, "write", lambda data, path: paths.append(path.name))
    monkeypatch.setattr(BestCheckpoint, "on_train_end", lambda *args: None)
    assert fit("--trainer.max_epochs=1", "--trainer.logger=false") == 0
    assert paths == ["best.ckpt", "last.ckpt"]
    assert not list(Path().rglob("*.ckpt"))
