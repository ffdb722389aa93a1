"""What is acknowledged is on disk: restarts, damage, a second process, a disk that is full."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from orbitmesh.errors import CapacityError, IntegrityError, InvalidInputError, MeshError
from orbitmesh.v1 import slices_pb2 as pb
from services.slices import keeper as keeping
from services.slices.store import SliceStore
from services.slices.values import Book
from tests.slices.recount import contents
from tests.slices.support import Client, a_profile, at, make_active, serving

GATHERED_WITHIN_S = 60.0


async def test_a_restart_finds_all_that_was_there(pki: Path, tmp_path: Path) -> None:
    """Slices, nodes, work, what was measured, etags, and the answers to requests that come again."""
    define = pb.DefineSliceRequest(name="d", profile=a_profile(template="urllc", place="berlin"), request_id="d")
    admit = pb.AdmitRequest(slice="a", resources={"CPU": 1}, request_id="w")
    over = pb.AdmitRequest(slice="a", resources={"CPU": 1}, request_id="over")
    report = pb.ReportTrafficRequest(
        traffic={"a": pb.SliceTraffic(frames=7, wait_buckets=[3, 4])}, number=3, process=b"p" * 16
    )
    async with serving(pki, tmp_path) as service:
        olga, node = await service.client("operator-olga"), await service.client("executor-node-1")
        await make_active(olga, "a")
        answers = [await olga("DefineSlice", define), await olga("Admit", admit), await olga("Admit", over)]
        await olga("Withdraw", pb.WithdrawRequest(request_id="over"))
        await node("ReportTraffic", report)
        before, listed = contents(service.keeper.whole.book), await olga("ListSlices", pb.ListSlicesRequest())
    async with serving(pki, tmp_path) as service:
        olga, node = await service.client("operator-olga"), await service.client("executor-node-1")
        assert contents(service.keeper.whole.book) == before
        assert await olga("ListSlices", pb.ListSlicesRequest()) == listed
        assert [await olga("DefineSlice", define), await olga("Admit", admit), await olga("Admit", over)] == answers
        await node("ReportTraffic", report)
        assert contents(service.keeper.whole.book) == before
        assert (await olga("GetSlice", pb.GetSliceRequest(name="a"))).slice.traffic.frames == 7


def begun(directory: Path) -> Path:
    """The file of a state that was begun."""
    store = SliceStore(at(directory))
    store.load()
    store.close()
    return directory / "slices.sqlite"


def changed(path: Path, *statements: str) -> None:
    """Meddles with a file."""
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


DAMAGES: dict[str, Any] = {
    "no database": lambda path: path.write_bytes(b"this is no database, and it is longer than a header" * 99),
    "a page overwritten": lambda path: path.write_bytes(
        path.read_bytes()[:4096] + b"\xff" * 4096 + path.read_bytes()[8192:]
    ),
    "a slice that is none": lambda path: changed(path, "INSERT INTO slices VALUES ('a', X'ffff')"),
    "a slice without a state": lambda path: changed(path, "INSERT INTO slices VALUES ('a', X'')"),
    "work of no slice": lambda path: changed(
        path, """INSERT INTO admissions VALUES ('k', '["a", ["n"], [1, 0, 0, 0], 1, "d"]')"""
    ),
    "work that is none": lambda path: changed(path, "INSERT INTO admissions VALUES ('k', '{}')"),
    "no version": lambda path: changed(path, "DELETE FROM facts"),
    "numbers that are none": lambda path: changed(path, "INSERT INTO reporters VALUES (1, 'n', '[[1]]')"),
    "a table missing": lambda path: changed(path, "DROP TABLE ended"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_name(damage: str, tmp_path: Path) -> None:
    """A service that began with less would promise what is promised already."""
    path = begun(tmp_path)
    DAMAGES[damage](path)
    with pytest.raises(IntegrityError) as refused:
        store = SliceStore(at(tmp_path))
        try:
            store.load()
            store.remembered()
        finally:
            store.close()
    assert str(path) in refused.value.message


def test_more_work_than_a_slice_has_is_damage_too(tmp_path: Path) -> None:
    """Whoever wrote that had promised twice."""
    path = begun(tmp_path)
    each = pb.Slice(name="a", tenant="ann", profile=a_profile(), state=pb.SLICE_STATE_ACTIVE, etag="1")
    each.allocations.add(slice="a", node="n", served=1, resources={"CPU": 1})
    row = """INSERT INTO admissions VALUES ('k', '["a", ["n"], [1000001, 0, 0, 0], 1, "d"]')"""
    changed(path, f"INSERT INTO slices VALUES ('a', X'{each.SerializeToString().hex()}')", row)
    store = SliceStore(at(tmp_path))
    with pytest.raises(IntegrityError, match="more is admitted"):
        store.load()
    store.close()


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """It is not damaged: who wrote it can read it."""
    path = begun(tmp_path)
    changed(path, "PRAGMA user_version=99")
    with pytest.raises(InvalidInputError, match="format 99"):
        SliceStore(at(tmp_path))


def test_two_processes_do_not_keep_one_state(tmp_path: Path) -> None:
    """The second is refused for as long as the first is there."""
    first = SliceStore(at(tmp_path))
    with pytest.raises(InvalidInputError) as refused:
        SliceStore(at(tmp_path))
    assert refused.value.reason == "FAILED_PRECONDITION"
    first.close()
    SliceStore(at(tmp_path)).close()


async def once_there_is_room(olga: Client, request: pb.DefineSliceRequest) -> pb.DefineSliceResponse:
    """The answer to a request that is sent again while it is refused for want of room."""
    give_up = time.monotonic() + GATHERED_WITHIN_S
    while True:
        try:
            answer: pb.DefineSliceResponse = await olga("DefineSlice", request)
            return answer
        except CapacityError:
            assert time.monotonic() < give_up, "it does not go on"
            await asyncio.sleep(0.01)


async def test_a_disk_that_is_full_refuses_and_what_was_there_stays(pki: Path, tmp_path: Path) -> None:
    """SQLite's own bound on pages stands for the disk: nothing is acknowledged that is not written, all that was is
    there, and once there is room it goes on."""
    async with serving(pki, tmp_path) as service:
        olga = await service.client("operator-olga")
        await make_active(olga, "a")
        before = contents(service.keeper.whole.book)
        database = service.keeper._store.database
        with database.reading() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        done, refused = 0, 0
        for index in range(60):
            profile = a_profile(nodes=[f"{'n' * 50}-{number}" for number in range(64)])
            try:
                await olga("DefineSlice", pb.DefineSliceRequest(name=f"s{index}", tenant="ann", profile=profile))
                done += 1
            except MeshError as error:
                assert isinstance(error, CapacityError)
                refused += 1
        assert refused > 0
        assert len(service.keeper.whole.book.slices) == 1 + done
        with database.reading() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        made = await once_there_is_room(olga, pb.DefineSliceRequest(name="last", profile=a_profile()))
        assert made.slice.name == "last"
        kept = contents(service.keeper.whole.book)
    async with serving(pki, tmp_path) as service:
        assert contents(service.keeper.whole.book) == kept
        assert kept["slices"]["a"] == before["slices"]["a"]  # type: ignore[index]


async def test_requests_are_remembered_within_bounds(
    pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten first, in memory and on disk alike; so is work that has ended."""
    monkeypatch.setattr(keeping, "REQUESTS_MAX", 5)
    monkeypatch.setattr(keeping, "ENDED_MAX", 5)
    async with serving(pki, tmp_path) as service:
        olga = await service.client("operator-olga")
        await make_active(olga, "a")
        for index in range(20):
            await olga("DefineSlice", pb.DefineSliceRequest(name=f"s{index}", profile=a_profile()))
            await olga("Admit", pb.AdmitRequest(slice="a", request_id=f"w{index}"))
            await olga("Withdraw", pb.WithdrawRequest(request_id=f"w{index}"))
        assert len(service.keeper._requests) == len(service.keeper._ended) == 5
    store = SliceStore(at(tmp_path))
    requests, ended = store.remembered()
    store.close()
    assert len(requests) == 5
    assert [each.key for each in ended] == [f"operator/olga w{index}" for index in range(15, 20)]


async def test_changes_that_come_together_are_written_together(pki: Path, tmp_path: Path) -> None:
    """While the disk is busy they gather: a hundred and twenty at once are a few transactions, and each is acknowledged
    after its own is on disk."""
    async with serving(pki, tmp_path) as service:
        olga = await service.client("operator-olga")
        await make_active(olga, "a", max_number_of_ues=1000)
        writes, save = [0], service.keeper._store.save

        def counted(*given: Any) -> None:
            writes[0] += 1
            give_up = time.monotonic() + GATHERED_WITHIN_S
            while service.keeper._head.book.where.count < 120 and time.monotonic() < give_up:
                time.sleep(0.001)  # the disk is busy until all are decided
            save(*given)

        service.keeper._store.save = counted  # type: ignore[method-assign]

        async def admit(index: int) -> None:
            await olga("Admit", pb.AdmitRequest(slice="a", request_id=f"w{index}"))
            book: Book = service.keeper.whole.book
            assert book.where.get(f"operator/olga w{index}") == "a"

        await asyncio.gather(*(admit(index) for index in range(120)))
        assert writes[0] < 10
    store = SliceStore(at(tmp_path))
    assert len(store.load().book.where) == 120
    store.close()
