"""With the engine and without it: the same weights, checkpoints, metrics, random numbers and calls."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from examples.mlp import MLP
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.demos import boring_classes as demos
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from twins import ALL, BATCH, on, trained, twins

from softmax_regression import FashionMNISTDataModule, SoftmaxRegression

pytestmark = pytest.mark.filterwarnings("ignore")
Plateau = lr_scheduler.ReduceLROnPlateau


class Mixed(LightningModule):
    """BatchNorm and dropout, something logged on each step, and an output with more than the loss."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 10)
        self.net = nn.Sequential(nn.Flatten(), *layers)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), 0.1)


class ByHand(Mixed):
    """Manual optimization of two optimizers, every other step one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss, schedules = F.cross_entropy(self.net(batch[0]), batch[1]), self.lr_schedulers()
        optimizer = self.optimizers()[batch_idx % 2]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if isinstance(schedules, list):
            for schedule in schedules:
                if isinstance(schedule, Plateau):
                    schedule.step(loss.detach())
                else:
                    schedule.step()


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, 0.1)


def momentum(parameters: Any) -> SGD:
    return SGD(parameters, 0.1, momentum=0.9)


def lbfgs(parameters: Any) -> LBFGS:
    return LBFGS(parameters, max_iter=3)


def cosine(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.2, steps + 1)


def plateau(optimizer: Any, steps: int) -> Any:
    return Plateau(optimizer, patience=0)


def each_epoch(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.StepLR(optimizer, 1)


MODULES = {"linear": SoftmaxRegression, "MLP": MLP, "BatchNorm and dropout": Mixed, "by hand": ByHand}
OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, int], Any] | None]] = {
    "SGD": (sgd, None),
    "momentum": (momentum, None),
    "Adam": (Adam, None),
    "cosine": (sgd, cosine),
    "OneCycle": (momentum, one_cycle),
    "plateau": (sgd, plateau),
    "bf16-mixed": (sgd, None),
    "plateau by step": (sgd, plateau),
    "StepLR": (sgd, each_epoch),
    "LBFGS": (lbfgs, None),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_steps": {"max_steps": 9, "max_epochs": -1},
    "val_check_interval": {"val_check_interval": 3},
    "limits": {"limit_train_batches": 5, "limit_val_batches": 1},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.05},
    "kill and resume": {},
}


def matrix() -> list[Any]:
    """Each module with each optimizer in each setting.

    Those that are not slow have each module in each setting; .ci/run adds two optimizers to each of these.
    """
    cases: list[Any] = []
    for row, module in enumerate(MODULES):
        for column, setting in enumerate(SETTINGS):
            if module == "by hand" and setting in ("accumulation", "clipping"):
                continue  # which Lightning refuses
            for place, optimizer in enumerate(list(OPTIMIZERS)[:7]):
                hooks = ((), BATCH, ALL)[len(cases) % 3]
                turn = (place - 2 * row - column) % 7
                marks = []
                if turn > 0:
                    marks.append(pytest.mark.slow)
                if turn > 2:
                    marks.append(pytest.mark.table)
                name = f"{module}, {optimizer}, {setting}"
                cases.append(pytest.param(module, optimizer, setting, hooks, marks=marks, id=name))
    return cases


def with_optimizer(make: Callable[[], LightningModule], name: str) -> Callable[[], LightningModule]:
    """A module whose optimizers, two where it is optimized by hand, are of this kind."""

    def configure_optimizers(module: LightningModule) -> Any:
        parameters, steps = list(module.parameters()), int(module.trainer.estimated_stepping_batches)
        make_optimizer, make_schedule = OPTIMIZERS[name]
        if module.automatic_optimization:
            optimizers = [make_optimizer(parameters)]
        else:
            optimizers = [make_optimizer(parameters[:2]), make_optimizer(parameters[2:])]
        how = {"interval": "step", "monitor": "val/loss"}
        if name in ("plateau", "StepLR"):
            how["interval"] = "epoch"
        if name == "plateau by step":
            how["monitor"] = "loss_step"
        schedules = []
        if make_schedule:
            for optimizer in optimizers:
                schedules.append({"scheduler": make_schedule(optimizer, steps), **how})
        return optimizers, schedules

    def module() -> LightningModule:
        made = make()
        made.configure_optimizers = partial(configure_optimizers, made)  # type: ignore[method-assign]
        return made

    return module


@pytest.fixture(scope="module")
def data() -> Callable[[], FashionMNISTDataModule]:
    module = FashionMNISTDataModule(32, 50, 200, "synthetic", synthetic_size=250)

    def same_module() -> FashionMNISTDataModule:
        return module

    return same_module


class Halt(Exception):  # noqa: N818 (it stands for a kill)
    """A kill."""


def kill(path: Path, step: int, trainer: Trainer, *_: Any) -> None:
    """Save a checkpoint, and end the run, at the first call of a hook after so many batches."""
    if trainer.fit_loop.total_batch_idx >= step:
        trainer.save_checkpoint(path)
        raise Halt


@pytest.mark.parametrize(("module", "optimizer", "setting", "hooks"), matrix())
def test_runs_are_equal_to_the_last_bit(
    module: str, optimizer: str, setting: str, hooks: Sequence[str], data: Any, tmp_path: Path
) -> None:
    make, options = with_optimizer(MODULES[module], optimizer), SETTINGS[setting].copy()
    if optimizer == "bf16-mixed":
        options["precision"] = optimizer
    if setting == "kill and resume":
        path = tmp_path / "killed.ckpt"
        with pytest.raises(Halt):
            trained(make, data, callbacks=on("on_train_batch_end", partial(kill, path, 4)), **options)
        options["ckpt_path"] = path
    says, trainer = twins(make, data, hooks=hooks, **options)
    assert says.startswith("lean step")
    assert trainer.global_step > 0


@pytest.mark.parametrize("saved_by", [True, False])
@pytest.mark.parametrize(("hook", "step"), [
    ("on_train_batch_end", 6), ("on_validation_end", 2), ("on_validation_end", 6), ("on_train_epoch_end", 3),
])  # fmt: skip
def test_a_run_goes_on_alike_wherever_it_was_saved_and_by_whom(
    hook: str, step: int, saved_by: bool, data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "killed.ckpt"
    options: dict[str, Any] = {"val_check_interval": 3, "max_epochs": 3}
    with pytest.raises(Halt):
        trained(Mixed, data, saved_by, callbacks=on(hook, partial(kill, path, step)), **options)
    _, trainer = twins(Mixed, data, hooks=BATCH, ckpt_path=path, **options)
    assert trainer.current_epoch == 3


class Own(demos.BoringModel):
    """Skipped steps, an epoch that ends early, and hooks of the module's own, some set on the object."""

    def __init__(self) -> None:
        super().__init__()
        self.on_after_backward = partial(self.log, "after", 1.0)  # type: ignore[method-assign]
        self.on_before_backward = Mock()  # type: ignore[method-assign]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        self.log("started", float(batch_idx))
        if batch_idx == 20:
            return -1
        return None

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        loss = self.layer(batch["x"]).square().mean()
        loss.register_hook(partial(self.log, "gradient"))
        if self.current_epoch and self.global_step % 4 == 3:
            return None
        return {"loss": loss, "x": batch["x"]}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if self.layer.weight.grad is not None:
            self.clip_gradients(optimizer, 0.01, "value")


