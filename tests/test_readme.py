"""What the README and the pages under docs/ tell people to type."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import MNIST, FashionMNIST

from commands import manifest, only_run
from idx import write_idx
from softmax_regression.commands import study, train
from softmax_regression.data.image_files import EXTRAS
from softmax_regression.data.synthetic import generate
from softmax_regression.runs.rows import read_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if ".zh" not in path.suffixes)
TEXT = "".join([README, *(page.read_text(encoding="utf-8") for page in PAGES)])
WITHOUT_FIGURES = "--figures.every_n_epochs=0"


def block(words: str) -> str:
    """The block of code of the README that has these words."""
    (found,) = [code for code in re.findall(r"```\w+\n(.*?)```", README, re.DOTALL) if words in code]
    return str(found)


def commands() -> list[tuple[str, list[str]]]:
    """The script and the arguments of each command of README and docs/, from blocks and tables, in their order."""
    found = []
    for script, words in re.findall(r"python (train\.py|study\.py) ([^`\n#]+)", TEXT):
        seeded = words.replace("--seed_everything S", "--seed_everything 0")
        found.append((script, shlex.split(seeded)))
    return found


def test_the_readme_is_short_and_lists_every_page() -> None:
    assert len(README.splitlines()) <= 160
    for page in PAGES:
        assert f"(docs/{page.name})" in README


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")], ids=str)
def test_every_file_that_is_linked_exists(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multiple `ModelCheckpoint` callbacks")  # the best one is the first one's
def test_the_python_example_gives_the_numbers_of_fit_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tiny))
    small = ["--data.batch_size=8", "--data.val_size=100"]
    assert train.main(["fit", *small, WITHOUT_FIGURES]) == 0
    typed = only_run().rename("typed")
    assert train.main(["test", "--ckpt_path=typed", WITHOUT_FIGURES]) == 0

    example = block("trainer.test(").replace("batch_size=256", "batch_size=8, val_size=100")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)  # the example itself is what is tested
    run = only_run()
    assert read_rows(run) == read_rows(typed)
    assert manifest(run)["best"] == manifest(typed)["best"]
    tested = {name: value.item() for name, value in names["trainer"].callback_metrics.items()}
    assert tested == manifest(typed)["test"]
    assert train.main(["fit", "--resume", str(run), "--trainer.max_epochs=11", WITHOUT_FIGURES]) == 0


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(300)
def test_the_first_line_of_make_it_yours_gains_what_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_folder: Path
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(real_folder.resolve()))
    monkeypatch.chdir(tmp_path)
    line = block("--optimizer Adam").splitlines()[0]
    said = re.search(r"validation loss of (0\.\d+) and an accuracy of (0\.\d+);.* has (0\.\d+)\s+and (0\.\d+)", README)
    assert said
    best = []
    for words in (shlex.split(line)[2:], ["fit"]):
        assert train.main([*words, WITHOUT_FIGURES]) == 0
        run = only_run()
        best += [manifest(run)["best"]["val/loss"], manifest(run)["best"]["val/acc"]]
        shutil.rmtree(run)
    assert best == pytest.approx([float(number) for number in said.groups()], abs=0.005)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_project_under_another_name(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("src", "tests", "docs", "notebooks", "examples", "conf", ".github", ".ci"):
            shutil.copytree(path, clone / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif path.is_file() and path.suffix in (".py", ".toml", ".md", ".txt", ".png"):
            shutil.copy(path, clone)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["add", "--all"], [*author, "commit", "--quiet", "--message=all"]):
        subprocess.run(["git", *words], cwd=clone, check=True)
    subprocess.run(["bash", "-ec", block("perl -pi")], cwd=clone, check=True)

    mine = tmp_path / "mine"
    left = subprocess.run(["git", "grep", "-lI", "softmax[_-]regression[^-]"], cwd=mine, capture_output=True, text=True)
    assert left.stdout == ""
    environment = os.environ | {"PYTHONPATH": str(mine / "src")}
    fit = ["train.py", "fit", "--config", "conf/smoke.yaml", WITHOUT_FIGURES]
    done = subprocess.run([sys.executable, *fit], cwd=mine, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = only_run(mine / "logs")
    assert manifest(run)["config"]["model"]["class_path"] == "mine.SoftmaxRegression"
    assert manifest(run)["command"] == shlex.join(["python", *fit])
    collect = ["-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "--collect-only"]
    done = subprocess.run([sys.executable, *collect], cwd=mine, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def beginner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a clone has, the four files (6,000 and 1,000 images), and a reader's photos."""
    for name in ("examples", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for folder, dataset in (("data/fashion-mnist", FashionMNIST), ("data/mnist", MNIST), ("my/files", None)):
        Path(folder).mkdir(parents=True)
        for seed, (split, n) in enumerate({"train": 6000, "t10k": 1000}.items()):
            for kind, tensor in zip(("images-idx3", "labels-idx1"), generate(n, seed), strict=True):
                name = f"{split}-{kind}-ubyte"
                write_idx(tensor, Path(folder, name))
                if dataset:
                    digest = hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
                    monkeypatch.setitem(EXTRAS[dataset].sha256, name, digest)
    Path("my_photos").mkdir()
    Image.new("L", (28, 28), 0).save("my_photos/a.png")
    return tmp_path


def runs() -> list[Path]:
    return sorted(Path("logs").glob("*/*/run.json"))


def as_typed(arguments: list[str], newest: Path) -> list[str]:
    """The words of a command with the newest run's name, and with the stars expanded as a shell does."""
    words = []
    for word in arguments:
        if word.startswith("logs/softmax/2026"):
            words.append(str(newest))
        elif word.endswith("/*"):
            words += [str(path) for path in Path().glob(word)]
        else:
            words.append(word)
    return words


def shorter(words: list[str], first: bool) -> list[str]:
    """The words of a command, with flags that let it do less here; the first run draws figures."""
    added = []
    if words[0] == "fit" and not first and not {"--resume", "--print_config", "--help"} & set(words):
        added.append(WITHOUT_FIGURES)
    if "--resume" in words:  # the README's run was killed; this one is done
        added.append("--trainer.max_epochs=11")
    if words[0] == "fit" and "--config" in words:  # a run of two processes would type pytest's command again
        added.append("--trainer.devices=1")
    if words[0] in ("numerics", "sweep", "overfit"):
        added.append("--quick")
    return [*words, *added]


def check(script: str, words: list[str], newest: Path, out: str, err: str) -> None:
    """Whether a command has acted on what the reader expects."""
    if "best" in words:  # of a run on real images; conf/smoke.yaml, say, is none
        assert str(newest) in out, words
    if words[0] == "test":
        assert 0 < manifest(newest)["test"]["test/acc"] <= 1
    if words[0] == "predict":
        written = Path(out.splitlines()[-1].removeprefix("predictions: "))
        assert len(written.read_text().splitlines()) == 1 + (1 if "my_photos/" in words else 1000)
    if "--resume" in words:
        assert "max_epochs=11 reached" in str(manifest(newest)["stopped"])
    if words[0] in ("compare", "curve", "list"):
        assert "left out" not in err, err
    if script == "study.py" and words[0] != "list":
        assert Path(out.splitlines()[-1]).is_file(), out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_typed_in_its_order_acts_on_what_the_reader_expects(
    beginner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = Path()
    done = list[list[str]]()
    for script, arguments in commands():
        if arguments in done:  # the pages repeat commands of the README
            continue
        before = runs()
        words = shorter(as_typed(arguments, newest), first=not before)
        try:
            code = (train if script == "train.py" else study).main(words)
        except SystemExit as error:  # of --help and --print_config
            code = int(str(error.code))
        out, err = capfd.readouterr()
        assert code == 0, (words, err)
        done.append(arguments)
        added = [run.parent for run in runs() if run not in before]
        starts = words[0] == "fit" and not {"--resume", "--print_config", "--help"} & set(words)
        assert len(added) == starts, words
        newest = added[0] if added else newest
        check(script, words, newest, out, err)
    assert len(done) > 25


def test_every_file_of_the_layout_exists() -> None:
    (layout,) = re.findall(r"```\n(train\.py  .*?)```", (ROOT / "docs" / "layout.md").read_text(), re.DOTALL)
    names = [name for name in layout.split() if name.endswith(".py")]
    for name in names:
        assert [*ROOT.glob(name), *ROOT.glob(f"src/softmax_regression/{name}")], name
    for module in (ROOT / "src" / "softmax_regression").glob("[!_]*.py"):
        assert module.name in names
    for room in (ROOT / "src" / "softmax_regression").glob("*/__init__.py"):
        assert f"\n  {room.parent.name}/ " in layout
