"""An exported model predicts what its checkpoint does, in ONNX Runtime and in a browser."""

import io
import json
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from commands import fit, one_line, only_run
from softmax_regression.commands.study import main
from softmax_regression.data import files as fashion_mnist
from softmax_regression.data.files import CLASSES, Dataset
from softmax_regression.data.photos import to_fashion_mnist
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.folder import open_model

onnx = pytest.importorskip("onnx", reason='needs the extra `export`: pip install -e ".[export]"')
onnxruntime = pytest.importorskip(
    "onnxruntime", reason='needs the extra `export`: pip install -e ".[export]"'
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run; read only, please."""
    logs = tmp_path_factory.mktemp("logs")
    assert fit(f"--trainer.logger.save_dir={logs}") == 0
    return only_run(logs)


@pytest.fixture
def model(trained: Path) -> SoftmaxRegression:
    return open_model(str(trained))[1].requires_grad_(False)


@pytest.fixture
def dataset(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What the command line finds as Fashion-MNIST; 100 test images."""
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tiny))
    return fashion_mnist.load()


@pytest.fixture
def exported(trained: Path, dataset: Dataset, tmp_path: Path) -> Path:
    assert main(["export", str(trained), "--out", str(tmp_path / "new" / "export")]) == 0
    return tmp_path / "new" / "export"


def probabilities(model: SoftmaxRegression, images: Tensor) -> NDArray[np.float64]:
    """In float64 throughout."""
    found: NDArray[np.float64] = model.double()(images.double() / 255).softmax(1).numpy()
    return found


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("file", ["model.onnx", "model-float.onnx"])
def test_onnx_predicts_what_the_checkpoint_does(
    file: str, n: int, exported: Path, model: SoftmaxRegression, dataset: Dataset
) -> None:
    session = onnxruntime.InferenceSession(exported / file)
    images = dataset.test_images[:n]
    given = images if file == "model.onnx" else images / 255
    found, logits = session.run(["probabilities", "logits"], {"images": given.numpy()})
    assert found.shape == logits.shape == (n, len(CLASSES))
    assert found.dtype == np.float32
    np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-4)
    np.testing.assert_allclose(found, probabilities(model, images), rtol=0, atol=1e-5)


