"""Connections and transactions.

One writer at a time: `Database.write` takes a process-wide lock and begins immediately, so a write
transaction never fails half-way because a reader turned writer. Readers run beside it (WAL).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc, select
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.contracts.errors import (
    BadInputError,
    EdgekitError,
    ResourceError,
    UnavailableError,
    translate_os_errors,
)
from edgekit_fleet.store.schema import SCHEMA_VERSION, metadata, schema_version

BUSY_TIMEOUT_MS = 10_000  # another process (a backup, a shell) may hold the lock for a moment
DATABASE_FILE = "manager.sqlite"


def _tune_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves (see _begin)
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a committed batch is acknowledged to the device, which then forgets it.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    writing = connection.get_execution_options().get("edgekit_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _translate(error: exc.SQLAlchemyError, what: str) -> EdgekitError:
    text = str(getattr(error, "orig", None) or error).splitlines()[0]
    if "disk is full" in text or "readonly" in text or "disk I/O" in text:
        return ResourceError(f"{what}: {text}", hint="free space in the manager's data folder")
    if "not a database" in text or "malformed" in text:
        return BadInputError(
            f"{what}: {text}", hint="restore it from a backup, or start with another --data-dir"
        )
    return UnavailableError(f"{what}: {text}", hint="is another program holding the database?")


class Database:
    """The manager's database; use `Database.open`."""

    def __init__(self, engine: Engine, what: str) -> None:
        self._engine = engine
        self._what = what
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Database:
        """Open (or create) the SQLite database in ``folder``.

        Raises:
            BadInputError: not a database, or written by a newer edgekit.
            ResourceError: disk full or read-only.
        """
        with translate_os_errors("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / DATABASE_FILE
        engine = create_engine(f"sqlite+pysqlite:///{path}")
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin)
        database = cls(engine, f"database {path}")
        try:
            database.migrate()
        except BaseException:
            engine.dispose()
            raise
        return database

    def migrate(self) -> None:
        """Create what is missing and check the version.

        Raises:
            BadInputError: the database was written by a newer edgekit.
        """
        with self.write() as connection:
            metadata.create_all(connection)
            found = connection.execute(select(schema_version.c.version)).scalar()
            if found is None:
                connection.execute(schema_version.insert().values(id=1, version=SCHEMA_VERSION))
            elif found < SCHEMA_VERSION:  # so far tables were added, and `create_all` made them
                connection.execute(schema_version.update().values(version=SCHEMA_VERSION))
            elif found > SCHEMA_VERSION:
                raise BadInputError(
                    f"{self._what}: schema version {found} is newer than this edgekit knows "
                    f"({SCHEMA_VERSION})",
                    hint="upgrade edgekit, or start with another --data-dir",
                )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: commits when the block ends, rolls back when it raises.

        Raises:
            ResourceError: disk full. UnavailableError: locked. BadInputError: damaged.
        """
        try:
            with self._lock, self._engine.connect() as connection:
                writer = connection.execution_options(edgekit_write=True)
                with writer.begin():
                    yield writer
        except (exc.OperationalError, exc.DatabaseError) as error:
            if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError):
                raise
            raise _translate(error, self._what) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read transaction: one consistent snapshot.

        Raises:
            ResourceError, UnavailableError, BadInputError: as `write`.
        """
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except (exc.OperationalError, exc.DatabaseError) as error:
            if isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError):
                raise
            raise _translate(error, self._what) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str],
    update: Sequence[str] = (),
) -> int:
    """Insert ``rows``; where ``keys`` exist already, set ``update`` (or leave the row as it is).

    Returns:
        How many rows were inserted or changed.
    """
    changed = 0
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for row in rows:
        statement = insert(table).values(**row)
        if update:
            values = {name: statement.excluded[name] for name in update}
            statement = statement.on_conflict_do_update(index_elements=keys, set_=values)
        else:
            statement = statement.on_conflict_do_nothing(index_elements=keys)
        changed += connection.execute(statement).rowcount
    return changed
