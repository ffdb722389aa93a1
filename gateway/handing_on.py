"""How a gateway hands a call on to a service behind it: what relays have in common.

A watcher has no deadline: it stays until the service has told all, this gateway drains, or the way to the service
breaks. The latter two end its stream with an error that says that it may ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from orbitmesh.errors import TransportError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import keep_status, mapped_errors
from services.runtime.caller import current_call, time_left_s

MARGIN_S = 1.0
"""What is left of a caller's deadline, at most, when the service is given up."""

Metadata = tuple[tuple[str, str], ...]


async def hand_on(call: Any, request: Any, *, address: str, server: str, metadata: Metadata = ()) -> Any:
    """The answer of a service to a unary call.

    Args:
        call: The stub's method.
        request: What the caller asked.
        address: Where the service is, for messages.
        server: What it is, for messages.
        metadata: What goes along.

    Raises:
        MeshError: Whatever the service answered; or it cannot be reached.
    """
    with mapped_errors(address=address, server=server):
        left_s = time_left_s(CONTROL_DEADLINE_S)
        # A little less than the caller has: a service that hangs is named by us, not guessed at by the caller.
        return await call(request, timeout=left_s - min(MARGIN_S, left_s / 4), metadata=metadata)


def watch_deadline_s() -> float | None:
    """Seconds until the caller's deadline; None where it has none."""
    return None if current_call().deadline_s is None else time_left_s(0.0)


async def until_drained(
    call: Any, draining: asyncio.Event, *, address: str, server: str
) -> AsyncGenerator[Any, None]:
    """The messages of a service's stream, as long as this gateway stays.

    Args:
        call: The stream.
        draining: Set once this gateway drains.
        address: Where the service is, for messages.
        server: What it is, for messages.

    Raises:
        TransportError: `DRAINING`, this gateway goes down; or the way to the service broke.
        MeshError: Whatever else the service ended the stream with.
    """
    keep_status(call)
    waiting = asyncio.ensure_future(draining.wait())
    reading: asyncio.Future[Any] | None = None
    try:
        with mapped_errors(address=address, server=server):
            while True:
                reading = asyncio.ensure_future(call.read())
                await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    raise TransportError("this gateway is going down; ask again", reason="DRAINING")
                message = await reading
                if message is grpc.aio.EOF:
                    return
                yield message
    finally:
        waiting.cancel()
        if reading is not None:
            reading.cancel()
        call.cancel()
