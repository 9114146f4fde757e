import errno
import gzip
import hashlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.datasets import FashionMNIST

from softmax_regression.data import files as fashion_mnist
from softmax_regression.errors import InputError, StorageError
from softmax_regression.data.files import CLASSES, DIRS, FILES, Dataset, load, parse_idx, write_idx
from softmax_regression.data.synthetic import draw

NAMES = list(FILES)
PACKED = sorted(f"{name}.gz" for name in NAMES)
REMEDIES = ("Put the four official .gz files into", "set FASHION_MNIST_DIR", "--data.source synthetic")


def same(one: Dataset, other: Dataset) -> bool:
    return (
        all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one.sha256 == other.sha256
    )


def names(folder: Path) -> list[str]:
    """Everything in it, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def error_of(*dirs: Path) -> str:
    """The one line that `load` ends with."""
    with pytest.raises(InputError) as caught:
        load([str(folder) for folder in dirs])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny files, to be damaged, of which nothing is downloaded."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def unpack(path: Path) -> Path:
    unpacked = path.with_suffix("")
    unpacked.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    return unpacked


# Where the files are looked for


def test_the_images_and_labels_are_those_that_were_written(tiny: Path) -> None:
    data = load([str(tiny)])
    images, labels = draw(600, seed=0)
    test_images, test_labels = draw(100, seed=1)
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels.long())
    assert torch.equal(data.test_images, test_images)
    assert torch.equal(data.test_labels, test_labels.long())
    assert data.images.dtype == data.test_images.dtype == torch.uint8
    assert data.labels.dtype == data.test_labels.dtype == torch.int64
    assert data.origin == str(tiny)


def test_the_first_folder_that_has_all_four_files_is_taken(folder: Path, tmp_path: Path) -> None:
    partial, other = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("partial", "other"))
    (partial / PACKED[3]).unlink()
    dirs = [str(tmp_path / "absent"), str(partial), str(other), str(folder)]
    assert load(dirs).origin == str(other)
    shutil.copy(folder / PACKED[3], partial)
    assert load(dirs).origin == str(partial)


def test_the_default_folders_are_those_of_the_readme_in_order() -> None:
    assert DIRS == (
        "data/fashion-mnist",
        "data/FashionMNIST/raw",
        "../shared/fashion-mnist",
        "/usr/share/datasets/fashion-mnist",
    )
    assert load.__defaults__ == (DIRS,)


def test_a_tilde_is_the_home_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert load([f"~/{tiny.name}"]).origin == str(tiny)


def test_the_folder_that_fashion_mnist_dir_names_is_the_only_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(folder))
    assert load([str(tmp_path / "absent")]).origin == str(folder)
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "empty"))
    message = error_of(folder)
    assert f"not found in {tmp_path / 'empty'} (lacks all four files)." in message
    assert str(folder) not in message
    assert all(remedy in message for remedy in REMEDIES)
    assert not (tmp_path / "empty").exists()
    monkeypatch.setenv("FASHION_MNIST_DIR", "")
    assert load([str(folder)]).origin == str(folder)


def test_packed_and_unpacked_files_give_the_same_data_and_packed_ones_are_preferred(folder: Path) -> None:
    packed = load([str(folder)])
    images = folder / f"{NAMES[0]}.gz"
    data = images.read_bytes()
    unpacked = unpack(images)
    assert same(load([str(folder)]), packed)
    unpacked.write_bytes(b"never read")
    images.write_bytes(data)
    assert same(load([str(folder)]), packed)


def test_no_folders_at_all_are_an_error() -> None:
    assert error_of() == "dirs=[]: expected at least one folder; add one to data.dirs"


@pytest.mark.real_data
def test_the_real_data_are_what_was_published(real: Dataset, real_folder: Path) -> None:
    assert real.images.shape == (60_000, 28, 28)
    assert real.test_images.shape == (10_000, 28, 28)
    assert real.labels.bincount().tolist() == [6_000] * 10
    assert real.test_labels.bincount().tolist() == [1_000] * 10
    assert len(CLASSES) == 10
    assert real.sha256 == "d1fd84a877f3b78fa9a171b3de73f93e7b6f69ed94bada3feae9d96821401f5c"
    assert {name + ".gz": sums.md5 for name, sums in FILES.items()} == dict(FashionMNIST.resources)


@pytest.mark.real_data
def test_each_published_checksum_is_that_of_the_real_file(real_folder: Path) -> None:
    for name, sums in FILES.items():
        packed = (real_folder / f"{name}.gz").read_bytes()
        assert hashlib.md5(packed, usedforsecurity=False).hexdigest() == sums.md5
        assert hashlib.sha256(packed).hexdigest() == sums.packed
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == sums.unpacked


@pytest.mark.real_data
def test_the_real_data_are_bit_for_bit_those_of_torchvision(
    real: Dataset, real_folder: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / name).write_bytes(gzip.decompress((real_folder / f"{name}.gz").read_bytes()))
    assert same(load([str(raw)]), real)  # torchvision's layout, unpacked
    for train, images, labels in (
        (True, real.images, real.labels),
        (False, real.test_images, real.test_labels),
    ):
        theirs = FashionMNIST(tmp_path, train=train)
        assert torch.equal(theirs.data, images)
        assert torch.equal(theirs.targets, labels)
    assert [name.lower() for name in theirs.classes[1:]] == list(CLASSES[1:])


# Bad files


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
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


def write(data: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(data)

    return damage


def enlarge(path: Path) -> None:
    os.truncate(path, fashion_mnist.MAX_BYTES + 1)  # with a hole: it takes no space


HTML = b"<!DOCTYPE html><title>Not found</title>"
IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BAD_FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty, packed": (f"{IMAGES}.gz", write(b""), "starts with nothing, expected the IDX magic 00000803"),
    "empty": (IMAGES, write(b""), "starts with nothing, expected the IDX magic 00000803"),
    "truncated, packed": (f"{IMAGES}.gz", halve, "bytes, expected 470,416 as its header says"),
    "truncated": (IMAGES, halve, "235,208 bytes, expected 470,416 as its header says"),
    "a header without the end": (LABELS, write(b"\0\0\x08\x01\0\0"), "its header says [0], expected [n]"),
    "oversized": (IMAGES, enlarge, "67,108,865 bytes, expected at most 67,108,864"),
    "oversized, packed": (f"{IMAGES}.gz", enlarge, "67,108,865 bytes, expected at most 67,108,864"),
    "a byte too many": (
        LABELS,
        edit(lambda data: data.append(0)),
        "109 bytes, expected 108 as its header says",
    ),
    "no IDX": (IMAGES, write(HTML), "starts with 3c21444f, expected the IDX magic 00000803"),
    "no IDX, packed": (
        f"{IMAGES}.gz",
        edit(lambda data: data.reverse()),
        ", expected the IDX magic 00000803",
    ),
    "the other kind": (
        f"{LABELS}.gz",
        lambda path: write_idx(draw(100, seed=1)[0], path),
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
        f"{LABELS}.gz",
        edit(lambda data: data.__setitem__(50, 10)),
        "has the label 10, expected 0 to 9",
    ),
    "a flipped byte": (IMAGES, edit(flip), "600 items with SHA-256"),
    "a flipped byte, packed again": (f"{IMAGES}.gz", edit(flip), "600 items with SHA-256"),
    "no .gz": (
        f"{IMAGES}.gz",
        write(HTML),
        "cannot be read (Error -3 while decompressing data: incorrect header",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_one_line_that_names_it_what_was_expected_and_the_remedy(
    kind: str, folder: Path
) -> None:
    name, damage, expected = BAD_FILES[kind]
    path = folder / name if name.endswith(".gz") else unpack(folder / f"{name}.gz")
    damage(path)
    message = error_of(folder)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "expected" in message
    assert message.endswith("; delete it, or put the official file in its place")


def test_an_unpacked_file_under_a_packed_name_is_no_gz(folder: Path) -> None:
    path = folder / f"{LABELS}.gz"
    unpack(path).rename(path)
    assert f"{path}: cannot be read (Error -3" in error_of(folder)


def test_a_bomb_is_not_unpacked_beyond_the_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "MAX_BYTES", 1 << 20)
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(bytes(2 << 20)))
    assert f"{path}: more than 1,048,576 bytes when unpacked, expected at most 1,048,576" in error_of(folder)


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_is_named(missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str(folder))
    (folder / f"{missing}.gz").unlink()
    assert f"not found in {folder} (lacks {missing})" in error_of()
    (folder / f"{missing}.gz").mkdir()
    assert f"not found in {folder} (lacks {missing})" in error_of()


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, who may run the tests, reads everything
    message = error_of(folder)
    assert message.startswith(f"{folder / PACKED[2]}: cannot be read ([Errno 13] Permission denied")


@pytest.mark.chaos
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_and_no_truncation_goes_unnoticed(name: str, packed: bool, folder: Path) -> None:
    path = folder / f"{name}.gz"
    path = path if packed else unpack(path)
    good, random_, count = path.read_bytes(), random.Random(0), 200
    for _ in range(count):
        flipped = bytearray(good)
        flipped[random_.randrange(len(good))] ^= 1 << random_.randrange(8)
        for data in (bytes(flipped), good[: random_.randrange(len(good))]):
            path.write_bytes(data)
            with pytest.raises(InputError, match=name):
                fashion_mnist._read(path)
    path.write_bytes(good)
    fashion_mnist._read(path)
    print(f"\n{path.name}: {2 * count} bit flips and truncations, all noticed")


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
        tensor = parse_idx(data, Path(name))
    except InputError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{name}: ")
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
    path = tmp_path_factory.mktemp("idx") / ("labels" if labels else "images")
    path = path.with_name(path.name + suffix)
    write_idx(tensor, path)
    data = path.read_bytes()
    assert torch.equal(parse_idx(gzip.decompress(data) if suffix else data, path), tensor.to(torch.uint8))
    assert suffix == "" or data[4:8] == bytes(4)  # no time stamp: the same images give the same file


# Downloads


class Mirror(ThreadingHTTPServer):
    """Serves the files of a folder under /good/, and under other names in other ways.

    Attributes:
        requests: The paths that were asked for.
        released: Set when those that wait for a silent answer may go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.requests, self.released = folder, list[str](), Event()

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{behaviour}/"

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
            case "chunks-cut-off":
                self.head(200, "Transfer-Encoding", "chunked")
                self.wfile.write(f"{len(data):x}\r\n".encode() + data[:half])
            case "corrupted":
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
            case "good":
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data)
            case _:
                self.head(200, "Content-Length", str(len(data)))
                self.wfile.write(data[:half])
                if behaviour == "stalled":
                    self.server.released.wait(30)
                else:
                    assert behaviour == "cut-off"

    def head(self, status: int, *header: str) -> None:
        self.send_response(status)
        self.send_header(*header)
        self.end_headers()


