"""A session: tensors and messages both ways between two services, over connections that may be cut.

What is sent is sealed, kept until it is acknowledged and written again, byte for byte, on the next
connection; what is received is checked and handed over once, whole. This module knows no gRPC: a connection
is a `Wire`, and `streams` makes them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orbitmesh.errors import InternalError, InvalidInputError, MeshError, TransportError, error_for
from orbitmesh.limits import FRAME_BODY_BYTES, SESSION_CREDIT_BYTES, TRANSFER_BYTES
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.frames import (
    control_message,
    data_header,
    join_message,
    malformed,
    message_prefix,
    parse_header,
    split_message,
)
from orbitmesh.wire.ledger import (
    PARTIAL_TRANSFERS,
    RAW,
    Inbox,
    Incoming,
    Opened,
    Outbox,
    cost_of,
    is_refusal,
    tensor_bytes,
)
from orbitmesh.wire.records import (
    CutError,
    Received,
    RefusedError,
    SendReport,
    SessionEndError,
    SessionPeer,
    SessionStats,
    Wire,
)
from orbitmesh.wire.seal import TAG_BYTES, SessionKeys, TransferCipher
from orbitmesh.wire.tensors import Buffer, DType, flat_bytes

MIN_WINDOW_BYTES = 2 * FRAME_BODY_BYTES
"""The smallest window: one whole frame must fit with room to spare."""

INLINE_BYTES = 64 << 10
"""Up to this size a frame is coded on the event loop: handing it to a thread would cost more than the
work."""

WRITES_AHEAD = 2
"""How many sealed frames of one transfer may wait to be written: more would only make other transfers
wait."""

CODES_AHEAD = 2
"""How many frames of one transfer are coded ahead, and how many threads a session codes with."""

DECODES_WAITING = 4
"""How many frames may wait for their decoding before no more are read."""

ACK_FRAMES = 32
"""After so many frames they are acknowledged at once."""

ACK_DELAY_S = 0.05
"""After so long a frame is acknowledged at the latest: decode steps share one acknowledgement."""

REFUSALS = 3
"""How often the same frame may be refused before the session fails."""

_NEVER = 1 << 30

CLOSE_S = 5.0
"""How long `close` waits for the other end to have everything."""


@dataclass(slots=True, eq=False)
class _Delivery:
    """A transfer on its way to `receive`."""

    incoming: Incoming
    decoding: int = 0


@dataclass(slots=True, eq=False)
class _CreditWaiter:
    cost: int
    granted: asyncio.Future[None] = field(repr=False)


class Session:
    """Transfers both ways with one peer; safe to use from many tasks of one event loop.

    Made by `dial` and `SessionAcceptor`. It fails with a typed error, once and for all its users, where the
    peer is lost, the time to come back is over, or the same frame was refused three times.

    Args:
        session_id: 16 bytes.
        peer: Who is at the other end.
        keys: What to seal and open with.
        window: How many bytes may be under way or wait to be taken, each way.
    """

    def __init__(
        self, session_id: bytes, peer: SessionPeer, keys: SessionKeys, *, window: int = SESSION_CREDIT_BYTES
    ) -> None:
        if window < MIN_WINDOW_BYTES:
            raise ValueError(f"a window of {window} bytes is too small; at least {MIN_WINDOW_BYTES}")
        self.session_id = session_id
        self.peer = peer
        self._keys = keys.sealing
        self._window = window
        self._outbox = Outbox(window)
        self._inbox = Inbox(keys.opening, window)
        self._stats = SessionStats()
        self._loop = asyncio.get_running_loop()
        self._pool: ThreadPoolExecutor | None = None
        self._scratch = memoryview(b"")
        self._next_transfer = 0
        self._open_sends = 0
        self._open_send_bytes = 0
        self._send_slot = asyncio.Condition()
        self._credit_waiters: deque[_CreditWaiter] = deque()
        self._written: dict[int, asyncio.Future[None]] = {}
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._deliveries: dict[int, _Delivery] = {}
        self._ready: deque[_Delivery] = deque()
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._decodes = 0
        self._decode_room: asyncio.Future[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._ack_due = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self._acked_number = 0
        self._acked_limit = self._inbox.credit_limit
        self._refused_number = -1
        self._refused_count = 0
        self._refusal: RefusedError | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._detached = asyncio.Event()
        self._detached.set()
        self._closing = False
        self._shut = False
        self._over = asyncio.Event()
        self._error: MeshError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.accepted = False

    # --- what applications use
    # -----------------------------------------------------------------------------------

    @property
    def stats(self) -> SessionStats:
        """What the session has carried so far."""
        self._stats.resent_frames = self._outbox.resent_frames
        self._stats.resent_bytes = self._outbox.resent_bytes
        return self._stats

    @property
    def error(self) -> MeshError | None:
        """Why the session failed; None where it did not."""
        return self._error

    @property
    def over(self) -> bool:
        """Whether no connection will carry the session any more."""
        return self._over.is_set()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._over.is_set()

    async def send(self, info: wire_pb2.TransferInfo, data: Buffer = b"", *, codec: int = RAW) -> SendReport:
        """Sends a transfer; returns when its last frame was handed to the transport.

        `data` must not change until then. Where the call is cancelled, the receiver is told to drop what
        came.

        Args:
            info: What it is for; where it names a tensor, `data` is that tensor.
            data: Raw bytes, row-major, little-endian, contiguous.
            codec: How each frame is coded; a `CodecId`.

        Raises:
            InvalidInputError: The size is not the tensor's (DTYPE_MISMATCH) or too large (LIMIT_EXCEEDED),
            or the
                codec does not take the type.
            MeshError: The session failed or was closed.
        """
        started = time.monotonic_ns()
        view = data if isinstance(data, bytes) else flat_bytes(data, "the data to send")
        size = len(view)
        self._check_send(info, size)
        if size <= INLINE_BYTES:
            return await self._send_small(info.SerializeToString(), view, codec, info.tensor.dtype, started)
        await self._enter_send(size)
        try:
            return await self._send_large(info, memoryview(view), codec, started)
        finally:
            await asyncio.shield(self._leave_send(size))

    async def receive(self) -> Received:
        """The next whole transfer, in the order in which their last frames were sent.

        Raises:
            SessionEndError: The peer closed the session and everything was received.
            MeshError: The session failed.
        """
        while True:
            if self._ready and not self._ready[0].decoding:
                incoming = self._ready.popleft().incoming
                self._inbox.take(incoming.cost)
                self._consider_ack()
                return Received(
                    incoming.info, incoming.data, incoming.received_ns, incoming.open_ns, incoming.wire_bytes
                )
            if self._error is not None:
                raise self._again(self._error)
            if not self._ready and (self._inbox.ended or self._over.is_set()):
                raise SessionEndError(f"the session with {self.peer.spiffe} was closed")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._receivers.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_receiver()
                raise

    async def __aiter__(self) -> AsyncIterator[Received]:
        """Every transfer until the peer closes the session."""
        while True:
            try:
                received = await self.receive()
            except SessionEndError:
                return
            yield received

    async def flush(self) -> None:
        """Waits until everything sent so far is acknowledged.

        Raises:
            MeshError: The session failed before.
        """
        if self._error is not None:
            raise self._again(self._error)
        number = self._outbox.next_number
        if self._outbox.acknowledged >= number:
            return
        if self._over.is_set():
            raise self._gone()
        done: asyncio.Future[None] = self._loop.create_future()
        self._flushes.append((number, done))
        await done

    async def close(self) -> None:
        """Ends the session once the peer has everything, or after `CLOSE_S`. Repeating it changes nothing."""
        if not self._closing and not self._over.is_set():
            self._closing = True
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._send_end()
                    await self.flush()
            except (TimeoutError, MeshError):
                self.end()
            self._shut = True
            self._wake_writer()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._over.wait()
        except TimeoutError:
            self.end()

    # --- sending
    # -------------------------------------------------------------------------------------------------

    def _check_send(self, info: wire_pb2.TransferInfo, size: int) -> None:
        if self._error is not None:
            raise self._again(self._error)
        if self._closing or self._over.is_set():
            raise self._gone()
        if size > TRANSFER_BYTES:
            raise InvalidInputError(
                f"a transfer of {size} bytes is too large: at most {TRANSFER_BYTES} are sent; cut it",
                reason="LIMIT_EXCEEDED",
            )
        if info.HasField("tensor") and (expected := tensor_bytes(info.tensor)) != size:
            raise InvalidInputError(
                f"the tensor has {expected} bytes by its dtype and shape, and {size} were given",
                reason="DTYPE_MISMATCH",
            )

    async def _send_small(
        self, info: bytes, data: Buffer, codec: int, dtype: int, started: int
    ) -> SendReport:
        codec_ns = credit_ns = 0
        payload: Buffer = data
        if codec != RAW:
            payload, codec_ns = _encode(codec, data, dtype)
        cost = cost_of(len(payload) + TAG_BYTES)
        if self._credit_waiters or not self._outbox.can_spend(cost):
            credit_ns = await self._wait_credit(cost)
        else:
            self._outbox.spend(cost)
        sealing = time.monotonic_ns()
        transfer = self._next_transfer
        self._next_transfer += 1
        header = data_header(self._outbox.next_number, transfer, 0, True, codec, len(data), info)
        message = join_message(header, self._keys.transfer(transfer).seal(0, True, header, payload))
        seal_ns = time.monotonic_ns() - sealing
        await self._enqueue(message, cost)
        total_ns = time.monotonic_ns() - started
        return SendReport(len(data), len(message), 1, codec_ns, seal_ns, credit_ns, total_ns)

    async def _send_large(
        self, info: wire_pb2.TransferInfo, data: memoryview, codec: int, started: int
    ) -> SendReport:
        chunks = [data[at : at + FRAME_BODY_BYTES] for at in range(0, len(data), FRAME_BODY_BYTES)]
        coder = _Coder(self._threads(), chunks, codec, info.tensor.dtype) if codec != RAW else None
        transfer, cipher = -1, None
        sealed = seal_ns = credit_ns = wire_bytes = 0
        written: deque[asyncio.Future[None]] = deque()
        try:
            for chunk in chunks:
                payload: Buffer = chunk if coder is None else await coder.next()
                while len(written) >= WRITES_AHEAD:
                    await written.popleft()
                cost = cost_of(len(payload) + TAG_BYTES)
                if self._credit_waiters or not self._outbox.can_spend(cost):
                    credit_ns += await self._wait_credit(cost)
                else:
                    self._outbox.spend(cost)
                sealing = time.monotonic_ns()
                if cipher is None:
                    transfer = self._next_transfer
                    self._next_transfer += 1
                    cipher = self._keys.transfer(transfer)
                last = sealed + 1 == len(chunks)
                about = b"" if sealed else info.SerializeToString()
                total = 0 if sealed or last else len(data)
                header = data_header(
                    self._outbox.next_number, transfer, sealed, last, codec, len(chunk), about, total
                )
                message = self._seal_large(cipher, sealed, last, header, payload)
                seal_ns += time.monotonic_ns() - sealing
                wire_bytes += len(message)
                sealed += 1
                written.append(self._enqueue(message, cost))
            while written:
                await written.popleft()
        except BaseException:
            # The task was cancelled, the codec refused the data, or the session failed.
            if coder is not None:
                coder.cancel()
            for each in written:
                each.cancel()
            if cipher is not None and sealed < len(chunks):
                self._abandon(transfer, sealed, cipher)
            raise
        codec_ns = 0 if coder is None else coder.work_ns
        total_ns = time.monotonic_ns() - started
        return SendReport(len(data), wire_bytes, len(chunks), codec_ns, seal_ns, credit_ns, total_ns)

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

    async def _send_end(self) -> None:
        await self._wait_credit(cost_of(TAG_BYTES))
        self._seal_empty(self._next_transfer, 0, self._keys.transfer(self._next_transfer), ends_session=True)
        self._next_transfer += 1

    def _abandon(self, transfer: int, index: int, cipher: TransferCipher) -> None:
        """Tells the receiver to drop a transfer, as soon as there is credit for saying so."""

        def granted(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._seal_empty(transfer, index, cipher, abandoned=True)

        if self._error is None and not self._over.is_set():
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
        header = data_header(
            self._outbox.next_number,
            transfer,
            index,
            True,
            RAW,
            0,
            abandoned=abandoned,
            ends_session=ends_session,
        )
        self._enqueue(join_message(header, cipher.seal(index, True, header, b"")), cost_of(TAG_BYTES))

    def _enqueue(self, message: bytes, cost: int) -> asyncio.Future[None]:
        """Keeps a sealed frame and gives the future that is done when it was handed to the transport."""
        frame = self._outbox.add(message, cost)
        self._stats.sent_frames += 1
        self._stats.sent_bytes += len(message)
        written: asyncio.Future[None] = self._loop.create_future()
        self._written[frame.number] = written
        self._wake_writer()
        return written

    def _request_credit(self, cost: int) -> asyncio.Future[None]:
        granted: asyncio.Future[None] = self._loop.create_future()
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
                self._outbox.spend(-cost)
            self._grant_credit()
            raise
        return time.monotonic_ns() - started

    def _grant_credit(self) -> None:
        while self._credit_waiters:
            waiter = self._credit_waiters[0]
            if not waiter.granted.done():
                if not self._outbox.can_spend(waiter.cost):
                    return
                self._outbox.spend(waiter.cost)
                waiter.granted.set_result(None)
            self._credit_waiters.popleft()

    async def _enter_send(self, size: int) -> None:
        """Waits until the receiver has room for one more transfer of several frames."""
        async with self._send_slot:
            await self._send_slot.wait_for(
                lambda: (
                    self._open_sends < PARTIAL_TRANSFERS // 2
                    and self._open_send_bytes + size <= TRANSFER_BYTES
                )
            )
            self._open_sends += 1
            self._open_send_bytes += size

    async def _leave_send(self, size: int) -> None:
        async with self._send_slot:
            self._open_sends -= 1
            self._open_send_bytes -= size
            self._send_slot.notify_all()

    # --- receiving
    # -----------------------------------------------------------------------------------------------

    def _take_frame(self, header: bytes, data: wire_pb2.Data, body: memoryview, wire_bytes: int) -> None:
        now = time.monotonic_ns()
        opened = self._inbox.open(header, data, body, now, wire_bytes)
        self._stats.received_frames += 1
        self._stats.received_bytes += wire_bytes
        incoming = opened.incoming
        if incoming is None:
            self._deliveries.pop(data.transfer, None)
            if opened.ends_session:
                self._wake_receivers()
                self._ack_now()
        elif opened.coded is None and opened.complete and incoming.next_index == 1:
            incoming.open_ns = time.monotonic_ns() - now
            self._ready.append(_Delivery(incoming))
            self._wake_receiver()
        else:
            self._deliver_part(opened, incoming)
            incoming.open_ns += time.monotonic_ns() - now
        self._consider_ack()

    def _deliver_part(self, opened: Opened, incoming: Incoming) -> None:
        delivery = self._deliveries.get(incoming.number)
        if delivery is None:
            delivery = self._deliveries[incoming.number] = _Delivery(incoming)
        if opened.coded is not None and opened.out is not None:
            dtype = incoming.info.tensor.dtype
            if len(opened.out) <= INLINE_BYTES:
                try:
                    _decode(opened.codec, opened.coded, dtype, opened.out)
                except MeshError as error:
                    raise self._refuse_for_good(error) from None
            else:
                delivery.decoding += 1
                self._decodes += 1
                work = self._loop.run_in_executor(
                    self._threads(), _decode, opened.codec, opened.coded, dtype, opened.out
                )
                work.add_done_callback(lambda done: self._decoded(delivery, done))
        if opened.complete:
            del self._deliveries[incoming.number]
            self._ready.append(delivery)
            if not delivery.decoding:
                self._wake_receiver()

    def _decoded(self, delivery: _Delivery, work: asyncio.Future[int]) -> None:
        delivery.decoding -= 1
        self._decodes -= 1
        if self._decode_room is not None and not self._decode_room.done():
            self._decode_room.set_result(None)
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            delivery.incoming.open_ns += work.result()
            if not delivery.decoding:
                self._wake_receiver()
        else:
            delivery.decoding = _NEVER
            self._refuse_for_good(error if isinstance(error, MeshError) else InternalError("a codec failed"))

    def _wake_receiver(self) -> None:
        while self._receivers:
            waiter = self._receivers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_receivers(self) -> None:
        for waiter in self._receivers:
            if not waiter.done():
                waiter.set_result(None)
        self._receivers.clear()

    # --- acknowledgements
    # ----------------------------------------------------------------------------------------

    def _consider_ack(self) -> None:
        """Acknowledges at once where much has come or been taken, else a little later, together with what
        follows."""
        frames = self._inbox.next_number - self._acked_number
        credit = self._inbox.credit_limit - self._acked_limit
        if frames >= ACK_FRAMES or credit >= self._window // 4:
            self._ack_now()
        elif (frames or credit) and self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ack_now)

    def _ack_now(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._ack_due = True
        self._wake_writer()

    def _ack_message(self) -> bytes:
        self._acked_number = self._inbox.next_number
        self._acked_limit = self._inbox.credit_limit
        ack = wire_pb2.Ack(next_number=self._acked_number, credit_limit_bytes=self._acked_limit)
        message = control_message(wire_pb2.FrameHeader(ack=ack))
        self._stats.control_bytes += len(message)
        return message

    def _acknowledged(self, next_number: int, credit_limit: int) -> None:
        self._outbox.acknowledge(next_number, credit_limit)
        self._grant_credit()
        if self._flushes:
            reached = self._outbox.acknowledged
            for number, done in self._flushes:
                if number <= reached and not done.done():
                    done.set_result(None)
            self._flushes = [each for each in self._flushes if not each[1].done()]

    # --- connections
    # ---------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a connection carries the session now."""
        return not self._detached.is_set()

    @property
    def next_receive_number(self) -> int:
        """The number of the next frame that this end expects: what a resumed connection starts with."""
        return self._inbox.next_number

    @property
    def credit_limit(self) -> int:
        """What the other end may have sent since the session began, in bytes."""
        return self._inbox.credit_limit

    @property
    def progress(self) -> tuple[int, int]:
        """How many frames arrived each way."""
        return self._outbox.acknowledged, self._inbox.next_number

    @property
    def refusal(self) -> RefusedError | None:
        """The refusal that the other end has to be told of when the session is taken up again."""
        return self._refusal

    def resume(self, next_number: int, credit_limit: int | None = None) -> None:
        """Prepares for a new connection: the other end has every frame below `next_number`.

        Raises:
            SealError: It cannot be (FRAME_MALFORMED).
        """
        self._outbox.rewind(next_number)
        self._acknowledged(next_number, self._outbox.credit_limit if credit_limit is None else credit_limit)
        for number in [each for each in self._written if each < next_number]:
            # It arrived although the connection broke while it was being written.
            written = self._written.pop(number)
            if not written.done():
                written.set_result(None)
        self._ack_due = True
        self._stats.resumes += 1

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keeps the task that connects the session alive as long as the session."""
        self._keeper = task

    async def detach(self) -> None:
        """Takes the session off its connection, if it is on one."""
        for task in self._tasks:
            task.cancel()
        await self._detached.wait()

    async def carry(self, wire: Wire) -> None:
        """Reads and writes on a connection; returns when the session is over.

        Raises:
            CutError: The connection broke or another one took its place.
            RefusedError: A frame was refused.
            MeshError: The session failed.
        """
        self._detached.clear()
        self._refusal = None
        reader = self._loop.create_task(self._read_loop(wire))
        writer = self._loop.create_task(self._write_loop(wire))
        self._tasks = (reader, writer)
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if wire.awaits_end and writer.done() and not writer.cancelled() and writer.exception() is None:
                await asyncio.wait((reader,), timeout=CLOSE_S)
        finally:
            reader.cancel()
            writer.cancel()
            outcomes = await asyncio.gather(reader, writer, return_exceptions=True)
            self._tasks = ()
            self._wake = None
            self._detached.set()
        self._settle(outcomes)

    def _settle(self, outcomes: Sequence[object]) -> None:
        """Says how a connection ended."""
        if self._refusal is not None:
            raise self._refusal
        if self._error is not None:
            raise self._error
        if self._shut or self._inbox.ended:
            self.end()
            return
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for failure in failures:
            if not isinstance(failure, CutError | MeshError):
                raise InternalError(f"the session's connection failed: {failure!r}") from failure
        if failures:
            raise failures[0]
        raise CutError(TransportError("the connection was given up for another one"))

    async def _read_loop(self, wire: Wire) -> None:
        while True:
            message = await wire.read()
            if message is None:
                if self._inbox.ended or self._shut:
                    return
                raise CutError(TransportError("the stream ended before the session did"))
            try:
                header, body = split_message(message)
                parsed = parse_header(header)
                if parsed.HasField("data"):
                    self._take_frame(header, parsed.data, body, len(message))
                else:
                    self._take_control(parsed, len(body))
            except MeshError as error:
                if not is_refusal(error):
                    raise
                raise self._refuse(error) from None
            while self._decodes >= DECODES_WAITING:
                self._decode_room = self._loop.create_future()
                await self._decode_room

    def _take_control(self, header: wire_pb2.FrameHeader, body_bytes: int) -> None:
        if header.HasField("ack") and not body_bytes:
            self._acknowledged(header.ack.next_number, header.ack.credit_limit_bytes)
        elif header.HasField("accept") and not body_bytes and not self.accepted:
            self.accepted = True
            self._acknowledged(header.accept.next_number, header.accept.credit_limit_bytes)
        else:
            raise malformed("a frame is of no kind that may come here, or an acknowledgement has a body")

    async def _write_loop(self, wire: Wire) -> None:
        outbox = self._outbox
        while True:
            if self._ack_due:
                self._ack_due = False
                await wire.write(self._ack_message())
            frame = outbox.next_to_write()
            if frame is not None:
                outbox.begin_write(frame)
                await wire.write(frame.message)
                written = self._written.pop(frame.number, None)
                if written is not None and not written.done():
                    written.set_result(None)
            elif self._shut:
                await wire.finish()
                return
            elif not self._ack_due:
                self._wake = self._loop.create_future()
                await self._wake

    def _wake_writer(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- the end
    # -------------------------------------------------------------------------------------------------

    def _refuse(self, error: MeshError) -> RefusedError:
        """Counts a refusal; the third of the same frame is for good."""
        number = self._inbox.next_number
        self._refused_count = self._refused_count + 1 if number == self._refused_number else 1
        self._refused_number = number
        refusal = RefusedError(error, self._refused_count >= REFUSALS)
        self._refusal = refusal
        if refusal.for_good:
            self.fail(error)
        return refusal

    def _refuse_for_good(self, error: MeshError) -> RefusedError:
        """A frame was authentic and its content is not: asking again would bring the same."""
        self._refusal = RefusedError(error, True)
        self.fail(error)
        return self._refusal

    def fail(self, error: MeshError) -> None:
        """Ends the session with an error for everybody who uses it."""
        if self._error is None and not self._over.is_set():
            self._error = error
        self.end()

    def end(self) -> None:
        """Nothing is sent or received any more; what was received whole can still be taken."""
        if self._over.is_set():
            return
        self._over.set()
        for task in self._tasks:
            task.cancel()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        waiting = [each.granted for each in self._credit_waiters]
        waiting += [*self._written.values(), *(done for _, done in self._flushes)]
        for future in waiting:
            if not future.done():
                future.set_exception(self._again(self._error) if self._error is not None else self._gone())
                future.exception()  # whoever waits sees it; where nobody does, that is no defect
        self._credit_waiters.clear()
        self._written.clear()
        self._flushes.clear()
        self._wake_receivers()
        if self._error is not None:
            self._deliveries.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=self._error is not None)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CODES_AHEAD, thread_name_prefix="orbitmesh-codec")
        return self._pool

    def _gone(self) -> TransportError:
        return TransportError(f"the session with {self.peer.spiffe} is closed; open a new one to send more")

    @staticmethod
    def _again(error: MeshError) -> MeshError:
        """A new exception for each who is told, so that tracebacks do not grow."""
        return error_for(error.reason, error.message, error.metadata)


class _Coder:
    """Codes the frames of one transfer in threads, a few ahead, in order."""

    def __init__(self, pool: ThreadPoolExecutor, chunks: list[memoryview], codec: int, dtype: int) -> None:
        self._pool = pool
        self._chunks = iter(chunks)
        self._codec = codec
        self._dtype = dtype
        self._ahead: deque[asyncio.Future[tuple[bytes, int]]] = deque()
        self.work_ns = 0

    async def next(self) -> bytes:
        """The next frame's payload."""
        loop = asyncio.get_running_loop()
        while len(self._ahead) < CODES_AHEAD and (chunk := next(self._chunks, None)) is not None:
            self._ahead.append(loop.run_in_executor(self._pool, _encode, self._codec, chunk, self._dtype))
        payload, work_ns = await self._ahead.popleft()
        self.work_ns += work_ns
        return payload

    def cancel(self) -> None:
        """Forgets what is being coded."""
        for each in self._ahead:
            each.cancel()


def _encode(codec: int, data: Buffer, dtype: int) -> tuple[bytes, int]:
    """A frame's payload and the work in nanoseconds. The codecs need numpy, which the SDK alone does not
    bring."""
    from orbitmesh.wire.codecs import CodecId, encode

    started = time.monotonic_ns()
    payload = encode(CodecId(codec), data, DType(dtype or DType.UINT8))
    return payload, time.monotonic_ns() - started


def _decode(codec: int, coded: bytes, dtype: int, out: memoryview) -> int:
    """Decodes a frame into place; returns the work in nanoseconds."""
    from orbitmesh.wire.codecs import CodecId, decode_into

    started = time.monotonic_ns()
    try:
        decode_into(CodecId(codec), coded, DType(dtype or DType.UINT8), out)
    except (ValueError, InvalidInputError) as error:
        raise malformed(f"a frame's codec {codec} does not fit its tensor: {error}") from None
    return time.monotonic_ns() - started
