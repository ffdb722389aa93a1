"""Sessions whose frames get their turn from a port, over connections in memory that are cut and damaged."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orbitmesh.errors import CapacityError, MeshError
from orbitmesh.trust import Identity, init_mesh, issue
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.dialler import Dialler
from orbitmesh.wire.frames import parse_header, split_message
from orbitmesh.wire.session import Session
from services.egress import EgressPort, PortSpec, SliceRule
from tests.wire.memory_wire import Faults, Network, Pipe

SPEC = PortSpec(100e6, {"urllc": SliceRule(5e6, urgent=True), "embb": SliceRule(50e6, 0, 80e6)})


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    home: Path = tmp_path_factory.mktemp("identities")
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    return issue(ca, "executor", "sat-1", home / "1"), issue(ca, "executor", "sat-2", home / "2")


class Receiver:
    """The other end: keeps what comes, in order."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int, bytes]] = []

    async def __call__(self, session: Session) -> None:
        async for received in session:
            self.got.append((received.info.slice, received.info.blob.tag, bytes(received.data)))


class Recorded(Network):
    """Keeps what the dialling end wrote."""

    def note(self, pipe: Pipe, side: int, message: bytes) -> None:
        super().note(pipe, side, message)
        if side == 0:
            self.__dict__.setdefault("written", []).append(message)


@asynccontextmanager
async def connected(
    identities: tuple[Identity, Identity], port: EgressPort | None, faults: Faults | None = None, window: int = 4 << 20
) -> AsyncIterator[tuple[Session, Receiver, Network]]:
    receiver = Receiver()
    network = Recorded(SessionAcceptor(identities[1], receiver, window=window), identities[0].spiffe, 0, faults)
    session = await Dialler(
        network.open,
        identities[0],
        receiver_role="executor",
        receiver_name="sat-2",
        window=window,
        egress=port,
        jitter=random.Random(0).random,
    ).start()
    try:
        yield session, receiver, network
    finally:
        await session.close()
        await network.stop()


def info(name: str, tag: int) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(slice=name, blob=wire_pb2.BlobInfo(tag=tag))


@pytest.mark.parametrize("seed", range(3))
async def test_transfers_in_slices_arrive_whole_over_bad_connections(
    identities: tuple[Identity, Identity], seed: int
) -> None:
    """Transfers of three slices at once, over connections that are cut and damaged: each arrives once and whole, those
    of one slice that were sent one after the other in their order; the port's account holds, and it is empty."""
    rng = random.Random(seed)
    port = EgressPort(SPEC)
    sizes = [0, 1, 300, 5_000, 70_000, 300_000]
    sent = {name: [(tag, rng.randbytes(rng.choice(sizes))) for tag in range(12)] for name in ("", "urllc", "embb")}
    faults = Faults(cut=0.02, corrupt=0.02, duplicate=0.02, drop=0.02, swap=0.02)
    async with connected(identities, port, faults) as (session, receiver, _):

        async def send(name: str) -> None:
            for tag, data in sent[name]:
                await session.send(info(name, tag), data)

        await asyncio.gather(*map(send, sent))
        await session.flush()
        while len(receiver.got) < 36:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)
    for name, transfers in sent.items():
        assert [(tag, data) for each, tag, data in receiver.got if each == name] == transfers
    assert port.queued == 0
    for name, transfers in sent.items():
        traffic = port.traffic[name]
        assert traffic.offered_bytes == traffic.sent_bytes >= sum(len(data) for _, data in transfers)


