"""LightningModules of other people's packages: equal with the engine and without it."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from test_equal import Sized, pairs
from torch import nn
from twins import ALL, twins

pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
PACKAGES = ["lightly", "prototorch", "prototorch-models", "nnue-trainer"]
NEEDED = ["setuptools<81", "chess", "scikit-learn", "scipy", "joblib", "threadpoolctl", "cloudpickle"]
NEEDED += ["loky", "narwhals"]  # what the packages import


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Install the packages into a folder of their own; what they import is the Lightning that is here."""
    folder = tmp_path_factory.mktemp("foreign")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    pip.append("--no-compile")  # a change within a second that keeps the size of a file would not be noticed
    subprocess.run([*pip, *PACKAGES, *NEEDED], check=True)
    for path in folder.glob("**/*.py"):
        text = path.read_text(errors="replace")
        if "pytorch_lightning" in text:
            path.write_text(text.replace("pytorch_lightning", "lightning.pytorch"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module


def finetuned(foreign: Any) -> Any:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU())
    return foreign("lightly.utils.benchmarking").FinetuneClassifier(backbone, 8, feature_dim=16, num_classes=10)


def prototypes(name: str, foreign: Any) -> Any:
    start = foreign("prototorch.core.initializers").RandomNormalCompInitializer(784)
    hparams = {"distribution": [2] * 10, "input_dim": 784, "latent_dim": 5, "lr": 0.01}
    return getattr(foreign("prototorch.models"), name)(hparams, prototypes_initializer=start)


def chess(foreign: Any) -> Any:
    module = foreign("nnue_trainer.nnue").NNUE()
    module.input = nn.Linear(64, 256)  # for 41,024
    return module


class Positions(Sized):
    """What stands for positions of chess."""

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            x = torch.cat([row, row], 1)
            yield [x[:, :1], 1 - x[:, :1], x, x.flip(0), x[:, :1], x[:, :1]]


CASES: dict[str, tuple[Callable[[Any], LightningModule], Callable[[], Any]]] = {
    "lightly": (finetuned, pairs),
    "GLVQ": (partial(prototypes, "GLVQ"), pairs),
    "ImageGLVQ": (partial(prototypes, "ImageGLVQ"), pairs),
    "GMLVQ": (partial(prototypes, "GMLVQ"), pairs),
    "LVQ21": (partial(prototypes, "LVQ21"), pairs),
    "nnue": (chess, partial(Positions, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_modules_of_others_are_equal(case: str, foreign: Any) -> None:
    module, data = CASES[case]
    for hooks in ((), ALL):
        says, _ = twins(partial(module, foreign), data, hooks=hooks)
        assert says.startswith("lean step")
