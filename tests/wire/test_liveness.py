"""A peer that falls silent is noticed, a late, thin or busy one is left alone; all in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from orbitmesh.errors import MeshError, NodeLostError
from orbitmesh.trust import Identity, init_mesh, issue
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.acceptor import SessionAcceptor
from orbitmesh.wire.dialler import Dialler
from orbitmesh.wire.frames import control_message, parse_header, split_message
from orbitmesh.wire.session import Session
from tests.simulation.loop import VirtualTimeLoop, simulate
from tests.simulation.streams import Connection, Link, Net


@dataclass(frozen=True)
class Mesh:
    one: Identity
    two: Identity


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    home = tmp_path_factory.mktemp("identities")
    return Mesh(issue(ca, "executor", "sat-1", home / "1"), issue(ca, "executor", "sat-2", home / "2"))


def blob(tag: int = 0) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=tag))


@dataclass
class World:
    net: Net
    acceptor: SessionAcceptor
    session: Session
    taken: list[bytes]
    written: list[float]

    def other(self) -> Session:
        return self.acceptor.sessions[0]


@asynccontextmanager
async def connected(mesh: Mesh, link: Link | None = None, **options: Any) -> AsyncIterator[World]:
    taken: list[bytes] = []

    async def on_session(session: Session) -> None:
        async for received in session:
            taken.append(bytes(received.data))

    net = Net(1, link or Link(latency_s=0.005))
    acceptor = SessionAcceptor(mesh.two, on_session)
    net.acceptor, net.caller = acceptor, mesh.one.spiffe
    written: list[float] = []
    net.watch_writes = lambda *_: written.append(asyncio.get_running_loop().time())
    session = await Dialler(
        net.open,
        mesh.one,
        receiver_role="executor",
        receiver_name="sat-2",
        jitter=random.Random(1).random,
        **options,
    ).start()
    await asyncio.sleep(2.5 * net.link.latency_s + net.link.jitter_s * 3)  # both ends have the session
    try:
        yield World(net, acceptor, session, taken, written)
    finally:
        net.dark()
        await session.close()
        await net.stop()


def clock() -> float:
    return asyncio.get_running_loop().time()


async def until(check: Any, within_s: float) -> float:
    """Waits until `check` holds; gives how long that took."""
    started = clock()
    async with asyncio.timeout(within_s):
        while not check():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.001)
    return clock() - started


@pytest.mark.parametrize("sides", [(0, 1), (0,), (1,)])
def test_both_ends_notice_a_silent_peer_within_a_second(mesh: Mesh, sides: tuple[int, ...]) -> None:
    """Where nothing arrives any more, without a word from the transport, each end that hears nothing gives the
    connection up in a second, and takes the session up again when the link is back; nothing is lost."""

    async def run() -> None:
        async with connected(mesh) as world:
            with world.session.watched(), world.other().watched():
                await asyncio.sleep(10)
                world.net.dark(*sides)
                await world.session.send(blob(), b"into the dark")
                ends = [world.session] if 1 in sides else []
                ends += [world.other()] if 0 in sides else []
                for end in ends:
                    assert await until(lambda end=end: not end.attached, 1.02) <= 1.01
                await asyncio.sleep(2)
                world.net.dark()
                await until(lambda: world.session.attached and len(world.taken) == 1, 3)
            assert world.session.stats.resumes >= 1

    simulate(run())


def test_a_node_that_stays_silent_is_lost_when_the_dialler_says(mesh: Mesh) -> None:
    """With `give_up_after_s=1` a session whose peer vanished ends as NodeLostError a second after it was heard last,
    having tried to come back before; what waits in it is told."""

    async def run() -> None:
        async with connected(mesh, give_up_after_s=1.0) as world:
            await asyncio.sleep(20)
            await world.session.send(blob(), b"x")
            await world.session.flush()
            heard, opened = clock(), len(world.net.connections)
            world.net.dark(0, 1)
            await world.session.send(blob(), b"y")
            with pytest.raises(NodeLostError):
                await world.session.receive()
            assert 0.9 <= clock() - heard <= 1.01
            assert len(world.net.connections) > opened
            with pytest.raises(NodeLostError):
                await world.session.send(blob(), b"z")

    simulate(run())


def test_a_short_outage_ends_well_although_the_dialler_gives_up_soon(mesh: Mesh) -> None:
    """Cut for half a second with a second to come back, a session goes on."""

    async def run() -> None:
        async with connected(mesh, give_up_after_s=1.0) as world:
            for outage in range(5):
                await world.session.send(blob(outage), b"x")
                world.net.link.refuses = True
                world.net.cut()
                await asyncio.sleep(0.5)
                world.net.link.refuses = False
                await world.session.send(blob(outage), b"y")
                await world.session.flush()
            assert len(world.taken) == 10

    simulate(run())


def test_an_idle_session_says_nothing(mesh: Mesh) -> None:
    """Some seconds after its last frame a session writes nothing at all, at either end, for as long as it is idle."""

    async def run() -> None:
        async with connected(mesh) as world:
            await world.session.send(blob(), b"x")
            await asyncio.sleep(10)
            before = len(world.written)
            await asyncio.sleep(3600)
            assert len(world.written) == before
            world.net.dark(0, 1)  # and then notices at once, when it is used again
            await world.session.send(blob(), b"y")
            assert await until(lambda: not world.session.attached, 1.02) > 0.9

    simulate(run())


def test_a_busy_session_asks_next_to_nothing(mesh: Mesh) -> None:
    """Decode steps every 20 ms keep both ends heard: less than one message in fifty is a question or an answer."""

    async def run() -> None:
        kinds: list[str] = []

        def watch(_: Connection, side: int, message: bytes) -> None:
            header = parse_header(split_message(message)[0])
            asks = header.HasField("ack") and (header.ack.ping or header.ack.pong)
            kinds.append("liveness" if asks else "other")

        async with connected(mesh) as world:
            world.net.watch_writes = watch
            for _ in range(3000):
                await world.session.send(blob(), bytes(4096))
                await asyncio.sleep(0.02)
        assert kinds.count("liveness") < len(kinds) / 50

    simulate(run())


def test_a_late_link_is_not_a_silent_one(mesh: Mesh) -> None:
    """600 ms of round trip with 300 ms of jitter, watched for an hour: not one connection is given up; darkness still
    is noticed within four round trips and a half."""

    async def run() -> None:
        async with connected(mesh, Link(latency_s=0.3, jitter_s=0.15)) as world:
            with world.session.watched():
                await asyncio.sleep(3600)
                assert world.session.stats.resumes == 0
                assert 0.6 <= world.session.round_trip_s <= 0.9
                world.net.dark(0, 1)
                await until(lambda: not world.session.attached, 4.5 * 0.9)

    simulate(run())


def test_a_process_that_stood_still_blames_nobody(mesh: Mesh) -> None:
    """After 5 s in which this process did nothing, as in a long collection or a suspension, its sessions go on."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        async with connected(mesh) as world:
            with world.session.watched(), world.other().watched():
                for _ in range(20):
                    await asyncio.sleep(0.777)
                    loop.block(5.0)
                await asyncio.sleep(3)
            assert world.session.stats.resumes == 0

    simulate(run())


