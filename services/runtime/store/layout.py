"""The tables of a service, and how those of an earlier version become them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Connection, Double, Integer, MetaData, Table, Text, insert, inspect, text

from orbitmesh.errors import InvalidInputError

Step = Callable[[Connection], None]
"""Makes the tables of one version those of the next, in the transaction that it is given."""

NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""Of a primary key that counts up by itself: SQLite counts in INTEGER alone."""


@dataclass(frozen=True)
class Layout:
    """What one service keeps.

    A step may add tables, columns and indexes. It takes nothing away that the version before reads or writes: over
    PostgreSQL a standby of the new version makes the step while a leader of the old one still works.
    """

    name: str
    """Of the service; in PostgreSQL its tables are in the schema `orbitmesh_NAME`."""
    metadata: MetaData
    """The tables of the newest version."""
    steps: tuple[Step, ...] = ()
    """From version 1 to 2, from 2 to 3, and so on."""
    first: Step | None = None
    """Writes what is in new tables from the beginning."""

    @property
    def version(self) -> int:
        """The newest version."""
        return len(self.steps) + 1

    @property
    def schema(self) -> str:
        """In PostgreSQL."""
        return f"orbitmesh_{self.name}"


LEASES = Table(
    "leases",
    MetaData(),
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
)
"""Who may write, until when in seconds since 1970 by the database's clock, and how often that has changed."""
_VERSION = Table("layout", MetaData(), Column("version", Integer, nullable=False))


def bring_forward(connection: Connection, layout: Layout, where: str) -> None:
    """Makes the tables, or those of an earlier version the newest; one transaction, which the caller commits.

    Raises:
        InvalidInputError: A newer version wrote them; nothing was changed.
    """
    found = _read_version(connection, layout)
    if found > layout.version:
        raise InvalidInputError(
            f"{where} has format {found} of {layout.name}; this version reads 1 to {layout.version}: start the version "
            "that wrote it or a newer one, or give another place with --store or --state",
            reason="FAILED_PRECONDITION",
        )
    if found == 0:
        layout.metadata.create_all(connection)
        if layout.first is not None:
            layout.first(connection)
    for step in layout.steps[found - 1 :] if found else ():
        step(connection)
    LEASES.create(connection, checkfirst=True)
    if found != layout.version:
        _write_version(connection, layout.version)


def _read_version(connection: Connection, layout: Layout) -> int:
    if connection.dialect.name == "sqlite":
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    # Two processes that start on an empty database wait for each other here.
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": layout.schema})
    if not inspect(connection).has_schema(layout.schema):
        connection.exec_driver_sql(f"CREATE SCHEMA {layout.schema}")
    if not inspect(connection).has_table(_VERSION.name, schema=layout.schema):
        return 0
    return int(connection.execute(_VERSION.select()).scalar_one())


def _write_version(connection: Connection, version: int) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version={version:d}")
        return
    _VERSION.create(connection, checkfirst=True)
    connection.execute(_VERSION.delete())
    connection.execute(insert(_VERSION), {"version": version})
