"""A search over hyperparameters, on Optuna: stacked trials in one process, resumable after a kill.

Exercise 1 of Dive into Deep Learning, section 4.5: change the batch size, the number of epochs and the
learning rate. A trial is a configuration; its value is its last validation loss, the mean over the seeds.
Command: python study.py sweep
"""

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from softmax_regression.data.files import DIRS
from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import DivergedError, InputError
from softmax_regression.files import locked
from softmax_regression.runs.processes import cores
from softmax_regression.studies.stacked import Scores, pool
from softmax_regression.studies.sweep_plan import (
    TPE_BATCH,
    Params,
    Plan,
    Range,
    Value,
    describe,
    epochs_of,
    key,
)
from softmax_regression.studies.sweep_trials import History, make_stack, train


def run(
    space: dict[str, list[Value] | Range],
    sampler: Literal["grid", "random", "tpe"] = "grid",
    trials: int = 100,
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "batch-lr-epochs",
    workers: int | None = None,
    storage: str | None = None,
    source: Literal["fashion-mnist", "synthetic"] = "fashion-mnist",
    dirs: Sequence[str] = DIRS,
    seed: int = 0,
    prune: bool = False,
    quick: bool = False,
) -> Path:
    """Search, or go on with a search that was interrupted; then test the winner and write the page.

    Args:
        space: What to search: `lr`, `batch_size`, `epochs`, ... -> a list of values, or a range to draw from.
        sampler: `grid` for all combinations, `random`, or `tpe`, which learns from the trials before.
        trials: Number of trials of `random` and `tpe`.
        seeds: Every trial is trained with each of them.
        name: Everything is kept in logs/sweep/NAME.
        workers: Stacks trained at the same time, at most one a core; None for one a core.
        storage: URL of a PostgreSQL or MySQL database that several machines share, as SQLAlchemy takes it
            (`postgresql+psycopg2://...`, with the driver installed); None for a file.
        source: `fashion-mnist`, or `synthetic` for generated stand-ins.
        dirs: Folders to look for the data in.
        seed: Seed of the sampler.
        prune: Give up trials that do worse than the median of the finished ones; with several workers, which
            ones depends on who is first.
        quick: First and middle values, two epochs, two seeds and 1,000 images, to see that it works.

    Returns:
        The path of the page.

    Raises:
        InputError: The space cannot be searched, the folder has or does another sweep, or every trial failed.
    """
    from softmax_regression.studies import sweep_page

    sizes: dict[str, Any] = {"synthetic_size": 1500, "val_size": 500, "train_size": 1000} if quick else {}
    data = FashionMNISTDataModule(source=source, dirs=dirs, **sizes)
    data.setup()
    if quick:
        ends = {
            k: v if isinstance(v, Range) else list(dict.fromkeys((v[0], v[len(v) // 2])))
            for k, v in space.items()
        }
        space = {**ends, "epochs": [1, 2]}
        seeds, trials, name = seeds[:2], min(trials, 4), f"{name}-quick"
    plan = Plan(
        space, sampler, trials, list(seeds), seed, f"{data.loaded.sha256}/{len(data.train_index)}", prune
    )
    folder = Path("logs/sweep", name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "choose another --name"):
        sweep = Sweep(plan, data, folder, storage)
        sweep.search(workers)
        test = sweep.test_winner()
        return sweep_page.write(folder, plan, sweep.study.trials, test, data.loaded.origin)


class Sweep:
    """The trials of a plan, and what becomes of them.

    Args:
        plan: What to search.
        data: Set up; only its training and validation images are touched until the winner is known.
        folder: Locked for this process.
        storage: URL of a shared database, or None for a journal in the folder.

    Raises:
        InputError: The folder or the database has a sweep with another plan, or cannot be reached.
    """

    def __init__(self, plan: Plan, data: FashionMNISTDataModule, folder: Path, storage: str | None) -> None:
        self.plan, self.data, self.lock, self.stop = plan, data, threading.Lock(), threading.Event()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.storage = get_storage(storage or JournalStorage(_journal(folder / "trials.jsonl")))
        except Exception as error:  # of whichever database driver it is
            raise InputError(f"storage={storage}: cannot be used ({_one_line(error)})") from error
        self.owner = f"{socket.gethostname()}:{folder.resolve()}"
        try:  # of several machines that start, one makes the study, and puts its trials in line
            self.study = optuna.create_study(storage=self.storage, study_name=folder.name)
            self.study.set_user_attr("planner", self.owner)
        except optuna.exceptions.DuplicatedStudyError:
            self.study = optuna.load_study(storage=self.storage, study_name=folder.name)
        if storage and self.study.user_attrs.get("planner") != self.owner:
            _wait(lambda: "" if "queued" in self.study.user_attrs else "the machine that plans the trials")
        known, wanted = self.study.user_attrs.get("plan"), json.dumps(asdict(plan))
        if known not in (None, wanted):
            raise InputError(f"{folder}: has a sweep with another plan; choose another --name, or delete it")
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):  # left by a kill
            if storage is None or trial.user_attrs.get("owner", self.owner) == self.owner:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        if not self.study.user_attrs.get("queued"):
            self.study.set_user_attr("plan", wanted)
            for params in plan.queue()[len(self.study.trials) :]:
                self.study.add_trial(
                    create_trial(state=TrialState.WAITING, params=params, distributions=plan.distributions)
                )
            self.study.set_user_attr("queued", True)
        # Another seed each time it goes on, or TPE would propose its first trials again.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=plan.seed + len(self.study.trials), constant_liar=True
        )

    def search(self, workers: int | None = None) -> None:
        """Run every trial that is waiting, until none is left."""
        columns = (
            TextColumn("{task.percentage:.0f}%"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task("", best="")
        with self.bar, pool(workers) as threads:
            self._show()
            futures = [threads.submit(self._work) for _ in range(cores())]  # more than threads: done at once
            try:
                for future in futures:
                    future.result()
            finally:
                self.stop.set()
        _wait(self._running_elsewhere)

    def _running_elsewhere(self) -> str:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        owners = {trial.user_attrs.get("owner", "a machine") for trial in running} - {self.owner}
        return ", ".join(f"the trials of {owner}" for owner in sorted(owners))

    def _work(self) -> None:
        """Train one group of trials after another; if one fails that is recorded, and the next begins."""
        while not self.stop.is_set():
            with self.lock:
                group = self._claim()
            if not group:
                return
            unfinished = {trial.number: trial for trial in group}
            try:
                longest = max(epochs_of(trial.params) for trial in group)
                for epoch, (ended, losses) in enumerate(train(self.plan, self.data, group)):
                    for trial, result in ended:
                        if trial.number in unfinished:
                            self._finish(unfinished.pop(trial.number), result)
                    for number in self._hopeless(unfinished, losses, epoch) if self.plan.prune else ():
                        del unfinished[number]
                    self.bar.advance(self.task, len(unfinished) / longest)
                    if self.stop.is_set():
                        return
                    if not unfinished:
                        break
            except Exception as error:  # whatever it is, the other groups may still work
                for trial in unfinished.values():
                    self._finish(trial, error)

    def _claim(self) -> list[FrozenTrial]:
        """Take the waiting trials that can be trained together with the first one; none if none waits."""
        while waiting := self._waiting():
            group = [trial for trial in waiting if key(trial.params) == key(waiting[0].params)]
            # False: another machine was faster.
            won = [t for t in group if self.storage.set_trial_state_values(t._trial_id, TrialState.RUNNING)]
            for trial in won:
                self.storage.set_trial_user_attr(trial._trial_id, "owner", self.owner)
            if won:
                return won
        return []

    def _waiting(self) -> list[FrozenTrial]:
        """Return the trials that nobody has taken; TPE proposes some when there are none."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting or self.plan.sampler != "tpe":
            return waiting
        missing = self.plan.trials - len(self.study.trials)
        for proposal in [self.study.ask(self.plan.distributions) for _ in range(min(TPE_BATCH, missing))]:
            self.storage.set_trial_state_values(proposal._trial_id, TrialState.WAITING)
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _finish(self, trial: FrozenTrial, result: History | Exception) -> None:
        """Record the metrics of a trial, or why it failed."""
        if not isinstance(result, Exception):
            value = mean(losses[-1] for losses in result["val/loss"])
            if not math.isfinite(value):
                result = DivergedError(f"val/loss={value}: the run diverged; lower lr")
        with self.lock:
            if isinstance(result, Exception):
                self.storage.set_trial_user_attr(trial._trial_id, "error", _one_line(result))
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            else:
                self.storage.set_trial_user_attr(trial._trial_id, "history", result)
                self.storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [value])
            self._show()

    def _hopeless(
        self, unfinished: Mapping[int, FrozenTrial], losses: Mapping[int, float], epoch: int
    ) -> list[int]:
        """Record how the trials of a group do; give up the hopeless ones, and return their numbers."""
        pruned = []
        for number, loss in losses.items():
            if number in unfinished:
                trial_id = unfinished[number]._trial_id
                with self.lock:
                    self.storage.set_trial_intermediate_value(trial_id, epoch, loss)
                    if self.study.pruner.prune(self.study, self.storage.get_trial(trial_id)):
                        self.storage.set_trial_state_values(trial_id, TrialState.PRUNED)
                        pruned.append(number)
        return pruned

    def _show(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        done = sum(trial.state.is_finished() for trial in trials)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        total = self.plan.trials if self.plan.sampler == "tpe" else len(trials)
        text = f"{done}/{total} trials"
        if complete:
            best = min(complete, key=lambda trial: trial.value or 0.0)
            text += f", best val/loss {best.value:.4f} with {describe(best.params)}"
        self.bar.update(self.task, total=total, completed=done, best=text)
        if self.bar.disable and done % 10 == 0:
            print(text, file=sys.stderr)

    def test_winner(self) -> dict[str, list[float]]:
        """Score the test images with the trial of least validation loss, one model a seed, once and for all.

        Returns:
            `test/loss` and `test/acc`, a value for each seed.

        Raises:
            InputError: No trial came to its end.
        """
        try:
            winner = self.study.best_trial
        except ValueError:
            errors = {trial.user_attrs["error"] for trial in self.study.trials if "error" in trial.user_attrs}
            raise InputError(f"all trials failed: {'; '.join(sorted(errors)[:3])}") from None
        test: dict[str, Any] = self.study.user_attrs.get("test", {})
        if test.get("number") != winner.number:
            scores = [self._test(winner.params, seed) for seed in self.plan.seeds]
            values = {f"test/{m}": [getattr(score, m).item() for score in scores] for m in Scores._fields}
            test = {"number": winner.number, "values": values}
            self.study.set_user_attr("test", test)
        tested: dict[str, list[float]] = test["values"]
        return tested

    def _test(self, params: Params, seed: int) -> Scores:
        stack = make_stack([params], seed, epochs_of(params), self.data)
        for _ in range(epochs_of(params)):
            stack.train_epoch()
        return stack.score(self.data.loaded.test_images, self.data.loaded.test_labels)


def _journal(path: Path) -> JournalFileBackend:
    """Open Optuna's journal; a kill may have left its lock, and half a line."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0] + whole[1]))
    return JournalFileBackend(str(path))


def _wait(what: Callable[[], str]) -> None:
    """Wait while `what` names something that another machine does, and say so."""
    if name := what():
        print(f"waiting for {name}; if it has been killed, start it there again", file=sys.stderr)
    while what():
        time.sleep(0.2)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
