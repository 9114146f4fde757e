"""A search over hyperparameters, on Optuna: stacked trials, on one machine or several; it survives kills.

Exercise 1 of Dive into Deep Learning, section 4.5: change the batch size, the number of epochs and the
learning rate. A trial is a configuration; its value is its last validation loss, the mean over the seeds.
Command: python study.py sweep
"""

import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import optuna
from lightning.pytorch import LightningModule
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.progress import Progress
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from softmax_regression.data.minibatches import Minibatches
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError, StorageError, format_error
from softmax_regression.files import check_writable, locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores
from softmax_regression.runs.record import environment
from softmax_regression.studies.learning import Each, held_out, learn, pool
from softmax_regression.studies.stacked import METRICS
from softmax_regression.studies.sweep import page as sweep_page
from softmax_regression.studies.sweep.page import History
from softmax_regression.studies.sweep.plan import Params, Plan, Range, Value, count, describe, hparams, longest
from softmax_regression.studies.sweep.trials import SILENCE, Trials, open_storage, shown

Train = Callable[[Sequence[Params], int, Each], dict[str, Tensor]]
QUICK: dict[str, Any] = {"synthetic_size": 1500, "val_size": 500, "train_size": 1000}


def run(
    space: dict[str, list[Value] | Range],
    sampler: Literal["grid", "random", "tpe"] = "grid",
    trials: int = 100,
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "batch-lr-epochs",
    workers: int | None = None,
    storage: str | None = None,
    model: type[LightningModule] = SoftmaxRegression,
    data: type[FashionMNISTDataModule] = FashionMNISTDataModule,
    source: Literal["files", "synthetic"] = "files",
    dirs: Sequence[str] | None = None,
    seed: int = 0,
    prune: bool = False,
    quick: bool = False,
) -> Path:
    """Search, or go on with a search that was interrupted; then test the winner and return its page.

    Args:
        space: What to search: `lr`, `batch_size`, `epochs`, ... -> a list of values, or a range to draw from.
        sampler: `grid` for all combinations, `random`, or `tpe`, which learns from the trials before.
        trials: Number of trials of `random` and `tpe`.
        seeds: Every trial is trained with each of them.
        name: Everything is kept in logs/sweep/NAME.
        workers: Stacks trained at the same time, at most one a core; None for one a core.
        storage: URL of a PostgreSQL database that several machines share; its password may be in PGPASSWORD.
        model: Class of what is trained; what cannot be stacked is trained alone, as `fit` does it.
        data: Class of the data set.
        source: `files`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the files in.
        seed: Seed of the sampler.
        prune: Give up trials whose first seed does worse than the median of the finished ones at that epoch.
        quick: First and middle values, two epochs, two seeds and 1,000 images, to see that it works.

    Raises:
        InputError: The space cannot be searched, the folder has or does another sweep, or every trial failed.
    """
    images = data(source=source, dirs=dirs, **(QUICK if quick else {}))
    if quick:
        space = {k: v if isinstance(v, Range) else [*v[:1], *v[len(v) // 2 :][:1]] for k, v in space.items()}
        space, seeds, trials, name = {**space, "epochs": [1, 2]}, seeds[:2], min(trials, 4), f"{name}-quick"
    plan = Plan(space, sampler, trials, list(seeds), seed, "", prune, model)
    return _run(plan, images, Path("logs/sweep", name), workers, storage)


def _run(plan: Plan, data: FashionMNISTDataModule, folder: Path, workers: int | None, storage: str | None) -> Path:
    check_writable(folder)
    alone = locked(folder, "choose another --name") if storage is None else nullcontext()
    with pool(plan.model, workers) as threads:
        plan = replace(plan, data=f"{data.loaded.sha256}/{len(data.train_index)}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone:
                sweep = Sweep(plan, folder, partial(train, plan, data, "val"), storage)
                sweep.search(threads)
                test = sweep.test(partial(train, plan, data, "test"))
        except (StorageInternalError, SQLAlchemyError) as error:
            raise StorageError(f"storage: lost it ({format_error(error)}); start again to go on") from error
    with locked(folder):
        command = str(environment()["command"])
        if storage:  # a quotation mark stands there as a shell takes it
            command = command.replace(storage.replace("'", "'\"'\"'"), shown(storage))
        return sweep_page.write(folder, plan, sweep.study.trials, test, data, command)


def train(
    plan: Plan, data: FashionMNISTDataModule, stage: str, trials: Sequence[Params], seed: int, each: Each
) -> dict[str, Tensor]:
    """Train on the images that `fit` trains on; score `val` after every epoch, `test` after the last."""
    images, size, epochs = len(data.train_index), count(trials[0], "batch_size"), longest(trials)
    n = int(trials[0].get("train_size", images))
    for name, value, most in (("train_size", n, images), ("batch_size", size, n)):
        if value > most:
            raise InputError(f"{name}={value}: must be at most the {most} training images")
    loader = Minibatches(data.loaded.images, data.loaded.labels, data.train_index[:n], size, seed)
    sets = {name: part for name, part in held_out(data).items() if name in ("val", stage)}
    every = 1 if stage == "val" else epochs
    return learn(plan.model, [hparams(trial) for trial in trials], loader, epochs, seed, sets, every, each)


class Sweep:
    """The trials of a plan, and what becomes of them.

    Args:
        plan: What to search.
        folder: Locked for this process, unless there is a database.
        train: Trains a group of trials with a seed; returns their scores, metric -> (trials, scorings), see `learn`.
        storage: URL of a database, or None for a journal in the folder.
        silence: Seconds without a sign of life after which the trials of another machine are taken over.

    Raises:
        InputError: The folder or the database has a sweep with another plan, or cannot be reached.
    """

    def __init__(
        self, plan: Plan, folder: Path, train: Train, storage: str | None = None, silence: float = SILENCE
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        silence = silence if storage else 0.0  # in a locked folder, what runs already was killed
        self.plan, self.name, self.train = plan, folder.name, train
        self.trials = Trials(open_storage(storage, folder), folder.name, plan, silence)
        self.study = self.trials.study
        if self.study.user_attrs.get("plan", plan.identity()) != plan.identity():
            raise InputError(f"{folder}: has a sweep with another plan; choose another --name, or delete it")
        self.study.set_user_attr("plan", plan.identity())
        # Another seed each time it goes on, and on each machine, or TPE would propose the same trials again.
        seed = plan.seed + len(self.study.trials) + (secrets.randbelow(2**16) if storage else 0)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def complete(self) -> list[FrozenTrial]:
        """Return the trials that came to their end, at least one, those of least validation loss first."""
        if trials := self.trials.live(TrialState.COMPLETE):
            return sorted(trials, key=lambda trial: trial.value or 0.0)
        errors = sorted({t.user_attrs["error"] for t in self.study.trials if "error" in t.user_attrs})
        kind = DivergedError if all(e.startswith("DivergedError") for e in errors) else InputError
        raise kind(f"all trials failed: {'; '.join(errors[:3])}")

    def search(self, threads: ThreadPoolExecutor) -> None:
        """Run every trial that is waiting, until none is left on any machine."""
        self.bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(self.name, total=self.plan.size)
        with self.bar, self.trials:
            futures = [threads.submit(self._work) for _ in range(cores())]  # one a thread, or more
            try:
                for future in futures:
                    future.result()
            finally:
                self.trials.stop.set()
                wait(futures)

    def _work(self) -> None:
        """Train one group of trials after another; if one fails that is recorded, and the next begins."""
        for group in self.trials.groups():
            try:
                self._train_group(group)
            except (StorageInternalError, SQLAlchemyError):
                raise
            except Exception as error:  # whatever it is, the other groups may still work
                for trial in group:  # that is not finished
                    self.trials.finish(trial, None, error=format_error(error))
            self._show()

    def _train_group(self, group: Sequence[Trial]) -> None:
        """Train a group, one seed after another, and finish its trials.

        With a constant learning rate a short run is the beginning of a long one, so that the trials of a group
        may differ in `epochs`, too: the scores of each are read off where it ends.
        """
        history: dict[int, History] = {trial.number: {} for trial in group}
        left = list(group)  # those that are not pruned

        def each(epoch: int, scores: Mapping[str, Tensor]) -> bool:
            if self.plan.prune and not any(history.values()):  # with the first seed
                for trial, loss in zip(group, scores["val/loss"].tolist(), strict=True):
                    if trial in left and epoch < count(trial.params, "epochs"):
                        trial.report(loss, epoch)
                        if trial.should_prune():
                            self.study.tell(trial, state=TrialState.PRUNED)
                            left.remove(trial)
            return bool(left) and not self.trials.stop.is_set()

        for seed in self.plan.seeds:
            trained = list(left)
            scores = self.train([trial.params for trial in trained], seed, each)
            if not left or self.trials.stop.is_set():
                return
            for i, trial in enumerate(trained):
                for name, values in scores.items():
                    ended = values[i, : count(trial.params, "epochs")].tolist()
                    history[trial.number].setdefault(name, []).append(ended)
            self.bar.advance(self.task, len(group) / len(self.plan.seeds))
        for trial in left:
            value = mean(losses[-1] for losses in history[trial.number]["val/loss"])
            if math.isfinite(value):
                self.trials.finish(trial, value, history=history[trial.number])
            else:
                self.trials.finish(trial, None, error=f"DivergedError: val/loss={value}; lower lr")

    def _show(self) -> None:
        """Say how far the search has come."""
        trials = self.trials.live()
        done = sum(trial.state.is_finished() for trial in trials)
        text = f"{done}/{self.plan.size} trials"
        if complete := [trial for trial in trials if trial.state == TrialState.COMPLETE]:
            best = min(complete, key=lambda trial: trial.value or 0.0)
            text += f", best val/loss {best.value:.4f} with {describe(best.params)}"
        self.bar.update(self.task, completed=done, description=text)
        if self.bar.disable:
            print(text, file=sys.stderr)

    def test(self, train: Train) -> dict[str, list[float]]:
        """Test the trial of least validation loss once and for all; return `test/loss` and `test/acc` of each seed.

        It is a trial of a study of its own, so that of several machines one does it. `train` scores the test images.
        """
        winner = replace(self.plan, fixed=[self.complete()[0].params])
        with Trials(self.trials.storage, f"{self.name}: test", winner, self.trials.silence) as trials:
            for (trial,) in trials.groups():
                scores = [train([trial.params], seed, lambda *_: True) for seed in self.plan.seeds]
                values = {name: [of_seed[name].item() for of_seed in scores] for name in METRICS[4:]}
                trials.finish(trial, mean(values["test/loss"]), test=values)
        tested: dict[str, list[float]] = trials.study.best_trial.user_attrs["test"]
        return tested
