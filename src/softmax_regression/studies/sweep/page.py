"""The results of a sweep: a page, a CSV with all epochs, and the configurations in TensorBoard's HPARAMS."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import shell_command
from softmax_regression.figures.drawings import PALETTE, learning_curves
from softmax_regression.figures.page import write_page
from softmax_regression.files import write_csv
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.runs.rows import split_metric
from softmax_regression.runs.settings import class_path_of, parameters_of
from softmax_regression.studies.alone import has_parameter
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.sweep.results import Result, failures
from softmax_regression.studies.sweep.search import Search
from softmax_regression.studies.sweep.space import BOOK, Plan, Value, count, sorted_values
from softmax_regression.studies.sweep.training import Training

COLUMNS = 3  # panels in a row


def write(folder: Path, search: Search, test: Mapping[str, Sequence[float]], training: Training, command: str) -> Path:
    """Write the results of a finished search; return the path of the page.

    `test` has for each metric the test scores of the best configuration, one for each seed.
    """
    plan = search.plan
    results = search.results()
    table: list[dict[str, object]] = []
    for result in results:
        table.extend(rows(plan.seeds, result))
    write_csv(folder / "trials.csv", table)
    _write_hparams(folder / "tensorboard", results)
    usual = {**parameters_of(SoftmaxRegression), **BOOK}  # a configuration is the book's if it has no other values
    book = {}
    for rank, result in enumerate(results, 1):
        if rank > 1 and result.params.items() <= usual.items():
            book[rank] = result
    data = f"The data module {class_path_of(plan.data)}"
    if training.images:
        data = training.images.loaded.origin
    manifest = {"data": data, "configurations": plan.configurations, "trials": plan.size}
    manifest |= {"plan": json.loads(plan.to_json()), **environment(), "command": command}
    return write_page(
        folder,
        Path(__file__).with_name("sweep.html"),
        _figures(plan, results, list(book.values())),
        logdir=folder,
        search=search,
        plan=plan,
        results=results,
        book=book,
        split_metric=split_metric,
        test=test,
        interval=Interval.of,
        failed=failures(search.finished, plan),
        data=data,
        loaded=training.images,
        commands=f"{command}\n{_fit_command(plan, results[0], training)}",
        manifest=json.dumps(manifest, indent=2),
    )


def _figures(plan: Plan, results: Sequence[Result], book: Sequence[Result]) -> dict[str, Figure]:
    """Draw the curves of the best and the book's configurations, and the scores of all by hyperparameter."""
    labelled = {f"best: {results[0]}": results[0].curves()}
    for result in book:
        labelled[f"book: {result}"] = result.curves()
    figures = {"curves": learning_curves(labelled)}
    counts = {}
    for name in plan.space:
        count_of_name = len({result.params[name] for result in results})
        if count_of_name > 1:
            counts[name] = count_of_name
    if counts:
        varied = sorted(counts, key=counts.__getitem__, reverse=True)  # the hyperparameter with most values first
        figures["trials"] = scores_by_hyperparameter(varied, results, plan)
    return figures


def rows(seeds: Sequence[int], result: Result, every: int = 1) -> Iterator[dict[str, object]]:
    """Yield the rows of a CSV, one for each seed and each scoring; models were scored after every `every` epochs."""
    for i, seed in enumerate(seeds):
        times = result.times[i] if result.times else None
        of_seed = {name: values[i, :times].tolist() for name, values in result.history.items()}
        for number, values in enumerate(zip(*of_seed.values(), strict=True), 1):
            scores = dict(zip(of_seed, values, strict=True))
            yield {**result.params, "seed": seed, "epoch": number * every, **scores}


def scores_by_hyperparameter(names: Sequence[str], results: Sequence[Result], plan: Plan) -> Figure:
    """Draw the score against each hyperparameter; for a grid, with a line for each value of another one."""
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(9, 4.2 * rows), layout="constrained")
    first = None
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, min(COLUMNS, len(names)), i, sharey=first, xlabel=name)
        first = first or axes
        colour = ""
        if plan.is_grid and len(names) > 1:
            colour = names[1] if i == 1 else names[0]
        _draw_scores(axes, name, colour, results, plan)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(plan.monitor)
    scores = torch.cat([result.last(plan.monitor) for result in results])
    if plan.monitor.endswith("loss") and scores.min() > 0:
        figure.axes[0].set_yscale("log")
        figure.axes[0].yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        if scores.max() > 5 * scores.min():
            _label_two_and_five(figure.axes[0].yaxis)
    return figure


