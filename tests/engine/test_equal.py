"""With the engine and without it: the same weights, checkpoints, metrics, random numbers and calls."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from examples.mlp import MLP
from lightning.pytorch import LightningModule, Trainer
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
        for schedule in schedules if isinstance(schedules, list) else []:
            schedule.step(*[loss.detach()] * isinstance(schedule, Plateau))  # type: ignore[arg-type]


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, 0.1)


MODULES = {"linear": SoftmaxRegression, "MLP": MLP, "BatchNorm and dropout": Mixed, "by hand": ByHand}
OPTIMIZERS: dict[str, tuple[Callable[..., Any], Callable[[Any, int], Any] | None]] = {
    "SGD": (sgd, None),
    "momentum": (lambda p: SGD(p, 0.1, 0.9), None),
    "Adam": (Adam, None),
    "cosine": (sgd, lambda o, steps: lr_scheduler.CosineAnnealingLR(o, steps)),
    "OneCycle": (lambda p: SGD(p, 0.1, 0.9), lambda o, steps: lr_scheduler.OneCycleLR(o, 0.2, steps + 1)),
    "plateau": (sgd, lambda o, _: Plateau(o, patience=0)),
    "bf16-mixed": (sgd, None),
    "plateau by step": (sgd, lambda o, _: Plateau(o, patience=0)),
    "StepLR": (sgd, lambda o, _: lr_scheduler.StepLR(o, 1)),
    "LBFGS": (lambda p: LBFGS(p, max_iter=3), None),
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
MATRIX = [
    each
    for each in itertools.product(MODULES, [*OPTIMIZERS][:7], SETTINGS)
    if each[0] != "by hand" or each[2] not in ("accumulation", "clipping")  # which Lightning refuses
]


def with_optimizer(make: Callable[[], LightningModule], name: str) -> Callable[[], LightningModule]:
    """A module whose optimizers, two where it is optimized by hand, are of this kind."""

    def configured(module: LightningModule) -> Any:
        parameters, steps = list(module.parameters()), int(module.trainer.estimated_stepping_batches)
        halves = [parameters] if module.automatic_optimization else [parameters[:2], parameters[2:]]
        optimizers, schedule = [OPTIMIZERS[name][0](half) for half in halves], OPTIMIZERS[name][1]
        how = {"interval": "epoch" if name in ("plateau", "StepLR") else "step"}
        how["monitor"] = "loss_step" if name == "plateau by step" else "val/loss"
        return optimizers, [{"scheduler": schedule(o, steps), **how} for o in optimizers if schedule]

    def module() -> LightningModule:
        made = make()
        made.configure_optimizers = lambda: configured(made)  # type: ignore[method-assign]
        return made

    return module


@pytest.fixture(scope="module")
def data() -> Callable[[], FashionMNISTDataModule]:
    module = FashionMNISTDataModule(32, 50, 200, "synthetic", synthetic_size=250)
    return lambda: module


class Halt(Exception):  # noqa: N818 (it stands for a kill)
    """A kill."""


def killed(path: Path, step: int, trainer: Trainer) -> None:
    if trainer.fit_loop.total_batch_idx >= step:
        trainer.save_checkpoint(path)
        raise Halt


@pytest.mark.parametrize("case", range(len(MATRIX)), ids=[", ".join(each) for each in MATRIX])
def test_runs_are_equal_to_the_last_bit(case: int, data: Any, tmp_path: Path) -> None:
    module, optimizer, setting = MATRIX[case]
    make, hooks = with_optimizer(MODULES[module], optimizer), ((), BATCH, ALL)[case % 3]
    options = SETTINGS[setting] | ({"precision": optimizer} if optimizer == "bf16-mixed" else {})
    if setting == "kill and resume":
        kill = on("on_train_batch_end", lambda trainer, *_: killed(tmp_path / "k", 4, trainer))
        with pytest.raises(Halt):
            trained(make, data, callbacks=kill, **options)
        options["ckpt_path"] = tmp_path / "k"
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
    path = tmp_path / "k"
    options: dict[str, Any] = {"val_check_interval": 3, "max_epochs": 3}
    with pytest.raises(Halt):
        trained(Mixed, data, saved_by, callbacks=on(hook, lambda t, *_: killed(path, step, t)), **options)
    assert twins(Mixed, data, hooks=BATCH, ckpt_path=path, **options)[1].current_epoch == 3


class Own(demos.BoringModel):
    """Skipped steps, an epoch that ends early, and hooks of the module's own, some set on the object."""

    def __init__(self) -> None:
        super().__init__()
        self.on_after_backward = lambda: self.log("after", 1.0)  # type: ignore[method-assign]
        self.on_before_backward = Mock()  # type: ignore[method-assign]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        self.log("started", float(batch_idx))
        return -1 if batch_idx == 20 else None

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        loss = self.layer(batch["x"]).square().mean()
        loss.register_hook(lambda gradient: self.log("gradient", gradient))
        return None if self.current_epoch and self.global_step % 4 == 3 else {"loss": loss, "x": batch["x"]}

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
        optimizer.step(closure=closure) if batch_idx % 2 else closure()

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


