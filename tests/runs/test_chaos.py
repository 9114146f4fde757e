"""Runs and saves that are killed, and garbled input: random but seeded, and as many as are asked for.

A part runs with the other tests. All of it, a few minutes: `CHAOS=50 pytest -m chaos -s`; that is the number
of kills, twice as many inside saves, four times as many garbled inputs of each kind.
"""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_resume import OPTIONS, Killed, assert_same, killed_at, state

import killed
from commands import SMALL, fit, only_run
from softmax_regression.commands.train import DEFAULT_CONFIG, TrainCLI, main
from softmax_regression.data.minibatches import Shuffle
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint

N = int(os.environ.get("CHAOS", 5))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 + 40 * N)]

EVERY = ("--trainer.callbacks.every_n_train_steps=3", "--trainer.logger.version=run")
RUN = Path("logs/softmax/run")
# Where the kills of a plan of 10 fall; the others come at a random time, wherever that is.
AIMED = {0: "mid-epoch", 1: "in validation", 2: "inside a save", 3: "mid-epoch"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Kills


def run(folder: Path, rng: random.Random, moment: str | None, wait: float | None) -> int:
    """Start or resume the run of a folder, kill it at a moment or after a wait, and return its exit code."""
    if list((folder / RUN).glob("checkpoints/*.ckpt")):
        args = ["fit", "--resume", str(RUN)]
    else:  # it was killed before the first checkpoint
        shutil.rmtree(folder / RUN, ignore_errors=True)
        args = ["fit", *SMALL, *OPTIONS, *EVERY]
    # The first two saves of a process are those of its configuration and its manifest.
    call = {"mid-epoch": rng.randint(1, 30), "in validation": 1, "inside a save": rng.randint(3, 9)}
    process = killed.start(folder, args, moment, call.get(moment or "", 0))
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
    whole = killed.start(tmp_path / "whole", ["fit", *SMALL, *OPTIONS, *EVERY])
    whole.join()
    seconds, reference = time.monotonic() - began, state(tmp_path / "whole" / RUN)
    debris = runs = 0
    while sum(landed.values()) < N:
        runs += 1
        folder = tmp_path / str(runs)
        folder.mkdir()
        for _ in range(rng.randint(1, 4)):
            moment = AIMED.get(sum(landed.values()) % 10)
            if sum(landed.values()) < N and run(
                folder, rng, moment, None if moment else rng.uniform(0, seconds)
            ):
                landed[moment or "at a random time"] += 1
                debris += len(list((folder / RUN).rglob(".*.tmp")))
        assert run(folder, rng, None, None) == 0
        assert_same(state(folder / RUN), reference)
        assert not list((folder / RUN).rglob(".*.tmp"))
    print(
        f"\n{sum(landed.values())} kills in {runs} runs, 0 bits differ: {landed}, {debris} half-written files"
    )


def test_a_loader_that_shuffles_with_global_state_fails_the_comparison(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def from_global_state(self: Shuffle) -> torch.Tensor:
        return torch.arange(self.n) if self.seed is None else torch.randperm(self.n)

    monkeypatch.setattr(Shuffle, "order", from_global_state)
    options = ("--model.lr=0.01", "--trainer.max_epochs=3")
    for folder in ("whole", "again"):
        assert fit(*options, f"--trainer.logger.save_dir={folder}") == 0
    whole = state(only_run(tmp_path / "whole"))
    assert_same(state(only_run(tmp_path / "again")), whole)  # without a kill nothing is wrong
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, SoftmaxRegression, "_learn", 21)
        with suppress(Killed):
            fit(*options)
    assert main(["fit", "--resume", str(only_run())]) == 0
    with pytest.raises(AssertionError):
        assert_same(state(only_run()), whole)


def test_a_save_that_is_killed_leaves_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    saved = checkpoint.read(only_run() / "checkpoints" / "last.ckpt")
    path = tmp_path / "x.ckpt"
    rng, inside = random.Random(7), 0
    for i in range(2 * N):
        checkpoint.write(checkpoint.dumps(saved | {"global_step": 0}), path)
        process = killed.start_saving(path, "inside a save" if i % 2 else None, call=rng.randint(1, 5))
        if not i % 2:
            while not (path.with_name("started")).exists():
                time.sleep(0.001)
            process.join(rng.uniform(0, 0.03))
            process.kill()
        process.join()
        path.with_name("started").unlink()
        assert process.exitcode == -signal.SIGKILL
        found = checkpoint.read(path)
        assert torch.equal(found["state_dict"]["linear.weight"], saved["state_dict"]["linear.weight"])
        inside += len(list(tmp_path.glob(".*.tmp")))
        checkpoint.sweep(tmp_path)
        assert sorted(tmp_path.glob("*.ckpt")) == [path]
    assert inside >= N
    print(
        f"\n{2 * N} kills while saving, {inside} with a half-written file beside it: 0 unreadable checkpoints"
    )


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
    "data.train_size data.source data.watch_test data.steps_per_execution trainer.max_epochs "
    "trainer.max_steps trainer.callbacks trainer.callbacks+ trainer.logger trainer.logger.save_dir "
    "trainer.devices trainer.accelerator trainer.precision trainer.limit_train_batches trainer.profiler "
    "trainer.val_check_interval trainer.plugins trainer.strategy ckpt_path resume output no.such".split()
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


@pytest.fixture
def prepared_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `fit` do all that comes before training, in bounded memory; training may be as long as it likes."""
    monkeypatch.setattr(TrainCLI, "fit", lambda self, model, **kwargs: self._discard_unstarted())
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


# SMALL[0] comes last in what follows, for `data: null` means the default, which may mean a download.


def assert_done_or_one_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command and return its exit code, 0 or 2; in the latter case after one line and without a run."""
    began = time.monotonic()
    try:
        code = main(args)
    except SystemExit as exit_:  # of --help
        code = int(exit_.code or 0)
    err = capsys.readouterr().err
    assert time.monotonic() - began < 30
    assert code in (0, 2), (args, code, err)
    if code:
        assert err.startswith("error: "), (args, err)
        assert err.count("\n") == 1, (args, err)
    assert not Path("logs").exists() or not list(Path("logs").glob("*/*")), args
    return code


@pytest.mark.usefixtures("prepared_only")
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
        given_options = [f"--{name}={value}" for name, value in options]
        codes.append(assert_done_or_one_line([command, *SMALL, *given_options, SMALL[0]], capsys))

    check()
    print(
        f"\n{len(codes)} garbled command lines: {codes.count(2)} refused in one line, {codes.count(0)} valid"
    )


@pytest.mark.usefixtures("prepared_only")
def test_a_garbled_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    default = DEFAULT_CONFIG.read_bytes()

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
        codes.append(assert_done_or_one_line(["fit", *SMALL, "--config=x.yaml", SMALL[0]], capsys))

    check()
    print(
        f"\n{len(codes)} garbled configurations: {codes.count(2)} refused in one line, {codes.count(0)} valid"
    )


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: one to three bits flipped, or cut off."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    damaged = bytearray(data)
    for bit in rng.sample(range(8 * len(data)), rng.randint(1, 3)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_damaged_file_given_to_a_command_is_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--trainer.max_epochs=1", "--trainer.logger.save_dir=good") == 0
    capsys.readouterr()
    good = (only_run(Path("good")) / "checkpoints" / "last.ckpt").read_bytes()
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
