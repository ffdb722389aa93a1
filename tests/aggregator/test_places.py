"""The places of runs in slices: a real slices service, and aggregators that end at any moment and are there again."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, PermissionError_, TransportError
from orbitmesh.trust import IdentitySource, init_mesh, issue
from orbitmesh.v1 import slices_pb2
from services.aggregator import places as module
from services.aggregator.places import LIFETIME_S, Places, RunPlace
from services.aggregator.store import INITIAL, RunRecord, RunStore
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from tests.slices.support import PEOPLE, Client, Service, make_active, serving

ANN, BOB, OLGA = (f"spiffe://orbitmesh/{who}" for who in ("client/ann", "client/bob", "operator/olga"))
NODES = ("node-1", "node-2")
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities of all kinds, each in `role-name`."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    for role, name in PEOPLE:
        issue(base / "ca", role, name, base / f"{role}-{name}")
    return base


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.02)
    monkeypatch.setattr(module, "GIVE_BACK_S", 0.2)


@asynccontextmanager
async def aggregator(pki: Path, state: Path, address: str, *going_on: str) -> AsyncIterator[Places]:
    """What an aggregator that starts there knows of its places; it ends without a word."""
    store = RunStore(state)
    pool = ChannelPool(IdentitySource(pki / "aggregator-aggregator"), {})
    places = Places(store, pool, address, "slices", EventLog("aggregator", stream=io.StringIO()))
    await places.restore(going_on)
    try:
        yield places
    finally:
        await places.close()
        await pool.close()
        store.close()


@asynccontextmanager
async def sliced(pki: Path, state: Path) -> AsyncIterator[tuple[Service, Client]]:
    """A service with a slice of Ann's for one piece of work, and its operator."""
    async with serving(pki, state) as service:
        olga = await service.client("operator-olga")
        if not service.keeper.whole.book.slices:
            await make_active(olga, "a", max_number_of_ues=1)
        yield service, olga


def admitted(service: Service) -> int:
    """Pieces of work in the slice."""
    return len(service.keeper.whole.book.slices["a"].admissions)


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not met():  # noqa: ASYNC110 - the service does not tell
            await asyncio.sleep(0.01)


async def refused(call: Awaitable[object]) -> MeshError:
    with pytest.raises(MeshError) as error:
        await call
    return error.value


async def test_a_place_is_had_once_and_is_free_at_the_end(pki: Path, tmp_path: Path) -> None:
    """Who is refused has left nothing behind, in the service or on the disk."""
    async with sliced(pki, tmp_path / "slices") as (service, _):
        async with aggregator(pki, tmp_path / "agg", service.address) as places:
            assert isinstance(await refused(places.enter("run.1", "a", NODES, BOB)), PermissionError_)
            assert (await refused(places.enter("run.1", "a", ["node-2"], ANN))).reason == "FAILED_PRECONDITION"
            assert (await refused(places.enter("run.1", "none", NODES, OLGA))).reason == "NOT_FOUND"
            await places.enter("run.1", "a", NODES, ANN)
            assert isinstance(await refused(places.enter("run.2", "a", NODES, ANN)), CapacityError)
            assert admitted(service) == 1
            await places.leave("run.1")
            await places.leave("run.1")
            assert admitted(service) == 0
            await places.enter("run.2", "a", NODES, OLGA)
        assert admitted(service) == 1
        store = RunStore(tmp_path / "agg")
        assert [(place.run, place.slice, place.holder) for place in store.places()] == [("run.2", "a", OLGA)]
        store.close()


async def test_an_aggregator_that_is_back_keeps_the_places_of_runs_that_go_on(pki: Path, tmp_path: Path) -> None:
    """And gives back those of others: runs that had ended, or had never begun when it was killed."""
    async with sliced(pki, tmp_path / "slices") as (service, _):
        async with aggregator(pki, tmp_path / "agg", service.address) as places:
            await places.enter("run.1", "a", NODES, ANN)
        async with aggregator(pki, tmp_path / "agg", service.address, "run.1") as places:
            assert await places.hold("run.1", NODES) == ("", module.RENEW_S)
            assert admitted(service) == 1
        async with aggregator(pki, tmp_path / "agg", service.address, "another"):
            await until(lambda: admitted(service) == 0)


