"""The slices' service through a gateway: real hosts with real certificates, and a service as each test tells it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.slices_relay import SlicesRelay
from gateway.upstream import Upstream
from orbitmesh.errors import PermissionError_
from orbitmesh.rpc import map_rpc_error, open_channel
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.behalf import BEHALF_KEY, called_for
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost

SERVICE = "orbitmesh.v1.SlicesService"
WAIT_S = 60.0
UNARY = {
    "ListTemplates": slices_pb2.ListTemplatesRequest(),
    "DefineSlice": slices_pb2.DefineSliceRequest(name="a", request_id="1"),
    "GetSlice": slices_pb2.GetSliceRequest(name="a"),
    "ListSlices": slices_pb2.ListSlicesRequest(tenant="me"),
    "Optimize": slices_pb2.OptimizeRequest(slices=["a"]),
    "Apply": slices_pb2.ApplyRequest(etag="1"),
    "Resize": slices_pb2.ResizeRequest(name="a"),
    "Release": slices_pb2.ReleaseRequest(name="a"),
    "Admit": slices_pb2.AdmitRequest(slice="a"),
    "Renew": slices_pb2.RenewRequest(request_id="1"),
    "Withdraw": slices_pb2.WithdrawRequest(request_id="1"),
}
NOT_FOR_PEOPLE = {"ReportTraffic"}
WATCH = slices_pb2.WatchSlicesRequest(node="sat-1")


class Slices(slices_pb2_grpc.SlicesServiceServicer):
    """Notes what it is asked and for whom; `error` is what it refuses with."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str]] = []
        self.error: Exception | None = None
        self.watching = asyncio.Event()
        self.left = asyncio.Event()

    async def WatchSlices(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[slices_pb2.WatchSlicesResponse]:
        self.asked.append(("WatchSlices", request, "/".join(called_for(context))))
        if self.error is not None:
            raise self.error
        try:
            yield slices_pb2.WatchSlicesResponse(etag="7")
            if not self.watching.is_set():
                await asyncio.Event().wait()
        finally:
            self.left.set()


def _answering(method: str) -> Any:
    async def answer(self: Slices, request: Any, context: Any) -> Any:
        self.asked.append((method, request, "/".join(called_for(context))))
        if self.error is not None:
            raise self.error
        return getattr(slices_pb2, f"{method}Response")()

    return answer


for _method in UNARY:
    setattr(Slices, _method, _answering(_method))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a slices service, a gateway, a client and an operator."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    for role, name in (
        (Role.SLICES, "slices"), (Role.GATEWAY, "gateway"), (Role.CLIENT, "me"), (Role.OPERATOR, "me")
    ):  # fmt: skip
        issue(base / "ca", role, name, base / str(role))
    return base


@asynccontextmanager
async def through(
    identities: Path, slices: str, role: str = "client"
) -> AsyncIterator[tuple[slices_pb2_grpc.SlicesServiceStub, ServiceHost]]:
    """A gateway that hands calls on to that address, and somebody's way to it."""
    log = EventLog("gateway/gateway", stream=io.StringIO())
    source = IdentitySource(identities / "gateway")
    upstream = Upstream(source, "127.0.0.1:9", "scheduler", {}, log, slices=slices)
    host = ServiceHost(source, log=log)
    host.add(SERVICE, slices_pb2_grpc.add_SlicesServiceServicer_to_server, SlicesRelay(upstream, host.draining))
    me = IdentitySource(identities / role).current()
    async with host, open_channel(f"127.0.0.1:{host.port}", me, Role.GATEWAY, "gateway") as channel:
        yield slices_pb2_grpc.SlicesServiceStub(channel), host
    await upstream.close()


@pytest.fixture
async def slices(identities: Path) -> AsyncIterator[tuple[Slices, ServiceHost]]:
    """A service on loopback."""
    servicer = Slices()
    host = ServiceHost(identities / "slices", log=EventLog("slices/slices", stream=io.StringIO()))
    host.add(SERVICE, slices_pb2_grpc.add_SlicesServiceServicer_to_server, servicer)
    await host.start()
    yield servicer, host
    await host.drain(0.0)


