"""A run is opened by its configuration: what LightningCLI can make, every command can open again."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import fit, only_run
from softmax_regression.errors import InputError
from softmax_regression.experiment.opening import open_run

MINE = '''
import torch
from jsonargparse.typing import Path_fr
from torch import nn
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset
from softmax_regression import FashionMNISTDataModule

class Net(LightningModule):
    def __init__(self, act: nn.Module, hidden: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["act"])
        self.act, self.hidden = act, hidden

    def setup(self, stage):
        self.stages = [*getattr(self, "stages", []), stage]

    def configure_model(self):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, self.hidden), self.act, nn.Linear(self.hidden, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class TrainsItself(LightningModule):
    """Only trains, by an optimizer of its own; it has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.own = torch.optim.SGD(self.net.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.own.zero_grad()
        loss.backward()
        self.own.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        return None

class Small(FashionMNISTDataModule):
    def __init__(self, n: int = 300) -> None:
        super().__init__(source="synthetic", synthetic_size=n, val_size=50, batch_size=25)

class Reads(Small):
    def __init__(self, files: list[Path_fr]) -> None:
        super().__init__()
        self.files = files
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module of the user's own, in which the commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("mine.py").write_text(MINE)


def test_an_injected_module_layers_of_configure_model_and_data_of_ones_own_come_back() -> None:
    options = ("--model=mine.Net", "--model.act=torch.nn.Tanh", "--model.hidden=6", "--data=mine.Small")
    from softmax_regression.commands.train import main

    assert main(["fit", *options, "--trainer.max_epochs=1", "--figures.every_n_epochs=0"]) == 0
    opened = open_run(str(only_run() / "checkpoints" / "last.ckpt"))
    assert opened.checkpoint.run == only_run()
    assert opened.checkpoint.path.name == "last.ckpt"
    assert opened.config["model"]["init_args"]["hidden"] == 6
    assert isinstance(opened.model.act, torch.nn.Tanh)
    assert opened.model.stages == ["validate"]
    assert not opened.model.training
    saved = opened.checkpoint.content["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in opened.model.state_dict().items())
    assert opened.data is not None
    (loader,) = opened.data.val_dataloader().values()
    assert sum(len(y) for _, y in loader) == 50


def test_files_that_a_configuration_names_beside_itself_are_found_by_every_command() -> None:
    from softmax_regression.commands.train import main

    Path("conf").mkdir()
    Path("conf/words.txt").write_text("words")
    Path("conf/net.yaml").write_text("class_path: mine.Net\ninit_args: {act: torch.nn.Tanh}\n")
    data = "data: {class_path: mine.Reads, init_args: {files: [words.txt]}}\n"
    Path("conf/run.yaml").write_text(f"model: net.yaml\n{data}")
    options = ("--trainer.max_epochs=1", "--figures.every_n_epochs=0")
    assert main(["fit", "--config=conf/run.yaml", *options]) == 0
    opened: Any = open_run(str(only_run()))
    (file,) = opened.data.files
    assert file.get_content() == "words"


def test_a_module_that_logs_no_val_loss_trains_without_what_watches_it(capsys: pytest.CaptureFixture[str]) -> None:
    from softmax_regression.commands.train import main

    Path("other.py").write_text(MINE.replace('"val/loss"', '"val_loss"').replace("class Net", "class Other"))
    options = ("--model=other.Other", "--model.act=torch.nn.Tanh", "--data=other.Small", "--trainer.max_epochs=2")
    assert main(["fit", *options, "--figures.every_n_epochs=0"]) == 0
    said = capsys.readouterr().out
    assert said.count("no early stopping: nothing logs val/loss; choose with --early_stopping.monitor") == 1
    assert said.count("no best.ckpt: nothing logs val/loss; choose with --best_checkpoint.monitor") == 1
    assert [path.name for path in (only_run() / "checkpoints").iterdir()] == ["last.ckpt"]


def test_folders_for_the_data_win_over_the_configuration_of_the_run() -> None:
    assert fit("--trainer.max_epochs=1", "--data.dirs=['before']") == 0
    opened = open_run("best", dirs=["elsewhere"])
    assert opened.config["data"]["init_args"]["dirs"] == ["elsewhere"]
    assert opened.data is not None
    assert opened.data.hparams["dirs"] == ["elsewhere"]


def test_opening_a_run_evaluates_nothing_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    open_run(str(only_run()))
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if "__pycache__" not in path.parts}
    assert after == {path: time for path, time in before.items() if path in after}
    with pytest.raises(InputError, match="nowhere: no such checkpoint"):
        open_run("nowhere")


def test_a_checkpoint_alone_is_opened_by_the_configuration_in_it() -> None:
    assert fit("--trainer.max_epochs=1", "--model.dropout=0.5") == 0
    alone = Path("alone.ckpt")
    alone.write_bytes((only_run() / "checkpoints" / "last.ckpt").read_bytes())
    opened = open_run(str(alone))
    assert opened.checkpoint.run is None
    assert opened.config["model"]["init_args"]["dropout"] == 0.5


# Lightning's, of optimizers that it does not know
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`", "ignore:You passed in a")
def test_a_module_that_only_trains_by_an_optimizer_of_its_own_has_a_report() -> None:
    from softmax_regression.__main__ import main
    from softmax_regression.runs.rows import read_rows

    assert main(["fit", "--model=mine.TrainsItself", "--data=mine.Small", "--trainer.max_epochs=2"]) == 0
    run = only_run()
    assert [list(row) for row in read_rows(run)] == [["epoch", "step", "loss"]] * 2
    assert main(["report", str(run)]) == 0
    assert "What the model makes of images is left out" in (run / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    "flag",
    [
        "callbacks+=TQDMProgressBar",
        pytest.param("callbacks+=RichProgressBar", marks=pytest.mark.slow),
        pytest.param("callbacks+=BatchSizeFinder", marks=pytest.mark.slow),
        pytest.param("profiler=PyTorchProfiler --trainer.profiler.export_to_chrome=false", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning's, of trials of batch sizes and of a profiler in few steps
def test_a_run_is_opened_without_what_only_watches_or_searches(flag: str) -> None:
    assert fit("--trainer.max_epochs=1", *f"--trainer.{flag}".split()) == 0
    run = only_run()
    assert open_run(str(run)).checkpoint.run == run
