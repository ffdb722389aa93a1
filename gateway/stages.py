"""The calls to the stages of one generation: open, stop, let go on, feed, close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import grpc

from gateway.course import Standing, Start
from gateway.record import ClockReading, GenerationRecord
from gateway.upstream import Upstream
from orbitmesh.errors import MeshError
from orbitmesh.limits import PREFILL_CHUNK_TOKENS
from orbitmesh.rpc import map_rpc_error
from orbitmesh.v1 import executor_pb2, wire_pb2

OPEN_DEADLINE_S = 20.0
"""How long a stage may take to admit a generation."""
STOP_DEADLINE_S = 10.0
"""How long a stage may take to stop: it ends the step that it computes."""
CLOSE_DEADLINE_S = 5.0
"""How long a stage may take to end a generation."""
FEED_DEADLINE_S = 600.0
"""How long a journal or a cache may be on its way."""

Pipeline = Sequence[executor_pb2.PeerAddress]


class Stages:
    """One generation's calls.

    Args:
        upstream: The ways to the nodes.
        template: What the generation is opened with, but for stage, epoch and pipeline.
        record: Where clocks, timings and bytes are noted.
    """

    def __init__(
        self, upstream: Upstream, template: executor_pb2.OpenGenerationRequest, record: GenerationRecord
    ) -> None:
        self._upstream = upstream
        self._template = template
        self._record = record
        self._opened: dict[tuple[int, str], executor_pb2.PeerAddress] = {}

    @property
    def number(self) -> int:
        """The generation's number."""
        return self._template.generation

    async def open(
        self, pipeline: Pipeline, index: int, epoch: int, *, standby: bool = False, cache_from: str = ""
    ) -> Standing:
        """Reserves the cache in one stage.

        Raises:
            MeshError: As the node says, or that it cannot be reached.
        """
        node = pipeline[index]
        request = executor_pb2.OpenGenerationRequest()
        request.CopyFrom(self._template)
        request.stage_index, request.epoch, request.standby, request.cache_from = index, epoch, standby, cache_from
        request.pipeline.extend(pipeline)
        await self._upstream.session(node)  # tokens and failures come back over it
        self._opened[index, node.name] = node
        sent_ns = time.monotonic_ns()
        with _on_node(node):
            answer = await self._upstream.executor(node).OpenGeneration(request, timeout=OPEN_DEADLINE_S)
        self._read_clock(node.name, sent_ns, answer.clock_ns)
        return Standing(answer.length)

    async def stop(
        self, pipeline: Pipeline, index: int, epoch: int, known: int
    ) -> executor_pb2.StopGenerationResponse:
        """Stops one stage under an epoch; opens the generation where the node does not know it (any more).

        Raises:
            MeshError: As the node says, or that it cannot be reached.
        """
        node = pipeline[index]
        request = executor_pb2.StopGenerationRequest(
            deployment=self._template.deployment,
            generation=self.number,
            stage_index=index,
            epoch=epoch,
            position=known,
            pipeline=pipeline,
        )
        await self._upstream.session(node, brief=True)
        self._opened[index, node.name] = node
        sent_ns = time.monotonic_ns()
        try:
            with _on_node(node):
                answer: executor_pb2.StopGenerationResponse = await self._upstream.executor(node).StopGeneration(
                    request, timeout=STOP_DEADLINE_S
                )
        except MeshError as error:
            if error.reason != "NOT_FOUND":
                raise
            await self.open(pipeline, index, epoch)
            return executor_pb2.StopGenerationResponse()
        self._read_clock(node.name, sent_ns, answer.clock_ns)
        return answer

    async def go_on(self, pipeline: Pipeline, epoch: int, starts: Sequence[Start], sample_from: int) -> None:
        """Lets every stage go on.

        Raises:
            MeshError: One did not take it.
        """
        await _all(
            self._continue(
                node,
                executor_pb2.ContinueGenerationRequest(
                    deployment=self._template.deployment,
                    generation=self.number,
                    stage_index=index,
                    epoch=epoch,
                    length=start.length,
                    push_from=start.push_from,
                    sample_from=sample_from,
                ),
            )
            for index, (node, start) in enumerate(zip(pipeline, starts, strict=True))
        )

    async def switch(
        self, ways: Sequence[tuple[int, executor_pb2.PeerAddress]], pipeline: Pipeline, epoch: int, at: int
    ) -> None:
        """Tells stages, old and new, from which position on they go along another pipeline.

        Raises:
            MeshError: One did not take it.
        """
        await _all(
            self._continue(
                node,
                executor_pb2.ContinueGenerationRequest(
                    deployment=self._template.deployment,
                    generation=self.number,
                    stage_index=index,
                    epoch=epoch,
                    switch_at=at,
                    sample_from=at + 1,
                    pipeline=pipeline,
                ),
            )
            for index, node in ways
        )

    async def _continue(
        self, node: executor_pb2.PeerAddress, request: executor_pb2.ContinueGenerationRequest
    ) -> None:
        with _on_node(node):
            await self._upstream.executor(node).ContinueGeneration(request, timeout=STOP_DEADLINE_S)

    async def feed_stage(
        self,
        feeder: executor_pb2.PeerAddress,
        index: int,
        epoch: int,
        mode: executor_pb2.FeedMode,
        target: executor_pb2.PeerAddress,
        start: int,
    ) -> executor_pb2.FeedGenerationResponse:
        """Has stage `index` on `feeder` feed a node that takes over; returns how far it is fed.

        Raises:
            MeshError: It could not be done.
        """
        request = executor_pb2.FeedGenerationRequest(
            deployment=self._template.deployment,
            generation=self.number,
            stage_index=index,
            epoch=epoch,
            mode=mode,
            target=target,
            from_position=start,
        )
        with _on_node(feeder):
            answer: executor_pb2.FeedGenerationResponse = await self._upstream.executor(feeder).FeedGeneration(
                request, timeout=FEED_DEADLINE_S
            )
        return answer

    async def feed_tokens(
        self, node: executor_pb2.PeerAddress, tokens: Sequence[int], start: int, epoch: int, *, feed: bool = False
    ) -> None:
        """Sends tokens from position `start` on to the first stage, in chunks, so that stages overlap on many.

        Raises:
            MeshError: The session was lost.
        """
        session = await self._upstream.session(node)
        for low in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            chunk = tokens[low : low + PREFILL_CHUNK_TOKENS]
            info = wire_pb2.TransferInfo(
                slice=self._template.slice,
                tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_INT32, shape=[len(chunk)]),
                step=wire_pb2.StepInfo(
                    generation=self.number,
                    position=start + low,
                    sample=low + len(chunk) == len(tokens),
                    epoch=epoch,
                    feed=feed,
                ),
            )
            report = await session.send(info, b"".join(token.to_bytes(4, "little") for token in chunk))
            self._record.raw_bytes += report.raw_bytes
            self._record.wire_bytes += report.wire_bytes
            if report.queue_ns and not self._record.fed_ns:
                self._record.turn_ns += report.queue_ns
                self._record.turn_for = report.waited_for or self._record.turn_for

    def take_over(self, pipeline: Pipeline) -> None:
        """The generation may be open on these nodes though it was not opened from here."""
        self._opened.update({(index, node.name): node for index, node in enumerate(pipeline)})

    async def close(self, only: tuple[int, str] | None = None) -> None:
        """Ends the generation wherever it was opened, or in one place, and takes the timings home."""
        places = [only] if only is not None else list(self._opened)
        await asyncio.gather(*(self._close_one(*place) for place in places if place in self._opened))

    async def _close_one(self, index: int, name: str) -> None:
        node = self._opened.pop((index, name))
        request = executor_pb2.CloseGenerationRequest(
            deployment=self._template.deployment, generation=self.number, stage_index=index
        )
        sent_ns = time.monotonic_ns()
        # A node that cannot be told frees the generation itself when its time is over.
        with suppress(grpc.RpcError, MeshError):
            answer = await self._upstream.executor(node).CloseGeneration(request, timeout=CLOSE_DEADLINE_S)
            self._read_clock(name, sent_ns, answer.clock_ns)
            self._record.stages[index, name] = answer.timings
            self._record.raw_bytes += answer.raw_bytes
            self._record.wire_bytes += answer.wire_bytes

    def _read_clock(self, name: str, sent_ns: int, node_ns: int) -> None:
        reading = ClockReading(sent_ns, time.monotonic_ns(), node_ns)
        known = self._record.clocks.get(name)
        if node_ns and (known is None or reading.round_trip_ns < known.round_trip_ns):
            self._record.clocks[name] = reading


@contextmanager
def _on_node(node: executor_pb2.PeerAddress) -> Iterator[None]:
    """Turns a failed call into a typed error that names the node."""
    try:
        yield
    except grpc.RpcError as error:
        mapped = map_rpc_error(error, address=node.address)
        metadata = {**mapped.metadata, "node": node.name}
        raise type(mapped)(f"{node.name}: {mapped.message}", reason=mapped.reason, metadata=metadata) from error


async def _all(calls: Iterable[Awaitable[None]]) -> None:
    """Waits for every call, then raises the first failure: none may still be under way when the next is made."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
