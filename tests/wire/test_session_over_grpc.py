"""Sessions over real gRPC with mTLS on loopback, through a TCP relay that the tests cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orbitmesh.errors import (
    IdentityError,
    NodeLostError,
)
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.rpc import keep_status, open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, wire_pb2
from orbitmesh.wire.frames import join_message
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import SessionAcceptor, add_exchange, dial, open_exchange

OnSession = Callable[[Session], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Mesh:
    """Identities of one mesh."""

    one: Identity
    two: Identity


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    home = tmp_path_factory.mktemp("identities")
    return Mesh(issue(ca, "executor", "sat-1", home / "1"), issue(ca, "executor", "sat-2", home / "2"))


@dataclass
class Relay:
    """Carries TCP connections to a port until it is told to cut them."""

    target: int
    port: int = 0
    refuses: bool = False
    carried: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            if not self.refuses:
                back, other = await asyncio.open_connection("127.0.0.1", self.target)
                self._writers |= {writer, other}
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, other))
                    group.create_task(self._pump(back, writer))
        finally:
            for each in (writer, other):
                if each is not None:
                    each.close()
                    self._writers.discard(each)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        """Resets every connection: what is in its buffers is lost."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def serving(
    identity: Identity, on_session: OnSession, **options: Any
) -> AsyncIterator[tuple[int, SessionAcceptor]]:
    acceptor = SessionAcceptor(identity, on_session, **options)
    server = grpc.aio.server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(
        executor_pb2_grpc.ExecutorServiceServicer(), server
    )
    add_exchange(server, acceptor)
    credentials = grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port, acceptor
    finally:
        await acceptor.close()
        await server.stop(0)


def channel_to(port: int, mesh: Mesh) -> grpc.aio.Channel:
    return open_channel(f"127.0.0.1:{port}", mesh.one, Role.EXECUTOR, "sat-2")


@asynccontextmanager
async def dialled(port: int, mesh: Mesh, **options: Any) -> AsyncIterator[Session]:
    async with channel_to(port, mesh) as channel:
        session = await dial(
            open_exchange(channel), mesh.one, receiver_role="executor", receiver_name="sat-2", **options
        )
        try:
            yield session
        finally:
            await session.close()


async def echo(session: Session) -> None:
    async for received in session:
        await session.send(received.info, received.data)


def blob(tag: int) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=tag))


def step(values: int, position: int = 7) -> wire_pb2.TransferInfo:
    tensor = wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=[1, values])
    return wire_pb2.TransferInfo(
        tensor=tensor, step=wire_pb2.StepInfo(generation=(1 << 63) + 5, position=position, sample=True)
    )


