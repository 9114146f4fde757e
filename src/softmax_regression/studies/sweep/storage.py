"""The database of a study: a file in the folder of the sweep, or a server that several machines share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Engine, NullPool, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from softmax_regression.errors import InputError, StorageError, format_error


def open_storage(url: str | None, folder: Path) -> RDBStorage:
    """Open the database that machines share, or without a URL a file in the folder.

    Raises:
        InputError: It cannot be opened; the message shows no password.
    """
    if url is None:
        return RDBStorage(f"sqlite:///{folder.resolve() / 'trials.db'}")
    parsed = _parse(url)
    try:
        # Machines that start at once would all make the tables.
        with one_machine(create_engine(parsed, poolclass=NullPool), "tables"):
            return RDBStorage(parsed.render_as_string(hide_password=False), {"pool_pre_ping": True})
    except (ImportError, ArgumentError) as error:
        remedy = 'for PostgreSQL pip install -e ".[database]"'
        raise InputError(f"storage={without_password(url)}: its driver is missing; {remedy}") from error
    except (DBAPIError, StorageInternalError) as error:
        raise InputError(f"storage={without_password(url)}: cannot be used ({format_error(error)})") from error


@contextmanager
def one_machine(engine: Engine, name: str) -> Iterator[None]:
    """Let the machines that share a PostgreSQL database into a block one by one; the server ends a lost one's turn."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))
        yield


@contextmanager
def loss_is_a_storage_error() -> Iterator[None]:
    """Turn what Optuna and SQLAlchemy raise when a database does not answer any more into one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(f"storage: lost it ({format_error(error)}); start again to go on") from error


def without_password(url: str) -> str:
    """Return a database's URL without its password."""
    return _parse(url).difference_update_query(["password"]).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    """Return a database's URL; psycopg talks to PostgreSQL unless it says something else."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # it may hold a password, so that neither is shown
        raise InputError("storage: not a URL such as postgresql://user@host/database") from None
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    return parsed
