"""What a sweep found: a page, a CSV with all epochs, and the trials in TensorBoard's HPARAMS."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from torch.utils.tensorboard.summary import hparams, scalar
from torch.utils.tensorboard.writer import FileWriter

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import typed
from softmax_regression.figures.drawings import PALETTE, learning_curves
from softmax_regression.figures.page import Page, write_csv
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.runs.trust import path_of
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.sweep_plan import BOOK, COUNTS, Params, Plan, Value, count, describe

History = dict[str, list[list[float]]]  # metric -> seed -> epoch -> value


def write(
    folder: Path,
    plan: Plan,
    trials: Sequence[FrozenTrial],
    test: dict[str, list[float]],
    data: FashionMNISTDataModule,
    command: str,
) -> Path:
    """Write everything into the folder and return the path of the page.

    Args:
        folder: Of the sweep.
        plan: What was searched.
        trials: Finished, at least one of them complete.
        test: `test/loss` and `test/acc` of the best trial, a value for each seed.
        data: What was trained on.
        command: What repeats the search.
    """
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0.0)
    page = Page(f"Exercise 1: {', '.join(plan.space)}")
    _answer(page, plan, complete, test)
    page.text(f"Data: {data.loaded.origin}; {len(data.train_index)} images, {len(data.val_index)} to validate.")
    _figures(page, plan, complete)
    failed = [[describe(t.params), t.user_attrs["error"]] for t in trials if "error" in t.user_attrs]
    if failed:
        page.heading("Trials that failed")
        page.table(failed, ["hyperparameters", "error"])
    page.heading("Which machine ran what")
    machines = Counter(trial.user_attrs["machine"] for trial in complete)
    page.table(list(machines.items()), ["machine, with another number each time it was started", "trials"])
    page.heading("How to repeat it")
    page.text(
        "The search, which goes on after an interruption; then the winner alone, trained by Lightning, which "
        f"comes to the validation loss {_last(complete[0])[0]:.4f} but for rounding and dropped pixels."
    )
    page.preformatted(f"{command}\n{_fit_command(plan, complete[0].params, data)}")
    page.text(f"All epochs are in `trials.csv`; TensorBoard lists the trials with `--logdir {folder}`.")
    manifest = {"data": data.loaded.origin, "plan": json.loads(plan.identity()), **environment()}
    page.preformatted(json.dumps(manifest | {"command": command}, indent=2))
    write_csv(folder / "trials.csv", [row for trial in complete for row in rows(plan, trial)])
    _write_hparams(folder / "tensorboard", complete)
    return page.write(folder)


def _last(trial: FrozenTrial, metric: str = "val/loss") -> list[float]:
    """Scores after the last epoch, one a seed."""
    return [scores[-1] for scores in trial.user_attrs["history"][metric]]


def _above(trial: FrozenTrial, other: FrozenTrial) -> list[float]:
    return [a - b for a, b in zip(_last(trial), _last(other), strict=True)]


def _answer(page: Page, plan: Plan, complete: Sequence[FrozenTrial], test: dict[str, list[float]]) -> None:
    best, n = complete[0], len(plan.seeds)
    first = f"Of {len(complete)} configurations" if len(complete) > 1 else "The only configuration"
    text = f"{first}, with {n} seeds each: " if n > 1 else f"{first}, with one seed: "
    text += f"`{describe(best.params)}` has the least validation loss, {Interval.of(_last(best))}"
    level = sum(Interval.of(_above(trial, best)).has_zero for trial in complete[1:])
    if n > 1:
        text += " (mean and 95 % interval over the seeds)"
        text += f"; the paired difference from it is within noise for {level} of the others"
    accuracy, loss = Interval.of(test["test/acc"]), Interval.of(test["test/loss"])
    page.text(f"{text}. The winner alone was tested, once: test accuracy {accuracy}, test loss {loss}.")
    for rank, trial in enumerate(complete, 1):
        if _is_book(trial) and trial is not best:
            page.text(
                f"The book's recipe, `{describe(trial.params)}`, is number {rank}: its validation loss is "
                f"{trial.value:.4f}, by {Interval.of(_above(trial, best))} above the best."
            )
    table = [[describe(t.params), Interval.of(_last(t)), Interval.of(_last(t, "val/acc"))] for t in complete[:5]]
    page.table(table, ["the best", "val/loss", "val/acc"])


def _figures(page: Page, plan: Plan, complete: Sequence[FrozenTrial]) -> None:
    varied = {name: len({trial.params[name] for trial in complete}) for name in plan.space}
    if names := sorted((name for name, n in varied.items() if n > 1), key=lambda name: -varied[name]):
        page.heading("All trials")
        caption = "Validation loss after the last epoch, mean and range over the seeds"
        caption += "; of each value and colour the best trial." if plan.sampler == "grid" else "."
        page.figure(_landscape(names, complete, plan.sampler == "grid"), "trials", caption)
    page.heading("Learning curves")
    curves = {
        f"{label}: {describe(trial.params)}": {
            metric: (torch.arange(1, len(values[0]) + 1), torch.tensor(values))
            for metric, values in trial.user_attrs["history"].items()
        }
        for label, trial in (("best", complete[0]), *(("book", t) for t in complete[1:] if _is_book(t)))
    }
    page.figure(learning_curves(curves), "curves", "Mean and range over the seeds.")


def _landscape(names: Sequence[str], complete: Sequence[FrozenTrial], is_grid: bool) -> Figure:
    """Validation loss against each hyperparameter; of a grid in a line for each value of another one."""
    n = -(-len(names) // 3)
    figure = Figure(figsize=(9, 4.2 * n), layout="constrained")
    axes = figure.subplots(n, min(3, len(names)), sharey=True, squeeze=False)
    for axis, name in itertools.zip_longest(axes.flat, names):
        if not name:
            axis.set_visible(False)
            continue
        colour = next((other for other in names if other != name), "") if is_grid else ""
        lines: dict[Value, dict[Value, FrozenTrial]] = {}
        for trial in complete:  # the best come first
            place = trial.params[name] if is_grid else trial.number
            lines.setdefault(trial.params.get(colour, ""), {}).setdefault(place, trial)
        for (label, line), shade in zip(sorted(lines.items()), itertools.cycle(PALETTE)):
            points = sorted(line.values(), key=lambda trial: trial.params[name])
            losses = np.array([_last(trial) for trial in points])  # (points, seeds)
            middle = losses.mean(1)
            ends = middle - losses.min(1), losses.max(1) - middle
            x, style = [trial.params[name] for trial in points], "o-" if is_grid else "o"
            axis.errorbar(x, middle, ends, fmt=style, ms=4, color=shade, label=label)
        axis.set(xlabel=name, yscale="log")
        axis.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        axis.tick_params(which="both", labelleft=True)
        axis.grid(alpha=0.3)
        values = sorted({trial.params[name] for trial in complete})
        if not isinstance(values[0], str):
            axis.set_xscale("log" if 0 < 10 * values[0] < values[-1] else "linear")
            axis.xaxis.set(major_formatter="{x:g}", minor_formatter="")
            if is_grid:
                axis.set_xticks(values, [f"{value:g}" for value in values], rotation=45)
        if colour:
            axis.legend(title=colour, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, fontsize=8)
    axes[0, 0].set_ylabel("validation loss (nats)")
    return figure


def _is_book(trial: FrozenTrial) -> bool:
    return all((BOOK | trial.params)[name] == value for name, value in BOOK.items())


def _fit_command(plan: Plan, params: Params, data: FashionMNISTDataModule) -> str:
    """Return the command that trains a trial alone, with the first seed."""
    options: dict[str, object] = {"seed_everything": plan.seeds[0]}
    options |= {"model": path_of(plan.model)} if plan.model is not SoftmaxRegression else {}
    options |= {"data": path_of(type(data))} if type(data) is not FashionMNISTDataModule else {}
    usual = {name: p.default for name, p in signature(FashionMNISTDataModule).parameters.items()}
    options |= {f"data.{k}": v for k, v in data.hparams.items() if v != usual[k] and k not in params}
    for name, value in params.items():
        group = "data" if name in COUNTS else "model"
        options["trainer.max_epochs" if name == "epochs" else f"{group}.{name}"] = value
    options["early_stopping.patience"] = 0
    words = [[f"--{k}", v if isinstance(v, str) else json.dumps(v)] for k, v in options.items()]
    return typed("train.py", "fit", *itertools.chain(*words))


def rows(plan: Plan, trial: FrozenTrial, every: int = 1) -> Iterator[dict[str, object]]:
    """Yield rows of a CSV, one a seed and epoch, of a trial that was scored after every so many epochs."""
    history: History = trial.user_attrs["history"]
    own = {"trial": trial.number, "machine": trial.user_attrs["machine"], **trial.params}
    for i, seed in enumerate(plan.seeds):
        for row, values in enumerate(zip(*(of_seed[i] for of_seed in history.values()), strict=True), 1):
            yield {**own, "seed": seed, "epoch": row * every, **dict(zip(history, values, strict=True))}


def _write_hparams(folder: Path, complete: Sequence[FrozenTrial]) -> None:
    """List every trial in TensorBoard's HPARAMS, with its last metrics, the means over the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    for trial in complete:
        last = {name: mean(_last(trial, name)) for name in trial.user_attrs["history"]}
        writer = FileWriter(str(folder / f"{trial.number:04}"))
        for summary in (*hparams(trial.params, last), *(scalar(name, v) for name, v in last.items())):
            writer.add_summary(summary, count(trial.params, "epochs"))
        writer.close()
