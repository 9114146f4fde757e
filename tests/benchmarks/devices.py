"""Milliseconds of a training step on one process and on two, and with the images in host memory.

An epoch's time is what `train.py fit` prints, validation and saving included; the first of a run warms up.
The commands take turns, and a ratio is that of two in the same round. Then `two_processes` races `fit`
against DDP by hand.

Command: python -m tests.benchmarks.devices
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
ONE, TWO = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
COMMANDS = {
    "1 process": [*ONE, "train.py", "fit"],
    "2 processes": [*TWO, "train.py", "fit"],
    "1 process, images in host memory": [*ONE, "train.py", "fit", "--data.device=host"],
}
STEPS = 215  # of an epoch: 55,000 images in minibatches of 256


def milliseconds(command: list[str], epochs: int) -> float:
    """Run a command and return the median time of a step over the epochs after the first."""
    with tempfile.TemporaryDirectory() as logs:
        options = [f"--trainer.max_epochs={epochs}", f"--trainer.logger.save_dir={logs}"]
        run = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = [float(text) for text in re.findall(r"^epoch .*  ([\d.]+) s$", run.stdout, re.MULTILINE)]
    return 1000 * median(seconds[1:]) / STEPS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, command in COMMANDS.items():
            times[name].append(milliseconds(command, args.epochs))
    print("| | ms a step, median (range) | ratio to 1 process |\n|---|---|---|")
    for name, values in times.items():
        ratio = median(a / b for a, b in zip(values, times["1 process"], strict=True))
        print(f"| {name} | {median(values):.2f} ({min(values):.2f} to {max(values):.2f}) | {ratio:.2f} |")
    race = [*TWO, "-m", "tests.benchmarks.two_processes", f"--rounds={args.rounds}"]
    print(flush=True)
    subprocess.run(race, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
