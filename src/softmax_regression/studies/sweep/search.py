"""A search as a study of Optuna: it can be resumed after it was killed, and run on one machine or several.

A trial of a grid trains, with one seed, all models that can share its minibatches (see `stacked`); a trial of
another sampler trains one model with every seed. The value of a trial is that of its best model. The trial's attribute
`models` has the scores of all its models.
"""

import copy
import json
import math
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import optuna
import torch
from optuna.pruners import NopPruner
from optuna.samplers import GridSampler
from optuna.study import MaxTrialsCallback, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from softmax_regression.errors import DivergedError, InputError, Interrupted, format_error
from softmax_regression.files import reason
from softmax_regression.runs.processes import choose_threads, cores
from softmax_regression.studies.learning import Scores, Watcher
from softmax_regression.studies.sweep.results import Result, failures, ranked
from softmax_regression.studies.sweep.space import Params, Plan
from softmax_regression.studies.sweep.storage import (
    lost_database_is_a_storage_error,
    one_machine,
    open_storage,
    trial_stays_unfinished,
)
from softmax_regression.studies.sweep.training import longest

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
Train = Callable[[Sequence[Params], int, Watcher], list[Scores]]  # (configurations, seed, watch) -> scores of each


class Search:
    """The Optuna study of a plan, in a database in the folder, or in a database that several machines share.

    Args:
        plan: What to search.
        folder: Of the study; its name is the name of the study.
        train: A function that trains configurations together, with one seed.
        storage: URL of a database that several machines share.

    Raises:
        InputError: The database has a sweep with another plan, or cannot be opened.
    """

    def __init__(self, plan: Plan, folder: Path, train: Train, storage: str | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        self.plan = plan
        self.folder = folder
        self.train = train
        self.is_shared = storage is not None
        self.storage = open_storage(storage, folder)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=folder.name,
            load_if_exists=True,
            sampler=plan.sampler or GridSampler(plan.grid),
            pruner=plan.pruner or NopPruner(),
            direction={"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}[plan.mode],
        )
        _check_plan(self.study, plan, folder)
        self.study.set_user_attr("plan", plan.to_json())
        if self.study.get_trials(deepcopy=False):
            self.study.sampler.reseed_rng()  # otherwise it would propose the same configurations again
        self.stop = threading.Event()
        self.printing = threading.Lock()  # so that the lines of two workers come in their order
        self.best = ""  # the text about the best trial that was printed last

    def close(self) -> None:
        """Close the connections to the database, so that its file can be removed."""
        self.storage.engine.dispose()

    @property
    def finished(self) -> list[FrozenTrial]:
        """The finished trials that count: for a grid the first of each point, otherwise the first `plan.size`."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        trials.sort(key=attrgetter("datetime_complete", "number"))
        if not self.plan.is_grid:
            return trials[: self.plan.size]
        first: dict[str, FrozenTrial] = {}
        for trial in trials:
            first.setdefault(json.dumps(trial.params), trial)
        return list(first.values())

    def run(self, workers: int = 1) -> None:
        """Run the unfinished trials, `workers` of them at a time.

        Raises:
            Interrupted: A signal was received; the same command resumes the search.
            StorageError: The connection to the database was lost.
        """
        if self.plan.is_stackable:
            torch.set_num_threads(1)  # for each worker; another number would change the rounding of sums
        else:
            choose_threads(None, processes=1)  # as `fit` does
        background = ThreadPoolExecutor(1)  # so that a signal interrupts this thread, which only waits
        columns = TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn()
        bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        bar.add_task("trials", total=self.plan.size)
        callbacks: list[Callable[[optuna.Study, FrozenTrial], None]] = [partial(_show_progress, self, bar)]
        if not self.plan.is_grid:  # GridSampler itself ends a study
            callbacks.append(MaxTrialsCallback(self.plan.size, FINISHED))
        options: dict[str, Any] = {"n_jobs": workers, "catch": (Exception,), "callbacks": callbacks}
        with bar, lost_database_is_a_storage_error():
            try:
                while len(self.finished) < self.plan.size:
                    left = self.plan.size - len(self.finished)  # the study ends earlier if others finish some
                    background.submit(self.study.optimize, self._objective, left, **options).result()
                    if not self.plan.is_grid:  # a sampler that has tried everything ends a study, too
                        break
            except Interrupted as error:
                raise Interrupted(error.exit_code - 128, "the same command resumes it") from error
            finally:
                self.stop.set()
                background.shutdown()

    @trial_stays_unfinished()
    def _objective(self, trial: Trial) -> float:
        """Train the models of a trial and store their scores; return the score of the best one."""
        trial.set_user_attr("machine", socket.gethostname())
        try:
            runs = self._train(trial, self.plan.suggest(trial))
            results = ranked(runs, sorted({run["seed"] for run in runs}), self.plan)
            if not results:
                raise DivergedError(f"{self.plan.monitor}={runs[0]['scores'][self.plan.monitor][-1]}; lower lr")
        except optuna.TrialPruned:
            raise
        except Exception as error:  # of the user's model; other trials may still work
            trial.set_user_attr("error", format_error(error))
            raise
        trial.set_user_attr("models", runs)
        trial.set_user_attr("best", str(results[0]))
        return results[0].interval(self.plan.monitor).mean

    def _train(self, trial: Trial, params: Params) -> list[dict[str, Any]]:
        """Train the models of a trial; return `params`, `seed` and `scores` of each."""
        seeds = list(self.plan.seeds)
        if self.plan.is_grid:
            seeds = [cast(int, params.pop("seed"))]
            self._prune_like_first_seed(params, seeds[0])
        configurations = self.plan.trained_together(params)
        runs = []
        for seed in seeds:
            watch = _watcher(self, trial, longest(configurations), seed == self.plan.seeds[0])
            scores = self.train(configurations, seed, watch)
            for configuration, of_model in zip(configurations, scores, strict=True):
                if self.plan.monitor not in of_model:
                    raise InputError(f"it has no value of {self.plan.monitor}")
                runs.append({"params": configuration, "seed": seed, "scores": of_model})
        return runs

    def _prune_like_first_seed(self, params: Params, seed: int) -> None:
        """Prune a configuration of the grid that was pruned with the first seed."""
        first = {**params, "seed": self.plan.seeds[0]}
        for other in self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)):
            if other.params == first and seed != first["seed"]:
                raise optuna.TrialPruned

    def results(self) -> list[Result]:
        """Return the results of the configurations that were trained with every seed, the best one first.

        Raises:
            DivergedError: All of them diverged.
            InputError: All of them failed.
        """
        runs: list[dict[str, Any]] = []
        for trial in self.finished:
            runs.extend(trial.user_attrs.get("models", []))
        results = ranked(runs, self.plan.seeds, self.plan)
        if not results:
            errors = sorted({error for _, error in failures(self.finished, self.plan)})
            if not errors:
                raise InputError(
                    f"all trials were pruned; choose another pruner, and another --name than {self.folder}"
                )
            kind: type[Exception] = InputError
            if all(error.startswith("DivergedError") for error in errors):
                kind = DivergedError
            remedy = "choose another --name" if self.is_shared else f"delete {self.folder}"
            raise kind(f"all trials failed: {'; '.join(errors[:3])}; to try again, {remedy}")
        return results

    def test(self, test: Callable[[Params, int], dict[str, float]]) -> dict[str, list[float]]:
        """Test the best configuration, once in the whole search; return each metric's value for each seed."""
        with lost_database_is_a_storage_error(), one_machine(self.storage.engine, self.study.study_name):
            if "test" not in self.study.user_attrs:
                scores: dict[str, list[float]] = {}
                for seed in self.plan.seeds:
                    for name, value in test(self.results()[0].params, seed).items():
                        scores.setdefault(name, []).append(value)
                self.study.set_user_attr("test", scores)
            return dict(self.study.user_attrs["test"])


def _check_plan(study: optuna.Study, plan: Plan, folder: Path) -> None:
    """Refuse a study of this name that is not a sweep's, or a sweep's with another plan."""
    if "plan" not in study.user_attrs and study.get_trials(deepcopy=False):
        raise InputError(f"{folder.name}: the study of this name is not a sweep's; choose another --name")
    if study.user_attrs.get("plan", plan.to_json()) != plan.to_json():
        raise InputError(f"{folder}: has a sweep with another plan; choose another --name, or delete it")


def _watcher(search: Search, trial: Trial, epochs: int, is_first_seed: bool) -> Watcher:
    """Return a function that ends a training if the search is stopped or, with the first seed, if it is pruned."""
    plan = search.plan

    def watch(epoch: int, scores: Mapping[str, Tensor]) -> None:
        if search.stop.is_set():
            raise SystemExit  # unlike an error, this leaves the trial unfinished, and it is run again later
        if plan.pruner is None or not is_first_seed or epoch >= epochs or plan.monitor not in scores:
            return
        finite = [value for value in scores[plan.monitor].tolist() if math.isfinite(value)]
        choose = {"min": min, "max": max}[plan.mode]
        trial.report(choose(finite, default=math.nan), epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return watch


def _show_progress(search: Search, bar: Progress, study: optuna.Study, trial: FrozenTrial) -> None:
    """After a trial, print the progress and the best trial so far; on a terminal only if another one is best."""
    with search.printing:
        done = len(search.finished)
        bar.update(bar.task_ids[0], completed=done)
        best = ""
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found = study.best_trial
            best = f", best {search.plan.monitor} {found.value:.4f} with {found.user_attrs['best']}"
        if bar.disable or best != search.best:
            line = f"{done}/{search.plan.size} trials{best}"
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        search.best = best


def check_sampler(plan: Plan) -> None:
    """Try a sampler on the space before anything is trained; it may not fit the space, or lack a package.

    Raises:
        InputError: It fails in one of twelve trials; many samplers choose at random in the first ten.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    def objective(trial: Trial) -> float:
        plan.suggest(trial)
        return trial.number

    try:
        optuna.create_study(sampler=copy.deepcopy(plan.sampler)).optimize(objective, n_trials=12)
    except Exception as error:  # the sampler may be any class of Optuna's
        raise InputError(f"sampler={type(plan.sampler).__name__}: cannot be used ({reason(error)})") from error


def number_of_workers(asked: int | None, is_stackable: bool) -> int:
    """Return the number of trials to run at a time: at most one for each core; one if models are trained alone."""
    if asked is not None and asked < 1:
        raise InputError(f"workers={asked}: must be at least 1; leave it out for one a core")
    if not is_stackable:  # threads would share torch's global generator
        return 1
    return min(asked or cores(), cores())
