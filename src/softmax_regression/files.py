"""Files that are whole or not there, folders that one process at a time works in, and why they cannot be had."""

import csv
import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from softmax_regression.errors import InputError, StorageError


def write(data: bytes, path: Path) -> None:
    """Write a file so that at any moment, even when killed or out of space, it is the old one or the new one.

    A device, pipe or socket is written through, the target of a link is replaced instead of the link, and a
    file that was there keeps its mode. Missing folders are made.

    Raises:
        StorageError: The file could not be written; an old one is intact.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise StorageError(
            f"{path}: cannot be saved ({reason(error)}); free space or make the folder writable"
        ) from error


def append(data: bytes, path: Path) -> None:
    """Add a line to a file, without waiting for the disk.

    Raises:
        StorageError: The file could not be written.
    """
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"{path}: cannot be saved ({reason(error)}); free space or make it writable") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows under all names that any of them has; a cell that a row lacks is empty."""
    names = dict.fromkeys(chain.from_iterable(rows))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(buffer.getvalue().encode(), path)


def check_writable(path: Path, ours: bool = True) -> None:
    """Refuse, before the work is done, a file, or the folder of a page, that could not be written in the end.

    Raises:
        InputError: It cannot be written, or a file is there that is not `ours` to replace.
    """
    try:
        if path.is_file() and not ours:
            raise InputError(f"{path}: exists and was not written by this project; give --force to replace it")
        if path.is_file() or path.is_dir() or not path.exists():  # a device or pipe is written through
            folders = [path] if path.is_dir() else path.resolve().parents
            tempfile.TemporaryFile(dir=next(folder for folder in folders if folder.exists())).close()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


def remove_debris(folder: Path) -> None:
    """Remove from a folder what a process that was killed inside `write` has left there."""
    for debris in folder.rglob(".*.tmp"):
        debris.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, remedy: str | None = None) -> Iterator[None]:
    """Keep a folder, made if it is missing, for this process; the lock ends with the process, however that ends.

    Where another process keeps it, wait for that one to end if `remedy`, what else one can do, is None.

    Raises:
        InputError: Another process keeps it, and there is a remedy.
        StorageError: It can be neither made nor locked.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if remedy is None else 0)
    except Timeout as error:
        raise InputError(f"{folder}: another process is at work there; wait for it, or {remedy}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
            raise StorageError(f"{folder}: cannot be locked ({reason(error)}); make it writable") from error
    try:
        yield
    finally:
        lock.release()


def reason(error: BaseException) -> str:
    """Return what a failure says, in one line, without what only a programmer reads."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return re.sub(r"^<urlopen error (?:\[Errno -?\d+\] )?(.*)>$", r"\1", text) or type(error).__name__
