"""Runs and saves that are killed, and garbled input: random but seeded, and as many as are asked for.

A few minutes: `CHAOS=50 pytest -n 0 -m chaos -s tests/runs`; that is the number of kills, twice as many inside
saves, four times as many garbled inputs of each kind.
"""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_resume import EVERY, OPTIONS, Killed, age, assert_same, kill, resume, state

import killed
from commands import SMALL, fit, only_run
from softmax_regression.commands.train import main
from softmax_regression.data.minibatches import Shuffle
from softmax_regression.experiment.flags import CONF
from softmax_regression.files import remove_temporary_files
from softmax_regression.runs import checkpoint

N = int(os.environ.get("CHAOS", 5))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 + 40 * N)]

RUN = Path("logs/softmax/run")
START = ["fit", *SMALL, *OPTIONS, f"{EVERY}=3", "--trainer.logger.version=run"]
# Where the kills of a plan of 10 fall; the others come at a random time, wherever that is.
AIMED = {0: "mid-epoch", 1: "in validation", 2: "inside a save", 3: "mid-epoch"}


# Kills


def run(folder: Path, rng: random.Random, moment: str | None, wait: float | None) -> int:
    """Start or resume the run of a folder, kill it at a moment or after a wait, and return its exit code."""
    saved = [*(folder / RUN).rglob("*.ckpt")]
    if not saved:  # it was killed before its first step
        shutil.rmtree(folder / RUN, ignore_errors=True)
    args = ["fit", f"--resume={RUN}"] if saved else START
    process = killed.start(folder, args, moment, step=rng.randint(0, 60))
    process.join(wait)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (folder / "log.txt").read_text()
    return process.exitcode or 0


def test_random_kills_change_nothing(tmp_path: Path) -> None:
    rng, landed = random.Random(7), dict.fromkeys([*AIMED.values(), "at a random time"], 0)
    (tmp_path / "whole").mkdir()
    killed.start(tmp_path, ["--help"]).join()  # the first one waits until the server has started
    began = time.monotonic()
    assert run(tmp_path / "whole", rng, None, None) == 0
    seconds, reference = time.monotonic() - began, state(tmp_path / "whole" / RUN)
    debris = runs = 0
    while sum(landed.values()) < N:
        runs += 1
        folder = tmp_path / str(runs)
        folder.mkdir()
        for number in range(rng.randint(1, 4)):
            moment = AIMED.get(sum(landed.values()) % 10)
            wait = None if moment else rng.uniform(0, seconds)
            if sum(landed.values()) < N and run(folder, rng, moment, wait):
                landed[moment or "at a random time"] += 1
                debris += len(list((folder / RUN).rglob(".*.tmp")))
            age(folder / RUN, number)
        assert run(folder, rng, None, None) == 0
        assert_same(state(folder / RUN), reference)
        assert not list((folder / RUN).rglob(".*.tmp"))
    print(f"\n{N} kills in {runs} runs, 0 bits differ: {landed}, {debris} half-written files")


def test_a_loader_that_shuffles_with_global_state_fails_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Shuffle, "order", lambda self: torch.randperm(self.n))
    options = ("--model.lr=0.01", f"{EVERY}=3")  # the state of the random numbers is in a checkpoint, too
    for folder in ("whole", "again"):
        assert fit(*options, f"--trainer.logger.save_dir={folder}") == 0
    whole = state(only_run(tmp_path / "whole"))
    assert_same(state(only_run(tmp_path / "again")), whole)  # without a kill nothing is wrong
    with pytest.MonkeyPatch.context() as patch:
        killed.strike(patch.setattr, "mid-epoch", 21, kill)
        with pytest.raises(Killed):
            fit(*options)
    assert resume(only_run()) == 0
    with pytest.raises(AssertionError):
        assert_same(state(only_run()), whole)


