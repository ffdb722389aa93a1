"""The executor on the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc
from orbitmesh.wire.streams import exchange_handler
from services.executor.generation import trace_id_of
from services.executor.membership import Membership
from services.executor.metrics import offer
from services.executor.node import ExecutorNode
from services.executor.relaying import RelayTable, known_peers
from services.runtime.caller import current_caller
from services.runtime.logs import log_trace
from services.runtime.process import ways_table
from services.runtime.server import ServiceHost

SERVICE = "orbitmesh.v1.ExecutorService"
FINISHING = ("CloseGeneration", "StopGeneration", "ContinueGeneration", "FeedGeneration", "UnloadStage")
"""What a node that drains still does: without it nothing that runs there could end or go elsewhere."""


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """Answers `ExecutorService`; what it means is in `node`."""

    def __init__(self, node: ExecutorNode, relays: RelayTable) -> None:
        self._node = node
        self._relays = relays

    async def LoadStage(  # noqa: N802
        self, request: executor_pb2.LoadStageRequest, context: Any
    ) -> AsyncIterator[executor_pb2.LoadStageResponse]:
        """Brings a stage up."""
        async for progress in self._node.load_stage(request):
            yield progress

    async def UnloadStage(  # noqa: N802
        self, request: executor_pb2.UnloadStageRequest, context: Any
    ) -> executor_pb2.UnloadStageResponse:
        """Lets stages go."""
        await self._node.unload_stage(request.deployment, list(request.stage_indexes))
        return executor_pb2.UnloadStageResponse()

    async def ListStages(  # noqa: N802
        self, request: executor_pb2.ListStagesRequest, context: Any
    ) -> executor_pb2.ListStagesResponse:
        """Lists the stages."""
        stages = [self._node.stage_message(key) for key in sorted(self._node.runners)]
        return executor_pb2.ListStagesResponse(stages=stages)

    async def OpenGeneration(  # noqa: N802
        self, request: executor_pb2.OpenGenerationRequest, context: Any
    ) -> executor_pb2.OpenGenerationResponse:
        """Reserves a generation's cache."""
        log_trace(trace_id_of(request.traceparent))
        runner = self._node.runner(request.deployment, request.stage_index)
        self._node.peers.learn(request.pipeline)
        generation = runner.open(request, current_caller().spiffe)
        return executor_pb2.OpenGenerationResponse(
            reserved_bytes=generation.cache.reserved_bytes,
            free_bytes=runner.pool.free_bytes,
            clock_ns=time.monotonic_ns(),
            length=generation.progress.length,
        )

    async def StopGeneration(  # noqa: N802
        self, request: executor_pb2.StopGenerationRequest, context: Any
    ) -> executor_pb2.StopGenerationResponse:
        """Holds a generation."""
        recovery = self._node.recovery(request.deployment, request.stage_index)
        return await recovery.stop(request, current_caller().spiffe)

    async def ContinueGeneration(  # noqa: N802
        self, request: executor_pb2.ContinueGenerationRequest, context: Any
    ) -> executor_pb2.ContinueGenerationResponse:
        """Lets a generation go on."""
        self._node.recovery(request.deployment, request.stage_index).go_on(request, current_caller().spiffe)
        return executor_pb2.ContinueGenerationResponse()

    async def FeedGeneration(  # noqa: N802
        self, request: executor_pb2.FeedGenerationRequest, context: Any
    ) -> executor_pb2.FeedGenerationResponse:
        """Feeds a stage that takes over."""
        recovery = self._node.recovery(request.deployment, request.stage_index)
        return await recovery.feed(request, current_caller().spiffe)

    async def CloseGeneration(  # noqa: N802
        self, request: executor_pb2.CloseGenerationRequest, context: Any
    ) -> executor_pb2.CloseGenerationResponse:
        """Ends a generation."""
        runner = self._node.runners.get((request.deployment, request.stage_index))
        response = executor_pb2.CloseGenerationResponse()
        if runner is not None:
            response = runner.close(request.generation, current_caller().spiffe)
        response.clock_ns = time.monotonic_ns()
        return response

    async def Relay(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """Carries a connection of others."""
        await self._relays.serve(context)

    async def Probe(self, request: executor_pb2.ProbeRequest, context: Any) -> executor_pb2.ProbeResponse:  # noqa: N802
        """Echoes."""
        if request.reply_bytes > FRAME_BODY_BYTES:
            raise InvalidInputError(f"a probe replies with at most {FRAME_BODY_BYTES} bytes", reason="LIMIT_EXCEEDED")
        response = executor_pb2.ProbeResponse(payload=bytes(request.reply_bytes), clock_ns=time.monotonic_ns())
        response.at.GetCurrentTime()
        return response


async def serve(host: ServiceHost, node: ExecutorNode, advertise: str) -> None:
    """Runs an executor until it is asked to stop.

    Args:
        host: The server, not yet started.
        node: The executor.
        advertise: host:port where others reach it; empty means the address it listens on.
    """
    members = known_peers(ways_table(node.settings.peers), lambda: membership.peers)
    relays = RelayTable(node.name, node.channels, members, host.log)
    host.add_stream(SERVICE, "Exchange", exchange_handler(node.peers.acceptor))
    host.add(SERVICE, executor_pb2_grpc.add_ExecutorServiceServicer_to_server, ExecutorServicer(node, relays))
    offer(host.metrics, node)
    port = await host.start()
    address = advertise or f"127.0.0.1:{port}"
    node.peers.learn_own(address)
    membership = Membership(node, address)
    node.peers.follow(lambda: membership.peers)
    host.ops.drain_by(lambda drained: membership.want_work(not drained))
    host.in_flight.finish_by(f"/{SERVICE}/{method}" for method in FINISHING)
    host.on_leave(membership.leave)
    host.on_drain(node.drain)
    host.on_drain(relays.drain)
    host.log.info("listening", address=address)
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(membership.run()),
                tasks.create_task(node.sweep()),
                tasks.create_task(node.reload_stages()),
            ]
            if node.settings.slices:
                beside.append(tasks.create_task(node.follow_slices()))
                beside.append(tasks.create_task(node.report_traffic()))
            await host.run_until_stopped()
            for task in beside:
                task.cancel()
    finally:
        await node.close()
