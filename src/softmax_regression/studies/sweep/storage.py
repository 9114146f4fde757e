"""The database of a study: a file in the folder of the sweep, or on a server that several machines share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Engine, NullPool, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from softmax_regression.errors import InputError, StorageError, format_error


def open_storage(url: str | None, folder: Path) -> RDBStorage:
    """Open the database of a URL or, without one, a file in the folder.

    Raises:
        InputError: It cannot be opened; the message shows no password.
    """
    if url is None:
        return RDBStorage(f"sqlite:///{folder.resolve() / 'trials.db'}")
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError(f"storage={url}: is in memory; name a file, sqlite:///sweep.db, or leave --storage out")
    try:
        # Machines that start at the same time would all make the tables.
        with one_machine(create_engine(parsed, poolclass=NullPool), "tables"):
            return RDBStorage(parsed.render_as_string(hide_password=False), {"pool_pre_ping": True})
    except (ImportError, ArgumentError) as error:
        remedy = 'for PostgreSQL pip install -e ".[database]"'
        raise InputError(f"storage={without_password(url)}: its driver is missing; {remedy}") from error
    except (DBAPIError, StorageInternalError) as error:
        raise InputError(f"storage={without_password(url)}: cannot be used ({format_error(error)})") from error


@contextmanager
def one_machine(engine: Engine, name: str) -> Iterator[None]:
    """Let only one of the machines that share a PostgreSQL database run a block; a lost connection frees the lock."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))
        yield


@contextmanager
def lost_database_is_a_storage_error() -> Iterator[None]:
    """Raise a StorageError when a database does not answer any more."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(f"storage: lost it ({format_error(error)}); start again to continue") from error
    except (AssertionError, SystemExit) as error:  # Optuna's assertion, if it cannot write the end of a trial
        if not isinstance(error.__context__, StorageInternalError):
            raise
        raise StorageError(f"storage: lost it ({format_error(error.__context__)}); start again to continue") from error


@contextmanager
def trial_stays_unfinished() -> Iterator[None]:
    """End the search if the results of a trial cannot be stored: with an error, Optuna would count it as failed."""
    try:
        yield
    except StorageInternalError as error:
        raise SystemExit from error


def without_password(url: str) -> str:
    """Return a database's URL without its password."""
    return _parse(url).difference_update_query(["password"]).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    """Return the URL of a database; for PostgreSQL, the driver is psycopg unless the URL has another one."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # URL and error may contain a password, and are not shown
        raise InputError("storage: not a URL such as postgresql://user@host/database") from None
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    return parsed
