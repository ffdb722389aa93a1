"""A slices service in this process: real certificates, a real store, real gRPC."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from orbitmesh.rpc import map_rpc_error, open_channel
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.behalf import BEHALF_KEY
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost
from services.runtime.store import Location
from services.slices.amounts import exact
from services.slices.book import seen
from services.slices.floors import LightSource
from services.slices.keeper import Keeper
from services.slices.resources import Resources
from services.slices.server import NOTHING_SAID, SERVICE, SlicesServicer
from services.slices.solving import Solvers
from services.slices.store import SliceStore
from services.slices.values import Node

WAIT_S = 60.0
PEOPLE = (
    (Role.OPERATOR, "olga"),
    (Role.OPERATOR, "otto"),
    (Role.CLIENT, "ann"),
    (Role.CLIENT, "bob"),
    (Role.GATEWAY, "gateway"),
    (Role.EXECUTOR, "node-1"),
    (Role.AGGREGATOR, "aggregator"),
    (Role.SCHEDULER, "scheduler"),
    (Role.SLICES, "slices"),
)
NODES = {"node-1": Resources(16, 2, 64, 40), "node-2": Resources(8, 0, 32, 10)}


@dataclass
class Client:
    """Somebody who calls."""

    stub: Any
    """The service."""
    behalf: str = ""
    """For whom it says that it calls."""
    asked: int = 0
    """Counts its requests, for their names."""

    async def __call__(self, method: str, request: Any) -> Any:
        """One call; gives requests a request_id that have none.

        Raises:
            MeshError: What the service answered.
        """
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            self.asked += 1
            request.request_id = f"r{self.asked}"
        metadata = ((BEHALF_KEY, self.behalf),) if self.behalf else ()
        try:
            return await getattr(self.stub, method)(request, timeout=WAIT_S, metadata=metadata)
        except grpc.RpcError as error:
            raise map_rpc_error(error) from None

    def watch(self, node: str = "") -> Any:
        """A watch; ended by `cancel`."""
        return self.stub.WatchSlices(slices_pb2.WatchSlicesRequest(node=node))


@dataclass
class Service:
    """A running service."""

    keeper: Keeper
    """Its state."""
    host: ServiceHost
    """Its server."""
    address: str
    """Where it is."""
    pki: Path
    """Everybody's identities."""
    light: LightSource
    """How long light takes."""
    solvers: Solvers
    """What computes allocations."""
    stack: AsyncExitStack
    """Ends connections."""
    clock: dict[str, int] = field(default_factory=dict)
    """How far its clock is ahead of the real one, in nanoseconds."""

    async def client(self, who: str, behalf: str = "") -> Client:
        """Somebody, by `role-name`."""
        identity = IdentitySource(self.pki / who).current()
        channel = await self.stack.enter_async_context(open_channel(self.address, identity, Role.SLICES, "slices"))
        return Client(slices_pb2_grpc.SlicesServiceStub(channel), behalf)

    async def see(self, nodes: Mapping[str, Resources]) -> None:
        """The mesh has these nodes from now on."""
        found = {name: Node(exact(has)) for name, has in nodes.items()}
        await self.keeper.change(lambda whole, _: (replace(whole, book=seen(whole.book, found)), b""))


def at(directory: Path) -> Location:
    """The file of a state."""
    return Location(file=directory / "slices.sqlite")


@asynccontextmanager
async def serving(
    pki: Path, state: Path, contacts: Path | None = None, places: Mapping[str, str] = NOTHING_SAID
) -> AsyncIterator[Service]:
    """A service over that state."""
    log = EventLog("slices/slices", stream=io.StringIO())
    source, clock = IdentitySource(pki / "slices-slices"), {"ahead_ns": 0}
    store = SliceStore(at(state))
    keeper = Keeper(store, log, lambda: time.time_ns() + clock["ahead_ns"])
    host = ServiceHost(source, log=log)
    channels = ChannelPool(source, {})
    solvers = Solvers(1, log)
    light = LightSource(contacts, "", "constellation", {}, channels, log)
    servicer = SlicesServicer(
        keeper, light, solvers, host.draining, lambda: time.time_ns() + clock["ahead_ns"], places=places
    )
    host.add(SERVICE, slices_pb2_grpc.add_SlicesServiceServicer_to_server, servicer)
    unasked = [asyncio.ensure_future(work()) for work in (keeper.write, keeper.expire)]
    try:
        async with AsyncExitStack() as stack:
            await host.start()
            service = Service(keeper, host, f"127.0.0.1:{host.port}", pki, light, solvers, stack, clock)
            await service.see(NODES)
            yield service
    finally:
        await host.drain(5.0)
        for task in unasked:
            task.cancel()
        await asyncio.gather(*unasked, return_exceptions=True)
        await solvers.close()
        await keeper.close()
        await channels.close()


def a_profile(**fields: Any) -> slices_pb2.SliceProfile:
    """4 CPU and 8 GB, for 5 pieces of work."""
    given: dict[str, Any] = {"resources": {"CPU": 4, "MemoryGB": 8}, "max_number_of_ues": 5} | fields
    return slices_pb2.SliceProfile(**given)


def a_row(name: str, node: str = "node-1", served: float = 1.0, **amounts: float) -> slices_pb2.SliceAllocation:
    """A row of an allocation."""
    return slices_pb2.SliceAllocation(
        slice=name, node=node, served=served, resources=amounts or {"CPU": 4, "MemoryGB": 8}
    )


async def make_active(operator: Client, name: str, tenant: str = "ann", **fields: Any) -> slices_pb2.Slice:
    """A slice with 4 CPU and 8 GB on node-1."""
    profile = a_profile(**fields)
    await operator("DefineSlice", slices_pb2.DefineSliceRequest(name=name, tenant=tenant, profile=profile))
    etag = (await operator("ListSlices", slices_pb2.ListSlicesRequest())).etag
    answer = await operator("Apply", slices_pb2.ApplyRequest(allocations=[a_row(name)], etag=etag))
    made: slices_pb2.Slice = answer.slices[0]
    return made
