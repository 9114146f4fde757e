"""Whether the lean step may train a run, and which hooks it has to call.

The lean step does the work of some of Lightning's methods without calling them. Where an object of a run has
such a method of its own, that one is called, or the run is left to Lightning.
"""

from collections.abc import Reversible, Sized
from itertools import repeat
from logging import DEBUG, getLogger
from operator import attrgetter
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from softmax_regression.engine.ddp import ExactDDP

BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
UPDATE_HOOKS = ("optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "clip_gradients")
STRATEGY_METHODS = (
    "training_step",
    "post_training_step",
    "pre_backward",
    "backward",
    "post_backward",
    "optimizer_step",
    "batch_to_device",
    "on_train_batch_start",
)
LOOP_METHODS = (
    "update_lr_schedulers",
    "_update_learning_rates",
    "_build_kwargs",
    "_should_check_val_fx",
    "_should_check_val_epoch",
    "_accumulated_batches_reached",
    "_num_ready_batches_reached",
)
PRECISION_METHODS = (
    "convert_input",
    "train_step_context",
    "forward_context",
    "pre_backward",
    "backward",
    "post_backward",
    "optimizer_step",
    "_after_closure",
    "_wrap_closure",
    "_clip_gradients",
    "clip_gradients",
)
AUTOMATIC_METHODS = (
    "run",
    "_make_closure",
    "_make_step_fn",
    "_make_zero_grad_fn",
    "_make_backward_fn",
    "_training_step",
    "_on_before_zero_grad",
    "_optimizer_zero_grad",
    "_optimizer_step",
)
# What the lean step does without a call, and what Lightning has under these names.
LEFT_OUT: dict[type, tuple[str, ...]] = {
    Callback: BATCH_HOOKS,
    LightningModule: (*BATCH_HOOKS, *TRANSFER_HOOKS, *UPDATE_HOOKS),
    LightningDataModule: TRANSFER_HOOKS,
    SingleDeviceStrategy: STRATEGY_METHODS,
    DDPStrategy: STRATEGY_METHODS,
    ExactDDP: STRATEGY_METHODS,
    Precision: PRECISION_METHODS,
    MixedPrecision: PRECISION_METHODS,
    LightningOptimizer: ("step", "optimizer"),
    _AutomaticOptimization: AUTOMATIC_METHODS,
    _TrainingEpochLoop: LOOP_METHODS,
    PassThroughProfiler: ("start", "stop", "profile"),
}
CALLS = getLogger("lightning.pytorch.trainer.call")
STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ExactDDP)
LOOPS: list[type] = [_TrainingEpochLoop]  # and the lean one
ORIGINALS = {(owner, name): getattr(owner, name) for owner, names in LEFT_OUT.items() for name in names}
PRIVATE = (  # names that another version of Lightning may not have
    "_logger_connector._first_loop_iter",
    "_signal_connector._sigterm_notifier_fn",
    "strategy._lightning_module",
    "strategy._lightning_optimizers",
    "precision_plugin._after_closure",
    "fit_loop._data_fetcher",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
    "fit_loop.epoch_loop._build_kwargs",
    "fit_loop.epoch_loop._num_ready_batches_reached",
    "fit_loop.epoch_loop._results",
    "fit_loop.epoch_loop._should_accumulate",
    "fit_loop.epoch_loop._skip_next_val",
    "fit_loop.epoch_loop._warning_cache",
    "fit_loop.epoch_loop.automatic_optimization._on_before_zero_grad",
    "fit_loop.epoch_loop.automatic_optimization._optimizer_zero_grad",
    "fit_loop.epoch_loop.automatic_optimization._skip_backward",
    "lightning_module._current_fx_name",
    "lightning_module._on_before_batch_transfer",
    "lightning_module._trainer",
)


def has_dynamic_attributes(thing: Any, base: type) -> bool:
    """Whether the class does not tell which methods an object has: a duck type, a mock, its own `__getattribute__`."""
    lookup: Any = type(thing).__getattribute__
    return not issubclass(type(thing), base) or lookup is not object.__getattribute__


def own_methods(thing: Any, base: type) -> set[str]:
    """Return which methods in `LEFT_OUT` an object has of its own, by its class or set on the object."""
    if has_dynamic_attributes(thing, base):
        return set(LEFT_OUT[base])
    own = set()
    for name in LEFT_OUT[base]:
        if name in vars(thing) or getattr(type(thing), name) is not ORIGINALS[base, name]:
            own.add(name)
    return own


