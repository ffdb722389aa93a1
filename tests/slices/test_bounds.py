"""Everything has a bound, and who meets it hears that."""

from __future__ import annotations

import asyncio
import random

import pytest

from orbitmesh.errors import CapacityError, MeshError
from orbitmesh.v1 import slices_pb2 as pb
from services.slices import admission, book, keeper, watching
from services.slices.amounts import NOTHING
from services.slices.persistent import BLOCK, Order, Table
from services.slices.traffic import COUNT_MAX, PROCESSES_MAX, REPORTERS_MAX, Totals, Traffic, add
from services.slices.values import Book, Node
from tests.slices.support import WAIT_S, Service, a_profile, make_active
from tests.slices.test_book import ACTIVE, admitted, defined, mesh


def test_so_many_slices_and_no_more_of_one_tenant() -> None:
    """One tenant does not take the places of all others; what ends makes room."""
    state = mesh()
    for index in range(book.PER_TENANT_MAX):
        state = defined(state, f"s{index}")
    with pytest.raises(CapacityError):
        defined(state, "one-more")
    for index in range(book.PER_TENANT_MAX, book.SLICES_MAX):
        state = defined(state, f"s{index}", tenant=f"t{index}")
    with pytest.raises(CapacityError):
        defined(state, "one-more", tenant="somebody")
    state = book.release(state, "s0", state.etag_of(state.slices["s0"].promise), False, 1)
    assert "one-more" in defined(state, "one-more").slices


def test_so_much_work_over_all_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the slice itself would have room."""
    monkeypatch.setattr(admission, "ADMISSIONS_MAX", 3)
    state = ACTIVE
    for index in range(3):
        state = admitted(state, "a", f"k{index}")
    with pytest.raises(CapacityError) as full:
        admitted(state, "a", "one-more")
    assert full.value.reason == "CAPACITY_EXHAUSTED"


def test_a_refusal_looks_at_so_many_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond them it says before when there is no room, rather than look on."""
    monkeypatch.setattr(admission, "LOOKED_AT_MAX", 2)
    state = ACTIVE
    for index in range(4):
        state = admitted(state, "a", f"k{index}", until_s=10 + index, CPU=1)
    with pytest.raises(CapacityError) as full:
        admitted(state, "a", "large", CPU=4)
    assert int(full.value.metadata["free_not_before_ns"]) == 11 * 10**9
    assert "free_at_ns" not in full.value.metadata
    with pytest.raises(CapacityError) as full:
        admitted(state, "a", "small", CPU=2)
    assert int(full.value.metadata["free_at_ns"]) == 11 * 10**9


def test_of_more_nodes_than_there_may_be_the_first_by_name_count() -> None:
    """The same ones whatever order they come in."""
    names = [f"n{index:04}" for index in range(book.NODES_MAX + 10)]
    state = book.seen(Book("mark"), {name: Node(NOTHING) for name in reversed(names)})
    assert sorted(state.nodes) == names[: book.NODES_MAX]


def test_who_reports_is_remembered_within_bounds_and_counts_do_not_overflow() -> None:
    """The one that was new first is forgotten; a count that is full stays full."""
    totals = Totals()
    for index in range(REPORTERS_MAX + 5):
        totals = add(totals, f"executor/n{index}", b"p" * 16, 1, {}, ())
    assert len(totals.reporters) == REPORTERS_MAX
    assert "executor/n0" not in totals.reporters
    for index in range(PROCESSES_MAX + 5):
        totals = add(totals, "executor/n9", bytes([index]) * 16, 1, {}, ())
    assert len(totals.reporters["executor/n9"]) == PROCESSES_MAX
    full = Traffic(frames=COUNT_MAX, waits=(COUNT_MAX,))
    assert (full + Traffic(frames=9, waits=(9, 1))) == Traffic(frames=COUNT_MAX, waits=(COUNT_MAX, 1))


async def test_so_many_watch_and_one_that_leaves_makes_room(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more hears it at once."""
    monkeypatch.setattr(watching, "WATCHERS_MAX", 2)
    olga = await service.client("operator-olga")
    watches = [olga.watch() for _ in range(2)]
    for each in watches:
        await each.read()
    with pytest.raises(Exception, match="2 watch the slices already"):
        await olga.watch().read()
    watches[0].cancel()
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                again = olga.watch()
                await again.read()
                break
            except Exception as error:
                assert "2 watch the slices already" in str(error)
    again.cancel()


async def test_so_much_waits_for_the_disk(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is slow, what is more is refused at once and changes nothing; what waited is carried out."""
    olga = await service.client("operator-olga")
    await make_active(olga, "a", max_number_of_ues=1000)
    monkeypatch.setattr(keeper, "WAITING_MAX", 5)
    slow, save = asyncio.Event(), service.keeper._store.save
    loop = asyncio.get_running_loop()

    def waiting(*given: object) -> None:
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result(WAIT_S)
        save(*given)  # type: ignore[arg-type]

    service.keeper._store.save = waiting  # type: ignore[method-assign]

    async def admit(index: int) -> bool:
        try:
            await olga("Admit", pb.AdmitRequest(slice="a", request_id=f"w{index}"))
        except MeshError as error:
            assert error.reason == "CAPACITY_EXHAUSTED"
            slow.set()
            return False
        return True

    done = await asyncio.gather(*(admit(index) for index in range(40)))
    assert 5 <= sum(done) < 40
    assert service.keeper.whole.book.slices["a"].admissions.count == sum(done)
    profile = a_profile()
    assert (await olga("DefineSlice", pb.DefineSliceRequest(name="b", profile=profile))).slice.name == "b"


def test_tables_and_orders_are_maps_and_sorted_lists() -> None:
    """Against Python's own, through ten thousand changes in a random order; what was there before stays as it was."""
    chance = random.Random(3)
    table: Table[int] = Table()
    order, model = Order(), dict[str, int]()
    kept = []
    for step in range(10_000):
        key = f"k{chance.randrange(3_000)}"
        if chance.random() < 0.6:
            if key in model:
                order = order.drop((model[key], key))
            model[key] = chance.randrange(10**6)
            table, order = table.put(key, model[key]), order.add((model[key], key))
        elif key in model:
            order, table = order.drop((model.pop(key), key)), table.drop(key)
        else:
            assert table.drop(key) is table
        if step % 2_000 == 0:
            kept.append((table, order, dict(model)))
    kept.append((table, order, dict(model)))
    for table, order, was in kept:
        entries = sorted((value, key) for key, value in was.items())
        assert list(order) == entries
        assert order.first == (entries[0] if entries else None)
        assert len(table) == len(was)
        assert {key: table.get(key) for key in was} == was
        assert sorted(table.values()) == sorted(was.values())
        assert all(len(block) <= BLOCK for block in order.blocks)
    (first, _, was), (last, _, now) = kept[1], kept[-1]
    fresh, gone = last.since(first)
    assert sorted(gone) == sorted(key for key in was if key not in now)
    assert sorted(fresh) == sorted(value for key, value in now.items() if was.get(key) != value)
