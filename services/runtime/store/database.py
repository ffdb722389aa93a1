"""Transactions over SQLite or PostgreSQL: durable when they end, bounded in time, fenced where a lease must hold."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc, pool
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from orbitmesh.errors import InvalidInputError, TransportError
from services.runtime.store.layout import Layout, bring_forward
from services.runtime.store.location import Location
from services.runtime.store.trouble import as_mesh_error, damaged

CONNECT_S = 3
"""How long one attempt to connect to PostgreSQL may last, in seconds."""
STATEMENT_S = 10
"""How long one statement may last, waiting for locks included, in seconds."""
IDLE_IN_TRANSACTION_S = 2
"""How long a process may say nothing in the middle of a transaction, in seconds: one that was stopped there would keep
the lease's row from whoever is to lead."""
CONNECTIONS = 4
"""How many connections a process has to PostgreSQL at once, beside that of its lease."""
WAIT_FOR_CONNECTION_S = 10.0
"""How long a thread waits for one of them, in seconds."""
FILE_BUSY_S = 1.0
"""How long SQLite waits for another process that has the file, in seconds."""

Fence = Callable[[Connection], None]
"""Looks, within a transaction, whether this process may still write; raises where it may not."""


class Database:
    """The tables of one service. Blocks; safe from any thread.

    Args:
        location: Where.
        layout: Which tables; made, or brought forward, before the constructor returns.
        exclusive: Keep other processes out of a SQLite file for as long as this one has it open.

    Raises:
        InvalidInputError: The place cannot be opened as it was given, is in use, or a newer version wrote it.
        IntegrityError: It is damaged.
        TransportError: PostgreSQL cannot be reached.
        CapacityError: The disk is full.
    """

    def __init__(self, location: Location, layout: Layout, *, exclusive: bool = False) -> None:
        self.location = location
        self.where = location.shown
        self._schema = layout.schema
        self._exclusive = exclusive
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy = 0
        self._closed = False
        self._fence: Fence | None = None
        self._engine = self._make_engine(CONNECTIONS)
        try:
            with self._begun(self._engine, opening=True) as connection:
                bring_forward(connection, layout, self.where)
            if not location.shared:
                self._look_for_damage()
        except BaseException:
            self._engine.dispose()
            raise

    def fenced_by(self, fence: Fence) -> None:
        """Every `transaction` from now on begins with this look."""
        self._fence = fence

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All that is written on the connection, or nothing; durable once the block has ended.

        Raises:
            TransportError: PostgreSQL cannot be reached; or, as `NOT_LEADER`, another process leads.
            CapacityError: The disk is full.
            IntegrityError: What is there does not fit.
        """
        with self._begun(self._engine) as connection:
            if self._fence is not None:
                self._fence(connection)
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read from, one state of the database for all of the block.

        Raises:
            TransportError: PostgreSQL cannot be reached.
        """
        with self._begun(self._engine, reading=True) as connection:
            yield connection

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that can say what happens on a conflict."""
        return sqlite.insert(table) if self._engine.dialect.name == "sqlite" else postgresql.insert(table)

    def upsert(self, table: Table, key: str) -> Insert:
        """An INSERT that puts new values into the row of the same key where there is one: every column but those that
        count up by themselves."""
        statement = self.insert(table)
        fresh = {
            column.name: statement.excluded[column.name]
            for column in table.columns
            if column.name != key and column is not table.autoincrement_column
        }
        return statement.on_conflict_do_update(index_elements=[key], set_=fresh)

    def beside(self) -> Engine:
        """An engine with one connection of its own, for what may not wait behind others: the caller disposes of it."""
        return self._engine if self.location.file is not None else self._make_engine(1)

    @contextmanager
    def using(self, engine: Engine) -> Iterator[Connection]:
        """A transaction of an engine that `beside` made; not fenced."""
        with self._begun(engine) as connection:
            yield connection

    def close(self) -> None:
        """Closes it, once no other thread is at it; transactions after that are refused."""
        with self._lock:
            self._closed = True
            # Each of them ends by itself: every wait in it has a bound.
            self._idle.wait_for(lambda: self._busy == 0)
            self._engine.dispose()

    @contextmanager
    def _begun(self, engine: Engine, *, opening: bool = False, reading: bool = False) -> Iterator[Connection]:
        """A transaction; one at a time on a SQLite file, whose one connection all threads share."""
        with self._entered():
            try:
                with engine.connect() as connection:
                    if reading and self.location.shared:
                        connection = connection.execution_options(
                            isolation_level="REPEATABLE READ", postgresql_readonly=True
                        )
                    with connection.begin():
                        yield connection
            except exc.SQLAlchemyError as error:
                raise as_mesh_error(error, self.where, opening=opening) from error

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._lock:
            if not self.location.shared:
                self._idle.wait_for(lambda: self._busy == 0)
            if self._closed:
                raise TransportError(f"{self.where} is closed: this service is stopping", reason="DRAINING")
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._idle.notify_all()

    def _make_engine(self, connections: int) -> Engine:
        if self.location.file is not None:
            return _sqlite_engine(self.location.file, self._exclusive)
        url = self.location.url
        if url is None:
            raise InvalidInputError("a location is a file or a URL")
        settings = {
            "search_path": self._schema,
            "statement_timeout": STATEMENT_S * 1000,
            "lock_timeout": STATEMENT_S * 1000,
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S * 1000,
        }
        engine = create_engine(
            url,
            hide_parameters=True,  # values are records of others: they have no place in a message
            pool_size=connections,
            max_overflow=0,
            pool_timeout=WAIT_FOR_CONNECTION_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_S,
                "tcp_user_timeout": STATEMENT_S * 1000,
                "application_name": self._schema,
                "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            },
        )
        event.listen(engine, "connect", _insist_on_durability)
        return engine

    def _look_for_damage(self) -> None:
        with self._begun(self._engine, opening=True) as connection:
            verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise damaged(self.where, str(verdict))


def _sqlite_engine(path: Path, exclusive: bool) -> Engine:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"the directory {path.parent} cannot be made ({error.strerror}): let this user write there, or give "
            "another --state"
        ) from error

    def connect() -> sqlite3.Connection:
        # Transactions are begun by hand, below: of itself the module begins none before a SELECT or a CREATE.
        database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=FILE_BUSY_S)
        try:
            if exclusive:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute("PRAGMA foreign_keys=ON")
        except sqlite3.Error:
            database.close()
            raise
        return database

    engine = create_engine("sqlite://", creator=connect, poolclass=pool.StaticPool, hide_parameters=True)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _insist_on_durability(connection: Any, record: Any) -> None:
    """A server, or a user of it, may be set up to acknowledge before it has written."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
    connection.commit()
