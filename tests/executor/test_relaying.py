"""Connections that pass through other executors: whole, sealed, bounded, and ended with a reason."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from orbitmesh.errors import MeshError, PermissionError_, TransportError
from orbitmesh.rpc import keep_status, mapped_errors
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, wire_pb2
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, dial
from services.executor.relaying import RelayTable
from services.links.relay import Relay as EmulatedLink
from services.links.relay import RelaySpec
from services.links.shaper import Shape
from services.runtime.channels import ChannelPool
from services.runtime.tunnel import PATH_MAX, Entrance, Hop, open_relay
from services.runtime.tunnel_ends import CallEnd, End
from tests.executor.relay_mesh import HANG, Ca, apart, chain, node
from tests.runtime.conftest import until

MARK = b"nobody in between may read this. "
UNDER_WAY_PER_HOP_BYTES = 12 << 20
"""Windows of HTTP/2 and buffers of the kernel, each some MiB on loopback: far below what is sent."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("mesh"))


async def probe(stub: executor_pb2_grpc.ExecutorServiceStub, payload: bytes) -> bytes:
    request = executor_pb2.ProbeRequest(payload=payload, reply_bytes=len(payload))
    with mapped_errors():
        return bytes((await stub.Probe(request, timeout=60)).payload)


async def session_to(pool: ChannelPool, ca: Ca, far: Hop, via: Sequence[Hop], **more: Any) -> Session:
    return await dial(
        pool.exchange(Role.EXECUTOR, far.name, far.address, EXCHANGE, via),
        IdentitySource(ca.path("executor/near")),
        receiver_role="executor",
        receiver_name=far.name,
        **more,
    )


async def echoed(session: Session, data: bytes) -> bytes:
    await session.send(wire_pb2.TransferInfo(), data)
    async for received in session:
        return bytes(received.data)
    raise AssertionError("the session ended")


