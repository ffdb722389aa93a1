"""The aggregator on the wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.trust import IdentitySource
from orbitmesh.trust.names import spiffe_id
from orbitmesh.v1 import aggregator_pb2, aggregator_pb2_grpc
from services.aggregator.members import Members
from services.aggregator.runs import Runs, no_weights
from services.aggregator.store import FILE, RunStore, as_bytes
from services.egress import FarEgress
from services.egress.reporting import report_traffic
from services.runtime.admin import SidePorts
from services.runtime.behalf import called_for
from services.runtime.channels import ChannelPool
from services.runtime.leading import Turn, in_turn
from services.runtime.metrics import Telemetry
from services.runtime.process import ways_table
from services.runtime.server import ServiceHost
from services.runtime.slicewatch import follow_slices
from services.runtime.store import Location
from services.runtime.tracing import open_sinks

SERVICE = "orbitmesh.v1.AggregatorService"


@dataclass(frozen=True)
class AggregatorSettings:
    """The configuration of an aggregator."""

    identity: Path
    """Directory of its identity (`orbitmesh pki issue --role aggregator`)."""
    listen: str
    """host:port to listen on; port 0 takes a free one."""
    state: Path
    """Directory of its runs: database, weights, contributions on their way in."""
    scheduler: str
    """host:port of the scheduler."""
    scheduler_name: str = "scheduler"
    """Its name in its certificate."""
    store: str = ""
    """Where it keeps all but weights and contributions: postgresql://USER@HOST:PORT/DATABASE; empty means a SQLite file
    in `state`."""
    store_file: Path | None = None
    """File with that URL, where it holds a password; readable by its owner alone."""
    slices: str = ""
    """host:port of the service that keeps slices; empty: no run can be in one."""
    slices_name: str = "slices"
    """Its name in its certificate."""
    spans_file: str = ""
    """A file that gets the spans of every round as JSON, a line each; empty writes none."""
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


class AggregatorServicer(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Answers `AggregatorService`; what it means is in `runs`."""

    def __init__(self, runs: Runs, draining: asyncio.Event) -> None:
        self._runs = runs
        self._draining = draining

    async def StartRun(  # noqa: N802
        self, request: aggregator_pb2.StartRunRequest, context: Any
    ) -> aggregator_pb2.StartRunResponse:
        """Begins a run."""
        return aggregator_pb2.StartRunResponse(run=await self._runs.start(request, _caller(context)))

    async def GetRun(  # noqa: N802
        self, request: aggregator_pb2.GetRunRequest, context: Any
    ) -> aggregator_pb2.GetRunResponse:
        """Gets one."""
        return aggregator_pb2.GetRunResponse(run=self._runs.get(request.name).page(request.from_round))

    async def ListRuns(  # noqa: N802
        self, request: aggregator_pb2.ListRunsRequest, context: Any
    ) -> aggregator_pb2.ListRunsResponse:
        """Lists all."""
        return aggregator_pb2.ListRunsResponse(runs=[driver.message() for driver in self._runs.all()])

    async def WatchRun(  # noqa: N802
        self, request: aggregator_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        """Tells of changes."""
        async for message in self._runs.watch(request.name, request.from_round, self._draining):
            yield aggregator_pb2.WatchRunResponse(run=message)

    async def CancelRun(  # noqa: N802
        self, request: aggregator_pb2.CancelRunRequest, context: Any
    ) -> aggregator_pb2.CancelRunResponse:
        """Ends one."""
        return aggregator_pb2.CancelRunResponse(run=await self._runs.cancel(request.name))

    async def ResumeRun(  # noqa: N802
        self, request: aggregator_pb2.ResumeRunRequest, context: Any
    ) -> aggregator_pb2.ResumeRunResponse:
        """Lets one go on."""
        run = await self._runs.resume(request.name, request.rounds, _caller(context))
        return aggregator_pb2.ResumeRunResponse(run=run)

    async def DeleteRun(  # noqa: N802
        self, request: aggregator_pb2.DeleteRunRequest, context: Any
    ) -> aggregator_pb2.DeleteRunResponse:
        """Removes one."""
        return await self._runs.delete(request.name)

    async def GetLedger(  # noqa: N802
        self, request: aggregator_pb2.GetLedgerRequest, context: Any
    ) -> aggregator_pb2.GetLedgerResponse:
        """What a promise of privacy has cost."""
        return await asyncio.to_thread(self._runs.get(request.name).ledger_message)

    async def Predict(  # noqa: N802
        self, request: aggregator_pb2.PredictRequest, context: Any
    ) -> aggregator_pb2.PredictResponse:
        """Asks a run's model."""
        return await self._runs.predict(request)

    async def GetWeights(  # noqa: N802
        self, request: aggregator_pb2.GetWeightsRequest, context: Any
    ) -> AsyncIterator[aggregator_pb2.GetWeightsResponse]:
        """Gives a run's weights; those of one moment, also where rounds go on meanwhile."""
        driver = self._runs.get(request.name)
        weights = driver.book.weights
        if weights is None:
            raise no_weights(request.name)
        data = as_bytes(weights.values)
        answer = aggregator_pb2.GetWeightsResponse(
            values=weights.values.size, sha256=weights.sha256, rounds_done=driver.book.weights_after
        )
        for start in range(0, len(data), FRAME_BODY_BYTES):
            answer.data = bytes(data[start : start + FRAME_BODY_BYTES])
            yield answer
            answer = aggregator_pb2.GetWeightsResponse()


def _caller(context: Any) -> str:
    return spiffe_id(*called_for(context))


async def run(settings: AggregatorSettings) -> None:
    """Runs an aggregator until it is asked to stop."""
    identities = IdentitySource(settings.identity)
    place = Location.of(settings.store, settings.store_file, settings.state / FILE)
    store = await asyncio.to_thread(RunStore, settings.state, place)
    await in_turn(
        store.database, identities, settings.listen, (SERVICE,), SidePorts.of(settings),
        lambda turn: _lead(settings, identities, store, turn),
    )  # fmt: skip


async def _lead(settings: AggregatorSettings, identities: IdentitySource, store: RunStore, turn: Turn) -> None:
    told = Telemetry(settings.otlp_endpoint, settings.prometheus)
    host = ServiceHost(
        identities, listen=turn.listen, telemetry=told, side=SidePorts.of(settings), faults=settings.allow_faults
    )
    host.closed = turn.refusal
    channels = ChannelPool(identities, ways_table(settings.peers))
    members = Members(channels, settings.scheduler, settings.scheduler_name, host.log)
    with contextlib.ExitStack() as exports:
        sinks = open_sinks(settings.spans_file, settings.otlp_endpoint, exports)
        slices = (settings.slices, settings.slices_name)
        egress = FarEgress() if settings.slices else None
        runs = Runs(
            settings.state, identities, channels, members, slices, sinks, host.log, egress, store=store
        )
        servicer = AggregatorServicer(runs, host.draining)
        host.add(SERVICE, aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server, servicer)
        await runs.restore()
        port = await host.start()
        host.log.info("listening", address=f"{turn.listen.rpartition(':')[0]}:{port}")
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(members.follow()), tasks.create_task(turn.keep())]
                if egress is not None:
                    to = channels, settings.slices, settings.slices_name
                    beside.append(tasks.create_task(follow_slices(*to, "", egress.take, host.log)))
                    beside.append(tasks.create_task(report_traffic(*to, egress, host.log)))
                await host.run_until_stopped()
                for task in beside:
                    task.cancel()
        finally:
            await runs.close()
            await channels.close()
