"""Folders that one process at a time works in."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from softmax_regression.errors import InputError


@contextmanager
def locked(folder: Path, remedy: str | None = None) -> Iterator[None]:
    """Keep a folder for this process; the lock ends with the process, however that ends.

    Args:
        folder: What to keep; it stays as it is.
        remedy: What to do but wait where another process keeps it; None to wait here.

    Raises:
        InputError: Another process keeps it, and there is a remedy.
    """
    with ExitStack() as stack:
        with suppress(ImportError):  # Windows has no such locks
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if remedy is None else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise InputError(
                    f"{folder}: another process is at work there; wait for it, or {remedy}"
                ) from error
            except OSError:  # nor have some network file systems
                pass
        yield
