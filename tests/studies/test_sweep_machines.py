"""Machines that share a database share the trials, and take over those of one that is killed."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked
from softmax_regression.model import SoftmaxRegression
from softmax_regression.studies.learning import pool
from softmax_regression.studies.sweep import search as sweep
from softmax_regression.studies.sweep import trials as sweep_trials
from softmax_regression.studies.sweep.plan import Plan, Range, describe
from softmax_regression.studies.sweep.search import Sweep
from softmax_regression.studies.sweep.trials import Trials, is_lost, open_storage, shown

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["softmax_regression.commands.train", "softmax_regression.studies.sweep"])
GRID = Plan({"batch_size": [16, 64], "lr": [0.1, 0.5], "epochs": [1]}, "grid", 1, [0], 0, "tiny")
TPE = Plan({"lr": Range(0.01, 1.0), "epochs": [1]}, "tpe", 18, [0], 0, "tiny")
SQLITE = "sqlite:///trials.db"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder of the test's own, and close the connections left, as a process's end does."""
    opened: list[RDBStorage] = []

    def opening(*arguments: Any) -> RDBStorage:
        opened.append(RDBStorage(*arguments))
        return opened[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_trials, "RDBStorage", opening)
    yield
    for storage in opened:
        storage.engine.dispose()


def images() -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, val_size=100, source="synthetic", synthetic_size=300)
    data.setup()
    return data


def trials(plan: Plan, silence: float = 60.0, url: str = SQLITE) -> Trials:
    """What one machine sees of the trials."""
    machine = Trials(open_storage(url, Path()), "shared", plan, silence)
    machine.study.sampler = optuna.samplers.RandomSampler()
    return machine


def finish(machine: Trials) -> list[dict[str, Any]]:
    """Take and finish what this machine gets, without training it; return its parameters."""
    done = []
    with machine:
        for group in machine.groups():
            for trial in group:
                machine.finish(trial, 0.5, history={})
                done.append(trial.params)
    return done


def complete(machine: Trials) -> list[str]:
    """The parameters of the trials that came to their end; none twice."""
    found = [describe(trial.params) for trial in machine.live(TrialState.COMPLETE)]
    assert len(found) == len(set(found))
    return found


def test_machines_take_different_groups_and_wait_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    mine, theirs = trials(GRID), trials(GRID)
    with theirs:
        theirs.study.set_user_attr(f"alive {theirs.machine}", 1.0)
        groups = theirs.groups()
        taken = next(groups)
        assert {trial.params["batch_size"] for trial in taken} == {16}
        own = mine.groups()
        assert {trial.params["batch_size"] for trial in next(own)} == {64}
        for frozen in mine.study.get_trials(deepcopy=False):
            if frozen.user_attrs["machine"] == mine.machine:
                mine.study.tell(frozen.number, 0.5)
        assert mine._others() == {theirs.machine}
        for trial in taken:
            theirs.finish(trial, 0.25, history={})
        assert list(own) == list(groups) == []
    assert len(complete(mine)) == 4


