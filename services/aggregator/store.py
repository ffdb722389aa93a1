"""Training runs on disk: what was asked, how far each is, and its weights. Durable on return of every call.

A run's weights after round N are the file `RUN/N.weights`, float32, little-endian, and what its strategy keeps are the
files `RUN/N.NAME.state`; the row of the run says which N counts. The files are on disk before the row says so, and the
row says so before the contributions of the round are removed: whenever the process ends, either the round is summed
again from the same contributions, with the same result, or it is over.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.sql.dml import Insert

from orbitmesh.durable import put_in_place, write_durably
from orbitmesh.errors import InvalidInputError
from services.aggregator.rounds import Round, from_json, to_json
from services.aggregator.strategies.base import State
from services.runtime.store import Database, Layout, Location
from services.runtime.store.layout import NUMBER

TABLES = MetaData()
RUNS = Table(
    "runs",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("weights_round", Integer, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("began_ns", BigInteger, nullable=False),
)


def _of_a_run() -> Column[str]:
    return Column("run", Text, ForeignKey("runs.name", ondelete="CASCADE"), primary_key=True)


ROUNDS = Table(
    "rounds",
    TABLES,
    _of_a_run(),
    Column("round", Integer, primary_key=True),
    Column("record", Text, nullable=False),
    Column("report", Text, nullable=False),
)
NOTES = Table(
    "notes", TABLES, _of_a_run(), Column("kind", Text, primary_key=True), Column("content", Text, nullable=False)
)
PLACES = Table(
    "places",
    TABLES,
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("request_id", Text, nullable=False, unique=True),
    Column("run", Text, nullable=False),
    Column("slice", Text, nullable=False),
    Column("holder", Text, nullable=False),
)
"""A place is no part of its run: it may outlive it, and is there before."""


def _number_places(connection: Connection) -> None:
    """To version 2: places are read in the order in which they were asked for, which was SQLite's own. The first files
    of version 1 had none."""
    had = inspect(connection).has_table(PLACES.name)
    if had:
        connection.exec_driver_sql("ALTER TABLE places RENAME TO places_1")
    PLACES.create(connection)
    if had:
        columns = "request_id, run, slice, holder"
        connection.exec_driver_sql(
            f"INSERT INTO places ({columns}) SELECT {columns} FROM places_1 ORDER BY rowid"  # noqa: S608 - our own names
        )
        connection.exec_driver_sql("DROP TABLE places_1")


LAYOUT = Layout("aggregator", TABLES, (_number_places,))
FILE = "aggregator.sqlite"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a run may be called: it is also the name of its directory."""
INITIAL = -1
"""The `weights_round` of a run that has no weights yet."""

Weights = npt.NDArray[np.float32]
StagedWeights: TypeAlias = "np.memmap[Any, np.dtype[np.float32]]"


@dataclass(frozen=True)
class RunRecord:
    """A run as it is written down."""

    name: str
    """Its name."""
    request_id: str
    """The request that began it; the same one again begins nothing."""
    spec: dict[str, Any]
    """What was asked."""
    state: str
    """running, paused, done, cancelled or failed."""
    why: str
    """What it waits for, or why it ended; empty while all is well."""
    weights_round: int
    """The round whose sum its weights hold; -1 before the first weights, 0 for those that it began with."""
    strategy: dict[str, int]
    """The counts of its strategy's state after that round; its vectors are in files."""
    began_ns: int = 0
    """When it was begun, in nanoseconds since 1970."""


@dataclass(frozen=True)
class Place:
    """A place in a slice that is held, or may be."""

    request_id: str
    """What it was asked for with."""
    run: str
    """The run that it is for, as it is called on the wire."""
    slice: str
    """The slice."""
    holder: str
    """For whom, by SPIFFE identifier."""