async def test_frames_are_as_large_as_the_port_says(identities: tuple[Identity, Identity]) -> None:
    """A transfer is cut into frames that are short on the link, also one that would fit one frame."""
    spec = PortSpec(10e6, {"embb": SliceRule(0, 0, 8e6)})
    async with connected(identities, EgressPort(spec)) as (session, _, network):
        report = await session.send(info("embb", 0), bytes(60_000))
        await session.flush()
        bodies = [
            len(body)
            for message in network.__dict__["written"]
            for header, body in [split_message(message)]
            if parse_header(header).HasField("data")
        ]
    size = spec.frame_bytes(spec.rule("embb"))
    assert report.frames == -(-60_000 // size)
    assert max(bodies) == size + 16


async def test_a_small_message_overtakes_a_large_transfer(identities: tuple[Identity, Identity]) -> None:
    """While a transfer takes seconds on the link, a message of an urgent slice leaves before the next but one frame;
    the reports say who waited and what for."""
    spec = PortSpec(5e6, {"urllc": SliceRule(1e6, urgent=True), "embb": SliceRule(3e6)})
    port = EgressPort(spec)
    async with connected(identities, port) as (session, receiver, _):
        large = asyncio.create_task(session.send(info("embb", 0), bytes(400_000)))
        await asyncio.sleep(0.1)
        frames = port.traffic["embb"].frames
        report = await session.send(info("urllc", 1), b"now")
        assert port.traffic["embb"].frames <= frames + 1
        assert not large.done()
        assert report.queue_ns <= report.total_ns
        assert report.waited_for in ("", "link busy")
        bulk = await large
        assert bulk.waited_for == "link busy"
        assert 0 < bulk.queue_ns <= bulk.total_ns
        await session.flush()
    assert [tag for _, tag, _ in receiver.got] == [1, 0]


async def test_a_ceiling_is_named_in_the_report(identities: tuple[Identity, Identity]) -> None:
    """A transfer that its slice's ceiling held back says so, in the words that a trace shows."""
    port = EgressPort(PortSpec(100e6, {"embb": SliceRule(0, 0, 4e6)}))
    async with connected(identities, port) as (session, _, _):
        began = time.monotonic()
        report = await session.send(info("embb", 0), bytes(100_000))
        assert report.waited_for == "slice ceiling 4 Mbit/s"
        assert time.monotonic() - began >= 0.9 * 100_000 * 8 / 4e6


async def test_a_cancelled_transfer_gives_its_place_back(identities: tuple[Identity, Identity]) -> None:
    """A transfer that is cancelled while it waits for its turn takes neither the link nor credit from others."""
    port = EgressPort(PortSpec(1e6, {"embb": SliceRule(0, 0, 1e5)}))
    async with connected(identities, port, window=2 << 20) as (session, receiver, _):
        for _ in range(3):
            waiting = asyncio.create_task(session.send(info("embb", 0), bytes(1_000_000)))
            await asyncio.sleep(0.03)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert port.queued == 0
        await session.send(info("", 1), b"free")
        await session.flush()
        assert receiver.got == [("", 1, b"free")]


async def test_a_session_that_ends_leaves_the_port_to_others(identities: tuple[Identity, Identity]) -> None:
    """Who waits for a turn in a session that fails gets its error at once, not when the turn comes."""
    port = EgressPort(PortSpec(1e6, {"embb": SliceRule(0, 0, 1e4)}))
    async with connected(identities, port) as (session, _, _):
        waiting = [asyncio.create_task(session.send(info("embb", tag), bytes(5_000))) for tag in range(4)]
        await asyncio.sleep(0.02)
        session.end()
        began = time.monotonic()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(each, MeshError) for each in results) >= 3
        assert time.monotonic() - began < 4  # the ceiling would have let the next frame go after 4 seconds
    assert port.queued == 0


async def test_a_session_that_is_closed_sends_what_waits_first(identities: tuple[Identity, Identity]) -> None:
    """Messages that wait for their turn when the session is closed arrive before its end."""
    port = EgressPort(PortSpec(1e8, {"embb": SliceRule(0, 0, 1e5)}))
    async with connected(identities, port) as (session, receiver, _):
        waiting = [asyncio.create_task(session.send(info("embb", tag), bytes(500))) for tag in range(6)]
        await asyncio.sleep(0)
        await session.close()
        await asyncio.gather(*waiting)
    assert [tag for _, tag, _ in receiver.got] == list(range(6))


class Noted(EgressPort):
    """Keeps what was said to go without a turn."""

    def occupy(self, size: int) -> None:
        self.__dict__.setdefault("occupied", []).append(size)
        super().occupy(size)


async def test_what_is_written_again_takes_its_time_on_the_link(identities: tuple[Identity, Identity]) -> None:
    """After a cut, frames that were not acknowledged go again without another turn, each arrives once, and the port is
    told of all that is written again: others wait for it in the port."""
    port = Noted(PortSpec(20e6))
    async with connected(identities, port) as (session, receiver, network):
        await session.send(info("", 0), b"first")
        await session.flush()
        network.faults.drop = 1.0  # what follows is lost, and 30 ms later the connection
        await session.send(info("", 1), bytes(50_000))
        network.faults.drop = 0.0
        await session.send(info("", 2), b"last")
        await session.flush()
        resent = session.stats.resent_bytes
    assert [tag for _, tag, _ in receiver.got] == [0, 1, 2]
    assert sum(port.__dict__["occupied"]) >= resent > 0
    traffic = port.traffic[""]
    assert traffic.offered_bytes == traffic.sent_bytes < 50_000 * 1.1


async def test_a_flood_gets_a_typed_error_and_the_session_goes_on(identities: tuple[Identity, Identity]) -> None:
    """Past the bound of its slice's queue a transfer fails with SLICE_FULL; others in the session arrive."""
    port = EgressPort(PortSpec(1e8, {"embb": SliceRule(0, 0, 1e5)}))
    async with connected(identities, port) as (session, receiver, _):
        waiting = [asyncio.create_task(session.send(info("embb", tag), b"x")) for tag in range(1100)]
        await asyncio.sleep(0.2)
        refused = [task for task in waiting if task.done() and isinstance(task.exception(), CapacityError)]
        assert len(refused) >= 50
        assert {error.reason for task in refused if isinstance(error := task.exception(), MeshError)} == {"SLICE_FULL"}
        await session.send(info("", 5), b"still here")
        await session.flush()
        assert ("", 5, b"still here") in receiver.got
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
