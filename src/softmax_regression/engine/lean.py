"""Lightning's training step, call for call and in its order, less the hooks that nothing implements.

Lightning asks callbacks, module, strategy and profiler for each hook of a step. This loop knows which hooks are
there (`hooks`), and does what Lightning 2.6 does with those only. Whether it may is decided in `reasons`.
"""

from math import inf
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.combined_loader import CombinedLoader, _MaxSizeCycle, _MinSize, _ModeIterator
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from softmax_regression.engine.ddp import share_sigterm, signals_of
from softmax_regression.engine.hooks import Hooks
from softmax_regression.engine.reasons import LOOPS, STRATEGIES, missing_names
from softmax_regression.engine.update import Update


def results_of_epoch(trainer: Trainer, of_validation: bool = False) -> dict[str, Any]:
    """Return Lightning's running sums of what was logged in this epoch, by the training or by its last validation."""
    loop = trainer.fit_loop.epoch_loop
    if of_validation:
        return loop.val_loop._results
    return loop._results


def install(trainer: Trainer) -> None:
    """Let a Trainer train by the lean loop; the object stays, and with it counters and state."""
    if missing_names(trainer) or type(trainer.strategy) not in STRATEGIES:
        return
    if type(trainer.fit_loop.epoch_loop) is _TrainingEpochLoop:
        trainer.fit_loop.epoch_loop.__class__ = LeanLoop


class LeanLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch with a lean `advance`."""

    hooks: Any = None  # `Hooks` of the epoch
    update: Any = None  # its `Update`
    source: _ModeIterator | None = None  # the iterator over an only loader

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look up the hooks of the run as an epoch begins."""
        super().on_run_start(data_fetcher)
        self.hooks = Hooks(self.trainer)
        if not self.hooks.is_alone:
            share_sigterm(self.trainer)
        self.update = Update(self, self.hooks)
        self.source = _only_source(data_fetcher)

    def teardown(self) -> None:
        """Drop the objects of the run."""
        super().teardown()
        self.hooks = self.update = self.source = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the objects of the run out of a copy of the loop."""
        return vars(self) | {"hooks": None, "update": None, "source": None}

    def _broadcast_sigterm_tensor(self) -> None:
        """End the run on all processes if one has received a SIGTERM; Lightning exchanges this at each step."""
        signals = signals_of(self.trainer)
        signals.at_step(self.trainer, self.batch_progress.total.ready)
        if signals.sigterm:
            self.trainer._signal_connector.received_sigterm = True
            raise SIGTERMException

    def _should_accumulate(self) -> bool:
        return self.trainer.accumulate_grad_batches != 1 and super()._should_accumulate()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take one minibatch and make one step with it."""
        hooks = self.hooks
        hooks.refresh()
        if not hooks.lean or self.restarting or self.val_loop.restarting:
            super().advance(data_fetcher)
            return
        trainer = self.trainer
        progress = self.batch_progress
        results = self._results
        connector = trainer._logger_connector
        if not hooks.is_alone:
            self._broadcast_sigterm_tensor()
        batch = self._next_batch(data_fetcher)
        batch_idx = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._to_device(batch)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch = batch
        results.batch_size = results.dataloader_idx = None
        output = None
        skip = False
        if batch is None:
            self._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        else:
            if "on_train_batch_start" in hooks.implemented:
                skip = hooks.call("on_train_batch_start", batch, batch_idx) == -1
                hooks.refresh()
            if skip:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                output = self.update.run(batch, batch_idx)
        progress.increment_processed()
        if hooks.strategy.lr_scheduler_configs:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._num_ready_batches_reached():
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skip:
            raise StopIteration
        hooks.call("on_train_batch_end", output, batch, batch_idx)  # also if it was added in this step
        foreign = connector._first_loop_iter is None  # a hook has called `trainer.validate`; Lightning stops here
        logs_steps = foreign or any(result.meta.on_step for result in results.values())
        if logs_steps:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if logs_steps:
            connector.update_train_step_metrics()

    def _next_batch(self, fetcher: _DataFetcher) -> Any:
        """Return the next minibatch: from its only loader, or as Lightning combines several."""
        restarted = getattr(fetcher.combined_loader, "_iterator", None) is not self.source  # by a hook
        if self.source is None or fetcher.length is None or restarted:
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
        """Return a minibatch on the device: if it is there and no hook changes it, itself or a copy of the list."""
        in_place, device = self.hooks.in_place, self.hooks.device
        for part in batch if type(batch) in (tuple, list) else (batch,):
            in_place = in_place and type(part) is Tensor and part.device == device
        if in_place:
            return [*batch] if type(batch) is list else batch
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.hooks.module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.hooks.call_as("batch_to_device", self.hooks.strategy.batch_to_device, batch, dataloader_idx=0)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate if that is due; otherwise only count the step."""
        trainer, progress = self.trainer, self.batch_progress
        ready = (progress.current if trainer.check_val_every_n_epoch else progress.total).ready
        every = trainer.val_check_batch  # None if val_check_interval is a time, inf if the loader has no length
        ends = progress.is_last_batch or progress.current.ready == trainer.num_training_batches
        may_validate = every in (None, inf) or ready % every == 0 or ends
        if (
            not self.hooks.lean
            or may_validate
            or self._skip_next_val
            or trainer.should_stop
            or trainer.received_sigterm
        ):
            super().on_advance_end(data_fetcher)
        elif not self._should_accumulate():
            if self.hooks.strategy.lr_scheduler_configs:
                self.update_lr_schedulers("step", update_plateau_schedulers=True)
            self._batches_that_stepped += 1


LeanLoop.__name__ = _TrainingEpochLoop.__name__  # by which a profiler names what it measures
LOOPS.append(LeanLoop)


def _only_source(fetcher: _DataFetcher) -> _ModeIterator | None:
    """Return the iterator over the loader of a run, if it has one, and fetcher and iterator are Lightning's own."""
    combined = fetcher.combined_loader
    plain = type(fetcher) is _PrefetchDataFetcher and type(combined) is CombinedLoader
    if not plain or len(combined.flattened) != 1 or combined.iterables is not combined.flattened[0]:
        return None
    iterator = getattr(combined, "_iterator", None)
    return iterator if type(iterator) in (_MinSize, _MaxSizeCycle) else None
