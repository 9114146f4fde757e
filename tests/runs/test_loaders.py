"""An ordinary DataLoader resumes where the run was killed: the same batches, and the same random numbers after them."""

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _replace_dunder_methods
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
)

from marks import slow_but
from softmax_regression import LastCheckpoint, RunLogger
from softmax_regression.runs import checkpoint

ROWS: Any = list(torch.arange(20.0))  # seven batches of three, the last one smaller


class Killed(BaseException):
    """Stands for SIGKILL."""


class Notes(list[Any]):
    """What was seen since the run was started or resumed."""


class Noting(LightningModule):
    """Note each batch, and what every source of random numbers draws then."""

    def __init__(self, killed_after: int | None = None, scheduled: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = Notes()  # no list: those of a module are resumed, too
        self.killed_after = killed_after
        self.scheduled = scheduled

    def on_train_start(self) -> None:
        if self.global_step == 0:
            torch.rand(())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(self.seen) == self.killed_after:
            raise Killed
        drawn = (torch.rand(()).item(), random.random(), random.gauss(0, 1), float(np.random.normal()))
        self.seen.append((str(batch), *drawn))
        return self.weight

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.scheduled:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)  # for which Lightning asks for the loader earlier
        return [optimizer], [OneCycleLR(optimizer, 0.1, total_steps=steps)]


class Stream(IterableDataset[Any]):
    """A stream without a length, shuffled by Python's random numbers."""

    def __iter__(self) -> Iterator[Tensor]:
        rows = list(ROWS)
        random.shuffle(rows)
        yield from rows


class Blurred(list[Any]):
    """Images that are changed at random when they are loaded, as augmentation does."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) + np.random.rand()


class Blurring:
    """A transform that draws from a generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(2)

    def __call__(self, image: Tensor) -> Tensor:
        return image + self.rng.random()


class Transformed(Dataset[Any]):
    """Images that are changed by transforms."""

    def __init__(self) -> None:
        self.transforms = [Blurring()]

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Any:
        image = ROWS[index]
        for transform in self.transforms:
            image = transform(image)
        return image


class CountedStream(IterableDataset[Any]):
    """A stream that is shuffled by how often it was read."""

    def __init__(self) -> None:
        self.epoch = 0
        self.system = random.SystemRandom()

    def __iter__(self) -> Iterator[Tensor]:
        self.epoch += 1
        self.size = len(ROWS)  # which is not there before
        rows = list(ROWS)
        random.Random(self.epoch).shuffle(rows)
        yield from rows


class Drawing(Sampler[Any]):
    """A sampler with a source of random numbers of its own, or one of batches."""

    def __init__(self, source: Any, batch_size: int | None = None) -> None:
        self.source, self.batch_size = source, batch_size

    def __len__(self) -> int:
        return len(ROWS) if self.batch_size is None else -(-len(ROWS) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = list(range(len(ROWS)))
        self.source.shuffle(order)
        if self.batch_size is None:
            yield from order
        else:
            while order:
                yield order[: self.batch_size]
                del order[: self.batch_size]


BLURRED: Any = Blurred(ROWS)


def in_drawn_batches() -> Any:
    return DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 3, drop_last=False))


def distributed() -> Any:
    return DataLoader(ROWS, 3, sampler=DistributedSampler(ROWS, num_replicas=1, rank=0))


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(ROWS, 3, shuffle=True),
    "augmented": lambda: DataLoader(BLURRED, 3, shuffle=True),
    "a transform that draws": lambda: DataLoader(Subset(Transformed(), range(len(ROWS))), 3, shuffle=True),
    "in drawn batches": in_drawn_batches,
    "a stream": lambda: DataLoader(Stream(), 3),
    "distributed": distributed,
    "a worker": lambda: DataLoader(ROWS, 3, shuffle=True, num_workers=1),
    "a worker that stays": lambda: DataLoader(ROWS, 3, shuffle=True, num_workers=1, persistent_workers=True),
    "a stream that counts": lambda: DataLoader(CountedStream(), 3),
    "a sampler that draws by NumPy": lambda: DataLoader(ROWS, 3, sampler=Drawing(np.random.default_rng(1))),
    "an old generator of NumPy": lambda: DataLoader(ROWS, 3, sampler=Drawing(np.random.RandomState(1))),
    "batches that draw by Python": lambda: DataLoader(ROWS, batch_sampler=Drawing(random.Random(1), 3)),
    "a generator of its own": lambda: DataLoader(ROWS, 3, shuffle=True, generator=torch.Generator().manual_seed(3)),
}