def _label_two_and_five(axis: Axis) -> None:
    """Label 1, 2 and 5 of each power of ten on a logarithmic axis; more would overlap."""
    axis.set(minor_locator=LogLocator(subs=(2, 5)), minor_formatter="{x:g}")


def _draw_scores(axes: Axes, name: str, colour: str, results: Sequence[Result], plan: Plan) -> None:
    """Draw mean and range over the seeds; for a grid, the best result for each value of `name` and `colour`."""
    lines: dict[Value, dict[object, Result]] = {}
    for number, result in enumerate(results):
        place: object = number
        if plan.is_grid:
            place = result.params[name]
        lines.setdefault(result.params.get(colour, ""), {}).setdefault(place, result)
    style = "o-" if plan.is_grid else "o"
    values: list[Any] = sorted_values(result.params[name] for result in results)
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    for label, shade in zip(sorted_values(lines), itertools.cycle(PALETTE)):
        points = sorted(lines[label].values(), key=lambda result: values.index(result.params[name]))
        x: list[Any] = [result.params[name] for result in points]
        if not are_numbers:
            x = [short_lines(value) for value in x]
        scores = torch.stack([result.last(plan.monitor) for result in points])  # (points, seeds)
        error_bars(axes, x, scores, fmt=style, ms=4, color=shade, label=short_lines(label))
    if are_numbers:
        _set_ticks(axes, values, plan.is_grid)
    if colour:
        axes.legend(title=colour, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, fontsize=8)


def short_lines(value: object) -> str:
    """Return a value as short lines: a class without its module, its arguments without the marks of JSON."""
    return fill(re.sub(r'"(class_path|init_args)": |[{}"]|[\w.]+\.(?=[A-Z])', "", str(value)), 14)


def error_bars(axes: Axes, x: Any, values: Tensor, **style: Any) -> None:
    """Draw the mean over the seeds of values (n, seeds), with bars from the lowest to the highest value."""
    mean = values.mean(1)
    axes.errorbar(x, mean, (mean - values.amin(1), values.amax(1) - mean), **style)


def _set_ticks(axes: Axes, values: Sequence[Any], is_grid: bool) -> None:
    """Make the axis of a hyperparameter logarithmic if its values span more than a factor of ten."""
    is_log = 0 < 10 * values[0] < values[-1]
    if is_log:
        axes.set_xscale("log")
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="")
    if is_grid:
        axes.set_xticks(values, [f"{value:g}" for value in values], rotation=45)
    elif is_log and values[-1] < 100 * values[0]:
        _label_two_and_five(axes.xaxis)


def _fit_command(plan: Plan, best: Result, training: Training) -> str:
    """Return the `fit` command that trains the best configuration with the first seed."""
    options: dict[str, object] = {"seed_everything": plan.seeds[0]}
    if plan.model is not SoftmaxRegression:
        options["model"] = class_path_of(plan.model)
    if plan.data is not FashionMNISTDataModule:
        options["data"] = class_path_of(plan.data)
    for name, value in {**training.options, **best.params}.items():
        if name in best.params and has_parameter(plan.model, name):
            options[f"model.{name}"] = value
        if has_parameter(plan.data, name):
            options[f"data.{name}"] = value
    options["trainer.max_epochs"] = count(best.params, "epochs")
    options["early_stopping.patience"] = 0
    words = []
    for name, value in options.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shell_command("train.py", "fit", *words)


def _write_hparams(folder: Path, results: Sequence[Result]) -> None:
    """Write every configuration to TensorBoard's HPARAMS, with its last metrics as means over the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, result in enumerate(results, 1):
        last = {name: result.interval(name).mean for name in result.history}
        with SummaryWriter(str(folder / f"{number:04}")) as writer:
            writer.add_hparams(result.params, last, run_name=".", global_step=count(result.params, "epochs"))