def test_these_are_all_methods_of_the_contract() -> None:
    """A method that is added is not left out here in silence."""
    service = slices_pb2.DESCRIPTOR.services_by_name["SlicesService"]
    assert {method.name for method in service.methods} == {*UNARY, *NOT_FOR_PEOPLE, "WatchSlices"}


@pytest.mark.parametrize("role", ["client", "operator"])
async def test_the_service_hears_what_was_asked_and_for_whom(
    role: str, slices: tuple[Slices, ServiceHost], identities: Path
) -> None:
    """Not the gateway, and not whom the caller claims to be: whom its certificate names."""
    servicer, far = slices
    posing = ((BEHALF_KEY, "spiffe://orbitmesh/operator/root"),)
    async with through(identities, f"127.0.0.1:{far.port}", role) as (stub, _):
        for method, request in UNARY.items():
            await getattr(stub, method)(request, timeout=WAIT_S, metadata=posing)
        call = stub.WatchSlices(WATCH)
        assert (await call.read()).etag == "7"
        call.cancel()
        await asyncio.wait_for(servicer.left.wait(), WAIT_S)
    wanted = [*UNARY.items(), ("WatchSlices", WATCH)]
    assert servicer.asked == [(method, request, f"{role}/me") for method, request in wanted]


@pytest.mark.parametrize("method", UNARY)
async def test_an_error_keeps_its_reason(
    method: str, slices: tuple[Slices, ServiceHost], identities: Path
) -> None:
    """Reason, message and metadata of the service's error reach the client."""
    servicer, far = slices
    servicer.error = PermissionError_("client/me has no slice 'a'", reason="SLICE_NOT_YOURS", metadata={"slice": "a"})
    async with through(identities, f"127.0.0.1:{far.port}") as (stub, _):
        with pytest.raises(grpc.RpcError) as refused:
            await getattr(stub, method)(UNARY[method], timeout=WAIT_S)
    error = map_rpc_error(refused.value)
    assert (error.reason, error.message) == ("SLICE_NOT_YOURS", "client/me has no slice 'a'")
    assert error.metadata == {"slice": "a"}


async def test_a_gateway_without_slices_says_how_to_give_it_some(identities: Path) -> None:
    """A reason that no retry helps against, and the name of the setting."""
    async with through(identities, "") as (stub, _):
        with pytest.raises(grpc.RpcError) as refused:
            await stub.ListSlices(UNARY["ListSlices"], timeout=WAIT_S)
    error = map_rpc_error(refused.value)
    assert (error.reason, error.retryable, "--slices" in error.message) == ("FAILED_PRECONDITION", False, True)


async def test_a_service_out_of_reach_is_worth_a_retry(identities: Path) -> None:
    """The error says who cannot be reached, and where."""
    async with through(identities, "127.0.0.1:9") as (stub, _):
        for call in (stub.ListSlices(UNARY["ListSlices"], timeout=WAIT_S), stub.WatchSlices(WATCH).read()):
            with pytest.raises(grpc.RpcError) as refused:
                await call
            error = map_rpc_error(refused.value)
            assert (error.reason, error.retryable) == ("TRANSPORT", True)
            assert "cannot reach the slices service at 127.0.0.1:9" in error.message


async def test_a_watch_that_ends_may_be_asked_again(
    slices: tuple[Slices, ServiceHost], identities: Path
) -> None:
    """A service that drains ends its streams in good order; the client hears that this was not all."""
    servicer, far = slices
    servicer.watching.set()
    async with through(identities, f"127.0.0.1:{far.port}") as (stub, _):
        call = stub.WatchSlices(WATCH)
        await call.read()
        with pytest.raises(grpc.RpcError) as ended:
            await asyncio.wait_for(call.read(), WAIT_S)
    assert map_rpc_error(ended.value).retryable


async def test_watchers_do_not_hold_up_a_gateway_that_goes_down(
    slices: tuple[Slices, ServiceHost], identities: Path
) -> None:
    """Draining ends their streams at once, with the reason that says to come back."""
    servicer, far = slices
    async with through(identities, f"127.0.0.1:{far.port}") as (stub, near):
        call = stub.WatchSlices(WATCH)
        await call.read()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(near.drain(WAIT_S))
            with pytest.raises(grpc.RpcError) as ended:
                await call.read()
        assert map_rpc_error(ended.value).reason == "DRAINING"
        await asyncio.wait_for(servicer.left.wait(), WAIT_S)
