"""Files of a data set from where they are published: over HTTP, or out of a Debian package.

Both ways yield (name, bytes) for each file as soon as it is there, unverified, and raise nearly anything.
"""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePath
from urllib.error import HTTPError
from urllib.request import urlopen

TIMEOUT = 5.0  # seconds until a mirror answers, and that it may fall silent for
MAX_BYTES = 1 << 30  # of a file, packed or not
# Nothing of the system is written, none of its hooks is run, and root stays root instead of becoming _apt.
_APT = """
Dir::Cache "{0}"; #clear APT::Update; APT::Sandbox::User "";
Acquire {{ Languages "none"; Retries "0"; http::Timeout "5"; https::Timeout "5"; }};
"""


def from_mirror(url: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Download `url` + name + ".gz" for each name, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import wrap_file

    for name in names:
        with ThreadPool(1) as pool:  # or looking up a host, or trying 16 addresses of it, could take minutes
            try:
                answer = pool.apply_async(urlopen, (f"{url}{name}.gz",), {"timeout": TIMEOUT}).get(TIMEOUT)
            except HTTPError as error:
                error.close()
                raise
        data, console = bytearray(), Console(stderr=True)
        with answer, wrap_file(answer, answer.length or 0, description=name, console=console) as stream:
            while chunk := stream.read(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ValueError(f"more than {MAX_BYTES:,} bytes")
        yield name, bytes(data)


def from_apt(package: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Download a Debian package, as any user, and open it without installing it."""
    with tempfile.TemporaryDirectory() as folder:

        def run(*command: str | Path) -> bytes:
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)
            if done.returncode:
                raise OSError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
            return done.stdout

        Path(folder, "apt.conf").write_text(_APT.format(folder))
        Path(folder, "lists", "partial").mkdir(parents=True)
        apt, private = ("apt-get", "-c", "apt.conf"), ("-o", f"Dir::State::lists={folder}/lists")
        try:
            run(*apt, "download", package)
        except OSError:  # the system's lists of packages are missing or old
            with suppress(OSError):  # one source of several may fail
                run(*apt, *private, "update")
            run(*apt, *private, "download", package)
        archive = run("dpkg-deb", "--fsys-tarfile", *Path(folder).glob("*.deb"))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        paths = {PurePath(path).name: path for path in tar.getnames()}
        for name in names:
            if file := tar.extractfile(paths.get(f"{name}.gz", name)):
                yield name, file.read()
