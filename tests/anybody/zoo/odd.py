"""Modules and data that are unusual in one thing each, as public bug reports have them."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import MinMaxMetric, Running

from . import data
from .modules import Ours, Plain, pair


class Kind(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Sizes:
    hidden: int = 8
    depth: int = 2


class WithPath(Plain):
    def __init__(self, root: Path = Path("here")) -> None:
        super().__init__()
        self.save_hyperparameters()


class WithNumber(Plain):
    def __init__(self, lr: float = 0.1, rate: Any = np.float64(0.5)) -> None:  # noqa: B008
        super().__init__(lr)
        self.save_hyperparameters()


class WithLoss(Plain):
    def __init__(self, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.save_hyperparameters({"criterion": self.criterion})


class WithEnum(Plain):
    def __init__(self, kind: Kind = Kind.SMALL) -> None:
        super().__init__()
        self.save_hyperparameters()


class WithDataclass(Plain):
    def __init__(self, sizes: Sizes = Sizes()) -> None:  # noqa: B008
        super().__init__()
        self.save_hyperparameters()


class WithArray(Plain):
    def __init__(self, weights: Any = np.ones(3)) -> None:  # noqa: B008
        super().__init__()


class WithName(Plain):
    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()


class WithError(Plain):
    def __init__(self, hidden: Any = 16) -> None:
        super().__init__()
        self.hidden = hidden + "x"


class WithIgnored(Plain):
    def __init__(self, act: nn.Module, hidden: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["act"])
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), act, nn.Linear(hidden, 10))


class WithSettings(Plain):
    """Takes a dictionary of settings, as many projects do."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.save_hyperparameters({"device": torch.device("cpu"), "dtype": torch.float32, "shape": torch.Size([1, 28])})


class WithObject(Plain):
    """Has something in its state that no reader of checkpoints allows."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = Plain


class ReturnsDict(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, accuracy = self.score(batch)
        return {"loss": loss, "accuracy": accuracy.detach()}


class WithoutValidation(Plain):
    validation_step = None  # type: ignore[assignment]


class PredictsList(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(pair(batch)[0]).argmax(1).tolist()


class PredictsNothing(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None


class PredictsClasses(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(pair(batch)[0]).argmax(1)


class PredictsDict(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits = self(pair(batch)[0])
        return {"class": logits.argmax(1), "embedding": logits}


class PredictsTuple(Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits = self(pair(batch)[0])
        return logits.argmax(1), logits.softmax(1)


class LogsSteps(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, accuracy = self.score(batch)
        self.log("loss", loss, on_step=True, on_epoch=False)
        self.log("acc", accuracy, on_step=True, on_epoch=True)
        self.log("epoch_acc", accuracy, on_step=False, on_epoch=True)
        return loss


class WritesTexts(Plain):
    """Adds to TensorBoard itself after each test and prediction, as people add a confusion matrix."""

    def on_test_epoch_end(self) -> None:
        board: Any = self.logger
        board.experiment.add_text("test", board.log_dir, 0)

    def on_predict_epoch_end(self) -> None:
        board: Any = self.logger
        board.experiment.add_text("predict", board.log_dir, 0)


class WithMetrics(Plain):
    """Has torchmetrics as parts, wrapped ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(10)
        self.extremes = MinMaxMetric(MulticlassAccuracy(10))
        self.running = Running(MulticlassAccuracy(10), window=3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss, _ = self.score(batch)
        x, y = pair(batch)
        logits = self(x)
        self.accuracy(logits, y)
        self.running(logits, y)
        self.log("acc", self.accuracy, on_step=False, on_epoch=True)
        self.log("running", self.running, on_step=True, on_epoch=False)
        return loss


class Wrapped(Ours):
    """Adds wrapped metrics to those of the project."""

    def metrics(self) -> dict[str, Any]:
        return super().metrics() | {"running": Running(MulticlassAccuracy(10), window=3)}


class VectorMetric(Ours):
    """Has a metric with a value for each class."""

    def metrics(self) -> dict[str, Any]:
        return super().metrics() | {"each": MulticlassAccuracy(10, average=None)}


class Plateau(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class OneCycle(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Groups(Plain):
    def configure_optimizers(self) -> Any:
        layer = self.net[1]
        groups = [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.01, "name": "bias"}]
        optimizer = torch.optim.SGD(groups)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 2}]


