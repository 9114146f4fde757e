"""What `predict_step` of any model has returned for a batch, as columns of a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmax_regression.figures.predictions import names_of_classes

Columns = dict[str, list[Any]]
JSON_KINDS = (str, int, float, list, tuple, dict, type(None))


def columns_of(output: Any, class_names: Sequence[str], n: int) -> Columns:
    """Return what `predict_step` returned for a batch of n examples, as columns of n values.

    Args:
        output: A tensor (n, ...), or a dictionary, tuple or list of such tensors; or a list with an element for each
            example: a value, a tensor of any shape, or a dictionary of them.
        class_names: If the output has as many columns, these are their names, and the largest is the prediction.
        n: The number of examples, 0 if it is not known.
    """
    if isinstance(output, Mapping) and output.keys() == {"class", "probability", "probabilities"}:  # of a Classifier
        predicted = names_of(output["class"].tolist(), class_names)
        probability = [f"{value:.6f}" for value in output["probability"].tolist()]
        probabilities = output["probabilities"]
        names = names_of_classes(class_names, probabilities.shape[1])
        return {"predicted": predicted, "probability": probability, **_numbers(probabilities, names)}
    if isinstance(output, Tensor) and not output.is_nested and output.ndim == 2 and output.shape[1] == len(class_names):
        output = _dense(output)
        predicted = names_of(output.argmax(1).tolist(), class_names)
        return {"predicted": predicted, **_numbers(output, class_names)}
    return _nested_columns(output, "output", n)


def _nested_columns(output: Any, name: str, n: int) -> Columns:
    """Return the columns of nested dictionaries, tuples or lists of tensors, named by their keys and positions."""
    if output is None:
        return {}
    if isinstance(output, Tensor) and output.is_nested:
        output = list(output.unbind())
    if is_dataclass(output):
        output = vars(output)
    if isinstance(output, np.ndarray | np.generic) and output.dtype.kind not in "biufc":  # texts
        output = output.tolist()
    if isinstance(output, list | tuple):
        if _is_by_example(output, n):
            return _columns_by_example(output, name)
        if not output or not isinstance(output[0], Tensor | np.ndarray | Mapping | list | tuple):
            return {name: list(output)}
        output = dict(enumerate(output))
    if isinstance(output, Mapping):
        columns: Columns = {}
        for key, value in output.items():
            columns |= _nested_columns(value, f"{name}.{key}", n)
        return columns
    if not isinstance(output, Tensor | np.ndarray | np.generic):
        return {name: [output]}
    values = _dense(torch.as_tensor(output))
    if values.ndim < 2:
        return {name: values.reshape(-1).tolist()}
    values = values.flatten(1)
    return _numbers(values, [f"{name}.{i}" for i in range(values.shape[1])])


def _is_by_example(output: Sequence[Any], n: int) -> bool:
    """Return whether a list has a dictionary or value for each of n examples, and not elements with n values each."""
    if len(output) != n:
        return False
    for part in output:
        if not isinstance(part, Tensor | np.ndarray | list | tuple) or np.ndim(part) == 0 or len(part) != n:
            return True
    return False


def _columns_by_example(output: Sequence[Any], name: str) -> Columns:
    """Return the columns of a list with an element for each example."""
    columns: Columns = {}
    for i, part in enumerate(output):
        if is_dataclass(part):
            part = vars(part)
        if not isinstance(part, Mapping):
            part = {"": part}
        for key, value in part.items():
            column = columns.setdefault(f"{name}.{key}".removesuffix("."), [None] * len(output))
            column[i] = _cell(value)
    return columns


def _cell(value: Any) -> Any:
    """Return a value as a cell of a table; an array, or what has several values, becomes JSON."""
    value = _of_python(value)
    return json.dumps(value, default=_of_python) if isinstance(value, list | tuple | dict) else value


def _of_python(value: Any) -> Any:
    """Return an array as a list, and another value as itself or, where JSON has none of its kind, as text."""
    if isinstance(value, Tensor):
        return _dense(value).tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if isinstance(value, JSON_KINDS) else str(value)


def _dense(values: Tensor) -> Tensor:
    """Return a tensor without gradients and sparsity, on the CPU."""
    return values.detach().cpu().to_dense()


def _numbers(values: Tensor, names: Sequence[str]) -> Columns:
    """Return the columns of (n, k) numbers under k names."""
    columns: Columns = {}
    for i, name in enumerate(names):
        columns[name] = [f"{value:.6g}" for value in values[:, i].tolist()]
    return columns


def names_of(labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return the names of classes, or their numbers if they have no names."""
    known = dict(enumerate(names))
    return [known.get(label, str(label)) for label in labels]
