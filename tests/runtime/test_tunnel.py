"""A service's ways to a peer: which connection is taken, when another is opened, and who may use the way in."""

from __future__ import annotations

import asyncio
import sys

import pytest

from orbitmesh.errors import InvalidInputError, TransportError
from orbitmesh.trust import Role
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from services.runtime.channels import RETIRING_MAX
from services.runtime.tunnel import Entrance, Hop, hops
from services.runtime.tunnel_ends import CallEnd
from tests.executor.relay_mesh import HANG, Ca, chain
from tests.runtime.conftest import until


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("mesh"))


def request(payload: bytes) -> executor_pb2.ProbeRequest:
    return executor_pb2.ProbeRequest(payload=payload, reply_bytes=len(payload))


async def test_one_way_is_one_connection_and_another_way_another(ca: Ca) -> None:
    """The same relays, as messages or as values, give the same channel; others give another; the direct one stays."""
    async with chain(ca, 2) as made:
        far, (first, second) = made.far.hop, made.via
        direct = made.near.get(Role.EXECUTOR, "far", far.address)
        through = made.near.get(Role.EXECUTOR, "far", far.address, [first, second])
        assert made.near.get(Role.EXECUTOR, "far", far.address, [first.message(), second.message()]) is through
        assert through is not direct
        made.relays[0].knows(far)
        shorter = made.near.get(Role.EXECUTOR, "far", far.address, [first])
        assert shorter is not through
        assert made.near.get(Role.EXECUTOR, "far", far.address) is direct
        for channel in (direct, shorter):
            answer = await executor_pb2_grpc.ExecutorServiceStub(channel).Probe(request(b"x"), timeout=60)
            assert answer.payload == b"x"
        assert made.relays[1].relays.stats.opened == 0


async def test_a_way_that_changed_is_retired_when_its_calls_have_ended(ca: Ca) -> None:
    """A call under way goes on over the old relays while new ones take the new way; then the old tunnel is let go."""
    async with chain(ca, 2) as made:
        far, first = made.far.hop, made.via[0]
        hanging = asyncio.ensure_future(made.stub().Probe(request(HANG), timeout=60))
        await until(lambda: bool(made.far.probes))
        made.relays[0].knows(far)
        new = made.near.get(Role.EXECUTOR, "far", far.address, [first])
        answer = await executor_pb2_grpc.ExecutorServiceStub(new).Probe(request(b"new"), timeout=60)
        assert answer.payload == b"new"
        assert made.relays[0].relays.stats.tunnels == 2 and not hanging.done()
        hanging.cancel()
        # Each relay hears of the end from the one before it.
        await until(lambda: [each.relays.stats.tunnels for each in made.relays] == [1, 0])


async def test_ways_that_change_all_the_time_are_bounded(ca: Ca) -> None:
    """However often the address changes, only so many old connections wait for their calls to end."""
    async with chain(ca, 1) as made:
        hanging = []
        for number in range(RETIRING_MAX + 5):
            path = [made.via[0]]
            channel = made.near.get(Role.EXECUTOR, "far", f"not.used:{number}", path)
            call = executor_pb2_grpc.ExecutorServiceStub(channel).Probe(request(HANG), timeout=60)
            hanging.append(asyncio.ensure_future(call))
            await until(lambda number=number: len(made.far.probes) > number)
        stats = made.relays[0].relays
        await until(lambda: stats.stats.tunnels == RETIRING_MAX + 1)
        done = [each.done() for each in hanging]
        assert done == [True] * 4 + [False] * (RETIRING_MAX + 1)
        await made.near.close()
        await asyncio.gather(*hanging, return_exceptions=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which process connects")
async def test_another_process_cannot_enter_a_tunnel() -> None:
    """A connection to the way in that is not of this very process is closed, and nothing is opened for it; one of this
    process is let in."""
    opened = []

    async def open_far() -> CallEnd:
        opened.append(True)
        raise TransportError("as far as this test goes")

    entrance = Entrance("executor/far", open_far)
    name = entrance.target.removeprefix("unix-abstract:")
    script = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as sock:\n"
        "    sock.connect(chr(0) + sys.argv[1])\n"
        "    print('connected', sock.recv(1))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, name, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().strip() == "connected b''" and opened == []
    _, writer = await asyncio.open_unix_connection("\0" + name)
    await until(lambda: opened == [True])
    assert entrance.failure is not None
    writer.close()
    await entrance.close()


def test_hops_are_values() -> None:
    """A message and a value of the same node are equal, hash alike, and a nameless one is refused."""
    message = executor_pb2.PeerAddress(role="executor", name="r1", address="a:1")
    assert hops([message]) == (Hop(Role.EXECUTOR, "r1", "a:1"),) and len({*hops([message, message])}) == 1
    with pytest.raises(InvalidInputError):
        hops([executor_pb2.PeerAddress(role="executor")])
    with pytest.raises(InvalidInputError):
        hops([executor_pb2.PeerAddress(role="king", name="r1")])
