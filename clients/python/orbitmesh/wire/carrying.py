"""What moves a session's messages while a connection carries it, and what a broken or refused one leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orbitmesh.errors import InternalError, MeshError, TransportError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.frames import malformed, parse_header, split_message
from orbitmesh.wire.inbox import is_refusal
from orbitmesh.wire.ledger import SealedFrame
from orbitmesh.wire.liveness import QUESTIONS_KEPT, SILENCE_S, Liveness
from orbitmesh.wire.pacing import COUNTED_FROM_BYTES
from orbitmesh.wire.receiving import ACK_DELAY_S, Receiver
from orbitmesh.wire.records import CutError, RefusedError, SilentError, Wire
from orbitmesh.wire.sending import Sender
from orbitmesh.wire.writing import Writer

REFUSALS = 3
"""How often the same frame may be refused before the session fails."""

FINISH_S = 5.0
"""How long the end of the other end's stream is waited for."""


class Carrier:
    """Reads and writes for a session, on one connection after the other.

    Args:
        sender: Its sending half.
        receiver: Its receiving half.
        fail: Ends the session with an error.
        closing: Whether a connection may end once everything was written.
        silence_s: After how long a silence a connection is given up.
    """

    def __init__(
        self,
        sender: Sender,
        receiver: Receiver,
        fail: Callable[[MeshError], None],
        closing: Callable[[], bool],
        silence_s: float = SILENCE_S,
    ) -> None:
        self.refusal: RefusedError | None = None
        self.accepted = False
        self._sender = sender
        self._receiver = receiver
        self._fail = fail
        self._closing = closing
        self._loop = asyncio.get_running_loop()
        self._frame: SealedFrame | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writer: Writer | None = None
        self._detached = asyncio.Event()
        self._detached.set()
        self._refused_number = -1
        self._refused_count = 0
        self._begun: dict[int, int] = {}
        self.watchers = 0
        self.liveness = Liveness(
            self._loop, silence_s, self._busy, self._progress, self._ask, self._give_up
        )

    @property
    def attached(self) -> bool:
        """Whether a connection carries the session now."""
        return not self._detached.is_set()

    def stop(self) -> None:
        """Makes `carry` return, if it runs."""
        if self._reader is not None:
            self._reader.cancel()

    def wake(self) -> None:
        """Looks whether there is something to write, or to finish."""
        if self._writer is not None:
            self._writer.pump()

    async def detach(self) -> None:
        """Takes the session off its connection, if it is on one."""
        self.stop()
        await self._detached.wait()

    async def carry(self, wire: Wire) -> BaseException | None:
        """Reads and writes on a connection until it ends; gives why, None where both ends were done."""
        self._detached.clear()
        self.refusal = None
        self._begun.clear()
        writer = Writer(wire, self, self._loop)
        reader = self._loop.create_task(self._read(wire))
        self._attach(reader, writer)
        try:
            self.liveness.begin()
            writer.pump()
            await asyncio.wait((reader, writer.over), return_when=asyncio.FIRST_COMPLETED)
            self.liveness.end()
            if wire.awaits_end and writer.over.done() and writer.over.exception() is None:
                await asyncio.wait((reader,), timeout=FINISH_S)
        finally:
            self.liveness.end()
            self._attach(None, None)
            reader.cancel()
            writer.close()
            outcomes = await asyncio.gather(reader, writer.over, return_exceptions=True)
            self._detached.set()
        failures = [each for each in outcomes if isinstance(each, Exception)]
        for failure in failures:
            if not isinstance(failure, CutError | MeshError | RefusedError):
                raise InternalError(f"the session's connection failed: {failure!r}") from failure
        return failures[0] if failures else None

    def _attach(self, reader: asyncio.Task[None] | None, writer: Writer | None) -> None:
        self._reader, self._writer = reader, writer
        self._sender.writer = self._receiver.writer = writer

    # --- liveness: what it asks and does
    # -----------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        return self.watchers > 0 or self._sender.busy or self._receiver.inbox.partial_transfers > 0

    def _progress(self) -> int:
        return self._sender.outbox.acknowledged + self._receiver.inbox.next_number

    def _ask(self, number: int) -> None:
        self._begun[number] = self._sender.outbox.begun_number
        if len(self._begun) > QUESTIONS_KEPT:
            del self._begun[min(self._begun)]
        self._receiver.ask(number)

    def _answered(self, ack: wire_pb2.Ack) -> None:
        """The order is kept on a connection: an answer shows what came of all that was written before the question.

        Raises:
            CutError: Less came.
        """
        begun = self._begun.get(ack.pong, 0)
        self._begun = {number: each for number, each in self._begun.items() if number > ack.pong}
        if ack.next_number < begun:
            raise CutError(TransportError(f"frame {ack.next_number} was lost on a connection that goes on"))
        self.liveness.answered(ack.pong)

    def _give_up(self, silent_s: float) -> None:
        if self._writer is not None:
            error = TransportError(f"nothing was heard from the other end for {silent_s:.2f} s")
            self._writer.fail(SilentError(error, self.liveness.heard_s))

    # --- writing: what a writer asks its source
    # --------------------------------------------------------------------------------------

    def next_message(self) -> bytes | None:
        """An acknowledgement that is due, else the next frame."""
        if self._receiver.ack_due:
            self._frame = None
            return self._receiver.ack_message()
        frame = self._frame = self._sender.outbox.begin_write()
        if frame is None:
            return None
        if self.liveness.idle:
            self.liveness.wake()
        if len(frame.message) >= COUNTED_FROM_BYTES:
            frame.written_s = self._loop.time()
        return frame.message

    def written(self) -> None:
        """The transport took the message that was asked for last."""
        if self._frame is not None:
            self._frame.tell()

    def rest(self) -> bool:
        """Uses the time to derive keys; True where the session closes and everything was written."""
        self._sender.prepare()
        self._receiver.inbox.prepare()
        return self._closing()

    # --- reading
    # ---------------------------------------------------------------------------------------------------

    async def _read(self, wire: Wire) -> None:
        receiver, liveness, now = self._receiver, self.liveness, self._loop.time
        while True:
            message = await wire.read()
            heard_s = now()
            if heard_s - liveness.heard_s > liveness.silence_s:
                liveness.heard_late(heard_s)
            liveness.heard_s = heard_s
            if message is None:
                if receiver.inbox.ended or self._closing():
                    return
                raise CutError(TransportError("the stream ended before the session did"))
            try:
                if not receiver.take_whole(message):
                    self._take(message)
                    await receiver.decode_room()
                    liveness.heard_s = now()  # where that took long it was not the other end that was silent
                elif liveness.idle:
                    liveness.wake()
            except MeshError as error:
                if not is_refusal(error):
                    raise
                raise self._refuse(error) from None

    def _take(self, message: bytes) -> None:
        header, body = split_message(message)
        parsed = parse_header(header)
        if parsed.HasField("data"):
            self._receiver.take_frame(header, parsed.data, body, len(message))
            if self.liveness.idle:
                self.liveness.wake()
        elif parsed.HasField("ack") and not len(body):
            delay_s = self.liveness.round_trip_s + ACK_DELAY_S
            self._sender.acknowledged(parsed.ack.next_number, parsed.ack.credit_limit_bytes, delay_s)
            if parsed.ack.ping:
                self._receiver.answer(parsed.ack.ping)
            if parsed.ack.pong:
                self._answered(parsed.ack)
        elif parsed.HasField("accept") and not len(body) and not self.accepted:
            self.accepted = True
            self._sender.acknowledged(parsed.accept.next_number, parsed.accept.credit_limit_bytes)
        else:
            raise malformed("a frame is of no kind that may come here, or an acknowledgement has a body")

    def _refuse(self, error: MeshError) -> RefusedError:
        """Counts a refusal; the third of the same frame is for good."""
        number = self._receiver.inbox.next_number
        self._refused_count = self._refused_count + 1 if number == self._refused_number else 1
        self._refused_number = number
        self.refusal = RefusedError(error, self._refused_count >= REFUSALS)
        if self.refusal.for_good:
            self._fail(error)
        return self.refusal

    def refuse_for_good(self, error: MeshError) -> RefusedError:
        """A frame was authentic and its content is not: asking again would bring the same."""
        self.refusal = RefusedError(error, True)
        self._fail(error)
        return self.refusal