async def test_what_is_sent_comes_back_bit_for_bit(mesh: Mesh) -> None:
    """Transfers of every size class arrive whole in both directions, and both ends know who the other is."""
    rng = random.Random(1)
    async with serving(mesh.two, echo) as (port, acceptor), dialled(port, mesh) as session:
        assert (session.peer.spiffe, session.peer.role, session.peer.name) == (
            mesh.two.spiffe,
            "executor",
            "sat-2",
        )
        for size in (0, 1, 256, 64 << 10, (64 << 10) + 1, 1 << 20, (5 << 20) + 3, 20 << 20):
            data = rng.randbytes(size)
            report = await session.send(blob(size), data)
            received = await session.receive()
            assert received.info == blob(size)
            assert bytes(received.data) == data
            assert report.raw_bytes == size
            # Headers also bring acknowledgements and credit home: no two transfers need have the same of those.
            for wire_bytes in (report.wire_bytes, received.wire_bytes):
                assert size < wire_bytes <= size + 160 * (1 + size // FRAME_BODY_BYTES)
        assert acceptor.sessions[0].peer.spiffe == mesh.one.spiffe


async def test_cut_connections_lose_nothing(mesh: Mesh) -> None:
    """A relay resets the connection while transfers run both ways: all arrive once and in order."""
    rng = random.Random(3)
    sent = [rng.randbytes(rng.choice([10, 3000, 200_000, 3 << 20])) for _ in range(30)]
    async with serving(mesh.two, echo) as (port, _):
        relay = Relay(port)
        await relay.start()
        try:
            async with dialled(relay.port, mesh) as session:

                async def cut() -> None:
                    after = 0
                    while True:
                        # Counted in bytes: on a slow machine a cut by the clock leaves no time to connect again.
                        await asyncio.sleep(0.005)
                        if relay.carried > after:
                            relay.cut()
                            after = relay.carried + rng.randrange(4 << 20)

                async def collect() -> list[bytes]:
                    return [bytes((await session.receive()).data) for _ in sent]

                cutting = asyncio.ensure_future(cut())
                collecting = asyncio.ensure_future(collect())
                for tag, data in enumerate(sent):
                    await session.send(blob(tag), data)
                    await asyncio.sleep(0.02)
                assert await asyncio.wait_for(collecting, 60) == sent
                cutting.cancel()
                assert session.stats.resumes > 3
        finally:
            await relay.stop()


async def test_a_restarted_service_is_a_lost_node(mesh: Mesh) -> None:
    """A service that came back without the session answers NODE_LOST with its status."""
    async with (
        serving(mesh.two, echo, idle_s=0.1) as (first, acceptor),
        serving(mesh.two, echo) as (second, _),
    ):
        relay = Relay(first)
        await relay.start()
        try:
            async with dialled(relay.port, mesh) as session:
                await session.send(blob(1), b"x")
                await session.receive()
                relay.target = second
                relay.cut()
                with pytest.raises(NodeLostError):
                    await session.receive()
                while acceptor.sessions:  # noqa: ASYNC110 - the list has no event of its own
                    await asyncio.sleep(0.02)
        finally:
            await relay.stop()


async def test_another_peer_than_expected_is_refused(mesh: Mesh) -> None:
    """The dialler checks the seal certificate's name, not only that of the connection."""
    async with serving(mesh.two, echo) as (port, _), channel_to(port, mesh) as channel:
        with pytest.raises(IdentityError):
            await dial(open_exchange(channel), mesh.one, receiver_role="executor", receiver_name="sat-9")


async def test_nobody_speaks_for_another(mesh: Mesh, tmp_path: Path) -> None:
    """An Open whose sender is not the TLS peer is refused with a typed status."""
    async with serving(mesh.two, echo) as (port, _), channel_to(port, mesh) as channel:
        call = keep_status(open_exchange(channel)())
        await call.read()
        opening = wire_pb2.Open(
            session_id=bytes(16), version=1, sender=mesh.two.spiffe, receiver=mesh.two.spiffe
        )
        await call.write(join_message(wire_pb2.FrameHeader(open=opening).SerializeToString(), b""))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_generated_stubs_speak_the_same_bytes(mesh: Mesh) -> None:
    """A peer with the generated classes reads our greeting and is read by us."""
    async with serving(mesh.two, echo) as (port, _), channel_to(port, mesh) as channel:
        call = keep_status(executor_pb2_grpc.ExecutorServiceStub(channel).Exchange())  # type: ignore[no-untyped-call]
        greeting = await call.read()
        assert isinstance(greeting, executor_pb2.ExchangeResponse)
        assert wire_pb2.FrameHeader.FromString(greeting.header).hello.versions == [1]
        data = wire_pb2.FrameHeader(data=wire_pb2.Data(number=1))
        await call.write(executor_pb2.ExchangeRequest(header=data.SerializeToString(), body=b"x"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_decode_step_costs_little_more_than_its_values(mesh: Mesh) -> None:
    """H float32 values cost at most 4 H + 160 bytes, header, seal and acknowledgements included."""
    hidden, steps = 64, 400
    async with serving(mesh.two, echo) as (port, acceptor), dialled(port, mesh) as session:
        for position in range(steps):
            report = await session.send(step(hidden, position + 30_000), bytes(4 * hidden))
            await session.receive()
        other = acceptor.sessions[0]
        per_step = (session.stats.sent_bytes + other.stats.control_bytes) / steps
        assert report.wire_bytes <= 4 * hidden + 160
        assert per_step <= 4 * hidden + 160
