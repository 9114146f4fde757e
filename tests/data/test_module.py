import doctest
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor

from softmax_regression.classifier import Batch
from softmax_regression.data import module as data
from softmax_regression.data.module import FashionMNISTDataModule, stratified_order
from softmax_regression.data.synthetic import generate
from softmax_regression.errors import InputError

# https://github.com/Lightning-AI/pytorch-lightning/issues/21273
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def module(tiny: Path, **options: Any) -> FashionMNISTDataModule:
    """The tiny files: 600 training images, 100 of them held out unless `options` say otherwise."""
    return FashionMNISTDataModule(**{"dirs": [str(tiny)], "batch_size": 10, "val_size": 100, **options})


def loaded(tiny: Path, **options: Any) -> FashionMNISTDataModule:
    result = module(tiny, **options)
    result.setup()
    return result


def seen(minibatches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """The images (n, 28, 28) uint8 and labels (n,) of minibatches."""
    xs, ys = zip(*minibatches, strict=True)
    return (torch.cat(xs)[:, 0] * 255).round().to(torch.uint8), torch.cat(ys)


class Recorder(LightningModule):
    """Remembers what `predict` hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def predict_step(self, batch: Batch, batch_idx: int) -> int:
        self.seen.append(batch)
        return len(batch)


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


# Splits


def test_training_and_validation_images_are_disjoint_and_together_all(tiny: Path) -> None:
    split = loaded(tiny)
    assert len(split.val_index) == 100
    assert torch.cat([split.val_index, split.train_index]).sort().values.tolist() == list(range(600))


@pytest.mark.parametrize("val_size", [10, 100, 123, 5])
@pytest.mark.parametrize("train_size", [None, 10, 95, 100])
def test_both_splits_have_the_classes_equally_often_to_one(tiny: Path, val_size: int, train_size: int | None) -> None:
    split = loaded(tiny, val_size=val_size, train_size=train_size)
    assert len(split.train_index) == (train_size or 600 - val_size)
    for index in (split.val_index, split.train_index):
        counts = split.loaded.labels[index].bincount(minlength=10)
        assert counts.max() - counts.min() <= 1


def test_the_validation_images_are_the_same_for_every_seed_and_training_size(tiny: Path) -> None:
    expected = loaded(tiny).val_index
    for options in ({"seed": 1}, {"train_size": 20}, {"batch_size": 7}):
        assert torch.equal(loaded(tiny, **options).val_index, expected)
    torch.manual_seed(99)
    assert torch.equal(loaded(tiny).val_index, expected)


def test_a_smaller_training_set_is_contained_in_every_larger_one(tiny: Path) -> None:
    sizes = [set(loaded(tiny, train_size=size).train_index.tolist()) for size in (10, 50, 333, 500, None)]
    assert all(small <= large for small, large in itertools.pairwise(sizes))


def test_without_validation_all_images_are_trained_on(tiny: Path) -> None:
    split = loaded(tiny, val_size=0)
    assert len(split.val_index) == 0
    assert split.train_index.sort().values.tolist() == list(range(600))
    assert split.val_dataloader() == {}


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
)
def test_a_prefix_of_the_stratified_order_has_the_classes_in_the_proportions_of_the_whole(
    counts: list[int], seed: int, share: float
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = stratified_order(labels, seed)
    assert order.sort().values.tolist() == list(range(len(labels)))
    size = round(share * len(labels))
    chosen = labels[order[:size]].bincount(minlength=len(counts))
    for count, got in zip(counts, chosen.tolist(), strict=True):
        proportion = count / len(labels)
        # Half an example from rounding this class, and its share of what all others were rounded by.
        assert abs(got - proportion * size) <= 0.5 + 0.5 * len(counts) * proportion + 1e-9


def test_the_stratified_order_changes_with_the_seed_and_does_not_read_the_global_generator() -> None:
    labels = generate(500, seed=0)[1].long()
    state = torch.get_rng_state()
    assert torch.equal(stratified_order(labels, 1), stratified_order(labels, 1))
    assert not torch.equal(stratified_order(labels, 1), stratified_order(labels, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.real_data
def test_the_default_split_of_the_real_data_is_balanced(real_folder: Path) -> None:
    split = FashionMNISTDataModule(dirs=[str(real_folder)])
    split.setup()
    labels = split.loaded.labels
    assert labels[split.val_index].bincount().tolist() == [500] * 10
    assert labels[split.train_index].bincount().tolist() == [5500] * 10


# Loaders


def test_the_loaders_hand_out_their_split_and_no_other(tiny: Path) -> None:
    split = loaded(tiny)
    images, labels = seen(split.train_dataloader())
    assert torch.equal(images, split.loaded.images[split.train_dataloader().order()])
    assert torch.equal(labels, split.loaded.labels[split.train_dataloader().order()])
    (name, validation), *others = split.val_dataloader().items()
    assert name == "val"
    assert others == []
    assert torch.equal(seen(validation)[0], split.loaded.images[split.val_index])
    for loader in (split.test_dataloader(), split.predict_dataloader()):
        assert torch.equal(seen(loader)[0], split.loaded.test_images)
        assert torch.equal(seen(loader)[1], split.loaded.test_labels)


def test_the_order_of_the_training_images_follows_the_seed(tiny: Path) -> None:
    one, again, other = (seen(loaded(tiny, seed=seed).train_dataloader())[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_batch_sizes_are_those_asked_for(tiny: Path) -> None:
    split = loaded(tiny, batch_size=64, eval_batch_size=30)
    assert [len(y) for _, y in split.train_dataloader()] == [64] * 7 + [500 - 7 * 64]
    assert [len(y) for _, y in split.val_dataloader()["val"]] == [30, 30, 30, 10]


def test_the_test_images_are_watched_only_when_asked_for(tiny: Path) -> None:
    assert list(loaded(tiny, watch_test=True).val_dataloader()) == ["val", "test"]
    assert list(loaded(tiny, watch_test=True, val_size=0).val_dataloader()) == ["test"]


def test_the_data_are_loaded_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = module(tiny)
    split.prepare_data()
    first = split.loaded
    monkeypatch.setattr(data, "load_files", None)
    for stage in ("fit", "validate", "test", "predict", None):
        split.setup(stage)
    assert split.loaded is first
    assert split.state_dict() == {"sha256": first.sha256, "source": "files", "position": {}}


def test_the_example_in_the_documentation_runs() -> None:
    results = doctest.testmod(data, extraglobs={"torch": torch})
    assert results.failed == 0
    assert results.attempted > 0


# Bad values

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size=0: must be at least 1; raise data.batch_size"),
    ({"batch_size": -1}, "batch_size=-1: must be at least 1; raise data.batch_size"),
    (
        {"batch_size": 501},
        "batch_size=501: must be at most 500, the number of training images; lower data.batch_size",
    ),
    (
        {"batch_size": 21, "train_size": 20},
        "batch_size=21: must be at most 20, the number of training images; lower data.batch_size",
    ),
    ({"val_size": -1}, "val_size=-1: must be at least 0; raise data.val_size"),
    ({"val_size": 600}, "val_size=600: must be less than 600, the number of training images; lower data.val_size"),
    ({"train_size": 0}, "train_size=0: must be at least 1; raise data.train_size"),
    ({"train_size": -5}, "train_size=-5: must be at least 1; raise data.train_size"),
    (
        {"train_size": 501},
        "train_size=501: must be at most 500, the images left beside data.val_size; lower data.train_size",
    ),
    ({"synthetic_size": 9}, "synthetic_size=9: must be at least 10; raise data.synthetic_size"),
    ({"eval_batch_size": 0}, "eval_batch_size=0: must be at least 1; raise data.eval_batch_size"),
    ({"dirs": []}, "dirs=[]: expected at least one folder; add one to data.dirs"),
]


@pytest.mark.parametrize(("options", "message"), BAD_VALUES, ids=[str(options) for options, _ in BAD_VALUES])
def test_a_bad_value_is_one_line_that_names_it_what_was_expected_and_the_remedy(
    tiny: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tiny, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["val_size", "train_size", "batch_size", "eval_batch_size", "synthetic_size"])
def test_a_size_that_is_no_whole_number_is_refused(name: str) -> None:
    options: dict[str, Any] = {"source": "synthetic", "synthetic_size": 600, "val_size": 10, "batch_size": 10}
    with pytest.raises(InputError, match=f"{name}=100.0: must be a whole number; change data.{name}"):
        FashionMNISTDataModule(**options | {name: 100.0}).setup()
    FashionMNISTDataModule(**options | {name: np.int64(50)}).setup()


@pytest.mark.parametrize("images", ["", [""], []])
def test_no_photos_are_not_the_test_set(tiny: Path, images: str | list[str]) -> None:
    with pytest.raises(InputError, match=r"data\.images"):
        module(tiny, images=images).setup("predict")


@pytest.mark.parametrize(("name", "expected"), [("source", "files or synthetic"), ("device", "auto or host")])
def test_a_word_that_is_no_choice_is_refused_from_python_too(name: str, expected: str) -> None:
    options: dict[str, Any] = {name: "Synthetic"}
    with pytest.raises(InputError, match=f"{name}=Synthetic: expected {expected}"):
        FashionMNISTDataModule(**options)


def test_the_largest_values_that_make_sense_are_accepted(tiny: Path) -> None:
    assert len(loaded(tiny, batch_size=500, train_size=500).train_dataloader()) == 1
    assert len(loaded(tiny, batch_size=1, val_size=599).train_index) == 1


def test_sizes_that_do_not_fit_are_refused_again_the_second_time(tiny: Path) -> None:
    split = module(tiny, val_size=600)
    for _ in range(2):
        with pytest.raises(InputError, match="val_size=600"):
            split.setup()


# Generated images


def test_generated_images_need_no_files_and_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_files", None)
    split = FashionMNISTDataModule(source="synthetic", synthetic_size=600, val_size=100)
    split.setup()
    assert split.loaded.images.shape == (600, 28, 28)
    assert split.loaded.test_images.shape == (100, 28, 28)
    assert split.loaded.labels.dtype == split.loaded.test_labels.dtype == torch.int64
    assert "generated" in split.loaded.origin
    assert split.state_dict()["source"] == "synthetic"


# Photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(generate(3, seed=0)[0]):
        Image.fromarray(image.numpy()).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_files", None)


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize("as_list", [False, True])
def test_photos_are_predicted_without_the_data_set(photos: Path, as_list: bool) -> None:
    recorder = Recorder()
    images = [str(photos)] if as_list else str(photos)
    trainer().predict(recorder, datamodule=FashionMNISTDataModule(images=images), return_predictions=False)
    found, labels = seen(recorder.seen)
    assert torch.equal(found, generate(3, seed=0)[0])
    assert labels.tolist() == [-1, -1, -1]


def test_without_photos_the_test_images_are_predicted(tiny: Path) -> None:
    recorder, split = Recorder(), module(tiny)
    trainer().predict(recorder, datamodule=split, return_predictions=False)
    assert torch.equal(seen(recorder.seen)[0], split.loaded.test_images)
    assert torch.equal(seen(recorder.seen)[1], split.loaded.test_labels)


class Kept(BasePredictionWriter):
    """Writes a file of each process: the indices of its batches, and the labels that it was handed."""

    def __init__(self, folder: Path) -> None:
        super().__init__("epoch")
        self.folder = folder

    def write_on_epoch_end(self, trainer: Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        labels = [batch[1].tolist() for batch in pl_module.seen]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps([batch_indices[0], labels]))


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("devices", [1, 2])
def test_callbacks_are_told_the_image_of_each_prediction_once_over_all_processes(
    devices: int, tiny: Path, tmp_path: Path
) -> None:
    strategy = "ddp_fork" if devices > 1 else "auto"
    together = trainer(devices=devices, strategy=strategy, callbacks=[Kept(tmp_path)])
    split = module(tiny, eval_batch_size=30)
    together.predict(Recorder(), datamodule=split, return_predictions=False)
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(ranks) == devices
    for rank, (indices, labels) in enumerate(ranks):
        assert [index for batch in indices for index in batch] == list(range(rank, 100, devices))
        assert labels == [split.loaded.test_labels[batch].tolist() for batch in indices]


def test_photos_leave_the_other_stages_alone(tiny: Path, photos: Path) -> None:
    split = module(tiny, images=str(photos))
    split.setup("predict")
    assert split.data is None
    split.setup("test")
    assert torch.equal(seen(split.test_dataloader())[0], split.loaded.test_images)
    assert len(seen(split.predict_dataloader())[1]) == 3


@pytest.mark.usefixtures("no_files")
def test_files_that_are_no_photos_are_named_and_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "notes.txt").write_text("no photo")
    split = FashionMNISTDataModule(images=str(photos))
    split.setup("predict")
    assert split.photos is not None
    assert split.photos[1] == [photos / f"{index}.png" for index in range(3)]
    out, err = capsys.readouterr()
    assert out == ""
    assert f"skipped {photos / 'notes.txt'}: " in err
    assert "1 of 4 files skipped\n" in err


@pytest.mark.usefixtures("no_files")
def test_a_folder_without_a_photo_is_bad_input(tmp_path: Path) -> None:
    split = FashionMNISTDataModule(images=str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"no photo can be used .*absent") as caught:
        split.setup("predict")
    assert "\n" not in str(caught.value)


# With a Trainer


class Counter(Recorder):
    """Remembers the labels of each epoch and trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[tuple[str, int], list[int]] = {}
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def _step(self, stage: str, batch: Batch) -> None:
        self.epochs.setdefault((stage, self.current_epoch), []).extend(batch[1].tolist())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._step("train", batch)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self._step("val", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def index_labels(split: FashionMNISTDataModule) -> None:
    """Let the label of each image be its number, so that it can be told which was seen."""
    assert split.data is not None
    split.data = split.data._replace(labels=torch.arange(len(split.data.labels)))


def test_a_sanity_check_does_not_shorten_validation_and_every_epoch_has_its_own_order(
    tiny: Path,
) -> None:
    split, counter = loaded(tiny, eval_batch_size=30), Counter()
    index_labels(split)
    trainer(max_epochs=2, num_sanity_val_steps=2).fit(counter, datamodule=split)
    for epoch in (0, 1):
        assert counter.epochs["val", epoch] == split.val_index.tolist()
        assert sorted(counter.epochs["train", epoch]) == sorted(split.train_index.tolist())
    assert counter.epochs["train", 0] != counter.epochs["train", 1]


def test_an_epoch_that_is_limited_sees_the_first_minibatches_of_its_order(tiny: Path) -> None:
    split, counter = loaded(tiny, val_size=0), Counter()
    index_labels(split)
    trainer(max_epochs=3, limit_train_batches=4, limit_val_batches=0).fit(counter, datamodule=split)
    for epoch in range(3):
        loader = split.train_dataloader()
        loader.sampler.set_epoch(epoch)
        assert counter.epochs["train", epoch] == seen(loader)[1][:40].tolist()


@pytest.mark.parametrize("counts_its_steps", [False, True])
def test_an_epoch_that_was_interrupted_goes_on_at_its_minibatch(
    tiny: Path, tmp_path: Path, counts_its_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a schedule asks for the number of steps, which lets Lightning forget the loader's state."""

    class Scheduled(Counter):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            if counts_its_steps:
                assert self.trainer.estimated_stepping_batches == 100
            return super().configure_optimizers()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.global_step == stop_at:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)
                raise KeyError

    whole, first, rest, stop_at = Scheduled(), Scheduled(), Scheduled(), -1
    options: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
    trainer(**options).fit(whole, datamodule=loaded(tiny))
    stop_at = 70
    with pytest.raises(KeyError):
        trainer(**options).fit(first, datamodule=loaded(tiny))
    stop_at = -1
    trainer(**options).fit(rest, datamodule=loaded(tiny), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert first.epochs["train", 1] + rest.epochs["train", 1] == whole.epochs["train", 1]
    assert len(rest.epochs["train", 1]) == 300


@pytest.mark.parametrize("command", ["fit", "test"])
def test_after_a_checkpoint_the_next_training_begins_with_its_first_minibatch(
    command: str, tiny: Path, tmp_path: Path
) -> None:
    """A data module that went on within the first epoch, or was tested with its checkpoint, trains another model."""

    class Saving(Counter):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.global_step == 20:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=False)

        def test_step(self, batch: Batch, batch_idx: int) -> None:
            pass

    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    first, split = Saving(), loaded(tiny)
    trainer(**options).fit(first, datamodule=split)
    run = getattr(trainer(**options), command)
    run(Saving(), datamodule=split, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    again = Saving()
    trainer(**options).fit(again, datamodule=split)
    assert again.epochs == first.epochs
    assert len(again.epochs["train", 0]) == 500


def test_overfitting_takes_the_same_minibatches_in_every_epoch(tiny: Path) -> None:
    counter = Counter()
    trainer(max_epochs=2, overfit_batches=3, limit_val_batches=0).fit(counter, datamodule=loaded(tiny))
    assert len(set(counter.epochs["train", 0])) <= 30
    assert counter.epochs["train", 0] == counter.epochs["train", 1]
