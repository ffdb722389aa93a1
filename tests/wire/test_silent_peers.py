"""Silence over real gRPC with mTLS: links that swallow, processes that are stopped."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orbitmesh.errors import NodeLostError
from orbitmesh.rpc import open_channel
from orbitmesh.trust import Identity, Role, init_mesh, issue
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import dial, open_exchange
from services.links.client import LinksProcess
from services.links.spec import RelaySpec

PEER = """
import asyncio, sys
import grpc, grpc.aio
from orbitmesh.trust import load_identity
from orbitmesh.wire.streams import SessionAcceptor, add_exchange

async def echo(session):
    with session.watched():
        async for received in session:
            await session.send(received.info, received.data)

async def main():
    identity = load_identity(sys.argv[1])
    server = grpc.aio.server()
    add_exchange(server, SessionAcceptor(identity, echo, silence_s=float(sys.argv[2])))
    credentials = grpc.ssl_server_credentials(
        [(identity.tls_key_pem, identity.tls_cert_pem)], identity.ca_pem, require_client_auth=True
    )
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""
"""A process that sends back what it gets, until it is killed."""


@dataclass(frozen=True)
class Mesh:
    one: Identity
    home: Path
    """Of the other's identity."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    ca = init_mesh(tmp_path_factory.mktemp("ca"))
    home = tmp_path_factory.mktemp("identities")
    issue(ca, "executor", "sat-2", home / "2")
    return Mesh(issue(ca, "executor", "sat-1", home / "1"), home / "2")


@asynccontextmanager
async def peer(mesh: Mesh, silence_s: float = 1.0) -> AsyncIterator[tuple[int, int]]:
    """Runs the other process; gives its port and its process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PEER,
        str(mesh.home),
        str(silence_s),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline()), process.pid
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def dialled(address: str, mesh: Mesh, give_up_after_s: float) -> AsyncIterator[Session]:
    async with open_channel(address, mesh.one, Role.EXECUTOR, "sat-2") as channel:
        session = await dial(
            open_exchange(channel),
            mesh.one,
            receiver_role="executor",
            receiver_name="sat-2",
            give_up_after_s=give_up_after_s,
        )
        try:
            yield session
        finally:
            await session.close()


def blob(tag: int) -> wire_pb2.TransferInfo:
    return wire_pb2.TransferInfo(blob=wire_pb2.BlobInfo(tag=tag))


async def ask(session: Session, tag: int) -> None:
    """Sends something and waits until it is back."""
    await session.send(blob(tag), b"%d" % tag)
    received = await session.receive()
    assert (received.info, bytes(received.data)) == (blob(tag), b"%d" % tag)


async def test_a_link_that_swallows_ends_the_session_as_lost_and_a_short_one_does_not(mesh: Mesh) -> None:
    """Paused links bring no reset: a session with a second to come back is lost, one with more goes on when the link
    is back, with what was sent meanwhile."""
    async with peer(mesh) as (port, _), await LinksProcess.start() as links:
        address = await links.add(RelaySpec("link", f"127.0.0.1:{port}"))
        async with dialled(address, mesh, 1.0) as hasty, dialled(address, mesh, 30.0) as patient:
            for tag in range(3):
                await ask(hasty, tag)
                await ask(patient, tag)
            await links.pause("link")
            with hasty.watched(), pytest.raises(NodeLostError):
                await hasty.receive()
            sending = asyncio.ensure_future(patient.send(blob(9), b"9"))
            while patient.attached:  # noqa: ASYNC110 - a connection that is given up has no event for its users
                await asyncio.sleep(0.01)
            await links.restore("link")
            await sending
            received = await patient.receive()
            assert bytes(received.data) == b"9"
            await ask(patient, 10)
            assert patient.stats.resumes >= 1


async def test_a_stopped_process_is_noticed_and_welcomed_back(mesh: Mesh) -> None:
    """SIGSTOP leaves the peer's kernel answering: the session notices all the same, and goes on after SIGCONT."""
    async with peer(mesh) as (port, pid), dialled(f"127.0.0.1:{port}", mesh, 30.0) as session:
        await ask(session, 1)
        os.kill(pid, signal.SIGSTOP)
        await session.send(blob(2), b"2")
        while session.attached:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGCONT)
        assert bytes((await session.receive()).data) == b"2"
        await ask(session, 3)


async def test_this_process_standing_still_cuts_nothing(mesh: Mesh) -> None:
    """After two seconds in which its event loop ran nothing, a session goes on over the same connection, unless the
    other end has had enough."""
    async with peer(mesh, silence_s=math.inf) as (port, _), dialled(f"127.0.0.1:{port}", mesh, 30.0) as session:
        await ask(session, 1)
        with session.watched():
            await asyncio.sleep(0.3)
            held = session.stats.resumes
            _stand_still(2.0)
            await asyncio.sleep(0.6)
        assert session.stats.resumes == held
        await ask(session, 2)


def _stand_still(for_s: float) -> None:
    end_s = time.monotonic() + for_s
    while time.monotonic() < end_s:
        pass