class OwnUpdate(demos.BoringModel):
    on_train_batch_start = None  # type: ignore[assignment] # nobody to call

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        if batch_idx % 2:
            optimizer.step(closure=closure)
        else:
            closure()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def backward(self, loss: Tensor) -> None:
        (2 * loss).backward()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch * 2


class Half(torch.optim.SGD):
    """An optimizer that keeps half of each gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class OwnOptimizer(demos.BoringModel):
    def configure_optimizers(self) -> Any:
        return Half(self.parameters(), 0.1)


class Signs(torch.optim.SGD):
    """An optimizer that steps by signs, without gradients from its first line on."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad.sign(), alpha=0.01)
        return loss


class StepsBySigns(demos.BoringModel):
    def configure_optimizers(self) -> Any:
        return Signs(self.parameters(), 0.1)


class OfLists(demos.BoringModel):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        loss = self.step(batch.pop() + batch.pop())
        assert batch == []  # its own list, that it may empty
        return loss


class OfDicts(demos.BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(batch["a"] + batch["b"])


class ByIterator(demos.BoringModel):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return {"loss": self.step(next(dataloader_iter)[0])}


class Rows(IterableDataset[Any]):
    """Rows without a known length."""

    def __init__(self, n: int) -> None:
        self.rows = torch.randn(n, 4, 32, generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class Sized(Rows):
    def __len__(self) -> int:
        return len(self.rows)


class SizedDicts(Sized):
    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            yield {"x": row}


class SizedLists(Sized):
    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            yield [row, row]


class SizedNones(Sized):
    """Some of its batches are None."""

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            if row[0, 0] > 0:
                yield row
            else:
                yield None


def stop(trainer: Trainer, *args: Any) -> None:
    trainer.should_stop = trainer.should_stop or args[-1] == 3


def limit(trainer: Trainer, *args: Any) -> None:
    trainer.limit_train_batches = 2


def pairs() -> tuple[DataLoader[Any], DataLoader[Any]]:
    g = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(40, 784, generator=g), torch.randint(10, (40,), generator=g))
    return DataLoader(rows, 8, shuffle=True), DataLoader(rows, 8)


def transformer() -> LightningModule:
    module = LightningTransformer(50)
    module.prepare_data = Mock()  # type: ignore[method-assign] # it downloads
    return module


def tokens() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*torch.randint(50, (2, 12, 9)).unbind()), 4)


