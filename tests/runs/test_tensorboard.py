"""What TensorBoard itself shows of a run that was resumed once: its pages SCALARS, IMAGES, HPARAMS and GRAPHS."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from commands import fit, manifest, only_run
from softmax_regression.commands.train import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EPOCHS = 4
STEPS = 16  # of an epoch


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs, which went on to a fourth."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("--model.lr=0.3", "--figures.every_n_epochs=1") == 0
        assert main(["fit", "--resume", str(only_run()), f"--trainer.max_epochs={EPOCHS}"]) == 0
    return folder / "logs"


class Board:
    """A running TensorBoard, asked as its page in the browser asks."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, plugin: str, page: str, **query: str) -> Any:
        with urlopen(f"{self.address}data/plugin/{plugin}/{page}?{urlencode(query)}", timeout=30) as answer:
            return json.load(answer)

    def hparams(self) -> list[dict[str, Any]]:
        """The columns of the table of options."""
        request = Request(
            f"{self.address}data/plugin/hparams/experiment",
            data=json.dumps({"experimentName": ""}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=30) as answer:
            columns: list[dict[str, Any]] = json.load(answer)["hparamInfos"]
            return columns


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[Board]:
    """The command of the README, on a free port, as soon as it has read the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host=127.0.0.1", "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            for line in process.stderr:
                address = re.search(r"http://127\.0\.0\.1:\d+/", line)
                if address:
                    break
            assert address, "TensorBoard said no address"
            board = Board(address[0])
            wait_until_read(board, name_of(logs))
            yield board
        finally:
            process.terminate()


def name_of(logs: Path) -> str:
    """What TensorBoard calls the run."""
    run: Path = only_run(logs)
    return run.relative_to(logs).as_posix()


def wait_until_read(board: Board, run: str) -> None:
    end = time.monotonic() + 100
    while "val/loss" not in board.ask("scalars", "tags").get(run, {}):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_scalars_have_each_epoch_once(board: Board, logs: Path) -> None:
    final = manifest(only_run(logs))["final"]
    for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
        series = board.ask("scalars", "scalars", run=name_of(logs), tag=name)
        assert len(series) == EPOCHS
        assert series[-1][2] == pytest.approx(final[name])


def test_images_are_those_of_the_last_and_of_the_best_epoch(board: Board, logs: Path) -> None:
    shown = board.ask("images", "tags")[name_of(logs)]
    for tag in ("val/confusion_matrix", "val_best/confusion_matrix"):
        assert tag in shown
        pictures = board.ask("images", "images", run=name_of(logs), tag=tag, sample="0")
        assert pictures[-1]["step"] > 0


def test_hparams_has_what_people_vary_and_not_where_the_data_lie(board: Board) -> None:
    names = {column["name"] for column in board.hparams()}
    assert {"lr", "batch_size", "max_epochs", "model", "momentum", "train_size"} <= names
    assert not {"dirs", "device", "eval_batch_size", "_instantiator", "images"} & names


def test_graphs_has_the_layers_of_the_model(board: Board, logs: Path) -> None:
    assert name_of(logs) in board.ask("graphs", "info")
    address = f"{board.address}data/plugin/graphs/graph?{urlencode({'run': name_of(logs)})}"
    with urlopen(address, timeout=30) as answer:
        assert b"Linear" in answer.read()
