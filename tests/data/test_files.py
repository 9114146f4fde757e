import gzip
import os
import random
import shutil
import socket
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import examples.mnist
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.datasets import FashionMNIST

from softmax_regression.data import download
from softmax_regression.data import files as files_module
from softmax_regression.data.files import (
    FASHION_MNIST,
    NAMES,
    Dataset,
    FileSet,
    load,
    parse_idx,
    verify,
    write_idx,
)
from softmax_regression.data.synthetic import generate
from softmax_regression.errors import InputError, StorageError

PACKED = sorted(f"{name}.gz" for name in NAMES)
OFFLINE = replace(FASHION_MNIST, mirrors=(), package=None)
OWN = FileSet("My own", ("left", "right"), None, ("own",))


def same(one: Dataset, other: Dataset) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one.sha256 == other.sha256


def names(folder: Path) -> list[str]:
    """Everything in it, hidden or not, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def error_of(*dirs: Path, files: FileSet = OFFLINE) -> str:
    """The message that `load` ends with; none of its lines is longer than 100 characters."""
    with pytest.raises(InputError) as caught:
        load(files, [str(folder) for folder in dirs])
    message = str(caught.value)
    assert "\n" not in message or max(map(len, message.split("\n"))) <= 100 + len(str(dirs[0]))
    return message


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny files, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def unpack(path: Path) -> Path:
    unpacked = path.with_suffix("")
    unpacked.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return unpacked


# Where the files are looked for


def test_the_images_and_labels_are_those_that_were_written(tiny: Path) -> None:
    data = load(dirs=[str(tiny)])
    for written, read in zip((*generate(600, seed=0), *generate(100, seed=1)), data[:4], strict=True):
        assert torch.equal(written, read)
    assert data.images.dtype == data.test_images.dtype == torch.uint8
    assert data.labels.dtype == data.test_labels.dtype == torch.int64
    assert data.origin == str(tiny)
    assert data.class_names == FASHION_MNIST.class_names


def test_the_first_folder_that_has_all_four_files_is_taken(folder: Path, tmp_path: Path) -> None:
    partial, other = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("partial", "other"))
    (partial / PACKED[3]).unlink()
    dirs = [str(tmp_path / "absent"), str(partial), str(other), str(folder)]
    assert load(dirs=dirs).origin == str(other)
    shutil.copy(folder / PACKED[3], partial)
    assert load(dirs=dirs).origin == str(partial)


@pytest.mark.parametrize("place", FASHION_MNIST.dirs[:5])
def test_files_that_users_already_have_are_found(
    place: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny, Path(place).expanduser())
    assert load(OFFLINE).origin == str(Path(place).expanduser())


def test_a_user_without_a_home_looks_elsewhere(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert load(dirs=["~/nowhere", str(tiny)]).origin == str(tiny)


def test_the_folder_that_the_environment_names_is_the_only_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(folder))
    assert load(dirs=[str(tmp_path / "absent")]).origin == str(folder)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "empty"))
    message = error_of(folder, files=FASHION_MNIST)  # mirrors and apt are not asked
    assert "all four files missing in " in message
    assert str(folder) not in message
    assert not (tmp_path / "empty").exists()
    monkeypatch.setenv("FASHION_MNIST_DIR", "")
    assert load(dirs=[str(folder)]).origin == str(folder)
    assert OWN.variable == "MY_OWN_DIR"


def test_only_the_unpacked_bytes_count(folder: Path) -> None:
    packed = load(dirs=[str(folder)])
    first, second, third, _ = (folder / name for name in PACKED)
    first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()), 1, mtime=1))  # as Debian did
    unpack(second)
    unpack(third).rename(third)  # as some browsers do
    assert same(load(dirs=[str(folder)]), packed)
    second.write_bytes(b"never read: the unpacked file is there")
    assert same(load(dirs=[str(folder)]), packed)


def test_no_folders_at_all_are_an_error() -> None:
    assert error_of() == "dirs=[]: expected at least one folder; add one to data.dirs"


def test_another_data_set_has_its_own_classes_and_may_come_without_checksums(folder: Path) -> None:
    message = error_of(folder, files=OWN)
    assert message.startswith(f"{folder / PACKED[3]}: has the label 9, expected 0 to 1; ")
    for split in ("train", "t10k"):
        write_idx(torch.arange(6) % 2, folder / f"{split}-labels-idx1-ubyte.gz")
        write_idx(torch.zeros(6, 28, 28), folder / f"{split}-images-idx3-ubyte.gz")
    data = load(OWN, [str(folder)])
    assert data.class_names == ("left", "right")
    assert data.labels.tolist() == data.test_labels.tolist() == [0, 1, 0, 1, 0, 1]
    write_idx(torch.ones(6, 28, 28), folder / "t10k-images-idx3-ubyte.gz")
    assert load(OWN, [str(folder)]).sha256 != data.sha256
    write_idx(torch.zeros(7, 28, 28), folder / "t10k-images-idx3-ubyte.gz")
    assert "7 in t10k-images-idx3-ubyte, 6 in t10k-labels-idx1-ubyte; expected as many" in error_of(folder, files=OWN)


def test_the_examples_are_data_sets_of_their_own(tiny: Path) -> None:
    """`python train.py fit --data examples.mnist.Own --data.dirs '[my/files]'`."""
    own = examples.mnist.Own(dirs=[str(tiny)], val_size=100)
    assert own.loaded.class_names == own.class_names == tuple("abcdefghij")
    assert len(own.loaded.images) == 600
    with pytest.raises(InputError, match="expected ba891046e650"):
        examples.mnist.MNIST(dirs=[str(tiny)]).setup()


@pytest.mark.real_data
def test_the_real_data_are_bit_for_bit_those_of_torchvision(real: Dataset, real_folder: Path, tmp_path: Path) -> None:
    assert real.sha256 == "d1fd84a877f3b78fa9a171b3de73f93e7b6f69ed94bada3feae9d96821401f5c"
    assert real.labels.bincount().tolist() == [6_000] * 10
    assert real.test_labels.bincount().tolist() == [1_000] * 10
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, path in files_module.find(real_folder).items():
        data = path.read_bytes()
        (raw / name).write_bytes(gzip.decompress(data) if path.suffix == ".gz" else data)
    for train, images, labels in (
        (True, real.images, real.labels),
        (False, real.test_images, real.test_labels),
    ):
        theirs = FashionMNIST(tmp_path, train=train)
        assert torch.equal(theirs.data, images)
        assert torch.equal(theirs.targets, labels)
    assert [name.lower() for name in theirs.classes[1:]] == list(real.class_names[1:])


# Bad files


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    """Change the contents of a file, packed or not."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        content = bytearray(gzip.decompress(data) if path.suffix == ".gz" else data)
        change(content)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return damage


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def one_label_less(data: bytearray) -> None:
    data[4:8] = (len(data) - 9).to_bytes(4, "big")
    del data[-1]


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def enlarge(path: Path) -> None:
    os.truncate(path, download.MAX_BYTES + 1)  # with a hole: it takes no space


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": (IMAGES, write(b""), "starts with nothing, expected the IDX magic 00000803"),
    "truncated, packed": (f"{IMAGES}.gz", halve, "bytes, expected 470,416 as its header says"),
    "truncated": (IMAGES, halve, "235,208 bytes, expected 470,416 as its header says"),
    "a header without the end": (LABELS, write(b"\0\0\x08\x01\0\0"), "its header says [0], expected [n]"),
    "oversized": (IMAGES, enlarge, "1,073,741,825 bytes, expected at most 1,073,741,824"),
    "a byte too many": (LABELS, edit(lambda data: data.append(0)), "109 bytes, expected 108 as its header"),
    "no IDX": (f"{IMAGES}.gz", write(b"<!DOCTYPE html>"), "starts with 3c21444f, expected the IDX magic"),
    "no gzip": (f"{IMAGES}.gz", write(b"\x1f\x8b nonsense"), "Error -3 while decompressing data"),
    "the other kind": (
        f"{LABELS}.gz",
        lambda path: write_idx(generate(100, seed=1)[0], path),
        "starts with 00000803, expected the IDX magic 00000801",
    ),
    "another shape": (
        f"{IMAGES}.gz",
        lambda path: write_idx(torch.zeros(10, 32, 32), path),
        "its header says [10, 32, 32], expected [n, 28, 28]",
    ),
    "no images": (
        f"{IMAGES}.gz",
        lambda path: write_idx(torch.zeros(0, 28, 28), path),
        "its header says [0, 28, 28], expected [n, 28, 28]",
    ),
    "fewer labels than images": (f"{LABELS}.gz", edit(one_label_less), "99 items with SHA-256"),
    "a label over 9": (
        LABELS,
        edit(lambda data: data.__setitem__(50, 10)),
        "has the label 10, expected 0 to 9",
    ),
    "a flipped bit": (IMAGES, edit(flip), "600 items with SHA-256"),
    "a flipped bit, packed again": (f"{IMAGES}.gz", edit(flip), "600 items with SHA-256"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it_what_was_expected_and_the_remedy(kind: str, folder: Path) -> None:
    name, damage, expected = BAD_FILES[kind]
    path = folder / name if name.endswith(".gz") else unpack(folder / f"{name}.gz")
    damage(path)
    message = error_of(folder)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message
    assert message.endswith("; delete it, or put the official file there")


def test_a_bomb_is_not_unpacked_beyond_the_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_BYTES", 1 << 20)
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(bytes(2 << 20)))
    assert f"{path}: more than 1,048,576 bytes when unpacked, expected at most that" in error_of(folder)


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_is_named(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / f"{missing}.gz").unlink()
    assert f"\n  {missing} missing in copy\n" in error_of(Path("copy"))
    (folder / f"{missing}.gz").mkdir()
    assert f"\n  {missing} missing in copy\n" in error_of(Path("copy"))


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who may run the tests, reads everything
    assert error_of(folder).startswith(f"{folder / PACKED[2]}: Permission denied")


