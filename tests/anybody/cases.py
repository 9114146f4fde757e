"""What the tests of this folder train: on the command line, and the same by a plain Trainer."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch import callbacks as lightning_callbacks
from torch import nn
from zoo import data, modules, odd

from softmax_regression import FashionMNISTDataModule

# Modules: their flags, and the same in Python.
MODULES: dict[str, tuple[list[str], Callable[[], LightningModule]]] = {
    "Plain": ([], modules.Plain),
    "Ours": ([], modules.Ours),
    "InjectedModule": (["--model.act=torch.nn.Tanh"], partial(modules.InjectedModule, nn.Tanh())),
    "InjectedOptimizer": (
        ["--model.optimizer=torch.optim.RMSprop", "--model.optimizer.lr=0.003"],
        partial(modules.InjectedOptimizer, partial(torch.optim.RMSprop, lr=0.003)),
    ),
    "Configured": ([], modules.Configured),
    "Lazy": ([], modules.Lazy),
    "Compiled": ([], modules.Compiled),
    "Manual": ([], modules.Manual),
    "Autoencoder": ([], modules.Autoencoder),
}  # fmt: skip
SYNTHETIC: dict[str, Any] = {"source": "synthetic", "synthetic_size": 200, "val_size": 61, "batch_size": 32}
# Data modules, in the same way, and the number of their images to predict.
DATA: dict[str, tuple[list[str], Callable[[], LightningDataModule], int]] = {
    "own data": (["--data=zoo.data.Own"], data.Own, 50),
    "a list of loaders": (["--data=zoo.data.ListOfLoaders"], data.ListOfLoaders, 110),
    "a dict of loaders": (["--data=zoo.data.DictOfLoaders"], data.DictOfLoaders, 110),
    "dict batches": (["--data=zoo.data.DictBatches"], data.DictBatches, 50),
    "our data": (
        [f"--data.{name}={value}" for name, value in SYNTHETIC.items()],
        partial(FashionMNISTDataModule, **SYNTHETIC),
        33,
    ),
}


@dataclass
class Case:
    """A run: flags, and what makes the same in Python.

    `monitor` is the name of the validation loss; `predicted` the number of images to predict, 0 where `predict`
    refuses; `options` are those of the Trainer.
    """

    flags: list[str]
    module: Callable[[], LightningModule]
    data: Callable[[], LightningDataModule] = data.Own
    monitor: str = "val_loss"
    predicted: int = 50
    options: dict[str, Any] = field(default_factory=dict)
    callback: Callable[[], Callback] = Callback


def table() -> dict[str, Case]:
    """Return each module on each data module."""
    cases = {}
    for module, (flags, make) in MODULES.items():
        for name, (more, make_data, images) in DATA.items():
            monitor = "val/loss" if module == "Ours" else "val_loss"
            if name.endswith("of loaders"):
                monitor += "/dataloader_idx_0"
            if (module, name) == ("Ours", "a dict of loaders"):
                monitor = "easy/loss"
            words = [f"--model=zoo.modules.{module}", *flags, *more]
            cases[f"{module}, {name}"] = Case(words, make, make_data, monitor, images)
    return cases


def of_module(name: str, *flags: str, predicted: int = 50, **arguments: Any) -> Case:
    """Return an unusual module, or unusual data, beside what is usual."""
    kind = getattr(odd, name)
    if issubclass(kind, LightningDataModule):
        return Case(["--model=zoo.modules.Plain", f"--data=zoo.odd.{name}"], modules.Plain, kind, predicted=predicted)
    monitor = "val/loss" if issubclass(kind, modules.Ours) else "val_loss"
    words = [f"--model=zoo.odd.{name}", *flags, "--data=zoo.data.Own"]
    return Case(words, partial(kind, **arguments), monitor=monitor, predicted=predicted)


ODD = {
    "a path": of_module("WithPath"),
    "a number of numpy's": of_module("WithNumber"),
    "an Enum": of_module("WithEnum"),
    "a dataclass": of_module("WithDataclass"),
    "a part that is not saved": of_module("WithIgnored", "--model.act=torch.nn.ReLU", act=nn.ReLU()),
    "a dictionary": of_module(
        "WithSettings", "--model.settings={a: 1, b: [2, x]}", settings={"a": 1, "b": [2, "x"]}
    ),
    "a step that returns a dictionary": of_module("ReturnsDict"),
    "predictions in a list": of_module("PredictsList"),
    "predictions of classes": of_module("PredictsClasses"),
    "predictions in a dictionary": of_module("PredictsDict"),
    "predictions in a tuple": of_module("PredictsTuple"),
    "logs on steps": of_module("LogsSteps"),
    "metrics of torchmetrics": of_module("WithMetrics"),
    "wrapped metrics of ours": of_module("Wrapped"),
    "ReduceLROnPlateau": of_module("Plateau"),
    "parameter groups": of_module("Groups"),
    "parts of all kinds": of_module("Parts"),
    "a frozen part that is not saved": of_module("Teacher"),
    "an example input": of_module("Example"),
    "a state of its own": of_module("Counting"),
    "data with a state of its own": of_module("Counted"),
    "a stream": of_module("Streamed"),
    "random numbers of its own": of_module("Draws"),
    "data with random numbers of their own": of_module("Jittered"),
}  # fmt: skip


def of_trainer(
    flags: Sequence[str] = (), callback: Callable[[], Callback] = Callback, module: str = "Plain", **options: Any
) -> Case:
    """Return options of the Trainer beside a usual module and usual data."""
    words = []
    for name, value in options.items():
        words += [f"--trainer.{name}", value if isinstance(value, str) else json.dumps(value)]
    kind = getattr(modules, module)
    monitor = "val/loss" if module == "Ours" else "val_loss"
    words += [f"--model=zoo.modules.{module}", "--data=zoo.data.Own", *flags]
    return Case(words, kind, monitor=monitor, options=options, callback=callback)


def with_callback(name: str, **arguments: Any) -> Case:
    """Return a callback of Lightning's beside a usual module and usual data."""
    kind = getattr(lightning_callbacks, name)
    words = [f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}"]
    words += [f"--trainer.callbacks.{argument}={json.dumps(value)}" for argument, value in arguments.items()]
    return of_trainer(words, partial(kind, **arguments))


