"""What the README tells people to type."""

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import MNIST, FashionMNIST

from commands import manifest, only_run
from idx import write_idx
from softmax_regression.commands import study, train
from softmax_regression.commands.train import main
from softmax_regression.data.image_files import EXTRAS
from softmax_regression.data.synthetic import generate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """The script and the arguments of each command of the README, from blocks and tables, in their order."""
    typed = re.findall(r"python (train\.py|study\.py) ([^`\n#]+)", README)
    return [(script, ["0" if word == "S" else word for word in shlex.split(words)]) for script, words in typed]


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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_typed_in_its_order_acts_on_what_the_reader_expects(
    beginner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest, typed = Path(), 0
    studied = list[list[str]]()
    for script, arguments in commands():
        words = [str(newest) if word.startswith("logs/softmax/2026") else word for word in arguments]
        starts = words[0] == "fit" and not {"--resume", "--print_config", "--help"} & set(words)
        before = runs()
        if starts and before:  # the first one draws figures
            words.append("--figures.every_n_epochs=0")
        if "--resume" in words:  # the README's run was killed; this one is done
            words.append("--trainer.max_epochs=11")
        if words[0] == "fit" and "--config" in words:  # a run of two processes would type pytest's command again
            words.append("--trainer.devices=1")
        if words[0] in ("numerics", "sweep", "overfit"):
            if words in studied:  # the table of studies has what a block has
                continue
            studied.append(words.copy())
            words.append("--quick")
        words = [str(path) for word in words for path in ([*Path().glob(word)] if word.endswith("/*") else [word])]
        try:
            code = (train if script == "train.py" else study).main(words)
        except SystemExit as error:  # of --help and --print_config
            code = int(str(error.code))
        out, err = capfd.readouterr()
        assert code == 0, (words, err)
        typed += 1
        added = [run.parent for run in runs() if run not in before]
        assert len(added) == starts, words
        newest = added[0] if added else newest
        if "best" in words:  # of a run on real images; conf/smoke.yaml, say, is none
            assert str(newest) in out + err, words
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
    assert typed > 25


def test_every_file_of_the_layout_exists() -> None:
    (layout,) = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if "train.py  " in block]
    names = {name for line in layout.splitlines() for name in line.split() if name.endswith(".py")}
    for name in names:
        assert [*ROOT.glob(name), *ROOT.glob(f"src/softmax_regression/{name}")], name
    for module in (ROOT / "src" / "softmax_regression").glob("[!_]*.py"):
        assert any(module.match(name) for name in names), module.name
