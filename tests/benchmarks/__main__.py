"""How fast this project is, measured in turn with its peers: benchmarks.md, benchmarks.png and growth.png.

Every torch loop computes with as many threads as `fit` does, one; the row (b2) has torch's default.
Command: python -m tests.benchmarks [--busy] [--start-up] [--to-accuracy CONFIG] [--growth]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from softmax_regression.data.module import FashionMNISTDataModule

from . import busy, growth, processes, tables
from .race import CONTESTANTS, missing, race
from .task import Task

VAL_SIZE = 5000


def main(args: Sequence[str] | None = None) -> None:
    """Run what the flags ask for and write the results."""
    options = _options(args)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    parts = ["# Benchmarks", f"{tables.machine(options.device)}. Spread: median (smallest to largest)."]
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".runs-") as scratch:
        for wanted, part in (
            (options.only, _race),
            (options.busy, _busy),
            (options.start_up, _start_up),
            (options.to_accuracy, _to_accuracy),
            (options.growth, _growth),
        ):
            if wanted:
                parts.append(part(options, Path(scratch)))
                print(parts[-1], flush=True)
                (options.out / "benchmarks.md").write_text("\n\n".join(parts))  # as far as it has come


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks")
    add = parser.add_argument
    add("--only", default=",".join(CONTESTANTS), help="contestants, with commas; an empty string for no race")
    add("--rounds", type=int, default=5, help="rounds after the warm-up (default: 5)")
    add("--slow-rounds", type=int, help="rounds that c, e1 and e2 take part in (default: all)")
    add("--epochs", type=int, default=10)
    add("--train-size", type=int, help="training images (default: 55,000)")
    add("--source", choices=["files", "synthetic"], default="files")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=int, default=1, help="threads of every torch loop (default: 1)")
    add("--busy", action="store_true", help="also race with one core busy with something else")
    add("--start-up", action="store_true", help="also time whole processes")
    add("--to-accuracy", metavar="CONFIG", help="also time CONFIG to scikit-learn's test accuracy")
    add("--growth", action="store_true", help="also vary the number of examples and the batch size")
    add("--out", type=Path, default=Path("logs/benchmarks"), help="folder for the results")
    return parser.parse_args(args)


def _race(options: argparse.Namespace, scratch: Path) -> str:
    keys = options.only.split(",")
    synthetic_size = (options.train_size or 55_000) + VAL_SIZE
    data = FashionMNISTDataModule(
        val_size=VAL_SIZE, train_size=options.train_size, source=options.source, synthetic_size=synthetic_size
    )
    data.setup()
    task = Task(data, options.device, scratch)
    outcomes = race(task, keys, options.epochs, options.rounds, options.slow_rounds or options.rounds)
    tables.race_figure(outcomes).savefig(options.out / "benchmarks.png", dpi=120)
    absent = [f"Not installed: {' or '.join(CONTESTANTS[key].packages)}, for ({key})." for key in missing(keys)]
    title = f"{options.epochs} epochs on {options.device}, {len(data.train_index)} images, {data.loaded.origin}:"
    return "\n\n".join([title, tables.race_table(outcomes), *absent])


def _busy(options: argparse.Namespace, scratch: Path) -> str:
    folder = scratch / "busy"
    folder.mkdir()
    with busy.core():
        return f"With one core busy:\n\n{_race(options, folder)}"


def _start_up(options: argparse.Namespace, scratch: Path) -> str:
    rows = []
    for title, commands in processes.pairs(scratch).items():
        mine, least = processes.seconds_in_turn(commands, options.rounds)
        rows.append([title, tables.spread(mine), tables.spread(least), tables.ratio(mine, least)])
    return f"Whole processes:\n\n{tables.markdown('what over what | seconds | seconds | ratio', rows)}"


def _to_accuracy(options: argparse.Namespace, scratch: Path) -> str:
    from .accuracy import in_turn  # needs scikit-learn

    config = options.to_accuracy
    ours, theirs = in_turn(config, scratch, options.rounds)
    mine, least = [o.seconds for o in ours], [o.seconds for o in theirs]
    rows = [
        [f"`fit --config {config}`", tables.spread(mine), tables.ratio(mine, least), f"{ours[-1].acc:.4f}"],
        ["scikit-learn LogisticRegression", tables.spread(least), "1", f"{theirs[-1].acc:.4f}"],
    ]
    return f"Time to accuracy:\n\n{tables.markdown('what | seconds | ratio | test acc', rows)}"


def _growth(options: argparse.Namespace, scratch: Path) -> str:
    by_examples = [growth.measure(n, 256, options.device) for n in growth.EXAMPLES]
    by_batch_size = [growth.measure(60_000, size, options.device) for size in growth.BATCH_SIZES]
    tables.growth_figure(by_examples, by_batch_size).savefig(options.out / "growth.png", dpi=120)
    return f"Growth of `fit`:\n\n{tables.growth_table([*by_examples, *by_batch_size])}"


if __name__ == "__main__":
    main()
