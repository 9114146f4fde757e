"""What a sweep found: a page, a CSV with all epochs, and the configurations in TensorBoard's HPARAMS."""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import TrialState
from torch.utils.tensorboard import SummaryWriter

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import shell_command
from softmax_regression.figures.drawings import PALETTE, Curves, learning_curves, split_metric
from softmax_regression.figures.page import write_page
from softmax_regression.files import write_csv
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.class_path import class_path_of
from softmax_regression.runs.record import environment
from softmax_regression.studies.alone import parameters_of
from softmax_regression.studies.intervals import Interval, difference
from softmax_regression.studies.sweep.results import Result, failures
from softmax_regression.studies.sweep.search import Search
from softmax_regression.studies.sweep.space import BOOK, Plan, Value, count, describe, sort_key, sorted_values
from softmax_regression.studies.sweep.training import LightningTraining, StackTraining

SHOWN = 5  # configurations in the table of the best
COLUMNS = 3  # panels in a row


def write(
    folder: Path,
    search: Search,
    test: Mapping[str, Sequence[float]],
    training: StackTraining | LightningTraining,
    command: str,
) -> Path:
    """Write everything about a search that has ended, and return the path of the page.

    Args:
        folder: Of the sweep.
        search: At least one of its configurations came to its end.
        test: Metrics of the best configuration on the test set, a value for each seed.
        training: How it was trained, and on what.
        command: Repeats the search.
    """
    plan = search.plan
    results = search.results()
    best = results[0]
    table: list[dict[str, object]] = []
    for result in results:
        table.extend(rows(plan.seeds, result))
    write_csv(folder / "trials.csv", table)
    _write_hparams(folder / "tensorboard", results)
    manifest = _manifest(plan, training, command)
    metrics = _top_metrics(plan, best)
    return write_page(
        folder,
        Path(__file__).with_name("sweep.html"),
        _figures(plan, results),
        logdir=folder,
        plan=plan,
        data=manifest["data"],
        loaded=training.images,
        trained=len(results),
        others=[difference(result.last(plan.monitor), best.last(plan.monitor)) for result in results[1:]],
        top=_top_rows(results[:SHOWN], metrics),
        metrics=metrics,
        ranked=[(rank, describe(result.params)) for rank, result in enumerate(results, 1) if _is_book(result)],
        test={name: Interval.of(values) for name, values in test.items()},
        failed=failures(search.finished, plan),
        machines=_machines(search),
        first_seed=best.last(plan.monitor)[0],
        commands=f"{command}\n{_fit_command(plan, best, training)}",
        manifest=json.dumps(manifest, indent=2),
    )


def _manifest(plan: Plan, training: StackTraining | LightningTraining, command: str) -> dict[str, object]:
    """Return what the page keeps of a sweep: the data, the plan, the versions, the command."""
    data = plan.data.__name__
    if training.images:
        data = training.images.loaded.origin
    return {
        "data": data,
        "configurations": plan.configurations,
        "trials": plan.size,
        "plan": json.loads(plan.to_json()),
        **environment(),
        "command": command,
    }


def _figures(plan: Plan, results: Sequence[Result]) -> dict[str, Figure]:
    """Draw the best configuration, and the book's, by epoch, and all of them by hyperparameter."""
    best = results[0]
    labelled = {f"best: {describe(best.params)}": _curves_of(best)}
    for result in results[1:]:
        if _is_book(result):
            labelled[f"book: {describe(result.params)}"] = _curves_of(result)
    figures = {"curves": learning_curves(labelled)}
    varied = _varied(plan, results)
    if varied:
        figures["trials"] = _scores_by_hyperparameter(varied, results, plan)
    return figures


def rows(seeds: Sequence[int], result: Result, every: int = 1) -> Iterator[dict[str, object]]:
    """Yield the rows of a CSV: one for each seed and each scored epoch; every `every`th epoch was scored."""
    for i, seed in enumerate(seeds):
        columns = [of_seeds[i] for of_seeds in result.history.values()]
        for number, values in enumerate(zip(*columns, strict=True), 1):
            scores = dict(zip(result.history, values, strict=True))
            yield {**result.params, "seed": seed, "epoch": number * every, **scores}


def _is_book(result: Result) -> bool:
    """Whether a configuration is the book's recipe, of which a space may leave out any part."""
    usual = {**parameters_of(SoftmaxRegression), **BOOK}
    return all(usual.get(name) == value for name, value in result.params.items())


def _curves_of(result: Result) -> Curves:
    """Return each metric by epoch, (seeds, epochs)."""
    curves = {}
    for name, values in result.history.items():
        curves[name] = (torch.arange(1, len(values[0]) + 1), torch.tensor(values))
    return curves


def _varied(plan: Plan, results: Sequence[Result]) -> list[str]:
    """Return the hyperparameters that have several values, those with most of them first."""
    counts = {}
    for name in plan.space:
        values = {result.params[name] for result in results}
        if len(values) > 1:
            counts[name] = len(values)
    return sorted(counts, key=lambda name: -counts[name])


