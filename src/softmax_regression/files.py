"""Files that are whole or not there, and folders that one process at a time works in."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from softmax_regression.errors import InputError, StorageError

LOCK = ".lock"  # in a folder that is kept; the system takes it back when its process ends


def write(data: bytes, path: Path) -> None:
    """Write a file so that at any moment, even when killed or out of space, it is the old one or the new one.

    A device, pipe or socket is written through, the target of a link is replaced instead of the link, and a
    file that was there keeps its mode. Missing folders are made.

    Raises:
        StorageError: The file could not be written; an old one is intact.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb", buffering=0) as stream:
                stream.write(data)
            return
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise StorageError(
            f"{path}: cannot be saved ({_reason(error)}); free space or make the folder writable"
        ) from error


def check_writable(path: Path, ours: bool = True) -> None:
    """Refuse, before the work is done, to write what `write` could not write in the end.

    Args:
        path: The file to write, or the folder of a page, which may be missing.
        ours: Whether a file that is there may be replaced: it is this project's, or the user said so.

    Raises:
        InputError: It cannot be written, or somebody's file is there.
    """
    try:
        if path.is_file() and not ours:
            raise InputError(f"{path}: exists and was not written by this project; give --force to replace it")
        folder = path if path.is_dir() else path.resolve().parent
        while not folder.exists():
            folder = folder.parent
        if path.exists() and not path.is_file() and not path.is_dir():
            return
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error


def remove_debris(folder: Path) -> None:
    """Remove from a folder what a process that was killed inside `write` has left there."""
    for debris in folder.rglob(".*.tmp"):
        debris.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, remedy: str | None = None) -> Iterator[None]:
    """Keep a folder for this process; the lock ends with the process, however that ends.

    Args:
        folder: What to keep.
        remedy: What to do but wait where another process keeps it; None to wait here.

    Raises:
        InputError: Another process keeps it, and there is a remedy.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=-1 if remedy is None else 0)
    except Timeout as error:
        raise InputError(f"{folder}: another process is at work there; wait for it, or {remedy}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
            raise StorageError(f"{folder}: cannot be locked ({_reason(error)}); make it writable") from error
    try:
        yield
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
