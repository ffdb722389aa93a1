"""What the slices service has acknowledged, on disk before it was: one transaction for all that came in together.

A state is written as what is different from the one before. What is read is checked: a file that is damaged, or holds
what could never have been promised, is refused, because a service that began with less would promise twice.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError

from orbitmesh.errors import CapacityError, IntegrityError, InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.slices.amounts import NOTHING, covers, plus
from services.slices.changes import Changes, Whole
from services.slices.messages import (
    node_from,
    node_message,
    promise_from,
    promise_message,
    traffic_from,
    traffic_message,
)
from services.slices.persistent import Order, Table
from services.slices.traffic import Totals
from services.slices.values import Admission, Book, Slice

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE slices (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE nodes (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE admissions (key TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE ended (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    answer BLOB NOT NULL
);
CREATE TABLE traffic (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE reporters (name TEXT PRIMARY KEY, record TEXT NOT NULL);
"""
_UNREADABLE = (sqlite3.DatabaseError, DecodeError, InvalidInputError, ValueError, KeyError, TypeError)
MARK_BYTES = 8
"""How long the random part of etags is."""


@dataclass(frozen=True)
class Remembered:
    """A request that was carried out, and what was answered."""

    key: str
    """Who asked, and its request_id."""
    digest: str
    """Of the request."""
    answer: bytes
    """The answer, serialised."""


@dataclass
class Memory:
    """What came in with some changes, beside the changes themselves."""

    requests: list[Remembered] = field(default_factory=list)
    """Requests that were carried out, in order."""
    requests_forgotten: list[str] = field(default_factory=list)
    """Keys of those that are not remembered any more."""
    ended: list[Admission] = field(default_factory=list)
    """Work that has ended, in order."""
    ended_forgotten: list[str] = field(default_factory=list)
    """Keys of that which is not remembered any more."""


