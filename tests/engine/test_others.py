"""Loaders, callbacks, optimizers, losses and strategies with methods of their own, and what comes in mid-epoch."""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial, wraps
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.fabric.utilities.types import Optimizable
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile
from twins import BATCH, QUIET, on, same, trained, twins

from softmax_regression import Engine

pytestmark = pytest.mark.filterwarnings("ignore")
LIMITS: dict[str, Any] = {"limit_train_batches": 9, "limit_val_batches": 2}


# Loaders


class OwnIterator:
    """A loader that is its own iterator, and shuffles whenever `iter` is called."""

    def __init__(self) -> None:
        self.rows = torch.randn(9, 4, 32, generator=torch.Generator().manual_seed(0))
        self.generator = torch.Generator().manual_seed(1)

    def __iter__(self) -> Iterator[Tensor]:
        self.order = torch.randperm(len(self.rows), generator=self.generator).tolist()
        return self

    def __next__(self) -> Tensor:
        if not self.order:
            raise StopIteration
        return self.rows[self.order.pop()]


class SizedIterator(OwnIterator):
    def __len__(self) -> int:
        return len(self.rows)


class Doubling(CombinedLoader):
    """A CombinedLoader that hands out each batch doubled."""

    def __next__(self) -> Any:
        batch, *rest = super().__next__()
        return 2 * batch, *rest


class Negative(_PrefetchDataFetcher):
    """A fetcher that hands out each batch negated."""

    def __next__(self) -> Any:
        batch, *rest = super().__next__()
        return -batch, *rest


def with_fetcher(trainer: Trainer, *_: Any) -> None:
    trainer.fit_loop._data_fetcher.__class__ = Negative


@pytest.mark.parametrize("loader", [OwnIterator, SizedIterator])
def test_a_loader_that_is_its_own_iterator_is_asked_for_one_iterator_an_epoch(loader: type[OwnIterator]) -> None:
    says, _ = twins(BoringModel, loader, hooks=BATCH, max_epochs=3)
    assert says == "lean step"


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_a_combined_loader_with_its_own_next_is_asked(mode: Any) -> None:
    def loader() -> CombinedLoader:
        return Doubling(SizedIterator(), mode)

    twins(BoringModel, loader)


def test_another_fetcher_is_asked() -> None:
    twins(BoringModel, SizedIterator, callbacks=on("on_train_epoch_start", with_fetcher))


# Callbacks


class Duck:
    """A callback of no class of Lightning's, which doubles each gradient."""

    def __getattr__(self, name: str) -> Any:
        if name == "state_key":
            return "duck"
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(Callback(), name)

    def on_after_backward(self, trainer: Any, module: LightningModule) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(2)


class Wrapper:
    """A callback that passes everything on to another one."""

    def __init__(self, inner: Callback) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ByAttribute(Callback):
    """A callback whose hooks are not in its class."""

    def __getattribute__(self, name: str) -> Any:
        if name == "on_after_backward":
            return Duck().on_after_backward
        return super().__getattribute__(name)


def wrapper() -> Wrapper:
    (inner,) = on("on_after_backward", Duck().on_after_backward)()
    return Wrapper(inner)


def mock() -> Any:
    callback = Mock(spec=Callback, state_key="mock", _legacy_state_key="mock")
    callback.state_dict.return_value = {}
    return callback


@pytest.mark.parametrize("make", [Duck, wrapper, mock, ByAttribute])
def test_a_callback_that_is_not_a_plain_one_is_left_to_lightning(make: Callable[[], Any]) -> None:
    def callbacks() -> list[Any]:
        return [make()]

    says, trainer = twins(BoringModel, callbacks=callbacks, **LIMITS)
    assert says.startswith("Lightning's own step (")
    assert says.endswith(" is not a plain Callback)")
    assert trainer.global_step == 18


# Optimizers and losses


class Twice(LightningOptimizer):
    """Lightning's wrapper of an optimizer, that steps twice."""

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        super().step(closure, **kwargs)
        return super().step(closure, **kwargs)


