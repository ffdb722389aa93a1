"""The same promises over SQLite and over PostgreSQL; and what is said where a place cannot be used."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, func, select

from orbitmesh.errors import IdentityError, InvalidInputError, MeshError, TransportError
from orbitmesh.v1 import scheduler_pb2
from services.aggregator.store import INITIAL, RunRecord, RunStore
from services.aggregator.store import Place as SlicePlace
from services.runtime.store import Database, Layout, Lease, Location
from services.scheduler.store import DeploymentStore
from services.slices.changes import Changes
from services.slices.store import Memory, Remembered, SliceStore
from tests.postgres import Server, running
from tests.store import first_layouts

META = MetaData()
ITEMS = Table("items", META, Column("name", Text, primary_key=True), Column("value", Integer, nullable=False))
LAYOUT = Layout("test", META)
PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def put(database: Database, name: str, value: int) -> None:
    with database.transaction() as connection:
        connection.execute(database.upsert(ITEMS, "name"), {"name": name, "value": value})


def held(database: Database) -> dict[str, int]:
    with database.reading() as connection:
        return {row.name: row.value for row in connection.execute(ITEMS.select())}


# Transactions.


def test_what_was_written_is_there_for_whoever_opens_it_next(location: Location) -> None:
    """All of a transaction, or nothing where it failed."""
    database = Database(location, LAYOUT)
    put(database, "a", 1)
    put(database, "a", 2)
    with pytest.raises(RuntimeError), database.transaction() as connection:
        connection.execute(ITEMS.insert(), {"name": "b", "value": 3})
        raise RuntimeError
    database.close()
    again = Database(location, LAYOUT)
    assert held(again) == {"a": 2}
    again.close()


def test_threads_write_side_by_side_and_closing_waits_for_none_of_them_in_vain(location: Location) -> None:
    """Sixteen threads; the database is closed under them: each either wrote or was told, and what was written stays."""
    database = Database(location, LAYOUT)
    wrote: list[str] = []
    refused: list[MeshError] = []
    begun = threading.Barrier(17)

    def work(number: int) -> None:
        begun.wait(PATIENCE_S)
        try:
            for step in range(1000):
                put(database, f"{number}-{step}", step)
                wrote.append(f"{number}-{step}")
        except MeshError as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE_S)
    until(lambda: len(wrote) > 40)
    database.close()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(refused) == 16
    assert {error.retryable for error in refused} == {True}
    again = Database(location, LAYOUT)
    assert set(wrote) <= set(held(again))
    again.close()


def test_an_error_quotes_no_value(location: Location) -> None:
    """What is written may be somebody's prompt."""
    database = Database(location, LAYOUT)
    with pytest.raises(MeshError) as refused, database.transaction() as connection:
        connection.execute(ITEMS.insert(), [{"name": "aurora borealis", "value": None}])
    assert "aurora" not in refused.value.message
    database.close()


# Stores.


def test_deployments_are_kept_with_their_requests(location: Location) -> None:
    """As they were written last, by name, without those that were deleted."""
    store = DeploymentStore(location)
    for name, version in (("b", 1), ("a", 1), ("b", 2), ("c", 1)):
        store.put(
            scheduler_pb2.Deployment(name=name, version=version),
            scheduler_pb2.CreateDeploymentRequest(name=name, request_id=f"r{version}", manifest=b"\x00\xff"),
        )
    store.delete("c")
    store.delete("none")
    store.close()
    again = DeploymentStore(location)
    assert [(one.name, one.version, asked.request_id, asked.manifest) for one, asked in again.all()] == [
        ("a", 1, "r1", b"\x00\xff"), ("b", 2, "r2", b"\x00\xff"),
    ]  # fmt: skip
    again.close()


