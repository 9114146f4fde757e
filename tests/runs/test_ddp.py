"""One experiment on one process or several: the same minibatches, the same results, and an end for all."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from test_resume import assert_same, state

from commands import SMALL, fit, manifest, only_run, pictures
from ddp_worker import (
    LIMIT,
    ROOT,
    Ended,
    Environment,
    alone,
    run_group,
    slurm,
    start,
    torchrun,
    two_nodes,
    wait,
)
from marks import slow, table
from softmax_regression import FashionMNISTDataModule
from softmax_regression.commands.train import main
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.rows import read_rows

# 15 minibatches of 32 and one of a single image, so that all ranks but one have an empty share of it.
FIT = ("fit", *SMALL, "--data.train_size=481", "--trainer.max_epochs=10", "--trainer.logger.version=run")
MLP = ("--model=mlp.MLP", "--model.hidden=32")
# With more that a kill must not lose, on each process.
LINEAR = ("--model.dropout=0.1", "--model.momentum=0.9", "--model.lr=0.01")
TWO_LAYERS = (*MLP, *LINEAR)
ORDER_OF_EACH = ("--data=ranked.Data", "--trainer.use_distributed_sampler=false")
RUN = Path("logs/softmax/run")
UNSYNCED = """
from softmax_regression import SoftmaxRegression

class Net(SoftmaxRegression):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", self.loss(self(x), y), batch_size=len(y))
"""
UNEVEN = """
from softmax_regression import FashionMNISTDataModule
from torch.utils.data import DataLoader

class Data(FashionMNISTDataModule):
    def train_dataloader(self):
        minibatches = [*super().train_dataloader()]
        return DataLoader(minibatches[self.trainer.global_rank :], None)
"""
RANKED = """
import torch
from softmax_regression import FashionMNISTDataModule
from torch.utils.data import DataLoader

class Data(FashionMNISTDataModule):
    def train_dataloader(self):
        order = torch.Generator().manual_seed(self.trainer.global_rank)
        return DataLoader([*super().train_dataloader()][:15], None, shuffle=True, generator=order)
"""
SKIPPING = """
import torch
from softmax_regression import SoftmaxRegression

class Net(SoftmaxRegression):
    def training_step(self, batch, batch_idx):
        return None

class Unused(SoftmaxRegression):
    def __init__(self):
        super().__init__()
        self.other = torch.nn.BatchNorm1d(3)
"""
VALIDATIONS: dict[int, tuple[str, ...]] = {  # sizes of the validation set, and the options for it
    1: ("--data.val_size=1",),
    100: ("--data.val_size=100",),
    101: (),
    1000: ("--data.val_size=1000", "--data.synthetic_size=2000"),
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "mlp.py", tmp_path)
    (tmp_path / "ranked.py").write_text(RANKED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder in which so many processes have trained and scored; they do when first asked for."""
    folder = tmp_path_factory.mktemp("trained")

    def of(n: int) -> Path:
        here = folder / str(n)
        if not here.exists():
            here.mkdir()
            before = Path.cwd()
            os.chdir(here)
            try:
                _train_and_score(n, of(1) / RUN if n > 1 else RUN)
            finally:
                os.chdir(before)
        return here

    return of


def _train_and_score(n: int, model: Path) -> None:
    """Train on n processes; score `model`, which is the same for all n, on validation sets and test set."""
    environment = torchrun if n > 1 else alone
    assert_done(run_group(n, FIT, environment=environment))
    if n == 4:
        return  # two and three will do
    commands: list[tuple[str, ...]] = [("test", "--ckpt_path=scored-101", "--figures.every_n_epochs=1")]
    for size, options in VALIDATIONS.items():
        shutil.copytree(model, f"scored-{size}")
        commands.append(("validate", f"--ckpt_path=scored-{size}", *options))
    for process in run_group(n, *commands, environment=environment):
        assert process.code == 0, process


def assert_done(processes: Sequence[Ended]) -> None:
    for process in processes:
        assert (process.code, process.err) == (0, "")


def weights(run: Path) -> torch.Tensor:
    saved: dict[str, torch.Tensor] = checkpoint.read(run / "checkpoints" / "last.ckpt")["state_dict"]
    return torch.cat([weight.flatten() for weight in saved.values()])


