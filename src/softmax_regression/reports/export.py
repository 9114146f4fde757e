"""A checkpoint as ONNX, and as a web page that runs it in the browser.

Source: torch.onnx, https://docs.pytorch.org/docs/stable/onnx.html.
Command: python study.py export RUN
"""

import json
import sys
import warnings
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from softmax_regression.data.datasets import Dataset
from softmax_regression.errors import InputError
from softmax_regression.figures.drawings import PRODUCER
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.files import reason, write
from softmax_regression.runs.folder import find_run, open_data, open_model

try:
    import onnxruntime
    import onnxscript  # noqa: F401 (torch.onnx needs it)
    from onnx import helper
except ImportError as error:
    raise InputError(f'export: {error}; install it with `pip install -e ".[export]"`') from error

FILES = ("model.onnx", "model-float.onnx", "index.html")
TOLERANCE, EXAMPLES = 1e-5, 2  # of a probability; test images of each class on the page


class _Exported(nn.Module):
    """Images (n, 28, 28), uint8 or float32 in [0, 1] -> probabilities and logits of a model, (n, k) each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model((images if images.is_floating_point() else images / 255)[:, None])
        return logits.softmax(1), logits


@torch.no_grad()
def run(which: str, out: Path | None = None, dirs: Sequence[str] | None = None, force: bool = False) -> Path:
    """Write model.onnx (uint8 images), model-float.onnx (float32 in [0, 1]) and a page if that can run it.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder to write into; None for `export` in the run's folder.
        dirs: Folders to look for the data in; None for those of the run.
        force: Let it replace files of somebody else's.

    Raises:
        InputError: There is no such checkpoint, it cannot be exported or written, or its data cannot be had.
    """
    path, model = open_model(which)
    folder, kind = find_run(path), type(model).__name__
    out = out or Path(folder or "logs", "export")
    for file in FILES:
        check_output(out / file, force)
    data: Dataset | None = getattr(open_data(path, dirs), "loaded", None)
    if data is None:
        raise InputError(f"{path}: was trained on no data of this project to compare with; train it on them")
    images, name = data.test_images, str(path.relative_to(folder.parent)) if folder else path.name
    exported, given = _Exported(model).eval(), (images, images / 255)
    try:
        expected = torch.cat([exported(part)[0] for part in images.split(1000)])
        k = expected.shape[1]
        names = data.class_names if len(data.class_names) == k else [str(i) for i in range(k)]
        contents = [to_onnx(exported, each[:2], names, name) for each in given]
    except Exception as error:  # of anybody's model
        why = reason(error)[:200]
        raise InputError(f"{kind}: no classifier of images that torch.onnx can export ({why})") from error
    for file, content, each in zip(FILES, contents, given, strict=False):
        compare(file, content, each, expected)
        write(content, out / file)
    if layers := layers_of(model, given[1], expected):
        return to_page(out, layers, data, names, name)
    print(f"no page: it runs linear layers with ReLU between, and {kind} has others", file=sys.stderr)
    return out / FILES[0]


def to_onnx(exported: nn.Module, images: Tensor, names: Sequence[str], checkpoint: str) -> bytes:
    """Return ONNX: `images` (n, 28, 28), of the type of those given -> `probabilities`, `logits` (n, k)."""
    with warnings.catch_warnings(action="ignore"):  # of torch about itself
        program = torch.onnx.export(
            exported, (images,), dynamo=True, verbose=False, input_names=["images"],
            output_names=["probabilities", "logits"], dynamic_shapes=({0: torch.export.Dim("n")},),
        )  # fmt: skip
    proto = program.model_proto  # type: ignore[union-attr]
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # lines of source, and where they lie on this machine
    proto.producer_name = PRODUCER
    helper.set_model_props(proto, {"class_names": json.dumps(names), "checkpoint": checkpoint})
    return bytes(proto.SerializeToString())


def compare(name: str, content: bytes, images: Tensor, expected: Tensor) -> None:
    """Print how far ONNX is from the expected probabilities (n, k) of images (n, 28, 28), if not far."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = (session.run(None, {"images": x.numpy()}) for x in images.split(1000))
    found = torch.cat([torch.from_numpy(probabilities) for probabilities, _ in outputs])
    difference, others = (found - expected).abs().max(), (found.argmax(1) != expected.argmax(1)).sum()
    apart = f"{others} in another class than by the checkpoint, probabilities at most {difference:.1e} apart"
    text = f"{name}: {len(images)} test images, {apart}"
    if not difference <= TOLERANCE:
        raise RuntimeError(text)
    print(text, file=sys.stderr)


def layers_of(model: nn.Module, images: Tensor, expected: Tensor) -> list[nn.Linear]:
    """Return the layers of a model that predicts as they alone do, with ReLU between; of another one none."""
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) and each.bias is not None]
    x = images.flatten(1)
    for i, layer in enumerate(layers):
        if layer.in_features != x.shape[1]:
            return []
        x = layer(x.relu() if i else x)
    same = x.shape == expected.shape and (x.softmax(1) - expected).abs().max() <= TOLERANCE
    return layers if same else []


def to_page(out: Path, layers: Sequence[nn.Linear], data: Dataset, names: Sequence[str], checkpoint: str) -> Path:
    """Write the page, with the weights and some test images of each class in it."""
    labels = data.test_labels
    chosen = torch.cat([(labels == k).nonzero()[:EXAMPLES, 0] for k in labels.unique()])
    weights = [[_base64(layer.weight, "<f4"), _base64(layer.bias, "<f4")] for layer in layers]
    examples = {"images": _base64(data.test_images[chosen], "u1"), "labels": labels[chosen].tolist()}
    model = {"classes": names, "checkpoint": checkpoint, "layers": weights, **examples}
    return write_page(out, Path(__file__).with_name("export.html"), {}, model=model)


def _base64(values: Tensor, dtype: str) -> str:
    return b64encode(values.detach().numpy().astype(dtype).tobytes()).decode()
