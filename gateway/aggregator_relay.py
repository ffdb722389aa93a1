"""Answers the aggregator's service on the gateway, as `relay` does the scheduler's.

A watcher has no deadline: it stays until the run has ended, this gateway drains, or the way to the aggregator breaks.
The latter two end its stream with an error that says that it may ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from gateway.upstream import Upstream
from orbitmesh.errors import TransportError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import keep_status, mapped_errors
from orbitmesh.v1 import aggregator_pb2, aggregator_pb2_grpc
from services.runtime.caller import current_call, time_left_s

WEIGHTS_DEADLINE_S = 7200.0
"""How long giving a run's weights may take where the caller sets no deadline."""
MARGIN_S = 1.0
"""What is left of a caller's deadline, at most, when the aggregator is given up."""
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
        deadline_s = current_call().deadline_s
        timeout_s = None if deadline_s is None else time_left_s(0.0)
        state: int = aggregator_pb2.RUN_STATE_UNSPECIFIED
        async with aclosing(self._until_drained(self._stub().WatchRun(request, timeout=timeout_s))) as answers:
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
            with mapped_errors(address=self._upstream.aggregator_address, server="the aggregator"):
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    async def _until_drained(self, call: Any) -> AsyncGenerator[Any, None]:
        """The messages of a stream, as long as this gateway stays."""
        keep_status(call)
        draining = asyncio.ensure_future(self._draining.wait())
        reading: asyncio.Future[Any] | None = None
        try:
            with mapped_errors(address=self._upstream.aggregator_address, server="the aggregator"):
                while True:
                    reading = asyncio.ensure_future(call.read())
                    await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done():
                        raise TransportError("this gateway is going down; ask again", reason="DRAINING")
                    message = await reading
                    if message is grpc.aio.EOF:
                        return
                    yield message
        finally:
            draining.cancel()
            if reading is not None:
                reading.cancel()
            call.cancel()

    def _stub(self) -> aggregator_pb2_grpc.AggregatorServiceStub:
        return aggregator_pb2_grpc.AggregatorServiceStub(self._upstream.aggregator_channel())

    async def _unary(self, method: str, request: Any) -> Any:
        call: grpc.aio.UnaryUnaryMultiCallable = getattr(self._stub(), method)
        with mapped_errors(address=self._upstream.aggregator_address, server="the aggregator"):
            left_s = time_left_s(CONTROL_DEADLINE_S)
            # A little less than the caller has: an aggregator that hangs is named by us, not guessed at by the caller.
            return await call(request, timeout=left_s - min(MARGIN_S, left_s / 4))
