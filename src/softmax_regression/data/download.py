"""Downloads of a data set: by torchvision from its mirrors, or out of a Debian package."""

import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from softmax_regression.data.image_files import ImageFiles
from softmax_regression.errors import StorageError
from softmax_regression.files import locked, reason

TIMEOUT = 5.0  # seconds to wait for the answer of a mirror, and for more data
# apt writes nothing of the system, runs no hooks, and does not change from root to the user _apt.
APT_CONFIGURATION = """
Dir::Cache "{0}"; #clear APT::Update; APT::Sandbox::User "";
Acquire {{ Languages "none"; Retries "0"; http::Timeout "5"; https::Timeout "5"; }};
"""


def download(files: ImageFiles, target: Path) -> list[str]:
    """Download and verify the files of a data set that a folder lacks; other processes wait.

    Returns the sources that failed, each with the reason. A StorageError says that a file could not be saved.
    """
    sources: list[tuple[str, Callable[[Path], None]]] = []
    for mirror in files.mirrors:
        host = urlsplit(mirror + files.address).netloc or mirror
        sources.append((host, partial(fetch_from_mirror, files, mirror)))
    package = files.extras.package
    if package and shutil.which("apt-get"):
        sources.append((f"the package {package} (apt-get)", partial(fetch_from_debian, files)))
    failures: list[str] = []
    if not sources:
        return failures
    with _removing_leftovers(target), locked(target), tempfile.TemporaryDirectory() as temporary:
        for source, fetch in sources:
            if not files.missing(target):  # or another process has downloaded them
                break
            print(f"downloading {files.name} from {source} into {target}", file=sys.stderr)
            try:
                fetch(Path(temporary))
                files.place(Path(temporary), target)
            except StorageError:
                raise
            except Exception as error:  # the next source may work
                failures.append(f"{source}: {reason(error).rpartition('got: ')[2]}")
    return failures


@contextmanager
def _removing_leftovers(folder: Path) -> Iterator[None]:
    """Afterwards, remove the lock file, and new folders if they are empty."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink()
            for path in absent:
                path.rmdir()


def fetch_from_mirror(files: ImageFiles, mirror: str, folder: Path) -> None:
    """Let torchvision download a data set, with a progress bar on stderr, and unpack it."""
    with ThreadPool(1) as pool:  # without it, the name look-up, or 16 addresses of a host, can take minutes
        answer = pool.apply_async(urlopen, (mirror + files.address,), {"timeout": TIMEOUT})
        try:
            answer.get(TIMEOUT).close()
        except HTTPError as error:
            error.close()
            raise
        except multiprocessing.TimeoutError as error:  # it has no message
            raise TimeoutError("timed out") from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for train in (True, False):
            files.open(folder, train, download=True, mirrors=[mirror])
    finally:
        socket.setdefaulttimeout(before)


def fetch_from_debian(files: ImageFiles, folder: Path) -> None:
    """Download a Debian package and unpack it, without installing it; any user can do this."""

    def run(*command: str | Path) -> None:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)
        if done.returncode:
            raise OSError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])

    package = files.extras.package
    (folder / "apt.conf").write_text(APT_CONFIGURATION.format(folder))
    (folder / "lists" / "partial").mkdir(parents=True)
    apt = ("apt-get", "-c", "apt.conf")
    own_lists = (*apt, "-o", f"Dir::State::lists={folder}/lists")
    try:
        run(*apt, "download", package)
    except OSError:  # the system's lists of packages are missing or old
        with suppress(OSError):  # one of several package sources may fail
            run(*own_lists, "update")
        run(*own_lists, "download", package)
    run("dpkg-deb", "-x", *folder.glob("*.deb"), "opened")
    for path in (folder / "opened").rglob("*-ubyte*"):
        path.rename(folder / path.name)
