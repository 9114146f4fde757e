"""The command line of the studies: what was written is printed, a mistake is one line and exit code 2."""

import sys
import warnings
from pathlib import Path
from pkgutil import resolve_name

import pytest

import softmax_regression.reports.list as reports_list
from recorded import record
from softmax_regression.commands import study
from softmax_regression.commands.study import STUDIES, main
from softmax_regression.studies.numerics import study as numerics_study
from softmax_regression.studies.sweep import study as sweep

MISTAKES = [
    ("", "expected"),
    ("nonsense", "nonsense"),
    ("curve", "no run was given; type `softmax-regression curve RUN`"),
    ("report nowhere", "nowhere: no such checkpoint"),
    ("list --logs nowhere", "nowhere"),
    ("numerics --ot x", "unrecognized arguments: --ot x; did you mean --out"),
    ("numerics --seed 18446744073709551616", "seed=18446744073709551616: must be at least 0 and below 2^32"),
    ("numerics --out x.py", "x.py"),
    ("numerics --config nowhere.yaml", "nowhere.yaml: no such file"),
    ("sweep --workers many", "workers: Expected a int; Given value: many"),
    ("sweep --seeds 3", "seeds: Expected a Sequence. Got value: 3; write a list as '[a, b]'"),
    ("sweep --quick --source synthetic --space.depth [1]", "depth"),
    ("sweep --quick --model torch.nn.Nothing", "module 'torch.nn' has no attribute 'Nothing'"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=[args for args, _ in MISTAKES])
def test_a_mistake_is_one_line_and_replaces_nothing(
    args: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text("mine")
    assert main(args.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert Path("x.py").read_text() == "mine"


@pytest.mark.parametrize(("text", "message"), [
    ("import absent", "No module named 'absent'; it is neither in this folder nor installed (broken.py, line 1)"),
    ("class Net:\n    def forward(self, x:", "'(' was never closed (broken.py, line 2)"),
])  # fmt: skip
def test_an_error_in_the_module_of_a_model_says_where(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    Path("broken.py").write_text(text)
    assert main(["sweep", "--quick", "--model", "broken.Net"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_help_imports_no_study(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def noted(name: str) -> object:
        imported.append(name)
        return resolve_name(name)

    monkeypatch.setattr(study, "resolve_name", noted)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out.split()
    assert all(name in shown for name in STUDIES)
    assert not imported
    with pytest.raises(SystemExit, match="0"):
        main(["curve", "--help"])
    text = capsys.readouterr().out
    assert "RUN [RUN ...]" in text
    assert "Folders of runs" in text
    assert "config file found" not in text  # there is no conf/curve.yaml
    assert "--output" in text
    assert set(imported) == {"softmax_regression.reports.curve:run"}


def test_what_was_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path / "run", [{"epoch": 1, "step": 1, "lr": 0.1, "val/loss": 0.5}])
    output = tmp_path / "curve.png"
    assert main(["curve", str(run), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"


def test_options_and_configuration_reach_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def run(space: dict[str, list[float]], seeds: list[int], quick: bool = False, prune: bool = False) -> Path:
        seen.update(space=space, seeds=seeds, quick=quick, prune=prune)
        return tmp_path

    monkeypatch.setattr(sweep, "run", run)
    (tmp_path / "mine.yaml").write_text("space: {lr: [0.5]}\nseeds: [7]\n")
    config = ["--config", str(tmp_path / "mine.yaml")]
    assert main(["sweep", "--seeds", "[8]", "--quick", *config]) == 0
    assert seen == {"space": {"lr": [0.5]}, "seeds": [8], "quick": True, "prune": False}
    assert main(["sweep", "--quick", "false", "--prune", "true", *config]) == 0
    assert seen == {"space": {"lr": [0.5]}, "seeds": [7], "quick": False, "prune": True}


def test_an_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(quick: bool = False) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(numerics_study, "run", run)
    assert main(["numerics"]) == 130


def test_what_lightning_says_of_srun_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_runs(logs: Path = Path("logs")) -> None:
        warnings.warn("The `srun` command is available on your system but is not used.", stacklevel=1)

    monkeypatch.setattr(reports_list, "list_runs", list_runs)
    with warnings.catch_warnings(action="error"):
        assert main(["list"]) == 0