@pytest.mark.parametrize(("plan", "first", "second"), [(GRID, 2, 2), (TPE, 16, 2)])
def test_machines_that_make_trials_at_the_same_moment_make_none_too_many(
    plan: Plan, first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = trials(plan), trials(plan)
    live, outdated = theirs.live, [theirs.live()]
    taken = next(mine.groups())
    monkeypatch.setattr(theirs, "live", lambda *states: outdated.pop() if outdated else live(*states))
    rest = next(theirs.groups())
    assert (len(taken), len(rest)) == (first, second)
    assert outdated == []
    for machine, group in ((mine, taken), (theirs, rest)):
        for trial in group:
            machine.finish(trial, 0.5, history={})
    finish(mine)
    assert len(complete(mine)) == plan.size


def test_what_a_silent_machine_ran_is_taken_over_and_does_not_count_when_it_comes_back() -> None:
    theirs, mine = trials(GRID), trials(GRID, silence=0.0)
    late = next(theirs.groups())
    assert len(finish(mine)) == 4
    theirs.finish(late[0], 0.0, history={"late": True})
    assert mine.study.best_value == 0.5
    assert len(complete(mine)) == 4
    assert "late" not in {name for trial in mine.study.trials for name in trial.user_attrs.get("history", {})}


def test_a_machine_that_gives_signs_of_life_is_waited_for() -> None:
    theirs, mine = trials(GRID), trials(GRID, silence=1.0)
    next(theirs.groups())
    now = time.monotonic()
    for beat in range(3):
        theirs.study.set_user_attr(f"alive {theirs.machine}", beat)
        assert mine._others() == {theirs.machine}
        mine.seen = {number: (sign, since - 0.9) for number, (sign, since) in mine.seen.items()}
        assert mine._others() == {theirs.machine}
    assert time.monotonic() - now < 60
    mine.seen = {number: (sign, since - 1.0) for number, (sign, since) in mine.seen.items()}
    mine._others()
    assert mine._others() == set()  # it has been silent since


@pytest.mark.slow
@pytest.mark.parametrize("plan", [GRID, TPE])
def test_a_machine_killed_between_two_transactions_loses_no_trial(plan: Plan) -> None:
    for kill in range(12):
        theirs, count = trials(plan, silence=0.0), iter(range(kill))

        with pytest.MonkeyPatch.context() as patch:
            for of, name in ((theirs.storage, "create_new_trial"), (theirs.study, "ask"), (theirs.study, "tell")):
                call = getattr(of, name)

                def deadly(*args: Any, call: Any = call, count: Any = count, **options: Any) -> Any:
                    if next(count, None) is None:
                        raise KeyboardInterrupt
                    return call(*args, **options)

                patch.setattr(of, name, deadly)
            with suppress(KeyboardInterrupt):  # or done before that
                for group in theirs.groups():
                    for trial in group:
                        theirs.finish(trial, 0.5, history={})
    finish(mine := trials(plan, silence=0.0))
    assert len(complete(mine)) == plan.size


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///no/folder/x.db", r"storage=sqlite:///no/folder/x\.db: cannot be used"),
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            r"storage=postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/x: cannot",
        ),
        ("nonsense://me:secret@host/x", r"storage=nonsense://me:\*\*\*@host/x: its driver is missing"),
        ("me:secret@host", "storage: not a URL such as postgresql://user@host/database"),
        ("postgresql://me:secret@host:port/x", "storage: not a URL such as"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_the_password(url: str, message: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match=message) as error:
        open_storage(url, Path())
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r'driver is missing; for PostgreSQL pip install -e "\.\[database\]"'):
        open_storage("postgresql://me@127.0.0.1:1/x", Path())


def test_no_form_of_a_password_is_shown() -> None:
    for url in (
        "postgresql://me:secret@host/x",
        "postgresql+psycopg://me:secr%40et@host/x",
        "postgresql://host/x?user=me&password=secret",
    ):
        assert "secr" not in shown(url)


def test_a_database_that_is_lost_is_an_error_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Sweep, *args: Any) -> None:
        raise optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(Sweep, "search", lost)
    with pytest.raises(StorageError, match=r"storage: lost it .* start again to go on"):
        sweep.run({"lr": [0.1]}, source="synthetic", storage=SQLITE, quick=True)


def test_two_processes_that_share_a_folder_and_a_database_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", f"--storage={SQLITE}"])
    space: Any = {"lr": [0.1, 0.3]}
    with locked(Path(), None):  # as if the other one wrote its page elsewhere
        first = sweep.run(space, source="synthetic", storage=SQLITE, quick=True)
    assert first == sweep.run(space, source="synthetic", storage=SQLITE, quick=True)


