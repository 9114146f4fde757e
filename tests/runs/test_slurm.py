"""conf/slurm.sh on a real SLURM of one node, which the tests set up in a temporary folder and end again.

They need `apt-get install slurm-wlm` and two CPU cores, not root nor munge. A requeued job waits until the
credentials of its first start have expired. Command: pytest -m slurm tests/runs/test_slurm.py

| | exit code of the job | lines | state of the run |
|---|---|---|---|
| SIGKILL of a process | 143: srun ends the others by SIGTERM | one, and srun's | of the last save |
| SIGINT (`scancel --signal=INT`) | 130 | one, and srun's | of that step |
| bad input | 2 | one, and srun's | none |
| SIGUSR1, from the imports on | none: back in the queue, then 0 | one, and srun's | of that step |
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_same, state

from commands import SMALL, manifest
from ddp_worker import ROOT, run_group
from softmax_regression.runs import checkpoint

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}: apt-get install slurm-wlm"),
]
OPTIONS = (*SMALL, "--early_stopping.patience=0", "--trainer.max_epochs=60")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes={host} Default=YES State=UP
"""


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def until_job(job: str, true: Callable[[str], bool]) -> None:
    """Wait for something that a job does before it ends."""
    end = time.monotonic() + 120
    while not true(job):
        assert field(job, "JobState") in ("PENDING", "RUNNING"), Path(f"slurm-{job}.out").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)


def is_idle() -> bool:
    """Whether the cluster answers, and its node waits for jobs."""
    asked = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False, timeout=30)
    return asked.stdout.strip() == "idle"


def is_empty() -> bool:
    """Whether no job is left."""
    return not ask("squeue", "-h")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of this machine alone."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    (folder / "spool").mkdir()
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        patch.setenv("SLURM_CONF", str(conf))
        daemons = []
        for command in (["slurmctld", "-c"], ["slurmd", "-N", host]):
            daemons.append(subprocess.Popen([*command, "-D", "-f", str(conf)], stdout=log, stderr=log))
        try:
            until(is_idle, 60)
            yield folder
        finally:
            subprocess.run(["scancel", "-u", getpass.getuser()], check=False, timeout=30)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


@pytest.fixture
def submit(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Submit conf/slurm.sh with two processes and return the number of the job."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").symlink_to(ROOT / "train.py")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # of the script's `python`
    size = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")

    def job(*options: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)  # which train.py sets
            return ask("sbatch", "--parsable", *size, str(ROOT / "conf" / "slurm.sh"), *OPTIONS, *options)

    yield job
    subprocess.run(["scancel", "-u", getpass.getuser()], check=False, timeout=30)
    until(is_empty, 60)


def field(job: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", ask("scontrol", "show", "job", "-o", job))
    assert found
    return found[1]


def ended(job: str) -> tuple[str, list[str]]:
    """Wait until a job has ended; return its exit code and what is not said by srun or SLURM."""
    end = time.monotonic() + 120
    while field(job, "JobState") not in ("COMPLETED", "FAILED"):
        assert time.monotonic() < end, Path(f"slurm-{job}.out").read_text()
        time.sleep(0.1)
    said = []
    for line in Path(f"slurm-{job}.out").read_text().splitlines():
        if line.startswith(("error:", "interrupted", "Traceback", "[", "warning")):
            said.append(line)
    return field(job, "ExitCode").partition(":")[0], said


def trains(job: str) -> bool:
    out = Path(f"slurm-{job}.out")
    return out.exists() and "\nepoch 2/" in out.read_text()


def imports(job: str) -> bool:
    """Whether both processes have come so far that SIGUSR1 waits; they import for seconds then."""
    found = processes(job)
    for process in found:
        status = Path(f"/proc/{process}/status").read_text()
        blocked = re.search(r"SigBlk:\s*(\w+)", status)
        if not blocked or not int(blocked[1], 16) & 1 << signal.SIGUSR1 - 1:
            return False
    return len(found) == 2


def processes(job: str) -> list[int]:
    """The processes of a job, in the order of their ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_text().split("\0")
            words = (folder / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if "train.py" in words[1:2] and f"SLURM_JOB_ID={job}" in environment:
            for rank in (0, 1):
                if f"SLURM_PROCID={rank}" in environment:
                    found[rank] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def run_of(job: str) -> Path:
    return Path(f"logs/softmax/slurm-{job}")


def fit(folder: Path, *options: str) -> None:
    """Train in two processes that SLURM knows nothing of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for process in run_group(2, ["fit", *options]):
            assert (process.code, process.err) == (0, "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, *OPTIONS, "--trainer.logger.version=whole")
    return state(folder / "logs" / "softmax" / "whole")


def assert_goes_on(job: str, whole: dict[str, Any]) -> None:
    fit(Path.cwd(), f"--resume={run_of(job)}")
    assert_same(state(run_of(job)), whole)


@pytest.mark.parametrize("moment", [imports, trains])
def test_sigusr1_puts_the_job_back_in_the_queue_and_it_goes_on(
    submit: Callable[..., str], whole: dict[str, Any], moment: Callable[[str], bool]
) -> None:
    job = submit()
    until_job(job, moment)
    ask("scancel", "--signal=USR1", job)
    code, said = ended(job)
    assert (code, field(job, "Restarts")) == ("0", "1")
    assert said == [f"interrupted by SIGUSR1: saved; resume with `python train.py fit --resume {run_of(job)}`"]
    assert manifest(run_of(job))["status"] == "finished"
    assert_goes_on(job, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job(submit: Callable[..., str], rank: int) -> None:
    job = submit("--trainer.max_epochs=100000")
    until_job(job, trains)
    os.kill(processes(job)[rank], signal.SIGKILL)
    code, said = ended(job)
    assert code == "143"
    (line,) = said
    assert line.startswith(f"error: process {1 - rank}: ")
    assert checkpoint.read(run_of(job) / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_sigint_saves_and_ends_the_job(submit: Callable[..., str], whole: dict[str, Any]) -> None:
    job = submit()
    until_job(job, trains)
    ask("scancel", "--signal=INT", job)
    code, said = ended(job)
    assert code == "130"
    (line,) = said
    assert line.startswith("interrupted by SIGINT: saved; ")
    assert manifest(run_of(job))["status"] == "interrupted"
    assert_goes_on(job, whole)


LATE = """import os, time
if os.environ.get("SLURM_LOCALID") == "1":
    time.sleep(1.5)
"""  # the second process begins later than the first


def test_bad_input_ends_the_job_with_one_line(submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sitecustomize.py").write_text(LATE)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()), prepend=os.pathsep)
    job = submit("--data.batch_size=1")
    code, said = ended(job)
    assert code == "2"
    (line,) = said
    assert line.startswith("error: batch_size=1: must be at least 1 for each of 2")
    assert not run_of(job).exists()