@asynccontextmanager
async def pool_of(ca: Ca, title: str = "executor/near") -> AsyncIterator[ChannelPool]:
    pool = ChannelPool(IdentitySource(ca.path(title)), {})
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def listening(serve: Serve, name: str = "plain") -> AsyncIterator[Hop]:
    """A TCP server without TLS, as the far end of a tunnel."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=64 << 10)
    try:
        yield Hop(Role.EXECUTOR, name, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()


@asynccontextmanager
async def entered(pool: ChannelPool, path: Sequence[Hop]) -> AsyncIterator[tuple[Entrance, socket.socket]]:
    """A plain connection of this process into a tunnel along `path`."""

    async def open_far() -> CallEnd:
        return await open_relay(pool.get(path[0].role, path[0].name, path[0].address), path[0], path[1:])

    entrance = Entrance(path[-1].title, open_far)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        sock.connect("\0" + entrance.target.removeprefix("unix-abstract:"))
        try:
            yield entrance, sock
        finally:
            await entrance.close()


# Whole.


@pytest.mark.parametrize("relays", [1, 3])
async def test_calls_and_sessions_pass_through_relays(ca: Ca, relays: int) -> None:
    """A call and a session reach the far node, which sees who really calls; every relay carried the bytes."""
    async with chain(ca, relays) as made:
        payload = MARK * 10_000
        assert await probe(made.stub(), payload) == payload
        assert made.far.probes == [("executor/near", payload)]
        session = await session_to(made.near, ca, made.far.hop, made.via)
        assert await echoed(session, payload) == payload
        await session.close()
        for relay in made.relays:
            assert relay.probes == []
            stats = relay.relays.stats
            assert (stats.tunnels, stats.opened, stats.refused) == (1, 1, 0)
            assert stats.sent_bytes > 2 * len(payload) and stats.received_bytes > 2 * len(payload)
        await made.near.close()
        await until(lambda: all(relay.relays.stats.tunnels == 0 for relay in made.relays))


async def test_tunnels_pass_over_late_links(ca: Ca) -> None:
    """With an emulated link of 15 ms before each hop, the far node answers after at least all of their latencies."""
    async with chain(ca, 2) as made:
        shape = Shape(latency_ms=15)

        async def late(hop: Hop) -> EmulatedLink:
            return await EmulatedLink.start(RelaySpec(hop.name, hop.address, forward=shape, reverse=shape))

        first, second, last = [await late(each.hop) for each in (*made.relays, made.far)]
        async with first, second, last:
            via = [Hop(Role.EXECUTOR, "r1", first.address), Hop(Role.EXECUTOR, "r2", "not.used:1")]
            made.relays[0].knows(Hop(Role.EXECUTOR, "r2", second.address))
            made.relays[1].knows(Hop(Role.EXECUTOR, "far", last.address))
            channel = made.near.get(Role.EXECUTOR, "far", "not.used:1", via)
            stub = executor_pb2_grpc.ExecutorServiceStub(channel)
            assert await probe(stub, MARK) == MARK
            began = asyncio.get_running_loop().time()
            assert await probe(stub, MARK) == MARK
            assert asyncio.get_running_loop().time() - began >= 6 * 0.015
            await made.near.close()


# Sealed.


class Tapped:
    """An end that keeps what passes, and flips one bit of it when asked."""

    def __init__(self, inner: End) -> None:
        self._inner = inner
        self.seen = bytearray()
        self.flip_sent: int | None = None
        self.flip_received: int | None = None

    async def read(self) -> bytes:
        data = await self._inner.read()
        self.seen += data
        if self.flip_received is not None and data:
            data, self.flip_received = flipped(data, self.flip_received), None
        return data

    async def write(self, data: bytes) -> None:
        self.seen += data
        if self.flip_sent is not None:
            data, self.flip_sent = flipped(data, self.flip_sent), None
        await self._inner.write(data)

    async def finish(self) -> None:
        await self._inner.finish()

    async def close(self) -> None:
        await self._inner.close()

    def abort(self) -> None:
        self._inner.abort()


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


class Tapping(RelayTable):
    """A relay that does what it should not."""

    async def _onward(self, path: Sequence[Hop]) -> End:
        self.tap = Tapped(await super()._onward(path))
        return self.tap


async def test_relays_see_nothing_of_what_they_carry(ca: Ca) -> None:
    """Payloads, method names and identities of calls and sessions do not occur in the bytes that pass a relay."""
    async with chain(ca, 2, Tapping) as made:
        assert await probe(made.stub(), MARK * 100) == MARK * 100
        session = await session_to(made.near, ca, made.far.hop, made.via)
        assert await echoed(session, MARK * 100) == MARK * 100
        await session.close()
        for relay in made.relays:
            assert isinstance(relay.relays, Tapping)
            seen = bytes(relay.relays.tap.seen)
            assert len(seen) > 4 * 100 * len(MARK)
            for secret in (MARK, b"ExecutorService", b"Probe", b"spiffe://orbitmesh/executor/near"):
                assert secret not in seen


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("at", [0, 3, 7, -1])
async def test_a_relay_that_changes_a_byte_ends_the_connection(ca: Ca, at: int, back: bool) -> None:
    """A bit flipped in either direction fails the call under way; nothing wrong is delivered, and the next call opens
    a tunnel anew."""
    async with chain(ca, 1, Tapping) as made:
        table = made.relays[0].relays
        assert isinstance(table, Tapping)
        stub, payload = made.stub(), MARK * 1000
        assert await probe(stub, payload) == payload
        if back:
            table.tap.flip_received = at
        else:
            table.tap.flip_sent = at
        with pytest.raises(TransportError):
            await probe(stub, payload)
        await until(lambda: table.stats.tunnels == 0)
        while table.stats.opened < 2:
            try:
                assert await probe(stub, payload) == payload
            except TransportError:
                await asyncio.sleep(0.02)  # gRPC waits a little before it connects again
        assert all(received == payload for _, received in made.far.probes)


async def test_another_node_cannot_answer_for_the_far_end(ca: Ca) -> None:
    """A relay that leads to another member than the one that was asked for is found out by the certificate."""
    async with chain(ca, 1) as made, node(ca.path("executor/other")) as other:
        made.relays[0].knows(Hop(Role.EXECUTOR, "far", other.hop.address))
        with pytest.raises(MeshError) as caught:
            await probe(made.stub(), MARK)
        assert caught.value.reason == "IDENTITY_INVALID"
        assert other.probes == [] and made.far.probes == []


# Bounded.


async def test_a_reader_that_stops_stops_the_sender(ca: Ca) -> None:
    """Of 160 MiB at most 24 are under way while the far end does not read; once it reads, every byte arrives in order.
    Of the relay's memory all that takes at most 48 MiB: gRPC's buffers take what they need to go on, not what comes."""
    go_on, digest, received = asyncio.Event(), hashlib.sha256(), 0
    done = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await go_on.wait()
        while data := await reader.read(64 << 10):
            digest.update(data)
            received += len(data)
        done.set()

    piece, pieces = bytes(range(256)) * 1024, 640
    async with apart(ca.path("executor/r1")) as relay, listening(slow) as plain, pool_of(ca) as pool:
        await relay.knows(plain)
        before = await relay.peak_bytes()
        async with entered(pool, [relay.hop, plain]) as (_, sock):
            loop, sent = asyncio.get_running_loop(), 0

            async def send() -> None:
                nonlocal sent
                for number in range(pieces):
                    await loop.sock_sendall(sock, number.to_bytes(4, "big") + piece[4:])
                    sent += 1
                sock.shutdown(socket.SHUT_WR)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                held = -1
                while sent != held or not sent:
                    held = sent
                    await asyncio.sleep(0.5)
                assert 0 < held * len(piece) < 2 * UNDER_WAY_PER_HOP_BYTES
                go_on.set()
            await done.wait()
        assert (await relay.peak_bytes()) - before < 4 * UNDER_WAY_PER_HOP_BYTES
    expected = hashlib.sha256()
    for number in range(pieces):
        expected.update(number.to_bytes(4, "big") + piece[4:])
    assert received == pieces * len(piece) and digest.digest() == expected.digest()


async def test_a_node_carries_so_many_tunnels_and_no_more(ca: Ca) -> None:
    """One tunnel more than allowed is refused with CAPACITY_EXHAUSTED; when one ends there is room again."""
    async with chain(ca, 1, tunnels_max=1) as made:
        assert await probe(made.stub(), MARK) == MARK
        async with pool_of(ca, "executor/second") as second:
            channel = second.get(Role.EXECUTOR, "far", made.far.hop.address, made.via)
            with pytest.raises(MeshError) as caught:
                await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK)
            assert (caught.value.reason, caught.value.metadata["hop"]) == ("CAPACITY_EXHAUSTED", "r1")
            failure = second.tunnel_failure(Role.EXECUTOR, "far")
            assert failure is not None and failure.reason == "CAPACITY_EXHAUSTED"
        await made.near.close()
        await until(lambda: made.relays[0].relays.stats.tunnels == 0)
        async with pool_of(ca, "executor/second") as second:
            channel = second.get(Role.EXECUTOR, "far", made.far.hop.address, made.via)
            assert await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK) == MARK


async def test_a_tunnel_that_carries_nothing_is_ended(ca: Ca) -> None:
    """After its idle time both ends are told: the caller by a reason, the far end by a reset."""
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionError as error:
            ended.set_result(error)

    async with chain(ca, 1, idle_s=0.2) as made, listening(silent) as plain:
        made.relays[0].knows(plain)
        async with entered(made.near, [*made.via, plain]) as (entrance, sock):
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
            assert entrance.failure is not None and "carried nothing" in entrance.failure.message
            assert isinstance(await ended, ConnectionResetError)


# Refused.


@pytest.mark.parametrize("relays", [1, 2])
@pytest.mark.parametrize("role", ["executor", "gateway"])
async def test_a_relay_connects_to_members_only(ca: Ca, relays: int, role: str) -> None:
    """A peer that a relay does not know is refused with RELAY_REFUSED, and nothing connects to the address given."""
    met = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)

    async with chain(ca, relays) as made, listening(note) as stranger:
        channel = made.near.get(Role(role), "stranger", stranger.address, made.via)
        with pytest.raises(PermissionError_) as caught:
            await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK)
        assert caught.value.reason == "RELAY_REFUSED"
        assert caught.value.metadata["relay"] == f"r{relays}"
        target = Hop(Role.EXECUTOR, "stranger", stranger.address)
        with pytest.raises(PermissionError_):
            await session_to(made.near, ca, target, made.via)
        known_elsewhere = made.near.get(Role.EXECUTOR, "far", stranger.address, made.via)
        assert await probe(executor_pb2_grpc.ExecutorServiceStub(known_elsewhere), MARK) == MARK
        assert met == []


def hop(name: str, role: Role = Role.EXECUTOR) -> Hop:
    return Hop(role, name, "127.0.0.1:1")


@pytest.mark.parametrize(
    ("path", "reason", "words"),
    [
        ([], "INVALID_INPUT", "must name the nodes"),
        ([hop("r1")], "INVALID_INPUT", "comes back to executor/r1"),
        ([hop("x"), hop("r1"), hop("y")], "INVALID_INPUT", "comes back to executor/r1"),
        ([hop("x"), hop("y"), hop("x")], "INVALID_INPUT", "comes back to executor/x"),
        ([hop("g", Role.GATEWAY), hop("x")], "INVALID_INPUT", "gateway/g cannot relay"),
        ([hop(f"n{number}") for number in range(PATH_MAX + 1)], "LIMIT_EXCEEDED", "at most 8"),
        ([Hop(Role.EXECUTOR, "no name", "x:1")], "INVALID_INPUT", "cannot be a name"),
        ([Hop(Role.EXECUTOR, "x", "y" * 300)], "LIMIT_EXCEEDED", "255 characters"),
        ([hop("x")], "RELAY_REFUSED", "no member"),
    ],
)
async def test_paths_that_cannot_be_are_refused(ca: Ca, path: list[Hop], reason: str, words: str) -> None:
    """Empty, too long, looped and unknown paths are answered with their reason."""
    async with node(ca.path("executor/r1")) as relay, pool_of(ca) as pool:
        channel = pool.get(Role.EXECUTOR, "r1", relay.hop.address)
        call = keep_status(executor_pb2_grpc.ExecutorServiceStub(channel).Relay())
        with pytest.raises(MeshError) as caught, mapped_errors():
            await call.write(executor_pb2.RelayRequest(path=[each.message() for each in path]))
            await call.read()
        assert caught.value.reason == reason and words in caught.value.message
        assert relay.relays.stats.tunnels == 0


async def test_a_loop_over_several_relays_is_refused_before_anything_is_dialled(ca: Ca) -> None:
    """A pool refuses a way that comes back to itself, to a relay, or to the far end, or that is too long."""
    async with pool_of(ca) as pool:
        for via in ([hop("near")], [hop("r1"), hop("r1")], [hop("far")], [hop(f"r{n}") for n in range(PATH_MAX + 1)]):
            with pytest.raises(MeshError) as caught:
                pool.get(Role.EXECUTOR, "far", "127.0.0.1:1", via)
            assert caught.value.reason in ("INVALID_INPUT", "LIMIT_EXCEEDED")


async def test_messages_against_the_rules_end_the_tunnel(ca: Ca) -> None:
    """Bytes before the path, a second path, and a message above 256 KiB are refused with a reason."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()

    async with node(ca.path("executor/r1")) as relay, pool_of(ca) as pool, listening(swallow) as plain:
        relay.knows(plain)
        stub = executor_pb2_grpc.ExecutorServiceStub(pool.get(Role.EXECUTOR, "r1", relay.hop.address))
        path = executor_pb2.RelayRequest(path=[plain.message()])
        for messages in (
            [executor_pb2.RelayRequest(path=[plain.message()], data=b"early")],
            [path, path],
            [path, executor_pb2.RelayRequest(data=bytes((256 << 10) + 1))],
        ):
            call = keep_status(stub.Relay())
            with pytest.raises(MeshError) as caught, mapped_errors():
                for message in messages:
                    await call.write(message)
                    answer = await call.read()
                    assert answer.connected
            assert caught.value.reason in ("INVALID_INPUT", "LIMIT_EXCEEDED")