# On a real server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A cluster of PostgreSQL for this module alone, on 127.0.0.1; its URL without a database."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")]
    if not found[0]:
        pytest.skip("no initdb: apt-get install postgresql")
    programs = Path(found[0]).parent
    pytest.importorskip("psycopg")
    root = Path(tempfile.mkdtemp())
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    try:
        if user:  # a server does not run as root
            shutil.chown(root, "postgres")
    except (LookupError, OSError):
        pytest.skip("there is no user postgres here, as in a namespace of one's own")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs / program, "-D", root / "data", *arguments],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            **user,
        )

    run("initdb", "-U", "me", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-w", "-l", str(root / "log"), "-o", options, "start")
    yield f"postgresql://me:secret@127.0.0.1:{port}"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(root)


@pytest.fixture
def database(server: str) -> Callable[[str], str]:
    """Make an empty database and return its URL."""
    import psycopg

    def make(name: str) -> str:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{server}/{name}"

    return make


def machine(url: str, plan: Plan, at: float, silence: float) -> None:
    """A machine: it opens the database at a moment, runs trials, and tests the winner."""
    sweep_trials.BEAT = 0.2
    data = images()
    time.sleep(max(0.0, at - time.time()))
    found = Sweep(plan, Path("shared"), partial(sweep.train, plan, data, "val"), url, silence)
    with pool(SoftmaxRegression, 1) as threads:
        found.search(threads)
    found.test(partial(sweep.train, plan, data, "test"))


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_machines_that_start_at_once_on_an_empty_database_work_ten_times_of_ten(
    database: Callable[[str], str],
) -> None:
    for i in range(10):
        url = database(f"start{i}")
        arguments = (url, GRID, time.time() + 1.5, 60.0)
        machines = [CONTEXT.Process(target=machine, args=arguments) for _ in range(2)]
        for process in machines:
            process.start()
        for process in machines:
            process.join()
        assert [process.exitcode for process in machines] == [0, 0]
        assert len(complete(trials(GRID, url=url))) == 4
        tests = optuna.load_study(study_name="shared: test", storage=open_storage(url, Path())).trials
        assert [trial.state for trial in tests if not is_lost(trial)] == [TrialState.COMPLETE]


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_of_two_machines_one_killed_the_other_finishes_alone(database: Callable[[str], str]) -> None:
    url = database("killed")
    plan = Plan({"batch_size": [8, 16, 32, 64], "lr": [0.1, 0.5], "epochs": [60]}, "grid", 1, [0], 0, "tiny")
    machines = [CONTEXT.Process(target=machine, args=(url, plan, 0.0, 2.0)) for _ in range(2)]
    for process in machines:
        process.start()
    study = trials(plan, url=url).study
    running: set[str | None] = set()
    deadline = time.monotonic() + 60
    while len(running) < 2:
        assert time.monotonic() < deadline
        running = {t.user_attrs.get("machine") for t in study.get_trials(states=(TrialState.RUNNING,))}
        time.sleep(0.01)
    machines[0].kill()
    for process in machines:
        process.join()
    assert [process.exitcode for process in machines] == [-9, 0]
    assert len(complete(trials(plan, url=url))) == 8
    ran = Counter(trial.user_attrs["machine"] for trial in study.trials if trial.state == TrialState.COMPLETE)
    assert any(is_lost(trial) for trial in study.trials)
    assert max(ran.values()) >= 6  # the survivor's


@pytest.mark.postgres
def test_the_page_of_a_sweep_on_a_database_names_the_machine_and_no_password(
    database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = database("page").replace("secret", "sec'ret")
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", "--storage", url, "--quick"])
    page = sweep.run({"lr": [0.1, 0.3]}, source="synthetic", storage=url, quick=True)
    assert "postgresql+psycopg://me:***@127.0.0.1" in page.read_text()
    assert f"{socket.gethostname()}-" in page.read_text()
    for path in Path("logs").rglob("*"):
        assert path.is_dir() or not re.search(b"sec.{1,9}ret", path.read_bytes())
    assert not re.search("sec.{1,9}ret", "".join(capsys.readouterr()))
