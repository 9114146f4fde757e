"""Loaders, callbacks, optimizers, losses and strategies with methods of their own, and what comes in mid-epoch."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.optim import SGD, Optimizer
from twins import BATCH, on, same, trained, twins

pytestmark = pytest.mark.filterwarnings("ignore")
LIMITS: dict[str, Any] = {"limit_train_batches": 9, "limit_val_batches": 2}


# Loaders


class OwnIterator:
    """A loader that is its own iterator, and shuffles whenever `iter` is called."""

    def __init__(self, length: bool) -> None:
        self.rows = torch.randn(9, 4, 32, generator=torch.Generator().manual_seed(0))
        self.generator = torch.Generator().manual_seed(1)
        if length:
            self.__class__ = type("Sized", (OwnIterator,), {"__len__": lambda loader: len(loader.rows)})

    def __iter__(self) -> Iterator[Tensor]:
        self.order = torch.randperm(len(self.rows), generator=self.generator).tolist()
        return self

    def __next__(self) -> Tensor:
        if not self.order:
            raise StopIteration
        return self.rows[self.order.pop()]


class EveryTwice(CombinedLoader):
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


@pytest.mark.parametrize("length", [True, False])
def test_a_loader_that_is_its_own_iterator_is_asked_for_one_iterator_an_epoch(length: bool) -> None:
    says, _ = twins(BoringModel, lambda: OwnIterator(length), hooks=BATCH, max_epochs=3)
    assert says == "lean step"


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_a_combined_loader_with_its_own_next_is_asked(mode: Any) -> None:
    twins(BoringModel, lambda: EveryTwice(OwnIterator(True), mode), max_epochs=2)


def test_another_fetcher_is_asked() -> None:
    twins(BoringModel, lambda: OwnIterator(True), callbacks=on("on_train_epoch_start", with_fetcher))


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
            parameter.grad = None if parameter.grad is None else 2 * parameter.grad


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


def mock() -> Any:
    return Mock(spec=Callback, state_key="mock", _legacy_state_key="mock", state_dict=lambda: {})


CALLBACKS: dict[str, Callable[[], Any]] = {
    "duck type": Duck,
    "wrapper": lambda: Wrapper(on("on_after_backward", Duck().on_after_backward)()[0]),
    "mock": mock,
    "__getattribute__": ByAttribute,
}


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_callback_that_is_not_a_plain_one_is_left_to_lightning(kind: str) -> None:
    says, trainer = twins(BoringModel, callbacks=lambda: [CALLBACKS[kind]()], **LIMITS)
    assert says.startswith("Lightning's own step (")
    assert says.endswith(" is not a plain Callback)")
    assert trainer.global_step == 18


# Optimizers and losses


class Twice(LightningOptimizer):
    """Lightning's wrapper of an optimizer, that steps twice."""

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        super().step(closure, **kwargs)
        return super().step(closure, **kwargs)


class OfAttributes:
    """An optimizer that answers by `__getattr__`, and has its own zero_grad or step."""

    def __init__(self, inner: Optimizer, own: str) -> None:
        self.inner, self.own = inner, own

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def step(self, closure: Any = None) -> Any:
        result = self.inner.step(closure)
        return self.inner.step() if self.own == "step" else result

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self.own != "zero_grad":
            self.inner.zero_grad(set_to_none)


def patched(optimizer: Optimizer) -> Optimizer:
    optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]
    return optimizer


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "LightningOptimizer": lambda p: LightningOptimizer(SGD(p, 0.1)),
    "its subclass": lambda p: Twice(SGD(p, 0.1)),
    "wrapper": lambda p: OfAttributes(SGD(p, 0.1), ""),
    "wrapper, own step": lambda p: OfAttributes(SGD(p, 0.1), "step"),
    "wrapper, own zero_grad": lambda p: OfAttributes(SGD(p, 0.1), "zero_grad"),
    "zero_grad set on the object": lambda p: patched(SGD(p, 0.1)),
}


def with_optimizer(make: Callable[[Any], Any]) -> Callable[[], LightningModule]:
    def module() -> LightningModule:
        made = BoringModel()
        made.configure_optimizers = lambda: make(made.parameters())  # type: ignore[method-assign]
        return made

    return module


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_with_methods_of_its_own_is_asked(kind: str) -> None:
    twins(with_optimizer(OPTIMIZERS[kind]), hooks=BATCH, **LIMITS)


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


def set_on_it(loss: Tensor) -> Tensor:
    loss.backward = lambda: None  # type: ignore[method-assign, assignment, misc]
    return loss


