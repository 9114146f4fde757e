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
from softmax_regression.errors import DivergedError, InputError, StorageError
from softmax_regression.files import check_writable, locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.runs.processes import cores
from softmax_regression.runs.record import environment
from softmax_regression.studies import sweep_page
from softmax_regression.studies.learning import Each, held_out, learn, pool
from softmax_regression.studies.stacked import METRICS
from softmax_regression.studies.sweep_page import History
from softmax_regression.studies.sweep_plan import Params, Plan, Range, Value, count, describe, hparams
from softmax_regression.studies.sweep_trials import SILENCE, Trials, is_lost, one_line, open_storage, shown

Train = Callable[[Params, Sequence[Params], int, Each], dict[str, Tensor]]
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
            raise StorageError(f"storage: lost it ({one_line(error)}); start again to go on") from error
    with locked(folder):
        command = str(environment()["command"])
        if storage:  # a quotation mark stands there as a shell takes it
            command = command.replace(storage.replace("'", "'\"'\"'"), shown(storage))
        return sweep_page.write(folder, plan, sweep.study.trials, test, data, command)


def train(
    plan: Plan, data: FashionMNISTDataModule, stage: str,
    params: Params, models: Sequence[Params], seed: int, each: Each,
) -> dict[str, Tensor]:  # fmt: skip
    """Train on the images that `fit` trains on; score `val` after every epoch, `test` after the last."""
    images, epochs, size = len(data.train_index), count(params, "epochs"), count(params, "batch_size")
    n = int(params.get("train_size", images))
    for name, value, most in (("train_size", n, images), ("batch_size", size, n)):
        if value > most:
            raise InputError(f"{name}={value}: must be at most the {most} training images")
    loader = Minibatches(data.loaded.images, data.loaded.labels, data.train_index[:n], size, seed)
    sets = {name: part for name, part in held_out(data).items() if name in ("val", stage)}
    return learn(plan.model, models, loader, epochs, seed, sets, 1 if stage == "val" else epochs, each)