def without_length() -> tuple[Rows, Rows]:
    return Rows(9), Rows(3)


def compiled() -> Any:
    return torch.compile(Boring(), backend="eager")


def accumulation() -> list[Callback]:
    return [GradientAccumulationScheduler({0: 3, 1: 2})]


def swa() -> list[Callback]:
    return [StochasticWeightAveraging(0.01)]


Boring = demos.BoringModel
Case = tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]
FEW = {"limit_val_batches": 2}
SHORT = FEW | {"limit_train_batches": 9}
STEPS = {"val_check_interval": 7, "check_val_every_n_epoch": None}
STOP = {"callbacks": on("on_train_batch_end", stop)}
CASES: dict[str, Case] = {
    "dict batches, skipped steps, own hooks": (Own, partial(SizedDicts, 24), FEW),
    "own update and transfer": (OwnUpdate, tuple, SHORT),
    "own zero_grad of the optimizer": (OwnOptimizer, tuple, SHORT),
    "an optimizer without gradients": (StepsBySigns, tuple, SHORT),
    "a batch is a list": (OfLists, partial(SizedLists, 9), FEW),
    "None batches": (Boring, partial(SizedNones, 9), FEW),
    "several loaders": (OfDicts, partial(dict, a=Sized(9), b=Sized(4)), FEW),
    "dataloader_iter": (ByIterator, partial(Sized, 9), FEW),
    "no length": (Boring, without_length, {"val_check_interval": 4}),
    "no length, limits": (Boring, without_length, {"limit_train_batches": 5}),
    "no length, a limit that comes": (Boring, without_length, {"callbacks": on("on_train_batch_start", limit)}),
    "a callback says -1": (Boring, tuple, SHORT | {"callbacks": on("on_train_batch_start", Mock(return_value=-1))}),
    "should_stop": (Boring, tuple, SHORT | STOP),
    "min_steps": (Mixed, pairs, STOP | {"min_steps": 7}),
    "min_epochs": (Mixed, pairs, STOP | {"min_epochs": 2}),
    "accumulation": (Mixed, pairs, {"callbacks": accumulation}),
    "SWA": (Mixed, pairs, {"callbacks": swa, "max_epochs": 4}),
    "plateau by step": (with_optimizer(Mixed, "plateau by step"), pairs, {}),
    "profiler": (Mixed, pairs, {"profiler": "simple"}),
    "validation by time": (Boring, tuple, SHORT | {"val_check_interval": timedelta(0)}),
    "validation by steps": (Mixed, pairs, STEPS),
    "half epochs": (Mixed, pairs, {"val_check_interval": 0.5, "accumulate_grad_batches": 2}),
    "reload": (Boring, tuple, SHORT | {"reload_dataloaders_every_n_epochs": 1}),
    "barebones": (Boring, tuple, SHORT | {"barebones": True, "max_epochs": 1}),
    "deterministic": (Mixed, pairs, {"deterministic": True}),
    "detect_anomaly": (Mixed, pairs, {"detect_anomaly": True}),
    "16-mixed, clipping": (Mixed, pairs, {"precision": "16-mixed", "gradient_clip_val": 0.1}),
    "64-true": (Mixed, pairs, {"precision": "64-true"}),
    "torch.compile": (compiled, tuple, SHORT),
    "demo model": (demos.DemoModel, partial(Sized, 9), FEW),
    "demo by hand": (demos.ManualOptimBoringModel, tuple, SHORT),
    "demo data module": (Boring, demos.BoringDataModule, SHORT),
    "demo without a length": (Boring, demos.BoringDataModuleNoLen, SHORT),
    "demo transformer": (transformer, tokens, {"max_epochs": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_other_modules_loaders_and_options_are_equal_too(case: str) -> None:
    make, loaders, options = CASES[case]
    for hooks in ((), ALL):
        says, _ = twins(make, loaders, hooks=hooks, **options)
        assert says.startswith("lean") == (case not in ("dataloader_iter", "profiler"))