async def test_a_place_outlives_its_time_as_long_as_it_is_asked_for(pki: Path, tmp_path: Path) -> None:
    """One that nobody asked for in time is had again, and under another name: while there is room."""
    async with (
        sliced(pki, tmp_path / "slices") as (service, olga),
        aggregator(pki, tmp_path / "agg", service.address) as places,
    ):
        await places.enter("run.1", "a", NODES, ANN)
        for hours in (0.9, 1.8):
            service.clock["ahead_ns"] = round(hours * LIFETIME_S * 1e9)
            assert (await places.hold("run.1", NODES))[0] == ""
        service.clock["ahead_ns"] = round(4 * LIFETIME_S * 1e9)
        await until(lambda: admitted(service) == 0)
        work = slices_pb2.AdmitRequest(slice="a", request_id="other")
        await olga("Admit", work)
        why, again_s = await places.hold("run.1", NODES)
        assert "has 1 pieces of work of at most 1" in why
        assert again_s == module.PAUSE_S
        await olga("Withdraw", slices_pb2.WithdrawRequest(request_id="other"))
        assert (await places.hold("run.1", NODES))[0] == ""
        assert (await places.hold("run.1", NODES))[0] == ""
        assert admitted(service) == 1


async def test_a_run_goes_on_while_nobody_can_be_asked_and_is_given_back_later(pki: Path, tmp_path: Path) -> None:
    """The service is away: a run that is in its slice stays there, one that wants to begin does not, and one that ends
    does not wait for long; the service hears of that when it is back."""
    async with sliced(pki, tmp_path / "slices") as (service, _):
        address = service.address
        async with aggregator(pki, tmp_path / "agg", address) as places:
            await places.enter("run.1", "a", NODES, ANN)
            await service.host.drain(0.0)
            place = RunPlace(places, "run.1", "a", NODES, lambda: None)
            keeping = asyncio.ensure_future(place.keep())
            async with asyncio.timeout(WITHIN_S):
                await place.settle(lambda why: pytest.fail(why))
            keeping.cancel()
            assert isinstance(await refused(places.enter("run.2", "a", NODES, ANN)), TransportError)
            await places.leave("run.1")
            store = RunStore(tmp_path / "agg")
            assert {place.run for place in store.places()} == {"run.1", "run.2"}
            store.close()
    async with sliced(pki, tmp_path / "slices") as (service, _):
        assert admitted(service) == 1
        async with aggregator(pki, tmp_path / "agg", service.address):
            await until(lambda: admitted(service) == 0)


async def test_only_whose_run_it_is_has_it_go_on_for_longer(pki: Path, tmp_path: Path) -> None:
    """And operators; a run without a slice is anybody's."""
    async with (
        sliced(pki, tmp_path / "slices") as (service, _),
        aggregator(pki, tmp_path / "agg", service.address) as places,
    ):
        await places.enter("run.1", "a", NODES, ANN)
        places.check_resumed("run.1", "a", ANN)
        places.check_resumed("run.1", "a", OLGA)
        with pytest.raises(PermissionError_) as error:
            places.check_resumed("run.1", "a", BOB)
        assert error.value.reason == "SLICE_NOT_YOURS"


async def test_without_a_slices_service_a_run_in_a_slice_does_not_begin(pki: Path, tmp_path: Path) -> None:
    """It is said how one is started; a place that was had before is not forgotten."""
    async with sliced(pki, tmp_path / "slices") as (service, _):
        async with aggregator(pki, tmp_path / "agg", service.address) as places:
            await places.enter("run.1", "a", NODES, ANN)
        async with aggregator(pki, tmp_path / "agg", "") as places:
            error = await refused(places.enter("run.2", "a", NODES, ANN))
            assert isinstance(error, InvalidInputError)
            assert "--slices" in error.message
        async with aggregator(pki, tmp_path / "agg", service.address):
            await until(lambda: admitted(service) == 0)


def test_a_store_from_before_there_were_slices_is_opened(tmp_path: Path) -> None:
    """Its runs are in none."""
    store = RunStore(tmp_path)
    store.begin(RunRecord("old", "request", {"task": "digits", "rounds": 2}, "running", "", INITIAL, {}))
    store.close()
    database = sqlite3.connect(tmp_path / "aggregator.sqlite")
    database.execute("DROP TABLE places")
    database.execute("PRAGMA user_version=1")
    database.commit()
    database.close()
    again = RunStore(tmp_path)
    assert again.get("old").spec == {"task": "digits", "rounds": 2}
    assert again.places() == []
    again.close()
