"""The plain-text port for kubelets, asked by gRPC's own health client without TLS, as a kubelet asks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orbitmesh.errors import InvalidInputError, TransportError
from services.runtime.admin import SidePorts
from services.runtime.authz import CHANNELZ, HEALTH, OPS, REFLECTION, methods_of
from services.runtime.probe import LIVENESS
from services.runtime.server import ServiceHost
from tests.runtime.conftest import MeshDir, call, until
from tests.runtime.test_gate import mesh_services

Serving = Callable[..., Any]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ANY = "127.0.0.1:0"


def plain(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


async def ask(port: int, service: str = "") -> int:
    """What a kubelet is told; a new connection each time."""
    async with plain(port) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=60
        )
    return int(answer.status)


async def test_health_is_told_without_tls_by_the_name_of_a_service(serving: Serving) -> None:
    """Each service's own state, and NOT_FOUND for one that was never added."""
    async with serving(side=SidePorts(probe=ANY)) as running:
        port = running.host.probe_port
        assert port not in (0, running.host.port)
        await running.host.set_serving("orbitmesh.v1.X", False)
        assert (await ask(port), await ask(port, "orbitmesh.v1.X")) == (SERVING, NOT_SERVING)
        await running.host.set_serving("orbitmesh.v1.X", True)
        assert await ask(port, "orbitmesh.v1.X") == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(port, "orbitmesh.v1.Y")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_service_that_drains_is_not_ready_and_is_alive(serving: Serving) -> None:
    """NOT_SERVING by every name while calls end, SERVING by the name for liveness, and nobody there afterwards."""
    async with serving(side=SidePorts(probe=ANY)) as running:
        port, release = running.host.probe_port, asyncio.Event()
        await running.host.set_serving("orbitmesh.v1.X", True)
        running.echo.act = release.wait
        channel = running.channel(running.mesh.identity("client/c"))
        held = asyncio.ensure_future(call(channel, "UnaryUnary"))
        await until(lambda: running.host.in_flight.count == 1)
        draining = asyncio.ensure_future(running.host.drain(60))
        await running.host.draining.wait()
        assert (await ask(port), await ask(port, "orbitmesh.v1.X")) == (NOT_SERVING, NOT_SERVING)
        assert await ask(port, LIVENESS) == SERVING
        release.set()
        assert await held == [b"a"]
        await draining
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(port)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()


async def test_no_other_method_is_reached_without_tls(serving: Serving) -> None:
    """Every method of every service of the mesh, of reflection and channelz, and health's own Watch: UNIMPLEMENTED."""
    names = [*mesh_services(), HEALTH, OPS, CHANNELZ, *REFLECTION]
    methods = {*methods_of(each for each in names if each != REFLECTION[0]), f"/{REFLECTION[0]}/ServerReflectionInfo"}
    assert len(methods) > 40
    async with serving(side=SidePorts(probe=ANY)) as running, plain(running.host.probe_port) as channel:
        for method in methods - {f"/{HEALTH}/Check"}:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"", timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method
        assert running.echo.calls == 0


async def test_the_port_of_the_mesh_speaks_no_plain_text(serving: Serving) -> None:
    """A probe opens no way round mutual TLS, and by itself there is no such port."""
    async with serving() as running:
        assert running.host.probe_port == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(running.host.port)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_question_is_bounded(serving: Serving) -> None:
    """A name of a megabyte is refused before it is read, and the next question is answered."""
    async with serving(side=SidePorts(probe=ANY)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(running.host.probe_port, "x" * 1_000_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask(running.host.probe_port) == SERVING


async def test_an_address_that_is_held_or_none_is_refused_before_anything_is_served(
    mesh: MeshDir, serving: Serving
) -> None:
    """A typed error that names it; the service's own port is free again."""
    with pytest.raises(InvalidInputError, match="--probe is 'nonsense'; expected host:port"):
        ServiceHost(mesh.identity("scheduler/s1").directory, side=SidePorts(probe="nonsense"))
    async with serving(side=SidePorts(probe=ANY)) as running:
        taken = f"127.0.0.1:{running.host.probe_port}"
        other = ServiceHost(mesh.identity("scheduler/s2").directory, side=SidePorts(probe=taken))
        with pytest.raises(TransportError, match=f"cannot answer probes on {taken}"):
            await other.start()
        async with plain(other.port) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match=r"UNAVAILABLE"):
                await channel.unary_unary(f"/{HEALTH}/Check")(b"", timeout=60)


def test_a_service_takes_it_as_a_flag(mesh: MeshDir) -> None:
    """`--probe nonsense` ends a scheduler with exit code 2 and one line."""
    flags = ["--identity", mesh.identity("scheduler/s1").directory, "--listen", ANY, "--state", mesh.root]
    ended = subprocess.run(
        [sys.executable, "-m", "services.scheduler", *map(str, flags), "--probe", "nonsense"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "expected host:port" in ended.stderr
