"""Which hooks a run implements, looked up again after code that may have added one, and how they are called."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

from softmax_regression.engine.reasons import ORIGINALS, TRANSFER_HOOKS, Watch, implemented_hooks, is_plain, why_not

ZERO_GRAD_HOOKS = {"on_before_zero_grad", "optimizer_zero_grad"}
BACKWARD_HOOKS = {"on_before_backward", "on_after_backward", "backward"}
STEP_HOOKS = {"on_before_optimizer_step", "configure_gradient_clipping", "clip_gradients"}


class Hooks:
    """What a step has to call, and what it may leave out.

    Attributes:
        module: The LightningModule of the run.
        strategy: The strategy of its Trainer.
        device: The device of this process.
        lean: Whether the lean step may train.
        implemented: The hooks that a callback, the module or the data module has.
        is_alone: Whether one process trains.
        in_place: Whether a batch that is on the device already is neither converted nor changed by a hook.
        direct: Whether `training_step` may be called without the strategy.
        updates: Whether backward and optimizer step may be called directly: no class of the user's overrides a part.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.is_alone = trainer.world_size == 1
        self._watch: Watch | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look up which hooks are implemented and what may be left out, if that may have changed."""
        trainer = self.trainer
        if self._watch and self._watch.is_unchanged(trainer):
            return
        self._watch = Watch(trainer)
        self.module: Any = trainer.lightning_module
        self.strategy: Any = trainer.strategy
        self.device = trainer.strategy.root_device
        precision = trainer.precision_plugin
        automatic = trainer.fit_loop.epoch_loop.automatic_optimization
        self.lean = why_not(trainer) is None
        self.implemented = implemented_hooks(trainer)
        known = type(precision) in (Precision, MixedPrecision) and is_plain(precision, type(precision))
        self.in_place = known and not self._has(TRANSFER_HOOKS)
        self.has_zero_grad_hooks = self._has(ZERO_GRAD_HOOKS)
        self.has_backward_hooks = self._has(BACKWARD_HOOKS)
        self.has_step_hooks = self._has(STEP_HOOKS)
        self.direct = type(self.strategy) is SingleDeviceStrategy and type(precision) is Precision
        self.updates = (
            known
            and self.lean
            and getattr(precision, "scaler", None) is None
            and "optimizer_step" not in self.implemented
            and all(is_plain(optimizer, LightningOptimizer) for optimizer in self.strategy._lightning_optimizers)
            and type(automatic) is _AutomaticOptimization
            and is_plain(automatic, _AutomaticOptimization)
        )

    def _has(self, names: Iterable[str]) -> bool:
        """Return whether one of these hooks is implemented."""
        return not self.implemented.isdisjoint(names)

    def call_as(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as this hook, whose name `self.log` asks for."""
        module, before = self.module, self.module._current_fx_name
        object.__setattr__(module, "_current_fx_name", name)  # that of nn.Module looks for parameters first
        result = function(*args, **kwargs)
        object.__setattr__(module, "_current_fx_name", before)
        return result

    def call(self, name: str, *args: Any) -> Any:
        """Call a hook of each callback that has it, then that of the module, and return what that returns."""
        nothing = ORIGINALS[Callback, name]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            function = getattr(callback, name)
            if callable(function) and getattr(function, "__func__", None) is not nothing:
                self.call_as(name, function, self.trainer, self.module, *args)
        function = getattr(self.module, name)
        if callable(function) and getattr(function, "__func__", None) is not ORIGINALS[LightningModule, name]:
            return self.call_as(name, function, *args)
        return None
