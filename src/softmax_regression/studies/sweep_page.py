"""What a sweep found: a page, a CSV with all epochs, and the trials in TensorBoard's HPARAMS."""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor
from torch.utils.tensorboard.summary import hparams, scalar
from torch.utils.tensorboard.writer import FileWriter

from softmax_regression.figures.drawings import PALETTE, learning_curves
from softmax_regression.figures.page import Page, write_csv
from softmax_regression.runs.folder import environment
from softmax_regression.studies.intervals import Interval
from softmax_regression.studies.sweep_plan import (
    BOOK,
    Params,
    Plan,
    Range,
    Value,
    describe,
    epochs_of,
    setting,
)
from softmax_regression.studies.sweep_trials import METRICS, History


def write(
    folder: Path, plan: Plan, trials: Sequence[FrozenTrial], test: dict[str, list[float]], origin: str
) -> Path:
    """Write everything into the folder and return the path of the page.

    Args:
        folder: Of the sweep.
        plan: What was searched.
        trials: Finished, at least one of them complete.
        test: `test/loss` and `test/acc` of the best trial, a value for each seed.
        origin: Where the data came from.
    """
    complete = sorted(
        (t for t in trials if t.state == TrialState.COMPLETE), key=lambda trial: trial.value or 0.0
    )
    page = Page(f"Exercise 1: {', '.join(plan.space)}")
    _answer(page, plan, complete, test)
    page.heading("All trials")
    _all_trials(page, plan, complete)
    page.heading("Each value, with what goes best with it")
    headers = ["value", "the best trial with it", "val/loss", "above the best of all"]
    page.table(_best_by_value(plan, complete), headers)
    page.heading("Learning curves")
    curves = _curves(complete)
    page.figure(learning_curves(curves), "curves", f"Mean and range over {len(plan.seeds)} seeds.")
    _failures(page, trials)
    page.heading("How to repeat it")
    page.text("The search, which goes on after an interruption; then the winner alone, trained by Lightning.")
    manifest = {"data": origin, "plan": asdict(plan), **environment()}
    page.preformatted(f"{' '.join(manifest['command'])}\n{_fit_command(complete[0].params, plan.seeds[0])}")
    page.text(
        f"All epochs of all trials are in `trials.csv`; TensorBoard lists them with `--logdir {folder}`."
    )
    page.preformatted(json.dumps(manifest, indent=2))
    write_csv(folder / "trials.csv", [row for trial in complete for row in _rows(trial, plan)])
    _write_hparams(folder / "tensorboard", complete)
    return page.write(folder)


def _all_trials(page: Page, plan: Plan, complete: Sequence[FrozenTrial]) -> None:
    varied = {name: len({trial.params[name] for trial in complete}) for name in plan.space}
    names = sorted((name for name, count in varied.items() if count > 1), key=lambda name: -varied[name])
    numeric = [name for name in names if not isinstance(complete[0].params[name], str)][:3]
    if plan.sampler == "grid" and numeric:
        rest = ", the others at their best" if len(names) > len(numeric) else ""
        caption = f"Validation loss after the last epoch against {numeric[0]}{rest}; range over the seeds."
        page.figure(_landscape(numeric, complete), "trials", caption)
    elif names:
        page.figure(
            _scatter(names, complete),
            "trials",
            "Validation loss after the last epoch, the mean of the seeds.",
        )


def _losses(trial: FrozenTrial) -> list[float]:
    """Validation losses after the last epoch, one a seed."""
    history: History = trial.user_attrs["history"]
    return [losses[-1] for losses in history["val/loss"]]


def _difference(trial: FrozenTrial, other: FrozenTrial) -> Interval:
    return Interval.of([a - b for a, b in zip(_losses(trial), _losses(other), strict=True)])