class OptimizerWrapper:
    """An optimizer that answers by `__getattr__`."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class OwnStepWrapper(OptimizerWrapper):
    def step(self, closure: Any = None) -> Any:
        self.inner.step(closure)
        return self.inner.step()


class OwnZeroGradWrapper(OptimizerWrapper):
    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


def lightning_optimizer(parameters: Any) -> Any:
    return LightningOptimizer(SGD(parameters, 0.1))


def lightning_optimizer_subclass(parameters: Any) -> Any:
    return Twice(SGD(parameters, 0.1))


def wrapped_optimizer(parameters: Any) -> Any:
    return OptimizerWrapper(SGD(parameters, 0.1))


def wrapper_with_own_step(parameters: Any) -> Any:
    return OwnStepWrapper(SGD(parameters, 0.1))


def wrapper_with_own_zero_grad(parameters: Any) -> Any:
    return OwnZeroGradWrapper(SGD(parameters, 0.1))


def zero_grad_set_on_the_object(parameters: Any) -> Any:
    optimizer = SGD(parameters, 0.1)
    optimizer.zero_grad = Mock()  # type: ignore[method-assign]
    return optimizer


@pytest.mark.parametrize("make", [
    lightning_optimizer, lightning_optimizer_subclass, wrapped_optimizer, wrapper_with_own_step,
    wrapper_with_own_zero_grad, zero_grad_set_on_the_object,
])  # fmt: skip
def test_an_optimizer_with_methods_of_its_own_is_asked(make: Callable[[Any], Any]) -> None:
    if not isinstance(make(BoringModel().parameters()), Optimizable):
        pytest.skip("from Python 3.12 on Lightning itself refuses an optimizer whose attributes are those of another")

    class Own(BoringModel):
        def configure_optimizers(self) -> Any:
            return make(self.parameters())

    twins(Own, hooks=BATCH, **LIMITS)


class Unscheduled(BoringModel):
    """A module whose optimizer's `step` is torch's; a schedule wraps that."""

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_a_hook_of_an_optimizer_that_comes_in_a_step_is_called_as_by_torch(register: str) -> None:
    class Registering(Unscheduled):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                optimizer: Any = self.optimizers()
                getattr(optimizer.optimizer, register)(partial(shrink, self))
            return super().training_step(batch, batch_idx)

    twins(Registering, **LIMITS)


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_a_hook_of_all_optimizers_is_called(register: Callable[..., Any]) -> None:
    seen = []
    hook = register(lambda optimizer, args, kwargs: seen.append((type(optimizer), len(args), [*kwargs])))
    twins(Unscheduled, **LIMITS)
    hook.remove()
    assert seen == 2 * 18 * [(SGD, 1, ["closure"])]


def test_a_wrapped_step_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    SGD(Unscheduled().parameters(), 0.1)  # so that torch has wrapped it before
    inner, calls = SGD.step, []

    @wraps(inner)
    def step(self: SGD, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(SGD, "step", step)
    twins(Unscheduled, **LIMITS)
    assert len(calls) == 2 * 18


def test_a_profiler_of_torch_sees_each_update() -> None:
    for engine in (True, False):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trained(Unscheduled, engine=engine, **LIMITS)
        counts = {event.key: event.count for event in profiler.key_averages()}
        assert counts["Optimizer.step#SGD.step"] == 18


class Doubled(Tensor):
    """A loss whose gradient is twice what it should be."""

    def backward(self, *args: Any, **kwargs: Any) -> None:
        super().backward(torch.full_like(self, 2.0))  # type: ignore[no-untyped-call]


class Boxed:
    """A loss that is no tensor."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss

    def __truediv__(self, number: int) -> "Boxed":
        return Boxed(self.loss / number)

    def detach(self) -> Tensor:
        return self.loss.detach()

    def backward(self) -> None:
        (3 * self.loss).backward()


def subclass(loss: Tensor) -> Any:
    return loss.as_subclass(Doubled)


def subclass_in_a_dict(loss: Tensor) -> Any:
    return {"loss": loss.as_subclass(Doubled)}


def object_in_a_dict(loss: Tensor) -> Any:
    return {"loss": Boxed(loss)}


def set_on_the_tensor(loss: Tensor) -> Any:
    loss.backward = Mock()  # type: ignore[method-assign]
    return loss


def parameter(loss: Tensor) -> Any:
    return torch.nn.Parameter(loss.detach())


