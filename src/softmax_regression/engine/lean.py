"""Lightning's training step, call for call and in its order, less the calls that nobody answers.

Nearly all of the time that Lightning adds to a small step goes into asking callbacks, module and profiler
for hooks that do nothing. As an epoch begins, this loop looks up who answers which hook of a step; `advance`
then is `lightning.pytorch.loops._TrainingEpochLoop.advance` of Lightning 2.6 with those calls only. Every
hook that somebody has is called at every step, with Lightning's arguments. All private names of Lightning
that the project needs stand in this module, or in `NEEDED`.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor

HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
UPDATE = ("optimizer_step", "optimizer_zero_grad", "backward")  # a module that has one updates by Lightning
PRECISION = ("pre_backward", "backward", "post_backward", "optimizer_step", "_after_closure", "_wrap_closure")
NEEDED: dict[type, tuple[str, ...]] = {
    _TrainingEpochLoop: (
        "_is_training_done", "_should_accumulate", "_num_ready_batches_reached", "_build_kwargs",
        "update_lr_schedulers",
    ),
    LightningModule: ("_on_before_batch_transfer",),
    Precision: ("_clip_gradients", *PRECISION),
    CombinedLoader: ("flattened",),
}  # fmt: skip


def missing() -> str:
    """Return the names that the installed Lightning lacks; nothing if it has them all."""
    lacking = [
        f"{owner.__name__}.{name}"
        for owner, names in NEEDED.items()
        for name in names
        if not hasattr(owner, name)
    ]
    return ", ".join(lacking)


def install(trainer: Trainer) -> None:
    """Let a Trainer train by the lean loop; its counters and its state are those of the loop it had."""
    before = trainer.fit_loop.epoch_loop
    if type(before) is _TrainingEpochLoop:
        loop = object.__new__(LeanEpochLoop)
        vars(loop).update(vars(before))
        trainer.fit_loop.epoch_loop = loop


def why_not(trainer: Trainer) -> str | None:
    """Say why a run takes Lightning's own step, if it does."""
    if not isinstance(trainer.fit_loop.epoch_loop, LeanEpochLoop):
        return "the loop of another package"
    if not isinstance(trainer.profiler, PassThroughProfiler):
        return "a profiler measures it"
    if trainer.world_size > 1:
        return "several processes"
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        return "training_step takes dataloader_iter"
    return None


def called_each_step(trainer: Trainer) -> list[str]:
    """Return who is called at every step, as `Owner.hook`."""
    owners = [*trainer.callbacks, trainer.lightning_module]
    return [f"{type(owner).__name__}.{hook}" for owner in owners for hook in HOOKS if _answers(owner, hook)]


def _answers(owner: Any, hook: str) -> bool:
    """Whether a callback, module or data module has a hook of its own, in its class or set on the object."""
    for base in (Callback, LightningModule, LightningDataModule):
        if isinstance(owner, base):
            return hook in vars(owner) or getattr(type(owner), hook) is not getattr(base, hook)
    return False


class LeanEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch with a lean `advance`; made by `install`, for it takes over an old one."""

    lean = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look up, once an epoch, who answers what."""
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        module, precision, strategy = trainer.lightning_module, trainer.precision_plugin, trainer.strategy
        self.module, self.fx, self.precision = module, vars(module), precision
        self.lean = why_not(trainer) is None
        self.calls: dict[str, list[Callable[..., Any]]] = {}
        for hook in HOOKS:
            calls = [
                partial(getattr(c, hook), trainer, module) for c in trainer.callbacks if _answers(c, hook)
            ]
            calls += [getattr(module, hook)] if _answers(module, hook) else []
            if (
                hook == "on_train_batch_start"
                and type(strategy).on_train_batch_start is not Strategy.on_train_batch_start
            ):
                self.lean = False
            if calls:
                self.calls[hook] = calls
        self.may_skip = _answers(module, "on_train_batch_start")
        owners = (module, trainer.datamodule)
        self.in_place = type(precision).convert_input is Precision.convert_input and not any(
            _answers(owner, hook) for owner in owners for hook in TRANSFER
        )
        self.clips = bool(trainer.gradient_clip_val) or _answers(module, "configure_gradient_clipping")
        self.own_update = (
            module.automatic_optimization
            and type(strategy) is SingleDeviceStrategy
            and strategy.model is module
            and not self.automatic_optimization._skip_backward
            and all(getattr(type(precision), name) is getattr(Precision, name) for name in PRECISION)
            and not any(_answers(module, name) for name in UPDATE)
        )
        plain = type(precision).forward_context is Precision.forward_context
        self.context = nullcontext if plain else precision.train_step_context
        every, known = trainer.val_check_batch, trainer.check_val_every_n_epoch is not None
        self.every = every if known and isinstance(every, int) else 1  # minibatches without validation
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            self.every = 1

    def call(self, hook: str, *args: Any) -> Any:
        """Call everybody who answers a hook, callbacks first; return what the last one did."""
        before, self.fx["_current_fx_name"], result = self.fx["_current_fx_name"], hook, None
        for each in self.calls[hook]:
            result = each(*args)
        self.fx["_current_fx_name"] = before
        return result

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take one minibatch and make one step with it."""
        if not self.lean or self.restarting:
            super().advance(data_fetcher)
            return
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        if self.val_loop._restarting:
            self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        if not (self.in_place and _is_on(batch, trainer.strategy.root_device)):
            batch = self.precision.convert_input(batch)
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        connector = trainer._logger_connector
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

        output: Any = None
        skip = False
        if batch is None:
            self._warning_cache.warn(
                "train_dataloader yielded None. If this was on purpose, ignore this warning..."
            )
        else:
            if "on_train_batch_start" in self.calls:
                skip = self.call("on_train_batch_start", batch, batch_idx) == -1 and self.may_skip
            if skip:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                output = self.update(batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skip:
            raise StopIteration
        if "on_train_batch_end" in self.calls:
            self.call("on_train_batch_end", output, batch, batch_idx)
        on_step = any(result.meta.on_step for result in results.values())
        if on_step:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if on_step:
            connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where that is due; else there is nothing to do but to count."""
        trainer, progress = self.trainer, self.batch_progress
        if (
            not self.lean or self.restarting or self._skip_next_val or trainer.should_stop or trainer.received_sigterm
            or progress.is_last_batch or progress.current.ready % self.every == 0
        ):  # fmt: skip
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():
            self._batches_that_stepped += 1

    def update(self, batch: Any, batch_idx: int) -> Any:
        """Make the update of a minibatch; return what `on_train_batch_end` gets of it."""
        if not self.own_update:
            kwargs = self._build_kwargs(OrderedDict(), batch, batch_idx)
            if self.module.automatic_optimization:
                return self.automatic_optimization.run(self.trainer.optimizers[0], batch_idx, kwargs)
            return self.manual_optimization.run(kwargs)
        wrapper: LightningOptimizer = self.trainer.strategy._lightning_optimizers[0]
        closure = partial(self.closure, batch, batch_idx, wrapper._optimizer, output := {})
        if self._should_accumulate():
            closure(last=False)
            return output
        step = self.automatic_optimization.optim_progress.optimizer.step
        before, self.fx["_current_fx_name"] = self.fx["_current_fx_name"], "optimizer_step"
        step.increment_ready()
        wrapper._on_before_step()
        wrapper._optimizer.step(closure)
        wrapper._on_after_step()
        step.increment_completed()
        self.fx["_current_fx_name"] = before
        return output

    @torch.enable_grad()
    def closure(
        self,
        batch: Any,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        output: dict[str, Any],
        last: bool = True,
    ) -> Tensor | None:
        """Compute the loss of a minibatch and its gradients, as the optimizer asks for it."""
        parts, calls = self.trainer.accumulate_grad_batches, self.calls
        before, self.fx["_current_fx_name"] = self.fx["_current_fx_name"], "training_step"
        with self.context():
            result = self.module.training_step(batch, batch_idx)
        self.fx["_current_fx_name"] = before
        if type(result) is Tensor and parts == 1:
            loss, extra = result, {}
        else:
            checked = ClosureResult.from_training_step_output(result, parts)
            loss, extra = checked.closure_loss, checked.extra
        if batch_idx % parts == 0:
            zero_grad = self.automatic_optimization.optim_progress.optimizer.zero_grad
            zero_grad.increment_ready()
            if "on_before_zero_grad" in calls:
                self.call("on_before_zero_grad", optimizer)
            zero_grad.increment_started()
            optimizer.zero_grad()
            zero_grad.increment_completed()
        if loss is None:
            Closure.warning_cache.warn(
                "`training_step` returned `None`. If this was on purpose, ignore this warning..."
            )
        else:
            if "on_before_backward" in calls:
                self.call("on_before_backward", loss)
            loss.backward()
            if "on_after_backward" in calls:
                self.call("on_after_backward")
            output.update(extra, loss=loss.detach())
        if last:
            if "on_before_optimizer_step" in calls:
                self.call("on_before_optimizer_step", optimizer)
            if self.clips:
                trainer = self.trainer
                self.precision._clip_gradients(
                    self.module, optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                )
        return output.get("loss")


def _is_on(batch: Any, device: torch.device) -> bool:
    """Whether a batch is tensors, or a list of tensors, that need not be moved."""
    parts = batch if type(batch) in (tuple, list) else (batch,)
    return all(type(part) is Tensor and part.device == device for part in parts)
