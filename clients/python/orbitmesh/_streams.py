"""Reading a stream of answers in the SDK: errors of our own, a closed mesh told apart from a cancelled task, and what
was cut asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from orbitmesh._resuming import LOST, PAUSE_MAX_S, PAUSE_MIN_S
from orbitmesh.errors import CancelledError_, MeshError, TransportError
from orbitmesh.rpc import mapped_errors


async def next_message(call: Any, address: str | None) -> Any:
    """The next message of a call, or None after the last one.

    Args:
        call: A call that answers with a stream.
        address: The server's address, for messages of errors.

    Raises:
        MeshError: Whatever the call failed with; `CancelledError_` where the connection was closed under it.
    """
    try:
        with mapped_errors(address=address):
            message = await call.read()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise CancelledError_("the mesh was closed while one of its streams was read") from None
    return None if message is grpc.aio.EOF else message


async def told_again(
    open_stream: Callable[[], Awaitable[tuple[Any, str]]], patience_s: float, ended: str
) -> AsyncGenerator[Any, None]:
    """The messages of a stream that is opened anew whenever it is cut or ends; the reader says when it is enough.

    Args:
        open_stream: Opens it: the call, and the server's address.
        patience_s: How long nothing may be heard before its loss is an error, in seconds.
        ended: What a stream that ends in good order is called, where it is the last.

    Raises:
        TransportError: Nothing was heard for that long.
        MeshError: Whatever asking again does not mend.
    """
    loop = asyncio.get_running_loop()
    heard_s, pause_s = loop.time(), PAUSE_MIN_S
    while True:
        call, address = await open_stream()
        lost: MeshError = TransportError(ended)
        try:
            while (message := await next_message(call, address)) is not None:
                yield message
                # Who reads may take its time: only our own waiting counts.
                heard_s, pause_s = loop.time(), PAUSE_MIN_S
        except MeshError as error:
            if error.reason not in LOST:
                raise
            lost = error
        finally:
            call.cancel()
        if loop.time() + pause_s >= heard_s + patience_s:
            raise lost
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_MAX_S, 2 * pause_s)
