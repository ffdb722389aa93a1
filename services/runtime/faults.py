"""Faults that operators put into a process on purpose, to see what the rest of the mesh does: for development only."""

from __future__ import annotations

import asyncio
import math
import os
import time

from orbitmesh.errors import InvalidInputError, TransportError
from orbitmesh.v1 import ops_pb2
from orbitmesh.wire.session import open_sessions
from services.runtime.logs import EventLog

FAULT_MAX_S = 600.0
"""The longest that a fault lasts, in seconds."""
ANSWER_S = 0.1
"""How long the answer has to leave before a process dies or stands still, in seconds."""
CRASH_CODE = 137
"""What a process that was killed by SIGKILL ends with, told by a shell."""


class Faults:
    """The faults of one process.

    Args:
        allowed: Whether there may be any.
        log: Where each is told.
    """

    def __init__(self, allowed: bool, log: EventLog) -> None:
        self._allowed = allowed
        self._log = log
        self._refuse_until_s = -math.inf
        self._delay_until_s = -math.inf
        self._delay_s = 0.0

    async def meet(self) -> None:
        """What a new call meets.

        Raises:
            TransportError: Calls are refused at the moment.
        """
        now_s = time.monotonic()
        if now_s < self._refuse_until_s:
            raise TransportError(
                f"an operator has this process refuse calls for {self._refuse_until_s - now_s:.1f} s more; try again"
            )
        if now_s < self._delay_until_s:
            await asyncio.sleep(self._delay_s)

    async def inject(self, request: ops_pb2.InjectFaultRequest) -> int:
        """Puts one in; returns how many sessions it cut.

        Raises:
            InvalidInputError: Faults are not allowed here, none is named, or a time is not above 0 or too long.
        """
        if not self._allowed:
            raise InvalidInputError(
                "this process takes no faults: start it with --allow-faults, for development only",
                reason="FAILED_PRECONDITION",
            )
        kind = request.WhichOneof("fault")
        if kind is None or (kind in ("crash", "cut_sessions") and not getattr(request, kind)):
            raise InvalidInputError("name one fault: crash, stall_s, cut_sessions, refuse or delay")
        for name, seconds in _times(request):
            if not 0 < seconds <= FAULT_MAX_S:
                raise InvalidInputError(f"{name} is {seconds:g}; expected seconds above 0, at most {FAULT_MAX_S:g}")
        self._log.warning("fault", kind=kind)
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        if kind == "crash":
            loop.call_later(ANSWER_S, os._exit, CRASH_CODE)
        elif kind == "stall_s":
            # On the loop on purpose: as long as it sleeps, nothing of this process is heard, answered or sent.
            loop.call_later(ANSWER_S, time.sleep, request.stall_s)
        elif kind == "refuse":
            self._refuse_until_s = now_s + request.refuse.for_s
        elif kind == "delay":
            self._delay_s, self._delay_until_s = request.delay.by_s, now_s + request.delay.for_s
        else:
            return await _cut_sessions()
        return 0


def _times(request: ops_pb2.InjectFaultRequest) -> list[tuple[str, float]]:
    return {
        "stall_s": [("stall_s", request.stall_s)],
        "refuse": [("refuse.for_s", request.refuse.for_s)],
        "delay": [("delay.by_s", request.delay.by_s), ("delay.for_s", request.delay.for_s)],
    }.get(request.WhichOneof("fault") or "", [])


async def _cut_sessions() -> int:
    attached = [session for session in open_sessions() if session.attached]
    await asyncio.gather(*(session.detach() for session in attached))
    return len(attached)
