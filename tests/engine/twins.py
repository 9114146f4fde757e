"""The same run with the engine and without it, and how the two are compared: to the last bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

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


class Calls(Callback):
    """Every call of the hooks that are named, with its arguments and the state of the run."""

    def __init__(self, *hooks: str) -> None:
        self.calls: list[Any] = []
        for name in hooks:
            setattr(self, name, self._noting(name))

    def _noting(self, name: str) -> Callable[..., None]:
        def note(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            weights = torch.cat([p.detach().flatten() for p in module.parameters()])
            loops = trainer.global_step, trainer.fit_loop.batch_idx, trainer.fit_loop.state_dict()
            plain = (int, Tensor, list, tuple, dict)
            seen = [arg if isinstance(arg, plain) else type(arg).__name__ for arg in args]
            self.calls.append((name, module._current_fx_name, repr(loops), weights, seen))

        return note


class Says(Callback):
    """What the line "training on ..." says of the step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.text = next(c for c in trainer.callbacks if isinstance(c, Engine)).describe(trainer)


def trained(
    make: Callable[[], LightningModule],
    data: Callable[[], Any] = tuple,
    engine: bool = True,
    hooks: Sequence[str] = (),
    callbacks: Callable[[], list[Any]] = list,
    ckpt_path: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train, and return all that is left: checkpoint, metrics, random state, the calls of some hooks."""
    seed_everything(3)
    module, loaders, calls, says = make(), data(), Calls(*hooks), Says()
    options["callbacks"] = [Engine(engine), *callbacks(), *([calls] if hooks else []), says]
    trainer = Trainer(**(options if options.get("barebones") else QUIET | options))
    load: Any = {"ckpt_path": ckpt_path, "weights_only": False} if ckpt_path else {}
    trainer.fit(module, *(loaders if isinstance(loaders, tuple) else (loaders,)), **load)
    lean = getattr(trainer.fit_loop.epoch_loop, "lean", False)
    assert says.text.startswith("lean step" if lean else "Lightning's own step (")
    whole = trainer._checkpoint_connector.dump_checkpoint()
    metrics = {**trainer.callback_metrics, **trainer.logged_metrics}
    random = torch.get_rng_state()
    return {"kept": (whole, metrics, random, calls.calls), "trainer": trainer, "says": says.text}


def same(a: Any, b: Any, where: str = "") -> None:
    """Compare to the last bit."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def twins(make: Callable[[], LightningModule], data: Callable[[], Any] = tuple, **options: Any) -> Trainer:
    """Train with the engine and without it, each on data made anew; compare everything."""
    ours, theirs = (trained(make, data, engine, **options) for engine in (True, False))
    same(ours["kept"], theirs["kept"])
    return cast(Trainer, ours["trainer"])
