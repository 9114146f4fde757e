import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from softmax_regression.data import files as fashion_mnist
from softmax_regression.data.files import DIRS, FILES, Checksums, Dataset, write_idx
from softmax_regression.data.synthetic import draw

TRAIN, TEST = 600, 100  # images in the tiny files, the same number of each class

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
_named = os.environ.pop("FASHION_MNIST_DIR", None)  # no test may depend on it; the real files may be there


def _real_files(root: Path) -> Path | None:
    folders = [Path(_named)] if _named else [root / folder for folder in DIRS]
    return next((folder for folder in folders if len(fashion_mnist._find(folder)) == len(FILES)), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = _real_files(config.rootpath) is None
    for item in items:
        if item.get_closest_marker("real_data") and absent:
            item.add_marker(pytest.mark.skip("the four Fashion-MNIST files were not found, see the README"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip("no CUDA device"))


@pytest.fixture(autouse=True)
def _no_trace_of_ddp() -> Iterator[None]:
    """Forget what Lightning's launcher leaves in its process: variables, and a group that holds a port."""
    with patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def real_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of the official files; for tests marked `real_data`."""
    folder = _real_files(request.config.rootpath)
    assert folder
    return folder


@pytest.fixture(scope="session")
def real(real_folder: Path) -> Dataset:
    return fashion_mnist.load([str(real_folder)])


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small packed files in the real format, TRAIN and TEST images; read only, please."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    for split, (images, labels) in (("train", draw(TRAIN, seed=0)), ("t10k", draw(TEST, seed=1))):
        write_idx(images, folder / f"{split}-images-idx3-ubyte.gz")
        write_idx(labels, folder / f"{split}-labels-idx1-ubyte.gz")
    return folder


@pytest.fixture
def tiny(tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `tiny_files`, which passes for the official one: the checksums are those of its files."""
    monkeypatch.setattr(
        fashion_mnist, "FILES", {name: _checksums(tiny_files / f"{name}.gz") for name in FILES}
    )
    return tiny_files


def _checksums(path: Path) -> Checksums:
    data = path.read_bytes()
    sha256 = (hashlib.sha256(part).hexdigest() for part in (data, gzip.decompress(data)))
    return Checksums(hashlib.md5(data, usedforsecurity=False).hexdigest(), *sha256)