def test_runs_are_kept_with_rounds_notes_and_places(location: Location, tmp_path: Path) -> None:
    """Places in the order in which they were asked for; a run takes its notes along when it is removed."""
    store = RunStore(tmp_path, location)
    run = RunRecord("mnist", "r", {"rounds": 2}, "running", "", INITIAL, {}, time.time_ns())
    assert store.begin(run) == store.begin(run) == run
    with pytest.raises(InvalidInputError, match="there is a run 'mnist' already"):
        store.begin(RunRecord("mnist", "other", {}, "running", "", INITIAL, {}))
    store.put_note("mnist", "ledger", {"epsilon": 1.5})
    store.put_note("mnist", "ledger", {"epsilon": 2.5})
    for name in ("z", "a", "m"):
        store.put_place(SlicePlace(name, "mnist", "cam", "client/ann"))
    store.put_place(SlicePlace("n", "mnist", "cam", "client/ann"), instead_of="a")
    store.set_state("mnist", "paused", "waits")
    store.close()
    again = RunStore(tmp_path, location)
    assert (again.get("mnist").state, again.get("mnist").began_ns) == ("paused", run.began_ns)
    assert again.note("mnist", "ledger") == {"epsilon": 2.5}
    assert [place.request_id for place in again.places()] == ["z", "m", "n"]
    again.remove("mnist")
    assert (again.all(), again.note("mnist", "ledger")) == ([], None)
    again.close()


def changed(version: int, **fields: object) -> Changes:
    nothing: dict[str, object] = {
        "promises": (), "slices_gone": (), "admissions": (), "admissions_gone": (), "nodes": {}, "nodes_gone": (),
        "traffic": {}, "traffic_gone": (), "reporters": {}, "reporters_gone": (),
    }  # fmt: skip
    return Changes(version=version, **(nothing | fields))  # type: ignore[arg-type]


def test_slices_are_kept_with_requests_and_reporters_in_their_order(location: Location) -> None:
    """A request that comes again goes to the end; a reporter that speaks again keeps its place."""
    store = SliceStore(location)
    mark = store.load().book.mark
    store.save(changed(3, reporters={"z": ((b"p", 1),), "a": ((b"q", 2),)}), Memory())
    asked = [Remembered(key, "digest", b"\x00") for key in ("k1", "k2", "k3")]
    store.save(changed(4, reporters={"z": ((b"p", 9),)}), Memory(requests=asked))
    store.save(changed(5), Memory(requests=[asked[0]], requests_forgotten=["k2"]))
    store.close()
    again = SliceStore(location)
    whole = again.load()
    assert (whole.book.mark, whole.book.version) == (mark, 5)
    assert list(whole.totals.reporters.items()) == [("z", ((b"p", 9),)), ("a", ((b"q", 2),))]
    assert [each.key for each in again.remembered()[0]] == ["k3", "k1"]
    again.close()


# Going forward.


def made(path: Path, statements: str, version: int = 1) -> Location:
    database = sqlite3.connect(path)
    database.executescript(f"{statements} PRAGMA user_version={version};")
    database.close()
    return Location(file=path)


def columns(path: Path) -> dict[str, list[str]]:
    """Every table of a file with its columns, as SQLite itself tells."""
    database = sqlite3.connect(path)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")] for name in tables}
    database.close()
    return found


def test_a_schedulers_file_of_the_first_version_is_taken_up(tmp_path: Path) -> None:
    """With what was in it."""
    there = made(tmp_path / "old", first_layouts.SCHEDULER_1)
    record = scheduler_pb2.Deployment(name="d", version=4).SerializeToString()
    asked = scheduler_pb2.CreateDeploymentRequest(request_id="r").SerializeToString()
    database = sqlite3.connect(tmp_path / "old")
    database.execute("INSERT INTO deployments VALUES ('d', 'r', ?, ?)", (record, asked))
    database.commit()
    database.close()
    store = DeploymentStore(there)
    assert [(one.version, request.request_id) for one, request in store.all()] == [(4, "r")]
    store.close()
    DeploymentStore(Location(file=tmp_path / "new")).close()
    assert columns(tmp_path / "old") == columns(tmp_path / "new")


