import gzip
import hashlib
import inspect
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader
from torchvision.datasets import FashionMNIST

from idx import write_idx
from softmax_regression.data.datasets import Dataset, first_complete, load_files, search_folders
from softmax_regression.data.image_files import EXTRAS, ImageFiles
from softmax_regression.data.synthetic import generate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TRAIN, TEST = 600, 100  # images in the tiny files, the same number of each class

# Signals, quotas, devices, pipes, links and processes that end together are tested where all of them are.
LINUX = re.compile(r"/dev/|/proc/|mkfifo|symlink_to|os\.kill|SIGKILL|script -qec|bash")
collect_ignore = [
    "commands/test_inputs.py", "runs/test_chaos.py", "runs/test_checkpoint.py", "runs/test_ddp.py",
    "runs/test_signals.py", "runs/test_torchrun.py",
] * (sys.platform != "linux")  # fmt: skip

# What takes longest, in the order in which workers begin with it, so that none is at work alone in the end; files
# that start several processes at a time are apart from one another.
LONGEST = ("test_ddp", "test_notebooks", "test_readme", "test_torchrun", "test_benchmarks", "test_sweep_machines")

# A shell starts a job in the background with SIGINT ignored, and a run rightly leaves it so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111 # Matplotlib says so at each start, unless it has a folder
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp())
_named = os.environ.pop("FASHION_MNIST_DIR", None)  # no test may depend on it; the real files may be there


def _real_files(root: Path) -> Path | None:
    files = ImageFiles(FashionMNIST)
    dirs = [_named] if _named else None
    return first_complete(files, [root / folder for folder in search_folders(files, dirs)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    absent = _real_files(config.rootpath) is None
    for item in items:
        if sys.platform != "linux" and LINUX.search(inspect.getsource(getattr(item, "function", re.compile))):
            item.add_marker(pytest.mark.skip("needs what only Linux has for sure"))
        if item.get_closest_marker("real_data") and absent:
            item.add_marker(pytest.mark.skip("the four Fashion-MNIST files were not found, see docs/data.md"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip("no CUDA device"))


@pytest.fixture(autouse=True)
def _no_trace_of_ddp() -> Iterator[None]:
    """Forget what Lightning's launcher leaves in its process: variables, and a group that holds a port."""
    with patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _loaders_of_torch() -> Iterator[None]:
    """Undo what Lightning leaves at these classes after an error in a hook that makes loaders."""
    with pytest.MonkeyPatch.context() as context:
        for kind, name in product((DataLoader, BatchSampler), ("__init__", "__setattr__", "__delattr__")):
            context.setattr(kind, name, getattr(kind, name))
        yield


@pytest.fixture(autouse=True)
def _algorithms_of_torch() -> Iterator[None]:
    """Undo what `Trainer(deterministic=True)` sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def real_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of the official files; for tests marked `real_data`."""
    folder = _real_files(request.config.rootpath)
    assert folder
    return folder


@pytest.fixture(scope="session")
def real(real_folder: Path) -> Dataset:
    return load_files(dirs=[str(real_folder)])


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small packed files in the real format, TRAIN and TEST images; read only, please."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    for split, (images, labels) in (("train", generate(TRAIN, seed=0)), ("t10k", generate(TEST, seed=1))):
        write_idx(images, folder / f"{split}-images-idx3-ubyte.gz")
        write_idx(labels, folder / f"{split}-labels-idx1-ubyte.gz")
    folder.chmod(0o555)  # or they would be unpacked there
    return folder


@pytest.fixture
def tiny(tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `tiny_files`, which passes for the official one: the checksums are those of its files."""
    for name in ImageFiles(FashionMNIST).names:
        digest = hashlib.sha256(gzip.decompress((tiny_files / f"{name}.gz").read_bytes())).hexdigest()
        monkeypatch.setitem(EXTRAS[FashionMNIST].sha256, name, digest)
    return tiny_files


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for tests that only read it."""
    from commands import fit, only_run  # seconds, which many tests do not need

    folder = tmp_path_factory.mktemp("trained")
    assert fit(f"--trainer.logger.save_dir={folder}") == 0
    return only_run(folder)


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of it in this test's folder."""
    return Path(shutil.copytree(trained, Path("logs", "softmax", trained.name)))


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The Chromium of this machine; for tests marked `browser`."""
    driver = pytest.importorskip("playwright.sync_api", reason='needs pip install -e ".[browser]"')
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()
