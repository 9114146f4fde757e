"""An exported model predicts what its checkpoint does, in ONNX Runtime and in a browser."""

import io
import json
import re
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST

from commands import fit, one_line
from marks import slow
from softmax_regression import FashionMNISTDataModule, SoftmaxRegression
from softmax_regression.commands.study import main
from softmax_regression.commands.train import main as train_main
from softmax_regression.data.datasets import Dataset, generate_dataset
from softmax_regression.data.photos import to_fashion_mnist
from softmax_regression.errors import InputError
from softmax_regression.experiment.opening import open_run

NEEDS = 'needs the extra `export`: pip install -e ".[export]"'
onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS)
pytest.importorskip("onnxscript", reason=NEEDS)
from softmax_regression.reports import export  # noqa: E402 (needs both)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
CLASSES = tuple(FashionMNIST.classes)
FILES = ("model.onnx", "model-float.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the examples, as a user's has."""
    folder = tmp_path_factory.mktemp("folder")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """What a person has who types commands in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(autouse=True)
def in_folder(folder: Path) -> Iterator[None]:
    with working_in(folder):
        yield


def train(folder: Path, name: str, *options: str) -> Path:
    """The folder of a small run of that name in the folder of the examples."""
    with working_in(folder):
        assert fit(f"--trainer.logger.name={name}", "--model.lr=0.3", *options) == 0
    return next((folder / "logs" / name).iterdir())


@pytest.fixture(scope="module")
def linear(folder: Path) -> Path:
    """The folder of a small run of softmax regression; read only, please."""
    return train(folder, "linear")


@pytest.fixture(scope="module")
def mlp(folder: Path) -> Path:
    """The folder of a small run of the MLP; read only, please."""
    return train(folder, "mlp", "--model=examples.mlp.MLP", "--model.init_std=0.1")


def exported_from(run: Path) -> Path:
    """Export a run once into its folder; read only, please."""
    if not (run / "export").exists():
        with working_in(run.parents[2]):
            assert main(["export", str(run)]) == 0
    return run / "export"


@pytest.fixture(scope="module")
def linear_export(linear: Path) -> Path:
    return exported_from(linear)


@pytest.fixture(scope="module", params=["linear", pytest.param("mlp", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest) -> Path:
    run: Path = request.getfixturevalue(request.param)
    return run


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    return exported_from(trained)


@pytest.fixture(scope="module")
def model(trained: Path) -> LightningModule:
    with working_in(trained.parents[2]):
        return open_run(str(trained)).model.requires_grad_(False)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """What the runs were trained on; 100 test images."""
    return generate_dataset(600)


def probabilities(model: LightningModule, images: Tensor) -> NDArray[np.float64]:
    """In float64 throughout."""
    found: NDArray[np.float64] = deepcopy(model).double()(images.double() / 255).softmax(1).numpy()
    return found


@pytest.mark.parametrize("file", FILES)
def test_onnx_predicts_what_the_checkpoint_does(
    file: str, exported: Path, model: LightningModule, dataset: Dataset
) -> None:
    session = onnxruntime.InferenceSession(exported / file)
    for n in (1, 7):
        images = dataset.test_images[:n]
        given = images if file == "model.onnx" else images / 255
        found, logits = session.run(["probabilities", "logits"], {"images": given.numpy()})
        assert found.shape == logits.shape == (n, len(CLASSES))
        assert found.dtype == np.float32
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-4)
        np.testing.assert_allclose(found, probabilities(model, images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_any_model_is_exported_and_the_names_of_the_classes_are_those_of_its_data(
    folder: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "letters.py").write_text(
        "from torchvision.datasets import FashionMNIST\n"
        "from softmax_regression import FashionMNISTDataModule\n"
        "class Named(FashionMNIST):\n"
        "    classes = tuple('abcdefghij')\n"
        "class Letters(FashionMNISTDataModule):\n"
        "    dataset = Named\n"
    )
    run = train(folder, "own", "--model=examples.lenet.LeNet", "--data=letters.Letters")
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'model.onnx'}\n"
    assert "no page" in err
    assert {file.name for file in tmp_path.iterdir()} == {*FILES}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list("abcdefghij")
    found = session.run(["probabilities"], {"images": dataset.test_images.numpy()})[0]
    model = open_run(str(run)).model.requires_grad_(False)
    np.testing.assert_allclose(found, probabilities(model, dataset.test_images), rtol=0, atol=1e-5)


def test_a_hidden_layer_of_another_kind_is_not_taken_for_relu(dataset: Dataset) -> None:
    torch.manual_seed(0)
    images = dataset.test_images / 255
    ends = torch.nn.Flatten(), torch.nn.Linear(784, 8), torch.nn.Linear(8, 10)
    for between, layers in ((torch.nn.ReLU(), 2), (torch.nn.Tanh(), 0), (torch.nn.Identity(), 0)):
        net = torch.nn.Sequential(*ends[:2], between, ends[2]).requires_grad_(False)
        assert len(export.layers_of(net, images, net(images).softmax(1))) == layers


def test_onnx_says_what_it_is_and_nothing_of_this_machine(exported: Path, trained: Path) -> None:
    meta = onnxruntime.InferenceSession(exported / "model.onnx").get_modelmeta()
    assert meta.producer_name == "softmax-regression"
    assert json.loads(meta.custom_metadata_map["class_names"]) == list(CLASSES)
    assert meta.custom_metadata_map["checkpoint"] == f"{trained.name}/checkpoints/best.ckpt"
    for file in exported.iterdir():
        for place in (trained.parent, ROOT, Path(torch.__file__).parents[1]):
            assert str(place).encode() not in file.read_bytes()


def test_onnx_that_predicts_otherwise_is_refused(exported: Path, model: LightningModule, dataset: Dataset) -> None:
    expected, content = model(dataset.test_images).softmax(1), (exported / "model.onnx").read_bytes()
    export.compare("model.onnx", content, dataset.test_images, expected)
    for wrong in (expected + 2e-5, expected.roll(1, 1), expected * torch.nan):
        with pytest.raises(InputError, match="apart"):
            export.compare("model.onnx", content, dataset.test_images, wrong)


class Colours(LightningDataModule):
    """Colour images of three classes, in batches that are dictionaries; the test set is set up for `test` alone."""

    def setup(self, stage: str) -> None:
        self.examples: Any = []
        for i in range(40):
            self.examples.append({"label": i % 3, "image": torch.rand(3, 8, 12) + i % 3})
        if stage == "test":
            self.tested: Any = self.examples[:30]

    def train_dataloader(self) -> Any:
        return DataLoader(self.examples, 20)

    def test_dataloader(self) -> Any:
        return [DataLoader(self.tested, 20)]


class Small(FashionMNISTDataModule):
    """This project's data, generated."""

    def __init__(self) -> None:
        super().__init__(source="synthetic", synthetic_size=600, val_size=100)


class ColourNet(LightningModule):
    """Somebody else's module; it is compiled and has its layers made late."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), backend="eager")

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Denoiser(ColourNet):
    def forward(self, x: Tensor) -> Any:
        return x


class Branching(ColourNet):
    """Looks at its inputs to choose what to compute."""

    def forward(self, x: Tensor) -> Any:
        if x.mean() > 100:
            return self.net(-x)
        return self.net(x)


class Bytes(Colours):
    """Images as bytes, which the model itself divides."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for example in self.examples:
            example["image"] = (80 * example["image"]).byte()


class BytesNet(ColourNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(288, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def forward(self, x: Tensor) -> Any:
        return self.net(x / 255)


class Words(Colours):
    """Texts of seven words of twenty."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for i, example in enumerate(self.examples):
            example["image"] = (torch.arange(7) + i) % 20


class WordsNet(BytesNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.EmbeddingBag(20, 3))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Probabilities(BytesNet):
    """Ends with a softmax."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x).softmax(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.nll_loss(self(batch["image"]).log(), batch["label"])


class Centred(BytesNet):
    """Changes its batches by both hooks."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch | {"image": batch["image"] * 4}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch | {"image": batch["image"] - 3}


class CentredSoftmax(SoftmaxRegression):
    """Changes the batches of this project's data."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 4 * batch[0] - 3, batch[1]


def trained_elsewhere(model: str, folder: Path, data: str = "Colours", *flags: str) -> Path:
    """The folder of a run of a module and a data module of this file."""
    flags += ("--early_stopping.patience=0", "--best_checkpoint.monitor=null", "--figures.every_n_epochs=0")
    where = [f"--trainer.logger.save_dir={folder}", "--trainer.max_epochs=1"]
    assert train_main(["fit", f"--model=test_export.{model}", f"--data=test_export.{data}", *flags, *where]) == 0
    return next(folder.glob("*/*"))


@pytest.mark.filterwarnings(
    "ignore:You have overridden", "ignore:.*logging interval", "ignore:.*does not have many workers"
)
@pytest.mark.parametrize(
    ("name", "data", "flags"),
    [
        slow("BytesNet", "Bytes", ()),
        slow("WordsNet", "Words", ()),
        ("Probabilities", "Colours", ()),
        slow("Centred", "Colours", ()),
        slow("BytesNet", "Colours", ("--trainer.precision=64-true",)),
        slow("BytesNet", "Colours", ("--trainer.precision=bf16-true",)),
        ("CentredSoftmax", "Small", ()),
    ],
)
def test_the_exported_model_takes_what_the_model_is_given_and_predicts_what_that_does(
    name: str, data: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_elsewhere(name, tmp_path, data, *flags)
    assert main(["export", str(run)]) == 0
    opened = open_run(str(run))
    assert opened.data is not None
    opened.data.setup("test")
    found: list[Tensor] = []
    expected: list[Tensor] = []

    class Compared(Callback):
        def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *rest: Any) -> None:
            images = [*batch.values()][1] if isinstance(batch, dict) else batch[0]
            given = images.float() if images.is_floating_point() else images
            found.append(torch.from_numpy(session.run(["probabilities"], {"images": given.numpy()})[0]))
            output = pl_module(images).float()
            expected.append(output if name == "Probabilities" else output.softmax(1))

    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    precision: Any = opened.trainer.precision
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "callbacks": [Compared()]}
    with torch.no_grad():
        opened.model.test_step = lambda *args: None  # type: ignore[method-assign]
        Trainer(accelerator="cpu", precision=precision, **options).test(opened.model, opened.data, verbose=False)
    tolerance = 0.01 if precision == "bf16-true" else 1e-5
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=tolerance)


def test_a_model_of_other_data_is_compared_on_the_test_batches_of_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_elsewhere("ColourNet", tmp_path)
    capsys.readouterr()
    assert main(["export", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run / 'export' / 'model.onnx'}\n"
    assert err.startswith("model.onnx: 30 test images, 0 in another class")
    assert "no page" in err
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    images = torch.rand(5, 3, 8, 12)
    probabilities, logits = session.run(None, {"images": images.numpy()})
    assert probabilities.shape == logits.shape == (5, 3)


def test_a_module_that_is_no_classifier_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_elsewhere("Denoiser", tmp_path)
    capsys.readouterr()
    assert main(["export", str(run)]) == 2
    assert "Denoiser: no classifier of images that torch.onnx can export (it returns (30, 3, 8, 12)" in one_line(capsys)
    assert not (run / "export").exists()


def test_what_torch_cannot_export_is_one_line_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained_elsewhere("Branching", tmp_path)
    capsys.readouterr()
    assert main(["export", str(run)]) == 2
    line = one_line(capsys)
    assert "data-dependent" in line
    assert "This is step 1" not in line


def test_a_model_that_is_no_classifier_of_images_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.py").write_text(
        "from softmax_regression import SoftmaxRegression\n"
        "class Odd(SoftmaxRegression):\n"
        "    def forward(self, x):\n"
        "        if len(x) == 100: raise ValueError('not in the mood')\n"
        "        return super().forward(x)\n"
    )
    run = train(folder, "odd", "--model=odd.Odd")
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path)]) == 2
    assert "Odd: no classifier of images" in one_line(capsys)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_by_default_the_export_lies_in_the_folder_of_the_run(
    linear: Path, linear_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(linear, tmp_path / "run")
    assert {file.name for file in (run / "export").iterdir()} == {*FILES, "index.html"}
    (run / "export" / "index.html").write_text("mine")
    (run / "export" / "model.onnx").unlink()
    assert main(["export", str(run / "checkpoints" / "last.ckpt"), "--force"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run / 'export' / 'index.html'}\n"
    assert [line.split(":")[0] for line in err.splitlines()] == [*FILES]
    assert {file.name for file in (run / "export").iterdir()} == {*FILES, "index.html"}
    assert (run / "export" / "index.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", [*FILES, "index.html"])
def test_a_file_of_somebody_elses_is_not_replaced(
    name: str, linear: Path, linear_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(linear_export, tmp_path / "out")
    before = {file: file.read_bytes() for file in out.iterdir()} | {out / name: b"mine"}
    (out / name).write_bytes(b"mine")
    capsys.readouterr()
    assert main(["export", str(linear), "--out", str(out)]) == 2
    error = one_line(capsys)
    assert f"{name}: exists" in error
    assert "--force" in error
    assert {file: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_is_one_line(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "softmax_regression.reports.export")
    assert main(["export", "best"]) == 2
    assert 'pip install -e ".[export]"' in one_line(capsys)


def test_a_damaged_checkpoint_is_refused(linear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((linear / "checkpoints" / "best.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(data)
    assert main(["export", str(tmp_path / "damaged.ckpt"), "--out", str(tmp_path / "export")]) == 2
    assert "damaged" in one_line(capsys)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("words", [[], ["absent.ckpt"], ["one", "two"]], ids=str)
def test_exactly_one_checkpoint_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words]) == 2
    one_line(capsys)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "open_run", lambda *_, **__: pytest.fail("the run was opened"))
    (tmp_path / "file").touch()
    assert main(["export", str(linear), "--out", str(tmp_path / "file" / "export")]) == 2
    assert "cannot be written" in one_line(capsys)


def test_the_page_is_whole_and_asks_nothing_of_the_network(exported: Path) -> None:
    page = (exported / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "{{" not in page
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page)


def test_no_name_of_a_run_becomes_a_tag(linear: Path, dataset: Dataset, tmp_path: Path) -> None:
    layers = [each for each in open_run(str(linear)).model.modules() if isinstance(each, torch.nn.Linear)]
    names = ("</script><script>alert(1)", "plain")
    evil, plain = (export.to_page(tmp_path, layers, dataset, CLASSES, name).read_text() for name in names)
    assert evil.count("<script") == plain.count("<script")
    assert evil.count("</script") == plain.count("</script")


def in_browser(browser: "Browser", path: Path, script: str) -> Any:
    """What the body of an async function returns in a page."""
    page = browser.new_page()
    page.goto(path.as_uri())
    found = page.evaluate(f"async () => {{ {script} }}")
    page.close()
    return found


def encoded(data: bytes) -> str:
    return json.dumps(b64encode(data).decode())


def png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return encoded(buffer.getvalue())


@pytest.mark.browser
def test_the_page_predicts_what_the_checkpoint_does(
    exported: Path, model: LightningModule, dataset: Dataset, browser: "Browser"
) -> None:
    images = dataset.test_images
    script = f"""const given = bytes({encoded(images.numpy().tobytes())}), found = [];
        for (let i = 0; i < given.length; i += 784) found.push(window.probabilities(given.slice(i, i + 784)));
        return found;"""
    found = np.array(in_browser(browser, exported / "index.html", script))
    assert found.shape == (100, len(CLASSES))
    np.testing.assert_allclose(found, probabilities(model, images), rtol=0, atol=1e-5)


@pytest.mark.browser
def test_the_page_takes_pictures_nearly_as_predict_does(
    linear_export: Path, dataset: Dataset, browser: "Browser"
) -> None:
    image = Image.fromarray(dataset.test_images[0].numpy())
    large = image.resize((336, 336), Image.Resampling.BICUBIC)
    photo = Image.new("RGB", (600, 500), "white")
    photo.paste((30, 60, 90), (50, 60), large)
    pictures = [image, Image.eval(image, lambda v: 255 - v), photo]
    script = f"""const found = [];
        for (const file of [{", ".join(map(png, pictures))}])
            found.push([...await fromPicture(new Blob([bytes(file)]))]);
        return found;"""
    found = in_browser(browser, linear_export / "index.html", script)
    for pixels, picture, most in zip(found, pictures, (0, 0, 4), strict=True):
        expected = to_fashion_mnist(picture).flatten().double().numpy()
        assert np.abs(np.array(pixels) - expected).mean() <= most


@pytest.mark.browser
def test_what_is_no_image_has_no_answer(exported: Path, dataset: Dataset, browser: "Browser") -> None:
    empty, image = Image.new("L", (28, 28)), Image.fromarray(dataset.test_images[0].numpy())
    script = f"""const shown = () => [byId("answer").textContent, byId("maps").children.length,
            [...byId("bars").children].map(bar => bar.lastChild.textContent + bar.className).join("")];
        const file = data => new File([bytes(data)], "a.png"), seen = [shown()];
        byId("clear").click();
        byId("bars").firstChild.click();
        seen.push(shown());
        byId("examples").firstChild.click();
        await read(new File(["no picture"], "notes.txt"));
        seen.push(shown());
        await read(file({png(image)}));
        seen.push(shown());
        await read(file({png(empty)}));
        seen.push(shown());
        const late = read(file({png(image)}));
        byId("clear").click();
        await late;
        return [...seen, shown()];"""
    first, cleared, failed, good, blank, late = in_browser(browser, exported / "index.html", script)
    for answer, maps, bars in (first, good):
        assert "with a probability of" in answer
        assert maps == 2
        assert bars.count("%") == len(CLASSES)
    starts = ("Nothing is drawn", "notes.txt: cannot be used (", "The image is empty", "Nothing is drawn")
    for (answer, maps, bars), start in zip((cleared, failed, blank, late), starts, strict=True):
        assert answer.startswith(start)
        assert maps == 0
        assert bars == ""


@pytest.mark.browser
def test_the_page_shows_the_answer_and_explains_the_class_that_is_clicked(
    exported: Path, model: LightningModule, dataset: Dataset, browser: "Browser"
) -> None:
    script = """byId("examples").children[7].click();
        const bars = [...byId("bars").children], example = [...image];
        const other = bars.findIndex(bar => bar.className !== "max");
        bars[other].click();
        const best = bars.findIndex(bar => bar.className === "max");
        const captions = [...document.querySelectorAll("#maps figcaption")].map(c => c.textContent);
        const maps = [best, other].map(k => [...explanation(image, k).pixels]);
        const frame = pad.getBoundingClientRect();
        const drawn = [];
        for (const y of [140, 40]) {
            byId("clear").click();
            last = null;
            for (const x of [70, 210]) await draw({clientX: frame.left + x, clientY: frame.top + y});
            drawn.push([...image]);
        }
        return [example, best, other, captions, maps, ...drawn, byId("learned").hidden];"""
    example, best, other, captions, maps, drawn, above, hidden = in_browser(browser, exported / "index.html", script)
    x = torch.tensor(example, dtype=torch.uint8).view(1, 28, 28)
    assert any(torch.equal(x[0], image) for image in dataset.test_images)
    pixels = (x[:, None] / 255).requires_grad_()
    logits = model(pixels)[0]
    assert best == logits.argmax()
    for caption, parts, k in zip(captions, maps, (best, other), strict=True):
        slope = torch.autograd.grad(logits[k], pixels, retain_graph=True)[0]
        np.testing.assert_allclose(parts, (pixels * slope).detach().flatten().numpy(), atol=1e-5)
        assert caption.startswith(CLASSES[k])
        total, seen, bias = (float(v.replace("−", "-")) for v in re.findall(r"[−\d]+\.\d+", caption))
        assert total == pytest.approx(float(logits[k].detach()), abs=0.006)
        assert seen == pytest.approx(sum(parts), abs=0.006)
        assert seen + bias == pytest.approx(total, abs=0.016)
    line = np.array(drawn).reshape(28, 28)
    assert line[12:15, 2:26].min() > 200  # a stroke from one side to the other, through the middle
    assert line[:11].max() == line[17:].max() == 0
    assert above == drawn  # wherever it was drawn
    assert hidden == (type(model).__name__ == "MLP")  # a network has no templates