def test_a_slices_file_of_the_first_version_goes_forward(tmp_path: Path) -> None:
    """Reporters keep the order in which they came, which is not that of their names."""
    there = made(tmp_path / "old", first_layouts.SLICES_1 + """
        INSERT INTO reporters VALUES ('z', '[["70", 1]]'), ('a', '[["71", 2]]');
        INSERT INTO requests (key, digest, answer) VALUES ('k', 'd', X'00');
    """)  # fmt: skip
    for _ in range(2):
        store = SliceStore(there)
        whole = store.load()
        assert (whole.book.mark, whole.book.version) == ("00ff", 7)
        assert list(whole.totals.reporters.items()) == [("z", ((b"p", 1),)), ("a", ((b"q", 2),))]
        assert store.remembered()[0] == [Remembered("k", "d", b"\x00")]
        store.close()
    SliceStore(Location(file=tmp_path / "new")).close()
    assert columns(tmp_path / "old") == columns(tmp_path / "new")


@pytest.mark.parametrize("places", [True, False])
def test_an_aggregators_file_of_the_first_version_goes_forward(places: bool, tmp_path: Path) -> None:
    """The earliest ones knew of no places."""
    form = first_layouts.AGGREGATOR_1_WITH_PLACES if places else first_layouts.AGGREGATOR_1
    rows = "INSERT INTO places VALUES ('z', 'run', 's', 'h'), ('a', 'run', 's', 'h');" if places else ""
    spec = json.dumps({"rounds": 3})
    there = made(
        tmp_path / "aggregator.sqlite",
        f"{form} {rows} INSERT INTO runs VALUES ('old', 'r', '{spec}', 'running', '', -1, '{{}}', 5);"
        "INSERT INTO notes VALUES ('old', 'ledger', '{}');",
    )
    store = RunStore(tmp_path)
    assert store.get("old").spec == {"rounds": 3}
    assert [each.request_id for each in store.places()] == (["z", "a"] if places else [])
    store.put_place(SlicePlace("m", "run", "s", "h"))
    assert [each.request_id for each in store.places()][-1] == "m"
    store.remove("old")
    assert store.note("old", "ledger") is None
    store.close()
    RunStore(tmp_path / "new").close()
    assert there.file is not None
    assert columns(there.file) == columns(tmp_path / "new" / "aggregator.sqlite")


def test_a_store_of_a_newer_version_is_left_alone(location: Location) -> None:
    """The message says which versions there are; nothing is changed, and who wrote it goes on."""
    grown = MetaData()
    Table("items", grown, Column("name", Text, primary_key=True), Column("value", Integer), Column("more", Text))
    newer = Layout("test", grown, (lambda connection: None, lambda connection: None))
    Database(location, newer).close()
    with pytest.raises(InvalidInputError, match="format 3 of test; this version reads 1 to 1"):
        Database(location, LAYOUT)
    again = Database(location, newer)
    with again.reading() as connection:
        assert connection.execute(select(func.count()).select_from(grown.tables["items"])).scalar_one() == 0
    again.close()


def test_a_step_that_fails_leaves_the_version_before(location: Location) -> None:
    """It is one transaction: tables are those of the old version or of the new one."""
    Database(location, LAYOUT).close()

    def half(connection: object) -> None:
        connection.exec_driver_sql("CREATE TABLE more (name TEXT)")  # type: ignore[attr-defined]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Database(location, Layout("test", META, (half,)))
    again = Database(location, Layout("test", META, (lambda c: c.exec_driver_sql("CREATE TABLE more (name TEXT)"),)))
    put(again, "a", 1)
    again.close()


