"""What leaves a stage: rows to the next one, tokens to the first and to the gateway, and word of what went wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from orbitmesh.errors import MeshError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import SendReport
from services.executor.generation import Generation, StepRecord
from services.executor.outbound import Outbound, Parcel
from services.executor.stage import Stage

HELD_BYTES = 32 << 20
"""Bytes of inputs that wait and outputs that have not left; past it the stage takes nothing in (back-pressure)."""

TORCH_DTYPES = {
    wire_pb2.DTYPE_FLOAT32: torch.float32,
    wire_pb2.DTYPE_FLOAT16: torch.float16,
    wire_pb2.DTYPE_BFLOAT16: torch.bfloat16,
}
WIRE_DTYPES = {dtype: number for number, dtype in TORCH_DTYPES.items()}

ChooseCodec = Callable[[str, int, int], int]
"""(next node, dtype, raw bytes) -> codec, for what a stage sends on."""


@dataclass(frozen=True)
class Ways:
    """How a stage reaches others."""

    to_node: Callable[[str], Outbound]
    """The way to a node of a pipeline, by name."""
    to_gateway: Callable[[str], Outbound]
    """The way to a gateway, by its SPIFFE name."""
    choose_codec: ChooseCodec
    """For hidden states sent on."""


class HeldBytes:
    """The bytes that a stage holds of others' work and of its own results."""

    def __init__(self) -> None:
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    async def wait(self) -> None:
        """Waits until there is room."""
        await self._room.wait()

    def hold(self, size: int) -> None:
        """Takes room; the bound may be passed once, by what was let in before."""
        self._bytes += size
        if self._bytes > HELD_BYTES:
            self._room.clear()

    def release(self, size: int) -> None:
        """Gives room back."""
        self._bytes -= size
        if self._bytes <= HELD_BYTES:
            self._room.set()


class Onward:
    """Sends what a stage made.

    Args:
        stage: The layers.
        stage_index: Their place in the pipeline.
        ways: How others are reached.
        held: What the stage holds.
    """

    def __init__(self, stage: Stage, stage_index: int, ways: Ways, held: HeldBytes) -> None:
        self._hidden_size = stage.manifest.hidden_size
        self._dtype = WIRE_DTYPES[stage.dtype]
        self.row_bytes = stage.manifest.hidden_size * stage.dtype.itemsize
        self._stage_index = stage_index
        self._ways = ways
        self._held = held

    def way_to(self, node: str) -> Outbound:
        """The way to a node."""
        return self._ways.to_node(node)

    def send_rows(
        self,
        generation: Generation,
        node: str,
        position: int,
        data: Any,
        *,
        feed: bool = False,
        record: StepRecord | None = None,
    ) -> None:
        """Sends hidden states, whole rows from `position` on, to a node that holds the next stage."""
        size = len(data)
        dtype = self._dtype
        info = wire_pb2.TransferInfo(
            slice=generation.request.slice,
            tensor=wire_pb2.TensorSpec(dtype=dtype, shape=(size // self.row_bytes, self._hidden_size)),
            step=wire_pb2.StepInfo(
                generation=generation.number,
                position=position,
                epoch=generation.progress.epoch_at(position),
                stage_index=self._stage_index + 1,
                feed=feed,
            ),
        )
        self._held.hold(size)

        def sent(report: SendReport) -> None:
            self._held.release(size)
            _count(generation, record, report)

        def failed(error: MeshError) -> None:
            self._held.release(size)
            # A stage that is only fed is not needed to go on: whoever feeds it sees that it is not there yet.
            if not feed:
                self.report(generation, error)

        self._ways.to_node(node).put(Parcel(info, data, self._ways.choose_codec(node, dtype, size), sent, failed))

    def send_token(
        self, generation: Generation, token: int, position: int, record: StepRecord
    ) -> wire_pb2.FinishReason:
        """Sends a chosen token to the first stage, unless it is this one or nothing follows it, and a copy to the
        gateway; returns why it is the last, where it is."""
        finish = finish_at(generation, token, position)
        info = wire_pb2.TransferInfo(
            slice=generation.request.slice,
            token=wire_pb2.TokenInfo(
                generation=generation.number,
                position=position,
                finish=finish,
                epoch=generation.progress.epoch_at(position),
            )
        )
        data = token.to_bytes(4, "little", signed=True)

        def sent(report: SendReport) -> None:
            _count(generation, record, report)

        def failed(error: MeshError) -> None:
            self.report(generation, error)

        route = generation.route_at(position)
        copy_only = finish != wire_pb2.FINISH_REASON_UNSPECIFIED or route.is_first
        if not copy_only:
            self._ways.to_node(route.nodes[0]).put(Parcel(info, data, wire_pb2.CODEC_RAW, sent, failed))
        gateway = self._ways.to_gateway(generation.gateway)
        gateway.put(Parcel(info, data, wire_pb2.CODEC_RAW, sent if copy_only else None, None))
        return finish

    def report(self, generation: Generation, error: MeshError, epoch: int = 0) -> None:
        """Tells the gateway that a generation does not get on; it stays as it is until the gateway acts.

        Args:
            generation: Which one.
            error: Why.
            epoch: That of a frame which showed it, where it is later than the stage's own.
        """
        if generation.closed:
            return
        failure = wire_pb2.Failure(
            generation=generation.number,
            reason=error.reason,
            message=error.message,
            metadata=error.metadata,
            epoch=max(epoch, generation.progress.epoch),
            stage_index=self._stage_index,
        )
        info = wire_pb2.TransferInfo(slice=generation.request.slice, failure=failure)
        self._ways.to_gateway(generation.gateway).put(Parcel(info, b"", wire_pb2.CODEC_RAW, None, None))


def finish_at(generation: Generation, token: int, position: int) -> wire_pb2.FinishReason:
    """Why nothing follows a token at a position; unspecified where something does."""
    if token in generation.request.stop_token_ids:
        return wire_pb2.FINISH_REASON_STOP
    if position + 1 >= generation.request.stop_position:
        return wire_pb2.FINISH_REASON_LENGTH
    return wire_pb2.FINISH_REASON_UNSPECIFIED


def _count(generation: Generation, record: StepRecord | None, report: SendReport) -> None:
    generation.raw_bytes += report.raw_bytes
    generation.wire_bytes += report.wire_bytes
    if record is not None:
        record.codec_ns = report.codec_ns
        record.seal_ns = report.seal_ns
        record.credit_ns = report.credit_ns
        record.turn_ns = report.queue_ns
        generation.turn_for = report.waited_for or generation.turn_for
        record.send_ns = time.monotonic_ns() - record.ended_ns
