"""The receiving half of a session: frames become transfers, which wait for the application in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from orbitmesh.errors import InternalError, MeshError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.coding import INLINE_BYTES, Threads, decode_frame
from orbitmesh.wire.frames import control_message
from orbitmesh.wire.inbox import Arrival, Inbox, Opened
from orbitmesh.wire.records import Received, RefusedError, SessionStats
from orbitmesh.wire.seal import DirectionKeys
from orbitmesh.wire.writing import Writer

DECODES_WAITING = 4
"""How many frames may wait for their decoding before no more are read."""

ACK_FRAMES = 256
"""After so many frames they are acknowledged at once: each acknowledgement costs both ends as much as a small frame."""

ACK_FIRST_FRAMES = 16
"""So many frames of a session are acknowledged at once each: they show its sender what the link carries."""

ACK_CREDIT_PARTS = 4
"""After this part of the window they are acknowledged at once: large frames must not wait for credit."""

ACK_DELAY_S = 0.05
"""After so long a frame is acknowledged at the latest: decode steps share one acknowledgement."""

_NEVER = 1 << 30


class Receiver:
    """Receives the transfers of one session.

    Args:
        keys: What to open with.
        window: How many bytes may be under way or wait to be taken.
        stats: Counts what is received.
        threads: Where large frames are decoded.
        refuse_for_good: Ends the session where a frame is authentic and its content is not; gives what to raise.
    """

    def __init__(
        self,
        keys: DirectionKeys,
        window: int,
        stats: SessionStats,
        threads: Threads,
        refuse_for_good: Callable[[MeshError], RefusedError],
    ) -> None:
        self.inbox = Inbox(keys, window)
        self.writer: Writer | None = None
        self.ack_due = False
        self._ping = self._pong = 0
        self._stats = stats
        self._threads = threads
        self._refuse_for_good = refuse_for_good
        self._loop = asyncio.get_running_loop()
        self._arrivals: dict[int, Arrival] = {}
        self._ready: deque[Arrival] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._decodes = 0
        self._decode_room: asyncio.Future[None] | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self._ack_credit = window // ACK_CREDIT_PARTS
        self._acked_number = 0
        self._acked_limit = self.inbox.credit_limit

    # --- what the application takes
    # ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many whole transfers wait to be taken."""
        return len(self._ready)

    def take(self) -> Received | None:
        """The next whole transfer, None where there is none yet."""
        ready = self._ready
        if not ready or ready[0].decoding:
            return None
        arrival = ready.popleft()
        self.inbox.take(arrival.cost)
        self._consider_ack()
        return arrival.received

    async def wait(self) -> None:
        """Waits until it is worth while to look again: for a transfer, or the end."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    # --- what arrives
    # ------------------------------------------------------------------------------------------------

    def take_whole(self, message: bytes) -> bool:
        """Takes a message that is a whole raw transfer; False where it is anything else.

        Raises:
            MeshError: It is refused.
        """
        now = time.monotonic_ns()
        arrival = self.inbox.open_whole(message, now)
        if arrival is None:
            return False
        stats = self._stats
        stats.received_frames += 1
        stats.received_bytes += len(message)
        arrival.received.open_ns = time.monotonic_ns() - now
        self._ready.append(arrival)
        self._wake()
        if self._ack_timer is None or self.inbox.next_number - self._acked_number >= ACK_FRAMES:
            self._consider_ack()
        return True

    def take_frame(self, header: bytes, data: wire_pb2.Data, body: memoryview, wire_bytes: int) -> None:
        """Takes any data frame.

        Raises:
            MeshError: It is refused, to be asked for again.
            RefusedError: It is refused for good.
        """
        now = time.monotonic_ns()
        opened = self.inbox.open(header, data, body, now, wire_bytes)
        self._stats.received_frames += 1
        self._stats.received_bytes += wire_bytes
        incoming = opened.incoming
        if incoming is None:
            self._arrivals.pop(data.transfer, None)
            if opened.ends_session:
                self._wake_all()
                self._ack_now()
        else:
            arrival = self._arrivals.setdefault(incoming.number, incoming.arrival)
            if opened.coded is not None:
                self._decode(opened, opened.coded, arrival)
            if opened.complete:
                del self._arrivals[incoming.number]
                self._ready.append(arrival)
                if not arrival.decoding:
                    self._wake()
            arrival.received.open_ns += time.monotonic_ns() - now
        self._consider_ack()

    def _decode(self, opened: Opened, coded: bytes, arrival: Arrival) -> None:
        """Decodes a frame into its place, in a thread where it is large."""
        dtype, out = arrival.received.info.tensor.dtype, opened.out
        if len(out) <= INLINE_BYTES:
            try:
                decode_frame(opened.codec, coded, dtype, out)
            except MeshError as error:
                raise self._refuse_for_good(error) from None
            return
        arrival.decoding += 1
        self._decodes += 1
        work = self._loop.run_in_executor(self._threads.get(), decode_frame, opened.codec, coded, dtype, out)
        work.add_done_callback(lambda done: self._decoded(arrival, done))

    def _decoded(self, arrival: Arrival, work: asyncio.Future[int]) -> None:
        arrival.decoding -= 1
        self._decodes -= 1
        if self._decode_room is not None and not self._decode_room.done():
            self._decode_room.set_result(None)
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            arrival.received.open_ns += work.result()
            if not arrival.decoding:
                self._wake()
        else:
            arrival.decoding = _NEVER
            self._refuse_for_good(error if isinstance(error, MeshError) else InternalError("a codec failed"))

    async def decode_room(self) -> None:
        """Waits until one more frame may wait for its decoding."""
        while self._decodes >= DECODES_WAITING:
            self._decode_room = self._loop.create_future()
            await self._decode_room

    # --- acknowledgements
    # --------------------------------------------------------------------------------------------

    def _consider_ack(self) -> None:
        """Acknowledges at once where much has come or been taken, else a little later, with what follows."""
        inbox = self.inbox
        frames = inbox.next_number - self._acked_number
        credit = inbox.credit_limit - self._acked_limit
        first = frames and inbox.next_number <= ACK_FIRST_FRAMES
        if first or frames >= ACK_FRAMES or credit >= self._ack_credit:
            self._ack_now()
        elif self._ack_timer is None and (frames or credit):
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ack_now)

    def _ack_now(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self.ack_due = True
        if self.writer is not None:
            self.writer.pump()

    def ask(self, number: int) -> None:
        """Asks whether the other end is there, with the next acknowledgement, which goes at once."""
        self._ping = number
        self._ack_now()

    def answer(self, number: int) -> None:
        """Answers such a question; of several that wait for their answer only the last."""
        self._pong = number
        self._ack_now()

    def ack_message(self) -> bytes:
        """The acknowledgement of all that came and was taken, with the question and the answer that are due."""
        self.ack_due = False
        self._acked_number = self.inbox.next_number
        self._acked_limit = self.inbox.credit_limit
        ack = wire_pb2.Ack(
            next_number=self._acked_number, credit_limit_bytes=self._acked_limit, ping=self._ping, pong=self._pong
        )
        self._ping = self._pong = 0
        message = control_message(wire_pb2.FrameHeader(ack=ack))
        self._stats.control_bytes += len(message)
        return message

    def end(self, *, forget: bool) -> None:
        """Nothing is received any more; what came in part is dropped where `forget`."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._wake_all()
        if forget:
            self._arrivals.clear()
