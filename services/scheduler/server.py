"""The scheduler on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import HEARTBEAT_INTERVAL_S, LEASE_S
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.runtime.admin import SidePorts
from services.runtime.caller import current_caller
from services.runtime.leading import Turn, in_turn
from services.runtime.logs import EventLog
from services.runtime.metrics import Telemetry
from services.runtime.process import ways_table
from services.runtime.server import ServiceHost
from services.runtime.store import Location
from services.scheduler.deployments import Deployments
from services.scheduler.metrics import offer
from services.scheduler.registry import Registry
from services.scheduler.sky import SkySettings, SkySource
from services.scheduler.store import DeploymentStore

SERVICE = "orbitmesh.v1.SchedulerService"


@dataclass(frozen=True)
class SchedulerSettings:
    """The configuration of a scheduler."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role scheduler`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    state: Path
    """Directory of its database."""
    store: str = ""
    """Where it keeps its state: postgresql://USER@HOST:PORT/DATABASE; empty means a SQLite file in `state`."""
    store_file: Path | None = None
    """File with that URL, where it holds a password; readable by its owner alone."""
    lease_s: float = LEASE_S
    """For how long a heartbeat makes a node a member, in seconds."""
    heartbeat_s: float = HEARTBEAT_INTERVAL_S
    """How often nodes are asked to speak, in seconds."""
    otlp_endpoint: str = ""
    """Where an OpenTelemetry collector takes metrics, as http://host:port or https://host:port; empty sends none."""
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
    contacts: Path | None = None
    """File of a contact plan to plan with; read again when it is replaced."""
    clock: Path | None = None
    """File of the mesh's clock: origin_mesh_s, origin_wall_s, factor; without one mesh time is the real time."""
    constellation: str = ""
    """host:port of a constellation service to have contact plan and clock from, instead of files."""
    constellation_name: str = "constellation"
    """Its name in its certificate."""
    places: tuple[str, ...] = ()
    """Where the gateway and the scheduler stand, in the contact plan's names, each `gateway=ground-1`."""


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Answers `SchedulerService`; what it means is in `registry` and `deployments`."""

    def __init__(
        self,
        registry: Registry,
        deployments: Deployments,
        sky: SkySource,
        heartbeat_s: float,
        draining: asyncio.Event,
        log: EventLog,
    ) -> None:
        self._registry = registry
        self._deployments = deployments
        self._sky = sky
        self._heartbeat_s = heartbeat_s
        self._draining = draining
        self._log = log

    async def Heartbeat(  # noqa: N802
        self, request_iterator: AsyncIterator[scheduler_pb2.HeartbeatRequest], context: Any
    ) -> AsyncIterator[scheduler_pb2.HeartbeatResponse]:
        """Keeps one node's lease; a node speaks for itself: its name is the one in its certificate."""
        name, stream = current_caller().name, self._registry.open_stream()
        async for measures in request_iterator:
            if self._draining.is_set():
                return
            now_s = time.monotonic()
            record = self._registry.heartbeat(name, measures, now_s, time.time_ns(), stream)
            if record.stream > stream:
                return  # another stream took this one's place; where its node lives, it opens a new one
            if record.beats == 1:
                self._log.info("node_joined", node=name, address=measures.address, kind=measures.kind)
            answer = scheduler_pb2.HeartbeatResponse(peers=self._registry.peers_of(name, now_s))
            answer.lease.FromNanoseconds(int(self._registry.lease_s * 1e9))
            answer.interval.FromNanoseconds(int(self._heartbeat_s * 1e9))
            if measures.draining:
                answer.places_to_move = self._deployments.places_to_move(name, now_s)
            yield answer
        self._registry.leave(name, stream)
        self._log.info("node_left", node=name)

    async def ListNodes(  # noqa: N802
        self, request: scheduler_pb2.ListNodesRequest, context: Any
    ) -> scheduler_pb2.ListNodesResponse:
        """Lists the nodes."""
        now_s = time.monotonic()
        nodes = [self._registry.message(record, now_s) for record in self._registry.all()]
        for node in nodes:
            self._sky.describe(node)
        return scheduler_pb2.ListNodesResponse(nodes=nodes)

    async def Plan(self, request: scheduler_pb2.PlanRequest, context: Any) -> scheduler_pb2.PlanResponse:  # noqa: N802
        """Plans."""
        return scheduler_pb2.PlanResponse(plan=await self._deployments.plan(request))

    async def CreateDeployment(  # noqa: N802
        self, request: scheduler_pb2.CreateDeploymentRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.CreateDeploymentResponse]:
        """Deploys.

        Raises:
            InvalidInputError: `FAILED_PRECONDITION`, a slice is named by somebody who does not see to whose it is.
        """
        if request.slice and current_caller().role is not Role.GATEWAY:
            raise InvalidInputError(
                "a deployment in a slice goes through a gateway, which sees to whose slice it is: ask one, or name "
                "none",
                reason="FAILED_PRECONDITION",
            )
        async for answer in self._deployments.create(request):
            yield answer

    async def ListDeployments(  # noqa: N802
        self, request: scheduler_pb2.ListDeploymentsRequest, context: Any
    ) -> scheduler_pb2.ListDeploymentsResponse:
        """Lists the deployments."""
        messages = [self._deployments.message(name) for name in self._deployments.names()]
        return scheduler_pb2.ListDeploymentsResponse(deployments=messages)

    async def GetDeployment(  # noqa: N802
        self, request: scheduler_pb2.GetDeploymentRequest, context: Any
    ) -> scheduler_pb2.GetDeploymentResponse:
        """Gets one."""
        return scheduler_pb2.GetDeploymentResponse(deployment=self._deployments.message(request.name))

    async def ReplaceStage(  # noqa: N802
        self, request: scheduler_pb2.ReplaceStageRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.ReplaceStageResponse]:
        """Fills a place anew."""
        async for answer in self._deployments.replace(request):
            yield answer

    async def WatchDeployments(  # noqa: N802
        self, request: scheduler_pb2.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.WatchDeploymentsResponse]:
        """Tells of changes."""
        async for answer in self._deployments.watch(frozenset(request.names), self._draining):
            yield answer

    async def DeleteDeployment(  # noqa: N802
        self, request: scheduler_pb2.DeleteDeploymentRequest, context: Any
    ) -> scheduler_pb2.DeleteDeploymentResponse:
        """Takes one down."""
        await self._deployments.delete(request.name)
        return scheduler_pb2.DeleteDeploymentResponse()


