"""Where the files of a data set are found, and what is said of those that cannot be used."""

import gzip
import os
import random
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import examples.mnist
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import datasets

from idx import copy_files, write_idx
from softmax_regression import FashionMNISTDataModule
from softmax_regression.data import image_files
from softmax_regression.data.datasets import Dataset, generate_dataset, load_files
from softmax_regression.data.image_files import EXTRAS, ImageFiles
from softmax_regression.data.synthetic import generate
from softmax_regression.errors import InputError

IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NAMES = [IMAGES, "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", LABELS]


def same(one: Dataset, other: Dataset) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one.sha256 == other.sha256


def message_of(dataset: image_files.DatasetClass, *dirs: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_files(dataset, [str(folder) for folder in dirs])
    return str(caught.value)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny files, to be changed."""
    return copy_files(tiny, tmp_path / "copy")


@pytest.fixture
def no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a mirror nor apt-get."""
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [])
    monkeypatch.setitem(EXTRAS, datasets.FashionMNIST, image_files.Extras(EXTRAS[datasets.FashionMNIST].sha256))


def unpack(path: Path) -> Path:
    unpacked = path.with_suffix("")
    unpacked.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return unpacked


# Where the files are looked for


def test_the_images_and_labels_are_those_that_were_written(tiny: Path) -> None:
    data = load_files(dirs=[str(tiny)])
    images, labels = generate(600, seed=0)
    test_images, test_labels = generate(100, seed=1)
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels.long())
    assert torch.equal(data.test_images, test_images)
    assert torch.equal(data.test_labels, test_labels.long())
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.origin == str(tiny)
    assert ImageFiles(datasets.FashionMNIST).class_names == tuple(datasets.FashionMNIST.classes)


def test_the_first_folder_that_has_all_four_files_is_taken(folder: Path, tmp_path: Path) -> None:
    partial, other = tmp_path / "partial", tmp_path / "other"
    copy_files(folder, partial)
    copy_files(folder, other)
    (partial / f"{LABELS}.gz").unlink()
    dirs = [str(tmp_path / "absent"), str(partial), str(other), str(folder)]
    assert load_files(dirs=dirs).origin == str(other)
    shutil.copy(folder / f"{LABELS}.gz", partial)
    assert load_files(dirs=dirs).origin == str(partial)


@pytest.mark.parametrize("place", ImageFiles(datasets.FashionMNIST).folders[:-1])
def test_files_that_users_already_have_are_found(
    place: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_files(tiny, Path(place).expanduser())
    assert load_files().origin == str(Path(place).expanduser())


def test_a_user_without_a_home_looks_elsewhere(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert load_files(dirs=["~/nowhere", str(tiny)]).origin == str(tiny)


def test_the_folder_that_the_environment_names_is_the_only_one_and_nothing_is_written_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(folder))
    before = sorted(tmp_path.rglob("*"))
    assert load_files(dirs=[str(tmp_path / "absent")]).origin == str(folder)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "empty"))
    message = message_of(datasets.FashionMNIST, folder)  # mirrors and apt are not asked
    assert "all four files missing in " in message
    assert str(folder) not in message
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setenv("FASHION_MNIST_DIR", "")
    assert load_files(dirs=[str(folder)]).origin == str(folder)


def test_only_the_unpacked_bytes_count(folder: Path) -> None:
    packed = load_files(dirs=[str(folder)])
    first, second, third, _ = (folder / f"{name}.gz" for name in NAMES)
    first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 1, mtime=1))  # as Debian did
    unpack(second)
    unpack(third).rename(third)  # as some browsers do
    assert same(load_files(dirs=[str(folder)]), packed)
    second.write_bytes(b"never read: the unpacked file is there")
    assert same(load_files(dirs=[str(folder)]), packed)


def test_packed_official_files_are_unpacked_once_to_where_torchvision_looks_for_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packed = copy_files(tiny, "data/fashion-mnist")
    first = load_files()
    assert first.origin == str(packed)
    second = load_files()
    assert second.origin == "data/FashionMNIST/raw"
    assert same(first, second)
    assert torch.equal(datasets.FashionMNIST("data", train=False).data, first.test_images)
    assert sorted(path.name for path in Path("data/FashionMNIST/raw").iterdir()) == sorted(NAMES)


