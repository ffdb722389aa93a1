"""A session: tensors and messages both ways between two services, over connections that may be cut.

What is sent is sealed, kept until it is acknowledged and written again, byte for byte, on the next connection; what is
received is checked and handed over once, whole. No module here knows gRPC: a connection is a `Wire`, and `streams`
makes them. `sending` and `receiving` are the two halves, `carrying` moves their messages on one connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from orbitmesh.errors import InvalidInputError, MeshError, TransportError, error_for
from orbitmesh.limits import FRAME_BODY_BYTES, SESSION_CREDIT_BYTES, TRANSFER_BYTES
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.carrying import Carrier
from orbitmesh.wire.coding import INLINE_BYTES, Threads
from orbitmesh.wire.egress import Egress
from orbitmesh.wire.frames import RAW
from orbitmesh.wire.inbox import tensor_bytes
from orbitmesh.wire.liveness import SILENCE_S
from orbitmesh.wire.memory import expect_large_messages
from orbitmesh.wire.receiving import Receiver
from orbitmesh.wire.records import (
    CutError,
    Received,
    RefusedError,
    Sending,
    SendReport,
    SessionEndError,
    SessionPeer,
    SessionStats,
    Wire,
)
from orbitmesh.wire.seal import SessionKeys
from orbitmesh.wire.sending import Sender
from orbitmesh.wire.tensors import Buffer, flat_bytes

MIN_WINDOW_BYTES = 2 * FRAME_BODY_BYTES
"""The smallest window: one whole frame must fit with room to spare."""

CLOSE_S = 5.0
"""How long `close` waits for the other end to have everything."""


_MADE: WeakSet[Session] = WeakSet()


_ENDED: dict[str, SessionStats] = {}
PEERS_COUNTED = 1024
"""Of how many peers is counted what ended sessions with them have carried; the others are counted together."""
OTHERS = "others"
"""Whom these are counted for."""


def open_sessions() -> list[Session]:
    """The sessions of this process that are not over, for whoever wants to see what is on the way."""
    return [session for session in _MADE if not session.over]


def carried() -> dict[str, SessionStats]:
    """What all sessions of this process have carried since it began, by peer (role/name)."""
    found = dict(_ENDED)
    for session in open_sessions():
        peer = session.peer.title
        found[peer] = found.get(peer, SessionStats()) + session.stats
    return found


def _count_ended(session: Session) -> None:
    peer = session.peer.title
    if peer not in _ENDED and len(_ENDED) >= PEERS_COUNTED:
        peer = OTHERS
    _ENDED[peer] = _ENDED.get(peer, SessionStats()) + session.stats


class Session:
    """Transfers both ways with one peer; safe to use from many tasks of one event loop.

    Made by `dial` and `SessionAcceptor`. It fails with a typed error, once and for all its users, where the
    peer is lost, the time to come back is over, or the same frame was refused three times.

    Args:
        session_id: 16 bytes.
        peer: Who is at the other end.
        keys: What to seal and open with.
        window: How many bytes may be under way or wait to be taken, each way.
        silence_s: After how long a silence, while the session is in use, a connection is given up.
        egress: Gives frames their turn, where slices share the link; None: they go as they come.
    """

    def __init__(
        self,
        session_id: bytes,
        peer: SessionPeer,
        keys: SessionKeys,
        *,
        window: int = SESSION_CREDIT_BYTES,
        silence_s: float = SILENCE_S,
        egress: Egress | None = None,
    ) -> None:
        if window < MIN_WINDOW_BYTES:
            raise ValueError(f"a window of {window} bytes is too small; at least {MIN_WINDOW_BYTES}")
        expect_large_messages()
        self.session_id = session_id
        self.peer = peer
        self._stats = SessionStats()
        self._threads = Threads()
        self._egress = egress
        self._sender = Sender(keys.sealing, window, self._stats, self._threads, egress)
        self._receiver = Receiver(keys.opening, window, self._stats, self._threads, self._refuse_for_good)
        self._carrier = Carrier(self._sender, self._receiver, self.fail, lambda: self._shut, silence_s)
        self._closing = False
        self._shut = False
        self._over = asyncio.Event()
        self._error: MeshError | None = None
        self._keeper: asyncio.Task[None] | None = None
        _MADE.add(self)

    # --- what applications use
    # -----------------------------------------------------------------------------------

    @property
    def stats(self) -> SessionStats:
        """What the session has carried so far."""
        self._stats.resent_frames = self._sender.outbox.resent_frames
        self._stats.resent_bytes = self._sender.outbox.resent_bytes
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

    @property
    def sending(self) -> list[Sending]:
        """Transfers of several frames that are being sent."""
        return list(self._sender.sending)

    @property
    def receiving(self) -> int:
        """How many transfers of several frames have arrived in part."""
        return self._receiver.inbox.partial_transfers

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes that were written, or wait to be, and that the other end has not acknowledged."""
        return self._sender.outbox.unacknowledged_bytes

    @property
    def round_trip_s(self) -> float:
        """The round trip as measured, in seconds; 0 before the first answer. It holds the other end's event loop."""
        return self._carrier.liveness.round_trip_s

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this is entered the other end is asked whether it is there, also when nothing is under way."""
        self._carrier.watchers += 1
        self._carrier.liveness.wake()
        try:
            yield
        finally:
            self._carrier.watchers -= 1

    async def send(self, info: wire_pb2.TransferInfo, data: Buffer = b"", *, codec: int = RAW) -> SendReport:
        """Sends a transfer; returns when its last frame was handed to the transport. It goes in the slice of `info`.

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
            CapacityError: Too much of its slice waits for the link already (SLICE_FULL).
            MeshError: The session failed or was closed.
        """
        started = time.monotonic_ns()
        view = data if isinstance(data, bytes) else flat_bytes(data, "the data to send")
        size = len(view)
        self._check_send(info, size)
        egress = self._egress
        if size <= INLINE_BYTES and (egress is None or size <= egress.frame_bytes(info.slice)):
            return await self._sender.send_small(info, view, codec, started)
        return await self._sender.send_large(info, memoryview(view), codec, started)

    def _check_send(self, info: wire_pb2.TransferInfo, size: int) -> None:
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

    async def receive(self) -> Received:
        """The next whole transfer, in the order in which their last frames were sent.

        Raises:
            SessionEndError: The peer closed the session and everything was received.
            MeshError: The session failed.
        """
        receiver = self._receiver
        while True:
            received = receiver.take()
            if received is not None:
                return received
            if self._error is not None:
                raise self._gone()
            if not receiver.waiting and (receiver.inbox.ended or self._over.is_set()):
                raise SessionEndError(f"the session with {self.peer.spiffe} was closed")
            await receiver.wait()

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
            raise self._gone()
        await self._sender.flush()

    async def close(self) -> None:
        """Ends the session once the peer has everything, or after `CLOSE_S`. Repeating it changes nothing."""
        if not self._closing and not self._over.is_set():
            self._closing = True
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._sender.send_end()
                    await self.flush()
            except (TimeoutError, MeshError):
                self.end()
            self._shut = True
            self._carrier.wake()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._over.wait()
        except TimeoutError:
            self.end()

    # --- what connections use
    # ------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a connection carries the session now."""
        return self._carrier.attached

    @property
    def accepted(self) -> bool:
        """Whether the accepting end has said that it has the session."""
        return self._carrier.accepted

    @property
    def next_receive_number(self) -> int:
        """The number of the next frame that this end expects: what a resumed connection starts with."""
        return self._receiver.inbox.next_number

    @property
    def credit_limit(self) -> int:
        """What the other end may have sent since the session began, in bytes."""
        return self._receiver.inbox.credit_limit

    @property
    def progress(self) -> tuple[int, int]:
        """How many frames arrived each way."""
        return self._sender.outbox.acknowledged, self._receiver.inbox.next_number

    @property
    def pending(self) -> bool:
        """Whether anything is under way, either way."""
        return self._sender.busy or self._receiver.inbox.partial_transfers > 0

    @property
    def heard_s(self) -> float:
        """When anything was heard from the other end last, on the event loop's clock, in seconds."""
        return self._carrier.liveness.heard_s

    @property
    def refusal(self) -> RefusedError | None:
        """The refusal that the other end has to be told of when the session is taken up again."""
        return self._carrier.refusal

    def accept(self) -> None:
        """Both ends have the session."""
        self._carrier.accepted = True

    def resume(self, next_number: int, credit_limit: int | None = None) -> None:
        """Prepares for a new connection: the other end has every frame below `next_number`.

        Raises:
            SealError: It cannot be (FRAME_MALFORMED).
        """
        outbox = self._sender.outbox
        outbox.rewind(next_number)
        self._sender.acknowledged(next_number, outbox.credit_limit if credit_limit is None else credit_limit)
        self._receiver.ack_due = True
        self._stats.resumes += 1
        if self._egress is not None:
            # These frames had their turn, and are sealed in their order: they do not wait again, others wait for them.
            self._egress.occupy(outbox.unacknowledged_bytes)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keeps the task that connects the session alive as long as the session."""
        self._keeper = task

    async def detach(self) -> None:
        """Takes the session off its connection, if it is on one."""
        await self._carrier.detach()

    async def carry(self, wire: Wire) -> None:
        """Reads and writes on a connection; returns when the session is over.

        Raises:
            CutError: The connection broke or another one took its place.
            RefusedError: A frame was refused.
            MeshError: The session failed.
        """
        failure = await self._carrier.carry(wire)
        if self._carrier.refusal is not None:
            raise self._carrier.refusal
        if self._error is not None:
            raise self._error
        if self._shut or self._receiver.inbox.ended:
            self.end()
            return
        raise failure or CutError(TransportError("the connection was given up for another one"))

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
        _count_ended(self)
        self._carrier.stop()
        self._sender.end(self._gone)
        self._receiver.end(forget=self._error is not None)
        self._threads.end(forget=self._error is not None)

    def _refuse_for_good(self, error: MeshError) -> RefusedError:
        return self._carrier.refuse_for_good(error)

    def _gone(self) -> MeshError:
        """A new exception for each who is told, so that tracebacks do not grow."""
        if self._error is not None:
            return error_for(self._error.reason, self._error.message, self._error.metadata)
        return TransportError(f"the session with {self.peer.spiffe} is closed; open a new one to send more")