async def run(settings: SchedulerSettings) -> None:
    """Runs a scheduler until it is asked to stop."""
    identities = IdentitySource(settings.identity)
    place = Location.of(settings.store, settings.store_file, settings.state / "scheduler.sqlite")
    store = await asyncio.to_thread(DeploymentStore, place)
    await in_turn(
        store.database, identities, settings.listen, (SERVICE,), SidePorts.of(settings),
        lambda turn: _lead(settings, identities, store, turn),
    )  # fmt: skip


async def _lead(settings: SchedulerSettings, identities: IdentitySource, store: DeploymentStore, turn: Turn) -> None:
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        identities, listen=turn.listen, telemetry=told, side=SidePorts.of(settings), faults=settings.allow_faults
    )
    host.closed = turn.refusal
    registry = Registry(settings.lease_s)
    sky_settings = SkySettings(
        settings.contacts, settings.clock, settings.constellation, settings.constellation_name, settings.places
    )
    sky = SkySource(sky_settings, identities, host.log)
    deployments = Deployments(registry, store, identities, ways_table(settings.peers), sky, host.log)
    servicer = SchedulerServicer(registry, deployments, sky, settings.heartbeat_s, host.draining, host.log)
    host.on_drain(deployments.wake)
    host.add(SERVICE, scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, servicer)
    offer(host.metrics, registry, deployments)
    port = await host.start()
    host.log.info("listening", address=f"{turn.listen.rpartition(':')[0]}:{port}")
    try:
        async with asyncio.TaskGroup() as tasks:
            work = (turn.keep(), deployments.keep_up(), sky.follow())
            unasked = [tasks.create_task(each) for each in work]
            await host.run_until_stopped()
            for task in unasked:
                task.cancel()
    finally:
        await sky.close()
        await deployments.close()
