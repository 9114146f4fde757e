"""LightningModules as other people write them: only `Ours` knows this project."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from softmax_regression import Classifier


def pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Return images and classes of a batch, which some loaders give as a dictionary."""
    if isinstance(batch, dict):
        return batch["image"], batch["label"]
    x, y = batch
    return x, y


class Plain(LightningModule):
    """Logs metrics under names of its own."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def score(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = pair(batch)
        logits = self(x)
        return F.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, _ = self.score(batch)
        self.log("fit_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss, accuracy = self.score(batch)
        self.log("val_loss", loss)
        self.log("hard/acc", accuracy)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss, accuracy = self.score(batch)
        self.log_dict({"test_loss": loss, "test_acc": accuracy})

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(pair(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ours(Classifier):
    """Inherits the steps and the metrics of this project."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(num_classes=10)
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class InjectedModule(Plain):
    """Is given a part of itself, as LightningCLI makes it."""

    def __init__(self, act: nn.Module, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), act, nn.Linear(16, 10))


class InjectedOptimizer(Plain):
    """Is given its optimizer, as LightningCLI's documentation has it."""

    def __init__(self, optimizer: OptimizerCallable = torch.optim.Adam) -> None:
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Configured(Plain):
    """Makes its layers in `configure_model`, as large models do."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: Any = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


class Lazy(Plain):
    """Has a layer whose size the first batch decides, as the book's own models."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


class Compiled(Plain):
    """Compiles its network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]


class Manual(Plain):
    """Steps two optimizers itself, the last one with the gradients of four batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        loss, _ = self.score(batch)
        self.manual_backward(loss)
        due = optimizers if batch_idx % 4 == 3 else optimizers[:1]
        for optimizer in due:
            optimizer.step()
            optimizer.zero_grad()
        self.log("fit_loss", loss)

    def configure_optimizers(self) -> Any:
        first, last = torch.optim.SGD(self.net[1].parameters(), lr=0.1), torch.optim.Adam(self.net[3].parameters())
        return [first, last]


class Autoencoder(LightningModule):
    """Knows no classes: `forward` returns images."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 784))

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.net(x).view(x.shape)
        return image

    def _step(self, batch: Any, name: str) -> Tensor:
        x, _ = pair(batch)
        loss = F.mse_loss(self(x), x)
        self.log(name, loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train_mse")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(batch, "val_loss")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._step(batch, "test_mse")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(pair(batch)[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())