TRAINER = {
    "validated twice an epoch": of_trainer(val_check_interval=0.5),
    "validated every 3 batches": of_trainer(val_check_interval=3, module="Ours"),
    "validated every second epoch": of_trainer(check_val_every_n_epoch=2),
    "validated by steps over epochs": of_trainer(check_val_every_n_epoch=None, val_check_interval=5),
    "few batches": of_trainer(limit_train_batches=4),
    "a share of the batches": of_trainer(limit_train_batches=0.5, module="Ours"),
    "min_epochs": of_trainer(min_epochs=2),
    "accumulated": of_trainer(accumulate_grad_batches=3),
    "clipped": of_trainer(gradient_clip_val=0.1),
    "loaders made anew": of_trainer(reload_dataloaders_every_n_epochs=1),
    "a sanity check": of_trainer(num_sanity_val_steps=2, module="Ours"),
    "bfloat16": of_trainer(precision="bf16-mixed"),
    "float64": of_trainer(precision="64-true"),
    "logged at each step": of_trainer(log_every_n_steps=1, module="Ours"),
    "deterministic": of_trainer(deterministic=True),
    "anomalies": of_trainer(detect_anomaly=True),
    "EMA": with_callback("EMAWeightAveraging"),
    "a schedule of accumulation": with_callback("GradientAccumulationScheduler", scheduling={0: 1, 1: 2}),
    "learning rates": with_callback("LearningRateMonitor"),
    "a checkpoint at steps": with_callback("ModelCheckpoint", every_n_train_steps=4, save_top_k=-1),
    "a summary": with_callback("ModelSummary"),
}
