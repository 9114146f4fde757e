"""A checkpoint as ONNX, and as a web page that runs it in the browser.

Source: the operators of ONNX, https://onnx.ai/onnx/operators/.
Command: python study.py export RUN
"""

import json
import sys
from base64 import b64encode
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from softmax_regression.data import module as data
from softmax_regression.data.files import CLASSES, DIRS, Dataset
from softmax_regression.errors import InputError
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs import checkpoint
from softmax_regression.runs.folder import find_run, open_model

try:
    import onnxruntime
    from onnx import TensorProto, checker, helper, numpy_helper
except ImportError as error:
    raise InputError(f'export: {error}; install it with `pip install -e ".[export]"`') from error

TOLERANCE = 1e-5  # of a probability
EXAMPLES = 2  # test images of each class on the page
_OPSET, _IR_VERSION = 17, 8  # of 2022: what the nodes need, for old runtimes too


def run(
    which: str,
    out: Path | None = None,
    source: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    dirs: Sequence[str] = DIRS,
) -> Path:
    """Write model.onnx (uint8 images), model-float.onnx (float32 in [0, 1]) and index.html, and verify them.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder to write into; by default `export` in the run's folder.
        source: What to compare on: `fashion-mnist`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the data in.

    Returns:
        The path of the page.

    Raises:
        InputError: There is no such checkpoint, or no data, or no such folder can be made.
        StorageError: A file could not be written.
        RuntimeError: ONNX Runtime does not predict what the checkpoint does.
    """
    path, model = open_model(which)
    dataset = data.load(source, dirs)
    folder = find_run(path)
    name = str(path.relative_to(folder.parent)) if folder else path.name
    out = out or (folder or Path("logs")) / "export"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot make this folder ({error.strerror}); choose another by --out"
        ) from error
    images = dataset.test_images
    with torch.no_grad():
        expected = model(images).softmax(1)
    for file, given in (("model.onnx", images), ("model-float.onnx", images / 255)):
        checkpoint.write(to_onnx(model, given.is_floating_point(), name), out / file)
        compare(out / file, given, expected)
    checkpoint.write(to_page(model, dataset, name).encode(), out / "index.html")
    return out / "index.html"


def to_onnx(model: SoftmaxRegression, floating: bool, name: str) -> bytes:
    """Return the model as ONNX: `images` (n, 28, 28) -> `probabilities` and `logits`, both (n, 10) float32.

    Node by node, for they are few: torch.onnx would need the package onnxscript.

    Args:
        model: The model.
        floating: Whether images are float32 in [0, 1], instead of uint8 in 0..255: an input has one type.
        name: The checkpoint, for the metadata.
    """
    scale = [
        helper.make_node("Cast", ["images"], ["brightness"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["brightness", "white"], ["pixels"]),
    ]
    nodes = [
        *([] if floating else scale),
        helper.make_node("Flatten", ["images" if floating else "pixels"], ["x"], axis=1),  # (n, 784)
        helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {"weight": model.linear.weight.detach(), "bias": model.linear.bias.detach()}
    constants |= {} if floating else {"white": torch.tensor(255.0)}
    kind = TensorProto.FLOAT if floating else TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "softmax_regression",
        [helper.make_tensor_value_info("images", kind, ["n", 28, 28])],
        [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", len(CLASSES)])
            for output in ("probabilities", "logits")
        ],
        [numpy_helper.from_array(value.numpy(), key) for key, value in constants.items()],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    project = f"softmax-regression {version('softmax-regression')}"
    helper.set_model_props(
        proto, {"class_names": json.dumps(CLASSES), "project": project, "checkpoint": name}
    )
    checker.check_model(proto, full_check=True)
    serialized: bytes = proto.SerializeToString()
    return serialized


def compare(file: Path, images: Tensor, expected: Tensor) -> None:
    """Run a file on images (n, 28, 28), and print how far it is from the expected probabilities (n, 10).

    Raises:
        RuntimeError: By more than `TOLERANCE`, or in a class.
    """
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probabilities = torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])
    difference = float((probabilities - expected).abs().max())
    classes = int((probabilities.argmax(1) != expected.argmax(1)).sum())
    text = f"{file.name}: {len(images)} test images, {classes} in another class than by the checkpoint"
    text += f", probabilities at most {difference:.1e} apart"
    if classes or not difference <= TOLERANCE:
        raise RuntimeError(text)
    print(text, file=sys.stderr)


def to_page(model: SoftmaxRegression, dataset: Dataset, name: str) -> str:
    """Return the page, with the weights and some test images of each class in it."""
    labels = dataset.test_labels
    chosen = torch.cat([(labels == k).nonzero()[:EXAMPLES, 0] for k in range(len(CLASSES))])
    values = {
        "classes": CLASSES,
        "checkpoint": name,
        "weight": _base64(model.linear.weight.detach(), "<f4"),
        "bias": _base64(model.linear.bias.detach(), "<f4"),
        "images": _base64(dataset.test_images[chosen], "u1"),
        "labels": labels[chosen].tolist(),
    }
    template = Path(__file__).with_name("export.html").read_text(encoding="utf-8")
    return template.replace("{{model}}", json.dumps(values).replace("<", r"\u003c"))  # no tag from a name


def _base64(values: Tensor, dtype: str) -> str:
    return b64encode(values.numpy().astype(dtype).tobytes()).decode()
