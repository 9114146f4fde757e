"""Export a checkpoint to ONNX, and to a web page that runs the model in the browser.

Source: torch.onnx, https://docs.pytorch.org/docs/stable/onnx.html.
Command: python study.py export RUN
"""

import io
import json
import sys
import warnings
from base64 import b64encode
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn

from softmax_regression.data.datasets import Dataset
from softmax_regression.data.minibatches import to_float_images
from softmax_regression.data.module import class_names_of, loaded_images
from softmax_regression.errors import InputError
from softmax_regression.experiment.opening import OpenedRun, held_out_loader, open_run
from softmax_regression.figures.drawings import PRODUCER
from softmax_regression.figures.page import check_output, write_page
from softmax_regression.figures.predictions import names_of_classes
from softmax_regression.figures.scoring import are_probabilities, as_in_a_step, inputs_and_labels, is_logits
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
HALF_OR_DOUBLE = ("16-true", "bf16-true", "64-true")  # of the Trainer's precision; ONNX has 32 bits
STAGE_NAMES = {"test": "test", "val": "validation"}
EXAMPLES = 2  # test images of each class on the page


class _Exported(nn.Module):
    """The exported module: it returns the probabilities and logits, (n, k) each, of inputs (n, ...).

    With `grey`, inputs are images (n, 28, 28), uint8 or float32 in [0, 1], and the model takes (n, 1, 28, 28) in
    [0, 1]. With `normalized`, the model itself returns probabilities.
    """

    normalized = False

    def __init__(self, model: nn.Module, grey: bool) -> None:
        super().__init__()
        self.model = model
        self.grey = grey

    def output(self, images: Tensor) -> Tensor:
        """Return what the model returns."""
        if self.grey and not images.is_floating_point():
            images = images / 255
        if self.grey:
            images = images[:, None]
        output: Tensor = self.model(images)
        return output

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.output(images)
        if self.normalized:
            logits = logits.log()
        return logits.softmax(1), logits


def run(which: str, out: Path | None = None, dirs: Sequence[str] | None = None, force: bool = False) -> Path:
    """Export a classifier to ONNX, and compare the result with its checkpoint on test images.

    With this project's data, model.onnx takes uint8 images and model-float.onnx float32 images in [0, 1], and there is
    a page if the model consists of linear layers. With other data, or hooks that change the batches, model.onnx takes
    the inputs of the test batches, as the model is given them.

    An InputError says that there is no such checkpoint, that its data cannot be loaded, or why it cannot be exported.

    Args:
        which: A run's folder, a .ckpt file, or `best` or `last` of the newest run.
        out: Folder to write into; null for `export` in the run's folder.
        dirs: Folders to look for the data in; null for those of the run.
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
    stage, images = _held_out_inputs(opened)
    if opened.trainer.precision in HALF_OR_DOUBLE:
        model.float()
        if images.is_floating_point():
            images = images.float()
    data = _own_images(opened, images)
    inputs = {"model.onnx": images}
    if data:
        images = data.test_images
        inputs = {"model.onnx": images, "model-float.onnx": images / 255}
    exported = _Exported(model, grey=data is not None).eval()
    try:
        outputs = torch.cat([exported.output(part) for part in images.split(BATCH)])
        if not is_logits(outputs, images):
            raise ValueError(f"it returns {tuple(outputs.shape)} of {tuple(images.shape)}")
        exported.normalized = are_probabilities(outputs)
        expected = outputs  # probabilities (n, k)
        if not exported.normalized:
            expected = outputs.softmax(1)
        names = names_of_classes(class_names_of(opened.data), expected.shape[1])
        contents = {file: to_onnx(exported, each[:2], names, checkpoint) for file, each in inputs.items()}
        for file, content in contents.items():
            compare(file, content, inputs[file], expected, stage)
    except InputError:
        raise
    except Exception as error:  # the model may be any module
        why = reason(error.__cause__ or error)[:200]  # torch.onnx hides the reason behind advice
        raise InputError(f"{kind}: no classifier of images that torch.onnx can export ({why})") from error
    for file, content in contents.items():
        write(content, out / file)
    if data:
        layers = layers_of(model, images / 255, expected)
        if layers:
            return to_page(out, layers, data, names, checkpoint)
    print(f"no page: {kind} is not linear layers with ReLU between, on 28 x 28 grey pixels", file=sys.stderr)
    return out / FILES[0]


def _own_images(opened: OpenedRun, inputs: Tensor) -> Dataset | None:
    """Return the images of this project's data module if they are the test inputs (n, ...), which no hook changes."""
    data = loaded_images(opened.data)
    if data is None:
        return None
    expected = to_float_images(data.test_images[: len(inputs)])
    same = inputs.shape == expected.shape and torch.allclose(inputs, expected, atol=0.005)  # in half precision
    return data if same else None


def _held_out_inputs(opened: OpenedRun) -> tuple[str, Tensor]:
    """Return `test` and inputs (n, ...) of the first test batches or, without a loader of these, `val` and theirs."""
    parts: list[Tensor] = []
    try:
        stage, loader = "test", held_out_loader(opened, "test")
        if loader is None:
            stage, loader = "val", held_out_loader(opened, "val")
        if loader is None:
            raise InputError("the data have neither test nor validation batches")
        for batch in loader:
            moved = as_in_a_step(opened.trainer, opened.model, batch, torch.device("cpu"))
            parts.append(inputs_and_labels(moved)[0])
            if sum(map(len, parts)) >= BATCH:
                break
        return stage, torch.cat(parts)[:BATCH]
    except Exception as error:  # the data module may be any
        why = reason(error)[:200]
        path = opened.checkpoint.path
        raise InputError(f"{path}: its data have no batches that the export can be compared on ({why})") from error


def to_onnx(exported: nn.Module, images: Tensor, names: Sequence[str], checkpoint: str) -> bytes:
    """Return the bytes of an ONNX file: `images` (n, 28, 28), of the dtype of `images` -> `probabilities`, `logits`."""
    with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):  # torch talks about its own code
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


def compare(name: str, content: bytes, images: Tensor, expected: Tensor, stage: str = "test") -> None:
    """Compare the probabilities of an ONNX file with those of the checkpoint, (n, k), and print the difference.

    Raises:
        InputError: It is larger than `TOLERANCE`.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    parts = [session.run(["probabilities"], {"images": part.numpy()})[0] for part in images.split(BATCH)]
    found = torch.cat(list(map(torch.from_numpy, parts)))
    difference = (found - expected).abs().max()
    others = (found.argmax(1) != expected.argmax(1)).sum()
    held_out = f"{len(images)} {STAGE_NAMES[stage]} images"
    text = f"{name}: {held_out}, {others} in another class, at most {difference:.0e} apart"
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
