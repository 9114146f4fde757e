"""The table of predictions, of whatever `predict_step` returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, TensorDataset

from softmax_regression.commands.columns import Columns, columns_of
from softmax_regression.commands.outputs import what_is_scored
from softmax_regression.commands.predictions import (
    PredictionTable,
    allow_positional_arguments,
    choose_path,
    forward_inputs_only,
)
from softmax_regression.errors import InputError
from softmax_regression.runs.folder import SavedCheckpoint


@dataclass
class Found:
    """As some packages return what a model has found."""

    label: Any
    box: Any


PROBABILITIES = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
OUTPUTS = {
    "class scores under the names of the classes": (
        PROBABILITIES,
        {"predicted": ["b", "a"], "a": ["0.25", "0.5"], "b": ["0.75", "0.5"]},
    ),
    "what a Classifier returns": (
        {"class": torch.tensor([1, 0]), "probability": torch.tensor([0.75, 0.5]), "probabilities": PROBABILITIES},
        {"predicted": ["b", "a"], "probability": ["0.750000", "0.500000"], "a": ["0.25", "0.5"], "b": ["0.75", "0.5"]},
    ),
    "a number an example": (torch.tensor([1.5, 2.5]), {"output": [1.5, 2.5]}),
    "an image an example": (
        torch.ones(2, 1, 1, 3),
        {"output.0": ["1", "1"], "output.1": ["1", "1"], "output.2": ["1", "1"]},
    ),
    "a dictionary": ({"mean": torch.tensor([1.0, 2.0])}, {"output.mean": [1.0, 2.0]}),
    "a tuple": ((torch.tensor([1, 2]), np.array([3, 4])), {"output.0": [1, 2], "output.1": [3, 4]}),
    "texts": (["cat", "dog"], {"output": ["cat", "dog"]}),
    "texts of NumPy": (np.array(["cat", "dog"]), {"output": ["cat", "dog"]}),
    "a dataclass": (Found(torch.tensor([3, 4]), None), {"output.label": [3, 4]}),
    "a dataclass an example": (
        [Found(3, torch.ones(1, 2)), Found(4, np.ones((0, 2)))],
        {"output.label": [3, 4], "output.box": ["[[1.0, 1.0]]", "[]"]},
    ),
    "one number a batch": (torch.tensor(3.0), {"output": [3.0]}),
    "a Python number": (3, {"output": [3]}),
    "nothing": (None, {}),
    "a tensor of another size an example": ([torch.tensor([1]), torch.tensor([])], {"output": ["[1]", "[]"]}),
    "what was found in each example": (
        [{"label": 3, "box": torch.ones(1, 2)}, {"label": 4, "box": np.ones((0, 2))}],
        {"output.label": [3, 4], "output.box": ["[[1.0, 1.0]]", "[]"]},
    ),
    "as many boxes in each example as there are examples": (
        [{"box": torch.ones(2, 1)}, {"box": torch.zeros(2, 1)}],
        {"output.box": ["[[1.0], [1.0]]", "[[0.0], [0.0]]"]},
    ),
    "what was found in each example, with parts": (
        [{"a": {"box": torch.ones(1, 2, dtype=torch.bfloat16)}}, (torch.eye(1), "x")],
        {"output.a": ['{"box": [[1.0, 1.0]]}', None], "output": [None, '[[[1.0]], "x"]']},
    ),
    "complex numbers an example": (
        [torch.tensor([1 + 2j]), torch.tensor([])],
        {"output": ['["(1+2j)"]', "[]"]},
    ),
    "a nested tensor": (
        {"at": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)},
        {"output.at": ["[1.0]", "[1.0, 1.0]"]},
    ),
    "a sparse tensor in a dictionary": (
        {"at": torch.eye(2, 2).to_sparse()},
        {"output.at.0": ["1", "0"], "output.at.1": ["0", "1"]},
    ),
    "a sparse tensor": (
        torch.eye(2, 3).to_sparse(),
        {"output.0": ["1", "0"], "output.1": ["0", "1"], "output.2": ["0", "0"]},
    ),
}


@pytest.mark.parametrize(("output", "columns"), OUTPUTS.values(), ids=OUTPUTS)
def test_every_output_has_columns(output: object, columns: Columns) -> None:
    assert columns_of(output, ["a", "b"], 2) == columns


def test_classes_without_names_have_columns_too() -> None:
    scored = {"class": torch.tensor([1]), "probability": torch.tensor([0.75]), "probabilities": PROBABILITIES[:1]}
    assert columns_of(scored, [], 1) == {"predicted": ["1"], "probability": ["0.750000"], "0": ["0.25"], "1": ["0.75"]}


class Loaders(LightningDataModule):
    """Two loaders by name, whose batch size has none; the names of the classes are a and b."""

    class_names = ("a", "b")

    def predict_dataloader(self) -> dict[str, DataLoader[Any]]:
        images = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        return {"easy": DataLoader(images, 2), "hard": DataLoader(images, 2)}


class Taken(Loaders):
    """Has the attributes of this project's data module, for something else."""

    data = photos = torch.ones(2)