@pytest.mark.parametrize(("rate_bps", "cuts"), [(1e6, 0), (200e3, 1), (50e3, 6)])
def test_a_large_transfer_on_a_thin_link_is_not_cut(mesh: Mesh, rate_bps: float, cuts: int) -> None:
    """3 MB, or what a thinner link carries in half a minute, arrive; only where a first frame of 16 KiB takes longer
    than a second are connections given up until frame and patience fit the link."""

    async def run() -> None:
        size = int(min(3_000_000, rate_bps / 8 * 30))
        data = random.Random(2).randbytes(size)
        async with connected(mesh, Link(latency_s=0.02, rate_bps=rate_bps, buffer_bytes=32 << 10)) as world:
            await asyncio.wait_for(world.session.send(blob(), data), 200)
            await asyncio.wait_for(world.session.flush(), 100)
            await until(lambda: world.taken == [data], 5)
            assert world.session.stats.resumes <= cuts
            assert world.session._sender.pace.frame_bytes <= max(rate_bps / 8 * 0.25, 4096)

    simulate(run())


def test_a_fast_link_gets_large_frames(mesh: Mesh) -> None:
    """At 1 Gbit/s frames grow to 1 MiB, also on a late link."""

    async def run() -> None:
        link = Link(latency_s=0.05, rate_bps=1e9, buffer_bytes=16 << 20)
        async with connected(mesh, link) as world:
            for _ in range(12):
                await world.session.send(blob(), bytes(4 << 20))
            await world.session.flush()
            assert world.session._sender.pace.frame_bytes >= 512 << 10

    simulate(run())


def test_an_idle_session_survives_any_number_of_cuts(mesh: Mesh) -> None:
    """Cut every minute for an hour with nothing to carry, a session is taken up again each time."""

    async def run() -> None:
        async with connected(mesh) as world:
            for _ in range(60):
                await asyncio.sleep(60)
                world.net.cut()
            await asyncio.sleep(1)
            await world.session.send(blob(), b"still here")
            await world.session.flush()
            assert world.taken == [b"still here"]

    simulate(run())


def test_a_peer_of_an_older_version_is_not_judged(mesh: Mesh) -> None:
    """A peer that does not answer questions is asked a few times and then left alone."""

    async def run() -> None:
        async with connected(mesh) as world:
            relayed = world.net.relayed

            def deaf(link: Link, way: Any, message: bytes) -> list[bytes]:
                header = parse_header(split_message(message)[0])
                if header.HasField("ack") and (header.ack.ping or header.ack.pong):
                    header.ack.ping = header.ack.pong = 0
                    return [control_message(header)]
                return relayed(link, way, message)

            world.net.relayed = deaf  # type: ignore[method-assign]
            world.net.cut()
            with world.session.watched():
                await asyncio.sleep(1)
                world.session._carrier.liveness._answered = False
                before = len(world.written)
                await asyncio.sleep(60)
                assert len(world.written) - before < 20
                assert world.session.stats.resumes == 1

    simulate(run())


@pytest.mark.parametrize("latency_s", [0.005, 0.3])
def test_a_frame_that_is_lost_on_a_living_connection_comes_again(mesh: Mesh, latency_s: float) -> None:
    """A relay that drops the last frame is found out by the next answer; the frame is written again."""

    async def run() -> None:
        async with connected(mesh, Link(latency_s=latency_s)) as world:
            await world.session.send(blob(), b"first")
            await world.session.flush()
            world.net.link.drop = 1.0
            await world.session.send(blob(), b"second")
            world.net.link.drop = 0.0
            await asyncio.wait_for(world.session.flush(), 5)
            assert world.taken == [b"first", b"second"]
            assert world.session.stats.resumes == 1

    simulate(run())


def test_errors_are_typed_where_nobody_comes_back(mesh: Mesh) -> None:
    """A silent peer that is gone for good fails a flush and a watcher alike, with NODE_LOST."""

    async def run() -> None:
        async with connected(mesh, give_up_after_s=3.0) as world:
            await asyncio.sleep(1)
            world.net.dark(0, 1)
            await world.session.send(blob(), b"x")
            with pytest.raises(MeshError) as raised:
                await world.session.flush()
            assert raised.value.reason == "NODE_LOST"

    simulate(run())
