"""Results as Markdown and as figures, and what they depend on."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from .growth import Point
from .race import CONTESTANTS
from .task import Outcome

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "scikit-learn", "keras", "jax", "numpy")


def markdown(header: str, rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the header's columns are separated by bars."""
    columns = header.split(" | ")
    lines = [header, "|".join(["---"] * len(columns))]
    for row in rows:
        lines.append(" | ".join(map(str, row)))
    table = ""
    for line in lines:
        table += f"| {line} |\n"
    return table


def spread(seconds: Sequence[float]) -> str:
    """Return the median, the smallest and the largest."""
    return f"{median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the ratio of the medians, and the smallest and the largest ratio of one round."""
    rounds = []
    for a, b in zip(mine, theirs, strict=False):  # slow contestants run in the first ones only
        rounds.append(a / b)
    return f"{median(mine) / median(theirs):.3g} ({min(rounds):.3g} to {max(rounds):.3g})"


def seconds_of(outcomes: Sequence[Outcome]) -> list[float]:
    """Return what each round took."""
    return [outcome.seconds for outcome in outcomes]


def title(key: str) -> str:
    """Return the letters and the name of a contestant."""
    return f"({key}) {CONTESTANTS[key].title}"


def race_table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Return a row for each contestant, compared with the plain loop, the work by hand, and this project."""
    header = "contestant | seconds | over (b) | over (h) | over (a) | set-up | train loss | val acc | rounds"
    rows = []
    for key, done in outcomes.items():
        seconds = seconds_of(done)
        row = [title(key), spread(seconds)]
        others = ("b", "h", "a")
        if key in ("am", "bm", "hm"):
            others = ("bm", "hm", "am")
        for other in others:
            if other in outcomes:
                row.append(ratio(seconds, seconds_of(outcomes[other])))
            else:
                row.append("")
        row.append(f"{median([outcome.setup for outcome in done]):.2f}")
        if done[-1].loss is None:
            row.append("")
        else:
            row.append(f"{done[-1].loss:.4f}")
        rows.append([*row, f"{done[-1].acc:.4f}", str(len(done))])
    return markdown(header, rows)


def race_figure(outcomes: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Draw the median and every round of each contestant, on a logarithmic axis."""
    figure = Figure(figsize=(9, 0.5 * len(outcomes) + 1.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="seconds (bar: median, dots: rounds)")
    for y, (key, done) in enumerate(outcomes.items()):
        seconds = seconds_of(done)
        color = "C0"
        if key == "a":
            color = "C1"
        axes.barh(y, median(seconds), color=color, alpha=0.5)
        axes.plot(seconds, [y] * len(done), "k.", markersize=4)
    axes.set_yticks(range(len(outcomes)), list(map(title, outcomes)))
    axes.invert_yaxis()
    return figure


def growth_table(points: Sequence[Point]) -> str:
    """Return a row for each point."""
    rows = []
    for p in points:
        per_example = f"{1e6 * median(p.seconds) / p.examples:.2f}"
        rows.append([p.examples, p.batch_size, spread(p.seconds), per_example, f"{p.memory:.0f}", f"{p.data:.0f}"])
    return markdown("examples | batch size | seconds an epoch | µs an example | memory, MiB | data, MiB", rows)


def growth_figure(by_examples: Sequence[Point], by_batch_size: Sequence[Point]) -> Figure:
    """Draw time against examples and against batch size, and memory against examples."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    time, batch, memory = figure.subplots(1, 3)
    n = [p.examples for p in by_examples]
    time.loglog(n, [median(p.seconds) for p in by_examples], "o-")
    time.set(xlabel="examples", ylabel="seconds an epoch")
    batch.loglog([p.batch_size for p in by_batch_size], [median(p.seconds) for p in by_batch_size], "o-")
    batch.set(xlabel="batch size", ylabel="seconds an epoch")
    memory.plot(n, [p.memory for p in by_examples], "o-", label="peak, beyond the imports")
    memory.plot(n, [p.data for p in by_examples], "--", label="images and labels")
    memory.set(xlabel="examples", ylabel="MiB")
    memory.legend()
    return figure


def processor() -> str:
    """Return the name of the processor, or of its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def machine(device: str) -> str:
    """Return the processor, its threads, the accelerator and the versions."""
    parts = [f"{os.cpu_count()} cores ({processor()})", f"{torch.get_num_threads()} threads"]
    parts += [platform.system(), f"Python {platform.python_version()}"]
    if device == "cuda":
        parts.append(torch.cuda.get_device_name())
    for name in PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return ", ".join(parts)
