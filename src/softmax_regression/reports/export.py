"""Export a checkpoint to ONNX, and to a web page that runs the model in the browser.

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
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from softmax_regression.data.datasets import Dataset
from softmax_regression.data.module import FashionMNISTDataModule, class_names_of
from softmax_regression.errors import InputError
from softmax_regression.experiment.opening import OpenedRun, held_out_loader, open_run
from softmax_regression.figures.drawings import PRODUCER
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.figures.predictions import names_of_classes
from softmax_regression.figures.scoring import inputs_and_labels, is_logits
from softmax_regression.files import reason, write
from softmax_regression.runs.folder import open_checkpoint

try:
    import onnxruntime
    import onnxscript  # noqa: F401 (torch.onnx imports it)
    from onnx import helper
except ImportError as error:
    raise InputError(f'export: {error}; install it with `pip install -e ".[export]"`') from error

FILES = ("model.onnx", "model-float.onnx", "index.html")
BATCH = 1000  # images that are compared at a time
TOLERANCE = 1e-5  # largest difference of a probability
EXAMPLES = 2  # test images of each class on the page


class _Exported(nn.Module):
    """The exported module: it returns the probabilities and logits, (n, k) each, of inputs (n, ...).

    With `grey`, inputs are images (n, 28, 28), uint8 or float32 in [0, 1], and the model takes (n, 1, 28, 28).
    """

    def __init__(self, model: nn.Module, grey: bool) -> None:
        super().__init__()
        self.model = model
        self.grey = grey

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not images.is_floating_point():
            images = images / 255
        if self.grey:
            images = images[:, None]
        logits = self.model(images)
        return logits.softmax(1), logits


def run(which: str, out: Path | None = None, dirs: Sequence[str] | None = None, force: bool = False) -> Path:
    """Export a classifier to ONNX, and compare the result with its checkpoint on test images.

    With this project's data, model.onnx takes uint8 images and model-float.onnx float32 images in [0, 1], and there is
    a page if the model consists of linear layers. With other data, model.onnx takes the inputs of the test batches.

    An InputError says that there is no such checkpoint, that its data cannot be loaded, or why it cannot be exported.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder to write into; None for `export` in the run's folder.
        dirs: Folders to look for the data in; None for those of the run.
        force: Replace files that this project did not write.
    """
    path, _, folder = open_checkpoint(which)
    out = out or Path(folder or "logs", "export")
    for file in FILES:
        check_output(out / file, force)
    opened = open_run(str(path), dirs=dirs)
    checkpoint = str(path.relative_to(folder.parent)) if folder else path.name
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a compiled model cannot be exported
        return _export(opened, out, checkpoint)


def _export(opened: OpenedRun, out: Path, checkpoint: str) -> Path:
    """Write the files; return the path of the page or, if there is none, of the ONNX file."""
    model = opened.model.cpu()
    kind = type(model).__name__
    data = _own_images(opened)
    images = data.test_images if data else _test_inputs(opened)
    inputs = {"model.onnx": images}
    if data:
        inputs["model-float.onnx"] = images / 255
    exported = _Exported(model, grey=data is not None).eval()
    try:
        expected = torch.cat([exported(part)[0] for part in images.split(BATCH)])  # probabilities (n, k)
        if not is_logits(expected, images):
            raise InputError(f"it returns {tuple(expected.shape)} of {tuple(images.shape)}")
        names = names_of_classes(class_names_of(opened.data), expected.shape[1])
        contents = {file: to_onnx(exported, each[:2], names, checkpoint) for file, each in inputs.items()}
    except Exception as error:  # the model may be any module
        why = reason(error)[:200]
        raise InputError(f"{kind}: no classifier of images that torch.onnx can export ({why})") from error
    for file, content in contents.items():
        compare(file, content, inputs[file], expected)
    for file, content in contents.items():
        write(content, out / file)
    if data:
        layers = layers_of(model, images / 255, expected)
        if layers:
            return to_page(out, layers, data, names, checkpoint)
    words = "no page: it runs linear layers with ReLU between, of 28 x 28 grey pixels"
    print(f"{words}; {kind}\nis not of that kind", file=sys.stderr)
    return out / FILES[0]


def _own_images(opened: OpenedRun) -> Dataset | None:
    """Return the images of this project's data module; None if a subclass overrides `test_dataloader`."""
    data = opened.data
    if not isinstance(data, FashionMNISTDataModule) or is_overridden("test_dataloader", data, FashionMNISTDataModule):
        return None
    return data.loaded


