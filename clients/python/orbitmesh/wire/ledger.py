"""What the sending end of a direction knows of its frames: no clock, no socket and no task.

`Outbox` keeps what was sealed until it is acknowledged, in order, and says what to write next; after a cut it
starts where the other end says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from orbitmesh.limits import SESSION_CREDIT_BYTES
from orbitmesh.wire.frames import malformed


@dataclass(slots=True, eq=False)
class SealedFrame:
    """A frame that waits to be written, or for its acknowledgement."""

    number: int
    """In its direction."""
    cost: int
    """What it took of the credit, in bytes."""
    message: bytes
    """The whole gRPC message: what is written, first and again."""
    written: bool = False
    """Whether it was given to a connection before."""
    handed: asyncio.Future[None] | None = None
    """Done when the transport took it, for the sender that waits for that."""

    taken: bool = False
    """Whether the transport took it."""

    written_s: float = 0.0
    """When it began to be written last, by the event loop's clock; only where it is large."""

    def tell(self) -> None:
        """The transport took the frame: its sender need not wait any more."""
        self.taken = True
        if self.handed is not None and not self.handed.done():
            self.handed.set_result(None)


class Outbox:
    """The sending side's account of a direction.

    `next_number` is the number that the next sealed frame must have, `credit_limit` what may have been sent since
    the session began and `spent` what was, in bytes.

    Args:
        credit_limit: How much may be sent before the first acknowledgement, in bytes.
    """

    def __init__(self, credit_limit: int = SESSION_CREDIT_BYTES) -> None:
        self.credit_limit = credit_limit
        self.spent = 0
        self.acknowledged = 0
        self.next_number = 0
        self._frames: deque[SealedFrame] = deque()
        self._cursor = 0
        self.resent_frames = 0
        self.resent_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of messages that are kept until they are acknowledged."""
        return sum(len(frame.message) for frame in self._frames)

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes of messages that were written and not acknowledged: after a cut they are written again."""
        return sum(len(frame.message) for frame in self._frames if frame.written)

    def can_spend(self, cost: int) -> bool:
        """Whether the credit allows a frame of that cost."""
        return self.spent + cost <= self.credit_limit

    def spend(self, cost: int) -> None:
        """Takes credit for a frame that is about to be sealed; given back by a negative cost."""
        self.spent += cost

    def add(self, message: bytes, cost: int) -> SealedFrame:
        """Keeps the frame that was sealed as `next_number`."""
        frame = SealedFrame(self.next_number, cost, message)
        self.next_number += 1
        self._frames.append(frame)
        return frame

    @property
    def begun_number(self) -> int:
        """The number of the first frame that this connection has not carried."""
        return self.acknowledged + self._cursor

    @property
    def idle(self) -> bool:
        """Whether this connection has carried every frame."""
        return self._cursor == len(self._frames)

    def begin_write(self) -> SealedFrame | None:
        """The first frame that this connection has not carried yet, which counts as carried from now on: whatever
        happens to the write, it may have arrived."""
        if self._cursor == len(self._frames):
            return None
        frame = self._frames[self._cursor]
        self._cursor += 1
        if frame.written:
            self.resent_frames += 1
            self.resent_bytes += len(frame.message)
        frame.written = True
        return frame

    def waiting(self) -> list[SealedFrame]:
        """The frames whose senders wait for the transport."""
        return [frame for frame in self._frames if frame.handed is not None and not frame.handed.done()]

    def acknowledge(self, next_number: int, credit_limit: int) -> tuple[int, float]:
        """Lets go of every frame below `next_number`.

        Returns:
            How many bytes of large frames that is, and when the first of them began to be written.

        Raises:
            SealError: A frame is acknowledged that was never sent, or credit is taken back (FRAME_MALFORMED).
        """
        if next_number > self.next_number:
            raise malformed(f"frame {next_number - 1} is acknowledged and only {self.next_number} were sent")
        self.credit_limit = max(self.credit_limit, credit_limit)
        large_bytes, written_s = 0, 0.0
        while self.acknowledged < next_number:
            # It may have arrived although the connection broke while it was being written.
            frame = self._frames.popleft()
            frame.tell()
            if frame.written_s:
                written_s = written_s if large_bytes else frame.written_s
                large_bytes += len(frame.message)
            self.acknowledged += 1
            self._cursor -= 1
        self._cursor = max(self._cursor, 0)
        return large_bytes, written_s

    def rewind(self, next_number: int) -> None:
        """Starts a new connection at `next_number`, the first frame that the other end does not have.

        Raises:
            SealError: The number is of a frame that was acknowledged or never sent (FRAME_MALFORMED).
        """
        if next_number < self.acknowledged:
            raise malformed(f"frame {next_number} is asked for again, {self.acknowledged} were acknowledged")
        self.acknowledge(next_number, self.credit_limit)
        self._cursor = 0