def is_plain(thing: Any, base: type) -> bool:
    """Whether an object overrides no method in `LEFT_OUT`."""
    return not own_methods(thing, base)


def missing_names(trainer: Trainer) -> str | None:
    """Say which private name this Lightning does not have, if there is one."""
    for name in PRIVATE:
        try:
            attrgetter(name)(trainer)
        except AttributeError as error:
            return f"of another version: {error}"
    return None


def why_not(trainer: Trainer) -> str | None:
    """Say why Lightning's own step trains, if it does."""
    if missing := missing_names(trainer):
        return missing
    strategy = trainer.strategy
    if type(strategy) not in STRATEGIES:
        return type(strategy).__name__
    if getattr(strategy, "_model_averager", None):
        return "the strategy averages the model"
    loop, profiler = trainer.fit_loop.epoch_loop, trainer.profiler  # type: ignore[attr-defined]
    if type(loop) not in LOOPS:
        return "another package's loop"
    if type(profiler) is not PassThroughProfiler:
        return "a profiler measures it"
    if CALLS.isEnabledFor(DEBUG):
        return "Lightning's debug messages name each hook"
    for thing, base in (strategy, type(strategy)), (loop, _TrainingEpochLoop), (profiler, PassThroughProfiler):
        for name in own_methods(thing, base):
            return f"{type(thing).__name__} with its own {name}"
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        return "dataloader_iter"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if has_dynamic_attributes(callback, Callback):
            return f"{type(callback).__name__} is not a plain Callback"
    if has_dynamic_attributes(trainer.lightning_module, LightningModule):
        return f"{type(trainer.lightning_module).__name__} is not a plain LightningModule"
    if trainer.lightning_module._trainer is not trainer:
        return "the module belongs to another Trainer"
    return None


def implemented_hooks(trainer: Trainer) -> set[str]:
    """Return the hooks that a callback, the module or the data module has, by their names."""
    implemented = own_methods(trainer.lightning_module, LightningModule)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        implemented |= own_methods(callback, Callback)
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        implemented |= own_methods(trainer.datamodule, LightningDataModule)  # type: ignore[attr-defined]
    return implemented


def _is_users(owner: type) -> bool:
    return owner.__module__.partition(".")[0] not in ("lightning", "torch", "builtins", "softmax_regression")


class Watch:
    """Tells at little cost whether an object of the run, or a method of one, may have been added, removed or changed.

    A method that is set on an object or added to its class makes a dictionary longer. It is also the last one there,
    which tells of it where another attribute is deleted at the same time; this is looked up for objects of a user's
    class. A method that replaces another changes neither; the lean step looks up what it calls at each call.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.objects = self._objects(trainer)
        self.namespaces: list[Sized] = []
        self.own: list[Reversible[str]] = []
        others = trainer.fit_loop.epoch_loop, trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
        owners: list[type] = []
        for thing in (*self.objects, *others):
            if isinstance(thing, type | Trainer) or not hasattr(thing, "__dict__"):
                continue
            self.namespaces.append(vars(thing))
            owners += type(thing).__mro__
            if _is_users(type(thing)):
                self.own.append(vars(thing))
        self.namespaces += map(vars, filter(_is_users, dict.fromkeys(owners)))
        self.state = self._state()

    @staticmethod
    def _objects(trainer: Trainer) -> list[Any]:
        any_trainer: Any = trainer
        strategy = any_trainer.strategy
        loop = any_trainer.fit_loop.epoch_loop.automatic_optimization
        module, callbacks = strategy._lightning_module, any_trainer.callbacks
        others = any_trainer.profiler, strategy, strategy.precision_plugin, loop, module.__class__, module._trainer
        return [*others, *strategy._lightning_optimizers, *callbacks, *map(type, callbacks)]

    def _state(self) -> list[Any]:
        last_names = map(next, map(reversed, self.own), repeat(None))
        return [*map(len, self.namespaces), *last_names]

    def is_unchanged(self, trainer: Trainer) -> bool:
        """Whether everything is as it was."""
        return self._state() == self.state and self._objects(trainer) == self.objects
