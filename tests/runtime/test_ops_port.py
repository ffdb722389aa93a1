"""The port for operators: what they may ask they may ask there, apart from users, and nothing else is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from orbitmesh.errors import MeshError, TransportError
from orbitmesh.rpc import mapped_errors, open_channel
from orbitmesh.trust import Identity, Role
from orbitmesh.v1 import ops_pb2, ops_pb2_grpc
from services.runtime.admin import SidePorts
from services.runtime.drain import CALLS_IN_FLIGHT, CALLS_PER_USER
from services.runtime.server import ServiceHost
from tests.runtime.conftest import SERVICE, MeshDir, Running, call, until
from tests.runtime.test_lifecycle import served_certificate

Serving = Callable[..., Any]
SERVING = health_pb2.HealthCheckResponse.SERVING
OPS_PORT = SidePorts(ops="127.0.0.1:0")


def dial(running: Running, identity: Identity) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return open_channel(f"127.0.0.1:{running.host.ops_port}", identity, Role.SCHEDULER, "s1", options=options)


async def health_of(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)).status)


async def test_operators_find_there_all_that_is_for_them(serving: Serving) -> None:
    """Health, reflection, channelz and OpsService, each answered; by itself a process has no such port."""
    async with serving(side=OPS_PORT) as running:
        assert running.host.ops_port not in (0, running.host.port)
        async with dial(running, running.mesh.identity("operator/me")) as channel:
            assert await health_of(channel) == SERVING
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            told = [each async for each in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([asked]), timeout=60
            )]  # fmt: skip
            names = {service.name for service in told[0].list_services_response.service}
            assert {"orbitmesh.v1.OpsService", "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= names
            servers = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(
                channelz_pb2.GetServersRequest(), timeout=60
            )
            assert servers.server
            process = await ops_pb2_grpc.OpsServiceStub(channel).GetProcess(ops_pb2.GetProcessRequest(), timeout=60)
            assert process.process == "scheduler/s1"
    async with serving() as running:
        assert running.host.ops_port == 0


async def test_users_methods_are_not_reached_there_and_users_not_answered(serving: Serving) -> None:
    """The service itself is UNIMPLEMENTED on that port, and what is for operators is refused to a client."""
    async with serving(side=OPS_PORT) as running:
        async with dial(running, running.mesh.identity("operator/me")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{SERVICE}/UnaryUnary")(b"a", timeout=60)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert running.echo.calls == 0
        async with dial(running, running.mesh.identity("client/c")) as channel:
            with pytest.raises(MeshError) as refused, mapped_errors():
                await ops_pb2_grpc.OpsServiceStub(channel).GetProcess(ops_pb2.GetProcessRequest(), timeout=60)
            assert refused.value.reason == "ROLE_NOT_ALLOWED"


async def test_calls_that_fill_the_one_port_leave_the_other_free(serving: Serving) -> None:
    """Watches of health by eight clients take all that the service's port answers of its kind: operators get on."""
    async with serving(side=OPS_PORT) as running, AsyncExitStack() as open_channels:
        watches = []
        for number in range(CALLS_IN_FLIGHT // CALLS_PER_USER):
            channel = running.channel(running.mesh.identity(f"client/c{number}"))
            stub = health_pb2_grpc.HealthStub(await open_channels.enter_async_context(channel))
            asked = health_pb2.HealthCheckRequest()
            watches += [stub.Watch(asked, timeout=120, wait_for_ready=True) for _ in range(CALLS_PER_USER)]
        await asyncio.gather(*(watch.read() for watch in watches))
        me = running.mesh.identity("operator/me")
        async with running.channel(me) as beside, dial(running, me) as apart:
            with pytest.raises(MeshError) as refused, mapped_errors():
                await health_of(beside)
            assert refused.value.reason == "CAPACITY_EXHAUSTED"
            assert await health_of(apart) == SERVING
        for watch in watches:
            watch.cancel()


async def test_it_is_answered_while_the_process_drains_and_gone_afterwards(serving: Serving) -> None:
    """Who drains a process can watch it until its last call has ended."""
    async with serving(side=OPS_PORT) as running:
        release = asyncio.Event()
        running.echo.act = release.wait
        user = running.channel(running.mesh.identity("client/c"))
        held = asyncio.ensure_future(call(user, "UnaryUnary"))
        await until(lambda: running.host.in_flight.count == 1)
        draining = asyncio.ensure_future(running.host.drain(60))
        await running.host.draining.wait()
        async with dial(running, running.mesh.identity("operator/me")) as channel:
            assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
            process = await ops_pb2_grpc.OpsServiceStub(channel).GetProcess(ops_pb2.GetProcessRequest(), timeout=60)
            assert process.draining
            release.set()
            assert await held == [b"a"]
            await draining
            with pytest.raises(grpc.aio.AioRpcError):
                await health_of(channel)
        await user.close()


async def test_a_renewed_certificate_is_shown_there_too(serving: Serving, mesh: MeshDir) -> None:
    """Both ports look for themselves: neither keeps the other from seeing what is new."""
    async with serving(side=OPS_PORT) as running:
        renewed = await asyncio.to_thread(mesh.identity, "scheduler/s1")
        for port in (running.host.port, running.host.ops_port):
            assert await asyncio.to_thread(served_certificate, f"127.0.0.1:{port}") == renewed.tls_cert_pem


async def test_an_address_that_is_held_is_refused_before_anything_is_served(serving: Serving, mesh: MeshDir) -> None:
    """A typed error that names it."""
    async with serving(side=OPS_PORT) as running:
        taken = f"127.0.0.1:{running.host.ops_port}"
        other = ServiceHost(mesh.identity("scheduler/s2").directory, side=SidePorts(ops=taken))
        with pytest.raises(TransportError, match=f"cannot listen on {taken}"):
            await other.start()