def _answer(page: Page, plan: Plan, complete: Sequence[FrozenTrial], test: dict[str, list[float]]) -> None:
    best, seeds = complete[0], len(plan.seeds)
    level = sum(_difference(trial, best).has_zero for trial in complete[1:])
    page.text(
        f"Of {len(complete)} configurations, with {seeds} seeds each, `{describe(best.params)}` has the "
        f"least validation loss, {Interval.of(_losses(best))} (mean and 95 % interval over the seeds). "
        f"For {level} of the others, the interval of the paired difference from it has zero in it: "
        f"{seeds} seeds do not tell {'it' if level == 1 else 'them'} from the best."
    )
    page.text(
        f"The winner alone was tested, once: test accuracy {Interval.of(test['test/acc'])}, "
        f"test loss {Interval.of(test['test/loss'])}."
    )
    edges = [name for name in plan.space if _at_edge(best.params[name], plan.space[name])]
    if edges:
        page.text(
            f"The best value of {', '.join(f'`{n}`' for n in edges)} is the least or greatest that was tried."
        )
    for rank, trial in enumerate(complete, 1):
        if _is_book(trial) and trial is not best:
            page.text(
                f"The book's recipe, `{describe(trial.params)}`, is number {rank}: its validation loss is "
                f"{trial.value:.4f}, by {_difference(trial, best)} above the best."
            )
    page.table(
        [
            [i, describe(t.params), str(Interval.of(_losses(t))), _last_acc(t)]
            for i, t in enumerate(complete[:5], 1)
        ],
        ["", "the best five", "val/loss", "val/acc"],
    )


def _last_acc(trial: FrozenTrial) -> str:
    return str(Interval.of([accs[-1] for accs in trial.user_attrs["history"]["val/acc"]]))


def _at_edge(value: Value, values: Sequence[Value] | Range) -> bool:
    if isinstance(values, Range) or len(values) < 2 or any(isinstance(v, str) for v in values):
        return False
    return value in (min(values, key=float), max(values, key=float))


def _best_by_value(plan: Plan, complete: Sequence[FrozenTrial]) -> list[list[object]]:
    """Rows of a table: hyperparameter, value, the best trial that has it, its loss, how far from the best."""
    rows: list[list[object]] = []
    for name, values in plan.space.items():
        for value in () if isinstance(values, Range) else values:
            trial = next((trial for trial in complete if trial.params[name] == value), None)
            if trial:
                rest = {key: v for key, v in trial.params.items() if key != name}
                above = str(_difference(trial, complete[0])) if trial is not complete[0] else "the best"
                rows.append([f"{name} {value}", describe(rest), trial.value, above])
    return rows