class OfLists(demos.BoringModel):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return self.step(sum(batch.pop() for _ in range(len(batch))))  # its own list, that it may empty


class OfDicts(demos.BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(batch["a"] + batch["b"])


class ByIterator(demos.BoringModel):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return {"loss": self.step(next(dataloader_iter)[0])}


class Rows(IterableDataset[Any]):
    """Rows without a known length."""

    def __init__(self, n: int, each: Callable[[Tensor], Any] = lambda row: row) -> None:
        self.rows = [each(row) for row in torch.randn(n, 4, 32, generator=torch.Generator().manual_seed(0))]

    def __iter__(self) -> Any:
        return iter(self.rows)


class Sized(Rows):
    def __len__(self) -> int:
        return len(self.rows)


def stop(trainer: Trainer, *args: Any) -> None:
    trainer.should_stop = trainer.should_stop or args[-1] == 3


def pairs() -> tuple[DataLoader[Any], DataLoader[Any]]:
    g = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(40, 784, generator=g), torch.randint(10, (40,), generator=g))
    return DataLoader(rows, 8, shuffle=True), DataLoader(rows, 8)


def transformer() -> LightningModule:
    module = LightningTransformer(50)
    module.prepare_data = lambda: None  # type: ignore[method-assign] # it downloads
    return module


def tokens() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*torch.randint(50, (2, 12, 9)).unbind()), 4)


Boring = demos.BoringModel
Case = tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]
SHORT = {"limit_train_batches": 9, "limit_val_batches": 2}
STEPS = {"val_check_interval": 7, "check_val_every_n_epoch": None}
STOP = {"callbacks": on("on_train_batch_end", stop)}
CASES: dict[str, Case] = {
    "dict batches, skipped steps, own hooks": (Own, lambda: Sized(24, lambda row: {"x": row}), {}),
    "own update and transfer": (OwnUpdate, tuple, SHORT),
    "own zero_grad of the optimizer": (OwnOptimizer, tuple, SHORT),
    "a batch is a list": (OfLists, lambda: Sized(9, lambda row: [row, row]), {}),
    "None batches": (Boring, lambda: Sized(9, lambda row: row if row[0, 0] > 0 else None), {}),
    "several loaders": (OfDicts, lambda: ({"a": Sized(9), "b": Sized(4)},), {}),
    "dataloader_iter": (ByIterator, lambda: Sized(9), {}),
    "no length": (Boring, lambda: (Rows(9), Rows(3)), {"val_check_interval": 4}),
    "no length, limits": (Boring, lambda: (Rows(9), Rows(3)), {"limit_train_batches": 5}),
    "a callback says -1": (Boring, tuple, SHORT | {"callbacks": on("on_train_batch_start", lambda *_: -1)}),
    "should_stop": (Boring, tuple, SHORT | STOP),
    "min_steps": (Mixed, pairs, STOP | {"min_steps": 7}),
    "min_epochs": (Mixed, pairs, STOP | {"min_epochs": 2}),
    "accumulation": (Mixed, pairs, {"callbacks": lambda: [GradientAccumulationScheduler({0: 3, 1: 2})]}),
    "SWA": (Mixed, pairs, {"callbacks": lambda: [StochasticWeightAveraging(0.01)], "max_epochs": 4}),
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
    "torch.compile": (lambda: torch.compile(Boring(), backend="eager"), tuple, SHORT),
    "demo model": (demos.DemoModel, lambda: (Sized(9),), {}),
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
