"""Trials that one or several machines take from a study, and take over from a machine that is silent.

Public names of Optuna alone. Its own heartbeat beats only inside `Study.optimize`, which runs trials one by
one; here a machine asks for all trials that make one stack.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from softmax_regression.errors import InputError
from softmax_regression.studies.sweep_plan import Params, Plan

BEAT, SILENCE = 10.0, 90.0  # seconds between signs of life; without one until trials are taken over
TPE_BATCH = 16  # trials that TPE proposes at a time, which can then be stacked


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial was given back, taken over or surplus: it has failed, but says nothing of why."""
    return trial.state == TrialState.FAIL and "error" not in trial.user_attrs


class Trials:
    """The trials of a study that machines may share, as a context in which this machine gives signs of life.

    Args:
        study: Where they are.
        plan: What they are drawn from.
        wanted: Their parameters, those of a group in a row; or how many TPE is to propose.
        silence: Seconds without a sign of life after which a machine's trials are taken over.
    """

    def __init__(self, study: optuna.Study, plan: Plan, wanted: Sequence[Params] | int, silence: float) -> None:
        self.study, self.plan, self.wanted, self.silence = study, plan, wanted, silence
        self.machine = f"{socket.gethostname()}-{secrets.token_hex(2)}"
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.seen: dict[int, tuple[Any, float]] = {}  # trial -> last sign of its machine, and when it was new

    def __enter__(self) -> "Trials":
        threading.Thread(target=self._live, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give back what is not finished."""
        self.stop.set()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("machine") == self.machine:
                self._lose(trial.number)

    def _live(self) -> None:
        while not self.stop.is_set():
            with suppress(Exception):  # a database may be away for a while
                self.study.set_user_attr(f"alive {self.machine}", time.time())
            self.stop.wait(BEAT)

    def groups(self) -> Iterator[list[Trial]]:
        """Yield trials that are now this machine's, a group at a time, until every machine's are finished."""
        said = False
        while not self.stop.is_set():
            if taken := self._take():
                for group in dict.fromkeys(self.plan.group(trial.params) for trial in taken):
                    yield [trial for trial in taken if self.plan.group(trial.params) == group]
            elif others := self._others():
                if not said:
                    text = f"waiting for {', '.join(sorted(others))}; what falls silent is replaced"
                    print(text, file=sys.stderr)
                said = True
                self.stop.wait(min(1.0, self.silence / 4))
            else:
                return

    def _take(self) -> list[Trial]:
        """Take the first group in the line; nothing if the line is empty and nothing is missing in it."""
        with self.lock:
            while n := self._line_up():
                taken = [self.study.ask(self.plan.distributions) for _ in range(n)]
                for trial in taken:
                    trial.set_user_attr("machine", self.machine)
                trials = self.study.get_trials(deepcopy=False)
                surplus = {trial.number for trial in taken if self._is_surplus(trials[: trial.number + 1])}
                for number in surplus:
                    self._lose(number)
                if own := [trial for trial in taken if trial.number not in surplus]:
                    return own
        return []

    def _line_up(self) -> int:
        """Return how many trials to take; if none waits, those that are missing are put in the line first."""
        trials = self.study.get_trials(deepcopy=False)
        line = [trial.user_attrs["params"] for trial in trials if trial.state == TrialState.WAITING]
        if not line:
            live = [trial for trial in trials if not is_lost(trial)]
            if isinstance(self.wanted, int):
                return max(0, min(TPE_BATCH, self.wanted - len(live)))
            known = [trial.user_attrs.get("params") for trial in live]
            line = [params for params in self.wanted if params not in known]
            for params in line:
                self.study.enqueue_trial(params, user_attrs={"params": params})
        return sum(self.plan.group(params) == self.plan.group(line[0]) for params in line)

    def _is_surplus(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether machines that lined up trials at the same moment have made the last one once too often."""
        *before, trial = (trial for trial in trials if not is_lost(trial))
        if isinstance(self.wanted, int):
            return len(before) >= self.wanted
        params = trial.user_attrs.get("params")
        return params is None or any(other.user_attrs.get("params") == params for other in before)

    def _others(self) -> set[str]:
        """Return the other machines that run trials, and lose the trials of those that are silent."""
        with self.lock:
            signs, now, others = self.study.user_attrs, time.monotonic(), set()
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
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
    """Open the database that machines share, or without a URL the journal of one.

    Raises:
        InputError: It cannot be opened.
    """
    if url is None:
        return JournalStorage(_journal(folder / "trials.jsonl"))
    for left in reversed(range(10)):
        try:
            target = _parse(url).render_as_string(hide_password=False)
            return RDBStorage(target, {"pool_pre_ping": True})
        except (ImportError, ArgumentError) as error:
            remedy = 'for PostgreSQL pip install -e ".[database]"'
            raise InputError(f"storage={shown(url)}: its driver is missing; {remedy}") from error
        except (DBAPIError, StorageInternalError) as error:
            if left == 0 or isinstance(error, OperationalError):
                raise InputError(f"storage={shown(url)}: cannot be used ({one_line(error)})") from error
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


def one_line(error: BaseException) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _journal(path: Path) -> JournalFileBackend:
    """Open Optuna's journal; a kill may have left its lock, and half a line."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0] + whole[1]))
    return JournalFileBackend(str(path), JournalFileOpenLock(str(path)))  # no link, which Windows may refuse
