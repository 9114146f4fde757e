"""What the README tells people to type."""

import re
from pathlib import Path

import pytest

from commands import only_run
from softmax_regression.commands.train import main

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands(script: str) -> list[list[str]]:
    """The arguments of each `python SCRIPT` line of the README."""
    lines = [line.split("#")[0] for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    return [line.partition(f"python {script}")[2].split() for line in lines if f"python {script}" in line]


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tiny))
    (example,) = [block for kind, block in BLOCKS if kind == "python"]
    example = example.replace("batch_size=256", "batch_size=8, val_size=100").replace("epochs=10", "epochs=1")
    assert len([line for line in example.splitlines() if line]) <= 10
    exec(compile(example, "README.md", "exec"), {})  # the example itself is what is tested
    run = str(only_run())
    assert main(["test", "--ckpt_path", run, "--figures.every_n_epochs=0"]) == 0
    assert main(["fit", "--resume", run, "--trainer.max_epochs=2", "--figures.every_n_epochs=0"]) == 0


@pytest.mark.parametrize("arguments", commands("train.py"), ids=" ".join)
def test_every_command_of_train_py_runs(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "--data.source=synthetic",
        "--data.synthetic_size=6000",
        "--data.train_size=300",
        "--data.batch_size=64",
    ]
    if "--print_config" in arguments:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        return
    if arguments[0] == "fit" and "--resume" not in arguments:
        config = [arg for arg in arguments if arg != "--config"]
        rest = [f"--config={Path(__file__).parents[1] / arg}" if arg.startswith("conf/") else arg for arg in config]
        assert main([*rest, *small, "--trainer.max_epochs=1", "--trainer.devices=1"]) == 0
        return
    assert main(["fit", *small, "--trainer.max_epochs=1"]) == 0
    run = str(only_run())
    if "my_photos/" in arguments:
        from PIL import Image

        Path("my_photos").mkdir()
        Image.new("L", (28, 28), 0).save("my_photos/a.png")
    arguments = [run if "logs/" in arg else arg for arg in arguments]
    assert main(arguments + (["--trainer.max_epochs=2"] if "--resume" in arguments else [])) == 0


@pytest.mark.parametrize("arguments", commands("study.py"), ids=" ".join)
def test_every_command_of_study_py_is_one(arguments: list[str]) -> None:
    from softmax_regression.commands.study import STUDIES

    assert arguments[0] in STUDIES


def test_every_file_of_the_layout_exists() -> None:
    root = Path(__file__).parents[1]
    (layout,) = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if "train.py  " in block]
    names = {name for line in layout.splitlines() for name in line.split() if name.endswith(".py")}
    for name in names:
        assert [*root.glob(name), *root.glob(f"src/softmax_regression/{name}")], name
    for module in (root / "src" / "softmax_regression").glob("[!_]*.py"):
        assert any(module.match(name) for name in names), module.name
