"""A stage's cache on its way: to the node that takes the stage over, or to bytes for a snapshot.

One message holds one layer's keys and values of a run of positions: keys (heads, rows, width), then values likewise.
What shape they have is not on the wire: both ends hold the same layers and know it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import Received, SendReport, SessionPeer
from services.executor.generation import Generation
from services.executor.outbound import Parcel
from services.executor.progress import Phase
from services.executor.runner import StageRunner
from services.executor.stage import CacheShape

ROWS_PER_MESSAGE = 4096
"""Positions of one layer that travel in one transfer."""


def layer_bytes(generation: Generation, layer: int, start: int, stop: int) -> tuple[bytes, bytes]:
    """Keys and values of one layer as bytes."""
    keys, values = generation.cache.rows(layer, start, stop)
    return _as_bytes(keys), _as_bytes(values)


def put_layer(
    runner: StageRunner, generation: Generation, layer: int, start: int, rows: int, key_bytes: int, data: memoryview
) -> None:
    """Writes one layer's keys and values into a generation's cache.

    Raises:
        InvalidInputError: `DTYPE_MISMATCH`, they are not of this stage's shape; or outside of what was reserved.
    """
    shapes = runner.cache_shapes
    if not 0 <= layer < len(shapes) or rows < 1:
        raise InvalidInputError(f"this stage has no layer {layer} of a cache", reason="DTYPE_MISMATCH")
    keys, values = shapes[layer]
    if (keys.bytes_for(rows), values.bytes_for(rows)) != (key_bytes, len(data) - key_bytes):
        raise InvalidInputError(
            f"{len(data)} bytes are not {rows} rows of layer {layer}'s cache", reason="DTYPE_MISMATCH"
        )
    device = runner.stage.device
    generation.cache.put_rows(
        layer,
        start,
        _as_tensor(data[:key_bytes], keys, rows).to(device),
        _as_tensor(data[key_bytes:], values, rows).to(device),
        runner.stage.make_cache,
    )


async def send_cache(runner: StageRunner, generation: Generation, target: str, start: int) -> int:
    """Sends what the cache holds from `start` on; returns one past the last position when the peer has it all.

    Raises:
        MeshError: It could not be sent.
    """
    stop = generation.progress.length
    layers = len(runner.stage.layers)
    outbound = runner.onward.way_to(target)
    for low in range(start, stop, ROWS_PER_MESSAGE):
        high = min(stop, low + ROWS_PER_MESSAGE)
        for layer in range(layers):
            keys, values = layer_bytes(generation, layer, low, high)
            info = wire_pb2.TransferInfo(
                slice=generation.request.slice,
                cache=wire_pb2.CacheInfo(
                    generation=generation.number,
                    stage_index=runner.stage_index,
                    epoch=generation.progress.epoch,
                    layer=layer,
                    position=low,
                    rows=high - low,
                    key_bytes=len(keys),
                )
            )
            # One at a time: a cache may be larger than what a node may hold of unsent work.
            await _sent(outbound, generation, info, keys + values)
    await outbound.flush()
    return stop


async def _sent(outbound: Any, generation: Generation, info: wire_pb2.TransferInfo, data: bytes) -> None:
    done: asyncio.Future[SendReport] = asyncio.get_running_loop().create_future()

    def sent(report: SendReport) -> None:
        if not done.done():
            done.set_result(report)

    def failed(error: MeshError) -> None:
        if not done.done():
            done.set_exception(error)

    outbound.put(Parcel(info, data, wire_pb2.CODEC_ZSTD, sent, failed))
    report = await done
    generation.raw_bytes += report.raw_bytes
    generation.wire_bytes += report.wire_bytes


def accept_cache(runner: StageRunner, generation: Generation, incoming: Received, sender: SessionPeer) -> None:
    """Takes a piece of a cache for a stage that will take over.

    Raises:
        InvalidInputError: It is not due, not from whom it should be, or not of this stage's shape.
    """
    info = incoming.info.cache
    if generation.request.cache_from != sender.name:
        raise InvalidInputError(f"{sender.spiffe} may not fill the cache of this generation", reason="NOT_YOURSELF")
    progress = generation.progress
    if progress.phase is not Phase.STANDBY or info.epoch != progress.epoch:
        return  # of a hand-over that was given up
    if (info.position, info.layer) != (progress.length, generation.cache_layer):
        raise InvalidInputError(
            f"a cache of {progress.length} positions and {generation.cache_layer} layers of the next ones does not go "
            f"on with layer {info.layer} at {info.position}"
        )
    put_layer(runner, generation, info.layer, info.position, info.rows, info.key_bytes, incoming.data)
    generation.cache_layer += 1
    if generation.cache_layer == len(runner.cache_shapes):
        generation.cache_layer = 0
        adopt(generation, info.position + info.rows)


def adopt(generation: Generation, length: int) -> None:
    """The cache holds so many positions that were computed elsewhere; the journal knows nothing of them."""
    generation.cache.adopt(length)
    generation.progress = generation.progress.filled(length)
    generation.journal.skip(length)


def _as_bytes(tensor: torch.Tensor) -> bytes:
    array: Any = tensor[0].cpu().contiguous().view(torch.uint8).numpy()
    found: bytes = array.tobytes()
    return found


def _as_tensor(data: memoryview, shape: CacheShape, rows: int) -> torch.Tensor:
    # A copy: the bytes may be of a read-only buffer, and the cache copies them once more anyway.
    flat = torch.frombuffer(bytearray(data), dtype=shape.dtype)
    return flat.view(1, shape.heads, rows, shape.width)
