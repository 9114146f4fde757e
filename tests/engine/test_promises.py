"""What Lightning promises holds: our model, data and engine, against a plain module in Lightning's own loop.

The images, their order and the first weights are the same; the effect of each flag and callback is compared.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as builtin
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.model_summary import summarize
from test_equal import with_optimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from twins import QUIET, same

from softmax_regression import Engine, FashionMNISTDataModule, SoftmaxRegression
from softmax_regression.data.minibatches import Shuffle

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(LightningModule):
    """Softmax regression as anybody would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lr = nn.Linear(784, 10), 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)


class Ours(SoftmaxRegression):
    """Softmax regression of the package, logged as usual."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


class PlainData(FashionMNISTDataModule):
    """The same images in DataLoaders of torch."""

    def _minibatches(
        self, images: Tensor, labels: Tensor, index: Tensor, batch_size: Any = None, seed: Any = None
    ) -> Any:
        set_ = TensorDataset(images[index][:, None] / 255, labels[index])
        sampler = None if seed is None else Shuffle(len(index), seed)
        return DataLoader(set_, batch_size or self.hparams["eval_batch_size"], sampler=sampler)


class Watch(Callback):
    """Outputs, learning rates, steps and validations of a run."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.seen.append((trainer.global_step, args[-1], args[0]["loss"], rates))

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.seen.append(("validated", trainer.global_step, trainer.sanity_checking, args[-1]))


class Memory(Logger):
    """What was logged at which step, of that which both modules log."""

    name, version = "memory", 0

    def __init__(self) -> None:
        self.logged: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if kept := {k: v for k, v in metrics.items() if k in ("loss", "lr-SGD") or k.endswith("/samples")}:
            self.logged.append((step, kept))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class LateBias(builtin.BaseFinetuning):
    """Trains the biases from the second epoch on."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        list(pl_module.parameters())[1].requires_grad = False

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            list(pl_module.parameters())[1].requires_grad = True


def frozen(trainer: Trainer, module: LightningModule) -> None:
    list(module.parameters())[1].requires_grad = False


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.ckpt"))


def made(cls: Any, *args: Any, **kwargs: Any) -> Callable[[], list[Any]]:
    return lambda: [cls(*args, **kwargs)]


def actions(trainer: Trainer) -> dict[str, int]:
    counted = trainer.profiler.recorded_durations if isinstance(trainer.profiler, SimpleProfiler) else {}
    return {name: len(times) for name, times in counted.items() if not name.startswith("[")}


PROMISES: dict[str, dict[str, Any]] = {
    "limit_train_batches 1": {"limit_train_batches": 1},
    "limit_train_batches 0.3": {"limit_train_batches": 0.3},
    "overfit_batches 1": {"overfit_batches": 1},
    "overfit_batches 2": {"overfit_batches": 2},
    "val_check_interval 1": {"val_check_interval": 1},
    "val_check_interval 5": {"val_check_interval": 5},
    "val_check_interval 0.25": {"val_check_interval": 0.25},
    "val_check_interval, a time": {"val_check_interval": timedelta(0)},
    "log_every_n_steps": {"log_every_n_steps": 3},
    "limit_val_batches": {"limit_val_batches": 1},
    "no validation": {"limit_val_batches": 0},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "max_steps": {"max_steps": 4},
    "min_steps": {"min_steps": 12, "max_epochs": 1},
    "num_sanity_val_steps": {"num_sanity_val_steps": 2},
    "accumulate_grad_batches": {"accumulate_grad_batches": 3},
    "gradient_clip_val": {"gradient_clip_val": 0.1},
    "gradient_clip_algorithm": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "fast_dev_run": {"fast_dev_run": 2},
    "precision": {"precision": "bf16-mixed"},
    "double precision": {"precision": "64-true"},
    "profiler": {"profiler": SimpleProfiler, "effect": actions},
    "LearningRateMonitor": {"callbacks": made(builtin.LearningRateMonitor, "step"), "optimizer": "OneCycle"},
    "EMA": {"callbacks": made(builtin.EMAWeightAveraging, decay=0.8)},
    "SWA": {"callbacks": made(builtin.StochasticWeightAveraging, 0.5), "max_epochs": 4},
    "pruning": {"callbacks": made(builtin.ModelPruning, "l1_unstructured", amount=0.5)},
    "frozen parameters": {"callbacks": lambda: [builtin.LambdaCallback(on_fit_start=frozen)]},
    "BaseFinetuning": {"callbacks": made(LateBias)},
    "eval mode": {
        "callbacks": lambda: [builtin.LambdaCallback(on_fit_start=lambda _, module: module.eval())]
    },
    "accumulation by epoch": {"callbacks": made(builtin.GradientAccumulationScheduler, {0: 1, 1: 3})},
    "SpikeDetection": {
        "callbacks": made(builtin.SpikeDetection),
        "effect": lambda t: t.callbacks[1].state_dict(),
    },
    "ThroughputMonitor": {
        "callbacks": made(builtin.ThroughputMonitor, lambda b: len(b[0]), window_size=3),
        "log_every_n_steps": 1,
    },
    "DeviceStatsMonitor": {"callbacks": made(builtin.DeviceStatsMonitor, cpu_stats=True)},
    "Timer": {"callbacks": made(builtin.Timer), "effect": lambda t: t.callbacks[1].time_elapsed("train") > 0},
    "ModelSummary": {
        "callbacks": made(builtin.ModelSummary),
        "effect": lambda t: summarize(t.lightning_module).total_parameters,
    },
    "cosine": {"optimizer": "cosine"},
    "OneCycleLR": {"optimizer": "OneCycle"},
    "ReduceLROnPlateau": {"optimizer": "plateau", "max_epochs": 4},
    "StepLR": {"optimizer": "StepLR"},
    "LBFGS": {"optimizer": "LBFGS"},
}


def outcome(ours: bool, tmp_path: Path, promise: dict[str, Any]) -> Any:
    """Train, and return the weights, the watched run, what was logged, and a promise's own effect."""
    options = dict(promise)
    effect, callbacks = options.pop("effect", lambda _: None), options.pop("callbacks", list)()
    optimizer, watch, memory = options.pop("optimizer", None), Watch(), Memory()
    if "profiler" in options:
        options["profiler"] = options["profiler"](dirpath=tmp_path, filename="profile")
    torch.manual_seed(0)
    module: LightningModule = Ours() if ours else Plain()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-0.01, 0.01, parameter.numel()).view_as(parameter))
    data = (FashionMNISTDataModule if ours else PlainData)(
        32, 50, 200, "synthetic", synthetic_size=250, eval_batch_size=20
    )
    if optimizer:
        module = with_optimizer(lambda: module, optimizer)()
    trainer = Trainer(
        **QUIET
        | {"logger": memory, "default_root_dir": tmp_path, "callbacks": [Engine(ours), *callbacks, watch]}
        | options
    )
    trainer.fit(module, data)
    return list(module.parameters()), watch.seen, memory.logged, effect(trainer)


@pytest.mark.parametrize("promise", PROMISES)
def test_promises_of_lightning_hold(promise: str, tmp_path: Path) -> None:
    ours, plain = (outcome(engine, tmp_path, PROMISES[promise]) for engine in (True, False))
    same(ours, plain, atol=1e-5)  # our layer adds the same products in another order