def test_a_save_that_is_killed_leaves_a_checkpoint_that_can_be_read(trained: Path, tmp_path: Path) -> None:
    path, rng, kills, inside = tmp_path / "x.ckpt", random.Random(7), 0, 0
    shutil.copy(trained / "checkpoints" / "last.ckpt", path)
    expected = checkpoint.read(path)["state_dict"]
    while kills < 2 * N or inside < N / 2:  # how many come inside a save is chance
        process, kills = killed.start_saving(path), kills + 1
        while not path.with_name("started").exists():
            time.sleep(0.001)
        process.join(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        path.with_name("started").unlink()
        assert process.exitcode == -signal.SIGKILL
        assert_same(checkpoint.read(path)["state_dict"], expected)
        inside += len(list(tmp_path.glob(".*.tmp")))
        remove_temporary_files(tmp_path)
        assert [*tmp_path.iterdir()] == [path]
    print(f"\n{kills} kills while saving, {inside} with a half-written file beside it: 0 unreadable checkpoints")


# Garbled input

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.sampled_from(
    "model data trainer lr momentum schedule loss dropout batch_size val_size train_size source dirs fit "  # noqa: SIM905
    "max_epochs max_steps callbacks logger class_path init_args devices accelerator precision plugins "
    "limit_train_batches profiler strategy seed_everything output".split()
)
# Not the size of generated data: who asks for 10**12 images is waited for, or runs out of memory.
OPTION = st.sampled_from(
    "model data trainer seed_everything config model.lr model.momentum model.schedule "  # noqa: SIM905
    "model.loss model.dropout model.weight_decay model.num_classes data.batch_size data.val_size "
    "data.train_size data.source data.watch_test early_stopping.patience best_checkpoint.monitor "
    "last_checkpoint.every_n_train_steps optimizer trainer.max_epochs trainer.max_steps trainer.callbacks "
    "trainer.callbacks+ trainer.logger trainer.logger.save_dir trainer.devices trainer.accelerator "
    "trainer.precision trainer.limit_train_batches trainer.profiler trainer.val_check_interval "
    "trainer.plugins trainer.strategy ckpt_path resume output no.such".split()
)
WORDS = st.sampled_from(
    ["auto", "cpu", "1e3", "[]", "{}", "[1, ", "a.b.C", ":", "softmax_regression.runs.folder.RunLogger"]
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | TEXT | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | KEYS, inner, max_size=3),
    max_leaves=6,
)
MANY = settings(max_examples=4 * N, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


# After what is garbled: `data: null` means the default, which may mean a download, and training may be long.
BOUNDED = (SMALL[0], "--trainer.fast_dev_run=1")


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def assert_done_or_one_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command, which succeeds, or says one to three lines; neither leaves a run. Return its exit code."""
    began = time.monotonic()
    try:
        code = main(args)
    except SystemExit as exit_:  # of --help
        code = int(exit_.code or 0)
    err = capsys.readouterr().err
    assert time.monotonic() - began < 30
    assert code in (0, 2, 3), (args, code, err)  # 3: it diverged
    if code:
        assert err.startswith("error: "), (args, err)
        assert 1 <= err.count("\n") <= 3, (args, err)
    assert not list(Path().glob("logs/*/*")), args
    return code


@pytest.mark.usefixtures("bounded_memory")
def test_a_garbled_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []

    @MANY
    @example("fit", [("trainer.val_check_interval", {"": 0})])  # a traceback, once: timedelta(**{"": 0})
    @example("fit", [("model.num_classes", 10**9)])  # killed for its memory, once
    @given(
        st.sampled_from(["fit", "test", "predict", "fot", ""]),
        st.lists(st.tuples(OPTION, VALUES), max_size=3),
    )
    def check(command: str, options: list[tuple[str, Any]]) -> None:
        garbled = [f"--{name}={value}" for name, value in options]
        codes.append(assert_done_or_one_line([command, *SMALL, *garbled, *BOUNDED], capsys))

    check()
    print(f"\n{len(codes)} garbled command lines: {codes.count(0)} are valid and train, the rest is one line")


@pytest.mark.usefixtures("bounded_memory")
def test_a_garbled_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    default = (CONF / "default.yaml").read_bytes()

    def damaged(rng: random.Random) -> bytes:
        data = bytearray(default)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.choice(b"\0\t\n [{:-*&!|>'\"9\xff")
        return bytes(data)

    @MANY
    @given(
        st.one_of(
            st.binary(max_size=60),
            st.randoms(use_true_random=False).map(damaged),
            VALUES.map(lambda value: yaml.dump(value).encode()),
            st.dictionaries(KEYS, VALUES, max_size=3).map(lambda value: yaml.dump(value).encode()),
        )
    )
    def check(text: bytes) -> None:
        Path("x.yaml").write_bytes(text)
        codes.append(assert_done_or_one_line(["fit", *SMALL, "--config=x.yaml", *BOUNDED], capsys))

    check()
    print(f"\n{len(codes)} garbled configurations: {codes.count(0)} are valid and train, the rest is one line")


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: one to three bits flipped, or cut off."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    damaged = bytearray(data)
    for bit in rng.sample(range(8 * len(data)), rng.randint(1, 3)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_damaged_file_given_to_a_command_is_one_line(
    trained: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (trained / "checkpoints" / "last.ckpt").read_bytes()
    data = Path(shutil.copytree(tiny, tmp_path / "data"))
    from_data = ["fit", "--data.val_size=100", f"--data.dirs=[{data}]"]
    files = {path: (path.read_bytes(), from_data) for path in sorted(data.iterdir())}
    files[Path("x.ckpt")] = (good, ["test", *SMALL, "--ckpt_path=x.ckpt"])
    rng, count = random.Random(7), max(N, len(files))
    for i in range(count):
        path, (content, args) = list(files.items())[i % len(files)]
        path.write_bytes(flipped(content, rng))
        assert assert_done_or_one_line(args, capsys) == 2
        path.write_bytes(content)
    print(f"\n{count} damaged files given to a command: {count} noticed, in one line")
