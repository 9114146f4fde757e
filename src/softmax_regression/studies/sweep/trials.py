"""Trials that one or several machines take from a study, and take over from a machine that is silent.

Public names of Optuna alone. Its own heartbeat beats only inside `Study.optimize`, which runs trials one by
one; here a machine takes all trials that make one stack.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from softmax_regression.errors import InputError, format_error
from softmax_regression.studies.sweep.plan import Plan

BEAT, SILENCE = 10.0, 90.0  # seconds between signs of life; without one until trials are taken over
TPE_BATCH = 16  # trials that TPE proposes at a time, which can then be stacked


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial was given back, taken over or surplus: it has failed, but says nothing of why."""
    return trial.state == TrialState.FAIL and "error" not in trial.user_attrs


class Trials:
    """The trials of a plan, which machines may share; a context in which this machine gives signs of life.

    The trials of a machine are taken over after `silence` seconds without one.
    """

    def __init__(self, storage: BaseStorage, name: str, plan: Plan, silence: float) -> None:
        self.study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        self.storage, self.plan, self.silence = storage, plan, silence
        self.machine = f"{socket.gethostname()}-{secrets.token_hex(2)}"
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.seen: dict[int, tuple[Any, float]] = {}  # trial -> last sign of its machine, and when it was new

    def __enter__(self) -> "Trials":
        threading.Thread(target=self._live, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give back what is not finished."""
        self.stop.set()
        for trial in self.live(TrialState.RUNNING):
            if trial.user_attrs.get("machine") == self.machine:
                self._lose(trial.number)

    def _live(self) -> None:
        while not self.stop.is_set():
            with suppress(Exception):  # a database may be away for a while
                self.study.set_user_attr(f"alive {self.machine}", time.time())
            self.stop.wait(BEAT)

    def live(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials that are not lost, of these states or of all, in the order of their numbers."""
        trials = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if not is_lost(trial)]

    def groups(self) -> Iterator[list[Trial]]:
        """Yield trials that are now this machine's, a group at a time, until every machine's are finished."""
        said = False
        while not self.stop.is_set():
            if taken := self._take():
                for group in dict.fromkeys(self.plan.group(trial.params) for trial in taken):
                    yield [trial for trial in taken if self.plan.group(trial.params) == group]
            elif others := self._others():
                if not said:
                    print(f"waiting for {', '.join(sorted(others))}; what falls silent is replaced", file=sys.stderr)
                said = True
                self.stop.wait(min(1.0, self.silence / 4))
            else:
                return

    def _take(self) -> list[Trial]:
        """Make trials that are missing, but for those that another machine has made at the same moment."""
        with self.lock:
            while made := self._make():
                live, own = self.live(), []
                for trial in made:
                    before = [other.params for other in live if other.number < trial.number]
                    if trial.params in before if self.plan.queue else len(before) >= self.plan.size:
                        self._lose(trial.number)
                    else:
                        own.append(trial)
                if own:
                    return own
        return []

    def _make(self) -> list[Trial]:
        """Make the first group of the queue that is missing, each trial at one stroke, or what TPE proposes."""
        live, space, attrs = self.live(), self.plan.distributions, {"machine": self.machine}
        if not self.plan.queue:
            made = [self.study.ask(space) for _ in range(min(TPE_BATCH, self.plan.size - len(live)))]
            for trial in made:
                trial.set_user_attr("machine", self.machine)
            return made
        known = [trial.params for trial in live]
        missing = [params for params in self.plan.queue if params not in known]
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        running = (
            create_trial(state=TrialState.RUNNING, params=params, distributions=space, user_attrs=attrs)
            for params in missing
            if self.plan.group(params) == self.plan.group(missing[0])
        )
        return [Trial(self.study, self.storage.create_new_trial(study_id, trial)) for trial in running]

    def _others(self) -> set[str]:
        """Return the other machines that run trials, and lose the trials of those that are silent."""
        with self.lock:
            signs, now, others = self.study.user_attrs, time.monotonic(), set()
            for trial in self.live(TrialState.RUNNING):
                if (machine := trial.user_attrs.get("machine", "a machine")) != self.machine:
                    sign = signs.get(f"alive {machine}")
                    if sign != self.seen.setdefault(trial.number, (sign, now))[0]:
                        self.seen[trial.number] = sign, now
                    elif now - self.seen[trial.number][1] >= self.silence:
                        self._lose(trial.number)
                    others.add(machine)
            return others

    def _lose(self, number: int) -> None:
        with suppress(ValueError, UpdateFinishedTrialError):  # another machine was faster
            self.study.tell(number, state=TrialState.FAIL)

    def finish(self, trial: Trial, value: float | None, **attrs: Any) -> None:
        """Record the value of a trial, or without one that it has failed, unless it was taken over."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with self.lock, suppress(ValueError, UpdateFinishedTrialError):
            for name, attr in attrs.items():
                trial.set_user_attr(name, attr)
            self.study.tell(trial, value, state)


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the database that machines share, or without a URL the journal of one; if it cannot be, an InputError."""
    if url is None:
        path = folder / "trials.jsonl"
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # a kill may have left it, and half a line
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        lock = JournalFileOpenLock(str(path))  # no link, which Windows may refuse
        return JournalStorage(JournalFileBackend(str(path), lock))
    for left in reversed(range(10)):
        try:
            return RDBStorage(_parse(url).render_as_string(hide_password=False), {"pool_pre_ping": True})
        except (ImportError, ArgumentError) as error:
            remedy = 'for PostgreSQL pip install -e ".[database]"'
            raise InputError(f"storage={shown(url)}: its driver is missing; {remedy}") from error
        except (DBAPIError, StorageInternalError) as error:
            if left == 0 or isinstance(error, OperationalError):
                raise InputError(f"storage={shown(url)}: cannot be used ({format_error(error)})") from error
            time.sleep(0.1)  # another machine is making the same tables
    raise AssertionError


def _parse(url: str) -> URL:
    """Return a database's URL; PostgreSQL is spoken to with psycopg unless it says else."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # it may hold a password, so that neither is shown
        raise InputError("storage: not a URL such as postgresql://user@host/database") from None
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def shown(url: str) -> str:
    """Return a database's URL without its password."""
    return _parse(url).difference_update_query(["password"]).render_as_string(hide_password=True)
