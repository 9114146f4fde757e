"""Lightning's training step, call for call and in its order, less the hooks that nothing implements.

Lightning asks callbacks, module, strategy and profiler for each hook of a step. This loop knows which hooks are
there, and does what Lightning 2.6 does with those only. Whether it may is decided in `reasons`.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader, _MaxSizeCycle, _MinSize, _ModeIterator
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from softmax_regression.engine.ddp import signals_of
from softmax_regression.engine.reasons import (
    LIGHTNINGS,
    STRATEGIES,
    TRANSFER_HOOKS,
    Watch,
    answered_hooks,
    is_plain,
    missing_names,
    why_not,
)

ZERO_GRAD = Optimizer.zero_grad
ZERO_GRAD_HOOKS = {"on_before_zero_grad", "optimizer_zero_grad"}
BACKWARD_HOOKS = {"on_before_backward", "on_after_backward", "backward"}
STEP_HOOKS = {"on_before_optimizer_step", "configure_gradient_clipping", "clip_gradients"}


def results_of_epoch(trainer: Trainer) -> dict[str, Any]:
    """Return Lightning's running sums of what was logged in this epoch."""
    return trainer.fit_loop.epoch_loop._results


def install(trainer: Trainer) -> None:
    """Let a Trainer train by the lean loop; the object stays, and with it counters and state."""
    if missing_names(trainer) or type(trainer.strategy) not in STRATEGIES:
        return
    if type(trainer.fit_loop.epoch_loop) is _TrainingEpochLoop:
        trainer.fit_loop.epoch_loop.__class__ = LeanLoop


class LeanLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch with a lean `advance`."""

    watch: Watch | None = None
    module: Any = None  # the LightningModule
    source: _ModeIterator | None = None  # the iterator over an only loader
    known_step: Any = None  # a `training_step` whose arguments are known

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look, as an epoch begins, who is there."""
        super().on_run_start(data_fetcher)
        self.watch = None
        self._look()
        self.source = _only_source(data_fetcher)

    def teardown(self) -> None:
        """Let go of the objects of a run."""
        super().teardown()
        self.watch = self.module = self.known_step = self.source = None

    def _look(self) -> None:
        """Find out which hooks are there, and what may be left out, unless all is as it was."""
        trainer = self.trainer
        if self.watch and self.watch.holds(trainer):
            return
        self.watch = Watch(trainer)
        self.module, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
        self.lean = why_not(trainer) is None
        self.answered = answered_hooks(trainer)
        self.several = trainer.world_size > 1
        known = type(precision) in (Precision, MixedPrecision) and is_plain(precision, type(precision))
        self.in_place = known and self.answered.isdisjoint(TRANSFER_HOOKS)
        self.direct = type(strategy) is SingleDeviceStrategy and type(precision) is Precision
        optimizers = strategy._lightning_optimizers
        self.updates = (
            known
            and self.lean
            and getattr(precision, "scaler", None) is None
            and "optimizer_step" not in self.answered
            and all(is_plain(optimizer, LightningOptimizer) for optimizer in optimizers)
            and type(self.automatic_optimization) is _AutomaticOptimization
            and is_plain(self.automatic_optimization, _AutomaticOptimization)
        )

    def _broadcast_sigterm_tensor(self) -> None:
        """End the run on all processes if one has received a SIGTERM; Lightning asks so at each of their steps."""
        signals = signals_of(self.trainer)
        signals.at_step(self.trainer, self.batch_progress.total.ready)
        if signals.sigterm:
            raise SIGTERMException

    def _should_accumulate(self) -> bool:
        return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

    def _named(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function; what it logs has this name."""
        module, before = self.module, self.module._current_fx_name
        object.__setattr__(module, "_current_fx_name", name)  # that of nn.Module looks for parameters first
        result = function(*args, **kwargs)
        object.__setattr__(module, "_current_fx_name", before)
        return result

    def _hook(self, name: str, *args: Any) -> Any:
        """Call a hook of each callback, then that of the module, and return what the module says."""
        nothing = LIGHTNINGS[Callback, name]
        for callback in self.trainer.callbacks:
            function = getattr(callback, name)
            if callable(function) and getattr(function, "__func__", None) is not nothing:
                self._named(name, function, self.trainer, self.module, *args)
        function = getattr(self.module, name)
        return self._named(name, function, *args) if callable(function) else None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take one minibatch and make one step with it."""
        self._look()
        if not self.lean or self.restarting or self.val_loop.restarting:
            super().advance(data_fetcher)
            return
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        connector = trainer._logger_connector
        if self.several:
            self._broadcast_sigterm_tensor()
        batch = self._next_batch(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._to_device(batch)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        output, skip = None, False
        if batch is None:
            self._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        else:
            if "on_train_batch_start" in self.answered:
                skip = self._hook("on_train_batch_start", batch, batch_idx) == -1
                self._look()
            if skip:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                output = self._update(batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skip:
            raise StopIteration
        if "on_train_batch_end" in self.answered:
            self._hook("on_train_batch_end", output, batch, batch_idx)
        logs_steps = any(result.meta.on_step for result in results.values())
        if logs_steps:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if logs_steps:
            connector.update_train_step_metrics()

    def _next_batch(self, fetcher: _DataFetcher) -> Any:
        """Return the next minibatch: from its only loader, or as Lightning combines several."""
        if self.source is None or fetcher.length is None:
            batch, _, _ = next(fetcher)
            return batch
        try:
            batch = next(self.source.iterators[0])
        except StopIteration:
            fetcher.done = True
            raise
        fetcher.fetched += 1
        fetcher.done = fetcher.fetched >= fetcher.length
        return batch

    def _to_device(self, batch: Any) -> Any:
        """Return a minibatch on the device of the run: itself, or a new list, if it is there and nobody moves it."""
        strategy = self.trainer.strategy
        in_place, device = self.in_place, strategy.root_device
        for part in batch if type(batch) in (tuple, list) else (batch,):
            in_place = in_place and type(part) is Tensor and part.device == device
        if in_place:
            return [*batch] if type(batch) is list else batch
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._named("batch_to_device", strategy.batch_to_device, batch, dataloader_idx=0)

    def _arguments(self, batch: Any, batch_idx: int) -> "OrderedDict[str, Any]":
        """Return the arguments of `training_step`, which need not take the index."""
        if self.known_step != self.module.training_step:
            self.known_step = self.module.training_step
            self.takes_index = len(self._build_kwargs(OrderedDict(), batch, batch_idx)) == 2
        arguments = OrderedDict(batch=batch)
        if self.takes_index:
            arguments["batch_idx"] = batch_idx
        return arguments

    def _update(self, batch: Any, batch_idx: int) -> Any:
        """Make the update of a minibatch; return what `on_train_batch_end` gets of it."""
        trainer, automatic = self.trainer, self.automatic_optimization
        arguments = self._arguments(batch, batch_idx)
        if not self.module.automatic_optimization:
            return self.manual_optimization.run(arguments)
        wrapper = trainer.strategy._lightning_optimizers[0]
        plain = wrapper._on_before_step is wrapper._on_after_step is do_nothing_closure
        if not self.updates or automatic._skip_backward or not plain:
            return automatic.run(trainer.optimizers[0], batch_idx, arguments)
        optimizer, progress = trainer.optimizers[0], automatic.optim_progress.optimizer
        backward, zero_grad = partial(self._backward, automatic, optimizer), None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            zero_grad = partial(self._zero_grad, automatic, batch_idx, optimizer)
        closure = Closure(partial(self._training_step, arguments), backward, zero_grad)
        if self._should_accumulate():
            with _block_parallel_sync_behavior(trainer.strategy):
                closure()
        else:
            progress.step.increment_ready()
            whole = partial(self._closure_for_step, closure, wrapper.optimizer)
            self._named("optimizer_step", wrapper.optimizer.step, closure=whole)
            progress.step.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _training_step(self, arguments: "OrderedDict[str, Any]") -> ClosureResult:
        """Call `training_step`, through the strategy where that wraps the module or sets a precision."""
        if not self.direct:
            result = self.automatic_optimization._training_step(arguments)
            self._look()
            return result
        output = self._named("training_step", self.module.training_step, *arguments.values())
        self._look()
        batches = self.trainer.accumulate_grad_batches
        if type(output) is Tensor and batches == 1 and not vars(output):  # it need not be divided
            return ClosureResult(output)
        return ClosureResult.from_training_step_output(output, batches)

    def _zero_grad(self, automatic: _AutomaticOptimization, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients of the update before."""
        method: Any = optimizer.zero_grad
        plain = getattr(method, "__func__", None) is ZERO_GRAD and self.answered.isdisjoint(ZERO_GRAD_HOOKS)
        if not plain:
            automatic._on_before_zero_grad(optimizer)
            automatic._optimizer_zero_grad(batch_idx, optimizer)
            return
        for group in method.__self__.param_groups:  # what torch does, less a record for profilers, which costs more
            for parameter in group["params"]:
                parameter.grad = None
        automatic.optim_progress.optimizer.zero_grad.increment_by(1)

    def _backward(self, automatic: _AutomaticOptimization, optimizer: Optimizer, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        if self.updates and self.answered.isdisjoint(BACKWARD_HOOKS):
            self.trainer.strategy.pre_backward(loss)
            self._named("backward", loss.backward)
            self.trainer.strategy.post_backward(loss)
        else:
            call_backward = automatic._make_backward_fn(optimizer)
            assert call_backward  # `_skip_backward` was False as the step began
            call_backward(loss)

    def _closure_for_step(self, closure: Closure, optimizer: Optimizer) -> Any:
        """Compute loss and gradients, and clip them, for an optimizer that is about to step."""
        loss, trainer = closure(), self.trainer
        self._look()
        if not self.updates or trainer.gradient_clip_val or not self.answered.isdisjoint(STEP_HOOKS):
            trainer.precision_plugin._after_closure(self.module, optimizer)
        return loss

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where that is due; else there is nothing to do but to count."""
        trainer, progress = self.trainer, self.batch_progress
        ready = (progress.current if trainer.check_val_every_n_epoch else progress.total).ready
        every = trainer.val_check_batch  # None where validation has the rhythm of a clock
        ends = progress.is_last_batch or progress.current.ready == trainer.num_training_batches
        may_validate = every is None or ready % every == 0 or ends
        if not self.lean or may_validate or self._skip_next_val or trainer.should_stop or trainer.received_sigterm:
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():
            self.update_lr_schedulers("step", update_plateau_schedulers=True)
            self._batches_that_stepped += 1


def _only_source(fetcher: _DataFetcher) -> _ModeIterator | None:
    """Return the iterator over the loader of a run, if it has one loader and all between is Lightning's."""
    combined = fetcher.combined_loader
    plain = type(fetcher) is _PrefetchDataFetcher and type(combined) is CombinedLoader
    if not plain or len(combined.flattened) != 1 or combined.iterables is not combined.flattened[0]:
        return None
    iterator = getattr(combined, "_iterator", None)
    return iterator if type(iterator) in (_MinSize, _MaxSizeCycle) else None
