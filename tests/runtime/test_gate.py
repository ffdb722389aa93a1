"""Who gets in: certificates, roles, deadlines, room."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import pkgutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from orbitmesh import v1
from orbitmesh.errors import (
    AuthError,
    CapacityError,
    IdentityError,
    InternalError,
    InvalidInputError,
    MeshError,
    PermissionError_,
    TransportError,
)
from orbitmesh.rpc import keep_status, mapped_errors, open_channel
from orbitmesh.trust import Role
from services.runtime.authz import ADMIN_SERVICES, ALLOWED, OPS, authorize, check_complete, methods_of, roles_for
from services.runtime.caller import current_caller, require_self, time_left_s
from services.runtime.peers import PeerReader
from services.runtime.server import ServiceHost
from tests.runtime.conftest import KINDS, MeshDir, call, until

Serving = Callable[..., Any]


def mesh_services() -> list[str]:
    """Full names of all services of the contract, from the generated modules."""
    modules = [each for each in pkgutil.iter_modules(v1.__path__) if each.name.endswith("_pb2")]
    loaded = [importlib.import_module(f"{v1.__name__}.{each.name}") for each in modules]
    return [each.full_name for module in loaded for each in module.DESCRIPTOR.services_by_name.values()]


async def check_health(channel: grpc.aio.Channel, service: str = "", timeout: float | None = 60) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
    return int(reply.status)


def raw_channel(address: str, ca_pem: bytes, key: bytes | None, cert: bytes | None) -> grpc.aio.Channel:
    """A channel without the checks of `open_channel`, as an attacker would make it."""
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(ca_pem, key, cert),
        options=[
            ("grpc.ssl_target_name_override", "s1.scheduler.orbitmesh"),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


async def test_all_four_kinds_work_for_an_allowed_role(serving: Serving) -> None:
    """A call of each kind passes the gate unchanged, whether its handler yields or writes."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        assert await call(channel, "UnaryUnary") == [b"a"]
        assert await call(channel, "UnaryStream") == [b"a", b"a"]
        assert await call(channel, "StreamUnary") == [b"ab"]
        assert await call(channel, "StreamStream") == [b"a", b"b"]
        await channel.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_role_that_may_not_call_is_told_who_may(serving: Serving, kind: str) -> None:
    """The refusal names role, method and the allowed roles, and the handler never runs."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("executor/e"))
        with pytest.raises(PermissionError_) as caught, mapped_errors():
            await call(channel, kind)
        await channel.close()
        assert caught.value.reason == "ROLE_NOT_ALLOWED"
        for word in ("executor/e", f"/test.v1.Echo/{kind}", "client", "operator"):
            assert word in str(caught.value)
        assert caught.value.metadata["role"] == "executor"
        assert running.echo.calls == 0


async def test_every_role_and_method_of_the_table(mesh: MeshDir, serving: Serving) -> None:
    """Over real connections, each role passes the gate exactly where the table says so, for every method."""
    loaded = methods_of(mesh_services())

    async def nothing(request: bytes, context: Any) -> bytes:
        return b""

    async with serving() as running:
        by_service = itertools.groupby(loaded, key=lambda method: method.split("/")[1])
        for service, methods in by_service:
            handlers = {method.split("/")[2]: grpc.unary_unary_rpc_method_handler(nothing) for method in methods}
            generic = grpc.method_handlers_generic_handler(service, handlers)
            running.host.server.add_generic_rpc_handlers((generic,))
        passed: set[tuple[Role, str]] = set()
        for role in Role:
            channel = running.channel(mesh.identity(f"{role.value}/x"))
            for method in loaded:
                try:
                    with mapped_errors():
                        await channel.unary_unary(method)(b"", timeout=60)
                except PermissionError_ as error:
                    assert error.reason == "ROLE_NOT_ALLOWED" and method in str(error)
                except InvalidInputError:
                    # It was let in: every host has its own OpsService, which is no stand-in.
                    assert method.startswith(f"/{OPS}/")
                    passed.add((role, method))
                else:
                    passed.add((role, method))
            await channel.close()
    assert len(loaded) > 10
    assert passed == {(role, method) for method in loaded for role in roles_for(method)}


async def test_only_operators_look_inside_and_everybody_asks_for_health(mesh: MeshDir, serving: Serving) -> None:
    """Health answers every role; reflection (both versions) and channelz answer operators only."""
    async with serving() as running:
        for role in Role:
            channel = running.channel(mesh.identity(f"{role.value}/x"))
            assert await check_health(channel) == health_pb2.HealthCheckResponse.SERVING

            async def reflect(version: str, channel: grpc.aio.Channel = channel) -> list[str]:
                method = channel.stream_stream(
                    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                    request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                    response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
                )
                asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
                call_of = keep_status(method(iter(asked), timeout=60))
                replies = [reply async for reply in call_of]
                return [each.name for reply in replies for each in reply.list_services_response.service]

            async def channels(channel: grpc.aio.Channel = channel) -> Any:
                stub = channelz_pb2_grpc.ChannelzStub(channel)
                return await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=60)

            if role is Role.OPERATOR:
                for version in ("v1", "v1alpha"):
                    assert set(ADMIN_SERVICES) <= set(await reflect(version))
                assert (await channels()).server
            else:
                for refused in (reflect("v1"), reflect("v1alpha"), channels()):
                    with pytest.raises(PermissionError_), mapped_errors():
                        await refused
            await channel.close()


def test_the_table_and_the_contract_name_the_same_methods() -> None:
    """Every method of the contract has a row, and every row a method."""
    services = mesh_services()
    check_complete(services)
    methods = set(methods_of(services))
    rows = {row for row in ALLOWED if row.startswith("/orbitmesh.")}
    assert {row for row in rows if not row.endswith("/*")} <= methods
    assert {row.split("/")[1] for row in rows} <= set(services)


def test_a_method_without_a_row_is_refused_to_everybody() -> None:
    """The table denies by default, and a service with a forgotten row does not start."""
    assert roles_for("/orbitmesh.v1.SchedulerService/Unheard") == frozenset()
    assert roles_for("/grpc.health.v1.HealthX/Check") == frozenset()
    assert roles_for("") == frozenset()
    with pytest.raises(InternalError, match=r"grpc\.health\.v1\.Health/Check"):
        check_complete(["grpc.health.v1.Health"], {})
    with pytest.raises(InternalError, match="no descriptor"):
        check_complete(["no.such.Service"])
    assert all(roles <= frozenset(Role) and roles for roles in ALLOWED.values())


async def test_a_call_without_deadline_is_refused_where_it_is_control(serving: Serving) -> None:
    """Unary calls need a deadline; streams and health do not; a handler sees how much is left."""
    async with serving() as running:
        seen: list[float] = []

        async def look() -> None:
            seen.append(time_left_s(-1.0))
            assert current_caller().title == "client/c"

        running.echo.act = look
        channel = running.channel(running.mesh.identity("client/c"))
        with pytest.raises(InvalidInputError) as caught, mapped_errors():
            await call(channel, "UnaryUnary", timeout=None)
        assert caught.value.reason == "DEADLINE_REQUIRED"
        assert seen == []
        for kind in KINDS[1:]:
            assert await call(channel, kind, timeout=None)
        assert await check_health(channel, timeout=None)
        assert seen == [-1.0] * 3
        await call(channel, "UnaryUnary", timeout=9)
        assert 0 < seen[-1] < 10
        await channel.close()


async def test_a_node_speaks_for_itself_only(serving: Serving) -> None:
    """`require_self` lets the caller's own name pass and refuses another's with NOT_YOURSELF."""
    async with serving() as running:
        channel = running.channel(running.mesh.identity("client/c"))
        for name, role, passes in (
            ("c", None, True),
            ("d", None, False),
            ("d", Role.EXECUTOR, True),
            ("d", Role.CLIENT, False),
        ):

            async def act(name: str = name, role: Role | None = role) -> None:
                require_self(name, role=role)

            running.echo.act = act
            if passes:
                await call(channel, "UnaryUnary")
            else:
                with pytest.raises(PermissionError_, match="'d'") as caught, mapped_errors():
                    await call(channel, "UnaryUnary")
                assert caught.value.reason == "NOT_YOURSELF"
        await channel.close()
    with pytest.raises(InternalError):
        current_caller()


async def test_too_many_calls_are_refused_with_the_count(serving: Serving) -> None:
    """At the limit a further call gets CAPACITY_EXHAUSTED; health still answers; room comes back."""
    async with serving(calls_in_flight=2) as running:
        release = asyncio.Event()
        running.echo.act = release.wait
        channel = running.channel(running.mesh.identity("client/c"))
        held = [asyncio.ensure_future(call(channel, "UnaryUnary")) for _ in range(2)]
        await until(lambda: running.host.in_flight.count == 2)
        with pytest.raises(CapacityError) as caught, mapped_errors():
            await call(channel, "UnaryUnary")
        assert caught.value.metadata["limit"] == "2"
        assert await check_health(channel) == health_pb2.HealthCheckResponse.SERVING
        release.set()
        await asyncio.gather(*held)
        assert await call(channel, "UnaryUnary") == [b"a"]
        await channel.close()


async def test_a_certificate_of_another_mesh_gets_nowhere(mesh: MeshDir, other_mesh: MeshDir, serving: Serving) -> None:
    """A stranger is told by its own client which mesh answers; one that trusts our CA is shut out by the
    server."""
    stranger = other_mesh.identity("client/c")
    async with serving() as running:
        channel = running.channel(stranger)
        with pytest.raises(IdentityError, match="another mesh"), mapped_errors(address=running.address):
            await call(channel, "UnaryUnary")
        await channel.close()
        ours = mesh.identity("client/c")
        for key, cert in ((stranger.tls_key_pem, stranger.tls_cert_pem), (None, None)):
            channel = raw_channel(running.address, ours.ca_pem, key, cert)
            with pytest.raises(TransportError, match="refuses our certificate"), mapped_errors():
                await call(channel, "UnaryUnary")
            await channel.close()
        assert running.echo.calls == 0


async def test_an_expired_certificate_gets_nowhere(mesh: MeshDir, serving: Serving) -> None:
    """The client refuses to dial with it, the server refuses the handshake, and a client refuses such a
    server."""
    past = datetime.now(UTC) - timedelta(hours=5)
    expired = mesh.identity("client/old", lifetime=timedelta(hours=1), now=past)
    async with serving() as running:
        with pytest.raises(IdentityError, match=r"expired at .* 4 hours ago"):
            running.channel(expired)
        ca_pem = expired.ca_pem
        channel = raw_channel(running.address, ca_pem, expired.tls_key_pem, expired.tls_cert_pem)
        with pytest.raises(TransportError, match="refuses our certificate"), mapped_errors():
            await call(channel, "UnaryUnary")
        await channel.close()
        assert running.echo.calls == 0

    server = grpc.aio.server()
    old = mesh.identity("scheduler/s1", lifetime=timedelta(hours=1), now=past)
    with pytest.raises(IdentityError, match="expired"):
        ServiceHost(old.directory)
    credentials = grpc.ssl_server_credentials([(old.tls_key_pem, old.tls_cert_pem)], old.ca_pem, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    client = mesh.identity("client/c")
    channel = open_channel(f"127.0.0.1:{port}", client, Role.SCHEDULER, "s1")
    with pytest.raises(IdentityError, match="has expired"), mapped_errors():
        await call(channel, "UnaryUnary")
    await channel.close()
    await server.stop(0)


async def test_a_connection_does_not_outlive_its_certificate(mesh: MeshDir) -> None:
    """Calls on an old connection stop when its certificate ends, and with the CA when the mesh was made
    anew."""
    client = mesh.identity("client/c", lifetime=timedelta(hours=1))
    context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [client.tls_cert_pem]}
    reader = PeerReader()
    assert reader.read(context, client.ca_pem).title == "client/c"
    with pytest.raises(IdentityError, match="expired"):
        reader.read(context, client.ca_pem, now=client.not_after + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ssl_tls_version": [b"TLSv1.2"]}, "TLSv1.2"),
        ({"ssl_tls_version": []}, "no TLS"),
        ({"x509_pem_cert": []}, "no client certificate"),
        ({"x509_pem_cert": [b"junk"]}, "no PEM"),
    ],
)
def test_a_weak_connection_is_refused(mesh: MeshDir, change: dict[str, list[bytes]], words: str) -> None:
    """Less than TLS 1.3 or a missing or broken certificate is an AuthError that says so."""
    client = mesh.identity("client/c")
    context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [client.tls_cert_pem]} | change
    with pytest.raises(AuthError, match=words):
        PeerReader().read(context, client.ca_pem)


def test_sealing_and_signing_certificates_open_no_connection(mesh: MeshDir, other_mesh: MeshDir) -> None:
    """Only a TLS certificate of this mesh counts as a caller."""
    client, stranger = mesh.identity("client/c"), other_mesh.identity("client/c")
    for pem in (client.seal_cert_pem, client.sign_cert_pem, stranger.tls_cert_pem):
        context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [pem]}
        with pytest.raises(IdentityError):
            PeerReader().read(context, client.ca_pem)


async def test_a_server_of_another_name_is_not_talked_to(mesh: MeshDir, serving: Serving) -> None:
    """The certificate, not the address, says who answers: another name or role is an IdentityError; any of
    the role is fine."""
    async with serving() as running:
        client = mesh.identity("client/c")
        for role, name in ((Role.SCHEDULER, "s2"), (Role.GATEWAY, "s1"), (Role.GATEWAY, None)):
            channel = open_channel(running.address, client, role, name)
            with pytest.raises(IdentityError, match="another identity"), mapped_errors(address="x:1"):
                await call(channel, "UnaryUnary")
            await channel.close()
        channel = open_channel(running.address, client, Role.SCHEDULER, None)
        assert await call(channel, "UnaryUnary") == [b"a"]
        await channel.close()


async def test_two_services_cannot_share_a_port(mesh: MeshDir, serving: Serving) -> None:
    """The second one fails with the address instead of taking half of the calls."""
    async with serving() as running:
        second = ServiceHost(mesh.path("scheduler/s1"), listen=running.address)
        with pytest.raises(TransportError, match=running.address):
            await second.start()
        await second.server.stop(0)


def test_the_decision_itself_names_what_it_refuses(mesh: MeshDir) -> None:
    """`authorize` says nobody where a method has no row."""
    client = mesh.identity("client/c")
    context = {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [client.tls_cert_pem]}
    peer = PeerReader().read(context, client.ca_pem)
    with pytest.raises(MeshError, match="nobody"):
        authorize(peer, "/a.B/C")
