"""The command line of the studies: what was written is printed, a mistake is one line and exit code 2."""

from pathlib import Path

import pytest
from torch.utils.tensorboard.writer import SummaryWriter

from softmax_regression.commands.study import STUDIES, main
from softmax_regression.studies import numerics_study, sweep


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "expected"),
        (["nonsense"], "nonsense"),
        (["sweep", "--workers", "many"], "workers"),
        (["sweep", "--quick", "--source", "synthetic", "--space.depth", "[1]"], "space.depth: unknown"),
        (["curve"], "runs"),
        (["curve", "absent"], "absent: has no logged metrics"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in STUDIES)


def test_what_was_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("val/loss", 0.5, 1)
    output = tmp_path / "curve.png"
    assert main(["curve", str(tmp_path), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"


def test_options_and_configuration_reach_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def run(space: dict[str, list[float]], seeds: list[int], quick: bool = False) -> Path:
        seen.update(space=space, seeds=seeds, quick=quick)
        return tmp_path

    monkeypatch.setattr(sweep, "run", run)
    (tmp_path / "mine.yaml").write_text("space: {lr: [0.5]}\nseeds: [7]\n")
    assert main(["sweep", "--config", str(tmp_path / "mine.yaml"), "--quick"]) == 0
    assert seen == {"space": {"lr": [0.5]}, "seeds": [7], "quick": True}


def test_an_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(quick: bool = False) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(numerics_study, "run", run)
    assert main(["numerics"]) == 130
