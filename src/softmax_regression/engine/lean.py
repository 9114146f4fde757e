"""Lightning's training step, call for call and in its order, less the calls that nobody answers.

Lightning asks callbacks, module and profiler for each hook of a step. This loop looks up, as an epoch begins,
who answers, and does what Lightning 2.6 does with those calls only. All private names it needs stand here.
"""

from collections import OrderedDict
from functools import partial
from itertools import count, repeat
from operator import attrgetter
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, profilers, strategies
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.optim import Optimizer

BATCH = "on_train_batch_start on_train_batch_end"  # called directly
AFTER = "on_before_optimizer_step configure_gradient_clipping clip_gradients"  # by the precision plugin
REST = "on_before_zero_grad on_before_backward on_after_backward optimizer_step optimizer_zero_grad backward"
MOVES = "on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer"
NEEDED = """_logger_connector._first_loop_iter strategy._lightning_optimizers precision_plugin._wrap_closure
    fit_loop._data_fetcher lightning_module._current_fx_name lightning_module._on_before_batch_transfer"""
OF_LOOP = """_batches_that_stepped _build_kwargs _num_ready_batches_reached _results _should_accumulate
    _warning_cache automatic_optimization._skip_backward batch_progress update_lr_schedulers"""


def why_not(trainer: Trainer) -> str | None:
    """Say why a run takes Lightning's own step, if it does."""
    try:
        attrgetter(*NEEDED.split())(trainer), attrgetter(*OF_LOOP.split())(trainer.fit_loop.epoch_loop)
    except AttributeError as error:
        return f"of another version: {error}"
    reasons = {
        "another package's loop": type(trainer.fit_loop.epoch_loop) not in (LeanLoop, _TrainingEpochLoop),
        "a profiler measures it": type(trainer.profiler) is not profilers.PassThroughProfiler,  # type: ignore[attr-defined]
        type(trainer.strategy).__name__: type(trainer.strategy) is not strategies.SingleDeviceStrategy,
        "dataloader_iter": isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def describe(trainer: Trainer) -> str:
    """Say which step trains: the lean one and whom it calls, or Lightning's and why."""
    if reason := why_not(trainer):
        return f"Lightning's own step ({reason})"
    owners, hooks = (*trainer.callbacks, trainer.lightning_module), f"{BATCH} {AFTER} {REST}"  # type: ignore[attr-defined]
    called = [f"{type(owner).__name__}.{hook}" for owner in owners for hook in _own(owner, hooks)]
    return "lean step" + (f", calling {', '.join(called)}" if called else "")


def install(trainer: Trainer) -> None:
    """Let a Trainer train by the lean loop; the object stays, and with it counters and state."""
    if why_not(trainer) is None:
        trainer.fit_loop.epoch_loop.__class__ = LeanLoop


def _own(owner: Any, names: str) -> list[str]:
    """Return which of these methods an object has of its own, by its class or set on the object."""
    base = next(base for base in (Callback, LightningModule, LightningDataModule) if isinstance(owner, base))
    known = [name for name in names.split() if callable(getattr(owner, name, None))]
    return [n for n in known if n in vars(owner) or getattr(type(owner), n) is not getattr(base, n, None)]


class LeanLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch with a lean `advance`."""

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look up, as an epoch begins, who answers what."""
        super().on_run_start(data_fetcher)
        trainer, self.lean = self.trainer, why_not(self.trainer) is None
        module, precision = trainer.lightning_module, type(trainer.precision_plugin)
        self.module, self.fx, data = module, vars(module), data_fetcher.combined_loader
        if self.lean and hasattr(data_fetcher.iterator, "_iterator") and data.iterables is data.flattened[0]:
            data_fetcher.iterator = zip(data._iterator.iterators[0], count(), repeat(0))  # type: ignore[union-attr]
        if self.lean:  # no profiler asks how long a batch takes to come
            data_fetcher._start_profiler = data_fetcher._stop_profiler = lambda: None
        self.answers = {h: [getattr(c, h) for c in trainer.callbacks if _own(c, h)] for h in BATCH.split()}
        self.own = {hook: getattr(module, hook) for hook in _own(module, BATCH)}
        moves = _own(module, MOVES) or (trainer.datamodule and _own(trainer.datamodule, MOVES))
        self.in_place = not moves and precision in (Precision, MixedPrecision)
        self.updates = precision is Precision and not any(_own(o, REST) for o in (*trainer.callbacks, module))
        self.updates &= trainer.strategy.model is module and not self.automatic_optimization._skip_backward
        self.after = any(_own(owner, AFTER) for owner in (*trainer.callbacks, module))
        self.takes = len(self._build_kwargs(OrderedDict(), None, 0))  # arguments of training_step

    def _call(self, hook: str, *args: Any) -> Any:  # callbacks first; what the module says counts
        for answer in self.answers[hook]:
            self._run(hook, answer, self.trainer, self.module, *args)
        return self._run(hook, self.own[hook], *args) if hook in self.own else None

    def _run(self, name: str, function: Any, *args: Any, **kwargs: Any) -> Any:  # what it logs has this name
        before, self.fx["_current_fx_name"] = self.fx["_current_fx_name"], name
        result = function(*args, **kwargs)
        self.fx["_current_fx_name"] = before
        return result

    def _should_accumulate(self) -> bool:
        return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take one minibatch and make one step with it."""
        if not self.lean or self.restarting or self.val_loop.restarting:
            super().advance(data_fetcher)
            return
        trainer, progress, device = self.trainer, self.batch_progress, self.trainer.strategy.root_device
        batch, _, _ = next(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = [*batch] if type(batch) is list else batch  # a new one, as from Lightning
        parts = batch if type(batch) in (tuple, list) else (batch,)
        if not (self.in_place and all(type(part) is Tensor and part.device == device for part in parts)):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = self._run("batch_to_device", trainer.strategy.batch_to_device, batch, dataloader_idx=0)
        progress.increment_ready()
        connector, results, output, skip = trainer._logger_connector, self._results, None, False
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        if batch is None:
            warning = "train_dataloader yielded None. If this was on purpose, ignore this warning..."
            self._warning_cache.warn(warning)
        elif skip := self._call("on_train_batch_start", batch, batch_idx) == -1:
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
        self._call("on_train_batch_end", output, batch, batch_idx)
        if on_step := any(result.meta.on_step for result in results.values()):
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if on_step:
            connector.update_train_step_metrics()

    def _update(self, batch: Any, batch_idx: int) -> Any:
        """Make the update of a minibatch; return what `on_train_batch_end` gets of it."""
        trainer, module, parts = self.trainer, self.module, self.trainer.accumulate_grad_batches
        if not module.automatic_optimization:
            return self.manual_optimization.run(self._build_kwargs(OrderedDict(), batch, batch_idx))
        if not self.updates:
            kwargs = self._build_kwargs(OrderedDict(), batch, batch_idx)
            return self.automatic_optimization.run(trainer.optimizers[0], batch_idx, kwargs)
        optimizer = trainer.strategy._lightning_optimizers[0].optimizer
        progress = self.automatic_optimization.optim_progress.optimizer

        def training_step() -> ClosureResult:
            output = self._run("training_step", module.training_step, *(batch, batch_idx)[: self.takes])
            plain = type(output) is Tensor and parts == 1  # its loss need not be divided
            return ClosureResult(output) if plain else ClosureResult.from_training_step_output(output, parts)

        def zero_grad() -> None:
            if "zero_grad" in vars(optimizer) or type(optimizer).zero_grad is not Optimizer.zero_grad:
                self._run("optimizer_zero_grad", optimizer.zero_grad)
            else:  # the same, less a record for profilers, which costs more
                for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                    parameter.grad = None
            progress.zero_grad.increment_by(1)

        backward = partial(self._run, "backward", Tensor.backward)
        closure = Closure(training_step, backward, zero_grad if batch_idx % parts == 0 else None)
        if self._should_accumulate():
            closure()
        else:
            whole = partial(trainer.precision_plugin._wrap_closure, module, optimizer, closure)
            progress.step.increment_ready()
            after = self.after or trainer.gradient_clip_val
            self._run("optimizer_step", optimizer.step, closure=whole if after else closure)
            progress.step.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where that is due; else there is nothing to do but to count."""
        trainer, progress = self.trainer, self.batch_progress
        ready = (progress.current if trainer.check_val_every_n_epoch else progress.total).ready
        ends = progress.is_last_batch or trainer.should_stop or trainer.received_sigterm
        if not self.lean or ends or ready % (trainer.val_check_batch or 1) == 0:
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():
            self.update_lr_schedulers("step", update_plateau_schedulers=True)
            self._batches_that_stepped += 1