def _test_inputs(opened: OpenedRun) -> Tensor:
    """Return inputs (n, ...) of the first test batches or, if there are none, of validation batches."""
    parts: list[Tensor] = []
    try:
        loader = held_out_loader(opened, "test")
        if loader is None:
            loader = held_out_loader(opened, "val")
        if loader is None:
            raise InputError("the data have neither test nor validation batches")
        for batch in loader:
            moved = opened.trainer.strategy.batch_to_device(batch, torch.device("cpu"))
            parts.append(inputs_and_labels(moved)[0])
            if sum(map(len, parts)) >= BATCH:
                break
        return torch.cat(parts)[:BATCH]
    except Exception as error:  # the data module may be any
        why = reason(error)[:200]
        raise InputError(f"{opened.checkpoint.path}: has no test batches to compare the export with ({why})") from error


def to_onnx(exported: nn.Module, images: Tensor, names: Sequence[str], checkpoint: str) -> bytes:
    """Return the bytes of an ONNX file: `images` (n, 28, 28), of the dtype of `images` -> `probabilities`, `logits`."""
    with warnings.catch_warnings(action="ignore"):  # torch warns about its own code
        program = torch.onnx.export(
            exported,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities", "logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    proto = program.model_proto  # type: ignore[union-attr]
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # source lines, with paths of this machine
    proto.producer_name = PRODUCER
    helper.set_model_props(proto, {"class_names": json.dumps(names), "checkpoint": checkpoint})
    return bytes(proto.SerializeToString())


def compare(name: str, content: bytes, images: Tensor, expected: Tensor) -> None:
    """Compare the probabilities of an ONNX file with those of the checkpoint, (n, k), and print the difference.

    Raises:
        InputError: It is larger than `TOLERANCE`.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"images": part.numpy()})[0] for part in images.split(BATCH)]
    found = torch.cat(list(map(torch.from_numpy, parts)))
    difference = (found - expected).abs().max()
    others = (found.argmax(1) != expected.argmax(1)).sum()
    text = f"{name}: {len(images)} test images, {others} in another class, at most {difference:.0e} apart"
    if not difference <= TOLERANCE:
        raise InputError(f"{text}: it is not written, for it does not predict what the checkpoint does")
    print(text, file=sys.stderr)


def layers_of(model: nn.Module, images: Tensor, expected: Tensor) -> list[nn.Linear]:
    """Return the linear layers of a model if, with ReLU between them, they alone give its predictions; else []."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module.bias is not None]
    logits = x = images.flatten(1)
    for layer in layers:
        if layer.in_features != x.shape[1]:
            return []
        logits = layer(x)
        x = logits.relu()
    same = logits.shape == expected.shape and (logits.softmax(1) - expected).abs().max() <= TOLERANCE
    return layers if same else []


def to_page(out: Path, layers: Sequence[nn.Linear], data: Dataset, names: Sequence[str], checkpoint: str) -> Path:
    """Write the page, which contains the weights and some test images of each class."""
    labels = data.test_labels
    chosen = torch.cat([(labels == k).nonzero()[:EXAMPLES, 0] for k in labels.unique()])
    weights = [[_base64(layer.weight, "<f4"), _base64(layer.bias, "<f4")] for layer in layers]
    examples = {"images": _base64(data.test_images[chosen], "u1"), "labels": labels[chosen].tolist()}
    model = {"classes": names, "checkpoint": checkpoint, "layers": weights, **examples}
    return write_page(out, Path(__file__).with_name("export.html"), {}, model=model)


def _base64(values: Tensor, dtype: str) -> str:
    return b64encode(values.detach().numpy().astype(dtype).tobytes()).decode()