def trained(module: Noting, loader: Callable[[], Any], path: Path | None = None, **options: Any) -> list[Any]:
    """Train for three epochs, saving every second step or at the end of epochs; return what was seen."""
    seed_everything(5, verbose=False)
    saving = LastCheckpoint(every_n_train_steps=options.pop("every", 2))
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=RunLogger(version=None if path is None else "resumed"),
        callbacks=[saving], enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=path, weights_only=True)
    return list(module.seen)


def resumed(killed_after: int, loader: Callable[[], Any], scheduled: bool = False, **options: Any) -> list[Any]:
    """Kill a run after some batches, and go on; return what was seen after the last save, and how often was saved."""
    with pytest.raises(Killed):
        trained(Noting(killed_after, scheduled), loader, **options)
    (path,) = Path("logs").glob("*/*/checkpoints/last.ckpt")
    done = checkpoint.read(path)["global_step"]
    assert 0 < done <= killed_after
    return [done, *trained(Noting(scheduled=scheduled), loader, path, **options)]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


@pytest.mark.parametrize("every", [2, None])
@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["shuffled", "a transform that draws", "a stream", "a stream that counts", "a sampler that draws by NumPy"],
        LOADERS,
    ),
)
def test_a_loader_goes_on_where_the_run_was_killed(kind: str, every: int | None) -> None:
    whole = trained(Noting(), LOADERS[kind], every=every)
    Path("logs").rename("whole")
    done, *rest = resumed(11, LOADERS[kind], every=every)  # in the second epoch, of seven batches
    assert rest == whole[done:]


def test_a_stream_that_counts_goes_on_in_its_first_epoch() -> None:
    whole = trained(Noting(), LOADERS["a stream that counts"])
    Path("logs").rename("whole")
    done, *rest = resumed(3, LOADERS["a stream that counts"])
    assert rest == whole[done:]


@pytest.mark.parametrize(("options", "scheduled"), [({"reload_dataloaders_every_n_epochs": 1}, False), ({}, True)])
def test_so_does_one_that_is_asked_for_at_another_time(options: dict[str, Any], scheduled: bool) -> None:
    whole = trained(Noting(scheduled=scheduled), LOADERS["shuffled"], **options)
    Path("logs").rename("whole")
    for killed_after in (3, 11):
        done, *rest = resumed(killed_after, LOADERS["shuffled"], scheduled, **options)
        assert rest == whole[done:]
        Path("logs").rename(f"killed after {killed_after}")


class Rolling(Noting):
    """Makes a generator as training begins, and has that of its loader as an attribute."""

    def on_fit_start(self) -> None:
        self.dice = np.random.default_rng(4)
        loop: Any = self.trainer.fit_loop
        self.order = loop._data_source.instance.generator

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([batch, self.dice.random()], batch_idx)


@pytest.mark.parametrize("every", [2, None])
def test_generators_that_a_hook_makes_go_on_where_the_run_was_killed(every: int | None) -> None:
    loader = LOADERS["a generator of its own"]
    whole = trained(Rolling(), loader, every=every)
    Path("logs").rename("whole")
    with pytest.raises(Killed):
        trained(Rolling(11), loader, every=every)
    (path,) = Path("logs").glob("*/*/checkpoints/last.ckpt")
    rest = trained(Rolling(), loader, path, every=every)
    assert rest == whole[checkpoint.read(path)["global_step"] :]