def assert_close(run: Path, reference: Path) -> None:
    """Compare two runs but for the order in which float32 numbers were added."""
    a, b = weights(run), weights(reference)
    assert (a - b).norm() <= 1e-6 * b.norm()
    for row, expected in zip(read_rows(run), read_rows(reference), strict=True):
        accuracies = {name: value for name, value in expected.items() if name.endswith("/acc")}
        assert row == pytest.approx(expected, rel=1e-4)
        assert {name: row[name] for name in accuracies} == pytest.approx(accuracies, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, table(3), 4])
def test_several_processes_train_the_model_of_one(trained: Callable[[int], Path], n: int) -> None:
    assert_close(trained(n) / RUN, trained(1) / RUN)
    assert manifest(trained(n) / RUN)["device"] == {"type": "cpu", "count": n}


@pytest.mark.slow
def test_several_processes_train_a_model_of_two_layers_as_one_does() -> None:
    for processes, environment in ((1, alone), (3, torchrun)):
        options = (*FIT, *MLP, f"--trainer.logger.save_dir={processes}")
        assert_done(run_group(processes, options, environment=environment))
    assert_close(Path("3/softmax/run"), Path("1/softmax/run"))


@pytest.mark.slow
@pytest.mark.real_data
def test_two_processes_train_the_model_of_one_on_the_real_data(real_folder: Path) -> None:
    options = ("fit", "--trainer.max_epochs=1", f"--data.dirs=[{real_folder}]", "--trainer.accelerator=cpu")
    assert main([*options, "--trainer.logger.version=one"]) == 0
    two = start(str(ROOT / "train.py"), *options, f"--config={ROOT / 'conf' / 'ddp.yaml'}",
                "--trainer.logger.version=two")  # fmt: skip
    _, err = wait(two)
    assert (two.returncode, err) == (0, "")
    run = RUN.with_name("two")
    assert manifest(run)["device"] == {"type": "cpu", "count": 2}
    assert_close(run, RUN.with_name("one"))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_metrics_count_each_image_once(trained: Callable[[int], Path], n: int) -> None:
    for size in VALIDATIONS:
        ours, theirs = (manifest(trained(k) / f"scored-{size}") for k in (n, 1))
        assert ours["validate"]["val/acc"] == theirs["validate"]["val/acc"]
        assert round(ours["validate"]["val/acc"] * size, 3) % 1 == 0
        assert ours["validate"]["val/loss"] == pytest.approx(theirs["validate"]["val/loss"], rel=1e-6)
        if size == 101:
            assert ours["test"] == pytest.approx(theirs["test"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_figures_show_the_images_of_all_processes(trained: Callable[[int], Path], n: int) -> None:
    drawn, expected = (pictures(trained(i) / "scored-101")["test/confusion_matrix"] for i in (n, 1))
    assert drawn == expected


def test_the_loss_of_an_epoch_is_the_mean_over_its_images() -> None:
    """Not over minibatches, of which the last of an epoch has a single image here."""
    assert fit("--data.train_size=33", "--trainer.max_epochs=1", "--model.lr=1", "--data.val_size=0") == 0
    torch.manual_seed(0)
    data = FashionMNISTDataModule(32, 0, 33, "synthetic", synthetic_size=600)
    model, total = SoftmaxRegression(lr=1.0), 0.0
    for x, y in data.train_dataloader():
        loss = torch.nn.functional.cross_entropy(model(x), y)
        total += loss.item() * len(y)
        model.zero_grad()
        loss.backward()
        torch.optim.SGD(model.parameters(), 1.0).step()
    assert manifest(only_run())["final"]["train/loss"] == pytest.approx(total / 33, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [slurm, two_nodes])
def test_a_repetition_has_the_same_bits_however_it_was_started(
    trained: Callable[[int], Path], environment: Environment
) -> None:
    assert_done(run_group(2, FIT, environment=environment))
    assert_same(state(RUN), state(trained(2) / RUN))


@pytest.mark.slow
def test_one_process_writes_and_speaks(trained: Callable[[int], Path]) -> None:
    names = [
        sorted(re.sub(r"events\..*", "events", path.name) for path in (trained(n) / "logs").rglob("*")) for n in (1, 3)
    ]
    assert names[0] == names[1]
    ended = run_group(3, [*FIT, "--trainer.max_epochs=1"])
    assert_done(ended)
    assert ended[0].out.startswith("training on 3 x CPU, ")
    assert [process.out.count("epoch 1/1") for process in ended] == [1, 0, 0]
    assert [process.out for process in ended[1:]] == ["", ""]


@pytest.mark.slow
def test_a_module_that_logs_the_value_of_one_process_is_told(tmp_path: Path) -> None:
    """As by Lightning in a plain Trainer; a Classifier's metrics are those of all processes."""
    (tmp_path / "unsynced.py").write_text(UNSYNCED)
    first, second = run_group(2, [*FIT, "--trainer.max_epochs=1", "--model=unsynced.Net"])
    assert (first.code, second.code) == (0, 0)
    assert "recommended to use `self.log('val/loss', ..., sync_dist=True)`" in first.err


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "codes"), [((), [2, 2]), (("--trainer.limit_train_batches=2",), [0, 0])])
def test_processes_with_more_minibatches_than_others_are_refused(
    limit: tuple[str, ...], codes: list[int], tmp_path: Path
) -> None:
    (tmp_path / "uneven.py").write_text(UNEVEN)
    ended = run_group(
        2, [*FIT, "--trainer.max_epochs=1", "--data=uneven.Data", "--trainer.use_distributed_sampler=false", *limit]
    )
    assert [process.code for process in ended] == codes
    if not limit:
        line = "process 1: 15 training minibatches an epoch, but the processes have 15 to 16"
        assert ended[1].err.startswith(f"error: {line}")
        assert not RUN.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--model=skipping.Net",),
            "error: Skipping a step by returning None in distributed training is not supported",
        ),
        (
            ("--trainer.strategy=DDPStrategy", "--trainer.strategy.process_group_backend=glo"),
            "error: Unknown backend type glo",
        ),
        (("--model=skipping.Unused",), "error: It looks like your LightningModule has parameters that were not used"),
        (
            ("--model=skipping.Unused", "--trainer.sync_batchnorm=true"),
            "error: SyncBatchNorm layers only work with GPU modules",
        ),
    ],
)
def test_what_the_training_of_several_processes_refuses_is_one_line(
    options: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    (tmp_path / "skipping.py").write_text(SKIPPING)
    ended = run_group(2, [*FIT, *options])
    assert [process.code for process in ended] == [2, 2]
    assert line in ended[0].err
    assert "Traceback" not in ended[0].err + ended[1].err


@pytest.mark.parametrize(
    ("environment", "option", "line"),
    [
        (torchrun, "--data.batch_size=2", "error: batch_size=2: must be at least 1 for each of 3 devices; "),
        slow(slurm, "--data.batch_sise=2", "error: "),
    ],
)
def test_a_mistake_is_one_line_of_all_processes(environment: Environment, option: str, line: str) -> None:
    ended = run_group(3, [*FIT, option], environment=environment)
    assert [process.code for process in ended] == [2, 2, 2]
    assert ended[0].err.startswith(line)
    assert [process.err.count("\n") for process in ended] == [1, 0, 0]
    assert not RUN.exists()


@pytest.mark.parametrize("command", [FIT, slow(("test", "--ckpt_path=run"))])
def test_data_that_are_not_there_are_one_message_of_all_processes(
    trained: Callable[[int], Path], command: tuple[str, ...]
) -> None:
    """A process must not wait for one that looks for the data, or downloads them, longer than any other."""
    if command[0] == "test":
        shutil.copytree(trained(1) / RUN, "run")
    options = (*command, "--data.source=files")
    ended = run_group(2, options, env={"FASHION_MNIST_DIR": "nowhere"}, patience=2)
    assert [process.code for process in ended] == [2, 2]
    assert ended[0].err.startswith("error: FashionMNIST: not found; tried:\n  all four files missing in nowhere")
    assert (ended[0].err.count("error"), ended[1].err) == (1, "")


@pytest.mark.slow
def test_what_only_one_process_may_have_met_is_said_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = run_group(2, [*FIT, "--data.batch_size=1"], environment=two_nodes)
    assert [process.err.count("\n") for process in ended] == [1, 1]  # a line a machine
    monkeypatch.setenv("LOCAL_RANK", "1")
    for joined in (False, True):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: joined)  # noqa: B023
        assert main([*FIT, "--data.batch_size=0"]) == 2
        assert capsys.readouterr().err.count("\n") == joined


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of two processes that is not interrupted, and the command that started it."""
    command = [*FIT, *request.param]
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(ROOT / "examples" / "mlp.py", folder)
    (folder / "ranked.py").write_text(RANKED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert_done(run_group(2, command))
    return folder / RUN, command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "number", "rank"),
    [
        (LINEAR, signal.SIGKILL, 0),
        table(LINEAR, signal.SIGTERM, 1),
        table(TWO_LAYERS, signal.SIGKILL, 1),
        (TWO_LAYERS, signal.SIGTERM, 0),
        (ORDER_OF_EACH, signal.SIGTERM, 0),
    ],
    indirect=["whole"],
)
def test_the_end_of_one_process_ends_all_and_the_run_goes_on(
    whole: tuple[Path, list[str]], number: signal.Signals, rank: int
) -> None:
    start = time.monotonic()
    ended = run_group(2, whole[1], kill=(rank, number, 60))  # in the middle of an epoch
    assert time.monotonic() - start < LIMIT
    if number == signal.SIGTERM:
        assert [process.code for process in ended] == [143, 143]
        assert ended[0].err.endswith(f" fit --resume {RUN}`\n")
        assert (ended[0].err.count("\n"), ended[1].err) == (1, "")
        assert 60 <= checkpoint.read(RUN / "checkpoints" / "last.ckpt")["global_step"] <= 64  # the end of the epoch
    else:
        survivor = ended[1 - rank]
        assert (ended[rank].code, survivor.code) == (-9, 5)
        assert survivor.err.startswith(f"error: process {1 - rank}: ")
        assert survivor.err.count("\n") == 1
    assert_done(run_group(2, ["fit", f"--resume={RUN}"]))
    assert_same(state(RUN), state(whole[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    trained: Callable[[int], Path], before: int, after: int
) -> None:
    run_group(before, FIT, environment=torchrun if before > 1 else alone, kill=(0, signal.SIGTERM, 60))
    resume = ["fit", f"--resume={RUN}"]
    assert_done(run_group(after, resume, environment=torchrun if after > 1 else alone))
    assert_close(RUN, trained(1) / RUN)


@pytest.mark.slow
def test_a_process_that_never_comes_is_one_line() -> None:
    (process,) = run_group(2, FIT, ranks=[0], patience=2)
    assert process.code == 5
    assert process.err.startswith("error: process 0: Timed out after ")
    assert process.err.count("\n") == 1
    assert not RUN.exists()


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"MASTER_PORT": str(taken.getsockname()[1])}
        (process,) = run_group(2, FIT, ranks=[0], env=port)
    assert process.code == 5
    assert "address already in use" in process.err
    assert process.err.count("\n") == 1


@pytest.mark.slow
def test_slurm_puts_a_job_back_in_the_queue_once() -> None:
    scontrol = Path("bin/scontrol").absolute()
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {scontrol.parent}/called\n')
    scontrol.chmod(0o755)
    path = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    ended = run_group(2, FIT, environment=slurm, kill=(1, signal.SIGUSR1, 60), env=path)
    assert [process.code for process in ended] == [138, 138]
    assert (scontrol.parent / "called").read_text() == "requeue 4711\n"
    assert 60 <= checkpoint.read(RUN / "checkpoints" / "last.ckpt")["global_step"] <= 64  # the end of the epoch


@pytest.mark.slow
def test_srun_without_tasks_per_node_is_one_line() -> None:
    (process, _) = run_group(2, FIT, environment=lambda rank, n: _without_tasks(rank, n))
    assert process.code == 2
    assert "--ntasks-per-node=2" in process.err
    assert process.err.count("\n") == 1


def _without_tasks(rank: int, n: int) -> dict[str, str]:
    return {name: value for name, value in slurm(rank, n).items() if name != "SLURM_NTASKS_PER_NODE"}


@pytest.mark.slow
def test_the_slurm_script_starts_a_run_and_goes_on_with_it() -> None:
    srun = Path("bin/srun").absolute()
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    env = {"PATH": f"{srun.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}

    def options() -> str:
        script = [shutil.which("bash") or "bash", str(ROOT / "conf" / "slurm.sh"), "--data.batch_size", "64"]
        return subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout

    start = "--kill-on-bad-exit=1 python train.py fit "
    assert options() == f"{start}--trainer.logger.version slurm-4711 --data.batch_size 64\n"
    last = Path("logs/softmax/slurm-4711/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    assert options() == f"{start}--resume logs/softmax/slurm-4711\n"


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("whole", [LINEAR], indirect=True)
def test_ten_kills_of_alternating_ranks_change_nothing(whole: tuple[Path, list[str]]) -> None:
    command = [*whole[1], "--last_checkpoint.every_n_train_steps=3"]
    for kill in range(10):
        ended = run_group(2, command, kill=(kill % 2, signal.SIGKILL, 13 + kill))
        assert [process.code for process in ended] == [-9, 5][:: 1 if kill % 2 == 0 else -1]
        command = ["fit", f"--resume={RUN}"]
    assert_done(run_group(2, command))
    assert_same(state(RUN), state(whole[0]))
