"""A core that is busy with something else, as on every laptop."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def core() -> Iterator[None]:
    """Keep one core busy while the block runs."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.5)  # until it runs
    try:
        yield
    finally:
        other.kill()
        other.wait()
