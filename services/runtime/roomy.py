"""Sends what has to arrive in the end, also while too much of its slice waits for the link."""

from __future__ import annotations

import asyncio

from orbitmesh.errors import CapacityError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.records import SendReport
from orbitmesh.wire.session import Session

PAUSE_S = 0.05
"""Between two tries, in seconds."""
PATIENCE_S = 60.0
"""For how long it is tried, in seconds."""


async def send_when_room(session: Session, info: wire_pb2.TransferInfo, body: bytes = b"") -> SendReport:
    """Sends a transfer; where others of the slice have filled its line at the port of this process, a little later.

    Raises:
        CapacityError: There was no room for a minute (`SLICE_FULL`).
        MeshError: What `Session.send` raises.
    """
    clock = asyncio.get_running_loop().time
    give_up = clock() + PATIENCE_S
    while True:
        try:
            return await session.send(info, body)
        except CapacityError as error:
            if error.reason != "SLICE_FULL" or clock() > give_up:
                raise
        await asyncio.sleep(PAUSE_S)
