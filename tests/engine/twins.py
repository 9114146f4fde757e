"""The same run with the engine and without it, and how the two are compared: to the last bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from softmax_regression import Engine

BATCH = ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end",
         "on_validation_start", "on_validation_end", "on_before_optimizer_step")  # fmt: skip
ALL = (*BATCH, "on_before_zero_grad", "on_before_backward", "on_after_backward")
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "max_epochs": 2, "num_sanity_val_steps": 0,
}  # fmt: skip


def on(hook: str, answer: Callable[..., Any]) -> Callable[[], list[Callback]]:
    """Make a callback whose hook is set on the object."""

    def callbacks() -> list[Callback]:
        callback = Callback()
        setattr(callback, hook, answer)
        return [callback]

    return callbacks


class Calls(Callback):
    """Every call of the hooks that are named, with its arguments and the state of the run."""

    def __init__(self, hooks: Sequence[str]) -> None:
        self.calls: list[Any] = []
        for name in hooks:
            setattr(self, name, self._noting(name))

    def _noting(self, name: str) -> Callable[..., None]:
        def note(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            weights = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
            loops = trainer.global_step, trainer.fit_loop.batch_idx, trainer.fit_loop.state_dict()
            seen: list[Any] = []
            for arg in args:
                if isinstance(arg, int | Tensor | list | tuple | dict):
                    seen.append(arg)
                else:  # an optimizer, say, of which each run has its own
                    seen.append(type(arg).__name__)
            self.calls.append((name, module._current_fx_name, repr(loops), weights, seen))

        return note

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, Engine):
                self.says = callback.describe(trainer)


def trained(
    make: Callable[[], LightningModule],
    data: Callable[[], Any] = tuple,
    engine: bool = True,
    hooks: Sequence[str] = (),
    callbacks: Callable[[], list[Any]] = list,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Any, str, Trainer]:
    """Train; return all that is left, what the engine said of the step, and the Trainer."""
    seed_everything(3)
    module, loaders, calls = make(), data(), Calls(hooks)
    if not isinstance(loaders, tuple):
        loaders = (loaders,)
    options["callbacks"] = [Engine(engine), *callbacks(), calls]
    if not options.get("barebones"):
        options = QUIET | options
    trainer = Trainer(**options)
    load: dict[str, Any] = {}
    if ckpt_path:
        load = {"ckpt_path": ckpt_path, "weights_only": False}
    trainer.fit(module, *loaders, **load)
    if getattr(trainer.fit_loop.epoch_loop, "lean", False):
        assert calls.says.startswith("lean step")
    else:  # from the start, or later
        assert calls.says.startswith(("lean step", "Lightning's own step ("))
    whole = trainer._checkpoint_connector.dump_checkpoint()
    metrics = {**trainer.callback_metrics, **trainer.logged_metrics}
    return (whole, metrics, torch.get_rng_state(), calls.calls), calls.says, trainer


def same(a: Any, b: Any, where: str = "", atol: float = 0) -> None:
    """Compare to the last bit, or floats to within a tolerance."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        equal = torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        assert equal or (atol and torch.allclose(a, b, 0, atol)), where
    elif isinstance(a, dict):
        same([*a], [*b], where)
        same([*a.values()], [*b.values()], f"{where} of {[*a]}", atol)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}", atol)
    else:
        assert a == b or (isinstance(a, float) and abs(a - b) <= atol), where


def twins(make: Callable[[], Any], data: Callable[[], Any] = tuple, **options: Any) -> tuple[str, Trainer]:
    """Train with the engine and without it, each on data made anew; compare everything."""
    ours, says, trainer = trained(make, data, engine=True, **options)
    theirs, _, _ = trained(make, data, engine=False, **options)
    same(ours, theirs)
    return says, trainer
