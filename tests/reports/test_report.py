"""Pages of runs: one by itself, several side by side; and the list of all."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from commands import fit
from softmax_regression import Classifier, FashionMNISTDataModule, RunLogger, RunRecord
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.files import locked
from softmax_regression.reports.report import compare, list_runs, report
from softmax_regression.runs import checkpoint
from softmax_regression.runs.record import update_manifest
from softmax_regression.runs.trust import find_class


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in the learning rate."""
    logs = tmp_path_factory.mktemp("logs")
    for lr in ("0.1", "0.5"):
        where = (f"--trainer.logger.save_dir={logs}", f"--trainer.logger.name=lr{lr}")
        assert fit(f"--model.lr={lr}", "--trainer.logger.version=run", *where) == 0
    return sorted(logs.glob("*/*"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_report_shows_the_validation_images_until_the_test_images_were_scored(runs: list[Path]) -> None:
    page = text_of(report(str(runs[0])))
    assert "101 validation images" in page
    assert page.count("<img") == 6
    final = json.loads((runs[0] / "run.json").read_text())["final"]
    assert f"<td>{final['val/loss']:.4f}</td>" in page
    assert (runs[0] / "report" / "confusion_matrix.png").exists()
    assert main(["test", f"--ckpt_path={runs[0]}", "--figures.every_n_epochs=0"]) == 0
    assert "100 test images" in text_of(report(str(runs[0] / "checkpoints" / "last.ckpt")))


def test_a_report_opens_with_the_options_and_explains_its_words(runs: list[Path]) -> None:
    page = text_of(report(str(runs[1])))
    shown, hidden = page.split("<details>", 1)
    assert re.search(r"<td>model.lr</td><td>0.5</td>", shown)
    assert shown.index("model.lr") < shown.index("in nats") < shown.index("<table><tr><th></th>")
    assert "expected calibration error is" in shown
    assert "null" not in shown
    assert "<td>none</td>" not in shown
    assert "trainer.callbacks" not in shown
    assert shown.count(f"Run {runs[1].name}") == 2  # title and heading
    assert "All options" in hidden
    assert "SoftmaxRegression" in hidden


def test_a_checkpoint_that_was_moved_has_a_report_too(runs: list[Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved.ckpt"
    shutil.copy(runs[1] / "checkpoints" / "best.ckpt", moved)
    page = text_of(report(str(moved), tmp_path / "page"))
    assert "Run moved.ckpt" in page
    assert "<td>model.lr</td><td>0.5</td>" in page
    assert page.count("<img") == 6  # curves from its history


class TwoLayers(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this module's class be found, as one of a user's own module would be."""

    def found(name: str, run: Path | None = None) -> type:
        return TwoLayers if name.endswith(".TwoLayers") else find_class(name, run)

    monkeypatch.setattr("softmax_regression.runs.folder.find_class", found)


def page_of_two_layers(logs: Path, *data: Any) -> str:
    trainer = Trainer(max_epochs=1, logger=RunLogger(str(logs)), callbacks=[RunRecord()],
                      enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)  # fmt: skip
    trainer.fit(TwoLayers(), *data)
    return text_of(report(str(trainer.log_dir)))


@pytest.mark.usefixtures("trusted")
def test_of_another_model_what_only_a_linear_one_has_is_left_out_and_said_so(tmp_path: Path) -> None:
    page = page_of_two_layers(tmp_path, FashionMNISTDataModule(32, 101, source="synthetic", synthetic_size=600))
    assert page.count("<img") == 4
    assert "left out: the model is not linear in the pixels" in page
    assert "<td>model</td><td>TwoLayers</td>" in page


@pytest.mark.usefixtures("trusted")
def test_a_run_without_a_data_module_has_a_page_too(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.rand(20, 1, 28, 28), torch.arange(20) % 10), 10)
    assert page_of_two_layers(tmp_path, loader, loader).count("<img") == 1


def test_images_that_were_not_trained_on_are_told(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.read(runs[1] / "checkpoints" / "best.ckpt")
    saved["run"]["sha256"] = "0"
    (tmp_path / "other.ckpt").write_bytes(checkpoint.dumps(saved))
    report(str(tmp_path / "other.ckpt"), tmp_path / "page", dirs=["absent"])
    assert "warning: these are not the images" in capsys.readouterr().err


def test_a_run_without_held_out_images_says_what_shows_some(tmp_path: Path) -> None:
    where = (f"--trainer.logger.save_dir={tmp_path}", "--data.val_size=0")
    assert fit(*where, "--early_stopping.patience=0", "--best_checkpoint.monitor=train/loss") == 0
    (run,) = tmp_path.glob("*/*")
    page = text_of(report(str(run)))
    assert "after <code>train.py test</code> the test images are" in page
    assert page.count("<img") == 1


def test_a_comparison_names_what_differs(runs: list[Path], tmp_path: Path) -> None:
    page = text_of(compare(runs, tmp_path / "compared"))
    shown = page.split("<details>", 1)[0]
    head = re.search(r"<tr>(<th.*?)</tr>", page)
    assert head
    names = re.findall(r"<th[^>]*>(.*?)</th>", head.group(1))
    assert names[:3] == ["run", "model.lr", "epoch"]  # and nothing else differs
    assert names[3:5] == ["val/loss", "val/acc"]
    assert re.findall(r"<tr><td[^>]*>[^<]*</td><td>([\d.]+)</td>", shown) == ["0.1", "0.5"]
    assert "trainer" not in shown


def test_a_bad_run_is_left_out_of_a_comparison(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = tmp_path / "killed"  # before its first save
    killed.mkdir()
    shutil.copy(next(runs[0].glob("events*")), killed)
    assert "2 runs side by side" in text_of(compare([*runs, killed, tmp_path / "absent"], tmp_path / "page"))
    assert capsys.readouterr().err.count("left out: ") == 2


def test_one_run_is_a_page_too(runs: list[Path], tmp_path: Path) -> None:
    assert runs[0].name in text_of(compare(runs[:1], tmp_path / "page"))


def test_what_is_no_run_is_refused_before_anything_is_written(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no checkpoints"):
        report(str(tmp_path))
    theirs = tmp_path / "index.html"
    theirs.write_text("mine")
    with pytest.raises(InputError, match="was not written by this project"):
        report(str(runs[0]), tmp_path)
    with pytest.raises(InputError, match="was not written by this project"):
        compare(runs, tmp_path)
    assert theirs.read_text() == "mine"
    report(str(runs[0]), tmp_path, force=True)
    assert theirs.read_text() != "mine"


def test_all_runs_are_listed_with_what_sets_them_apart(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        shutil.copytree(run, tmp_path / run.parent.name / run.name)
    for name, entries in (("killed", {"status": "running"}), ("diverged", {"status": "diverged"})):
        (tmp_path / "softmax" / name).mkdir(parents=True)
        update_manifest(tmp_path / "softmax" / name, **entries)
    (tmp_path / "softmax" / "damaged").mkdir()
    (tmp_path / "softmax" / "damaged" / "run.json").write_text("[1]")
    (tmp_path / "sweep" / "page").mkdir(parents=True)  # no run
    with locked(tmp_path / "lr0.5" / "run"):
        update_manifest(tmp_path / "lr0.5" / "run", status="running")
        head, *lines = list_runs(tmp_path).splitlines()
    assert head.split()[:4] == ["run", "state", "data", "epoch"]
    states = {Path(line.split()[0]).relative_to(tmp_path).as_posix(): line.split()[1] for line in lines}
    assert states == {
        "softmax/killed": "interrupted", "softmax/diverged": "diverged", "softmax/damaged": "damaged",
        "lr0.1/run": "finished", "lr0.5/run": "running",
    }  # fmt: skip
    best = json.loads((runs[1] / "run.json").read_text())["best"]
    assert f"{best['val/loss']:.4f}" in lines[-1]
    assert lines[-1].endswith("model.lr=0.5")
    assert "synthetic" in lines[-1]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no runs; train one"):
        list_runs(tmp_path)