class LateGroup(Plain):
    """Lets its optimizer have one more group in the second epoch."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            optimizer: Any = self.optimizers()
            optimizer.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


class Parts(Plain):
    """Has parameters and buffers in all the ways there are."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(10)), nn.Parameter(torch.zeros(10))])
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("mask", torch.tensor(float("-inf")))
        nn.utils.parametrizations.weight_norm(self.net[1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x) * self.scales[0] + self.scales[1]
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.add_(1)
        return super().training_step(batch, batch_idx)


class Teacher(Plain):
    """Keeps a frozen part out of its checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.teacher = nn.Linear(3, 3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "teacher" not in k}


class Example(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 1, 28, 28)


class Counting(Plain):
    """Keeps a number of its own in checkpoints."""

    count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1

    def on_train_epoch_end(self) -> None:
        self.log("count", float(self.count))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["count"] = self.count

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.count = checkpoint["count"]


class Counted(data.Own):
    """Keeps a number of its own in checkpoints, too."""

    loads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"loads": self.loads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loads = state_dict["loads"] + 1


class Draws(Plain):
    """Has a source of random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * self.rng.random()


class Jittered(data.Own):
    """Changes batches by random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        if self.trainer is not None and self.trainer.training:
            x = x + 0.1 * torch.rand(x.shape, generator=self.generator)
        return x, y


class Stream(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        yield from zip(*data.images(self.n, self.n), strict=True)


class Streamed(data.Own):
    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = Stream(200), Stream(60), Stream(50)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=32)


class Small(data.Own):
    """Images (n, 3, 8, 8)."""

    def dataset(self, x: Tensor, y: Tensor) -> Any:
        return TensorDataset(x[:, :, :8, :24].reshape(-1, 3, 8, 8), y)


class Unlabelled(data.Own):
    """Images alone to predict."""

    def predict_dataloader(self) -> Any:
        return DataLoader(self.test.tensors[0], batch_size=16)


class OfDatasets(LightningDataModule):
    """Made of data sets, as `LightningDataModule.from_datasets` does."""

    def __new__(cls) -> Any:
        train, val, test = (TensorDataset(*data.images(n, n)) for n in (200, 60, 50))
        return LightningDataModule.from_datasets(train, val, test, test, batch_size=32)


class OwnLoaders(Plain):
    """Has its training data itself."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data.images(200, 200)), batch_size=32)


class LateHead(Plain):
    """Makes a part of its layers in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU())

    def configure_model(self) -> None:
        if len(self.net) == 3:
            self.net.append(nn.Linear(16, 10))


class SetupHead(LateHead):
    """Makes that part in `setup`."""

    def configure_model(self) -> None:
        return

    def setup(self, stage: str) -> None:
        super().configure_model()


class Epochs(Callback):
    """Logs the number of epochs; its argument is no attribute, and its class has a state."""

    def __init__(self, factor: float) -> None:
        self.per_epoch = factor
        self.seen = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen += 1
        pl_module.log("seen", self.per_epoch * self.seen)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


class WithCallbacks(Ours):
    """Brings its callbacks along; its loss rises from epoch to epoch."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, maximize=True)

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("train/loss", mode="min", patience=5), Epochs(2.0)]


class WithBest(WithCallbacks):
    """Brings one callback along, whose checkpoint has the name of this project's."""

    def configure_callbacks(self) -> Any:
        return ModelCheckpoint(filename="best")


class SameNames(data.Own):
    """Has arguments and attributes under names of this project's data module, which mean something else."""

    class_names = 10
    loaded = True
    photos = ("a.png",)

    def __init__(self, seed: int = 42, images: str = "folder", val_size: int = 0, watch_test: str = "no") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.seed, self.images, self.val_size, self.watch_test = seed, images, val_size, watch_test

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.data = self.train
        generator = torch.Generator().manual_seed(self.seed)
        self.train, _ = random_split(self.train, [150, 50], generator=generator)


class Prepared(data.Own):
    """Has a file only once it is prepared, sets up no stage twice, and knows the names of its classes then."""

    def prepare_data(self) -> None:
        Path("prepared").touch()

    def setup(self, stage: str) -> None:
        if not Path("prepared").exists() or hasattr(self, "class_names"):
            raise FileNotFoundError("prepared")
        super().setup(stage)
        self.class_names = [f"class {i}" for i in range(10)]


class WithoutPredictions(data.Own):
    def predict_dataloader(self) -> Any:
        raise NotImplementedError


class WithoutTest(Plain):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        raise NotImplementedError


class OtherArguments(Plain):
    def on_train_batch_end(self) -> None:  # type: ignore[override]
        """A hook without the arguments that Lightning gives it."""


class NeedsAnother(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise MisconfigurationException("NeedsAnother: goes with a ModelCheckpoint")


class Service(Logger):
    """A logger of a service that names a run once it has begun, and makes no folder."""

    name = "project"
    save_dir = "service"

    def __init__(self, run: str | None = None) -> None:
        super().__init__()
        self.run = run or uuid4().hex
        self.begun: str | None = None

    @property
    def version(self) -> str | None:
        return self.begun

    @property
    def experiment(self) -> None:
        self.begun = self.run

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...
