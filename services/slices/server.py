"""The slices service on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any

from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import slices_pb2, slices_pb2_grpc
from services.runtime.admin import SidePorts
from services.runtime.behalf import called_for
from services.runtime.caller import current_caller
from services.runtime.channels import ChannelPool
from services.runtime.leading import Turn, in_turn
from services.runtime.metrics import Telemetry
from services.runtime.process import ways_table
from services.runtime.server import ServiceHost
from services.runtime.store import Location
from services.slices.access import Caller, may_change, own
from services.slices.deeds import Deeds
from services.slices.floors import LightSource
from services.slices.keeper import Keeper
from services.slices.links import Declared
from services.slices.messages import templates_message
from services.slices.metrics import offer
from services.slices.nodes import Nodes
from services.slices.optimising import answer, question
from services.slices.settings import SlicesSettings, bandwidths, link_bandwidths, table
from services.slices.solving import Solvers
from services.slices.store import SliceStore
from services.slices.watching import Teller

SERVICE = "orbitmesh.v1.SlicesService"
NOTHING_SAID: Mapping[Any, Any] = MappingProxyType({})


class SlicesServicer(slices_pb2_grpc.SlicesServiceServicer):
    """Answers `SlicesService`; what changes is in `deeds`.

    Args:
        keeper: The state.
        light: How long light takes.
        solvers: What computes allocations.
        draining: Set once the service drains.
        now_ns: The time, in nanoseconds since 1970.
        places: Where members of the mesh stand that the contact plan does not know by their own names.
        declared: What links carry of which the plan says nothing.
    """

    def __init__(
        self,
        keeper: Keeper,
        light: LightSource,
        solvers: Solvers,
        draining: asyncio.Event,
        now_ns: Callable[[], int] = time.time_ns,
        *,
        places: Mapping[str, str] = NOTHING_SAID,
        declared: Declared = NOTHING_SAID,
    ) -> None:
        self._keeper = keeper
        self._light = light
        self._solvers = solvers
        self._draining = draining
        self._now_ns = now_ns
        self._deeds = Deeds(keeper, light, now_ns)
        self._teller = Teller(keeper, light, places, declared)

    async def ListTemplates(  # noqa: N802
        self, request: slices_pb2.ListTemplatesRequest, context: Any
    ) -> slices_pb2.ListTemplatesResponse:
        """Lists the templates."""
        return templates_message()

    async def DefineSlice(  # noqa: N802
        self, request: slices_pb2.DefineSliceRequest, context: Any
    ) -> slices_pb2.DefineSliceResponse:
        """Writes one down."""
        return await self._deeds.define(_person(context), request)

    async def GetSlice(  # noqa: N802
        self, request: slices_pb2.GetSliceRequest, context: Any
    ) -> slices_pb2.GetSliceResponse:
        """Gets one."""
        whole = self._keeper.whole
        held = own(_caller(context), whole.book, request.name)
        return slices_pb2.GetSliceResponse(slice=self._teller.slice(whole, held))

    async def ListSlices(  # noqa: N802
        self, request: slices_pb2.ListSlicesRequest, context: Any
    ) -> slices_pb2.ListSlicesResponse:
        """Lists them."""
        return self._teller.list(_caller(context), request.tenant)

    async def Optimize(  # noqa: N802
        self, request: slices_pb2.OptimizeRequest, context: Any
    ) -> slices_pb2.OptimizeResponse:
        """Computes an allocation; changes nothing."""
        caller, book = _person(context), self._keeper.whole.book
        asked = await asyncio.to_thread(question, request, caller, book, self._light.light, self._now_ns())
        outcome = await self._solvers.solve(asked.problem, asked.time_limit_s)
        return await asyncio.to_thread(answer, asked, outcome)

    async def Apply(self, request: slices_pb2.ApplyRequest, context: Any) -> slices_pb2.ApplyResponse:  # noqa: N802
        """Makes an allocation hold."""
        return await self._deeds.apply(_person(context), request)

    async def Resize(self, request: slices_pb2.ResizeRequest, context: Any) -> slices_pb2.ResizeResponse:  # noqa: N802
        """Changes one."""
        return await self._deeds.resize(_person(context), request)

    async def Release(  # noqa: N802
        self, request: slices_pb2.ReleaseRequest, context: Any
    ) -> slices_pb2.ReleaseResponse:
        """Ends one."""
        return await self._deeds.release(_person(context), request)

    async def Admit(self, request: slices_pb2.AdmitRequest, context: Any) -> slices_pb2.AdmitResponse:  # noqa: N802
        """Admits work."""
        return await self._deeds.admit(_caller(context), request)

    async def Renew(self, request: slices_pb2.RenewRequest, context: Any) -> slices_pb2.RenewResponse:  # noqa: N802
        """Keeps work for longer."""
        return await self._deeds.renew(_caller(context), request)

    async def Withdraw(  # noqa: N802
        self, request: slices_pb2.WithdrawRequest, context: Any
    ) -> slices_pb2.WithdrawResponse:
        """Gives work back."""
        return await self._deeds.withdraw(_caller(context), request)

    async def ReportTraffic(  # noqa: N802
        self, request: slices_pb2.ReportTrafficRequest, context: Any
    ) -> slices_pb2.ReportTrafficResponse:
        """Adds up what a node has measured; a node reports for itself."""
        caller = current_caller()
        return await self._deeds.report(Caller(caller.role, caller.name), request)

    async def WatchSlices(  # noqa: N802
        self, request: slices_pb2.WatchSlicesRequest, context: Any
    ) -> AsyncIterator[slices_pb2.WatchSlicesResponse]:
        """Tells how they are."""
        async for message in self._teller.watch(_caller(context), request.node, self._draining):
            yield message


def _caller(context: Any) -> Caller:
    return Caller(*called_for(context))


def _person(context: Any) -> Caller:
    caller = _caller(context)
    may_change(caller)
    return caller


async def run(settings: SlicesSettings) -> None:
    """Runs a slices service until it is asked to stop."""
    identities = IdentitySource(settings.identity)
    place = Location.of(settings.store, settings.store_file, settings.state / "slices.sqlite")
    store = await asyncio.to_thread(SliceStore, place)
    await in_turn(
        store.database, identities, settings.listen, (SERVICE,), SidePorts.of(settings),
        lambda turn: _lead(settings, identities, store, turn),
    )  # fmt: skip


async def _lead(settings: SlicesSettings, identities: IdentitySource, store: SliceStore, turn: Turn) -> None:
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        identities, listen=turn.listen, telemetry=told, side=SidePorts.of(settings), faults=settings.allow_faults
    )
    host.closed = turn.refusal
    rates, places = bandwidths(settings), table(settings.places, "places")
    channels = ChannelPool(identities, ways_table(settings.peers))
    light = LightSource(
        settings.contacts, settings.constellation, settings.constellation_name, places, channels, host.log,
        settings.clock,
    )  # fmt: skip
    keeper = await asyncio.to_thread(Keeper, store, host.log, time.time_ns)
    nodes = Nodes(channels, settings.scheduler, settings.scheduler_name, rates, keeper, host.log)
    solvers = Solvers(settings.solvers, host.log)
    servicer = SlicesServicer(
        keeper, light, solvers, host.draining, places=places, declared=link_bandwidths(settings)
    )
    host.add(SERVICE, slices_pb2_grpc.add_SlicesServiceServicer_to_server, servicer)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = (keeper.write, keeper.expire, nodes.follow, light.follow)
            unasked = [tasks.create_task(work()) for work in (turn.keep, *beside)]
            offer(host.metrics, keeper, solvers)
            port = await host.start()
            host.log.info("listening", address=f"{turn.listen.rpartition(':')[0]}:{port}")
            await host.run_until_stopped()
            for task in unasked:
                task.cancel()
    finally:
        await solvers.close()
        await keeper.close()
        await channels.close()
