"""The changes that everybody makes: each a small file, named by a flag, and every command works with it."""

import shutil
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from commands import SMALL, fit, manifest, only_run, scalars
from marks import slow, slow_but, table
from softmax_regression import FashionMNISTDataModule
from softmax_regression.commands import study
from softmax_regression.commands.train import main
from softmax_regression.experiment.opening import open_run
from softmax_regression.runs import checkpoint
from softmax_regression.runs.rows import read_rows

ROOT = Path(__file__).parents[2]
CHANGES = {
    "mlp": "--model=examples.mlp.MLP",
    "lenet": "--model=examples.lenet.LeNet",
    "macro_f1": "--model=examples.macro_f1.WithF1",
    "own_callback": "--trainer.callbacks+=examples.own_callback.GradientNorm",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has the examples, as a user's has."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = checkpoint.read(run / "checkpoints" / f"{which}.ckpt")["state_dict"]
    return saved


@pytest.mark.parametrize("name", slow_but(["mlp", "own_callback"], CHANGES))
def test_every_command_works_with_it(name: str) -> None:
    assert fit(CHANGES[name]) == 0
    run = only_run()
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    assert len((run / "predictions.csv").read_text().splitlines()) == 101  # of 100 test images
    assert 0 <= manifest(run)["test"]["test/acc"] <= 1


@pytest.mark.parametrize("name", [table("mlp"), table("lenet"), table("macro_f1"), slow("own_callback")])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(name: str, tmp_path: Path) -> None:
    flag, whole, parts = CHANGES[name], tmp_path / "whole", tmp_path / "parts"
    assert fit(flag, f"--trainer.logger.save_dir={whole}") == 0
    assert main(["fit", *SMALL, flag, f"--trainer.logger.save_dir={parts}", "--trainer.max_epochs=1"]) == 0
    assert main(["fit", "--resume", str(only_run(parts)), "--trainer.max_epochs=3"]) == 0
    expected, found = weights(only_run(whole)), weights(only_run(parts))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert manifest(only_run(parts))["final"] == manifest(only_run(whole))["final"]


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_short_and_says_its_command(name: str) -> None:
    lines = [line for line in (ROOT / "examples" / f"{name}.py").read_text().splitlines() if line]
    assert len(lines) <= (10 if name in ("macro_f1", "own_callback") else 15)
    assert f"python train.py fit {CHANGES[name]}`" in lines[0].replace("--model ", "--model=")


@pytest.mark.slow
def test_the_mlp_has_a_hidden_layer_of_the_size_asked_for() -> None:
    options = ("--model.hidden=32", "--model.lr=0.5", "--model.init_std=0.1", "--trainer.max_epochs=8")
    assert fit(CHANGES["mlp"], *options) == 0
    shapes = [tuple(value.shape) for value in weights(only_run()).values()]
    assert shapes == [(32, 784), (32,), (10, 32), (10,)]
    assert manifest(only_run())["final"]["train/acc"] > 0.5  # it learns
    assert study.main(["report", str(only_run())]) == 0
    page = (only_run() / "report" / "index.html").read_text(encoding="utf-8")
    assert "not linear in the pixels" in page  # so that it has no templates
    assert not (only_run() / "report" / "weights.png").exists()


def test_the_options_of_softmax_regression_hold_for_the_mlp() -> None:
    from examples.mlp import MLP

    model = MLP(init_std=0.5, dropout=0.4, num_classes=7)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == [0.4]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert float(model.state_dict()["net.2.weight"].std()) == pytest.approx(0.5, rel=0.05)
    assert model.hparams["hidden"] == 256


def test_a_class_begins_with_its_own_defaults() -> None:
    Path("sure.yaml").write_text("model: {lr: 0.2}\n")
    assert fit(CHANGES["lenet"], "--config=sure.yaml", "--trainer.max_epochs=1") == 0
    model = open_run(str(only_run())).model
    assert model.hparams["init_std"] == 0.1  # SoftmaxRegression has 0.01
    assert model.hparams["lr"] == 0.2


@pytest.mark.slow
def test_the_metric_appears_wherever_metrics_do(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ("--early_stopping.monitor=val/f1", "--early_stopping.mode=max")
    assert fit(CHANGES["macro_f1"], *monitor, "--trainer.max_epochs=4") == 0
    run = only_run()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4
    for line in lines:
        assert line.count(" f1 ") == 2
    rows = read_rows(run)
    series = scalars(run)
    for name in ("train/f1", "val/f1"):
        assert [value for _, value in series[name]] == pytest.approx([row[name] for row in rows])
        assert manifest(run)["final"][name] == rows[-1][name]
    f1, acc = rows[-1]["val/f1"], rows[-1]["val/acc"]
    assert 0 < f1 <= 1
    assert f1 != acc
    assert manifest(run)["best"]["val/f1"] == max(row["val/f1"] for row in rows)
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert " f1 " in capsys.readouterr().out
    assert "test/f1" in manifest(run)["test"]
    assert study.main(["report", str(run)]) == 0
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "test/f1" in page
    assert "not linear" not in page


def test_the_metric_is_that_of_the_predictions() -> None:
    assert fit(CHANGES["macro_f1"], "--trainer.max_epochs=1") == 0
    opened = open_run(str(only_run()))
    path, model = opened.checkpoint.path, opened.model
    assert main(["test", "--ckpt_path", str(path)]) == 0
    data = FashionMNISTDataModule(source="synthetic", synthetic_size=600, val_size=101).loaded
    with torch.no_grad():
        expected = multiclass_f1_score(model(data.test_images), data.test_labels, 10, average="macro")
    assert manifest(only_run())["test"]["test/f1"] == pytest.approx(float(expected), abs=1e-6)


def test_a_callback_at_each_step_is_called_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(CHANGES["own_callback"], "--trainer.log_every_n_steps=1") == 0
    assert "step: " not in capsys.readouterr().out  # it is the lean one
    norms = scalars(only_run())["grad_norm"]
    assert len(norms) == 3 * 16  # 499 images in minibatches of 32
    for _, norm in norms:
        assert norm > 0