def test_onnx_says_what_it_is(exported: Path, trained: Path) -> None:
    meta = onnxruntime.InferenceSession(exported / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(meta["class_names"]) == list(CLASSES)
    assert meta["project"].startswith("softmax-regression ")
    assert meta["checkpoint"] == f"{trained.name}/checkpoints/best.ckpt"
    assert str(trained.parent) not in (exported / "index.html").read_text()


def test_a_file_that_predicts_otherwise_is_a_bug(
    exported: Path, model: SoftmaxRegression, dataset: Dataset
) -> None:
    from softmax_regression.studies.export import compare

    expected = model(dataset.test_images).softmax(1)
    compare(exported / "model.onnx", dataset.test_images, expected)
    for wrong in (expected + 2e-5, expected.roll(1, 1), expected * torch.nan):
        with pytest.raises(RuntimeError, match="apart"):
            compare(exported / "model.onnx", dataset.test_images, wrong)


def test_by_default_the_export_lies_in_the_folder_of_the_run(
    trained: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["export", str(run / "checkpoints" / "last.ckpt")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run / 'export' / 'index.html'}\n"
    assert [line.split(":")[0] for line in err.splitlines()] == ["model.onnx", "model-float.onnx"]
    assert {file.name for file in (run / "export").iterdir()} == {
        "index.html", "model.onnx", "model-float.onnx",
    }  # fmt: skip


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "softmax_regression.studies.export", raising=False)
    assert main(["export", "best"]) == 2
    assert 'pip install -e ".[export]"' in one_line(capsys)


def test_a_damaged_checkpoint_is_refused(
    trained: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((trained / "checkpoints" / "best.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.ckpt").write_bytes(data)
    assert main(["export", str(tmp_path / "damaged.ckpt"), "--out", str(tmp_path / "export")]) == 2
    assert "damaged" in one_line(capsys)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("words", [[], ["absent.ckpt"], ["one", "two"]], ids=str)
def test_exactly_one_checkpoint_is_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words]) == 2
    one_line(capsys)


def test_a_folder_that_cannot_be_made_is_one_line(
    trained: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["export", str(trained), "--out", str(tmp_path / "file" / "export")]) == 2
    assert "--out" in one_line(capsys)


def test_the_page_is_whole_and_asks_nothing_of_the_network(exported: Path) -> None:
    page = (exported / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "{{" not in page
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page)


def test_no_name_of_a_run_becomes_a_tag(model: SoftmaxRegression, dataset: Dataset) -> None:
    from softmax_regression.studies.export import to_page

    evil, plain = to_page(model, dataset, "</script><script>alert(1)"), to_page(model, dataset, "plain")
    assert evil.count("<script") == plain.count("<script")
    assert evil.count("</script") == plain.count("</script")


def in_browser(page: Path, script: str, folder: Path) -> Any:
    """What the body of an async function, added to a copy of the page, returns as JSON."""
    copy = folder / "copy.html"
    # The timer keeps virtual time from running out while a picture is decoded, which takes real time.
    added = f"""<script>const waiting = setInterval(() => {{}}, 1);
        (async () => {{ {script} }})().catch(String).then(value => {{
            element("pre", document.body, {{id: "result", textContent: JSON.stringify(value)}});
            clearInterval(waiting);
        }});</script>"""
    copy.write_text(page.read_text(encoding="utf-8") + added, encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=1000000",
    ]  # fmt: skip
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=100
    )
    found = re.search('<pre id="result">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1])


def encoded(data: bytes) -> str:
    return json.dumps(b64encode(data).decode())


@needs_browser
def test_the_page_predicts_what_the_checkpoint_does(
    exported: Path, model: SoftmaxRegression, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.test_images[:100]
    script = f"""const given = bytes({encoded(images.numpy().tobytes())}), found = [];
        for (let i = 0; i < given.length; i += 784) found.push(window.probabilities(given.slice(i, i + 784)));
        return found;"""
    found = np.array(in_browser(exported / "index.html", script, tmp_path))
    assert found.shape == (100, len(CLASSES))
    np.testing.assert_allclose(found, probabilities(model, images), rtol=0, atol=1e-5)


@needs_browser
def test_the_page_takes_pictures_nearly_as_predict_does(
    exported: Path, dataset: Dataset, tmp_path: Path
) -> None:
    image = Image.fromarray(dataset.test_images[0].numpy())
    large = image.resize((336, 336), Image.Resampling.BICUBIC)
    photo = Image.new("RGB", (600, 500), "white")
    photo.paste((30, 60, 90), (50, 60), large)
    pictures = [image, Image.eval(image, lambda v: 255 - v), photo]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append(encoded(buffer.getvalue()))
    script = f"""const found = [];
        for (const file of [{", ".join(files)}]) found.push([...await fromPicture(new Blob([bytes(file)]))]);
        await read(new File(["no picture"], "notes.txt"));
        return [found, byId("answer").textContent];"""
    found, message = in_browser(exported / "index.html", script, tmp_path)
    for pixels, picture, most in zip(found, pictures, (0, 0, 4), strict=True):
        expected = to_fashion_mnist(picture).flatten().double().numpy()
        assert np.abs(np.array(pixels) - expected).mean() <= most
    assert message.startswith("notes.txt: cannot be used (")


@needs_browser
def test_the_page_shows_the_answer_and_explains_the_class_that_is_clicked(
    exported: Path, model: SoftmaxRegression, dataset: Dataset, tmp_path: Path
) -> None:
    script = """byId("examples").children[7].click();
        const bars = [...byId("bars").children], example = [...image];
        const other = bars.findIndex(bar => bar.className !== "max");
        bars[other].click();
        const best = bars.findIndex(bar => bar.className === "max");
        const captions = [...document.querySelectorAll("#maps figcaption")].map(c => c.textContent);
        const frame = pad.getBoundingClientRect();
        const drawn = [];
        for (const y of [140, 40]) {
            byId("clear").click();
            last = null;
            for (const x of [70, 210]) await draw({clientX: frame.left + x, clientY: frame.top + y});
            drawn.push([...image]);
        }
        return [example, best, other, captions, ...drawn];"""
    example, best, other, captions, drawn, above = in_browser(exported / "index.html", script, tmp_path)
    x = torch.tensor(example, dtype=torch.uint8).view(1, 28, 28)
    assert any(torch.equal(x[0], image) for image in dataset.test_images)
    logits = model(x)[0]
    assert best == logits.argmax()
    for caption, k in zip(captions, (best, other), strict=True):
        assert caption.startswith(CLASSES[k])
        total, pixels, bias = (float(v.replace("−", "-")) for v in re.findall(r"[−\d]+\.\d+", caption))
        assert total == pytest.approx(float(logits[k]), abs=0.006)
        assert pixels + bias == pytest.approx(total, abs=0.016)
    line = np.array(drawn).reshape(28, 28)
    assert line[12:15, 2:26].min() > 200  # a stroke from one side to the other, through the middle
    assert line[:11].max() == line[17:].max() == 0
    assert above == drawn  # wherever it was drawn
