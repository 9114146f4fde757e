"""Downloads: whole or not there, from whichever source answers, and no trace of those that fail."""

import hashlib
import os
import shutil
import socket
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
from torchvision.datasets import FashionMNIST

from idx import copy_files
from marks import slow_but
from softmax_regression.data import download
from softmax_regression.data.datasets import Dataset, load_files
from softmax_regression.data.image_files import EXTRAS, Extras, ImageFiles
from softmax_regression.errors import InputError, StorageError

NAMES = ImageFiles(FashionMNIST).names


def same(one: Dataset, other: Dataset) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)) and one.sha256 == other.sha256


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_of(*dirs: Path) -> str:
    """The message that `load_files` ends with."""
    with pytest.raises(InputError) as caught:
        load_files(dirs=[str(folder) for folder in dirs])
    return str(caught.value)


class Mirror(ThreadingHTTPServer):
    """Serves the files of a folder under /good/, and under other names in other ways.

    Attributes:
        requests: The paths that were asked for.
        released: Set when those that wait for a silent answer may go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.requests, self.released = folder, list[str](), Event()
        self.host = f"127.0.0.1:{self.server_address[1]}"

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


@pytest.fixture
def mirror(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server that has the tiny files, in a thread, on the loopback address; torchvision knows their md5."""
    resources = []
    for name in NAMES:
        digest = hashlib.md5((tiny / f"{name}.gz").read_bytes()).hexdigest()
        resources.append((f"{name}.gz", digest))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    with Mirror(tiny) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def use(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the mirrors of Fashion-MNIST be those of these behaviours, or whole addresses, and no package."""

    def choose(*behaviours: str) -> None:
        mirrors = []
        for behaviour in behaviours:
            is_address = "/" in behaviour
            mirrors.append(behaviour if is_address else f"http://{mirror.host}/{behaviour}/")
        monkeypatch.setattr(FashionMNIST, "mirrors", mirrors)
        monkeypatch.setitem(EXTRAS, FashionMNIST, Extras(EXTRAS[FashionMNIST].sha256))

    return choose


Use = Callable[..., None]


def test_a_download_gives_the_four_files_and_nothing_else(
    mirror: Mirror, use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use("good")
    target = tmp_path / "not" / "yet" / "there"
    data = load_files(dirs=[str(target), str(tmp_path / "second")])
    assert data.origin == str(target)
    assert same(data, load_files(dirs=[str(mirror.folder)]))
    assert names_in(target) == sorted(NAMES)
    assert names_in(tmp_path) == ["not"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"downloading FashionMNIST from {mirror.host} into {target}\n")
    assert "100%" in err  # of the progress bars
    (tmp_path / "new").touch()
    assert {(target / name).stat().st_mode for name in NAMES} == {(tmp_path / "new").stat().st_mode}


def test_what_is_there_is_neither_downloaded_again_nor_replaced(
    mirror: Mirror, use: Use, tiny: Path, tmp_path: Path
) -> None:
    use("good")
    target = copy_files(tiny, tmp_path / "target")
    load_files(dirs=[str(target)])
    assert mirror.requests == []
    for name in NAMES:
        (target / name).unlink()
    (target / f"{NAMES[1]}.gz").unlink()
    (target / f"{NAMES[0]}.gz").write_bytes(b"something else")
    assert error_of(target).startswith(f"{target / NAMES[0]}.gz: 14 bytes with SHA-256")
    assert (target / NAMES[1]).is_file()


FAILURES = {
    "missing": "HTTP Error 404: Not Found",
    "silent": "timed out",
    "stalled": "timed out",
    "cut-off": "IncompleteRead",
    "corrupted": "File not found or corrupted.",
    "babbling": "this is not HTTP",
    "looping": "redirect error",
}


@pytest.mark.parametrize("failure", slow_but(FAILURES.keys() - {"stalled"}, FAILURES))
def test_a_mirror_that_fails_is_left_for_the_next_and_named_if_none_is_better(
    failure: str, mirror: Mirror, use: Use, tmp_path: Path
) -> None:
    start = time.monotonic()
    use(failure)
    message = error_of(tmp_path / "not" / "there")
    assert f"  {mirror.host}: " in message
    assert FAILURES[failure] in message
    assert names_in(tmp_path) == []
    use(failure, "good")
    assert same(load_files(dirs=[str(tmp_path / "target")]), load_files(dirs=[str(mirror.folder)]))
    assert names_in(tmp_path / "target") == sorted(NAMES)
    assert time.monotonic() - start < 10


def test_a_redirection_is_followed(mirror: Mirror, use: Use, tmp_path: Path) -> None:
    use("moved")
    assert same(load_files(dirs=[str(tmp_path)]), load_files(dirs=[str(mirror.folder)]))


@pytest.mark.slow
def test_a_host_that_cannot_be_looked_up_costs_seconds(
    mirror: Mirror, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: mirror.released.wait(30))
    use("http://one.invalid/", "http://two.invalid/")
    start = time.monotonic()
    message = error_of(tmp_path)
    assert time.monotonic() - start < 5
    assert "\n  one.invalid: timed out\n  two.invalid: timed out\n" in message


def test_sockets_of_others_wait_as_long_as_before(use: Use, tmp_path: Path) -> None:
    use("stalled")
    error_of(tmp_path)
    assert socket.getdefaulttimeout() is None


def test_when_nothing_answers_each_try_and_each_remedy_has_its_line(
    mirror: Mirror, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    use(f"http://127.0.0.1:{port}/", "missing", "no-scheme/")
    monkeypatch.setitem(EXTRAS, FashionMNIST, Extras(package="dataset-fashion-mnist"))
    long = "x/" * 60
    message = error_of(Path("data"), Path(long))
    assert message.split("\n") == [
        "FashionMNIST: not found; tried:",
        "  all four files missing in data",
        f"  all four files missing in {long}"[:80],
        f"  127.0.0.1:{port}: Connection refused",
        f"  {mirror.host}: HTTP Error 404: Not Found",
        "  no-scheme/: unknown url type: 'no-scheme/train-images-idx3-ubyte.gz'",
        "one of these helps:",
        "  apt-get install dataset-fashion-mnist",
        "  put these, .gz or unpacked, into data:",
        "    train-images-idx3-ubyte, train-labels-idx1-ubyte,",
        "    t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
        "  set FASHION_MNIST_DIR to the folder that has them",
        "  train on generated images: --data.source synthetic",
    ]
    assert names_in(tmp_path) == []


def test_a_folder_that_was_there_stays_as_it_was(use: Use, tmp_path: Path) -> None:
    use("missing")
    (tmp_path / "empty").mkdir()
    error_of(tmp_path / "empty" / "mistyped")
    error_of(tmp_path / "empty")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_folder_that_cannot_be_made_and_a_full_disk_are_storage_errors(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    use("good")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/folder: cannot be locked \(Not a directory.*; make it writable"):
        load_files(dirs=[str(tmp_path / "file" / "folder")])
    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(StorageError, match="No space left on device"):
        load_files(dirs=[str(tmp_path / "target")])
    assert names_in(tmp_path) == ["file"]


def test_several_may_download_into_one_folder_at_the_same_time(mirror: Mirror, use: Use, tmp_path: Path) -> None:
    use("good")
    expected = load_files(dirs=[str(mirror.folder)])
    target = tmp_path / "target"
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(load_files, dirs=[str(target)]) for _ in range(4)]
    loaded = [future.result() for future in futures]
    assert all(same(data, expected) for data in loaded)
    assert names_in(target) == sorted(NAMES)
    assert mirror.requests.count(f"/good/{NAMES[3]}.gz") == 2  # torchvision asks twice; one downloads, the others wait


# Debian's package


APT = """#!/bin/sh
echo "$@" >> '{log}'
for last; do :; done
case "$*" in
  *update) ;;
  *"{needs}"*dataset-fashion-mnist) touch dataset-fashion-mnist_0_all.deb ;;
  *) printf "W: of no interest\\nE: Unable to locate package $last\\n" >&2; exit 100 ;;