def _landscape(names: Sequence[str], complete: Sequence[FrozenTrial]) -> Figure:
    """Validation loss against the first of one to three hyperparameters; the others are panel and colour."""
    x, panel, colour = (*names, "", "")[:3]

    def values(name: str) -> list[Value]:
        return sorted({trial.params.get(name, "") for trial in complete})

    figure = Figure(figsize=(10, 3.3 * -(-len(values(panel)) // 3)), layout="constrained")
    axes = figure.subplots(
        -(-len(values(panel)) // 3), min(3, len(values(panel))), sharey=True, squeeze=False
    )
    for axis in axes.flat[len(values(panel)) :]:
        axis.set_visible(False)
    for axis, of_panel in zip(axes.flat, values(panel), strict=False):
        for of_colour, shade in zip(values(colour), itertools.cycle(PALETTE)):
            best: dict[Value, FrozenTrial] = {}
            for trial in complete:
                if trial.params.get(panel, "") == of_panel and trial.params.get(colour, "") == of_colour:
                    best.setdefault(trial.params[x], trial)
            losses = [_losses(best[value]) for value in sorted(best)]
            axis.plot(sorted(best), list(map(mean, losses)), "o-", color=shade, markersize=4, label=of_colour)
            low, high = list(map(min, losses)), list(map(max, losses))
            axis.fill_between(sorted(best), low, high, color=shade, alpha=0.25, linewidth=0)
        _scale(axis, x, values(x))
        axis.set_yscale("log")
        axis.set_title(f"{panel} {of_panel}")
    axes.flat[0].set_ylabel("validation loss (nats)")
    if colour:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), title=colour, loc="outside right upper")
    return figure


def _scatter(names: Sequence[str], complete: Sequence[FrozenTrial]) -> Figure:
    """Validation loss of every trial against each hyperparameter."""
    figure = Figure(figsize=(10, 3.3 * -(-len(names) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(names) // 3), min(3, len(names)), sharey=True, squeeze=False).flat
    for axis, name in zip(axes, names, strict=False):
        values = [trial.params[name] for trial in complete]
        axis.plot(values, [trial.value for trial in complete], "o", markersize=4, color=PALETTE[0])
        _scale(axis, name, values)
    axes[0].set_ylabel("validation loss (nats)")
    return figure


def _scale(axis: Axes, name: str, values: Sequence[Value]) -> None:
    """Label the x axis, logarithmic where the values span more than a factor of ten."""
    axis.set_xlabel(name)
    axis.grid(alpha=0.3)
    numbers = [value for value in values if isinstance(value, int | float)]
    if numbers and 0 < 10 * min(numbers) < max(numbers):
        axis.set_xscale("log")


def _curves(complete: Sequence[FrozenTrial]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """The best trial, and the book's if it is there, for `learning_curves`."""
    book = next(filter(_is_book, complete), complete[0])
    chosen = {"best": complete[0], "book": book}
    return {
        f"{label}: {describe(trial.params)}": {
            metric: (torch.arange(1, len(values[0]) + 1), torch.tensor(values))
            for metric, values in trial.user_attrs["history"].items()
        }
        for label, trial in chosen.items()
        if label == "best" or trial is not complete[0]
    }


def _is_book(trial: FrozenTrial) -> bool:
    return all(setting(trial.params, name) == value for name, value in BOOK.items())


def _failures(page: Page, trials: Sequence[FrozenTrial]) -> None:
    if pruned := sum(trial.state == TrialState.PRUNED for trial in trials):
        page.text(f"{pruned} more were given up early: worse than the median of the finished ones by then.")
    failed = [
        [t.number, describe(t.params), t.user_attrs["error"]] for t in trials if "error" in t.user_attrs
    ]
    if failed:
        page.heading("Trials that failed")
        page.table(failed, ["trial", "hyperparameters", "error"])


def _fit_command(params: Params, seed: int) -> str:
    groups = {
        "epochs": "trainer.max_epochs",
        "batch_size": "data.batch_size",
        "train_size": "data.train_size",
    }
    flags = [f"--{groups.get(name, f'model.{name}')} {value}" for name, value in params.items()]
    return f"python train.py fit --seed_everything {seed} {' '.join(flags)}"


def _rows(trial: FrozenTrial, plan: Plan) -> Iterator[dict[str, object]]:
    """Rows of the CSV, one a seed and epoch."""
    history: History = trial.user_attrs["history"]
    for i, seed in enumerate(plan.seeds):
        for epoch, values in enumerate(zip(*(history[name][i] for name in METRICS), strict=True), 1):
            metrics = dict(zip(METRICS, values, strict=True))
            yield {"trial": trial.number, **trial.params, "seed": seed, "epoch": epoch, **metrics}


def _write_hparams(folder: Path, complete: Sequence[FrozenTrial]) -> None:
    """List every trial in TensorBoard's HPARAMS, with its last metrics, the means over the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    for trial in complete:
        last = {name: mean(v[-1] for v in values) for name, values in trial.user_attrs["history"].items()}
        writer = FileWriter(str(folder / f"{trial.number:04}"))
        for summary in (*hparams(trial.params, last), *(scalar(name, v) for name, v in last.items())):
            writer.add_summary(summary, epochs_of(trial.params))
        writer.close()
