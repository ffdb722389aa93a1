"""A mesh of real certificates, and a service on loopback with one method of each of the four kinds."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orbitmesh.rpc import keep_status, open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from services.runtime.authz import ALLOWED
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost

SERVICE = "test.v1.Echo"
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


@dataclass(frozen=True)
class MeshDir:
    """One mesh on disk."""

    root: Path

    def identity(self, title: str, **more: Any) -> Identity:
        role, _, name = title.partition("/")
        return issue(self.root / "ca", role, name, self.root / role / name, **more)

    def path(self, title: str) -> Path:
        return self.root / title


@pytest.fixture
def mesh(tmp_path: Path) -> MeshDir:
    init_mesh(tmp_path / "mesh" / "ca")
    return MeshDir(tmp_path / "mesh")


@pytest.fixture
def other_mesh(tmp_path: Path) -> MeshDir:
    init_mesh(tmp_path / "other" / "ca")
    return MeshDir(tmp_path / "other")


@dataclass
class Echo:
    """Answers with what it got; `act` runs first and may raise or wait."""

    act: Callable[[], Awaitable[None]] | None = None
    calls: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def _acted(self) -> None:
        self.calls += 1
        if self.act is not None:
            try:
                await self.act()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        await self._acted()
        return request

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await self._acted()
        yield request

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        parts = [part async for part in requests]
        await self._acted()
        return b"".join(parts)

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        # The other way to write a streaming handler: a coroutine that writes.
        async for part in requests:
            await context.write(part)
        await self._acted()

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary_unary),
                "UnaryStream": grpc.unary_stream_rpc_method_handler(self.unary_stream),
                "StreamUnary": grpc.stream_unary_rpc_method_handler(self.stream_unary),
                "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream_stream),
            },
        )


@dataclass
class Running:
    """A service under test."""

    host: ServiceHost
    echo: Echo
    log: io.StringIO
    mesh: MeshDir

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.host.port}"

    def channel(self, identity: Identity, **more: Any) -> grpc.aio.Channel:
        # A pool of its own: a connection of another test or of before a renewal must not be taken again.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return open_channel(self.address, identity, Role.SCHEDULER, "s1", options=options, **more)


@pytest.fixture
def serving(mesh: MeshDir) -> Callable[..., Any]:
    """`async with serving(...) as running:` starts scheduler/s1 of the mesh."""

    @asynccontextmanager
    async def start(**more: Any) -> AsyncIterator[Running]:
        identity = more.pop("identity", None) or mesh.identity("scheduler/s1")
        text = io.StringIO()
        allowed = dict(ALLOWED) | {f"/{SERVICE}/*": frozenset({Role.CLIENT, Role.OPERATOR})}
        host = ServiceHost(
            identity.directory, log=EventLog("scheduler/s1", stream=text), allowed=allowed, **more
        )
        echo = Echo()
        host.server.add_generic_rpc_handlers((echo.handlers(),))
        await host.start()
        try:
            yield Running(host, echo, text, mesh)
        finally:
            await host.drain(0.1)

    return start


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something of another task holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the watched objects offer no event
            await asyncio.sleep(0.005)


async def call(channel: grpc.aio.Channel, kind: str, timeout: float | None = 60) -> list[bytes]:
    """Call one method of `Echo` with two messages where it streams; all that came back."""
    path = f"/{SERVICE}/{kind}"

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    if kind == "UnaryUnary":
        return [await channel.unary_unary(path)(b"a", timeout=timeout)]
    if kind == "StreamUnary":
        return [await keep_status(channel.stream_unary(path)(parts(), timeout=timeout))]
    if kind == "UnaryStream":
        return [part async for part in channel.unary_stream(path)(b"a", timeout=timeout)]
    return [part async for part in keep_status(channel.stream_stream(path)(parts(), timeout=timeout))]
