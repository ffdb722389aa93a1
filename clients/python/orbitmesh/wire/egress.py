"""What a sender asks before it seals a frame: may it go now, where slices share a link.

Frames are numbered and sealed in the order in which they leave, so a frame gets its turn before it is sealed. Who gives
turns is not known here; a session without an egress asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from orbitmesh.errors import MeshError
from orbitmesh.wire.records import SessionPeer

RECORD_BYTES = 16 << 10
"""How TLS and HTTP/2 cut what they carry, in bytes."""

RECORD_OVERHEAD_BYTES = 31
"""What each such piece costs: 22 of TLS 1.3 and 9 of HTTP/2."""

FRAME_OVERHEAD_BYTES = 64
"""The prefix of a gRPC message and a frame's own header and seal, in bytes."""


class Turn:
    """A frame may go."""

    __slots__ = ("waited_ns", "why")

    def __init__(self, waited_ns: int, why: str) -> None:
        self.waited_ns = waited_ns
        """How long it waited, in nanoseconds."""
        self.why = why
        """What for, in words; empty where it did not wait."""


class Egress(Protocol):
    """Gives turns on one link."""

    def frame_bytes(self, slice_name: str) -> int:
        """How large the frames of a slice should be, in bytes."""

    def ask(self, slice_name: str, size: int) -> Turn | asyncio.Future[Turn]:
        """Asks for a frame's turn: it is there at once, or comes with a future.

        Turns of one slice and session come in the order in which they were asked for. A future that is cancelled, or
        gets an exception, gives the place back.

        Args:
            slice_name: Empty for the default one.
            size: What the frame takes on the link, in bytes.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
        """

    def give_back(self, turn: Turn) -> None:
        """The frame of a turn will not be sent."""

    def occupy(self, size: int) -> None:
        """Something goes on the link without a turn: what is written again after a cut, in bytes."""


EgressTowards = Callable[[SessionPeer], Egress | None]
"""Who gives turns on the way to a peer; None where nobody does."""


def link_bytes(body_bytes: int) -> int:
    """What a frame with a body of so many bytes takes on the link, with all that is put around it but TCP's headers."""
    return body_bytes + FRAME_OVERHEAD_BYTES + (body_bytes // RECORD_BYTES + 1) * RECORD_OVERHEAD_BYTES


class Turns:
    """The turns that one session waits for.

    Args:
        egress: Who gives them.
    """

    def __init__(self, egress: Egress) -> None:
        self.egress = egress
        self._waiting: set[asyncio.Future[Turn]] = set()
        self._gone: Callable[[], MeshError] | None = None

    async def wait(self, slice_name: str, body_bytes: int) -> Turn:
        """Waits for the turn of a frame with a body of so many bytes; whoever is cancelled gives it back.

        Raises:
            CapacityError: Too much of the slice waits already (SLICE_FULL).
            MeshError: The session is over.
        """
        asked = self.egress.ask(slice_name, link_bytes(body_bytes))
        if isinstance(asked, Turn):
            return asked
        self._waiting.add(asked)
        try:
            await asked
            if self._gone is not None:
                raise self._gone()
        except BaseException:
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                self.egress.give_back(asked.result())
            raise
        finally:
            self._waiting.discard(asked)
        return asked.result()

    async def settled(self) -> None:
        """Waits until nobody waits for a turn."""
        while self._waiting:
            await asyncio.wait(self._waiting)

    def end(self, gone: Callable[[], MeshError]) -> None:
        """The session is over: whoever waits gets an error from `gone`."""
        self._gone = gone
        for future in self._waiting:
            if not future.done():
                future.set_exception(gone())
                future.exception()  # whoever waits sees it; where nobody does, that is no defect
