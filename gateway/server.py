"""The gateway on the wire."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from gateway.aggregator_relay import AggregatorRelay
from gateway.book import Book, Pages
from gateway.generations import SLOW_READER_S, Generations
from gateway.metrics import GenerationMetrics
from gateway.ops import GatewayOps
from gateway.packs import PackShelf
from gateway.relay import SchedulerRelay
from gateway.shared import RecordKey, SharedStore
from gateway.shared_book import SharedBook
from gateway.slices_relay import SlicesRelay
from gateway.spans import SpanExport
from gateway.traces import Traces
from gateway.upstream import Upstream
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import (
    aggregator_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    slices_pb2_grpc,
)
from orbitmesh.wire.streams import SessionAcceptor, exchange_handler
from services.runtime.admin import SidePorts
from services.runtime.leading import Turn, wait_for_turn
from services.runtime.logs import EventLog
from services.runtime.metrics import Telemetry
from services.runtime.process import ways_table
from services.runtime.server import ServiceHost
from services.runtime.store import Location
from services.runtime.tracing import open_sinks

GATEWAY_SERVICE = "orbitmesh.v1.GatewayService"
PACK_SERVICE = "orbitmesh.v1.PackService"
SCHEDULER_SERVICE = "orbitmesh.v1.SchedulerService"
AGGREGATOR_SERVICE = "orbitmesh.v1.AggregatorService"
SLICES_SERVICE = "orbitmesh.v1.SlicesService"
SERVICES = (GATEWAY_SERVICE, PACK_SERVICE, SCHEDULER_SERVICE, AGGREGATOR_SERVICE, SLICES_SERVICE)
"""What a gateway answers."""
STATUS_DEADLINE_S = 2.0
"""How long the scheduler may take to show that it is up."""


@dataclass(frozen=True)
class GatewaySettings:
    """The configuration of a gateway."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role gateway`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    state: Path
    """Directory of its packs."""
    scheduler: str
    """host:port of the scheduler."""
    scheduler_name: str = "scheduler"
    """Its name in its certificate."""
    store: str = ""
    """The database that gateways share: postgresql://USER@HOST:PORT/DATABASE; empty means files in `state`, for one
    gateway alone."""
    store_file: Path | None = None
    """File with that URL, where it holds a password; readable by its owner alone."""
    record_key: Path | None = None
    """File with the key that seals what is in a shared database of generations: 64 hexadecimal digits, the same for
    every gateway; readable by its owner alone."""
    aggregator: str = ""
    """host:port of the aggregator; empty means that this mesh has none and cannot train."""
    aggregator_name: str = "aggregator"
    """Its name in its certificate."""
    slices: str = ""
    """host:port of the slices service; empty means that this mesh has none and nothing is promised to anybody."""
    slices_name: str = "slices"
    """Its name in its certificate."""
    advertise: str = ""
    """host:port where executors fetch packs from; empty means the address it listens on."""
    spans_file: str = ""
    """A file that gets the spans of every generation as JSON, a line each; empty writes none."""
    otlp_endpoint: str = ""
    """Where an OpenTelemetry collector takes spans and metrics, as http://host:port or https://host:port; empty sends
    none."""
    prometheus: str = ""
    """host:port where Prometheus fetches metrics, in plain HTTP; empty offers none."""
    probe: str = ""
    """host:port where health is answered in plain text, for a kubelet's probes; empty answers none."""
    ops: str = ""
    """host:port where operators (health, reflection, channelz, OpsService) are answered apart from users, besides
    `listen`; empty: there alone."""
    allow_faults: bool = False
    """Whether operators may break this process on purpose, with OpsService InjectFault: for development only."""
    peers: tuple[str, ...] = ()
    """Other ways to nodes, each `executor/name=host:port`, where the address that they advertise is not the one."""
    slow_reader_s: float = SLOW_READER_S
    """How long a client may take no message while there are some for it, in seconds."""


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers `GatewayService`."""

    def __init__(
        self, generations: Generations, traces: Traces, shelf: PackShelf, upstream: Upstream, name: str
    ) -> None:
        self._generations = generations
        self._traces = traces
        self._shelf = shelf
        self._upstream = upstream
        self._name = name
        self.address = ""

    async def Generate(self, request: gateway_pb2.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Answers a prompt."""
        await self._generations.answer(request, context.write)

    async def CancelGeneration(  # noqa: N802
        self, request: gateway_pb2.CancelGenerationRequest, context: Any
    ) -> gateway_pb2.CancelGenerationResponse:
        """Ends a generation by its name."""
        await self._generations.cancel(request.request_id)
        return gateway_pb2.CancelGenerationResponse()

    async def Explain(  # noqa: N802
        self, request: gateway_pb2.ExplainRequest, context: Any
    ) -> gateway_pb2.ExplainResponse:
        """Breaks a generation down."""
        return gateway_pb2.ExplainResponse(breakdown=self._traces.explain(request.trace_id))

    async def GetStatus(  # noqa: N802
        self, request: gateway_pb2.GetStatusRequest, context: Any
    ) -> gateway_pb2.GetStatusResponse:
        """Tells what the gateway is doing."""
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self._upstream.scheduler_channel())
        try:
            await stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=STATUS_DEADLINE_S)
            scheduler_up = True
        except grpc.RpcError:
            scheduler_up = False
        return gateway_pb2.GetStatusResponse(
            generations=self._generations.running,
            packs=len(await asyncio.to_thread(self._shelf.packs)),
            version=version("orbitmesh"),
            name=self._name,
            address=self.address,
            scheduler_up=scheduler_up,
        )


