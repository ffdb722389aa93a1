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
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.durable import put_in_place, write_durably
from orbitmesh.errors import InvalidInputError
from services.aggregator.rounds import Round, from_json, to_json
from services.aggregator.strategies.base import State

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (
    name TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    why TEXT NOT NULL,
    weights_round INTEGER NOT NULL,
    strategy TEXT NOT NULL,
    began_ns INTEGER NOT NULL
);
CREATE TABLE rounds (
    run TEXT NOT NULL REFERENCES runs (name) ON DELETE CASCADE,
    round INTEGER NOT NULL,
    record TEXT NOT NULL,
    report TEXT NOT NULL,
    PRIMARY KEY (run, round)
);
CREATE TABLE notes (
    run TEXT NOT NULL REFERENCES runs (name) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (run, kind)
);
"""
PLACES = """
CREATE TABLE IF NOT EXISTS places (
    request_id TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    slice TEXT NOT NULL,
    holder TEXT NOT NULL
);
"""
"""Younger than the format, which stays the same: whoever does not know of it has no use for it. A place is no part of
its run: it may outlive it, and is there before."""
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
    """Runs of one aggregator in SQLite (write-ahead log, every commit synced) and files. Blocks; any thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = threading.Lock()
        self._db = sqlite3.connect(directory / "aggregator.sqlite", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise InvalidInputError(
                f"{directory / 'aggregator.sqlite'} has format {version}; this version reads {SCHEMA_VERSION}: start "
                "the version that wrote it, or give another --state"
            )
        self._db.execute(PLACES)

    def begin(self, run: RunRecord) -> RunRecord:
        """Writes a new run down; the one that is there where the same request began it.

        Raises:
            InvalidInputError: `ALREADY_EXISTS` where another request took the name; or it is no name.
        """
        if not NAME.fullmatch(run.name):
            raise InvalidInputError(
                f"{run.name[:80]!r} is no name of a run: 1 to 63 of a-z, 0-9 and -, a letter or digit first"
            )
        with self._lock:
            found = self._find(run.name)
            if found is None:
                self._db.execute(
                    "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        run.name, run.request_id, json.dumps(run.spec), run.state, run.why, run.weights_round,
                        json.dumps(run.strategy), run.began_ns,
                    ),
                )  # fmt: skip
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
        with self._lock:
            self._db.execute("DELETE FROM runs WHERE name = ?", (name,))
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def get(self, name: str) -> RunRecord:
        """A run.

        Raises:
            InvalidInputError: `NOT_FOUND` where there is none of that name.
        """
        with self._lock:
            found = self._find(name)
        if found is None:
            known = ", ".join(run.name for run in self.all()) or "none"
            raise InvalidInputError(f"there is no run {name!r}; there are: {known}", reason="NOT_FOUND")
        return found

    def all(self) -> list[RunRecord]:
        """Every run, by name."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM runs ORDER BY name").fetchall()
        return [_record(row) for row in rows]

    def set_state(self, name: str, state: str, why: str = "") -> None:
        """Notes that a run goes on, waits or has ended."""
        with self._lock:
            self._db.execute("UPDATE runs SET state = ?, why = ? WHERE name = ?", (state, why, name))

    def put_round(self, name: str, state: Round) -> None:
        """Writes a round down as it is now."""
        with self._lock:
            self._db.execute(
                "INSERT INTO rounds (run, round, record, report) VALUES (?, ?, ?, '{}') "
                "ON CONFLICT (run, round) DO UPDATE SET record = excluded.record",
                (name, state.index, json.dumps(to_json(state))),
            )

    def rounds(self, name: str) -> list[tuple[Round, dict[str, Any]]]:
        """The rounds of a run in order, each with what was reported of it."""
        with self._lock:
            asked = self._db.execute("SELECT record, report FROM rounds WHERE run = ? ORDER BY round", (name,))
            rows = asked.fetchall()
        return [(from_json(json.loads(record)), json.loads(report)) for record, report in rows]

    def put_report(self, name: str, round_index: int, report: dict[str, Any]) -> None:
        """Writes down what is reported of a round that is there."""
        with self._lock:
            self._db.execute(
                "UPDATE rounds SET report = ? WHERE run = ? AND round = ?", (json.dumps(report), name, round_index)
            )

    def put_spec(self, name: str, spec: dict[str, Any]) -> None:
        """Changes what was asked of a run."""
        with self._lock:
            self._db.execute("UPDATE runs SET spec = ? WHERE name = ?", (json.dumps(spec), name))

    def put_note(self, name: str, kind: str, content: dict[str, Any]) -> None:
        """Writes down what a part of a run keeps: the ledger of its privacy, the keys and offers of its secure sums."""
        with self._lock:
            self._db.execute(
                "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (run, kind) DO UPDATE SET content = excluded.content",
                (name, kind, json.dumps(content)),
            )

    def note(self, name: str, kind: str) -> dict[str, Any] | None:
        """What `put_note` wrote last; None where it never did."""
        with self._lock:
            row = self._db.execute("SELECT content FROM notes WHERE run = ? AND kind = ?", (name, kind)).fetchone()
        return None if row is None else json.loads(row[0])

    def put_place(self, place: Place, instead_of: str = "") -> None:
        """Writes down that a place in a slice is asked for, in place of one that has ended."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                self._db.execute("DELETE FROM places WHERE request_id = ?", (instead_of,))
                row = (place.request_id, place.run, place.slice, place.holder)
                self._db.execute("INSERT INTO places VALUES (?, ?, ?, ?)", row)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def drop_place(self, request_id: str) -> None:
        """Forgets a place, which is given back or was never had."""
        with self._lock:
            self._db.execute("DELETE FROM places WHERE request_id = ?", (request_id,))

    def places(self) -> list[Place]:
        """Every place that is held or may be, in the order in which they were asked for."""
        with self._lock:
            rows = self._db.execute("SELECT request_id, run, slice, holder FROM places ORDER BY rowid").fetchall()
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
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute(
                    "INSERT INTO rounds (run, round, record, report) VALUES (?, ?, ?, ?) ON CONFLICT (run, round) "
                    "DO UPDATE SET record = excluded.record, report = excluded.report",
                    (name, done.index, json.dumps(to_json(done)), json.dumps(report)),
                )
                self._db.execute(
                    "UPDATE runs SET weights_round = ?, strategy = ? WHERE name = ?",
                    (after, json.dumps(dict(strategy.values)), name),
                )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
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
        with self._lock:
            self._db.execute("UPDATE runs SET weights_round = 0 WHERE name = ? AND weights_round = ?", (name, INITIAL))

    def weights(self, name: str) -> Weights | None:
        """The run's weights as they count now, shape (d,), mapped read-only; None before the first."""
        weights_round = self.get(name).weights_round
        if weights_round == INITIAL:
            return None
        return np.memmap(self.weights_path(name, weights_round), dtype="<f4", mode="r")

    def close(self) -> None:
        """Closes the database, once no other thread is at it."""
        with self._lock:
            self._db.close()

    def _find(self, name: str) -> RunRecord | None:
        row = self._db.execute("SELECT * FROM runs WHERE name = ?", (name,)).fetchone()
        return None if row is None else _record(row)

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


def _record(row: tuple[Any, ...]) -> RunRecord:
    name, request_id, spec, state, why, weights_round, strategy, began_ns = row
    return RunRecord(name, request_id, json.loads(spec), state, why, weights_round, json.loads(strategy), began_ns)
