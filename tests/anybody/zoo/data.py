"""LightningDataModules as other people write them: none knows this project."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 28, 28) with one bright row for each of ten classes, and the classes (n,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 10
    x = torch.rand(n, 1, 28, 28, generator=generator) / 2
    x[torch.arange(n), 0, 2 * y] += 0.5
    return x, y


class Own(LightningDataModule):
    """Twenty lines: an ordinary DataLoader that shuffles."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = [self.dataset(*images(n, n)) for n in (200, 60, 50)]

    def dataset(self, x: Tensor, y: Tensor) -> Any:
        return TensorDataset(x, y)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=self.batch_size)

    def predict_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=self.batch_size)


class ListOfLoaders(Own):
    """Several loaders without names."""

    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), DataLoader(self.test, batch_size=16)]

    def test_dataloader(self) -> Any:
        return [super().test_dataloader(), DataLoader(self.val, batch_size=16)]

    def predict_dataloader(self) -> Any:
        return [super().predict_dataloader(), DataLoader(self.val, batch_size=16)]


class DictOfLoaders(Own):
    """Several loaders with names."""

    def val_dataloader(self) -> Any:
        return {"easy": super().val_dataloader(), "noise": DataLoader(self.test, batch_size=16)}

    def test_dataloader(self) -> Any:
        return {"easy": super().test_dataloader(), "noise": DataLoader(self.val, batch_size=16)}

    def predict_dataloader(self) -> Any:
        return {"easy": super().predict_dataloader(), "noise": DataLoader(self.val, batch_size=16)}


class Rows(Dataset[dict[str, Tensor]]):
    """Examples as dictionaries."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.x[index], "label": self.y[index]}


class DictBatches(Own):
    """Batches that are dictionaries."""

    def dataset(self, x: Tensor, y: Tensor) -> Any:
        return Rows(x, y)