FAILURES = {
    "missing": "HTTP Error 404: Not Found",
    "silent": "timed out",
    "stalled": "timed out",
    "cut-off": "corrupted",
    "chunks-cut-off": "IncompleteRead",
    "corrupted": "corrupted",
    "babbling": "this is not HTTP",
    "looping": "redirect",
}


@pytest.fixture
def mirror(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server that has the tiny files, in a thread, on the loopback address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fashion_mnist, "TIMEOUT", 0.3)
    with Mirror(tiny) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
    assert socket.getdefaulttimeout() is None


def use(monkeypatch: pytest.MonkeyPatch, mirror: Mirror, *behaviours: str) -> None:
    monkeypatch.setattr(fashion_mnist, "MIRRORS", [mirror.url(behaviour) for behaviour in behaviours])


def test_a_download_gives_the_four_files_and_nothing_else(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, mirror, "good")
    target = tmp_path / "not" / "yet" / "there"
    data = load([str(target), str(tmp_path / "second")])
    assert data.origin == str(target)
    assert same(data, load([str(mirror.folder)]))
    assert names(target) == PACKED
    assert not (tmp_path / "second").exists()
    out, err = capsys.readouterr()
    assert out == ""
    for name in PACKED:
        assert f"downloading {mirror.url('good')}{name} into {target}" in err
    assert "100%|" in err