@pytest.mark.parametrize("title", ["client/c", "operator/o"])
async def test_only_the_mesh_itself_may_open_tunnels(ca: Ca, title: str) -> None:
    """People's identities are refused by the table of roles."""
    async with node(ca.path("executor/r1")) as relay, pool_of(ca, title) as pool:
        channel = pool.get(Role.EXECUTOR, "far", "127.0.0.1:1", [relay.hop])
        with pytest.raises(PermissionError_) as caught:
            await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK)
        assert caught.value.reason == "ROLE_NOT_ALLOWED"


# Ended.


@pytest.mark.parametrize("killed", [1, 2])
async def test_a_killed_relay_ends_its_tunnels_with_its_name(ca: Ca, killed: int) -> None:
    """SIGKILL of either relay fails the call under way with the relay named, and the other relay lets go."""
    async with (
        node(ca.path("executor/far")) as far,
        node(ca.path(f"executor/r{3 - killed}")) as living,
        apart(ca.path(f"executor/r{killed}")) as dying,
        pool_of(ca) as pool,
    ):
        via = [dying.hop, living.hop] if killed == 1 else [living.hop, dying.hop]
        living.knows(far.hop if killed == 1 else dying.hop)
        await dying.knows(via[1] if killed == 1 else far.hop)
        stub = executor_pb2_grpc.ExecutorServiceStub(pool.get(Role.EXECUTOR, "far", far.hop.address, via))
        hanging = asyncio.ensure_future(probe(stub, HANG))
        await until(lambda: bool(far.probes))
        assert living.relays.stats.tunnels == 1
        dying.process.kill()
        await dying.process.wait()
        with pytest.raises(TransportError) as caught:
            await hanging
        assert f"cannot reach the relay r{killed} at 127.0.0.1" in caught.value.message
        assert caught.value.reason == "TRANSPORT" and caught.value.metadata["hop"] == f"r{killed}"
        await until(lambda: living.relays.stats.tunnels == 0)


