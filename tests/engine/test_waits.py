"""Inside an epoch nothing asks a tensor for its value: on a GPU the CPU would wait for all that was computed so far."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from twins import QUIET

from softmax_regression import Engine, FashionMNISTDataModule, LastCheckpoint, SoftmaxRegression

pytestmark = pytest.mark.filterwarnings("ignore")
ASKS = {"cpu", "tolist", "numpy", "item", "nonzero", "repeat_interleave", "masked_select", "unique"}
ASKS |= {"__bool__", "__int__", "__float__", "__index__"}


class Functions(TorchFunctionMode):
    """Note which functions ask a tensor for its value, or for a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        known_size = name == "repeat_interleave" and "output_size" in (kwargs or {})
        if name in ASKS and not known_size:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Note each time that the value of a tensor goes to Python, whoever asked."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.asked.append("_local_scalar_dense")
        return func(*args, **(kwargs or {}))


class Listening(Callback):
    """Listen from the second step of an epoch to the one before its last."""

    def __init__(self) -> None:
        self.functions, self.operations = Functions(), Operations()
        self.stack = ExitStack()
        self.steps = 0
        self.listening = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += self.listening
        if batch_idx == 1:
            self.stack.enter_context(self.functions)
            self.stack.enter_context(self.operations)
            self.listening = True
        elif batch_idx == trainer.num_training_batches - 2:
            self.stack.close()
            self.listening = False


def asked_in_an_epoch(module: SoftmaxRegression) -> list[str]:
    data = FashionMNISTDataModule(4, 50, 400, "synthetic", synthetic_size=500)
    listening = Listening()
    options = QUIET | {"max_epochs": 1, "enable_checkpointing": True}
    Trainer(**options, callbacks=[Engine(), LastCheckpoint(), listening]).fit(module, data)
    assert listening.steps == 97
    return listening.functions.asked + listening.operations.asked


class Asking(SoftmaxRegression):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 50:
            loss.item()
        return loss


def test_an_epoch_asks_no_tensor_for_its_value() -> None:
    assert asked_in_an_epoch(SoftmaxRegression()) == []


def test_the_test_notices_who_asks() -> None:
    assert asked_in_an_epoch(Asking()) == ["item", "_local_scalar_dense"]