class PackServicer(gateway_pb2_grpc.PackServiceServicer):
    """Answers `PackService`; its stream has a handler of its own."""

    def __init__(self, shelf: PackShelf) -> None:
        self._shelf = shelf

    async def CreatePack(  # noqa: N802
        self, request: gateway_pb2.CreatePackRequest, context: Any
    ) -> gateway_pb2.CreatePackResponse:
        """Registers a pack."""
        return await asyncio.to_thread(self._shelf.create, request)

    async def ListPacks(  # noqa: N802
        self, request: gateway_pb2.ListPacksRequest, context: Any
    ) -> gateway_pb2.ListPacksResponse:
        """Lists the packs."""
        return gateway_pb2.ListPacksResponse(packs=await asyncio.to_thread(self._shelf.packs))


async def run(settings: GatewaySettings) -> None:
    """Runs a gateway until it is asked to stop."""
    identities = IdentitySource(settings.identity)
    if not settings.store and settings.store_file is None:
        await _lead(settings, identities, Turn(settings.listen, None, EventLog(identities.current().title)), None)
        return
    place = Location.of(settings.store, settings.store_file, settings.state)
    key = RecordKey.read(settings.record_key)
    store = await asyncio.to_thread(SharedStore, place, key)
    turn = await wait_for_turn(store.database, identities, settings.listen, SERVICES, SidePorts.of(settings))
    try:
        if turn is not None:
            await asyncio.to_thread(store.check_key)
            await _lead(settings, identities, turn, store)
    finally:
        if turn is not None:
            await turn.end()
        await asyncio.to_thread(store.close)


async def _lead(
    settings: GatewaySettings, identities: IdentitySource, turn: Turn, store: SharedStore | None
) -> None:
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        identities, listen=turn.listen, telemetry=told, side=SidePorts.of(settings), faults=settings.allow_faults
    )
    host.closed = turn.refusal
    upstream = Upstream(
        identities,
        settings.scheduler,
        settings.scheduler_name,
        ways_table(settings.peers),
        host.log,
        aggregator=settings.aggregator,
        aggregator_name=settings.aggregator_name,
        slices=settings.slices,
        slices_name=settings.slices_name,
    )
    shelf = await asyncio.to_thread(PackShelf, settings.state / "packs", identities, host.log, store)
    with contextlib.ExitStack() as exports:
        sinks = open_sinks(settings.spans_file, settings.otlp_endpoint, exports)
        traces = Traces([SpanExport(sink, identities.current().name) for sink in sinks])
        await _serve(settings, host, upstream, shelf, traces, turn, store)


async def _serve(
    settings: GatewaySettings,
    host: ServiceHost,
    upstream: Upstream,
    shelf: PackShelf,
    traces: Traces,
    turn: Turn,
    store: SharedStore | None,
) -> None:
    identities = upstream.identities
    acceptor = SessionAcceptor(identities, shelf.serve, egress=upstream.turns_towards)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(turn.keep())]
            book: Pages
            if store is None:
                book = Book(settings.state / "generations", identities, host.log)
            else:
                book = SharedBook(store, turn.refusal, host.log)
                beside.append(tasks.create_task(book.write()))
            generations = Generations(upstream, shelf, traces, book, tasks, host.log, settings.slow_reader_s)
            await generations.take_up()
            beside += [tasks.create_task(work) for work in (generations.follow(), upstream.keep_to_slices())]
            servicer = GatewayServicer(generations, traces, shelf, upstream, identities.current().name)
            host.add_stream(PACK_SERVICE, "Transfer", exchange_handler(acceptor))
            host.add(GATEWAY_SERVICE, gateway_pb2_grpc.add_GatewayServiceServicer_to_server, servicer)
            host.add(PACK_SERVICE, gateway_pb2_grpc.add_PackServiceServicer_to_server, PackServicer(shelf))
            host.add(
                SCHEDULER_SERVICE,
                scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
                SchedulerRelay(upstream, host.log),
            )
            host.add(
                AGGREGATOR_SERVICE,
                aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server,
                AggregatorRelay(upstream, host.draining),
            )
            host.add(
                SLICES_SERVICE,
                slices_pb2_grpc.add_SlicesServiceServicer_to_server,
                SlicesRelay(upstream, host.draining),
            )
            if host.metrics.enabled:
                traces.tell(GenerationMetrics(host.metrics, generations).ended)
            host.ops = GatewayOps(host, upstream, generations, traces)
            port = await host.start()
            servicer.address = settings.advertise or f"{turn.listen.rpartition(':')[0]}:{port}"
            host.log.info("listening", address=servicer.address)
            host.on_drain(generations.drain)
            host.in_flight.finish_by(["/orbitmesh.v1.GatewayService/CancelGeneration"])
            await host.run_until_stopped()
            generations.leave()
            for task in beside:
                task.cancel()
    finally:
        await acceptor.close()
        await upstream.close()
