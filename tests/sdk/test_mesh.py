"""Connecting, and everything that can be wrong with it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orbitmesh import AsyncMesh, DeadlineError, IdentityError, InvalidInputError, Mesh, TransportError
from orbitmesh._loop import LoopThread
from orbitmesh.trust import Role, init_mesh, issue
from tests.sdk.small_gateway import Identities, SmallGateway


async def test_a_gateway_that_does_not_exist_is_named(identities: Identities) -> None:
    """A connection that is refused says which address could not be reached."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        mesh = AsyncMesh.connect(address, identity=identities.client, timeout=60)
        with pytest.raises(TransportError, match=address):
            await mesh.open()
        await mesh.close()


async def test_a_server_that_accepts_and_is_silent_costs_the_timeout_and_no_more(
    identities: Identities,
) -> None:
    """The total bounds connecting too: a port that never speaks TLS ends in DeadlineError."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        mesh = AsyncMesh.connect(address, identity=identities.client, timeout=0.5)
        with pytest.raises(DeadlineError):
            await mesh.open()
        await mesh.close()


async def test_the_time_of_an_answer_bounds_connecting_too(identities: Identities) -> None:
    """A first call that has to connect spends the time that it was given, not the mesh's own."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        mesh = AsyncMesh.connect(address, identity=identities.client, timeout=100)
        with pytest.raises(DeadlineError, match=r"0\.4 s"):
            await mesh.generate("demo", prompt="x", timeout=0.4)
        await mesh.close()


async def test_a_slow_answer_is_bounded_per_call(mesh: AsyncMesh, gateway: SmallGateway) -> None:
    """A call's own timeout bounds it, whatever the mesh's is."""
    gateway.delay_s = 30.0
    with pytest.raises(DeadlineError):
        await mesh.status(timeout=0.2)


async def test_an_identity_of_another_mesh_is_refused(gateway: SmallGateway, tmp_path: Path) -> None:
    """The gateway's certificate is checked against our mesh's authority before anything is said."""
    init_mesh(tmp_path / "ca")
    issue(tmp_path / "ca", Role.CLIENT, "me", tmp_path / "me")
    mesh = AsyncMesh.connect(gateway.address, identity=tmp_path / "me")
    with pytest.raises(IdentityError, match="another mesh"):
        await mesh.open()
    await mesh.close()


async def test_an_expired_identity_is_refused_before_connecting(gateway: SmallGateway, tmp_path: Path) -> None:
    """Our own expired certificate is named as such, with what to do."""
    init_mesh(tmp_path / "ca")
    before = datetime.now(UTC) - timedelta(days=3)
    issue(tmp_path / "ca", Role.CLIENT, "me", tmp_path / "me", timedelta(days=1), now=before)
    mesh = AsyncMesh.connect(gateway.address, identity=tmp_path / "me")
    with pytest.raises(IdentityError, match="expired"):
        await mesh.open()
    await mesh.close()


async def test_a_missing_identity_is_named(gateway: SmallGateway, tmp_path: Path) -> None:
    """An identity directory that is not there is named."""
    mesh = AsyncMesh.connect(gateway.address, identity=tmp_path / "nobody")
    with pytest.raises(IdentityError, match="nobody"):
        await mesh.open()
    await mesh.close()


@pytest.mark.parametrize("address", ["", "gateway", "gateway:", ":7443", "gateway:0", "gateway:99999", "gateway:x"])
def test_an_address_is_host_and_port(address: str) -> None:
    """Anything else is refused at once."""
    with pytest.raises(InvalidInputError, match="host:port"):
        AsyncMesh.connect(address, identity="x")


async def test_a_mesh_that_was_closed_says_so(mesh: AsyncMesh) -> None:
    """Calls after `close` are refused; closing again is harmless."""
    await mesh.close()
    await mesh.close()
    with pytest.raises(InvalidInputError, match="closed"):
        await mesh.status()


async def test_concurrent_first_calls_share_one_connection(gateway: SmallGateway, identities: Identities) -> None:
    """A mesh opens itself at the first call, once."""
    mesh = AsyncMesh.connect(gateway.address, identity=identities.client)
    answers = await asyncio.gather(*(mesh.nodes() for _ in range(8)))
    assert {tuple(node.name for node in nodes) for nodes in answers} == {("sat-1",)}
    await mesh.close()


async def test_only_a_local_mesh_has_processes(mesh: AsyncMesh) -> None:
    """`mesh.local` of a mesh elsewhere says why there is none."""
    with pytest.raises(InvalidInputError, match="runs elsewhere"):
        _ = mesh.local


def test_a_forked_child_is_told_so(gateway_elsewhere: SmallGateway, identities: Identities) -> None:
    """Using a connected mesh in a forked child raises instead of hanging; the parent goes on."""
    with Mesh.connect(gateway_elsewhere.address, identity=identities.client) as mesh:
        reader, writer = os.pipe()
        # What is checked is a child of a process with threads, which newer Pythons warn of: that is the case
        # at hand.
        child = os.fork()
        if child == 0:
            try:
                mesh.status()
                answer = "answered"
            except InvalidInputError as error:
                answer = error.message
            except BaseException as error:
                answer = repr(error)
            os.write(writer, answer.encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answers:
            said = answers.read()
        os.waitpid(child, 0)
        assert "forked child" in said
        assert mesh.status().name == "gateway"


def test_a_call_on_the_loop_itself_is_refused_and_does_not_hang() -> None:
    """A callback that calls the mesh it is called by would wait for itself: it is told so."""
    loop = LoopThread()

    async def inner() -> str:
        async def innermost() -> None: ...

        with pytest.raises(InvalidInputError, match="callback"):
            loop.run(lambda: innermost())
        return "went on"

    assert loop.run(lambda: inner()) == "went on"
    loop.stop()


def test_closing_from_another_thread_ends_waiting_calls(
    gateway_elsewhere: SmallGateway, identities: Identities
) -> None:
    """A thread that waits for an answer is not left behind when another closes the mesh."""
    mesh = Mesh.connect(gateway_elsewhere.address, identity=identities.client)
    mesh.open()
    gateway_elsewhere.delay_s = 30.0
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            mesh.status(timeout=60)
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    mesh.close()
    waiting.join(60)
    assert not waiting.is_alive()
    assert len(errors) == 1


def test_the_loop_thread_ends_with_the_mesh(gateway_elsewhere: SmallGateway, identities: Identities) -> None:
    """Closing a mesh leaves no thread behind."""
    before = {thread.ident for thread in threading.enumerate()}
    with Mesh.connect(gateway_elsewhere.address, identity=identities.client) as mesh:
        mesh.nodes()
    left = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert "orbitmesh-loop" not in left