def test_attributes_of_somebody_elses_data_module_are_not_taken_for_ours(tmp_path: Path) -> None:
    assert choose_path(tmp_path, None, False, Taken()) == tmp_path / "predictions.csv"
    assert PredictionTable(Taken()).photos is None
    assert what_is_scored(SavedCheckpoint(Path("x.ckpt"), {}, None), Taken()) == "checkpoint x.ckpt, data Taken"


class SomeBatches(LightningModule):
    """Predicts for batches of two examples: for each its inputs, then for both a text; else nothing."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if len(batch[0]) < 2:
            return None
        return "fine" if dataloader_idx else batch[0][:, :1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:predict returned None")
def test_rows_have_the_number_of_their_example_and_the_name_of_their_loader() -> None:
    data = Loaders()
    allow_positional_arguments(data)
    table = PredictionTable(data)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(callbacks=[table], **options).predict(SomeBatches(), data, return_predictions=False)
    assert table.rows == [
        {"index": 0, "dataloader": "easy", "label": "a", "output.0": "0"},
        {"index": 1, "dataloader": "easy", "label": "b", "output.0": "0"},
        {"index": 3, "dataloader": "hard", "output": "fine"},
    ]


class Chosen(SomeBatches):
    """Predicts for the examples of a batch that are larger than 1."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch[0][batch[0] > 1]


class Inputs(LightningModule):
    """Predicts its inputs."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch[0]


X = torch.arange(6.0)
LABELS = {
    "classes": ((X, X.long() % 2), [0, 1, 0, 1, 0, 1]),
    "classes behind the lengths of sequences": ((X, X.long() + 7, X.long() % 2), None),
    "classes behind numbers": ((X, X + 0.5, X.long() % 2), [0, 1, 0, 1, 0, 1]),
    "inputs alone": ((X.long(),), None),
}


def predicted_by(module: LightningModule, *tensors: torch.Tensor) -> list[dict[str, Any]]:
    """The rows of the table, for batches of three."""
    table = PredictionTable(None)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    loader = DataLoader(TensorDataset(*tensors), 3)
    Trainer(callbacks=[table], **options).predict(module, loader, return_predictions=False)
    return table.rows


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_predictions_of_some_examples_are_not_given_to_others() -> None:
    rows = predicted_by(Chosen(), X, X.long())
    assert rows == [{"index": 0, "output": 2.0}] + [
        {"index": 3 + i, "label": str(3 + i), "output": 3.0 + i} for i in range(3)
    ]
    assert [row["index"] for row in predicted_by(Chosen(), X[[0, 2, 3, 4, 1, 0]])] == [0, 0, 3]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(("tensors", "labels"), LABELS.values(), ids=LABELS)
def test_what_may_be_something_else_is_not_called_a_label(
    tensors: tuple[torch.Tensor, ...], labels: list[int] | None
) -> None:
    rows = predicted_by(Inputs(), *tensors)
    assert [row.get("label") for row in rows] == (list(map(str, labels)) if labels else [None] * 6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_module_that_cannot_predict_from_inputs_alone_is_asked_for_its_own_step() -> None:
    class Sequences(LightningModule):
        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return x / lengths

    module = Sequences()
    forward_inputs_only(module)
    with pytest.raises(InputError, match=r"Sequences: define predict_step; forward fails .* missing 1 required"):
        predicted_by(module, X, X)


class Pictures(Dataset[Any]):
    """Pictures of different sizes, with three channels."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 1, 1 + index)


class Detects(LightningModule):
    """Returns the boxes that it has found in each picture: as many as it is wide."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return [{"boxes": picture[0, 0, :, None]} for picture in batch]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_an_index_is_that_of_the_example_in_its_data_whatever_the_order_and_the_batch() -> None:
    table = PredictionTable(None)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    loaders = [DataLoader(Pictures(), 4, sampler=[4, 1, 0, 2, 3], collate_fn=list) for _ in range(2)]
    Trainer(callbacks=[table], **options).predict(Detects(), loaders, return_predictions=False)
    assert [row["index"] for row in table.rows] == [4, 1, 0, 2, 3, 9, 6, 5, 7, 8]
    assert [row["output.boxes"].count("0.0") for row in table.rows] == [5, 2, 1, 3, 4] * 2