@pytest.mark.parametrize("as_loss", [subclass, subclass_in_a_dict, object_in_a_dict, set_on_the_tensor, parameter])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_loss_with_its_own_backward_is_asked(as_loss: Callable[[Tensor], Any], batches: int) -> None:
    class Own(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return as_loss(self.layer(batch).square().mean())

    twins(Own, accumulate_grad_batches=batches, **LIMITS)


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_step_that_disables_gradients_fails_as_in_lightning(batches: int, engine: bool) -> None:
    class Disabling(Unscheduled):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch).square().mean()
            torch.set_grad_enabled(False)
            return loss

    with pytest.raises(RuntimeError, match="does not require grad"):
        trained(Disabling, engine=engine, accumulate_grad_batches=batches, **LIMITS)
    assert torch.is_grad_enabled()


def test_a_callback_may_change_the_loss_in_place() -> None:
    def double(trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        loss.data.mul_(2)

    class Keeping(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.kept = self.layer(batch).square().mean()
            return self.kept

        def on_train_batch_end(self, *args: Any) -> None:
            self.log("kept", self.kept)

    twins(Keeping, callbacks=on("on_before_backward", double), **LIMITS)


class OwnBackwardOfIntegers(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.tensor(3)

    def backward(self, loss: Tensor) -> None:
        pass


def test_a_loss_of_integers_becomes_a_float() -> None:
    twins(OwnBackwardOfIntegers, hooks=["on_train_batch_end"], **LIMITS)


# Strategies, precisions, loops


class OwnBackward(SingleDeviceStrategy):
    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(2 * closure_loss, *args, **kwargs)


class OwnStep(SingleDeviceStrategy):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return {"loss": 3 * super().training_step(*args, **kwargs)["loss"]}  # type: ignore[index]


class OwnTransfer(SingleDeviceStrategy):
    def batch_to_device(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().batch_to_device(batch, *args, **kwargs)


class OwnPrecision(Precision):
    def convert_input(self, data: Any) -> Any:
        return 2 * data

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        return super().pre_backward(3 * tensor, module)


def own_backward() -> dict[str, Any]:
    return {"strategy": OwnBackward("cpu")}


def own_training_step() -> dict[str, Any]:
    return {"strategy": OwnStep("cpu")}


def own_batch_to_device() -> dict[str, Any]:
    return {"strategy": OwnTransfer("cpu")}


def backward_set_on_it() -> dict[str, Any]:
    strategy = SingleDeviceStrategy("cpu")
    strategy.backward = Mock()  # type: ignore[method-assign]
    return {"strategy": strategy}


def on_train_batch_start_set_on_it() -> dict[str, Any]:
    def empty(batch: Tensor, batch_idx: int) -> None:
        batch.zero_()

    strategy = SingleDeviceStrategy("cpu")
    strategy.on_train_batch_start = empty  # type: ignore[method-assign]
    return {"strategy": strategy}


def pre_backward_set_on_it() -> dict[str, Any]:
    """What it does depends on where Lightning says that it is called."""
    strategy = SingleDeviceStrategy("cpu")

    def pre_backward(closure_loss: Tensor) -> None:
        module: Any = strategy.lightning_module
        if module._current_fx_name == "backward":
            closure_loss.data.zero_()
            module.layer.bias.data.add_(1)

    strategy.pre_backward = pre_backward  # type: ignore[method-assign]
    return {"strategy": strategy}


def clip_gradients_set_on_it() -> dict[str, Any]:
    """Lightning calls it in each step, also where nothing is to be clipped."""

    def clip(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.mul_(0.5)

    precision = Precision()
    precision.clip_gradients = clip  # type: ignore[method-assign]
    return {"plugins": precision}


def own_precision() -> dict[str, Any]:
    return {"plugins": OwnPrecision()}


def bf16_mixed() -> dict[str, Any]:
    return {"precision": "bf16-mixed"}


def fp16_mixed() -> dict[str, Any]:
    return {"precision": "16-mixed"}


@pytest.mark.parametrize("options", [
    own_backward, own_training_step, own_batch_to_device, backward_set_on_it, on_train_batch_start_set_on_it,
    pre_backward_set_on_it, clip_gradients_set_on_it, own_precision, bf16_mixed, fp16_mixed,
])  # fmt: skip
def test_a_strategy_or_precision_with_methods_of_its_own_is_asked(options: Callable[[], dict[str, Any]]) -> None:
    ours = trained(BoringModel, engine=True, **LIMITS, **options())
    theirs = trained(BoringModel, engine=False, **LIMITS, **options())
    same(ours[0], theirs[0])


# In mid-epoch


def halve(module: LightningModule) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


def shrink(module: LightningModule, *_: Any) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.9)


class Halving(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)


class DoubledLoss(nn.Module):
    """A module around a module, as DistributedDataParallel is one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        output = self.inner(*args)
        if output:
            output = {"loss": 2 * output["loss"]}
        return output


class OwnSGD(SGD):
    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


class OwnLoop(_AutomaticOptimization):
    def _make_backward_fn(self, optimizer: Any) -> Any:
        def backward(loss: Tensor) -> None:
            (2 * loss).backward()

        return backward


# What comes: each function changes something at a module or its Trainer, which holds from then on.


def sets_on_after_backward(module: Any) -> None:
    module.on_after_backward = partial(halve, module)


def sets_on_before_optimizer_step(module: Any) -> None:
    def on_before_optimizer_step(optimizer: Any) -> None:
        halve(module)

    module.on_before_optimizer_step = on_before_optimizer_step


def sets_on_train_batch_start(module: Any) -> None:
    module.on_train_batch_start = Mock(return_value=-1)  # ends the epoch


def sets_on_train_batch_end(module: Any) -> None:
    def on_train_batch_end(outputs: Any, batch: Any, batch_idx: int) -> None:
        module.layer.weight.data.mul_(0.5)

    module.on_train_batch_end = on_train_batch_end


def sets_on_before_zero_grad(module: Any) -> None:
    def on_before_zero_grad(optimizer: Any) -> None:
        module.layer.weight.data.mul_(0.5)

    module.on_before_zero_grad = on_before_zero_grad


def sets_optimizer_step(module: Any) -> None:
    def optimizer_step(epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> None:
        closure()  # and no step

    module.optimizer_step = optimizer_step


def sets_backward(module: Any) -> None:
    def backward(loss: Tensor) -> None:
        (2 * loss).backward()

    module.backward = backward


def sets_clipping(module: Any) -> None:
    def configure_gradient_clipping(optimizer: Any, **_: Any) -> None:
        halve(module)

    module.configure_gradient_clipping = configure_gradient_clipping


def sets_transfer(module: Any) -> None:
    def on_after_batch_transfer(batch: Tensor, dataloader_idx: int) -> Tensor:
        return 2 * batch

    module.on_after_batch_transfer = on_after_batch_transfer


def sets_training_step(module: Any) -> None:
    def training_step(batch: Tensor, batch_idx: int) -> Any:
        return {"loss": 2 * module.layer(batch).square().mean()}

    module.training_step = training_step


def sets_training_step_without_index(module: Any) -> None:
    def training_step(batch: Tensor) -> Any:
        return {"loss": 2 * module.layer(batch).square().mean()}

    module.training_step = training_step


def sets_a_hook_of_the_class(module: Any) -> None:
    type(module).on_after_backward = halve


def sets_a_hook_in_backward(module: Any) -> None:
    """A tensor's hook sets one on the module."""

    def set_hook(gradient: Tensor) -> None:
        sets_on_before_optimizer_step(module)

    module.layer.weight.register_hook(set_hook)


def sets_a_hook_as_an_attribute_goes(module: Any) -> None:
    del module.spare
    sets_on_after_backward(module)


def adds_a_callback(module: Any) -> None:
    module.trainer.callbacks.append(Halving())


def adds_a_duck(module: Any) -> None:
    module.trainer.callbacks.append(Duck())


def adds_a_mock(module: Any) -> None:
    module.trainer.callbacks.append(mock())


def exchanges_a_callback(module: Any) -> None:
    module.trainer.callbacks[-2] = Halving()


def exchanges_the_list_of_callbacks(module: Any) -> None:
    module.trainer.callbacks = [*module.trainer.callbacks[:-1], Halving()]


def sets_a_hook_of_a_callback(module: Any) -> None:
    module.trainer.callbacks[-1].on_after_backward = Halving().on_after_backward


def sets_gradient_clip_val(module: Any) -> None:
    module.trainer.gradient_clip_val = 0.001


def sets_accumulate_grad_batches(module: Any) -> None:
    module.trainer.accumulate_grad_batches = 2


def exchanges_the_optimizers(module: Any) -> None:
    module.trainer.optimizers = [OwnSGD(module.parameters(), 0.05)]


def exchanges_the_precision(module: Any) -> None:
    module.trainer.strategy.precision_plugin = OwnPrecision()


def sets_backward_of_the_strategy(module: Any) -> None:
    module.trainer.strategy.backward = Mock()


def exchanges_the_loop(module: Any) -> None:
    module.trainer.fit_loop.epoch_loop.automatic_optimization = OwnLoop(module.trainer)


def sets_a_profiler(module: Any) -> None:
    module.trainer.profiler = SimpleProfiler()


def begins_the_loader_anew(module: Any) -> None:
    iter(module.trainer.fit_loop._combined_loader)


def wraps_the_model(module: Any) -> None:
    module.trainer.strategy.model = DoubledLoss(module)


def sets_a_method_of_the_loop(module: Any) -> None:
    loop = module.trainer.fit_loop.epoch_loop.automatic_optimization
    loop._make_backward_fn = OwnLoop(module.trainer)._make_backward_fn


def has_another_class(module: Any) -> None:
    class Other(type(module)):  # type: ignore[misc]
        on_after_backward = halve

    module.__class__ = Other


def has_a_callback_of_another_class(module: Any) -> None:
    class Other(type(module.trainer.callbacks[-1])):  # type: ignore[misc]
        def on_after_backward(self, trainer: Any, module: LightningModule) -> None:
            halve(module)

    module.trainer.callbacks[-1].__class__ = Other


def validates_in_another_trainer(module: Any) -> None:
    """Lightning clips as the Trainer says to which the module belongs, from here on that one."""
    Trainer(**QUIET, gradient_clip_val=0.001, limit_val_batches=1).validate(module, verbose=False)


def skips_backward_from_the_next_step_on(module: Any) -> None:
    sets_on_after_backward(module)
    module.trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward = True


def freezes(module: Any) -> None:
    module.layer.weight.requires_grad = False


CHANGES = [
    sets_on_after_backward, sets_on_before_optimizer_step, sets_on_train_batch_start, sets_on_train_batch_end,
    sets_on_before_zero_grad, sets_optimizer_step, sets_backward, sets_clipping, sets_transfer, sets_training_step,
    sets_training_step_without_index, sets_a_hook_of_the_class, sets_a_hook_in_backward,
    sets_a_hook_as_an_attribute_goes, adds_a_callback, adds_a_duck, adds_a_mock, exchanges_a_callback,
    exchanges_the_list_of_callbacks, sets_a_hook_of_a_callback, sets_gradient_clip_val,
    sets_accumulate_grad_batches, exchanges_the_optimizers, exchanges_the_precision, sets_backward_of_the_strategy,
    exchanges_the_loop, sets_a_profiler, begins_the_loader_anew, wraps_the_model, sets_a_method_of_the_loop,
    has_another_class, has_a_callback_of_another_class, validates_in_another_trainer,
    skips_backward_from_the_next_step_on, freezes,
]  # fmt: skip


def changing(change: Callable[[Any], None], where: str) -> BoringModel:
    """A module, of a class of its own, that makes a change once: in the fourth step, or in the first validation."""

    class Changing(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.done, self.spare = False, 0

        def change(self) -> None:
            if not self.done:
                self.done = True
                change(self)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch).square().mean()
            if where == "training_step" and batch_idx == 3:
                self.change()
            return {"loss": loss}

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "validation_step":
                self.change()

    return Changing()


@pytest.mark.parametrize("where", [
    "training_step",
    pytest.param("validation_step", marks=pytest.mark.slow),
    pytest.param("on_train_batch_start", marks=pytest.mark.slow),
    pytest.param("on_train_batch_end", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_in_mid_epoch_counts_at_once(change: Callable[[Any], None], where: str) -> None:
    def change_at_four(trainer: Trainer, module: Any, *args: Any) -> None:
        if args[-1] == 3:
            module.change()

    options: dict[str, Any] = {"val_check_interval": 5, "max_epochs": 1, **LIMITS}
    if where.startswith("on_"):
        options["callbacks"] = on(where, change_at_four)
    twins(partial(changing, change, where), **options)


def test_a_hook_may_be_replaced_and_removed_again() -> None:
    class Replacing(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                self.on_after_backward = partial(halve, self)  # type: ignore[method-assign]
            if batch_idx == 4:
                self.on_after_backward = Mock()  # type: ignore[method-assign]
            if batch_idx == 6:
                del self.on_after_backward
            return super().training_step(batch, batch_idx)

    twins(Replacing, **LIMITS)


# In the last moment of a step, after its loss is known: each class changes something there, once.


class AtLast(BoringModel):
    """A module that makes a change when `count` is called for the fourth time."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        self.make_change, self.calls = change, 0

    def count(self, *_: Any) -> Any:
        self.calls += 1
        if self.calls == 4:
            self.make_change(self)


class ByHand(AtLast):
    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__(change)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch).square().mean())
        optimizer.step()
        self.count()


class InOptimizerStep(AtLast):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.count()


class AfterOptimizer(AtLast):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        optimizer.register_step_post_hook(self.count)
        return optimizer


class InSchedule(AtLast):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), 0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, self.factor), "interval": "step"}]

    def factor(self, step: int) -> float:
        self.count()
        return 0.9**step


class InBackward(AtLast):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        loss.register_hook(self.count)
        return loss


class InZeroGrad(AtLast):
    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.count()


@pytest.mark.parametrize("change", [sets_on_train_batch_end, sets_on_after_backward, adds_a_callback])
@pytest.mark.parametrize("make", [ByHand, InOptimizerStep, AfterOptimizer, InSchedule, InBackward, InZeroGrad])
def test_what_comes_late_in_a_step_counts_in_that_step(make: type[AtLast], change: Callable[[Any], None]) -> None:
    twins(partial(make, change), **LIMITS)
    twins(partial(make, change), accumulate_grad_batches=1 if make is ByHand else 2, **LIMITS)


@pytest.mark.parametrize("engine", [True, False])
def test_a_validation_of_the_same_trainer_within_a_hook_fails_as_in_lightning(engine: bool) -> None:
    def validate(trainer: Trainer, module: LightningModule, *args: Any) -> None:
        trainer.validate(module, verbose=False)

    with pytest.raises(AssertionError):
        trained(BoringModel, engine=engine, callbacks=on("on_before_zero_grad", validate), **LIMITS)


def test_a_trainer_may_be_copied_in_mid_epoch() -> None:
    def copy_it(trainer: Trainer, *_: Any) -> None:
        copies.append(deepcopy(trainer))

    copies: list[Trainer] = []
    twins(BoringModel, callbacks=on("on_train_batch_start", copy_it), limit_train_batches=2, limit_val_batches=1)
    assert len(copies) == 8


class OwnEpochLoop(_TrainingEpochLoop):
    pass


def test_another_loop_is_said_to_train() -> None:
    trainer = Trainer(**QUIET, **LIMITS, callbacks=[Engine()])
    trainer.fit_loop.epoch_loop = OwnEpochLoop(trainer)
    trainer.fit(BoringModel())
    assert Engine().describe(trainer) == "Lightning's own step (another package's loop)"


def test_a_loop_with_a_method_set_on_it_is_asked() -> None:
    def validate_always(trainer: Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop._should_check_val_fx = Mock(return_value=True)  # type: ignore[method-assign]

    says, _ = twins(BoringModel, hooks=BATCH, callbacks=on("on_train_start", validate_always), **LIMITS)
    assert says == "Lightning's own step (_TrainingEpochLoop with its own _should_check_val_fx)"


class EveryOther(_FitLoop):
    def _should_accumulate(self) -> bool:
        return self.batch_idx % 2 == 0


def test_a_fit_loop_with_a_method_of_its_own_is_asked() -> None:
    def exchange_class(trainer: Trainer, *_: Any) -> None:
        trainer.fit_loop.__class__ = EveryOther

    _, trainer = twins(BoringModel, callbacks=on("on_train_start", exchange_class), **LIMITS)
    assert trainer.global_step == 8


def test_debug_messages_are_those_of_lightnings_step(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lightning.pytorch"):
        _, says, _ = trained(BoringModel, **LIMITS)
    assert says == "Lightning's own step (Lightning's debug messages name each hook)"
    assert caplog.text.count("Trainer: calling callback hook: on_after_backward") == 18