class Sweep:
    """The trials of a plan, and what becomes of them.

    Args:
        plan: What to search.
        folder: Locked for this process, unless there is a database.
        train: Trains models as the parameters of a trial say, with a seed, see `learn`.
        storage: URL of a database, or None for a journal in the folder.
        silence: Seconds without a sign of life after which the trials of another machine are taken over.

    Raises:
        InputError: The folder or the database has a sweep with another plan, or cannot be reached.
    """

    def __init__(
        self, plan: Plan, folder: Path, train: Train, storage: str | None = None, silence: float = SILENCE
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.name, self.train = plan, folder.name, train
        self.silence = silence if storage else 0.0  # in a locked folder, what runs already was killed
        self.storage = open_storage(storage, folder)
        self.study = self._study(self.name)
        if "plan" not in self.study.user_attrs:
            self.study.set_user_attr("plan", plan.identity())
        if self.study.user_attrs["plan"] != plan.identity():
            raise InputError(f"{folder}: has a sweep with another plan; choose another --name, or delete it")
        # Another seed each time it goes on, and on each machine, or TPE would propose the same trials again.
        seed = plan.seed + len(self.study.trials) + (secrets.randbelow(2**16) if storage else 0)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _study(self, name: str) -> optuna.Study:
        return optuna.create_study(storage=self.storage, study_name=name, load_if_exists=True)

    def complete(self) -> list[FrozenTrial]:
        """Return the trials that came to their end, those of least validation loss first.

        Raises:
            InputError: There is none.
            DivergedError: There is none, and all diverged.
        """
        trials = self.study.get_trials(states=(TrialState.COMPLETE,))
        if not trials:
            errors = sorted({t.user_attrs["error"] for t in self.study.trials if "error" in t.user_attrs})
            kind = DivergedError if all(e.startswith("DivergedError") for e in errors) else InputError
            raise kind(f"all trials failed: {'; '.join(errors[:3])}")
        return sorted(trials, key=lambda trial: trial.value or 0.0)

    def search(self, threads: ThreadPoolExecutor) -> None:
        """Run every trial that is waiting, until none is left on any machine."""
        wanted = self.plan.trials if self.plan.sampler == "tpe" else self.plan.queue
        self.bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(self.name, total=self.plan.size)
        with self.bar, Trials(self.study, self.plan, wanted, self.silence) as trials:
            futures = [threads.submit(self._work, trials) for _ in range(cores())]  # one a thread, or more
            try:
                for future in futures:
                    future.result()
            finally:
                trials.stop.set()
                wait(futures)

    def _work(self, trials: Trials) -> None:
        """Train one group of trials after another; if one fails that is recorded, and the next begins."""
        for group in trials.groups():
            unfinished = {trial.number: trial for trial in group}
            try:
                self._train_group(trials, unfinished)
            except (StorageInternalError, SQLAlchemyError):
                raise
            except Exception as error:  # whatever it is, the other groups may still work
                for trial in unfinished.values():
                    trials.finish(trial, None, error=one_line(error))
            self._show()

    def _train_group(self, trials: Trials, unfinished: dict[int, Trial]) -> None:
        """Train a group, one seed after another, and finish its trials."""
        history: dict[int, History] = {number: {} for number in unfinished}
        for seed in self.plan.seeds:
            if unfinished:
                self._train_seed(trials, unfinished, seed, history)
            if trials.stop.is_set():
                return
            self.bar.advance(self.task, len(history) / len(self.plan.seeds))
        for number, trial in unfinished.items():
            value = mean(losses[-1] for losses in history[number]["val/loss"])
            if math.isfinite(value):
                trials.finish(trial, value, history=history[number])
            else:
                trials.finish(trial, None, error=f"DivergedError: val/loss={value}; lower lr")

    def _train_seed(
        self, trials: Trials, unfinished: dict[int, Trial], seed: int, history: Mapping[int, History]
    ) -> None:
        """Train a group with one seed, and add its scores to the histories.

        With a constant learning rate a short run is the beginning of a long one, so trials that differ in
        nothing but `epochs` are one model, whose scores are read off at several places.
        """
        params = {number: trial.params for number, trial in unfinished.items()}
        models = [hparams(of_trial) for of_trial in params.values()]
        models = [model for i, model in enumerate(models) if model not in models[:i]]
        place = {number: models.index(hparams(of_trial)) for number, of_trial in params.items()}
        longest = max(params.values(), key=lambda of_trial: count(of_trial, "epochs"))

        def each(epoch: int, scores: Mapping[str, Tensor]) -> bool:
            if self.plan.prune and seed == self.plan.seeds[0]:
                for number in [n for n in unfinished if epoch < count(params[n], "epochs")]:
                    unfinished[number].report(scores["val/loss"][place[number]].item(), epoch)
                    if unfinished[number].should_prune():
                        self.study.tell(unfinished.pop(number), state=TrialState.PRUNED)
            return bool(unfinished) and not trials.stop.is_set()

        scores = self.train(longest, models, seed, each)
        for number in unfinished:
            for name, values in scores.items():
                ended = values[place[number], : count(params[number], "epochs")].tolist()
                history[number].setdefault(name, []).append(ended)

    def _show(self) -> None:
        """Say how far the search has come."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if not is_lost(trial)]
        done = sum(trial.state.is_finished() for trial in trials)
        text = f"{done}/{self.plan.size} trials"
        if complete := [trial for trial in trials if trial.state == TrialState.COMPLETE]:
            best = min(complete, key=lambda trial: trial.value or 0.0)
            text += f", best val/loss {best.value:.4f} with {describe(best.params)}"
        self.bar.update(self.task, completed=done, description=text)
        if self.bar.disable:
            print(text, file=sys.stderr)

    def test(self, train: Train) -> dict[str, list[float]]:
        """Test the trial of least validation loss, one model a seed, once and for all.

        It is a trial of a study of its own, so that of several machines one does it.

        Args:
            train: As that of the sweep, but scores the test images, once.

        Returns:
            `test/loss` and `test/acc`, a value for each seed.
        """
        study, best = self._study(f"{self.name}: test"), self.complete()[0].params
        with Trials(study, self.plan, [best], self.silence) as trials:
            for (trial,) in trials.groups():
                own = [hparams(trial.params)]
                scores = [train(trial.params, own, seed, lambda *_: True) for seed in self.plan.seeds]
                values = {name: [of_seed[name].item() for of_seed in scores] for name in METRICS[4:]}
                trials.finish(trial, mean(values["test/loss"]), test=values)
        tested: dict[str, list[float]] = study.best_trial.user_attrs["test"]
        return tested
