"""Modules that make their weights, or load them, in a way of their own, and such with example inputs."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from .modules import Plain


class Renamed(Plain):
    """Saves its weights under other names."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {f"saved.{name}": value for name, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name.removeprefix("saved."): value for name, value in found}


class OwnKeys(Plain):
    """Adds to its checkpoints under names that anybody might choose."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update({"run": "abc123", "scores": [1.0], "position": 3, "random": torch.zeros(2), "running": True})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert (checkpoint["run"], checkpoint["position"], checkpoint["running"]) == ("abc123", 3, True)


class CompiledLate(Plain):
    """Compiles its network in `configure_model`, which gives its weights other names."""

    def configure_model(self) -> None:
        if type(self.net) is torch.nn.Sequential:
            self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]


class OwnStateDict(Plain):
    """Keeps a number beside its weights."""

    seen = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs) | {"seen": torch.tensor(self.seen)}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        weights = dict(state_dict)
        self.seen = int(weights.pop("seen"))
        return super().load_state_dict(weights, *args, **kwargs)

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen += 1


class LogsValidation(Plain):
    """Logs each batch of the validation."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        super().validation_step(batch, batch_idx)
        self.log("each", float(batch_idx), on_step=True, on_epoch=True)


class Small(Plain):
    """Has an example that it does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 3, 5, 5)


class Noisy(Plain):
    """Draws random numbers for an example, too."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 28, 28)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.rand_like(x))


class OnDevice(Plain):
    """Has an argument whose default is an object with a short name."""

    def __init__(self, place: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        super().__init__()
        self.net.to(place)


class Parent(Plain):
    """Makes itself by the arguments that it has saved."""

    def __init__(self, hidden: int = 8, act: nn.Module | None = None) -> None:
        act = act or nn.Tanh()
        super().__init__()
        self.save_hyperparameters(ignore="lr")
        sizes: Any = self.hparams
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, sizes.hidden), sizes.act, nn.Linear(sizes.hidden, 10))


class Child(Parent):
    """Gives its parent arguments that it has not got itself."""

    def __init__(self) -> None:
        super().__init__(hidden=4)


class Chosen(Plain):
    """Makes the optimizer by an argument that it has saved, which is a function."""

    def __init__(self, optimizer: OptimizerCallable = torch.optim.Adam) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return self.hparams["optimizer"](self.parameters())


class Counts(Plain):
    """Has one metric for all stages, and resets it before each epoch of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.accuracy.update(self(batch[0]), batch[1])
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self) -> None:
        self.accuracy.reset()

    def on_train_epoch_end(self) -> None:
        self.log("accuracy", self.accuracy.compute())

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.accuracy.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self) -> None:
        self.log("test_accuracy", self.accuracy.compute())


class Least(Plain):
    """Keeps the least loss of each class so far, which begins with infinity, and a threshold, not known at first."""

    least: Tensor
    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.full((10,), torch.inf))
        self.register_buffer("threshold", torch.full((), torch.nan))

    def on_train_epoch_end(self) -> None:
        self.least[0] = self.trainer.callback_metrics["val_loss"]
        self.threshold.fill_(0.5)
