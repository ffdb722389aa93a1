"""The aggregator's service through a gateway: real hosts with real certificates, and an aggregator as each test tells
it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.aggregator_relay import AggregatorRelay
from gateway.upstream import Upstream
from orbitmesh.errors import InvalidInputError
from orbitmesh.rpc import map_rpc_error, open_channel
from orbitmesh.trust import IdentitySource, Role, init_mesh, issue
from orbitmesh.v1 import aggregator_pb2, aggregator_pb2_grpc, training_pb2
from services.runtime.logs import EventLog
from services.runtime.server import ServiceHost

SERVICE = "orbitmesh.v1.AggregatorService"
WAIT_S = 60.0
UNARY = {
    "StartRun": aggregator_pb2.StartRunRequest(request_id="1", name="run"),
    "GetRun": aggregator_pb2.GetRunRequest(name="run"),
    "ListRuns": aggregator_pb2.ListRunsRequest(),
    "CancelRun": aggregator_pb2.CancelRunRequest(name="run"),
    "ResumeRun": aggregator_pb2.ResumeRunRequest(name="run", rounds=7),
    "DeleteRun": aggregator_pb2.DeleteRunRequest(name="run"),
    "GetLedger": aggregator_pb2.GetLedgerRequest(name="run"),
    "Predict": aggregator_pb2.PredictRequest(name="run", inputs=training_pb2.Inputs(shape=[1, 2], data=bytes(8))),
}
STREAMS = {
    "WatchRun": aggregator_pb2.WatchRunRequest(name="run", from_round=3),
    "GetWeights": aggregator_pb2.GetWeightsRequest(name="run"),
}


def a_run(state: aggregator_pb2.RunState, rounds_done: int = 0) -> aggregator_pb2.Run:
    spec = training_pb2.TrainingSpec(task="digits", rounds=3, alpha=0.5, nodes=["sat-1"])
    return aggregator_pb2.Run(name="run", spec=spec, state=state, rounds_done=rounds_done)


class Aggregator(aggregator_pb2_grpc.AggregatorServiceServicer):
    """Notes what it is asked; `act` runs first and may raise; `watch` is what it tells of a run."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.act: Callable[[], Awaitable[None]] | None = None
        self.watch: Callable[[], AsyncIterator[aggregator_pb2.WatchRunResponse]] = ended
        self.left = asyncio.Event()
        self.pieces_sent = 0

    async def _answer(self, method: str, request: Any, answer: Any) -> Any:
        self.asked[method] = request
        if self.act is not None:
            await self.act()
        return answer

    async def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = a_run(aggregator_pb2.RUN_STATE_RUNNING)
        return await self._answer("StartRun", request, aggregator_pb2.StartRunResponse(run=run))

    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = a_run(aggregator_pb2.RUN_STATE_RUNNING, 1)
        return await self._answer("GetRun", request, aggregator_pb2.GetRunResponse(run=run))

    async def ListRuns(self, request: Any, context: Any) -> Any:  # noqa: N802
        runs = [a_run(aggregator_pb2.RUN_STATE_DONE, 3)]
        return await self._answer("ListRuns", request, aggregator_pb2.ListRunsResponse(runs=runs))

    async def CancelRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = a_run(aggregator_pb2.RUN_STATE_CANCELLED)
        return await self._answer("CancelRun", request, aggregator_pb2.CancelRunResponse(run=run))

    async def ResumeRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        run = a_run(aggregator_pb2.RUN_STATE_RUNNING, 2)
        return await self._answer("ResumeRun", request, aggregator_pb2.ResumeRunResponse(run=run))

    async def GetLedger(self, request: Any, context: Any) -> Any:  # noqa: N802
        entry = aggregator_pb2.LedgerEntry(round=1, node="sat-1", epsilon=0.5)
        return await self._answer("GetLedger", request, aggregator_pb2.GetLedgerResponse(entries=[entry]))

    async def DeleteRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("DeleteRun", request, aggregator_pb2.DeleteRunResponse(not_told=["sat-1"]))

    async def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        outputs = training_pb2.Inputs(shape=[1, 1], data=bytes([0, 0, 128, 63]))
        return await self._answer("Predict", request, aggregator_pb2.PredictResponse(outputs=outputs, node="sat-1"))

    async def WatchRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._answer("WatchRun", request, None)
        try:
            async for answer in self.watch():
                yield answer
        finally:
            self.left.set()

    async def GetWeights(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._answer("GetWeights", request, None)
        yield aggregator_pb2.GetWeightsResponse(values=1 << 20, sha256=bytes(32), rounds_done=3)
        for piece in range(64):
            yield aggregator_pb2.GetWeightsResponse(data=bytes([piece]) * (1 << 20))
            self.pieces_sent += 1


async def ended() -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
    """Two messages, the last of them final."""
    yield aggregator_pb2.WatchRunResponse(run=a_run(aggregator_pb2.RUN_STATE_RUNNING, 2))
    yield aggregator_pb2.WatchRunResponse(run=a_run(aggregator_pb2.RUN_STATE_DONE, 3))


async def unending() -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
    """One message, and then nothing for ever."""
    yield aggregator_pb2.WatchRunResponse(run=a_run(aggregator_pb2.RUN_STATE_RUNNING))
    await asyncio.Event().wait()


async def broken_off() -> AsyncIterator[aggregator_pb2.WatchRunResponse]:
    """One message, and an end that is none of the run."""
    yield aggregator_pb2.WatchRunResponse(run=a_run(aggregator_pb2.RUN_STATE_RUNNING))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an aggregator, a gateway and a client."""
    base = tmp_path_factory.mktemp("pki")
    init_mesh(base / "ca")
    for role, name in ((Role.AGGREGATOR, "aggregator"), (Role.GATEWAY, "gateway"), (Role.CLIENT, "me")):
        issue(base / "ca", role, name, base / str(role))
    return base


@asynccontextmanager
async def served(identities: Path, aggregator: str) -> AsyncIterator[tuple[Any, ServiceHost]]:
    """A gateway that hands calls on to that address; a client's stub, and the gateway's host."""
    source, log = IdentitySource(identities / "gateway"), EventLog("gateway/gateway", stream=io.StringIO())
    upstream = Upstream(source, "127.0.0.1:9", "scheduler", {}, log, aggregator=aggregator)
    host = ServiceHost(source, log=log)
    relay = AggregatorRelay(upstream, host.draining)
    host.add(SERVICE, aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server, relay)
    me = IdentitySource(identities / "client").current()
    async with host, open_channel(f"127.0.0.1:{host.port}", me, Role.GATEWAY, "gateway") as channel:
        yield aggregator_pb2_grpc.AggregatorServiceStub(channel), host
    await upstream.close()


@pytest.fixture
async def aggregator(identities: Path) -> AsyncIterator[tuple[Aggregator, ServiceHost]]:
    """An aggregator on loopback."""
    servicer = Aggregator()
    log = EventLog("aggregator/aggregator", stream=io.StringIO())
    host = ServiceHost(identities / "aggregator", log=log)
    host.add(SERVICE, aggregator_pb2_grpc.add_AggregatorServiceServicer_to_server, servicer)
    await host.start()
    yield servicer, host
    await host.drain(0.0)


async def asked(stub: Any, method: str, timeout_s: float | None = WAIT_S) -> list[Any]:
    """Everything that a method answers."""
    if method in UNARY:
        return [await getattr(stub, method)(UNARY[method], timeout=timeout_s)]
    return [answer async for answer in getattr(stub, method)(STREAMS[method], timeout=timeout_s)]


def test_these_are_all_methods_of_the_contract() -> None:
    """A method that is added is not left out here in silence."""
    service = aggregator_pb2.DESCRIPTOR.services_by_name["AggregatorService"]
    assert {method.name for method in service.methods if not method.server_streaming} == set(UNARY)
    assert {method.name for method in service.methods if method.server_streaming} == set(STREAMS)


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_every_method_is_handed_on_unchanged(
    method: str, aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """What the aggregator is asked and what it answers are the same with the gateway between as without it."""
    servicer, far = aggregator
    gateway = IdentitySource(identities / "gateway").current()
    async with open_channel(f"127.0.0.1:{far.port}", gateway, Role.AGGREGATOR, "aggregator") as direct:
        expected = await asked(aggregator_pb2_grpc.AggregatorServiceStub(direct), method)
    servicer.asked.clear()
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        assert await asked(stub, method) == expected
    assert servicer.asked == {method: (UNARY | STREAMS)[method]}


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_an_error_keeps_its_reason(
    method: str, aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """Reason, message and metadata of the aggregator's error reach the client."""
    servicer, far = aggregator

    async def refuse() -> None:
        raise InvalidInputError("there is no run 'run'", reason="NOT_FOUND", metadata={"name": "run"})

    servicer.act = refuse
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        with pytest.raises(grpc.RpcError) as refused:
            await asked(stub, method)
    error = map_rpc_error(refused.value)
    assert (error.reason, error.message, error.metadata) == ("NOT_FOUND", "there is no run 'run'", {"name": "run"})


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_a_gateway_without_an_aggregator_says_how_to_give_it_one(method: str, identities: Path) -> None:
    """Every method is refused with a reason that no retry helps against, and names the setting."""
    async with served(identities, "") as (stub, _):
        with pytest.raises(grpc.RpcError) as refused:
            await asked(stub, method)
    error = map_rpc_error(refused.value)
    assert (error.reason, error.retryable) == ("FAILED_PRECONDITION", False)
    assert "no aggregator" in error.message
    assert "--aggregator" in error.message


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_an_aggregator_out_of_reach_is_worth_a_retry(method: str, identities: Path) -> None:
    """Nobody listens there: a typed error that says who cannot be reached, and where: the caller knows the gateway's
    address alone."""
    async with served(identities, "127.0.0.1:9") as (stub, _):
        with pytest.raises(grpc.RpcError) as refused:
            await asked(stub, method)
    error = map_rpc_error(refused.value)
    assert (error.reason, error.retryable) == ("TRANSPORT", True)
    assert "cannot reach the aggregator at 127.0.0.1:9" in error.message
    assert error.metadata == {"address": "127.0.0.1:9"}


async def test_a_watch_needs_no_deadline_and_a_broken_one_may_be_asked_again(
    aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """The aggregator goes away in the middle of a stream without deadline: the client hears that, and may retry."""
    servicer, far = aggregator
    servicer.watch = unending
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        call = stub.WatchRun(STREAMS["WatchRun"])
        assert (await call.read()).run.state == aggregator_pb2.RUN_STATE_RUNNING
        await far.server.stop(None)
        with pytest.raises(grpc.RpcError) as broken:
            await asyncio.wait_for(call.read(), WAIT_S)
    assert map_rpc_error(broken.value).retryable


async def test_a_watch_that_ends_before_its_run_does_is_an_error(
    aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """An aggregator that drains ends its streams in good order: the client is not to take that for the run's end."""
    servicer, far = aggregator
    servicer.watch = broken_off
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        with pytest.raises(grpc.RpcError) as broken:
            await asked(stub, "WatchRun")
    assert map_rpc_error(broken.value).retryable


async def test_watchers_do_not_hold_up_a_gateway_that_goes_down(
    aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """Draining ends their streams at once, with the reason that says to come back, and leaves the aggregator's."""
    servicer, far = aggregator
    servicer.watch = unending
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, near):
        call = stub.WatchRun(STREAMS["WatchRun"])
        await call.read()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(near.drain(WAIT_S))
            with pytest.raises(grpc.RpcError) as ended:
                await call.read()
        assert near.in_flight.count == 0
        assert map_rpc_error(ended.value).reason == "DRAINING"
        await asyncio.wait_for(servicer.left.wait(), WAIT_S)


async def test_a_watcher_that_leaves_ends_the_stream_behind_the_gateway(
    aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """The aggregator does not go on telling somebody who is gone."""
    servicer, far = aggregator
    servicer.watch = unending
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        call = stub.WatchRun(STREAMS["WatchRun"])
        await call.read()
        call.cancel()
        await asyncio.wait_for(servicer.left.wait(), WAIT_S)


async def test_weights_come_no_faster_than_they_are_taken(
    aggregator: tuple[Aggregator, ServiceHost], identities: Path
) -> None:
    """A client that stops reading stops the aggregator: the gateway does not keep 64 MiB for it."""
    servicer, far = aggregator
    async with served(identities, f"127.0.0.1:{far.port}") as (stub, _):
        call = stub.GetWeights(STREAMS["GetWeights"], timeout=WAIT_S)
        await call.read()
        sent = -1
        while sent != servicer.pieces_sent:
            sent = servicer.pieces_sent
            await asyncio.sleep(1.0)
        assert sent < 48
        pieces = 0
        while await call.read() is not grpc.aio.EOF:
            pieces += 1
        assert pieces == 64
