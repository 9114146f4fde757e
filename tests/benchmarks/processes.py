"""Whole processes as a shell sees them: commands, each against the least it could have cost."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORT = "import lightning.pytorch.cli"
PLAIN = f"{IMPORT}; from tests.benchmarks.processes import plain; plain()"


def plain() -> None:
    """Load the images as `fit` does, and do what conf/book.yaml asks for with the plain loop."""
    from softmax_regression.data.datasets import load_files

    from .plain import fit
    from .task import flat

    data = load_files()
    fit(10, flat(data.images), data.labels, flat(data.test_images), data.test_labels)


def pairs(logs: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return by their title the commands to compare."""
    python = sys.executable
    fit = [python, "train.py", "fit", f"--trainer.logger.save_dir={logs}"]
    return {
        "`train.py fit --config conf/book.yaml` over bare import, loading and (b)": (
            [*fit, "--config", "conf/book.yaml"],
            [python, "-c", PLAIN],
        ),
        "`train.py fit` over the same without figures": (fit, [*fit, "--figures.every_n_epochs=0"]),
        "`train.py --help` over bare import": ([python, "train.py", "--help"], [python, "-c", IMPORT]),
    }


def seconds_in_turn(commands: Sequence[list[str]], rounds: int) -> list[list[float]]:
    """Run the commands in turn, some rounds after a warm-up, and return the seconds of each.

    Raises:
        subprocess.CalledProcessError: A command failed.
    """
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(rounds + 1):
        for seconds, command in zip(times, commands, strict=True):
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
            seconds.append(time.perf_counter() - start)
    return [seconds[1:] for seconds in times]