class Validating(Noting):
    """Is validated by workers that stay."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def val_dataloader(self) -> Any:
        return DataLoader(ROWS, 10, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize(("killed_after", "sanity"), [(11, 0), (3, 0), (3, 1)])
def test_workers_of_a_validation_that_stay_change_no_order(killed_after: int, sanity: int) -> None:
    options: dict[str, Any] = {"num_sanity_val_steps": sanity}
    whole = trained(Validating(), LOADERS["shuffled"], **options)
    Path("logs").rename("whole")
    with pytest.raises(Killed):
        trained(Validating(killed_after), LOADERS["shuffled"], **options)
    (path,) = Path("logs").glob("*/*/checkpoints/last.ckpt")
    rest = trained(Validating(), LOADERS["shuffled"], path, **options)
    assert rest == whole[-len(rest) :]


@pytest.mark.parametrize("every", [1, 2])
def test_loaders_that_are_made_anew_are_so_at_the_same_epochs(every: int) -> None:
    options: dict[str, Any] = {"reload_dataloaders_every_n_epochs": every, "every": None}
    whole = trained(Noting(), LOADERS["shuffled"], **options)
    Path("logs").rename("whole")
    done, *rest = resumed(11, LOADERS["shuffled"], **options)
    assert rest == whole[done:]


def shuffled_and_longer() -> Any:
    return [DataLoader(ROWS, 5, shuffle=True), DataLoader(ROWS, 3, shuffle=True), DataLoader(BLURRED, 4)]


def with_a_generator_of_both() -> Any:
    generator = torch.Generator().manual_seed(3)
    return {
        "a": DataLoader(ROWS, 3, shuffle=True, generator=generator),
        "b": DataLoader(ROWS, 2, True, generator=generator),
    }


def stream_and_shuffled() -> Any:
    return [DataLoader(CountedStream(), 3), DataLoader(ROWS, 5, shuffle=True)]


def of_the_shortest() -> Any:
    return CombinedLoader([DataLoader(ROWS, 3, shuffle=True), DataLoader(ROWS, 2, shuffle=True)], "min_size")


SEVERAL: dict[str, Callable[[], Any]] = {
    "one is longer": shuffled_and_longer,
    "a generator of both": with_a_generator_of_both,
    "a stream": stream_and_shuffled,
    "to the end of the shortest": of_the_shortest,
}


@pytest.mark.parametrize("every", [2, None])
@pytest.mark.parametrize("kind", slow_but(["one is longer"], SEVERAL))
def test_several_loaders_go_on_where_the_run_was_killed(kind: str, every: int | None) -> None:
    loaders = SEVERAL[kind]
    whole = trained(Noting(), loaders, every=every)
    Path("logs").rename("whole")
    length = len(whole) // 3  # of an epoch
    done, *rest = resumed(length + 4, loaders, every=every)
    assert rest == whole[done:]
    Path("logs").rename("killed early")
    done, *rest = resumed(2 * length + 6, loaders, every=every)
    assert rest == whole[done:]


class Shards:
    """A loader of another library: it draws an order, and knows neither a length nor a state."""

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(7):
            yield ROWS[3 * index : 3 * index + 3]


def test_what_cannot_go_on_where_it_was_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    resumed(11, Shards)
    says = "Shards: has no state_dict, so its minibatches are other than without the interruption\n"
    assert capsys.readouterr().out.count(says) == 1


def test_a_loader_stays_what_it_is() -> None:
    class Mine(DataLoader[Any]):
        pass

    loader = Mine(ROWS, 3)
    trained(Noting(), lambda: loader)
    assert isinstance(loader, Mine)
    assert type(loader).__name__ == "Mine"
    assert len(list(loader)) == 7


@pytest.mark.parametrize("every", [2, None])
def test_with_max_steps_it_goes_on_in_the_same_order(every: int | None) -> None:
    whole = trained(Noting(), LOADERS["shuffled"], every=every, max_steps=18)
    Path("logs").rename("whole")
    done, *rest = resumed(11, LOADERS["shuffled"], every=every, max_steps=18)
    assert rest == whole[done:]


@pytest.mark.parametrize("after_an_error", [False, True])
def test_a_trainer_and_its_loader_can_be_pickled_after_the_training(after_an_error: bool) -> None:
    if after_an_error:  # Lightning goes on recording what is set on a DataLoader
        with pytest.raises(RuntimeError), _replace_dunder_methods(DataLoader):
            raise RuntimeError
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[LastCheckpoint()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Noting(), LOADERS["shuffled"]())
    copy = pickle.loads(pickle.dumps(trainer))
    batches = list(copy.train_dataloader)
    assert torch.cat(batches).sort()[0].tolist() == torch.stack(ROWS).tolist()
