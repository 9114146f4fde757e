"""The update of a minibatch: loss, gradients and optimizer, in Lightning's order."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from lightning.pytorch.core.optimizer import do_nothing_closure
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.trainer.call import _call_strategy_hook
from torch import Tensor, is_grad_enabled
from torch._C import _set_grad_enabled
from torch._C._autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from softmax_regression.engine.hooks import Hooks

ZERO_GRAD = Optimizer.zero_grad
RECORDED_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__  # torch wraps `step` of each optimizer in this


class LeanClosure(Closure):
    """Lightning's closure; it enables gradients only where torch's optimizers have not done so already."""

    closure_with_gradients = Closure.closure.__wrapped__  # type: ignore[attr-defined] # what `torch.enable_grad` wraps

    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:
        """Compute loss and gradients."""
        if not is_grad_enabled():
            return super().closure(*args, **kwargs)
        try:
            result: ClosureResult = self.closure_with_gradients(*args, **kwargs)
        finally:
            _set_grad_enabled(True)  # also after a `training_step` that has disabled them
        return result


class Update:
    """Make the update of a minibatch, or let Lightning make it where a class of the user's overrides a part of it.

    Args:
        loop: The loop over an epoch.
        hooks: Which hooks the run has.
    """

    def __init__(self, loop: _TrainingEpochLoop, hooks: Hooks) -> None:
        self.loop = loop
        self.hooks = hooks
        self.automatic: _AutomaticOptimization = loop.automatic_optimization
        self._known_step: Any = None  # a `training_step` whose arguments are known
        self._takes_index = True

    def _arguments(self, batch: Any, batch_idx: int) -> "OrderedDict[str, Any]":
        """Return the arguments of `training_step`, which need not take the index."""
        step = self.hooks.module.training_step
        if self._known_step != step:
            self._known_step = step
            self._takes_index = len(self.loop._build_kwargs(OrderedDict(), batch, batch_idx)) == 2
        if self._takes_index:
            return OrderedDict(batch=batch, batch_idx=batch_idx)
        return OrderedDict(batch=batch)

    def run(self, batch: Any, batch_idx: int) -> Any:
        """Make the update of a minibatch; return what `on_train_batch_end` gets of it."""
        self.automatic = self.loop.automatic_optimization  # another one counts from the next minibatch on
        trainer, automatic = self.hooks.trainer, self.automatic
        arguments = self._arguments(batch, batch_idx)
        if not self.hooks.module.automatic_optimization:
            return self.loop.manual_optimization.run(arguments)
        wrapper = self.hooks.strategy._lightning_optimizers[0]
        plain = wrapper._on_before_step is wrapper._on_after_step is do_nothing_closure
        if not self.hooks.updates or automatic._skip_backward or not plain:
            return automatic.run(trainer.optimizers[0], batch_idx, arguments)
        optimizer, progress = trainer.optimizers[0], automatic.optim_progress.optimizer
        backward, zero_grad = partial(self._backward, optimizer), None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            zero_grad = partial(self._zero_grad, batch_idx, optimizer)
        closure = LeanClosure(partial(self._training_step, arguments), backward, zero_grad)
        if trainer.fit_loop._should_accumulate():
            with _block_parallel_sync_behavior(self.hooks.strategy):
                closure()
        else:
            progress.step.increment_ready()
            whole = partial(self._closure_for_step, closure, wrapper.optimizer)
            self.hooks.call_as("optimizer_step", _step, wrapper.optimizer.step, whole)
            progress.step.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _training_step(self, arguments: "OrderedDict[str, Any]") -> ClosureResult:
        """Call `training_step`, through the strategy where that wraps the module or sets a precision."""
        hooks = self.hooks
        training_step = hooks.strategy.training_step
        if hooks.direct and hooks.strategy.model is hooks.module:
            training_step = hooks.module.training_step
        output = hooks.call_as("training_step", training_step, *arguments.values())
        hooks.refresh()
        if output is None and not hooks.is_alone:
            raise RuntimeError("Skipping a step by returning None in distributed training is not supported")
        batches = hooks.trainer.accumulate_grad_batches
        plain = type(output) is Tensor and not vars(output)
        if plain and batches == 1 and not hooks.has_backward_hooks and is_grad_enabled():
            return ClosureResult(output)
        return ClosureResult.from_training_step_output(output, batches)

    def _zero_grad(self, batch_idx: int, optimizer: Optimizer) -> None:
        """Set the gradients of the last update to None."""
        method: Any = optimizer.zero_grad
        plain = getattr(method, "__func__", None) is ZERO_GRAD and not self.hooks.has_zero_grad_hooks
        if not plain:
            self.automatic._on_before_zero_grad(optimizer)
            self.automatic._optimizer_zero_grad(batch_idx, optimizer)
            self.hooks.refresh()
            return
        for group in method.__self__.param_groups:  # what torch does, less a record for profilers, which costs more
            for parameter in group["params"]:
                parameter.grad = None
        progress = self.automatic.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        progress.increment_started()
        progress.increment_completed()

    def _backward(self, optimizer: Optimizer, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        hooks = self.hooks
        if hooks.updates and not hooks.has_backward_hooks:
            hooks.strategy.pre_backward(loss)
            hooks.call_as("backward", loss.backward)
            hooks.refresh()
            if hooks.has_backward_hooks:  # a hook of a tensor has set one
                hooks.call("on_after_backward")
            hooks.strategy.post_backward(loss)
        else:
            _call_strategy_hook(hooks.trainer, "backward", loss, optimizer)
            hooks.refresh()

    def _closure_for_step(self, closure: Closure, optimizer: Optimizer) -> Any:
        """Compute loss and gradients, and clip them, for an optimizer that is about to step."""
        hooks, trainer = self.hooks, self.hooks.trainer
        loss = closure()
        if not hooks.updates or trainer.gradient_clip_val or hooks.has_step_hooks:
            trainer.precision_plugin._after_closure(hooks.module, optimizer)
        return loss


def _step(step: Any, closure: Callable[[], Any]) -> None:
    """Call the method `step` of an optimizer, as torch does; where nobody profiles, less its record for profilers.

    That record takes as long as the step of a small model.
    """
    recorded = getattr(getattr(step, "__func__", None), "__code__", None) is RECORDED_STEP
    if not recorded or _profiler_enabled() or _global_optimizer_pre_hooks or step.__self__._optimizer_step_pre_hooks:
        step(closure=closure)
        return
    optimizer = step.__self__
    step.__wrapped__(optimizer, closure=closure)
    for hook in chain(optimizer._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
        hook(optimizer, (optimizer,), {"closure": closure})
