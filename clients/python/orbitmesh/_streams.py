"""Reading a stream of answers in the SDK: errors of our own, and a closed mesh told apart from a cancelled task."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from orbitmesh.errors import CancelledError_
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
