"""What the engine says of itself, and what it does where Lightning is another one."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.optimization import automatic
from lightning.pytorch.strategies import SingleDeviceStrategy
from twins import QUIET, trained

from softmax_regression.engine import callback, lean, reasons

pytestmark = pytest.mark.filterwarnings("ignore")


class Clipping(BoringModel):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass


class OwnStrategy(SingleDeviceStrategy):
    pass


SAID: list[tuple[type, dict[str, Any], str]] = [
    (BoringModel, {}, "lean step"),
    (Clipping, {}, "lean step"),
    (BoringModel, {"callbacks": lambda: [Timer()]}, "lean step"),
    (BoringModel, {"engine": False}, "Lightning's own step (engine.enabled is false)"),
    (BoringModel, {"profiler": "simple"}, "Lightning's own step (a profiler measures it)"),
    (BoringModel, {"strategy": OwnStrategy()}, "Lightning's own step (OwnStrategy)"),
]
SHORT: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "auto"}


@pytest.mark.parametrize(("module", "options", "text"), SAID)
def test_it_says_which_step_trains(module: Any, options: dict[str, Any], text: str) -> None:
    assert trained(module, **SHORT, **options)[1] == text


@pytest.mark.parametrize("name", reasons.PRIVATE)
def test_without_a_name_lightnings_step_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "PRIVATE", (f"{name}_renamed",))
    _, says, trainer = trained(BoringModel, **SHORT)
    assert says.startswith("Lightning's own step (of another version: ")
    assert says.endswith("_renamed')")
    assert trainer.global_step == 4


def test_without_a_class_lightnings_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(automatic, "ClosureResult")
    for name in ("softmax_regression.engine.lean", "softmax_regression.engine.update"):
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(name)
    spec = importlib.util.spec_from_file_location("callback", callback.__file__)
    assert spec
    assert spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    trainer = Trainer(**QUIET | SHORT, callbacks=[module.Engine()])
    assert "(cannot import name 'ClosureResult' from" in module.Engine().describe(trainer)
    monkeypatch.undo()
    trainer.fit(BoringModel())
    assert trainer.global_step == 4


def test_the_guard_knows_every_private_name_that_is_used() -> None:
    source = "\n".join(path.read_text() for path in Path(lean.__file__).parent.glob("*.py"))
    used = set(re.findall(r"\.(_[a-z]\w+)", source))
    ours = set(re.findall(r"def (_[a-z]\w+)", source))
    ours |= set(re.findall(r"self\.(_[a-z]\w+)(?=[^=\n]* = )", source))  # attributes
    of_wrappers = {"_on_before_step", "_on_after_step", "_model_averager"}
    of_torch = {"_autograd", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"}  # its own `step` asks for them
    guarded = {part for name in reasons.PRIVATE for part in name.split(".")}
    assert used - ours - of_wrappers - of_torch <= guarded
