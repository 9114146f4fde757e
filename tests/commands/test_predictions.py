"""The table of predictions, of whatever `predict_step` returns."""

import numpy as np
import pytest
import torch

from softmax_regression.commands.predictions import Columns, columns_of

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
    "one number a batch": (torch.tensor(3.0), {"output": [3.0]}),
    "a Python number": (3, {"output": [3]}),
    "nothing": (None, {}),
}


@pytest.mark.parametrize(("output", "columns"), OUTPUTS.values(), ids=OUTPUTS)
def test_every_output_has_columns(output: object, columns: Columns) -> None:
    assert columns_of(output, ["a", "b"]) == columns
