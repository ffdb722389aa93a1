"""Answers the aggregator's service on the gateway, as `relay` does the scheduler's, and tells it for whom each call is:
runs use slices, and those have tenants.

A watcher has no deadline: its stream ends with its run; an end before that is an error that says that it may ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gateway.handing_on import hand_on, until_drained, watch_deadline_s
from gateway.upstream import Upstream
from orbitmesh.errors import TransportError
from orbitmesh.rpc import keep_status, mapped_errors
from orbitmesh.v1 import aggregator_pb2, aggregator_pb2_grpc
from services.runtime.behalf import behalf_metadata
from services.runtime.caller import current_caller, time_left_s

WEIGHTS_DEADLINE_S = 7200.0
"""How long giving a run's weights may take where the caller sets no deadline."""
SERVER = "the aggregator"
"""What messages call it."""
ENDED = frozenset({aggregator_pb2.RUN_STATE_DONE, aggregator_pb2.RUN_STATE_CANCELLED, aggregator_pb2.RUN_STATE_FAILED})
"""States after which there is nothing more to tell of a run."""


class AggregatorRelay(aggregator_pb2_grpc.AggregatorServiceServicer):
    """`AggregatorService`; every method says so where this gateway was given no aggregator.

    Args:
        upstream: The way to it.
        draining: Set once this gateway drains.
    """

    def __init__(self, upstream: Upstream, draining: asyncio.Event) -> None:
        self._upstream = upstream
        self._draining = draining

    async def StartRun(self, request: aggregator_pb2.StartRunRequest, context: Any) -> Any:  # noqa: N802
        """Begins a run."""
        return await self._unary("StartRun", request)

    async def GetRun(self, request: aggregator_pb2.GetRunRequest, context: Any) -> Any:  # noqa: N802
        """Gets one."""
        return await self._unary("GetRun", request)

    async def ListRuns(self, request: aggregator_pb2.ListRunsRequest, context: Any) -> Any:  # noqa: N802
        """Lists them."""
        return await self._unary("ListRuns", request)

    async def CancelRun(self, request: aggregator_pb2.CancelRunRequest, context: Any) -> Any:  # noqa: N802
        """Ends one early."""
        return await self._unary("CancelRun", request)

    async def ResumeRun(self, request: aggregator_pb2.ResumeRunRequest, context: Any) -> Any:  # noqa: N802
        """Lets one go on."""
        return await self._unary("ResumeRun", request)

    async def DeleteRun(self, request: aggregator_pb2.DeleteRunRequest, context: Any) -> Any:  # noqa: N802
        """Removes a run that has ended."""
        return await self._unary("DeleteRun", request)

    async def GetLedger(self, request: aggregator_pb2.GetLedgerRequest, context: Any) -> Any:  # noqa: N802
        """Says what its promise of privacy has cost."""
        return await self._unary("GetLedger", request)

    async def Predict(self, request: aggregator_pb2.PredictRequest, context: Any) -> Any:  # noqa: N802
        """Asks a run's model."""
        return await self._unary("Predict", request)

    async def WatchRun(  # noqa: N802
        self, request: aggregator_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        """Tells how a run is until it has ended."""
        state: int = aggregator_pb2.RUN_STATE_UNSPECIFIED
        call, address = self._stub().WatchRun(request, timeout=watch_deadline_s()), self._upstream.aggregator_address
        async with aclosing(until_drained(call, self._draining, address=address, server=SERVER)) as answers:
            async for answer in answers:
                state = answer.run.state
                yield answer
        if state not in ENDED:
            raise TransportError(
                f"the aggregator stopped telling of {request.name[:64]!r} before it had ended; ask again"
            )

    async def GetWeights(  # noqa: N802
        self, request: aggregator_pb2.GetWeightsRequest, context: Any
    ) -> AsyncIterator[aggregator_pb2.GetWeightsResponse]:
        """Gives a run's weights; no faster than the caller takes them."""
        call = keep_status(self._stub().GetWeights(request, timeout=time_left_s(WEIGHTS_DEADLINE_S)))
        try:
            with mapped_errors(address=self._upstream.aggregator_address, server=SERVER):
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    def _stub(self) -> aggregator_pb2_grpc.AggregatorServiceStub:
        return aggregator_pb2_grpc.AggregatorServiceStub(self._upstream.aggregator_channel())

    async def _unary(self, method: str, request: Any) -> Any:
        call = getattr(self._stub(), method)
        metadata = behalf_metadata(current_caller().spiffe)
        return await hand_on(
            call, request, address=self._upstream.aggregator_address, server=SERVER, metadata=metadata
        )