def _top_metrics(plan: Plan, best: Result) -> list[str]:
    """Return what the table of the best shows: the monitor, and what else was scored on the same images."""
    stage, _ = split_metric(plan.monitor)
    names = [plan.monitor]
    for name in best.history:
        if split_metric(name)[0] == stage and name != plan.monitor:
            names.append(name)
    return names[:3]


def _top_rows(results: Sequence[Result], metrics: Sequence[str]) -> list[list[object]]:
    table = []
    for result in results:
        row: list[object] = [describe(result.params)]
        for name in metrics:
            row.append(Interval.of(result.last(name)))
        table.append(row)
    return table


def _machines(search: Search) -> list[tuple[str, int]]:
    """Return how many trials each machine has run, if several machines may have shared them."""
    if not search.is_shared:
        return []
    trials = [trial for trial in search.finished if trial.state == TrialState.COMPLETE]
    return list(Counter(trial.user_attrs["machine"] for trial in trials).items())


def _scores_by_hyperparameter(names: Sequence[str], results: Sequence[Result], plan: Plan) -> Figure:
    """Draw the score against each hyperparameter; of a grid in a line for each value of another one."""
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(9, 4.2 * rows), layout="constrained")
    for i, name in enumerate(names):
        first = None
        if i:
            first = figure.axes[0]
        axes = figure.add_subplot(rows, min(COLUMNS, len(names)), i + 1, sharey=first, xlabel=name)
        others = [other for other in names if other != name]
        colour = ""
        if plan.sampler == "grid" and others:
            colour = others[0]
        _draw_scores(axes, name, colour, results, plan)
        axes.grid(alpha=0.3)
        _set_ticks(axes, sorted_values(result.params[name] for result in results), plan.sampler == "grid")
    figure.axes[0].set_ylabel(plan.monitor)
    if plan.monitor.endswith("loss"):
        figure.axes[0].set_yscale("log")
        figure.axes[0].yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
    return figure


def _draw_scores(axes: Axes, name: str, colour: str, results: Sequence[Result], plan: Plan) -> None:
    """Draw mean and range over the seeds; of a grid, for each value of `name` and `colour` the best result."""
    lines: dict[Value, dict[object, Result]] = {}
    for number, result in enumerate(reversed(results)):  # the better ones replace the others
        place: object = number
        if plan.sampler == "grid":
            place = result.params[name]
        lines.setdefault(result.params.get(colour, ""), {})[place] = result
    style = "o"
    if plan.sampler == "grid":
        style = "o-"
    for label, shade in zip(sorted_values(lines), itertools.cycle(PALETTE)):
        points = sorted(lines[label].values(), key=lambda result: sort_key(result.params[name]))
        scores = np.array([result.last(plan.monitor) for result in points])  # (points, seeds)
        middle = scores.mean(1)
        ends = (middle - scores.min(1), scores.max(1) - middle)
        x: list[Any] = [result.params[name] for result in points]
        axes.errorbar(x, middle, ends, fmt=style, ms=4, color=shade, label=str(label))
    if colour:
        axes.legend(title=colour, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, fontsize=8)


def _set_ticks(axes: Axes, values: Sequence[Any], is_grid: bool) -> None:
    """Let the axis of a hyperparameter be logarithmic where its values span more than a factor of ten."""
    if not all(isinstance(value, int | float) for value in values):
        return
    if 0 < 10 * values[0] < values[-1]:
        axes.set_xscale("log")
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    if is_grid:
        axes.set_xticks(values, [f"{value:g}" for value in values], rotation=45)


def _fit_command(plan: Plan, best: Result, training: StackTraining | LightningTraining) -> str:
    """Return the command that trains the best configuration alone, with the first seed."""
    options: dict[str, object] = {"seed_everything": plan.seeds[0]}
    if plan.model is not SoftmaxRegression:
        options["model"] = class_path_of(plan.model)
    if plan.data is not FashionMNISTDataModule:
        options["data"] = class_path_of(plan.data)
    for name, value in training.options.items():
        if name not in best.params:
            options[f"data.{name}"] = value
    for name, value in best.params.items():
        if name in parameters_of(plan.model):
            options[f"model.{name}"] = value
        if name in parameters_of(plan.data):
            options[f"data.{name}"] = value
    options["trainer.max_epochs"] = count(best.params, "epochs")
    options["early_stopping.patience"] = 0
    words = []
    for name, value in options.items():
        words.append(f"--{name}")
        words.append(value if isinstance(value, str) else json.dumps(value))
    return shell_command("train.py", "fit", *words)


def _write_hparams(folder: Path, results: Sequence[Result]) -> None:
    """List every configuration in TensorBoard's HPARAMS, with its last metrics, the means over the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, result in enumerate(results, 1):
        last = {name: mean(result.last(name)) for name in result.history}
        with SummaryWriter(str(folder / f"{number:04}")) as writer:
            writer.add_hparams(result.params, last, run_name=".", global_step=count(result.params, "epochs"))
