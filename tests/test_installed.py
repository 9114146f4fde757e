"""Installed as a package, without the folder it came from, everything works from any other folder."""

import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from commands import SMALL, manifest, only_run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OWN = "from softmax_regression import SoftmaxRegression\nclass Own(SoftmaxRegression): pass\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pip install --target` has filled, without a network; read only, please."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, f"--target={folder / 'target'}", "."],
        cwd=folder / "copy",
        check=True,
    )
    shutil.rmtree(folder / "copy")
    return folder / "target"


def files_in(folder: Path) -> set[str]:
    """The files of a package, without what Python compiled."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            found.add(path.relative_to(folder).as_posix())
    return found


def test_the_wheel_has_every_module_page_and_configuration(installed: Path) -> None:
    source, package = ROOT / "src" / "softmax_regression", installed / "softmax_regression"
    expected = files_in(source) | {f"conf/{path.name}" for path in (ROOT / "conf").iterdir()}
    assert files_in(package) == expected


@pytest.mark.slow
def test_from_any_folder_it_finds_its_defaults_and_the_users_own_modules(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    commands = [
        ["fit", "--model=own.Own", *SMALL, "--trainer.max_epochs=1"],
        ["test", "--ckpt_path", "best"],
        ["list"],
        ["sweep", "--print_config"],
    ]
    script = f"""
import sys
from importlib.metadata import entry_points
(command,) = entry_points(group="console_scripts", name="softmax-regression")
main = command.load()
for args in {commands!r}:
    sys.argv[:] = ["softmax-regression", *args]
    print("exit", main())"""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    # -P: the folder where it runs is not on sys.path, as for a console script.
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("exit 0") == 3, done.stderr
    run = only_run(tmp_path / "logs")
    assert manifest(run)["config"]["early_stopping"]["patience"] == 3  # of conf/default.yaml
    assert manifest(run)["config"]["model"]["class_path"] == "own.Own"
    assert manifest(run)["command"].startswith("softmax-regression fit --model=own.Own ")
    assert f"  softmax-regression test --ckpt_path {run.relative_to(tmp_path)}" in done.stdout.splitlines()
    assert "batch_size:" in done.stdout  # of conf/sweep.yaml
    assert "4096" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("args", "word"), [(["fit", "--print_config"], "patience"), (["list", "--help"], "list")])
def test_it_runs_as_a_module(
    args: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "softmax_regression.__main__", raising=False)  # another test may have imported it
    monkeypatch.setattr(sys, "argv", ["softmax_regression", *args])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("softmax_regression", run_name="__main__")
    assert word in capsys.readouterr().out


def test_no_newer_python_is_kept_out() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
