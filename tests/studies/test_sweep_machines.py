"""Machines that share a database share the trials, and repeat those of one that is killed."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BruteForceSampler, RandomSampler
from optuna.trial import TrialState

from softmax_regression.data.module import FashionMNISTDataModule
from softmax_regression.errors import InputError, StorageError
from softmax_regression.files import locked
from softmax_regression.studies.sweep import study as sweep
from softmax_regression.studies.sweep.search import Search
from softmax_regression.studies.sweep.space import Params, Plan
from softmax_regression.studies.sweep.storage import open_storage, without_password
from softmax_regression.studies.sweep.training import StackTraining

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["softmax_regression.commands.train", "softmax_regression.studies.sweep.study"])
GRID = Plan({"batch_size": [16, 64], "lr": [0.1, 0.5], "epochs": [1]}, seeds=[0, 1])
RANDOM = Plan({"batch_size": [16, 64], "lr": [0.1, 0.5], "epochs": [1]}, seeds=[0], sampler=RandomSampler(), trials=5)
SQLITE = "sqlite:///trials.db"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(plan: Plan, url: str = SQLITE) -> Search:
    """What one machine sees of a search."""
    data = FashionMNISTDataModule(1, val_size=100, source="synthetic", synthetic_size=300)
    return Search(plan, Path("shared"), StackTraining(plan, {}, data).train, url)


def histories(search: Search) -> dict[str, dict[str, list[list[float]]]]:
    found = {}
    for result in search.results():
        found[str(result)] = {name: values.tolist() for name, values in result.history.items()}
    return found


@pytest.mark.slow
def test_what_a_killed_machine_had_begun_is_made_by_the_others() -> None:
    killed, other = opened(GRID), opened(GRID)
    trial = killed.study.ask()  # and no more is heard of it
    assert killed.plan.suggest(trial)["batch_size"] in (16, 64)
    other.run()
    assert len(other.finished) == 4
    assert len(histories(other)) == 4
    killed.close()
    other.close()


@pytest.mark.slow
def test_of_a_trial_that_two_machines_have_run_the_first_result_counts() -> None:
    late, other = opened(GRID), opened(GRID)
    trial = late.study.ask()
    late.plan.suggest(trial)
    other.run()
    expected = histories(other)
    trial.set_user_attr("models", [{"params": {}, "seed": 0, "scores": {"val/loss": [0.0]}}])
    late.study.sampler = RandomSampler()  # GridSampler ends studies in `optimize` alone
    late.study.tell(trial, 0.0)
    assert len(other.study.trials) == 5
    assert len(other.finished) == 4
    assert histories(other) == expected
    late.close()
    other.close()


def test_trials_beyond_the_number_that_was_asked_for_do_not_count() -> None:
    search = opened(RANDOM)
    search.run()
    expected = histories(search)
    search.study.optimize(lambda trial: trial.suggest_categorical("lr", [0.1, 0.5]), n_trials=2)  # on slower machines
    assert len(search.study.trials) == 7
    assert len(search.finished) == 5
    assert histories(search) == expected
    search.close()


@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
def test_a_sampler_that_has_tried_everything_ends_the_search() -> None:
    search = opened(replace(RANDOM, sampler=BruteForceSampler()))
    search.run()
    assert len(search.finished) == 4
    search.close()


def test_a_study_that_is_no_sweep_is_left_alone() -> None:
    study = optuna.create_study(storage=SQLITE, study_name="shared")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(InputError, match="shared: the study of this name is not a sweep's; choose another --name"):
        opened(GRID)
    assert "plan" not in optuna.load_study(study_name="shared", storage=SQLITE).user_attrs


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
        ("sqlite://", "storage=sqlite://: is in memory; name a file"),
        ("sqlite:///:memory:", "storage=sqlite:///:memory:: is in memory; name a file"),
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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/x",
        "postgresql+psycopg://me:secr%40et@host/x",
        "postgresql://host/x?user=me&password=secret",
    ],
)
def test_no_form_of_a_password_is_shown(url: str) -> None:
    assert "secr" not in without_password(url)


def test_a_database_that_is_lost_is_an_error_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any, **options: Any) -> None:
        raise optuna.exceptions.StorageInternalError("gone")

    search = opened(GRID)
    monkeypatch.setattr(search.study, "optimize", lost)
    with pytest.raises(StorageError, match=r"storage: lost it .* start again to continue"):
        search.run()
    search.study.set_user_attr("test", {})
    monkeypatch.setattr(search.storage, "get_study_user_attrs", lost)
    with pytest.raises(StorageError, match=r"storage: lost it .* start again to continue"):
        search.test(lambda params, seed: pytest.fail("tested"))
    search.close()


@pytest.mark.slow
def test_two_processes_that_share_a_folder_and_a_database_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", f"--storage={SQLITE}"])
    with locked(Path(), None):  # as if the other one wrote its page elsewhere
        first = sweep.run({"lr": [0.1, 0.3]}, source="synthetic", storage=SQLITE, quick=True)
    assert first == sweep.run({"lr": [0.1, 0.3]}, source="synthetic", storage=SQLITE, quick=True)


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
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # a server does not run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        try:
            shutil.chown(root, "postgres")
        except (LookupError, OSError):
            pytest.skip("there is no user postgres here, as in a namespace of one's own")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(root / "data"), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **user)

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


def machine(url: str, plan: Plan, ready: Any = None) -> None:
    """A machine: it opens the database when others are ready, too, runs trials, and tests the winner."""
    if ready:
        ready.wait(60)
    search = opened(plan, url)
    search.run()
    search.test(lambda params, seed: {"test/loss": float(os.getpid())})


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_machines_that_start_at_once_on_an_empty_database_work_ten_times_of_ten(
    database: Callable[[str], str],
) -> None:
    for i in range(10):
        url = database(f"start{i}")
        ready = CONTEXT.Barrier(2)
        machines = []
        for _ in range(2):
            process = CONTEXT.Process(target=machine, args=(url, GRID, ready))
            process.start()
            machines.append(process)
        for process in machines:
            process.join()
        assert [process.exitcode for process in machines] == [0, 0]
        search = opened(GRID, url)
        assert len(search.finished) == 4
        assert len(histories(search)) == 4
        tested = search.test(lambda params, seed: pytest.fail("tested again"))
        assert len(set(tested["test/loss"])) == 1  # by one machine
        search.close()


def machine_that_tests(url: str, folder: Path, name: str, seconds: float) -> None:
    """A machine that tests the winner of a finished search, which takes it some time."""

    def test(params: Params, seed: int) -> dict[str, float]:
        (folder / name).touch()
        time.sleep(seconds)
        return {"test/loss": 0.5}

    search = opened(GRID, url)
    search.test(test)
    search.close()


@pytest.mark.postgres
@pytest.mark.slow
def test_the_winner_is_tested_by_one_machine_unless_that_one_is_killed(
    database: Callable[[str], str], tmp_path: Path
) -> None:
    url = database("winner")
    search = opened(GRID, url)
    search.run()
    first = CONTEXT.Process(target=machine_that_tests, args=(url, tmp_path, "first", 600.0), daemon=True)
    first.start()
    while not (tmp_path / "first").exists():
        time.sleep(0.01)
    second = CONTEXT.Process(target=machine_that_tests, args=(url, tmp_path, "second", 0.0))
    second.start()
    second.join(3)
    assert second.is_alive()  # it waits
    assert not (tmp_path / "second").exists()
    first.kill()
    second.join()
    assert second.exitcode == 0
    assert (tmp_path / "second").exists()
    third = CONTEXT.Process(target=machine_that_tests, args=(url, tmp_path, "third", 0.0))
    third.start()
    third.join()
    assert third.exitcode == 0
    assert not (tmp_path / "third").exists()
    search.close()


def machine_in_its_first_trial(url: str, begun: Path) -> None:
    """A machine that does not come to the end of a trial."""

    def train(*_: Any) -> Any:
        begun.touch()
        time.sleep(600)

    Search(GRID, Path("shared"), train, url).run()


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_two_machines_one_killed_the_other_finishes_alone(database: Callable[[str], str], tmp_path: Path) -> None:
    url = database("killed")
    killed = CONTEXT.Process(target=machine_in_its_first_trial, args=(url, tmp_path / "begun"), daemon=True)
    killed.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    other = CONTEXT.Process(target=machine, args=(url, GRID))
    other.start()
    killed.kill()
    other.join()
    assert other.exitcode == 0
    search = opened(GRID, url)
    assert len(search.finished) == 4
    assert len(histories(search)) == 4
    assert len(search.study.get_trials(states=(TrialState.RUNNING,))) == 1  # of the killed one
    search.close()


@pytest.mark.postgres
def test_the_page_of_a_sweep_on_a_database_names_the_machine_and_no_password(
    database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = database("page").replace("secret", "sec'ret")
    monkeypatch.setattr(sys, "argv", ["study.py", "sweep", "--storage", url, "--quick"])
    page = sweep.run({"lr": [0.1, 0.3]}, source="synthetic", storage=url, quick=True)
    assert "postgresql+psycopg://me:***@127.0.0.1" in page.read_text()
    assert f"<td>{socket.gethostname()}</td>" in page.read_text()
    assert "trials.db" not in page.read_text()
    for path in Path("studies").rglob("*"):
        assert path.is_dir() or not re.search(b"sec.{1,9}ret", path.read_bytes())
    assert not re.search("sec.{1,9}ret", "".join(capsys.readouterr()))
