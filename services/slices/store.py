"""What the slices service has acknowledged, on disk before it was: one transaction for all that came in together.

A state is written as what is different from the one before. What is read is checked: a file that is damaged, or holds
what could never have been promised, is refused, because a service that began with less would promise twice.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import Column, Connection, LargeBinary, MetaData, Table, Text, bindparam, delete, select, update
from sqlalchemy.types import TypeEngine

from orbitmesh.errors import IntegrityError, InternalError, InvalidInputError, TransportError
from orbitmesh.v1 import slices_pb2
from services.runtime.store import Database, Layout, Location
from services.runtime.store.layout import NUMBER
from services.runtime.store.trouble import damaged
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
from services.slices.persistent import Order
from services.slices.persistent import Table as Table_
from services.slices.traffic import Totals
from services.slices.values import Admission, Book, Slice

MARK_BYTES = 8
"""How long the random part of etags is."""
WRITE = "write"
"""The fact that names the last transaction."""
SETTLE_S = 30.0
"""How long it is asked whether a transaction took place whose answer was lost, in seconds."""
SETTLE_PAUSE_S = 0.3
"""How often, in seconds."""

TABLES = MetaData()
FACTS = Table("facts", TABLES, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))


def _named(name: str, record: type[TypeEngine[Any]]) -> Table:
    return Table(name, TABLES, Column("name", Text, primary_key=True), Column("record", record, nullable=False))


def _numbered(name: str, key: str, *more: Column[Any]) -> Table:
    """Rows in the order in which they came."""
    number = Column("number", NUMBER, primary_key=True, autoincrement=True)
    return Table(name, TABLES, number, Column(key, Text, nullable=False, unique=True), *more)


SLICES = _named("slices", LargeBinary)
NODES = _named("nodes", LargeBinary)
TRAFFIC = _named("traffic", LargeBinary)
ADMISSIONS = Table(
    "admissions", TABLES, Column("key", Text, primary_key=True), Column("record", Text, nullable=False)
)
ENDED = _numbered("ended", "key", Column("record", Text, nullable=False))
REQUESTS = _numbered(
    "requests", "key", Column("digest", Text, nullable=False), Column("answer", LargeBinary, nullable=False)
)
REPORTERS = _numbered("reporters", "name", Column("record", Text, nullable=False))


def _number_reporters(connection: Connection) -> None:
    """To version 2: reporters are read in the order in which they came, which was SQLite's own."""
    connection.exec_driver_sql("ALTER TABLE reporters RENAME TO reporters_1")
    REPORTERS.create(connection)
    connection.exec_driver_sql(
        "INSERT INTO reporters (name, record) SELECT name, record FROM reporters_1 ORDER BY rowid"
    )
    connection.exec_driver_sql("DROP TABLE reporters_1")


def _first_facts(connection: Connection) -> None:
    facts = {"mark": secrets.token_hex(MARK_BYTES), "version": "0"}
    connection.execute(FACTS.insert(), [{"name": name, "value": value} for name, value in facts.items()])