def test_downloaded_files_may_be_read_by_those_who_may_read_new_files(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, "good")
    load([str(tmp_path / "target")])
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in (tmp_path / "target").iterdir()} == {
        (tmp_path / "new").stat().st_mode
    }


def test_what_is_there_is_not_downloaded_again(
    mirror: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, "good")
    unpack(folder / PACKED[0])
    (folder / PACKED[1]).unlink()
    load([str(folder)])
    assert set(mirror.requests) == {f"/good/{PACKED[1]}"}
    mirror.requests.clear()
    load([str(folder)])
    assert mirror.requests == []


def test_a_redirection_is_followed(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, mirror, "moved")
    assert same(load([str(tmp_path)]), load([str(mirror.folder)]))


@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_mirror_that_fails_comes_the_next_and_the_failed_one_is_asked_last(
    failure: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, failure, "good")
    start = time.monotonic()
    assert same(load([str(tmp_path)]), load([str(mirror.folder)]))
    assert time.monotonic() - start < 5
    assert names(tmp_path) == PACKED
    assert {path for path in mirror.requests if path.startswith(f"/{failure}/")} == {
        f"/{failure}/{PACKED[0]}"
    }


@pytest.mark.parametrize("failure", FAILURES)
def test_mirrors_that_all_fail_are_listed_in_one_line_with_three_remedies_and_leave_nothing(
    failure: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, failure)
    target, other = tmp_path / "target", tmp_path / "other"
    message = error_of(target, other)
    assert f"not found in {target} (lacks all four files); {other} (lacks all four files); " in message
    assert f"{mirror.url(failure)}{PACKED[0]} (" in message
    assert FAILURES[failure] in message
    assert all(remedy in message for remedy in REMEDIES)
    assert names(target) == []


