"""Executors that relay, answer probes and echo sessions, with real certificates: in this process or in one of their
own."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import SessionAcceptor, exchange_handler
from services.executor.relaying import RelayTable, known_peers
from services.runtime.caller import current_caller
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from services.runtime.tunnel import Hop

ROOT = Path(__file__).resolve().parents[2]
HANG = b"no answer to this one"
SERVICE = "orbitmesh.v1.ExecutorService"


@dataclass
class Node(executor_pb2_grpc.ExecutorServiceServicer):
    """One executor without models."""

    host: ServiceHost
    name: str
    pool: ChannelPool
    known: dict[str, executor_pb2.PeerAddress] = field(default_factory=dict)
    probes: list[tuple[str, bytes]] = field(default_factory=list)
    log: io.StringIO = field(default_factory=io.StringIO)
    relays: RelayTable = field(init=False)

    @property
    def hop(self) -> Hop:
        return Hop(Role.EXECUTOR, self.name, f"127.0.0.1:{self.host.port}")

    def knows(self, *hops: Hop) -> None:
        self.known.update((hop.name, hop.message()) for hop in hops)

    async def Relay(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        await self.relays.serve(context)

    async def Probe(self, request: executor_pb2.ProbeRequest, context: Any) -> executor_pb2.ProbeResponse:  # noqa: N802
        self.probes.append((current_caller().title, request.payload))
        if request.payload == HANG:
            await asyncio.Event().wait()
        return executor_pb2.ProbeResponse(payload=request.payload[: request.reply_bytes])


async def echo(session: Session) -> None:
    async for received in session:
        await session.send(received.info, bytes(received.data))


@asynccontextmanager
async def node(identity: Path, kind: type[RelayTable] = RelayTable, **options: Any) -> AsyncIterator[Node]:
    """One executor in this process; `kind` and `options` are of its table of tunnels."""
    source = IdentitySource(identity)
    text = io.StringIO()
    log = EventLog("executor", stream=text)
    host = ServiceHost(source, log=log)
    pool = ChannelPool(source, {})
    made = Node(host, source.current().name, pool, log=text)
    made.relays = kind(made.name, pool, known_peers({}, lambda: made.known), log, **options)
    acceptor = SessionAcceptor(source, echo)
    host.add_stream(SERVICE, "Exchange", exchange_handler(acceptor))
    host.add(SERVICE, executor_pb2_grpc.add_ExecutorServiceServicer_to_server, made)
    host.on_drain(made.relays.drain)
    await host.start()
    try:
        yield made
    finally:
        await pool.close()
        await acceptor.close()
        await host.drain(0.1)


@dataclass
class Chain:
    """`near` reaches `far` through `relays`, each of which knows only the next."""

    near: ChannelPool
    relays: list[Node]
    far: Node

    @property
    def via(self) -> tuple[Hop, ...]:
        return tuple(relay.hop for relay in self.relays)

    def stub(self) -> executor_pb2_grpc.ExecutorServiceStub:
        return executor_pb2_grpc.ExecutorServiceStub(
            self.near.get(Role.EXECUTOR, self.far.name, self.far.hop.address, self.via)
        )


class Ca:
    """One mesh's identities on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        init_mesh(root / "ca")

    def path(self, title: str) -> Path:
        role, _, name = title.partition("/")
        path = self.root / role / name
        if not path.exists():
            issue(self.root / "ca", role, name, path)
        return path


@asynccontextmanager
async def chain(ca: Ca, relays: int, kind: type[RelayTable] = RelayTable, **options: Any) -> AsyncIterator[Chain]:
    """A far node and so many relays before it, in this process."""
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(node(ca.path("executor/far")))
        names = [f"r{number}" for number in range(1, relays + 1)]
        between = [
            await stack.enter_async_context(node(ca.path(f"executor/{name}"), kind, **options)) for name in names
        ]
        for here, there in zip(between, [*between[1:], far], strict=True):
            here.knows(there.hop)
        near = ChannelPool(IdentitySource(ca.path("executor/near")), {})
        stack.push_async_callback(near.close)
        yield Chain(near, between, far)


@dataclass
class Apart:
    """A node in a process of its own."""

    process: asyncio.subprocess.Process
    hop: Hop

    async def tell(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()
        return (await self.process.stdout.readline()).decode().strip()

    async def knows(self, *hops: Hop) -> None:
        assert await self.tell(json.dumps({hop.name: hop.address for hop in hops})) == "ready"

    async def peak_bytes(self) -> int:
        """The most memory that it had resident until now."""
        return int(await self.tell("peak"))


@asynccontextmanager
async def apart(identity: Path) -> AsyncIterator[Apart]:
    """A node in a process of its own, killed at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.executor.relay_mesh", str(identity), stdin=pipe, stdout=pipe, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield Apart(process, Hop(Role.EXECUTOR, identity.name, f"127.0.0.1:{port}"))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def answer(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def main(identity: Path) -> None:
    """Says its port, then answers lines: a table of peers (name to address) as JSON, or `peak`."""
    async with node(identity) as made:
        answer(made.host.port)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if line == "peak":
                answer(peak_bytes())
            else:
                made.knows(*(Hop(Role.EXECUTOR, name, address) for name, address in json.loads(line).items()))
                answer("ready")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
