"""Processes started by conf/ddp.yaml and by torchrun, as people start them: how they end, and what they say.

| | conf/ddp.yaml | torchrun |
|---|---|---|
| SIGKILL of a process | 5 (137 if it was the first), one line | 1, one line and torchrun's report |
| Ctrl-C | 130, one line | 1, one line and torchrun's report |
| bad input | 2, one line | 1, one line and torchrun's report |
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_resume import assert_same, state

from commands import SMALL, manifest, one_line
from ddp_worker import LIMIT, ROOT, run_group, start, wait
from marks import table
from softmax_regression.commands.train import main
from softmax_regression.runs import checkpoint

RUN = Path("logs/softmax/run")
FIT = ("fit", *SMALL, "--trainer.logger.version=run")
ENDLESS = ("--trainer.max_epochs=100000", "--early_stopping.patience=0")
TRAIN, TORCHRUN = str(ROOT / "train.py"), ("-m", "torch.distributed.run", "--nproc_per_node=2")
SECONDS = 10  # it takes two on cores that have nothing else to do
LAUNCHERS = {
    "ddp.yaml": (TRAIN, *FIT, f"--config={ROOT / 'conf' / 'ddp.yaml'}"),
    "torchrun": (*TORCHRUN, TRAIN, *FIT),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def running(launcher: str) -> Iterator[subprocess.Popen[str]]:
    """Two processes that train, and have done so for two epochs."""
    process = start(*LAUNCHERS[launcher], *ENDLESS)
    try:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[2].startswith("epoch 2/"), (lines, process.stderr and process.stderr.read())
        yield process
    finally:
        wait(process)


def ours(err: str) -> str:
    """What this project has written to stderr, without torchrun's report and c10d's word on addresses."""
    err = re.sub(
        r"(?s)Traceback.*?^(torch.distributed\S+: Process \d+ got signal: 2|={20,}\n.*={20,})\n+",
        "",
        err,
        flags=re.M,
    )
    return re.sub(r"(?m)^(\[?[WE]\d{4} |\[W\d+ ).*\n", "", err)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes(launcher: str, running: subprocess.Popen[str]) -> list[int]:
    """The two that train, in the order of their ranks; the first of conf/ddp.yaml has started the other."""
    if launcher == "ddp.yaml":
        return [running.pid, *children(running.pid)]
    return children(running.pid)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def await_end(pids: list[int]) -> float:
    """Wait until processes have ended, and return the seconds that it took."""
    began = time.monotonic()
    for pid in pids:
        while not has_ended(pid):
            assert time.monotonic() - began < LIMIT
            time.sleep(0.01)
    return time.monotonic() - began


def assert_goes_on() -> None:
    epochs = checkpoint.read(RUN / "checkpoints" / "last.ckpt")["epoch"] + 2
    alone = ("--trainer.devices=1", "--trainer.strategy=auto", f"--trainer.max_epochs={epochs}")
    assert main(["fit", f"--resume={RUN}", *alone]) == 0
    assert manifest(RUN)["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "rank"), [("ddp.yaml", 0), table("ddp.yaml", 1), ("torchrun", 1)], indirect=["launcher"]
)
def test_a_killed_process_ends_all(launcher: str, running: subprocess.Popen[str], rank: int) -> None:
    ranks = processes(launcher, running)
    os.kill(ranks[rank], signal.SIGKILL)
    assert await_end(ranks) < 30
    err = wait(running)[1]
    if (launcher, rank) == ("ddp.yaml", 0):
        assert running.returncode == -9
    else:
        assert running.returncode == (5 if launcher == "ddp.yaml" else 1)
    if (launcher, rank) != ("ddp.yaml", 0) or err:  # the kernel kills the other one, mostly before it says anything
        assert ours(err).startswith(f"error: process {1 - rank}: ")
        assert ours(err).count("\n") == 1
    assert manifest(RUN)["status"] == ("running" if rank == 0 else "interrupted")
    assert_goes_on()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "signalled"),
    [("ddp.yaml", (0,)), ("torchrun", (1,)), table("torchrun", (0, 1))],
    indirect=["launcher"],
)
def test_a_sigterm_to_any_process_ends_all_within_seconds(
    launcher: str, running: subprocess.Popen[str], signalled: tuple[int, ...]
) -> None:
    ranks = processes(launcher, running)
    for rank in signalled:
        os.kill(ranks[rank], signal.SIGTERM)
    seconds = await_end(ranks)
    print(f"ended after {seconds:.2f} s")
    assert seconds < SECONDS
    err = wait(running)[1]
    assert running.returncode == (143 if launcher == "ddp.yaml" else 1)
    assert re.fullmatch(rf"interrupted by SIGTERM: saved; resume with `.* fit --resume {RUN}`\n", ours(err))
    assert_goes_on()


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_all(launcher: str, running: subprocess.Popen[str]) -> None:
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does; torchrun passes it on to its processes
    err = wait(running)[1]
    assert running.returncode == (130 if launcher == "ddp.yaml" else 1)
    assert re.fullmatch(rf"interrupted by SIGINT: saved; resume with `.* fit --resume {RUN}`\n", ours(err))
    assert manifest(RUN)["status"] == "interrupted"
    assert_goes_on()


@pytest.mark.slow
def test_bad_input_is_one_line(launcher: str) -> None:
    process = start(*LAUNCHERS[launcher], "--data.batch_size=1")
    err = wait(process)[1]
    assert process.returncode == (2 if launcher == "ddp.yaml" else 1)
    assert ours(err).startswith("error: batch_size=1: must be at least 1 for each of 2 devices; ")
    assert ours(err).count("\n") == 1
    assert not RUN.exists()


@pytest.mark.slow
def test_more_processes_than_cores_are_refused_before_any_starts(capsys: pytest.CaptureFixture[str]) -> None:
    before = children(os.getpid())
    assert main([*FIT, "--trainer.strategy=ddp", f"--trainer.devices={(os.cpu_count() or 1) + 1}"]) == 2
    assert capsys.readouterr().err.startswith("error: trainer.devices=")
    assert children(os.getpid()) == before
    cores = len(os.sched_getaffinity(0))
    said = f"error: {cores + 1} processes: the machine has {cores} CPU cores; "
    said += f"torchrun --nproc_per_node {cores}\n"
    ended = run_group(cores + 1, FIT, cores=cores)
    assert [process.code for process in ended] == [2] * (cores + 1)
    assert [process.err for process in ended] == [said] + [""] * cores
    assert not RUN.exists()


@pytest.mark.parametrize(("name", "value"), [
    ("WORLD_SIZE", "x"), ("WORLD_SIZE", ""), ("WORLD_SIZE", "0"), ("GROUP_WORLD_SIZE", "-1"),
    ("SLURM_STEP_NUM_TASKS", "1.5"), ("SLURM_CPUS_ON_NODE", "x"),
])  # fmt: skip
def test_a_number_of_processes_that_is_none_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("softmax_regression.runs.processes.LEAD", 0)  # there is no other process that meets the error
    assert main([*FIT, "--threads=1"]) == 2
    assert one_line(capsys) == f"error: {name}={value}: must be a whole number above 0, or not set\n"
    assert not RUN.exists()


@pytest.mark.slow
def test_torchrun_on_two_nodes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    few = (TRAIN, *FIT, "--trainer.max_epochs=2")
    nodes = [
        start("-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1",
              "--master_addr=127.0.0.1", f"--master_port={port}", *few)
        for rank in (0, 1)
    ]  # fmt: skip
    texts = [wait(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    for process in run_group(2, [*few[1:], "--trainer.logger.version=other"]):
        assert (process.code, process.err) == (0, "")
    assert_same(state(RUN), state(RUN.with_name("other")))


@pytest.mark.slow
def test_nothing_is_said_where_addresses_have_no_names(tmp_path: Path) -> None:
    """Without a network, c10d would say of each process that its hostname cannot be retrieved."""
    if subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], check=False).returncode:
        pytest.skip("needs unshare -rn and ip")
    inner = f"ip link set lo up && exec python {' '.join(LAUNCHERS['ddp.yaml'])} --trainer.max_epochs=1"
    env = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    ended = subprocess.run(
        ["unshare", "-rn", "bash", "-c", inner],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
