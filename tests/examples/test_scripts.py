"""A script of one's own, beside a module of one's own, makes runs that every command opens."""

import runpy
import sys
from pathlib import Path

import pytest

from commands import manifest, only_run
from marks import slow, table
from softmax_regression.commands import study
from softmax_regression.commands.train import main
from softmax_regression.experiment.opening import open_run

# As in the README, on less data.
SCRIPT = """
from lightning.pytorch import Trainer, seed_everything
from softmax_regression import *
{definition}

seed_everything(0)
data, model = FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600), {model}
callbacks = [Engine(), EarlyStopping(), BestCheckpoint(), LastCheckpoint(), RunRecord()]
trainer = Trainer(max_epochs=2, logger=RunLogger(), callbacks=callbacks, plugins=[SafeCheckpointIO()])
trainer.fit(model, data)
trainer.test(model, data)
"""
MODULE = """
import torch
from lightning.pytorch import LightningModule
from softmax_regression import SoftmaxRegression

class Fixed(SoftmaxRegression):
    def __init__(self, width=16, lr=0.2):
        super().__init__(lr=lr)
        layers = torch.nn.Linear(784, width), torch.nn.Linear(width, 10)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), *layers)

class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(784, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))

    def _loss(self, batch, name):
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log(name, loss, on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, batch_idx):
        return self._loss(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self._loss(batch, "val/loss")

    def test_step(self, batch, batch_idx):
        self._loss(batch, "test/loss")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""
IMPORT = "from mine import Fixed, Plain"

pytestmark = pytest.mark.filterwarnings("ignore")  # a plain Trainer has advice for everybody


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MODULE)


def train(model: str, definition: str = IMPORT) -> Path:
    Path("script.py").write_text(SCRIPT.format(definition=definition, model=model))
    runpy.run_path("script.py", run_name="__main__")
    return only_run()


@pytest.mark.parametrize("model", [table("Fixed(width=8)"), slow("Plain()")])
def test_every_command_opens_its_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(model)
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert "test loss" in capsys.readouterr().out
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    rows = (run / "predictions.csv").read_text().splitlines()
    assert len(rows) == 101
    assert rows[0].startswith("index,label,predicted,")
    assert study.main(["report", str(run)]) == 0
    assert (run / "report" / "index.html").stat().st_size > 10_000
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=3"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 3/3")]
    assert "train loss" in line
    assert "val loss" in line
    assert manifest(run)["status"] == "finished"
    assert open_run(str(run)).model.training is False


def test_a_run_is_drawn_once_though_its_script_also_tests(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = train("SoftmaxRegression()")
    capfd.readouterr()
    assert study.main(["curve", str(run), "--output", "curve.png"]) == 0
    assert capfd.readouterr().err == ""


def test_a_class_of_the_script_itself_cannot_be_opened_which_training_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train("Here()", "class Here(SoftmaxRegression): pass")
    assert "note: class __main__.Here: is in a script or notebook" in capsys.readouterr().err
    for command in (main, ["test", "--ckpt_path", str(run)]), (study.main, ["report", str(run)]):
        assert command[0](command[1]) == 2
        assert "class __main__.Here: is in a script or notebook" in capsys.readouterr().err
