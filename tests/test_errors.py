"""The commands that help, as they are typed where the person is."""

import sys
from pathlib import Path

import pytest

from softmax_regression.errors import shell_command


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        ("train.py", "python train.py fit"),  # in this folder
        ("{folder}/else where/train.py", "python '{folder}/else where/train.py' fit"),
        ("{folder}/else where/study.py", "python '{folder}/else where/train.py' fit"),
        ("{folder}/bin/softmax-regression", "softmax-regression fit"),
        ("{folder}/softmax_regression/__main__.py", "softmax-regression fit"),
    ],
)
def test_a_command_is_typed_as_the_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: str, typed: str
) -> None:
    (tmp_path / "else where").mkdir()
    (tmp_path / "else where" / "train.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if started == "train.py":
        Path("train.py").touch()
    monkeypatch.setattr(sys, "argv", [started.format(folder=tmp_path), "fit"])
    assert shell_command("train.py", "fit") == typed.format(folder=tmp_path)
