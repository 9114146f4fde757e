"""LightningModules and callbacks of other people's packages: equal with the engine and without it."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from test_equal import Mixed, Sized, both
from torch import nn
from twins import ALL, twins

pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
PACKAGES = ["lightly", "prototorch", "prototorch-models", "nnue-trainer", "pytorch-lightning-spells"]
NEEDED = "setuptools<81 chess scikit-learn scipy joblib threadpoolctl cloudpickle loky narwhals".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Install the packages into a folder of their own; what they import is the Lightning that is here."""
    folder = tmp_path_factory.mktemp("foreign")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *PACKAGES, *NEEDED], check=True)
    for path in folder.glob("**/*.py"):
        if "pytorch_lightning" in (text := path.read_text(errors="replace")) and path.stem != "_version":
            path.write_text(
                text.replace("pytorch_lightning_spells", "pls").replace(
                    "pytorch_lightning", "lightning.pytorch"
                )
            )
    (folder / "pytorch_lightning_spells").rename(folder / "pls")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module


def flat(make: Callable[[Any], LightningModule]) -> tuple[Any, Any, dict[str, Any]]:
    return make, both, {}


def finetuned(foreign: Any) -> LightningModule:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU())
    module = foreign("lightly.utils.benchmarking").FinetuneClassifier
    return module(backbone, batch_size_per_device=8, feature_dim=16, num_classes=10)


def prototypes(name: str) -> Callable[[Any], LightningModule]:
    def module(foreign: Any) -> LightningModule:
        models, start = foreign("prototorch.models"), foreign("prototorch.core.initializers")
        hparams = {"distribution": [2] * 10, "input_dim": 784, "latent_dim": 5, "lr": 0.01, "lambda": 1}
        return getattr(models, name)(hparams, prototypes_initializer=start.RandomNormalCompInitializer(784))

    return module


def chess(foreign: Any) -> LightningModule:
    module = foreign("nnue_trainer.nnue").NNUE()
    module.input = nn.Linear(64, 256)
    return module


def positions(row: torch.Tensor) -> list[torch.Tensor]:
    x = torch.cat([row, row], 1)
    return [x[:, :1], 1 - x[:, :1], x, x.flip(0), x[:, :1], x[:, :1]]


class MixedUp(Mixed):
    """Two examples in one, by a callback that changes the batch; and an optimizer around an optimizer."""

    def __init__(self, foreign: Any) -> None:
        super().__init__()
        self.foreign = foreign

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.foreign("pls.losses").MixupSoftmaxLoss()(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.foreign("pls.optimizers").Lookahead(torch.optim.SGD(self.parameters(), 0.1), k=2)


CASES: dict[str, tuple[Callable[[Any], LightningModule], Callable[[], Any]]] = {
    "lightly": (finetuned, both),
    **{name: (prototypes(name), both) for name in ("GLVQ", "ImageGLVQ", "GMLVQ", "RSLVQ", "LVQ21")},
    "nnue": (chess, lambda: Sized(9, positions)),
    "spells": (MixedUp, both),
}


@pytest.mark.parametrize("case", CASES)
def test_modules_of_others_are_equal(case: str, foreign: Any) -> None:
    make, data = CASES[case]
    calls = foreign("pls.callbacks") if case == "spells" else None
    callbacks = (
        (lambda: [calls.MixUpCallback(softmax_target=True), calls.LookaheadCallback()]) if calls else list
    )
    for hooks in ((), ALL):
        run = twins(lambda: make(foreign), data, hooks=hooks, callbacks=callbacks)
        assert run["says"].startswith("lean step")