def test_processes_that_begin_on_an_empty_database_at_once_make_it_once(postgres: Server) -> None:
    """Each finds it whole."""
    there, opened = Location.parse(postgres.fresh()), list[Database]()
    threads = [threading.Thread(target=lambda: opened.append(Database(there, LAYOUT))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(opened) == 6
    for index, each in enumerate(opened):
        put(each, f"{index}", index)
    assert len(held(opened[0])) == 6
    for each in opened:
        each.close()


# A server that goes away.


def test_a_server_that_is_away_is_said_and_found_again() -> None:
    """A transaction meanwhile fails with a typed error that may be tried again; afterwards all that was acknowledged
    is there, without a restart of the service."""
    with running() as server:
        database = Database(Location.parse(server.fresh()), LAYOUT)
        put(database, "a", 1)
        server.stop()
        for _ in range(2):
            with pytest.raises(TransportError) as away:
                put(database, "b", 2)
            assert away.value.retryable
            with pytest.raises(TransportError):
                held(database)
        server.start()
        put(database, "c", 3)
        assert held(database) == {"a": 1, "c": 3}
        database.close()


def test_a_transaction_whose_answer_was_lost_is_found_out() -> None:
    """The server commits, and its process dies before it says so: the slices service asks, and goes on as written. One
    that was not written is an error, and what follows builds on what is there."""
    with running() as server:
        store = SliceStore(Location.parse(server.fresh()))
        store.save(changed(1), Memory())
        # A commit then waits for a standby that never comes, when it is on the disk already.
        server.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        server.run("SELECT pg_reload_conf()")
        until(lambda: server.ask("SHOW synchronous_standby_names") == "nobody")
        with ThreadPoolExecutor(1) as pool:
            saving = pool.submit(store.save, changed(2), Memory())
            waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(lambda: server.ask(waits) is not None)
            server.run("ALTER SYSTEM RESET synchronous_standby_names")
            server.run(f"SELECT pg_terminate_backend(({waits}))")
            server.run("SELECT pg_reload_conf()")
            saving.result(PATIENCE_S)
        assert store.load().book.version == 2
        refused = "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"  # noqa: E501
        name = store.database.location.url.database if store.database.location.url is not None else ""
        server.run(refused, str(name))
        server.run(
            "CREATE CONSTRAINT TRIGGER no AFTER UPDATE ON orbitmesh_slices.facts DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION no()",
            str(name),
        )
        with pytest.raises(TransportError):
            store.save(changed(3), Memory())
        server.run("DROP TRIGGER no ON orbitmesh_slices.facts", str(name))
        assert store.load().book.version == 2
        store.save(changed(4), Memory())
        assert store.load().book.version == 4
        store.close()


def test_a_server_that_would_acknowledge_early_is_told_not_to(postgres: Server) -> None:
    """Whatever its settings say: what is committed is on its disk."""
    there = Location.parse(postgres.fresh())
    name = there.url.database if there.url is not None else None
    postgres.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = Database(there, LAYOUT)
    for engine in (database._engine, database.beside()):
        with database.using(engine) as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
        engine.dispose()
    database.close()


# What cannot be opened.


def refusal(attempt: Callable[[], object]) -> MeshError:
    with pytest.raises(MeshError) as refused:
        attempt()
    assert "\n" not in refused.value.message
    return refused.value


def test_urls_that_are_none_are_refused_without_being_quoted(tmp_path: Path) -> None:
    """They may hold a password."""
    for text in ("nonsense", "mysql://u:geheim@h/d", "postgresql://u:geheim@h", "sqlite://", "x" * 9999, "://geheim"):
        error = refusal(lambda text=text: Location.parse(text))  # type: ignore[misc]
        assert isinstance(error, InvalidInputError)
        assert "geheim" not in error.message and "postgresql://USER@HOST:PORT/DATABASE" in error.message


def test_a_password_comes_by_file_and_is_never_shown(tmp_path: Path) -> None:
    """Not on the command line, which every user sees; not from a file that every user may read; not in a message."""
    url = "postgresql://ann:geheim@db.example:5432/mesh?sslmode=verify-full"
    error = refusal(lambda: Location.of(url, None, tmp_path / "x"))
    assert "--store-file" in error.message and "geheim" not in error.message
    secret = tmp_path / "url"
    secret.write_text(url + "\n")
    secret.chmod(0o644)
    assert isinstance(refusal(lambda: Location.of("", secret, tmp_path / "x")), IdentityError)
    secret.chmod(0o600)
    found = Location.of("", secret, tmp_path / "x")
    assert found.url is not None and found.url.password == "geheim"
    assert found.shown == "postgresql://ann@db.example:5432/mesh"
    assert "geheim" not in repr(found)
    assert isinstance(refusal(lambda: Location.of("sqlite:////x", secret, tmp_path)), InvalidInputError)
    assert isinstance(refusal(lambda: Location.of("", tmp_path / "none", tmp_path)), IdentityError)
    assert Location.of("", None, tmp_path / "x") == Location(file=tmp_path / "x")
    assert Location.of(f"sqlite:///{tmp_path}/y", None, tmp_path / "x") == Location(file=tmp_path / "y")


def test_a_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A directory in its place, a parent that is a file: one line with the path and what to do."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "db", tmp_path / "folder"):
        error = refusal(lambda path=path: Database(Location(file=path), LAYOUT))  # type: ignore[misc]
        assert isinstance(error, InvalidInputError) and str(tmp_path) in error.message and "--state" in error.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_of_somebody_else_says_so(tmp_path: Path) -> None:
    """The permission is what is missing."""
    (tmp_path / "closed").mkdir(mode=0o500)
    error = refusal(lambda: Database(Location(file=tmp_path / "closed" / "db"), LAYOUT))
    assert isinstance(error, InvalidInputError)


def test_a_server_that_cannot_be_used_says_why(postgres: Server, tmp_path: Path) -> None:
    """Nobody there; no such database; a user without rights: each its own line, the first of them to be tried again."""
    nobody = refusal(lambda: Database(Location.parse(f"postgresql://u@/d?host={tmp_path}"), LAYOUT))
    assert isinstance(nobody, TransportError) and nobody.retryable
    missing = refusal(lambda: Database(Location.parse(postgres.url("nothing_here")), LAYOUT))
    assert isinstance(missing, InvalidInputError) and "nothing_here" in missing.message
    fresh = Location.parse(postgres.fresh())
    assert fresh.url is not None
    postgres.run("CREATE ROLE guest LOGIN")
    guest = refusal(lambda: Database(Location(url=fresh.url.set(username="guest")), LAYOUT))
    assert isinstance(guest, InvalidInputError) and "grant" in guest.message


def test_a_wrong_password_says_so_and_is_not_shown(postgres: Server) -> None:
    """On a server that asks for one."""
    postgres.run("CREATE ROLE careful LOGIN PASSWORD 'right'")
    rules = postgres.directory / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all careful scram-sha-256\n{before}")
    try:
        postgres.run("SELECT pg_reload_conf()")
        fresh = Location.parse(postgres.fresh())
        assert fresh.url is not None
        wrong = Location(url=fresh.url.set(username="careful", password="falsch"))

        def asked() -> bool:
            return "password" in refusal(lambda: Database(wrong, LAYOUT)).message

        until(asked)
        error = refusal(lambda: Database(wrong, LAYOUT))
        assert isinstance(error, InvalidInputError) and "falsch" not in error.message
    finally:
        rules.write_text(before)
        postgres.run("SELECT pg_reload_conf()")


# The lease.


def test_one_holds_a_lease_until_it_lets_go_or_it_runs_out(location: Location) -> None:
    """The other is told who holds it; every change of holder has a greater number; who lost it may not write."""
    one, two = Database(location, LAYOUT), Database(location, LAYOUT)
    first, second = Lease(one, "leader", "first", 2.0), Lease(two, "leader", "second", 2.0)
    one.fenced_by(first.fence)
    two.fenced_by(second.fence)
    for database in (one, two):
        with pytest.raises(TransportError) as early:
            put(database, "early", 0)
        assert early.value.reason == "NOT_LEADER"
    assert first.take().held and first.valid
    found = second.take()
    assert (found.held, found.holder, second.valid) == (False, "first", False)
    put(one, "a", 1)
    until(lambda: second.take().held)
    assert second.epoch > first.epoch and not first.valid
    with pytest.raises(TransportError) as late:
        put(one, "b", 2)
    assert late.value.reason == "NOT_LEADER" and late.value.metadata["leader"] == "second"
    assert not first.renew().held
    put(two, "c", 3)
    second.release()
    assert first.take().held
    put(one, "d", 4)
    assert held(one) == {"a": 1, "c": 3, "d": 4}
    for lease, database in ((first, one), (second, two)):
        lease.close()
        database.close()


def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(location: Location) -> None:
    """The database was away for a while: who led leads on, under the same number."""
    database = Database(location, LAYOUT)
    lease = Lease(database, "leader", "first", 0.05)
    assert lease.take().held
    number = lease.epoch
    until(lambda: not lease.valid)
    assert lease.renew().held and lease.epoch == number
    lease.close()
    database.close()


def test_many_that_take_a_lease_at_once_are_one(postgres: Server) -> None:
    """However often it is tried, each number had one holder."""
    there = Location.parse(postgres.fresh())
    databases = [Database(there, LAYOUT) for _ in range(4)]
    leases = [Lease(database, "leader", f"{index}", 60.0) for index, database in enumerate(databases)]
    for _ in range(5):
        with ThreadPoolExecutor(len(leases)) as pool:
            assert [found.held for found in pool.map(Lease.take, leases)].count(True) == 1
        next(lease for lease in leases if lease.valid).release()
    for lease, database in zip(leases, databases, strict=True):
        lease.close()
        database.close()


def test_a_lease_is_not_taken_over_a_transaction_that_it_fences(postgres: Server) -> None:
    """The new holder waits until what the old one had begun to write is written; nothing lands after it leads."""
    there = Location.parse(postgres.fresh())
    one, two = Database(there, LAYOUT), Database(there, LAYOUT)
    first, second = Lease(one, "leader", "first", 0.05), Lease(two, "leader", "second", 60.0)
    one.fenced_by(first.fence)
    assert first.take().held
    taken = threading.Event()
    order: list[str] = []

    def take() -> None:
        until(lambda: second.take().held)
        order.append("taken")
        taken.set()

    with one.transaction() as connection:
        other = threading.Thread(target=take)
        other.start()
        connection.execute(ITEMS.insert(), {"name": "a", "value": 1})
        assert not taken.wait(0.5)
        order.append("written")
    assert taken.wait(PATIENCE_S)
    other.join(PATIENCE_S)
    assert order == ["written", "taken"]
    with pytest.raises(TransportError):
        put(one, "b", 2)
    assert held(two) == {"a": 1}
    for lease, database in ((first, one), (second, two)):
        lease.close()
        database.close()


def test_a_writer_that_stops_in_mid_transaction_keeps_nobody_waiting(postgres: Server) -> None:
    """The server ends the transaction of a process that says nothing, and the next one leads; what the stopped one had
    written is not there, and what it goes on to write is refused."""
    there = Location.parse(postgres.fresh())
    one, two = Database(there, LAYOUT), Database(there, LAYOUT)
    first, second = Lease(one, "leader", "first", 0.05), Lease(two, "leader", "second", 60.0)
    one.fenced_by(first.fence)
    assert first.take().held
    with pytest.raises(TransportError), one.transaction() as connection:
        connection.execute(ITEMS.insert(), {"name": "a", "value": 1})
        until(lambda: second.take().held)
        connection.execute(ITEMS.insert(), {"name": "b", "value": 2})
    assert held(two) == {}
    for lease, database in ((first, one), (second, two)):
        lease.close()
        database.close()
