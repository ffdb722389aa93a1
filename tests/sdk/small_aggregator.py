"""A small aggregator behind a small gateway: real gRPC, and it answers what each test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from orbitmesh.v1 import aggregator_pb2, aggregator_pb2_grpc, training_pb2
from tests.sdk.small_gateway import refuse

RUNNING, DONE = aggregator_pb2.RUN_STATE_RUNNING, aggregator_pb2.RUN_STATE_DONE
Watching = Callable[[aggregator_pb2.WatchRunRequest, Any], AsyncIterator[aggregator_pb2.WatchRunResponse]]
Giving = Callable[[Any], AsyncIterator[aggregator_pb2.GetWeightsResponse]]


@dataclass
class SmallAggregator(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Notes what it is asked; tells of a run, and gives weights, as a test says."""

    run: aggregator_pb2.Run = field(default_factory=aggregator_pb2.Run)
    """The run that every method tells of."""
    asked: list[Any] = field(default_factory=list)
    """Requests in order."""
    watching: list[Watching] = field(default_factory=list)
    """What each watch does, one after another; the last one again and again."""
    giving: list[Giving] = field(default_factory=list)
    """The same for weights."""

    async def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return aggregator_pb2.StartRunResponse(run=self.run)

    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.name != self.run.name:
            await refuse(context, "NOT_FOUND", f"there is no run {request.name!r}")
        return aggregator_pb2.GetRunResponse(run=self.run)

    async def ListRuns(self, request: Any, context: Any) -> Any:  # noqa: N802
        return aggregator_pb2.ListRunsResponse(runs=[self.run])

    async def ResumeRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return aggregator_pb2.ResumeRunResponse(run=self.run)

    async def CancelRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return aggregator_pb2.CancelRunResponse(run=self.run)

    async def GetLedger(self, request: Any, context: Any) -> Any:  # noqa: N802
        promised = training_pb2.Privacy(unit=training_pb2.PRIVACY_UNIT_RECORD, epsilon=2.0)
        entry = aggregator_pb2.LedgerEntry(
            round=3, node="sat-1", steps=4, sample_rate=0.25, noise_multiplier=1.5, epsilon=0.75
        )
        return aggregator_pb2.GetLedgerResponse(promised=promised, epsilon=0.75, rounds_left=5, entries=[entry])

    async def WatchRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        behaviour = self.watching.pop(0) if len(self.watching) > 1 else self.watching[0]
        async for answer in behaviour(request, context):
            yield answer

    async def GetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        behaviour = self.giving.pop(0) if len(self.giving) > 1 else self.giving[0]
        async for answer in behaviour(context):
            yield answer


def a_round(index: int, *, done: bool = True, **more: Any) -> aggregator_pb2.RunRound:
    """A round with something in it."""
    found = aggregator_pb2.RunRound(index=index, cohort=["sat-1", "sat-2"], up_bytes=10 * index, **more)
    if done:
        found.done_at.FromDatetime(datetime(2026, 3, 1, 12, index, tzinfo=UTC))
    return found


def told(state: aggregator_pb2.RunState, *rounds: aggregator_pb2.RunRound, **more: Any) -> Any:
    """An answer to a watcher."""
    return aggregator_pb2.WatchRunResponse(run=aggregator_pb2.Run(name="run", state=state, rounds=rounds, **more))


def saying(*answers: aggregator_pb2.WatchRunResponse, then: str = "") -> Watching:
    """Says this, and then ends, in good order or with that reason."""

    async def say(request: Any, context: Any) -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
        for answer in answers:
            yield answer
        if then:
            await refuse(context, then, "as the test wants it")

    return say