@pytest.mark.chaos
@pytest.mark.real_data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("name", NAMES)
def test_no_damage_to_an_official_file_changes_what_is_loaded(name: str, packed: bool, real_folder: Path) -> None:
    """What is no part of the images, such as the time stamp in a .gz file's header, may change."""
    good = (real_folder / f"{name}.gz").read_bytes()
    good = good if packed else gzip.decompress(good)
    chance, refused, count = random.Random(0), 0, 200
    for _ in range(count):
        place = chance.randrange(len(good))
        flipped = good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1 :]
        for data in (flipped, good[: chance.randrange(len(good))]):
            try:
                digest = verify(data, name, FASHION_MNIST)[1]
            except (ValueError, zlib.error):
                refused += 1
            else:
                assert packed
                assert FASHION_MNIST.sha256
                assert digest == FASHION_MNIST.sha256[name]
    kind = "packed" if packed else "unpacked"
    print(f"\n{name}, {kind}: {2 * count} flips and truncations, {refused} refused, no other image let through")
    assert refused > 0.98 * 2 * count


# The format


def idx(shape: list[int], values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


@st.composite
def nearly_idx(draw_: st.DrawFn) -> bytes:
    """A header of small numbers that may or may not fit the values after it."""
    shape = draw_(st.lists(st.sampled_from([0, 1, 2, 28, 2**31, 2**32 - 1]), min_size=1, max_size=4))
    size = draw_(st.sampled_from([0, 1, 2, 3, 784, 1568]))
    return idx(shape, draw_(st.binary(min_size=3, max_size=3)) * (size // 3) + bytes(size % 3))


@given(data=st.binary(max_size=200) | nearly_idx(), name=st.sampled_from(["some-images", "some-labels"]))
@example(data=idx([2], b"\x09\x00"), name="some-labels")
@example(data=idx([2, 28, 28], bytes(1568)), name="some-images")
def test_any_bytes_are_either_refused_in_one_line_or_valid(data: bytes, name: str) -> None:
    message = ""
    try:
        tensor = parse_idx(data, name)
    except ValueError as error:
        message = str(error)
    if message:
        assert "\n" not in message
        return
    assert tensor.dtype == torch.uint8
    assert tensor.shape[1:] == ((28, 28) if name == "some-images" else ())
    assert len(tensor) > 0
    assert data == idx(list(tensor.shape), tensor.numpy().tobytes())
    assert name == "some-images" or int(tensor.max()) <= 9


def pixels_of(n: int) -> Tensor:
    return torch.randint(256, (n, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@given(n=st.integers(1, 5), suffix=st.sampled_from(["", ".gz"]), labels=st.booleans())
def test_what_is_written_is_read_back(
    n: int, suffix: str, labels: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = torch.arange(n) if labels else pixels_of(n)
    name = "labels" if labels else "images"
    path = tmp_path_factory.mktemp("idx") / (name + suffix)
    write_idx(tensor, path)
    data = path.read_bytes()
    assert torch.equal(parse_idx(gzip.decompress(data) if suffix else data, name), tensor.to(torch.uint8))
    assert suffix == "" or data[4:8] == bytes(4)  # no time stamp: the same images give the same file


# Mirrors


class Mirror(ThreadingHTTPServer):
    """Serves the files of a folder under /good/, and under other names in other ways.

    Attributes:
        requests: The paths that were asked for.
        released: Set when those that wait for a silent answer may go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.requests, self.released = folder, list[str](), Event()

    def files(self, *behaviours: str) -> FileSet:
        """Fashion-MNIST with nothing but mirrors of these behaviours."""
        urls = (f"http://127.0.0.1:{self.server_address[1]}/{behaviour}/" for behaviour in behaviours)
        return replace(FASHION_MNIST, mirrors=tuple(urls), package=None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


class Answer(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Be quiet."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        behaviour, name = self.path.strip("/").split("/")
        data = (self.server.folder / name).read_bytes()
        half = len(data) // 2
        match behaviour:
            case "silent":
                self.server.released.wait(30)
            case "missing":
                self.send_error(404)
            case "babbling":
                self.wfile.write(b"this is not HTTP\r\n\r\n")
            case "looping":
                self.head(302, "Location", self.path)
            case "moved":
                self.head(302, "Location", f"/good/{name}")
            case "endless":
                self.head(200, "Transfer-Encoding", "chunked")
                for _ in range(100):
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            case "cut-off":
                self.head(200, "Transfer-Encoding", "chunked")
                self.wfile.write(f"{len(data):x}\r\n".encode() + data[:half])
            case "corrupted":
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
            case "stalled":
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data[:half])
                self.server.released.wait(30)
            case "good":
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data)

    def head(self, status: int, *header: str) -> None:
        self.send_response(status)
        self.send_header(*header)
        self.end_headers()


FAILURES = {
    "missing": "HTTP Error 404: Not Found",
    "silent": "TimeoutError",
    "stalled": "timed out",
    "cut-off": "IncompleteRead",
    "corrupted": "Error -3 while decompressing data",
    "babbling": "this is not HTTP",
    "looping": "redirect error",
    "endless": "more than 1,000,000 bytes",
}


@pytest.fixture
def mirror(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server that has the tiny files, in a thread, on the loopback address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "MAX_BYTES", 1_000_000)
    with Mirror(tiny) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def test_a_download_gives_the_four_files_and_nothing_else(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "not" / "yet" / "there"
    data = load(mirror.files("good"), [str(target), str(tmp_path / "second")])
    assert data.origin == str(target)
    assert same(data, load(dirs=[str(mirror.folder)]))
    assert names(target) == PACKED
    assert not (tmp_path / "second").exists()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"downloading Fashion-MNIST from 127.0.0.1:{mirror.server_address[1]} into ")
    assert all(name in err for name in NAMES)  # of the progress bars
    (tmp_path / "new").touch()
    assert {(target / name).stat().st_mode for name in PACKED} == {(tmp_path / "new").stat().st_mode}


def test_what_is_there_is_not_downloaded_again(mirror: Mirror, folder: Path) -> None:
    unpack(folder / PACKED[0])
    (folder / PACKED[1]).unlink()
    load(mirror.files("good"), [str(folder)])
    assert mirror.requests == [f"/good/{PACKED[1]}"]
    load(mirror.files("good"), [str(folder)])
    assert len(mirror.requests) == 1


def test_a_redirection_is_followed(mirror: Mirror, tmp_path: Path) -> None:
    assert same(load(mirror.files("moved"), [str(tmp_path)]), load(dirs=[str(mirror.folder)]))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_mirror_that_fails_is_left_for_the_next_and_named_if_none_is_better(
    failure: str, mirror: Mirror, tmp_path: Path
) -> None:
    start = time.monotonic()
    message = error_of(tmp_path / "target", files=mirror.files(failure))
    assert FAILURES[failure] in message
    assert names(tmp_path / "target") == []
    asked = len(mirror.requests)
    assert same(load(mirror.files(failure, "good"), [str(tmp_path)]), load(dirs=[str(mirror.folder)]))
    assert names(tmp_path) == sorted([*PACKED, "target"])
    assert len(mirror.requests) == 2 * asked + 4  # the failed one was asked for one file, not for four
    assert time.monotonic() - start < 5


def test_a_host_that_cannot_be_looked_up_costs_seconds(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: mirror.released.wait(30))
    files = replace(OFFLINE, mirrors=("http://one.invalid/", "http://two.invalid/"))
    start = time.monotonic()
    message = error_of(tmp_path, files=files)
    assert time.monotonic() - start < 2
    assert "\n  one.invalid: TimeoutError\n  two.invalid: TimeoutError\n" in message


def test_when_nothing_answers_each_try_and_each_remedy_has_its_line(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    mirrors = (f"http://127.0.0.1:{port}/", *mirror.files("missing").mirrors, "no-scheme/")
    long = "x/" * 60
    message = error_of(Path("data"), Path(long), files=replace(FASHION_MNIST, mirrors=mirrors))
    assert message.split("\n") == [
        "Fashion-MNIST: not found; tried:",
        "  all four files missing in data",
        f"  all four files missing in {long}"[:100],
        f"  127.0.0.1:{port}: Connection refused",
        f"  127.0.0.1:{mirror.server_address[1]}: HTTP Error 404: Not Found",
        "  no-scheme/: unknown url type: 'no-scheme/train-images-idx3-ubyte.gz'",
        "one of these helps:",
        "  apt-get install dataset-fashion-mnist",
        "  put {train,t10k}-{images-idx3,labels-idx1}-ubyte, .gz or unpacked, into data",
        "  set FASHION_MNIST_DIR to the folder that has them",
        "  train on generated images: --data.source synthetic",
    ]


def test_files_that_did_arrive_stay_when_a_later_one_fails(mirror: Mirror, tmp_path: Path) -> None:
    mirror.folder = Path(shutil.copytree(mirror.folder, tmp_path / "mirror"))
    last = f"{NAMES[-1]}.gz"
    (mirror.folder / last).write_bytes(b"something else")
    target = tmp_path / "target"
    assert f"  {NAMES[-1]} missing in " in error_of(target, files=mirror.files("good", "missing"))
    assert names(target) == sorted(set(PACKED) - {last})
    shutil.copy(mirror.folder / last, target)
    assert f"{target / last}: starts with 736f6d65" in error_of(target)  # what is there is not replaced


def test_a_folder_that_cannot_be_made_and_a_full_disk_are_storage_errors(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/folder: cannot be locked \(Not a directory.*; make it writable"):
        load(mirror.files("good"), [str(tmp_path / "file" / "folder")])
    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match="No space left on device"):
        load(mirror.files("good"), [str(tmp_path / "target")])
    assert names(tmp_path / "target") == []


def test_several_may_download_into_one_folder_at_the_same_time(mirror: Mirror, tmp_path: Path) -> None:
    expected = load(dirs=[str(mirror.folder)])
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load(mirror.files("good"), [str(tmp_path / "target")]), range(4)))
    assert all(same(data, expected) for data in loaded)
    assert names(tmp_path / "target") == PACKED
    assert len(mirror.requests) == len(NAMES)  # one downloads; the others wait


# Debian's package


APT = """#!/bin/sh
echo "$@" >> {log}
for last; do :; done
case "$*" in
  *update) ;;
  *"{needs}"*dataset-fashion-mnist) cp {package} . ;;
  *) printf "W: of no interest\\nE: Unable to locate package $last\\n" >&2; exit 100 ;;
esac
"""


@pytest.fixture
def apt(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a stand-in for apt-get and dpkg-deb on PATH; it returns the log of what apt-get was asked for."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def install(needs: str = "download", damage: bytes = b"") -> Path:
        """`needs` has to be among the arguments of a download that succeeds."""
        log, package = tools / "log", tools / "dataset-fashion-mnist_0_all.deb"
        with tarfile.open(package, "w") as tar:
            for path in files_module.find(tiny).values():
                repacked = tools / path.name
                repacked.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + damage, 1))
                tar.add(repacked, f"./usr/share/datasets/fashion-mnist/{path.name}")
        for name, script in (
            ("apt-get", APT.format(log=log, package=package, needs=needs)),
            ("dpkg-deb", '#!/bin/sh\n[ "$1" = --fsys-tarfile ] && cat "$2"\n'),
        ):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        return log

    return install


PACKAGE = replace(FASHION_MNIST, mirrors=())


def test_apt_is_asked_with_the_lists_of_the_system(apt: Callable[..., Path], tiny: Path, tmp_path: Path) -> None:
    log = apt()
    assert same(load(PACKAGE, [str(tmp_path / "target")]), load(dirs=[str(tiny)]))
    assert names(tmp_path / "target") == PACKED
    assert log.read_text() == "-c apt.conf download dataset-fashion-mnist\n"


def test_where_the_system_has_no_lists_apt_makes_private_ones(
    apt: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    log = apt(needs="Dir::State::lists=")
    assert same(load(PACKAGE, [str(tmp_path / "target")]), load(dirs=[str(tiny)]))
    first, update, second = log.read_text().splitlines()
    assert "Dir::State::lists=" not in first
    assert update.endswith(" update")
    assert update.removesuffix("update") == second.removesuffix("download dataset-fashion-mnist")


def test_a_package_that_is_not_there_or_has_other_images_is_refused(apt: Callable[..., Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    apt(needs="nothing of this kind")
    source = "\n  the package dataset-fashion-mnist (apt-get): "
    assert f"{source}E: Unable to locate package dataset-fashion-mnist\n" in error_of(target, files=PACKAGE)
    apt(damage=b"!")
    assert f"{source}470,417 bytes, expected 470,416 as its header says\n" in error_of(target, files=PACKAGE)
    (apt().parent / "dpkg-deb").write_text("#!/bin/sh\necho 'dpkg-deb: error: not an archive' >&2; exit 2\n")
    assert f"{source}dpkg-deb: error: not an archive\n" in error_of(target, files=PACKAGE)
    assert names(target) == []


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get")
def test_the_real_package_is_fetched_without_touching_the_system(tmp_path: Path) -> None:
    system = [Path(path) for path in ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/apt/archives")]
    before = [path.stat().st_mtime_ns for path in system]
    assert load(PACKAGE, [str(tmp_path)]).sha256.startswith("d1fd84a877f3b78f")
    assert [path.stat().st_mtime_ns for path in system] == before