class SliceStore:
    """The state of one slices service in SQLite (write-ahead log, every commit synced), for this process alone. Blocks;
    one thread at a time.

    Args:
        directory: Where its file is.

    Raises:
        InvalidInputError: Another process has it open, or another version wrote it.
        IntegrityError: It is damaged.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "slices.sqlite"
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=1.0)
        try:
            # Two services on one state would promise the same capacity twice.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._prepare()
        except sqlite3.OperationalError as error:
            self._db.close()
            if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise InvalidInputError(
                    f"{self._path} is in use by another process: end that one, or give another --state",
                    reason="FAILED_PRECONDITION",
                ) from None
            raise self._damaged(str(error)) from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._damaged(str(error)) from error
        except (InvalidInputError, IntegrityError):
            self._db.close()
            raise

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            self._db.execute("INSERT INTO facts VALUES ('mark', ?), ('version', '0')", (secrets.token_hex(MARK_BYTES),))
        elif version != SCHEMA_VERSION:
            raise InvalidInputError(
                f"{self._path} has format {version}; this version reads {SCHEMA_VERSION}: start the version that wrote "
                "it, or give another --state"
            )
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._damaged(str(verdict))

    def load(self) -> Whole:
        """The state.

        Raises:
            IntegrityError: It makes no sense.
        """
        try:
            book = self._book()
            traffic = {
                name: traffic_from(slices_pb2.SliceTraffic.FromString(record))
                for name, record in self._db.execute("SELECT name, record FROM traffic")
            }
            reporters = {
                name: tuple((bytes.fromhex(process), int(number)) for process, number in json.loads(record))
                for name, record in self._db.execute("SELECT name, record FROM reporters ORDER BY rowid")
            }
        except _UNREADABLE as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        return Whole(book, Totals(MappingProxyType(traffic), MappingProxyType(reporters)))

    def remembered(self) -> tuple[list[Remembered], list[Admission]]:
        """The requests that were carried out, and the work that has ended, both in order.

        Raises:
            IntegrityError: It makes no sense.
        """
        try:
            asked = self._db.execute("SELECT key, digest, answer FROM requests ORDER BY number")
            requests = [Remembered(*row) for row in asked]
            gone = self._db.execute("SELECT key, record FROM ended ORDER BY number")
            return requests, [_admission(key, record) for key, record in gone]
        except _UNREADABLE as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _book(self) -> Book:
        facts = dict(self._db.execute("SELECT name, value FROM facts").fetchall())
        nodes = {
            name: node_from(slices_pb2.SliceNode.FromString(record))
            for name, record in self._db.execute("SELECT name, record FROM nodes")
        }
        slices = {
            name: Slice(promise_from(slices_pb2.Slice.FromString(record)))
            for name, record in self._db.execute("SELECT name, record FROM slices")
        }
        work: dict[str, list[Admission]] = {}
        for key, record in self._db.execute("SELECT key, record FROM admissions"):
            each = _admission(key, record)
            work.setdefault(each.slice, []).append(each)
        where: Table[str] = Table()
        for name, admissions in work.items():
            if name not in slices:
                raise ValueError(f"work is admitted to {name!r}, and there is no such slice")
            slices[name] = _filled(slices[name], admissions)
            for each in admissions:
                where = where.put(each.key, name)
        return Book(facts["mark"], int(facts["version"]), MappingProxyType(nodes), MappingProxyType(slices), where)

    def save(self, changed: Changes, memory: Memory) -> None:
        """Writes changes down; durable on return, all or none.

        Raises:
            CapacityError: The disk takes nothing; nothing is changed on it.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._write(changed, memory)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise CapacityError(
                f"the state of the slices cannot be written ({error}), so nothing was changed: see to the disk of "
                f"{self._path.parent}"
            ) from error

    def _write(self, changed: Changes, memory: Memory) -> None:
        run = self._db.executemany
        self._db.execute("UPDATE facts SET value = ? WHERE name = 'version'", (str(changed.version),))
        for table, names in (
            ("slices", changed.slices_gone),
            ("nodes", changed.nodes_gone),
            ("traffic", changed.traffic_gone),
            ("reporters", changed.reporters_gone),
        ):
            run(f"DELETE FROM {table} WHERE name = ?", [(name,) for name in names])  # noqa: S608 - names of our own
        run("DELETE FROM admissions WHERE key = ?", [(key,) for key in changed.admissions_gone])
        run("DELETE FROM requests WHERE key = ?", [(key,) for key in memory.requests_forgotten])
        run("DELETE FROM ended WHERE key = ?", [(key,) for key in memory.ended_forgotten])
        rows: dict[str, list[tuple[Any, ...]]] = {
            "slices (name, record)": [_slice_row(each) for each in changed.promises],
            "nodes (name, record)": [
                (name, node_message(name, each).SerializeToString()) for name, each in changed.nodes.items()
            ],
            "admissions (key, record)": [_row(each) for each in changed.admissions],
            "traffic (name, record)": [
                (name, traffic_message(each).SerializeToString()) for name, each in changed.traffic.items()
            ],
            "reporters (name, record)": [(name, _numbers(each)) for name, each in changed.reporters.items()],
            "ended (key, record)": [_row(each) for each in memory.ended],
            "requests (key, digest, answer)": [(each.key, each.digest, each.answer) for each in memory.requests],
        }
        for table, fresh in rows.items():
            places = ", ".join("?" * (table.count(",") + 1))
            run(f"INSERT OR REPLACE INTO {table} VALUES ({places})", fresh)  # noqa: S608 - names of our own

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def _damaged(self, why: str) -> IntegrityError:
        return IntegrityError(
            f"{self._path} cannot be used ({why}): what was promised would not be known. Restore the file, or move it "
            "away to begin without slices"
        )


def _slice_row(promise: Any) -> tuple[str, bytes]:
    return promise.name, promise_message(promise, str(promise.version)).SerializeToString()


def _numbers(known: Sequence[tuple[bytes, int]]) -> str:
    return json.dumps([[process.hex(), number] for process, number in known])


def _row(each: Admission) -> tuple[str, str]:
    return each.key, json.dumps([each.slice, each.nodes, each.amounts, each.until_ns, each.digest])


def _admission(key: str, record: str) -> Admission:
    name, nodes, (cpu, gpu, memory, bandwidth), until_ns, digest = json.loads(record)
    return Admission(key, name, tuple(nodes), (cpu, gpu, memory, bandwidth), until_ns, digest)


def _filled(held: Slice, admissions: Sequence[Admission]) -> Slice:
    """The slice with its work.

    Raises:
        ValueError: It is more than the slice has.
    """
    table, order, used = held.admissions, Order(), dict(held.used)
    for each in admissions:
        table, order = table.put(each.key, each), order.add((each.until_ns, each.key))
        for node in each.nodes:
            used[node] = plus(used.get(node, NOTHING), each.amounts)
    for node, amounts in used.items():
        if node not in held.reserved or not covers(held.reserved[node].amounts, amounts):
            raise ValueError(f"more is admitted to {held.name!r} on {node} than it has there")
    return Slice(held.promise, table, order, MappingProxyType(used))