def test_packed_official_files_in_a_folder_that_is_named_are_unpacked_there_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_files(dirs=[str(folder)])
    with monkeypatch.context() as patch:
        patch.delattr(zlib, "decompressobj")
        assert same(load_files(dirs=[str(folder)]), first)
    for name in NAMES:
        (folder / name).unlink()
    folder.chmod(0o555)
    assert same(load_files(dirs=[str(folder)]), first)
    assert len(list(folder.iterdir())) == 4  # it is meant to stay as it is


def test_a_single_folder_need_not_be_in_a_list(folder: Path) -> None:
    assert load_files(datasets.KMNIST, str(folder)).origin == str(folder)


@pytest.mark.parametrize("dataset", [datasets.CIFAR10, datasets.USPS, None, "MNIST"])
def test_a_data_set_of_another_family_is_refused(dataset: Any) -> None:
    with pytest.raises(InputError, match=r"dataset = \w+: expected a class of torchvision's MNIST family"):
        ImageFiles(dataset)


def test_packed_files_that_have_no_checksum_are_not_kept_unpacked(folder: Path) -> None:
    load_files(datasets.KMNIST, [str(folder)])
    assert len(list(folder.iterdir())) == 4  # somebody may replace them


def test_where_nothing_can_be_written_packed_files_are_loaded_all_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_files(tiny, "data/fashion-mnist")
    Path("data/FashionMNIST").touch()  # root, who may run the tests, writes into folders that say no
    assert load_files().origin == "data/fashion-mnist"


