"""With the engine and without it: the same weights, checkpoints, metrics, random numbers and calls."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from examples.mlp import MLP
from softmax_regression import Engine, FashionMNISTDataModule, SoftmaxRegression


class Mixed(LightningModule):
    """BatchNorm and dropout, an update by an optimizer of the test's choice, and something logged on each step."""

    def __init__(self, optimizer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 10)
        )
        self.optimizer = optimizer or (lambda module: torch.optim.SGD(module.parameters(), 0.1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


class TwoByHand(Mixed):
    """Manual optimization of two optimizers, every other step one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[batch_idx % 2]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[1].parameters(), 0.1), torch.optim.Adam(self.net[4].parameters())


def scheduled(kind: str) -> Callable[[LightningModule], Any]:
    def optimizer(module: LightningModule) -> Any:
        sgd = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        if kind == "one-cycle":
            steps = int(module.trainer.estimated_stepping_batches)
            schedule: Any = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.2, total_steps=steps)
            return [sgd], [{"scheduler": schedule, "interval": "step"}]
        if kind == "step":
            return [sgd], [torch.optim.lr_scheduler.StepLR(sgd, 1, 0.5)]
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=0)
        monitored = {"scheduler": schedule, "monitor": "val_loss" if kind == "plateau" else "loss_step"}
        return {
            "optimizer": sgd,
            "lr_scheduler": monitored | ({"interval": "step"} if kind == "plateau-step" else {}),
        }

    return optimizer


MODULES: dict[str, Callable[[], LightningModule]] = {
    "linear": SoftmaxRegression,
    "linear, momentum and cosine": lambda: SoftmaxRegression(momentum=0.9, schedule="cosine", dropout=0.2),
    "MLP": MLP,
    "BatchNorm and dropout": Mixed,
    "Adam": lambda: Mixed(lambda module: torch.optim.Adam(module.parameters())),
    "LBFGS": lambda: Mixed(lambda module: torch.optim.LBFGS(module.parameters(), max_iter=3)),
    "two optimizers by hand": TwoByHand,
    **{
        kind: (lambda kind=kind: Mixed(scheduled(kind)))
        for kind in ("one-cycle", "step", "plateau", "plateau-step")
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "max_steps": {"max_steps": 11, "max_epochs": -1},
    "val_check_interval": {"val_check_interval": 3},
    "val_check_interval 0.25": {"val_check_interval": 0.25},
    "every 5 minibatches of all": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "limits": {"limit_train_batches": 5, "limit_val_batches": 1},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.05},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "detect_anomaly": {"detect_anomaly": True},
    "overfit": {"overfit_batches": 2},
    "min_steps": {"min_steps": 20, "max_epochs": 1},
}
BY_HAND = {"accumulation", "clipping"}  # which Lightning refuses with manual optimization


class Calls(Callback):
    """Every call of a hook of a step, with its arguments."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        for name in (
            "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
            "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_validation_end",
        ):  # fmt: skip
            setattr(self, name, self._noting(name))

    def _noting(self, name: str) -> Callable[..., None]:
        def note(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            weights = torch.cat([p.detach().flatten() for p in module.parameters()])
            seen = [
                arg if isinstance(arg, int | Tensor | list | tuple | dict) else type(arg).__name__
                for arg in args
            ]
            fx = module._current_fx_name
            self.calls.append(
                (name, fx, trainer.global_step, trainer.fit_loop.batch_idx, weights.clone(), seen)
            )

        return note


@pytest.fixture(scope="module")
def data() -> FashionMNISTDataModule:
    module = FashionMNISTDataModule(32, 50, 300, "synthetic", synthetic_size=350)
    module.setup()
    return module


def trained(
    make: Callable[[], LightningModule],
    data: Any,
    engine: bool,
    tmp_path: Path,
    watch: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Everything that a run leaves: its checkpoint, metrics, random state, and the calls if it is watched."""
    seed_everything(3)
    module, calls = make(), Calls()
    kept: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0, **options}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Engine(engine), *([calls] if watch else [])], **kept,
    )  # fmt: skip
    trainer.fit(module, data) if not isinstance(data, tuple) else trainer.fit(module, *data)
    assert type(trainer.fit_loop.epoch_loop).__name__ == ("LeanLoop" if engine else "_TrainingEpochLoop")
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    whole = torch.load(tmp_path / "whole.ckpt", weights_only=False)
    metrics = {name: value for name, value in trainer.callback_metrics.items()}
    return {"checkpoint": whole, "metrics": metrics, "random": torch.get_rng_state(), "calls": calls.calls}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Compare to the last bit."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def assert_equal_with_and_without(
    make: Callable[[], LightningModule], data: Any, tmp_path: Path, **options: Any
) -> None:
    for watch in (False, True):
        with_engine, without = (
            trained(make, data, engine, tmp_path, watch, **options) for engine in (True, False)
        )
        assert_same(with_engine, without)


PAIRS = [
    pair
    for pair in itertools.product(MODULES, OPTIONS)
    if not (pair[0] == "two optimizers by hand" and pair[1] in BY_HAND)
    and not (pair[0] == "LBFGS" and pair[1] == "accumulation")
    and (
        "plain" in pair
        or pair[0] in ("linear", "BatchNorm and dropout", "two optimizers by hand", "plateau-step")
    )
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "option"), PAIRS, ids=[", ".join(pair) for pair in PAIRS])
def test_runs_are_equal_to_the_last_bit(
    module: str, option: str, data: FashionMNISTDataModule, tmp_path: Path
) -> None:
    assert_equal_with_and_without(MODULES[module], data, tmp_path, **OPTIONS[option])


class NoneAndDicts(BoringModel):
    """Steps that are skipped, dict batches, hooks of the module, and an epoch that ends early."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        self.log("started", float(batch_idx))
        return -1 if batch_idx == 40 else None

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        loss = self.layer(batch["x"]).square().mean()
        return (
            None if self.global_step % 4 == 3 and self.current_epoch else {"loss": loss, "more": batch["x"]}
        )

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if any(parameter.grad is not None for parameter in self.parameters()):
            self.clip_gradients(optimizer, 0.01, "value")


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(4, 32, generator=generator)


def of_dicts(n: int = 64) -> DataLoader[Any]:
    rows = torch.randn(n, 32, generator=torch.Generator().manual_seed(1))
    return DataLoader([{"x": row} for row in rows], 1)


LOADERS: dict[str, tuple[Callable[[], LightningModule], Callable[[], Any], dict[str, Any]]] = {
    "dict batches, skipped steps, own hooks": (NoneAndDicts, lambda: (of_dicts(),), {}),
    "an endless set and limits": (
        BoringModel, lambda: (DataLoader(Endless(), None), DataLoader(Endless(), None)),
        {"limit_train_batches": 6, "limit_val_batches": 2},
    ),
    "a set without a length": (
        BoringModel, lambda: (DataLoader(Endless(), None), DataLoader(torch.randn(8, 32))), {"max_steps": 9, "limit_train_batches": 4},
    ),
    "manual optimization of the demos": (ManualOptimBoringModel, lambda: (), {}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", LOADERS)
def test_other_modules_and_loaders_are_equal_too(case: str, tmp_path: Path) -> None:
    make, loaders, options = LOADERS[case]
    assert_equal_with_and_without(make, loaders(), tmp_path, **options)


class Halt(Exception):  # noqa: N818 (it stands for a kill)
    """A kill."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "module", ["linear, momentum and cosine", "BatchNorm and dropout", "two optimizers by hand"]
)
@pytest.mark.parametrize("step", [4, 10, 13])
def test_a_run_that_was_killed_goes_on_alike(
    module: str, step: int, data: FashionMNISTDataModule, tmp_path: Path
) -> None:
    """Saved in the middle of an epoch and at its end, by one loop, and taken up by both."""
    seed_everything(3)

    class Kill(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "killed.ckpt")
                raise Halt

    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_epochs": 3, "num_sanity_val_steps": 0,
    }  # fmt: skip
    with pytest.raises(Halt):
        Trainer(callbacks=[Engine(), Kill()], **quiet).fit(MODULES[module](), data)
    results = []
    for engine in (True, False):
        torch.manual_seed(1)
        trainer, again = Trainer(callbacks=[Engine(engine)], **quiet), MODULES[module]()
        trainer.fit(again, data, ckpt_path=tmp_path / "killed.ckpt", weights_only=False)
        trainer.save_checkpoint(tmp_path / "whole.ckpt")
        results.append(torch.load(tmp_path / "whole.ckpt", weights_only=False))
    assert_same(*results)


@pytest.mark.filterwarnings("ignore")
def test_the_data_module_trains_with_a_torch_dataloader_of_its_images(data: FashionMNISTDataModule) -> None:
    """Our model takes uint8 images from any DataLoader."""
    set_ = TensorDataset(data.loaded.images, data.loaded.labels)
    model = SoftmaxRegression()
    Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Engine()],
    ).fit(model, DataLoader(set_, 32, shuffle=True))  # fmt: skip
    assert model.history[-1]["train/loss"] < model.history[0]["train/loss"]
