"""What a database says, in our errors: what is wrong, and what to do about it. No statement and no value is quoted."""

from __future__ import annotations

import sqlite3

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from orbitmesh.errors import CapacityError, IntegrityError, InternalError, InvalidInputError, MeshError, TransportError

_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SETUP = ("password", "authentication", "does not exist", "pg_hba", "certificate", "sslmode", "root.crt")
"""What PostgreSQL, or libpq, says of a connection that will not come about however often it is tried."""


def as_mesh_error(error: SQLAlchemyError, where: str, *, opening: bool = False) -> MeshError:
    """The error of our tree.

    Args:
        error: What SQLAlchemy raised.
        where: The place, without secrets.
        opening: Whether the service is starting: what cannot be opened then is a wrong setting.
    """
    if isinstance(error, PoolTimeoutError):
        return CapacityError(f"every connection to {where} is in use; try again later")
    origin = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(origin, sqlite3.Error):
        return _of_sqlite(origin, where, opening)
    if isinstance(origin, psycopg.Error):
        return _of_postgres(origin, where)
    return InternalError(f"{where} could not be used: {type(error).__name__}")


def _of_sqlite(error: sqlite3.Error, where: str, opening: bool) -> MeshError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _BUSY:
        return InvalidInputError(
            f"{where} is in use by another process: end that one, or give another --state",
            reason="FAILED_PRECONDITION",
        )
    if opening and code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return InvalidInputError(
            f"{where} cannot be opened to write ({error}): let this user write there, or give another --state"
        )
    if code in _DISK:
        return CapacityError(f"{where} cannot be written ({error}), so nothing was changed: see to its disk")
    return damaged(where, str(error))


def damaged(where: str, why: str) -> IntegrityError:
    """The error for a store whose content makes no sense."""
    return IntegrityError(
        f"{where} cannot be used ({why}): what was acknowledged would not be known. Restore it from a backup, or move "
        "it away to begin without it"
    )


def _of_postgres(error: psycopg.Error, where: str) -> MeshError:
    # The detail of a message of the server's quotes the row.
    said = " ".join((error.diag.message_primary or str(error)).split())[:300]
    state = error.sqlstate or ""
    if state in ("53100", "53200", "54000"):
        return CapacityError(f"{where} takes nothing ({said}), so nothing was changed: see to the server's disk")
    if state == "42501":
        return InvalidInputError(f"{where} does not let this user do it ({said}): grant it CREATE on the database")
    if state.startswith(("28", "3D")) or (not state and any(sign in said for sign in _SETUP)):
        return InvalidInputError(
            f"{where} refuses the connection ({said}): see to user, password and database in --store or --store-file",
            reason="FAILED_PRECONDITION",
        )
    if state.startswith(("22", "23", "42")):
        return damaged(where, said)
    return TransportError(
        f"{where} cannot be reached, or ended the transaction ({said}): see that PostgreSQL runs there; then try again"
    )