async def test_a_relay_that_drains_takes_no_tunnels_and_ends_those_it_has(ca: Ca) -> None:
    """New tunnels get DRAINING at once; one that is open gets it after a grace."""
    async with chain(ca, 1, drain_s=0.5) as made:
        hanging = asyncio.ensure_future(probe(made.stub(), HANG))
        await until(lambda: bool(made.far.probes))
        draining = asyncio.ensure_future(made.relays[0].relays.drain())
        await asyncio.sleep(0)
        async with pool_of(ca, "executor/second") as second:
            channel = second.get(Role.EXECUTOR, "far", made.far.hop.address, made.via)
            with pytest.raises(TransportError) as refused:
                await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK)
            assert refused.value.reason == "DRAINING" and not hanging.done()
        await draining
        with pytest.raises(TransportError) as ended:
            await hanging
        assert ended.value.reason == "DRAINING" and ended.value.metadata["hop"] == "r1"


async def test_half_closes_travel_both_ways(ca: Ca) -> None:
    """The far end reads to the end, answers, and ends its own direction; no byte is lost and every relay lets go."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(hashlib.sha256(data).digest() + data)
        await writer.drain()

    async with chain(ca, 3) as made, listening(answer) as plain:
        made.relays[-1].knows(plain)
        loop, data = asyncio.get_running_loop(), bytes(range(256)) * 8192
        async with entered(made.near, [*made.via, plain]) as (entrance, sock):
            await loop.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)
            back = bytearray()
            while part := await loop.sock_recv(sock, 1 << 20):
                back += part
            assert bytes(back) == hashlib.sha256(data).digest() + data
            await until(lambda: all(relay.relays.stats.tunnels == 0 for relay in made.relays))
            assert entrance.failure is None


async def test_resets_travel_both_ways(ca: Ca) -> None:
    """A far end that resets ends the near one with a reason; a near end that gives up resets the far one."""
    ends: asyncio.Queue[BaseException | None] = asyncio.Queue()
    reset = asyncio.Event()

    async def far_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        if reset.is_set():
            try:
                await reader.read()
            except ConnectionError as error:
                ends.put_nowait(error)
        else:
            await reader.readexactly(1)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async with chain(ca, 2) as made, listening(far_end) as plain:
        made.relays[-1].knows(plain)
        loop = asyncio.get_running_loop()
        async with entered(made.near, [*made.via, plain]) as (entrance, sock):
            assert await loop.sock_recv(sock, 1) == b"!"
            await loop.sock_sendall(sock, b"?")
            assert await loop.sock_recv(sock, 1) == b""
            assert entrance.failure is not None and "broke the connection" in entrance.failure.message
            assert entrance.failure.message.startswith("executor/plain")
        reset.set()
        async with entered(made.near, [*made.via, plain]) as (entrance, sock):
            assert await loop.sock_recv(sock, 1) == b"!"
            await entrance.close()
            assert isinstance(await ends.get(), ConnectionResetError)
        await until(lambda: all(relay.relays.stats.tunnels == 0 for relay in made.relays))


async def test_a_far_end_that_is_not_there_is_told_by_the_last_relay(ca: Ca) -> None:
    """The error names who could not be reached, not the relay that said so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = Hop(Role.EXECUTOR, "gone", f"127.0.0.1:{taken.getsockname()[1]}")
        async with chain(ca, 2) as made:
            made.relays[-1].knows(gone)
            channel = made.near.get(Role.EXECUTOR, "gone", gone.address, made.via)
            with pytest.raises(TransportError) as caught:
                await probe(executor_pb2_grpc.ExecutorServiceStub(channel), MARK)
            assert "cannot connect to executor/gone" in caught.value.message
            assert caught.value.metadata["hop"] == "gone"