LAYOUT = Layout("slices", TABLES, (_number_reporters,), _first_facts)
_UNREADABLE = (DecodeError, InvalidInputError, ValueError, KeyError, TypeError)



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
    """The state of one slices service, for this process alone. Blocks; safe from any thread.

    Args:
        location: Where.

    Raises:
        InvalidInputError: It cannot be opened, another process has it open, or a newer version wrote it.
        IntegrityError: It is damaged.
        TransportError: PostgreSQL cannot be reached.
    """

    def __init__(self, location: Location) -> None:
        # Two services on one state would promise the same capacity twice; over PostgreSQL a lease sees to that.
        self.database = Database(location, LAYOUT, exclusive=True)
        self._unsure = ""
        keyed = ((FACTS, "name"), (SLICES, "name"), (NODES, "name"), (TRAFFIC, "name"), (REPORTERS, "name"),
                 (ADMISSIONS, "key"), (ENDED, "key"), (REQUESTS, "key"))  # fmt: skip
        self._put = {table.name: self.database.upsert(table, key) for table, key in keyed}
        self._drop = {table.name: delete(table).where(table.c[key] == bindparam("gone")) for table, key in keyed}

    def load(self) -> Whole:
        """The state.

        Raises:
            IntegrityError: It makes no sense.
        """
        with self.database.reading() as connection:
            try:
                book = self._book(connection)
                traffic = {
                    name: traffic_from(slices_pb2.SliceTraffic.FromString(record))
                    for name, record in connection.execute(TRAFFIC.select())
                }
                told = connection.execute(select(REPORTERS.c.name, REPORTERS.c.record).order_by(REPORTERS.c.number))
                reporters = {
                    name: tuple((bytes.fromhex(process), int(number)) for process, number in json.loads(record))
                    for name, record in told
                }
            except _UNREADABLE as error:
                raise self._damaged(f"{type(error).__name__}: {error}") from error
        return Whole(book, Totals(MappingProxyType(traffic), MappingProxyType(reporters)))

    def remembered(self) -> tuple[list[Remembered], list[Admission]]:
        """The requests that were carried out, and the work that has ended, both in order.

        Raises:
            IntegrityError: It makes no sense.
        """
        with self.database.reading() as connection:
            asked = select(REQUESTS.c.key, REQUESTS.c.digest, REQUESTS.c.answer).order_by(REQUESTS.c.number)
            requests = [Remembered(*row) for row in connection.execute(asked)]
            gone = connection.execute(select(ENDED.c.key, ENDED.c.record).order_by(ENDED.c.number))
            try:
                return requests, [_admission(key, record) for key, record in gone]
            except _UNREADABLE as error:
                raise self._damaged(f"{type(error).__name__}: {error}") from error

    def _book(self, connection: Connection) -> Book:
        facts: dict[str, str] = {fact.name: fact.value for fact in connection.execute(FACTS.select())}
        nodes = {
            name: node_from(slices_pb2.SliceNode.FromString(record))
            for name, record in connection.execute(NODES.select())
        }
        slices = {
            name: Slice(promise_from(slices_pb2.Slice.FromString(record)))
            for name, record in connection.execute(SLICES.select())
        }
        work: dict[str, list[Admission]] = {}
        for key, record in connection.execute(ADMISSIONS.select()):
            each = _admission(key, record)
            work.setdefault(each.slice, []).append(each)
        where: Table_[str] = Table_()
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
            TransportError: PostgreSQL cannot be reached, or another process leads.
            InternalError: What was refused before for that was written all the same: this process must start anew.
        """
        if self._unsure:
            # What was undone in memory may be written: nothing may be built on either.
            self._settle(self._unsure)
        mark = secrets.token_hex(MARK_BYTES)
        try:
            with self.database.transaction() as connection:
                self._write(connection, changed, memory, mark)
        except TransportError as error:
            # The connection may have been lost when the transaction was over already.
            if not self.database.location.shared or error.reason == "NOT_LEADER" or not self._is_written(mark):
                raise

    def _is_written(self, mark: str) -> bool:
        """Whether the transaction of a mark took place; waits until the database can be asked.

        Raises:
            TransportError: It cannot: then nothing is written until it is known.
        """
        self._unsure = mark
        give_up_s = time.monotonic() + SETTLE_S
        while True:
            try:
                with self.database.reading() as connection:
                    found = connection.execute(select(FACTS.c.value).where(FACTS.c.name == WRITE)).scalar_one_or_none()
            except TransportError:
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(SETTLE_PAUSE_S)
            else:
                self._unsure = ""
                return found == mark

    def _settle(self, mark: str) -> None:
        if self._is_written(mark):
            self._unsure = mark
            raise InternalError(
                f"{self.database.where} has changes that were refused when it could not be reached: this process must "
                "start anew, to read what is there"
            )

    def _write(self, connection: Connection, changed: Changes, memory: Memory, mark: str) -> None:
        connection.execute(update(FACTS).where(FACTS.c.name == "version").values(value=str(changed.version)))
        connection.execute(self._put[FACTS.name], {"name": WRITE, "value": mark})
        for table, keys in (
            (SLICES, changed.slices_gone),
            (NODES, changed.nodes_gone),
            (TRAFFIC, changed.traffic_gone),
            (REPORTERS, changed.reporters_gone),
            (ADMISSIONS, changed.admissions_gone),
            # What comes again goes to the end.
            (REQUESTS, [*memory.requests_forgotten, *(each.key for each in memory.requests)]),
            (ENDED, [*memory.ended_forgotten, *(each.key for each in memory.ended)]),
        ):
            if keys:
                connection.execute(self._drop[table.name], [{"gone": key} for key in keys])
        for table, rows in self._fresh(changed, memory):
            if rows:
                connection.execute(self._put[table.name], rows)

    @staticmethod
    def _fresh(changed: Changes, memory: Memory) -> list[tuple[Table, list[dict[str, Any]]]]:
        return [
            (SLICES, [_slice_row(each) for each in changed.promises]),
            (NODES, [
                {"name": name, "record": node_message(name, each).SerializeToString()}
                for name, each in changed.nodes.items()
            ]),
            (ADMISSIONS, [_row(each) for each in changed.admissions]),
            (TRAFFIC, [
                {"name": name, "record": traffic_message(each).SerializeToString()}
                for name, each in changed.traffic.items()
            ]),
            (REPORTERS, [{"name": name, "record": _numbers(each)} for name, each in changed.reporters.items()]),
            (ENDED, [_row(each) for each in memory.ended]),
            (REQUESTS, [
                {"key": each.key, "digest": each.digest, "answer": each.answer} for each in memory.requests
            ]),
        ]  # fmt: skip

    def close(self) -> None:
        """Closes it."""
        self.database.close()

    def _damaged(self, why: str) -> IntegrityError:
        return damaged(self.database.where, why)


def _slice_row(promise: Any) -> dict[str, Any]:
    return {"name": promise.name, "record": promise_message(promise, str(promise.version)).SerializeToString()}


def _numbers(known: Sequence[tuple[bytes, int]]) -> str:
    return json.dumps([[process.hex(), number] for process, number in known])


def _row(each: Admission) -> dict[str, Any]:
    record = json.dumps([each.slice, each.nodes, each.amounts, each.until_ns, each.digest])
    return {"key": each.key, "record": record}


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