LOSSES: dict[str, Callable[[Tensor], Any]] = {
    "subclass": lambda loss: loss.as_subclass(Doubled),
    "subclass in a dict": lambda loss: {"loss": loss.as_subclass(Doubled)},
    "object in a dict": lambda loss: {"loss": Boxed(loss)},
    "set on the tensor": set_on_it,
    "a parameter": lambda loss: torch.nn.Parameter(loss.detach()),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("batches", [1, 2])
def test_a_loss_with_its_own_backward_is_asked(kind: str, batches: int) -> None:
    class Own(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return LOSSES[kind](self.layer(batch).square().mean())

    twins(Own, accumulate_grad_batches=batches, **LIMITS)


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


def changed(name: str, method: Callable[..., Any]) -> SingleDeviceStrategy:
    setattr(strategy := SingleDeviceStrategy("cpu"), name, method)
    return strategy


STRATEGIES: dict[str, Callable[[], dict[str, Any]]] = {
    "own backward": lambda: {"strategy": OwnBackward("cpu")},
    "own training_step": lambda: {"strategy": OwnStep("cpu")},
    "own batch_to_device": lambda: {"strategy": OwnTransfer("cpu")},
    "backward set on it": lambda: {"strategy": changed("backward", lambda *_: None)},
    "on_train_batch_start set on it": lambda: {"strategy": changed("on_train_batch_start", lambda x, _: x.zero_())},
    "own precision": lambda: {"plugins": OwnPrecision()},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: {"precision": "16-mixed"},
}


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_strategy_or_precision_with_methods_of_its_own_is_asked(kind: str) -> None:
    outcomes = [trained(BoringModel, engine=engine, **LIMITS, **STRATEGIES[kind]())[0] for engine in (True, False)]
    same(*outcomes)


# In mid-epoch


def halve(module: LightningModule) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


class Halving(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        halve(pl_module)


class OwnSGD(SGD):
    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


class OwnLoop(_AutomaticOptimization):
    def _make_backward_fn(self, optimizer: Any) -> Any:
        return lambda loss: (2 * loss).backward()


def patch_class(module: Any) -> None:
    type(module).on_after_backward = halve


def steps(module: Any, batch: Any) -> Any:
    return {"loss": 2 * module.layer(batch).square().mean()}


def hooked_later(module: Any) -> None:
    """A tensor's hook sets one on the module."""
    module.layer.weight.register_hook(lambda _: setattr(module, "on_before_optimizer_step", lambda _: halve(module)))


def replace_optimizer(module: Any) -> None:
    module.trainer.optimizers = [OwnSGD(module.parameters(), 0.05)]


def use(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def precision(module: Any) -> None:
    module.trainer.strategy.precision_plugin = OwnPrecision()


def loop(module: Any) -> None:
    module.trainer.fit_loop.epoch_loop.automatic_optimization = OwnLoop(module.trainer)


def profiler(module: Any) -> None:
    module.trainer.profiler = SimpleProfiler()


def callbacks(module: Any) -> list[Any]:
    found: list[Any] = module.trainer.callbacks
    return found


CHANGES: dict[str, Callable[[Any], None]] = {
    **{name: lambda m, name=name: use(m, name, lambda *_: halve(m)) for name in (  # type: ignore[misc]
        "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_before_zero_grad")},
    "on_train_batch_start": lambda m: use(m, "on_train_batch_start", lambda *_: -1),
    "optimizer_step": lambda m: use(m, "optimizer_step", lambda *args: args[-1]()),
    "backward": lambda m: use(m, "backward", lambda loss: (2 * loss).backward()),
    "clipping": lambda m: use(m, "configure_gradient_clipping", lambda *_, **__: halve(m)),
    "transfer": lambda m: use(m, "on_after_batch_transfer", lambda batch, _: 2 * batch),
    "training_step": lambda m: use(m, "training_step", lambda batch, batch_idx: steps(m, batch)),
    "training_step without index": lambda m: use(m, "training_step", lambda batch: steps(m, batch)),
    "hook of the class": patch_class,
    "hook of a tensor": hooked_later,
    "callback": lambda m: callbacks(m).append(Halving()),
    "duck callback": lambda m: callbacks(m).append(Duck()),
    "mock callback": lambda m: callbacks(m).append(mock()),
    "callback in another's place": lambda m: callbacks(m).__setitem__(-2, Halving()),
    "new list of callbacks": lambda m: setattr(m.trainer, "callbacks", [*callbacks(m)[:-1], Halving()]),
    "hook of a callback": lambda m: use(callbacks(m)[-1], "on_after_backward", lambda *_: halve(m)),
    "gradient_clip_val": lambda m: use(m.trainer, "gradient_clip_val", 0.001),
    "accumulate_grad_batches": lambda m: use(m.trainer, "accumulate_grad_batches", 2),
    "optimizers": replace_optimizer,
    "precision": precision,
    "strategy's backward": lambda m: use(m.trainer.strategy, "backward", lambda *_: None),
    "loop": loop,
    "profiler": profiler,
    "frozen": lambda m: use(m.layer.weight, "requires_grad", False),
}  # fmt: skip


def changing(change: str, where: str) -> type[BoringModel]:
    """A module that makes a change in the fourth step, in the first validation, or in a callback's hook."""

    class Changing(BoringModel):
        done = False

        def change(self) -> None:
            if not self.done:
                CHANGES[change](self)
            self.done = True

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch).square().mean()
            if where == "step" and batch_idx == 3:
                self.change()
            return {"loss": loss}

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if where == "validation":
                self.change()

    return Changing


@pytest.mark.parametrize("where", ["step", "validation", "start", "end"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_in_mid_epoch_counts_at_once(change: str, where: str) -> None:
    hook = {"start": "on_train_batch_start", "end": "on_train_batch_end"}.get(where, "on_fit_start")

    def change_at_four(trainer: Trainer, module: Any, *args: Any) -> None:
        if where in ("start", "end") and args[-1] == 3:
            module.change()

    made = changing(change, where)
    twins(lambda: type("Changing", (made,), {})(), callbacks=on(hook, change_at_four), val_check_interval=5, **LIMITS)


def test_a_hook_may_be_replaced_and_removed_again() -> None:
    class Replacing(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx in (2, 4):
                factor = float(batch_idx)
                self.on_after_backward = lambda: self.layer.weight.grad.mul_(factor)  # type: ignore[method-assign, union-attr, assignment]
            if batch_idx == 6:
                del self.on_after_backward
            return super().training_step(batch, batch_idx)

    twins(Replacing, **LIMITS)
