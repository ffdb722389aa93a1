"""The sending half of a session: transfers become sealed frames, as far as the receiver's credit goes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from orbitmesh.errors import MeshError
from orbitmesh.limits import FRAME_BODY_BYTES, TRANSFER_BYTES
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.coding import Coder, Threads, encode_frame
from orbitmesh.wire.egress import Egress, Turn, Turns
from orbitmesh.wire.frames import (
    RAW,
    cost_of,
    data_header,
    join_message,
    message_prefix,
    whole_header,
    whole_place,
)
from orbitmesh.wire.inbox import PARTIAL_TRANSFERS
from orbitmesh.wire.ledger import Outbox, SealedFrame
from orbitmesh.wire.pacing import Pace
from orbitmesh.wire.records import Sending, SendReport, SessionStats
from orbitmesh.wire.seal import TAG_BYTES, DirectionKeys, TransferCipher
from orbitmesh.wire.tensors import Buffer
from orbitmesh.wire.writing import Writer

WRITES_AHEAD = 2
"""How many sealed frames of one transfer may wait to be written: more would only make other transfers wait."""


@dataclass(slots=True, eq=False)
class _CreditWaiter:
    cost: int
    granted: asyncio.Future[None] = field(repr=False)


class Sender:
    """Sends the transfers of one session.

    Args:
        keys: What to seal with.
        window: What may be sent before the first acknowledgement, in bytes.
        stats: Counts what is sent.
        threads: Where large frames are coded.
        egress: Gives frames their turn; None: they go as they come.
    """

    def __init__(
        self,
        keys: DirectionKeys,
        window: int,
        stats: SessionStats,
        threads: Threads,
        egress: Egress | None = None,
    ) -> None:
        self.outbox = Outbox(window)
        self.sending: list[Sending] = []
        self.pace = Pace()
        self.writer: Writer | None = None
        self._keys = keys
        self._stats = stats
        self._threads = threads
        self._turns = None if egress is None else Turns(egress)
        self._loop = asyncio.get_running_loop()
        self._next_transfer = 0
        self._cipher_ahead: TransferCipher | None = None
        self._scratch = memoryview(b"")
        self._open_sends = 0
        self._open_bytes = 0
        self._send_slot = asyncio.Condition()
        self._credit_waiters: deque[_CreditWaiter] = deque()
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._gone: Callable[[], MeshError] | None = None

    async def send_small(
        self, info: wire_pb2.TransferInfo, data: Buffer, codec: int, started: int
    ) -> SendReport:
        """Sends a transfer of one frame that is coded and sealed on the event loop.

        Args:
            info: What it is for.
            data: Raw bytes.
            codec: How they are coded.
            started: When the application asked, in nanoseconds.
        """
        codec_ns = credit_ns = 0
        payload: Buffer = data
        if codec != RAW:
            payload, codec_ns = encode_frame(codec, data, info.tensor.dtype)
        cost = cost_of(len(payload) + TAG_BYTES)
        outbox = self.outbox
        if self._credit_waiters or not outbox.can_spend(cost):
            credit_ns = await self._wait_credit(cost)
        else:
            outbox.spent += cost
        queue_ns, waited_for = 0, ""
        if self._turns is not None:
            turn = await self._turn(self._turns, info.slice, len(payload), cost)
            queue_ns, waited_for = turn.waited_ns, turn.why
        sealing = time.monotonic_ns()
        about = info.SerializeToString()
        size, number, transfer = len(data), outbox.next_number, self._next_transfer
        if codec == RAW:
            header = whole_header(whole_place(number, transfer), size, about)
        else:
            header = data_header(number, transfer, 0, True, codec, size, about)
        message = join_message(header, self._next_cipher().seal(0, True, header, payload))
        seal_ns = time.monotonic_ns() - sealing
        self._stats.count(codec, size, len(payload))
        self._stats.credit_ns += credit_ns
        self._stats.turn_ns += queue_ns
        frame = self._enqueue(message, cost)
        if not frame.written:
            await self._handing(frame)
        total_ns = time.monotonic_ns() - started
        return SendReport(size, len(message), 1, codec_ns, seal_ns, credit_ns, total_ns, queue_ns, waited_for)

    async def send_large(
        self, info: wire_pb2.TransferInfo, data: memoryview, codec: int, started: int
    ) -> SendReport:
        """Sends a transfer frame by frame, between the frames of others."""
        sending = Sending(info, len(data), started, waits_for="slot")
        self.sending.append(sending)
        try:
            await self._enter(len(data))
            try:
                return await self._send_frames(sending, data, codec)
            finally:
                await asyncio.shield(self._leave(len(data)))
        finally:
            self.sending.remove(sending)

    async def _send_frames(self, sending: Sending, data: memoryview, codec: int) -> SendReport:
        info, turns = sending.info, self._turns
        chunks = self._chunks(data, info.slice)
        coder = Coder(self._threads.get(), chunks, codec, info.tensor.dtype) if codec != RAW else None
        transfer, cipher = -1, None
        sealed = done = seal_ns = credit_ns = wire_bytes = 0
        handed: deque[asyncio.Future[None]] = deque()
        waits: dict[str, int] = {}
        try:
            while done < len(data):
                payload: Buffer
                if coder is None:
                    payload = next(chunks)
                    size = len(payload)
                else:
                    payload, size = await coder.next()
                while len(handed) >= WRITES_AHEAD:
                    await handed.popleft()
                cost = cost_of(len(payload) + TAG_BYTES)
                sending.waits_for = "credit"
                if self._credit_waiters or not self.outbox.can_spend(cost):
                    credit_ns += await self._wait_credit(cost)
                else:
                    self.outbox.spent += cost
                sending.waits_for = "turn"
                if turns is not None:
                    turn = await self._turn(turns, info.slice, len(payload), cost)
                    waits[turn.why] = waits.get(turn.why, 0) + turn.waited_ns
                sending.waits_for = ""
                sealing = time.monotonic_ns()
                if cipher is None:
                    transfer = self._next_transfer
                    cipher = self._next_cipher()
                last = done + size == len(data)
                about = b"" if sealed else info.SerializeToString()
                total = 0 if sealed or last else len(data)
                number = self.outbox.next_number
                header = data_header(number, transfer, sealed, last, codec, size, about, total)
                message = self._seal_large(cipher, sealed, last, header, payload)
                seal_ns += time.monotonic_ns() - sealing
                wire_bytes += len(message)
                self._stats.count(codec, size, len(payload))
                sealed += 1
                done += size
                sending.done_bytes = done
                handed.append(self._handing(self._enqueue(message, cost)))
            while handed:
                await handed.popleft()
        except BaseException:
            # The task was cancelled, the codec refused the data, or the session failed.
            if coder is not None:
                coder.cancel()
            for each in handed:
                each.cancel()
            if cipher is not None and done < len(data):
                self._abandon(transfer, sealed, cipher)
            raise
        codec_ns = 0 if coder is None else coder.work_ns
        total_ns = time.monotonic_ns() - sending.began_ns
        waited_for = max(waits, key=lambda why: waits[why]) if waits else ""
        queue_ns = sum(waits.values())
        self._stats.credit_ns += credit_ns
        self._stats.turn_ns += queue_ns
        return SendReport(
            len(data), wire_bytes, sealed, codec_ns, seal_ns, credit_ns, total_ns, queue_ns, waited_for
        )

    def _chunks(self, data: memoryview, slice_name: str) -> Iterator[memoryview]:
        """The raw bytes of each frame, as large as the link allows when its turn comes."""
        at = 0
        while at < len(data):
            size = self.pace.frame_bytes
            if self._turns is not None:
                size = min(size, self._turns.egress.frame_bytes(slice_name))
            stop = at + size
            yield data[at:stop]
            at = stop

    def _seal_large(
        self, cipher: TransferCipher, index: int, last: bool, header: bytes, payload: Buffer
    ) -> bytes:
        """The message of a large frame, sealed in memory that stays warm and copied once."""
        prefix = message_prefix(header, len(payload) + TAG_BYTES)
        size = len(prefix) + len(payload) + TAG_BYTES
        if len(self._scratch) < size:
            self._scratch = memoryview(bytearray(size + FRAME_BODY_BYTES // 16))
        self._scratch[: len(prefix)] = prefix
        cipher.seal_into(index, last, header, payload, self._scratch[len(prefix) : size])
        return bytes(self._scratch[:size])

    def prepare(self) -> None:
        """Derives the next transfer's key beforehand, while there is nothing else to do."""
        if self._cipher_ahead is None:
            self._cipher_ahead = self._keys.transfer(self._next_transfer)

    def _next_cipher(self) -> TransferCipher:
        """Begins a transfer."""
        cipher = self._cipher_ahead or self._keys.transfer(self._next_transfer)
        self._cipher_ahead = None
        self._next_transfer += 1
        return cipher

    async def send_end(self) -> None:
        """Says that nothing follows in this direction, after what waits for its turn."""
        if self._turns is not None:
            await self._turns.settled()
        await self._wait_credit(cost_of(TAG_BYTES))
        transfer = self._next_transfer
        self._seal_empty(transfer, 0, self._next_cipher(), ends_session=True)

    def _abandon(self, transfer: int, index: int, cipher: TransferCipher) -> None:
        """Tells the receiver to drop a transfer, as soon as there is credit for saying so."""

        def granted(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._seal_empty(transfer, index, cipher, abandoned=True)

        if self._gone is None:
            self._request_credit(cost_of(TAG_BYTES)).add_done_callback(granted)

    def _seal_empty(
        self,
        transfer: int,
        index: int,
        cipher: TransferCipher,
        *,
        abandoned: bool = False,
        ends_session: bool = False,
    ) -> None:
        number = self.outbox.next_number
        header = data_header(
            number, transfer, index, True, RAW, 0, abandoned=abandoned, ends_session=ends_session
        )
        self._enqueue(join_message(header, cipher.seal(index, True, header, b"")), cost_of(TAG_BYTES))

    def _enqueue(self, message: bytes, cost: int) -> SealedFrame:
        """Keeps a sealed frame, and writes it at once where nothing stands before it."""
        frame = self.outbox.add(message, cost)
        self._stats.sent_frames += 1
        self._stats.sent_bytes += len(message)
        writer = self.writer
        if writer is not None and not writer.busy:
            writer.pump()
        return frame

    def _handing(self, frame: SealedFrame) -> asyncio.Future[None]:
        """Done when the transport took the frame."""
        handed: asyncio.Future[None] = self._loop.create_future()
        if frame.taken:
            handed.set_result(None)
        elif self._gone is not None:
            _fail(handed, self._gone())
        frame.handed = handed
        return handed

    @property
    def busy(self) -> bool:
        """Whether anything waits to be acknowledged, or for credit."""
        return self.outbox.acknowledged < self.outbox.next_number or bool(self._credit_waiters)

    # --- credit and acknowledgements
    # ---------------------------------------------------------------------------------

    def _request_credit(self, cost: int) -> asyncio.Future[None]:
        granted: asyncio.Future[None] = self._loop.create_future()
        if self._gone is not None:
            _fail(granted, self._gone())
        else:
            self._credit_waiters.append(_CreditWaiter(cost, granted))
            self._grant_credit()
        return granted

    async def _wait_credit(self, cost: int) -> int:
        """Takes credit, first come first served; returns how long it took in nanoseconds."""
        started = time.monotonic_ns()
        granted = self._request_credit(cost)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.outbox.spent -= cost
            self._grant_credit()
            raise
        return time.monotonic_ns() - started

    def _grant_credit(self) -> None:
        while self._credit_waiters:
            waiter = self._credit_waiters[0]
            if not waiter.granted.done():
                if not self.outbox.can_spend(waiter.cost):
                    return
                self.outbox.spent += waiter.cost
                waiter.granted.set_result(None)
            self._credit_waiters.popleft()

    async def _turn(self, turns: Turns, slice_name: str, body_bytes: int, cost: int) -> Turn:
        """Waits until a frame that has credit may go; where it will not, the credit is given back."""
        try:
            return await turns.wait(slice_name, body_bytes)
        except BaseException:
            self.outbox.spent -= cost
            self._grant_credit()
            raise

    async def _enter(self, size: int) -> None:
        """Waits until the receiver has room for one more transfer of several frames."""
        async with self._send_slot:
            await self._send_slot.wait_for(
                lambda: self._open_sends < PARTIAL_TRANSFERS // 2 and self._open_bytes + size <= TRANSFER_BYTES
            )
            self._open_sends += 1
            self._open_bytes += size

    async def _leave(self, size: int) -> None:
        async with self._send_slot:
            self._open_sends -= 1
            self._open_bytes -= size
            self._send_slot.notify_all()

    def acknowledged(self, next_number: int, credit_limit: int, delay_s: float | None = None) -> None:
        """The other end has every frame below `next_number` and gives credit up to a limit.

        Args:
            next_number: As it says.
            credit_limit: In bytes.
            delay_s: The round trip and the longest wait before an acknowledgement; None where this one says nothing of
                the rate.

        Raises:
            SealError: It acknowledges what was never sent (FRAME_MALFORMED).
        """
        large_bytes, written_s = self.outbox.acknowledge(next_number, credit_limit)
        if large_bytes and delay_s is not None:
            self.pace.acknowledged(large_bytes, written_s, self._loop.time(), delay_s)
        self._grant_credit()
        if self._flushes:
            reached = self.outbox.acknowledged
            for number, done in self._flushes:
                if number <= reached and not done.done():
                    done.set_result(None)
            self._flushes = [each for each in self._flushes if not each[1].done()]

    async def flush(self) -> None:
        """Waits until everything sent so far is acknowledged."""
        number = self.outbox.next_number
        if self.outbox.acknowledged >= number:
            return
        if self._gone is not None:
            raise self._gone()
        done: asyncio.Future[None] = self._loop.create_future()
        self._flushes.append((number, done))
        await done

    def end(self, gone: Callable[[], MeshError]) -> None:
        """Nothing is sent any more; whoever waits gets an error from `gone`."""
        self._gone = gone
        waiting = [each.granted for each in self._credit_waiters]
        waiting += [frame.handed for frame in self.outbox.waiting() if frame.handed is not None]
        waiting += [done for _, done in self._flushes]
        for future in waiting:
            if not future.done():
                _fail(future, gone())
        if self._turns is not None:
            self._turns.end(gone)
        self._credit_waiters.clear()
        self._flushes.clear()


def _fail(future: asyncio.Future[None], error: MeshError) -> None:
    future.set_exception(error)
    future.exception()  # whoever waits sees it; where nobody does, that is no defect
