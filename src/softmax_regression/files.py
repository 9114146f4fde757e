"""Files that are written as a whole or not at all, folders locked for one process, and reasons for failures."""

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
    """Write a file so that at any moment, even if the process is killed, it is the old file or the new one.

    A device, pipe or socket is written to directly; of a link, the target is replaced. A file that is replaced keeps
    its mode. Missing folders are made.

    Raises:
        StorageError: The file could not be written; an old one is unchanged.
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


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], first: Sequence[str] = ()) -> None:
    """Write rows as CSV, with a column for each name in any row, `first` before the others; a missing cell is empty."""
    names = dict.fromkeys(chain(first, *rows))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(buffer.getvalue().encode(errors="backslashreplace"), path)  # names of files need not be UTF-8


def check_writable(path: Path, may_replace: bool = True) -> None:
    """Check before the work that a file, or files in a folder, can be written after it.

    Raises:
        InputError: It cannot be written, or there is a file and `may_replace` is False.
    """
    try:
        if path.is_file() and not may_replace:
            raise InputError(f"{path}: exists and was not written by this project; give --force to replace it")
        if path.is_file() or path.is_dir() or not path.exists():  # not for a device or pipe
            folders = [path] if path.is_dir() else path.resolve().parents
            tempfile.TemporaryFile(dir=next(folder for folder in folders if folder.exists())).close()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from error


def check_not_moved(run: Path) -> None:
    """Raise a StorageError if the folder of a run has been moved or deleted meanwhile: it is not made again."""
    if not run.is_dir():
        raise StorageError(f"{run}: has been moved or deleted; put it back, then continue with --resume")


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of `write` from a folder, which a killed process may have left."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, remedy: str | None = None) -> Iterator[None]:
    """Lock a folder for this process, and make it if it is missing; the lock ends with the process at the latest.

    Without a `remedy`, a text on what else the user can do, wait while another process has locked the folder.

    Raises:
        InputError: Another process has locked it, and there is a remedy.
        StorageError: It cannot be made or locked.
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
    """Return the message of an error as one line, without parts that only programmers understand."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return re.sub(r"^<urlopen error (?:\[Errno -?\d+\] )?(.*)>$", r"\1", text) or type(error).__name__
