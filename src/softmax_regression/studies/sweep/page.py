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
from softmax_regression.errors import shell_command
from softmax_regression.figures.drawings import PALETTE, Curves, learning_curves
from softmax_regression.figures.page import write_csv, write_page
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.record import environment
from softmax_regression.runs.trust import path_of
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.sweep.plan import BOOK, COUNTS, Params, Plan, Value, count, describe

History = dict[str, list[list[float]]]  # metric -> seed -> epoch -> value


def write(
    folder: Path,
    plan: Plan,
    trials: Sequence[FrozenTrial],
    test: dict[str, list[float]],
    data: FashionMNISTDataModule,
    command: str,
) -> Path:
    """Write everything about finished trials, at least one of them complete, and return the path of the page.

    `test` has `test/loss` and `test/acc` of the best trial, a value for each seed; `command` repeats the search.
    """
    complete = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0.0)
    best, is_grid = complete[0], plan.sampler == "grid"
    write_csv(folder / "trials.csv", [row for trial in complete for row in rows(plan, trial)])
    _write_hparams(folder / "tensorboard", complete)
    books = [(rank, trial) for rank, trial in enumerate(complete, 1) if _is_book(trial) and trial is not best]
    curves = {f"best: {describe(best.params)}": _curves(best)}
    curves |= {f"book: {describe(book.params)}": _curves(book) for _, book in books}
    varied = {name: len({trial.params[name] for trial in complete}) for name in plan.space}
    names = sorted((name for name, n in varied.items() if n > 1), key=lambda name: -varied[name])
    trials_figure = {"trials": _landscape(names, complete, is_grid)} if names else {}
    manifest = {"data": data.loaded.origin, "plan": json.loads(plan.identity()), **environment(), "command": command}
    return write_page(
        folder,
        Path(__file__).with_name("sweep.html"),
        {**trials_figure, "curves": learning_curves(curves)},
        logdir=folder,
        plan=plan,
        data=data,
        trials=len(complete),
        level=sum(_above(trial, best).has_zero for trial in complete[1:]),
        books=[(rank, describe(book.params), book.value, _above(book, best)) for rank, book in books],
        top=[[describe(t.params), Interval.of(_last(t)), Interval.of(_last(t, "val/acc"))] for t in complete[:5]],
        test={name: Interval.of(values) for name, values in test.items()},
        failed=[[describe(t.params), t.user_attrs["error"]] for t in trials if "error" in t.user_attrs],
        machines=list(Counter(trial.user_attrs["machine"] for trial in complete).items()),
        first_seed=_last(best)[0],
        commands=f"{command}\n{_fit_command(plan, best.params, data)}",
        manifest=json.dumps(manifest, indent=2),
    )


def difference(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Return by how much values exceed others, paired by seed."""
    return Interval.of([a - b for a, b in zip(values, others, strict=True)])


def _last(trial: FrozenTrial, metric: str = "val/loss") -> list[float]:
    """Scores after the last epoch, one a seed."""
    return [scores[-1] for scores in trial.user_attrs["history"][metric]]


def _above(trial: FrozenTrial, best: FrozenTrial) -> Interval:
    return difference(_last(trial), _last(best))


def _curves(trial: FrozenTrial) -> Curves:
    history: History = trial.user_attrs["history"]
    return {m: (torch.arange(1, len(values[0]) + 1), torch.tensor(values)) for m, values in history.items()}


def _is_book(trial: FrozenTrial) -> bool:
    return BOOK.items() <= (BOOK | trial.params).items()


def _landscape(names: Sequence[str], complete: Sequence[FrozenTrial], is_grid: bool) -> Figure:
    """Validation loss against each hyperparameter; of a grid in a line for each value of another one."""
    n = -(-len(names) // 3)
    figure = Figure(figsize=(9, 4.2 * n), layout="constrained")
    for i, name in enumerate(names):
        first = figure.axes[0] if i else None
        axes = figure.add_subplot(n, min(3, len(names)), i + 1, sharey=first, xlabel=name, yscale="log")
        colour = next((other for other in names if other != name), "") if is_grid else ""
        lines: dict[Value, dict[tuple[Value, int], list[float]]] = {}
        for trial in reversed(complete):  # of a grid, the better ones of a place replace the others
            place = trial.params[name], 0 if is_grid else trial.number
            lines.setdefault(trial.params.get(colour, ""), {})[place] = _last(trial)
        for (label, line), shade in zip(sorted(lines.items()), itertools.cycle(PALETTE)):
            x, losses = [value for value, _ in sorted(line)], np.array([line[place] for place in sorted(line)])
            middle = losses.mean(1)  # (points, seeds) -> (points,)
            ends, style = (middle - losses.min(1), losses.max(1) - middle), "o-" if is_grid else "o"
            axes.errorbar(x, middle, ends, fmt=style, ms=4, color=shade, label=label)
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        axes.grid(alpha=0.3)
        values = sorted({trial.params[name] for trial in complete})
        if not isinstance(values[0], str):
            axes.set_xscale("log" if 0 < 10 * values[0] < values[-1] else "linear")
            axes.xaxis.set(major_formatter="{x:g}", minor_formatter="")
            if is_grid:
                axes.set_xticks(values, [f"{value:g}" for value in values], rotation=45)
        if colour:
            axes.legend(title=colour, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4, fontsize=8)
    figure.axes[0].set_ylabel("validation loss (nats)")
    return figure


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
    return shell_command("train.py", "fit", *itertools.chain(*words))


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