esac
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && mkdir -p "$3/usr/share/datasets" || exit 1
cp -r --no-preserve=mode '{folder}' "$3/usr/share/datasets/fashion-mnist"
"""


@pytest.fixture
def apt(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a stand-in for apt-get and dpkg-deb on PATH; it returns the log of what apt-get was asked for."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    monkeypatch.setitem(EXTRAS, FashionMNIST, Extras(EXTRAS[FashionMNIST].sha256, package="dataset-fashion-mnist"))

    def install(needs: str = "download", folder: Path = tiny) -> Path:
        """`needs` has to be among the arguments of a download that succeeds; the package has `folder`."""
        log = tools / "log"
        (tools / "apt-get").write_text(APT.format(log=log, needs=needs))
        (tools / "dpkg-deb").write_text(DPKG.format(folder=folder))
        for name in ("apt-get", "dpkg-deb"):
            (tools / name).chmod(0o755)
        return log

    return install


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has apt-get")


@linux
def test_apt_is_asked_with_the_lists_of_the_system(apt: Callable[..., Path], tiny: Path, tmp_path: Path) -> None:
    log = apt()
    assert same(load_files(dirs=[str(tmp_path / "target")]), load_files(dirs=[str(tiny)]))
    assert names_in(tmp_path / "target") == sorted(NAMES)
    assert log.read_text() == "-c apt.conf download dataset-fashion-mnist\n"


@linux
def test_where_the_system_has_no_lists_apt_makes_private_ones(
    apt: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    log = apt(needs="Dir::State::lists=")
    assert same(load_files(dirs=[str(tmp_path / "target")]), load_files(dirs=[str(tiny)]))
    first, update, second = log.read_text().splitlines()
    assert "Dir::State::lists=" not in first
    assert update.endswith(" update")
    assert update.removesuffix("update") == second.removesuffix("download dataset-fashion-mnist")


@linux
def test_a_package_that_is_not_there_or_has_other_images_is_refused(
    apt: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    apt(needs="nothing of this kind")
    source = "\n  the package dataset-fashion-mnist (apt-get): "
    assert f"{source}E: Unable to locate package" in error_of(target)
    damaged = copy_files(tiny, tmp_path / "damaged")
    (damaged / f"{NAMES[0]}.gz").write_bytes(b"something else")
    apt(folder=damaged)
    assert f"{source}14 bytes with SHA-256" in error_of(target)
    (apt().parent / "dpkg-deb").write_text("#!/bin/sh\necho 'not an archive' >&2; exit 2\n")
    assert f"{source}not an archive\n" in error_of(target)
    assert not target.exists()


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get")
def test_the_real_package_is_fetched_without_touching_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    extras = EXTRAS[FashionMNIST]
    monkeypatch.setitem(EXTRAS, FashionMNIST, Extras(extras.sha256, package=extras.package))
    system = [Path(path) for path in ("/var/lib/apt/lists", "/var/cache/apt", "/var/cache/apt/archives")]
    before = [path.stat().st_mtime_ns for path in system]
    assert load_files(dirs=[str(tmp_path)]).sha256.startswith("d1fd84a877f3b78f")
    assert [path.stat().st_mtime_ns for path in system] == before