class RunStore:
    """Runs of one aggregator, and their files. Blocks; any thread.

    Args:
        directory: Where the files are.
        location: Where the rest is; a SQLite file in the directory where left out.

    Raises:
        MeshError: It cannot be opened.
    """

    def __init__(self, directory: Path, location: Location | None = None) -> None:
        self._directory = directory
        self.database = Database(location or Location(file=directory / FILE), LAYOUT)

    def begin(self, run: RunRecord) -> RunRecord:
        """Writes a new run down; the one that is there where the same request began it.

        Raises:
            InvalidInputError: `ALREADY_EXISTS` where another request took the name; or it is no name.
        """
        if not NAME.fullmatch(run.name):
            raise InvalidInputError(
                f"{run.name[:80]!r} is no name of a run: 1 to 63 of a-z, 0-9 and -, a letter or digit first"
            )
        with self.database.transaction() as connection:
            found = _find(connection, run.name)
            if found is None:
                row = {
                    "name": run.name,
                    "request_id": run.request_id,
                    "spec": json.dumps(run.spec),
                    "state": run.state,
                    "why": run.why,
                    "weights_round": run.weights_round,
                    "strategy": json.dumps(run.strategy),
                    "began_ns": run.began_ns,
                }
                connection.execute(insert(RUNS), row)
                return run
        if found.request_id != run.request_id:
            raise InvalidInputError(
                f"there is a run {run.name!r} already ({found.state}): choose another name, or resume that one",
                reason="ALREADY_EXISTS",
                metadata={"run": run.name},
            )
        return found

    def remove(self, name: str) -> None:
        """Removes a run and its files."""
        with self.database.transaction() as connection:
            connection.execute(delete(RUNS).where(RUNS.c.name == name))
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def get(self, name: str) -> RunRecord:
        """A run.

        Raises:
            InvalidInputError: `NOT_FOUND` where there is none of that name.
        """
        with self.database.reading() as connection:
            found = _find(connection, name)
        if found is None:
            known = ", ".join(run.name for run in self.all()) or "none"
            raise InvalidInputError(f"there is no run {name!r}; there are: {known}", reason="NOT_FOUND")
        return found

    def all(self) -> list[RunRecord]:
        """Every run, by name."""
        with self.database.reading() as connection:
            rows = connection.execute(RUNS.select()).all()
        return sorted((_record(row) for row in rows), key=lambda run: run.name)

    def set_state(self, name: str, state: str, why: str = "") -> None:
        """Notes that a run goes on, waits or has ended."""
        with self.database.transaction() as connection:
            connection.execute(update(RUNS).where(RUNS.c.name == name).values(state=state, why=why))

    def put_round(self, name: str, state: Round) -> None:
        """Writes a round down as it is now."""
        row = {"run": name, "round": state.index, "record": json.dumps(to_json(state)), "report": "{}"}
        with self.database.transaction() as connection:
            connection.execute(self._round_with("record"), row)

    def rounds(self, name: str) -> list[tuple[Round, dict[str, Any]]]:
        """The rounds of a run in order, each with what was reported of it."""
        asked = select(ROUNDS.c.record, ROUNDS.c.report).where(ROUNDS.c.run == name).order_by(ROUNDS.c.round)
        with self.database.reading() as connection:
            rows = connection.execute(asked).all()
        return [(from_json(json.loads(record)), json.loads(report)) for record, report in rows]

    def put_report(self, name: str, round_index: int, report: dict[str, Any]) -> None:
        """Writes down what is reported of a round that is there."""
        which = (ROUNDS.c.run == name) & (ROUNDS.c.round == round_index)
        with self.database.transaction() as connection:
            connection.execute(update(ROUNDS).where(which).values(report=json.dumps(report)))

    def put_spec(self, name: str, spec: dict[str, Any]) -> None:
        """Changes what was asked of a run."""
        with self.database.transaction() as connection:
            connection.execute(update(RUNS).where(RUNS.c.name == name).values(spec=json.dumps(spec)))

    def put_note(self, name: str, kind: str, content: dict[str, Any]) -> None:
        """Writes down what a part of a run keeps: the ledger of its privacy, the keys and offers of its secure sums."""
        put = self.database.insert(NOTES)
        put = put.on_conflict_do_update(
            index_elements=[NOTES.c.run, NOTES.c.kind], set_={"content": put.excluded.content}
        )
        with self.database.transaction() as connection:
            connection.execute(put, {"run": name, "kind": kind, "content": json.dumps(content)})

    def note(self, name: str, kind: str) -> dict[str, Any] | None:
        """What `put_note` wrote last; None where it never did."""
        asked = select(NOTES.c.content).where(NOTES.c.run == name, NOTES.c.kind == kind)
        with self.database.reading() as connection:
            content = connection.execute(asked).scalar_one_or_none()
        return None if content is None else json.loads(content)

    def put_place(self, place: Place, instead_of: str = "") -> None:
        """Writes down that a place in a slice is asked for, in place of one that has ended."""
        row = {"request_id": place.request_id, "run": place.run, "slice": place.slice, "holder": place.holder}
        with self.database.transaction() as connection:
            connection.execute(delete(PLACES).where(PLACES.c.request_id == instead_of))
            connection.execute(insert(PLACES), row)

    def drop_place(self, request_id: str) -> None:
        """Forgets a place, which is given back or was never had."""
        with self.database.transaction() as connection:
            connection.execute(delete(PLACES).where(PLACES.c.request_id == request_id))

    def places(self) -> list[Place]:
        """Every place that is held or may be, in the order in which they were asked for."""
        asked = select(PLACES.c.request_id, PLACES.c.run, PLACES.c.slice, PLACES.c.holder).order_by(PLACES.c.number)
        with self.database.reading() as connection:
            rows = connection.execute(asked).all()
        return [Place(*row) for row in rows]

    def finish_round(self, name: str, done: Round, weights: Path, strategy: State, report: dict[str, Any]) -> None:
        """Makes the sum of a round the run's weights, in one step with the strategy's state and the round's report.

        Args:
            name: The run.
            done: The round, which is done.
            weights: The file that `stage_weights` was given for, written and closed.
            strategy: The strategy's state.
            report: What is shown of the round.
        """
        after = done.index + 1
        for key, array in strategy.arrays.items():
            write_durably(self._state_path(name, after, key), as_bytes(array))
        put_in_place(weights, self.weights_path(name, after))
        row = {"run": name, "round": done.index, "record": json.dumps(to_json(done)), "report": json.dumps(report)}
        with self.database.transaction() as connection:
            connection.execute(self._round_with("record", "report"), row)
            connection.execute(
                update(RUNS)
                .where(RUNS.c.name == name)
                .values(weights_round=after, strategy=json.dumps(dict(strategy.values)))
            )
        for path in (self._directory / name).iterdir():
            number = path.name.partition(".")[0]
            if path.suffix in (".weights", ".state", ".new") and number.isdecimal() and int(number) < after:
                path.unlink(missing_ok=True)

    def stage_weights(self, name: str, weights_round: int, values: int) -> StagedWeights:
        """A file for the weights after a round, mapped into memory, to be filled and given to `finish_round`: shape
        (values,), float32."""
        path = self.staged_path(name, weights_round)
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.memmap(path, dtype="<f4", mode="w+", shape=(values,))

    def staged_path(self, name: str, weights_round: int) -> Path:
        """The file behind `stage_weights`."""
        return self._directory / name / f"{weights_round}.new"

    def strategy_state(self, name: str) -> State:
        """The state of a run's strategy after the round that counts."""
        run = self.get(name)
        arrays = {}
        for path in (self._directory / name).glob(f"{run.weights_round}.*.state"):
            arrays[path.name.split(".")[1]] = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
        return State(arrays, run.strategy)

    def start_from(self, name: str, spans: Iterable[bytes], values: int) -> None:
        """Gives a run the weights that it begins with.

        Args:
            name: The run.
            spans: Their spans in order, float32, little-endian.
            values: How many values there are.

        Raises:
            InvalidInputError: `LAYOUT_MISMATCH`, there are more or fewer; `NOT_FINITE`, one is NaN or infinite.
        """
        path, staged = self.weights_path(name, 0), self.staged_path(name, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with staged.open("wb") as file:
            for data in spans:
                if len(data) % 4 or not np.isfinite(np.frombuffer(data, "<f4")).all():
                    raise InvalidInputError("the first weights have NaN or infinite values", reason="NOT_FINITE")
                written += file.write(data)
        if written != 4 * values:
            raise InvalidInputError(
                f"the first weights are {written} bytes; {values} values have {4 * values}", reason="LAYOUT_MISMATCH"
            )
        put_in_place(staged, path)
        which = (RUNS.c.name == name) & (RUNS.c.weights_round == INITIAL)
        with self.database.transaction() as connection:
            connection.execute(update(RUNS).where(which).values(weights_round=0))

    def weights(self, name: str) -> Weights | None:
        """The run's weights as they count now, shape (d,), mapped read-only; None before the first."""
        weights_round = self.get(name).weights_round
        if weights_round == INITIAL:
            return None
        return np.memmap(self.weights_path(name, weights_round), dtype="<f4", mode="r")

    def close(self) -> None:
        """Closes it, once no other thread is at it."""
        self.database.close()

    def _round_with(self, *columns: str) -> Insert:
        """Writes a round; of one that is there, these columns."""
        put = self.database.insert(ROUNDS)
        fresh = {column: put.excluded[column] for column in columns}
        return put.on_conflict_do_update(index_elements=[ROUNDS.c.run, ROUNDS.c.round], set_=fresh)

    def directory(self, name: str) -> Path:
        """Where a run's files are."""
        return self._directory / name

    def weights_path(self, name: str, weights_round: int) -> Path:
        """The weights after a round."""
        return self._directory / name / f"{weights_round}.weights"

    def _state_path(self, name: str, weights_round: int, key: str) -> Path:
        return self._directory / name / f"{weights_round}.{key}.state"


class RunNotes:
    """What is written down of one run beside its rounds, for tasks of the event loop.

    Args:
        store: Where.
        run: The run's name.
    """

    def __init__(self, store: RunStore, run: str) -> None:
        self._store = store
        self._run = run

    async def read(self, kind: str) -> dict[str, Any] | None:
        """What was written last; None where it never was."""
        return await asyncio.to_thread(self._store.note, self._run, kind)

    async def write(self, kind: str, content: dict[str, Any]) -> None:
        """Writes, durably on return."""
        await asyncio.to_thread(self._store.put_note, self._run, kind, content)


def as_bytes(values: Weights) -> memoryview:
    """The bytes of values, float32 and little-endian, without a copy where the machine is."""
    return np.ascontiguousarray(values, dtype="<f4").data.cast("B")


def _find(connection: Connection, name: str) -> RunRecord | None:
    row = connection.execute(RUNS.select().where(RUNS.c.name == name)).one_or_none()
    return None if row is None else _record(row)


def _record(row: Sequence[Any]) -> RunRecord:
    name, request_id, spec, state, why, weights_round, strategy, began_ns = row
    return RunRecord(name, request_id, json.loads(spec), state, why, weights_round, json.loads(strategy), began_ns)