def test_damaged_files_are_not_kept_unpacked(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_files(tiny, "data/fashion-mnist")
    Path("data/fashion-mnist", f"{LABELS}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(InputError, match="SHA-256"):
        load_files()
    assert list(Path("data").iterdir()) == [Path("data/fashion-mnist")]


@pytest.mark.real_data
def test_the_real_data_are_bit_for_bit_those_of_torchvision(real: Dataset, real_folder: Path, tmp_path: Path) -> None:
    assert real.sha256 == "d1fd84a877f3b78fa9a171b3de73f93e7b6f69ed94bada3feae9d96821401f5c"
    assert real.labels.bincount().tolist() == [6_000] * 10
    assert real.test_labels.bincount().tolist() == [1_000] * 10
    ImageFiles(datasets.FashionMNIST).place(real_folder, tmp_path / "FashionMNIST" / "raw")
    train = datasets.FashionMNIST(tmp_path, train=True)
    test = datasets.FashionMNIST(tmp_path, train=False)
    assert torch.equal(train.data, real.images)
    assert torch.equal(train.targets, real.labels)
    assert torch.equal(test.data, real.test_images)
    assert torch.equal(test.targets, real.test_labels)


# Other data sets of torchvision's


def write_ints(labels: Tensor, path: Path) -> None:
    """QMNIST's labels (n, 8), of which the first is the class, as an IDX file of 32-bit integers."""
    rows = np.zeros((len(labels), 8), dtype=">i4")
    rows[:, 0] = labels.numpy()
    rows[:, 1] = 70_000  # the writer, which no byte holds
    header = bytes([0, 0, 12, 2]) + len(labels).to_bytes(4, "big") + (8).to_bytes(4, "big")
    path.write_bytes(header + rows.tobytes())


class Lower(datasets.EMNIST):  # type: ignore[misc]
    """A subclass with arguments of its own."""

    split = "letters"

    def __init__(self, root: str, **options: object) -> None:
        super().__init__(root, split="letters", **options)


FAMILY: dict[str, tuple[image_files.DatasetClass, str, str, int, str]] = {
    "KMNIST": (datasets.KMNIST, "train", "t10k", 10, "o"),
    "QMNIST": (datasets.QMNIST, "qmnist-train", "qmnist-test", 10, "0 - zero"),
    "EMNIST": (
        partial(datasets.EMNIST, split="digits"), "emnist-digits-train", "emnist-digits-test", 10, "0",
    ),
    "Lower": (Lower, "emnist-letters-train", "emnist-letters-test", 27, "N/A"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILY)
def test_another_data_set_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, train, test, classes, first_class = FAMILY[name]
    raw = tmp_path / "data" / name / "raw"
    raw.mkdir(parents=True)
    for prefix, n in ((train, 60), (test, 20)):
        images, labels = generate(n, seed=n)
        write_idx(images, raw / f"{prefix}-images-idx3-ubyte.gz")
        if name == "QMNIST":
            write_ints(labels, raw / f"{prefix}-labels-idx2-int")
        else:
            write_idx(labels, raw / f"{prefix}-labels-idx1-ubyte")
    monkeypatch.chdir(tmp_path)

    class Data(FashionMNISTDataModule):
        dataset = kind

    data = Data(batch_size=10, val_size=20)
    assert len(data.class_names) == classes
    assert data.class_names[0] == first_class
    data.setup()
    images, labels = generate(60, seed=60)
    assert torch.equal(data.loaded.images, images)
    assert torch.equal(data.loaded.labels, labels.long())
    assert len(data.loaded.test_labels) == 20
    assert len(data.train_index) == 40


@pytest.mark.parametrize("split", [None, "digit"])
def test_emnist_asks_which_of_its_splits_is_meant(split: str | None) -> None:
    dataset = datasets.EMNIST if split is None else partial(datasets.EMNIST, split=split)
    with pytest.raises(InputError, match=rf"EMNIST: split={split}, expected byclass, .*digits, mnist; write"):
        load_files(dataset)


def test_the_examples_are_data_sets_of_their_own(tiny: Path, tmp_path: Path) -> None:
    """`python train.py fit --data examples.mnist.Own --data.dirs '[my/files]'`."""
    own = examples.mnist.Own(dirs=[str(tiny)], val_size=100)
    assert own.class_names == tuple("abcdefghij")
    assert len(own.loaded.images) == 600
    with pytest.raises(InputError, match="expected ba891046e650"):
        examples.mnist.MNIST(dirs=[str(tiny)]).setup()
    with pytest.raises(InputError, match="OwnFiles: not found"):
        examples.mnist.Own(dirs=[str(tmp_path / "mistyped" / "files")]).setup()
    assert list(tmp_path.iterdir()) == []


# Files that cannot be used


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace(data: bytes) -> Callable[[Path], object]:
    return partial(Path.write_bytes, data=data)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": (IMAGES, replace(b""), "0 bytes with SHA-256 e3b0c44298fc..., expected "),
    "truncated": (IMAGES, halve, "235,208 bytes with SHA-256 "),
    "truncated, packed": (f"{IMAGES}.gz", halve, "cut off, or more than 1,048,576 bytes when unpacked"),
    "a flipped bit": (IMAGES, flip_a_bit, "470,416 bytes with SHA-256 "),
    "a web page": (f"{IMAGES}.gz", replace(b"<!DOCTYPE html>"), "15 bytes with SHA-256 "),
    "no gzip": (f"{IMAGES}.gz", replace(b"\x1f\x8b nonsense"), "Error -3 while decompressing data"),
    "a bomb": (
        f"{LABELS}.gz",
        replace(gzip.compress(bytes(2 << 20))),
        "cut off, or more than 1,048,576 bytes when unpacked",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_official_file_is_one_line_that_names_it_what_was_expected_and_the_remedy(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", 1 << 20)
    name, damage, expected = BAD_FILES[kind]
    path = folder / name
    if path.suffix != ".gz":
        unpack(folder / f"{name}.gz")
    damage(path)
    message = message_of(datasets.FashionMNIST, folder)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message
    assert message.endswith("; delete it, or put the official file there")


def write_images(images: Tensor) -> Callable[[Path], object]:
    return partial(write_idx, images)


BAD_OWN_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "not IDX": (IMAGES, replace(b"<!DOCTYPE html>"), "not four IDX files (AssertionError); replace them"),
    "empty": (IMAGES, replace(b""), "not four IDX files ("),
    "truncated": (IMAGES, halve, "not four IDX files (shape '[600, 28, 28]' is invalid for input of size 235192)"),
    "the other kind": (LABELS, write_images(torch.zeros(100, 28, 28)), "not four IDX files (x should have 1 dim"),
    "another shape": (IMAGES, write_images(torch.zeros(600, 32, 32)), "has images of shape (600, 32, 32), torch"),
    "no images": (IMAGES, write_images(torch.zeros(0, 28, 28)), "not four IDX files (offset (16 bytes) must be "),
    "fewer labels": (LABELS, write_images(torch.zeros(99)), "has 99 labels for 100 images; replace one of the files"),
    "a label over 9": (
        LABELS,
        write_images(torch.arange(100)),
        "has the label 99, expected 0 to 9; change `targets` or `classes`",
    ),
}


@pytest.mark.parametrize("kind", BAD_OWN_FILES)
def test_a_bad_file_of_ones_own_is_one_line_that_says_what_was_expected(kind: str, folder: Path) -> None:
    name, damage, expected = BAD_OWN_FILES[kind]
    damage(unpack(folder / f"{name}.gz"))
    message = message_of(examples.mnist.OwnFiles, folder)
    assert message.startswith(f"{folder}: {expected}")
    assert "\n" not in message


def changed(**changes: Callable[[Tensor], Any]) -> type[datasets.MNIST]:
    """Return a class of data sets that changes its `data` or `targets` as it is made."""

    class Changed(examples.mnist.OwnFiles):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            for name, change in changes.items():
                setattr(self, name, change(getattr(self, name)))

    return Changed


class Inverted(examples.mnist.OwnFiles):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return 255 - np.asarray(image), label


class WithoutNames(examples.mnist.OwnFiles):
    classes = None  # type: ignore[assignment]


UNUSABLE: dict[str, tuple[image_files.DatasetClass, str]] = {
    "a transform": (partial(examples.mnist.OwnFiles, transform=torch.neg), "its transforms and __getitem__ are not"),
    "one of labels": (partial(examples.mnist.OwnFiles, target_transform=torch.neg), "its transforms and __getitem__"),
    "its own __getitem__": (Inverted, "dataset = Inverted: its transforms and __getitem__ are not used; change"),
    "no names": (WithoutNames, "WithoutNames: its `classes` are no list of names; give"),
    "images as fractions": (changed(data=lambda data: data / 255), "torch.float32, expected (n, 28, 28), torch.uint8"),
    "a label for each class": (changed(targets=torch.nn.functional.one_hot), "has labels of shape (600, 10), torch.in"),
    "labels that are fractions": (changed(targets=torch.Tensor.float), "has labels of shape (600,), torch.float32, ex"),
    "a label below 0": (changed(targets=lambda targets: targets - 1), "has the label -1, expected 0 to 9; change `t"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_a_data_set_of_ones_own_changes_is_used_or_refused(kind: str, folder: Path) -> None:
    dataset, expected = UNUSABLE[kind]
    message = message_of(dataset, folder)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("change", [Tensor.int, Tensor.tolist, Tensor.numpy])
def test_labels_may_be_any_whole_numbers(change: Callable[[Tensor], Any], folder: Path) -> None:
    assert same(load_files(changed(targets=change), str(folder)), load_files(examples.mnist.OwnFiles, str(folder)))


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who may run the tests, reads everything
    message = message_of(datasets.FashionMNIST, folder)
    assert message == f"{folder / IMAGES}.gz: Permission denied; delete it, or put the official file there"


@pytest.mark.usefixtures("no_sources")
@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_is_named(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / f"{missing}.gz").unlink()
    assert f"\n  {missing} missing in copy\n" in message_of(datasets.FashionMNIST, Path("copy"))
    (folder / f"{missing}.gz").mkdir()
    assert f"\n  {missing} missing in copy\n" in message_of(datasets.FashionMNIST, Path("copy"))


def test_no_folders_at_all_are_an_error() -> None:
    assert message_of(datasets.FashionMNIST) == "dirs=[]: expected at least one folder; add one to data.dirs"


@pytest.mark.chaos
@pytest.mark.real_data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("name", NAMES)
def test_no_damage_to_an_official_file_changes_what_is_loaded(
    name: str, packed: bool, real_folder: Path, tmp_path: Path
) -> None:
    """What is no part of the images, such as the time stamp in a .gz file's header, may change."""
    files = ImageFiles(datasets.FashionMNIST)
    good, _ = files.read(files.find(real_folder, name) or real_folder, name)
    content = gzip.compress(good, mtime=0) if packed else good
    chance, refused, count = random.Random(0), 0, 4 * int(os.environ.get("CHAOS", 5))
    for _ in range(count):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        for data in (flipped, content[: chance.randrange(len(content))]):
            (tmp_path / name).write_bytes(data)
            try:
                read, _ = files.read(tmp_path / name, name)
            except (ValueError, zlib.error):
                refused += 1
            else:
                assert packed
                assert read == good
    assert refused > 0.9 * 2 * count


# Generated images


def test_generated_training_and_test_images_have_none_in_common() -> None:
    data = generate_dataset(600)
    assert data.images.shape == (600, 28, 28)
    assert data.test_images.shape == (100, 28, 28)
    assert data.labels.dtype == data.test_labels.dtype == torch.int64
    assert "generated" in data.origin
    both = torch.cat([data.images, data.test_images]).flatten(1)
    assert len(both.unique(dim=0)) == 700


def test_generated_images_are_the_same_every_time_and_their_digest_says_which() -> None:
    one, other = generate_dataset(600), generate_dataset(610)
    torch.manual_seed(5)
    assert same(one, generate_dataset(600))
    assert one.sha256 != other.sha256
    assert len(one.sha256) == 64