def test_mirrors_that_cannot_be_reached_are_listed(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    mirrors = [f"http://127.0.0.1:{port}/", mirror.url("missing"), "no-scheme/"]
    monkeypatch.setattr(fashion_mnist, "MIRRORS", mirrors)
    message = error_of(tmp_path)
    for url, reason in zip(mirrors, ("Connection refused", "404", "unknown url type"), strict=True):
        assert url in message
        assert reason in message


def test_files_that_did_arrive_stay_when_a_later_one_fails(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, "good", "missing")
    shutil.copytree(mirror.folder, tmp_path / "mirror")
    mirror.folder = tmp_path / "mirror"
    (mirror.folder / PACKED[3]).write_bytes(b"something else")
    target = tmp_path / "target"
    message = error_of(target)
    assert f"{target} (lacks {PACKED[3].removesuffix('.gz')}); " in message
    assert message.count("http://") == 2
    assert names(target) == PACKED[:3]
    shutil.copy(mirror.folder / PACKED[3], target)
    assert f"{target / PACKED[3]}: cannot be read" in error_of(target)  # what is there is not replaced


def test_a_folder_that_cannot_be_made_and_a_full_disk_are_storage_errors(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, "good")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/folder: cannot save the download .*; change data\.dirs"):
        load([str(tmp_path / "file" / "folder")])

    def fill(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fill)
    with pytest.raises(StorageError, match="No space left on device"):
        load([str(tmp_path / "target")])
    assert names(tmp_path / "target") == []


def test_an_interrupted_download_leaves_nothing(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(url: str, file: str) -> None:
        Path(file).write_bytes(b"the first half")
        raise KeyboardInterrupt

    use(monkeypatch, mirror, "good")
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load([str(tmp_path)])
    assert names(tmp_path) == []


@pytest.mark.chaos
def test_a_killed_download_leaves_nothing_under_the_final_names(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from softmax_regression.data import files as f;"
        f"f.MIRRORS = [{mirror.url('stalled')!r}]; f.load([{str(tmp_path)!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        while not any(tmp_path.glob(".download-*/*.gz")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert [name.startswith(".download-") for name in names(tmp_path)] == [True]
    use(monkeypatch, mirror, "good")
    assert same(load([str(tmp_path)]), load([str(mirror.folder)]))


def test_several_may_download_into_one_folder_at_the_same_time(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, mirror, "good")
    expected = load([str(mirror.folder)])
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, [[str(tmp_path / "target")]] * 4))
    socket.setdefaulttimeout(None)  # of the process: here four share what each restores
    assert all(same(data, expected) for data in loaded)
    assert names(tmp_path / "target") == PACKED
    assert len(mirror.requests) == 2 * len(FILES)  # one downloads, asking twice; the others wait
