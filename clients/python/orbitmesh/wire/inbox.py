"""What the receiving end of a direction knows of its frames: no clock, no socket and no task.

`Inbox` opens what arrives, refuses everything that is not exactly the next frame, and puts transfers together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from orbitmesh.errors import IntegrityError, InvalidInputError, MeshError, SealError
from orbitmesh.limits import FRAME_BODY_BYTES, SESSION_CREDIT_BYTES, TRANSFER_BYTES
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.frames import FRAME_CREDIT_BYTES, RAW, cost_of, malformed, read_whole, whole_place
from orbitmesh.wire.memory import allocate
from orbitmesh.wire.records import Received
from orbitmesh.wire.seal import TAG_BYTES, DirectionKeys, TransferCipher
from orbitmesh.wire.tensors import MAX_TENSOR_RANK

PARTIAL_TRANSFERS = 64
"""How many transfers of several frames may be under way in one direction."""

CODED_FRAME_BYTES = FRAME_BODY_BYTES + 4096
"""The most bytes of a coded frame: no codec makes one longer by more than a few bytes."""

_NO_TRANSFER = 1 << 64
_ITEM_BYTES = {1: 4, 2: 2, 3: 2, 4: 8, 5: 1, 6: 1, 7: 2, 8: 4, 9: 8, 10: 1}


def tensor_bytes(tensor: wire_pb2.TensorSpec) -> int:
    """The raw size of a tensor.

    Raises:
        InvalidInputError: No element type (DTYPE_MISMATCH), or too many dimensions (LIMIT_EXCEEDED).
    """
    item = _ITEM_BYTES.get(tensor.dtype)
    if item is None:
        raise InvalidInputError(
            f"a tensor has the dtype {tensor.dtype}; expected one of {list(_ITEM_BYTES)}",
            reason="DTYPE_MISMATCH",
        )
    if len(tensor.shape) > MAX_TENSOR_RANK:
        raise InvalidInputError(
            f"a tensor has {len(tensor.shape)} dimensions, at most {MAX_TENSOR_RANK} are allowed",
            reason="LIMIT_EXCEEDED",
        )
    return math.prod(tensor.shape) * item


@dataclass(slots=True, eq=False)
class Arrival:
    """A transfer on its way to whoever receives it."""

    received: Received
    """What they get."""
    cost: int = 0
    """What its frames took of the credit so far, in bytes."""
    decoding: int = 0
    """How many of its frames are being decoded."""


@dataclass(slots=True, eq=False)
class Incoming:
    """A transfer of several frames, or a coded one, that is being put together."""

    number: int
    """In its direction."""
    arrival: Arrival
    """What it will be; its memory is of its full size from the start."""
    cipher: TransferCipher
    """Opens its frames."""
    next_index: int = 0
    """Of the frame that must come next."""
    filled: int = 0
    """Bytes that have come."""

    @property
    def data(self) -> memoryview:
        """Where its raw bytes go."""
        return self.arrival.received.data


@dataclass(frozen=True, slots=True)
class Opened:
    """What a frame brought."""

    incoming: Incoming | None
    """Its transfer; None for an abandoned one and for the end of the session."""
    complete: bool = False
    """Whether it was the transfer's last."""
    coded: bytes | None = None
    """What is still to be decoded; None where the raw bytes are in place."""
    codec: int = RAW
    """How `coded` is coded."""
    out: memoryview = field(default_factory=lambda: memoryview(b""))
    """Where the decoded bytes go."""
    ends_session: bool = False
    """Whether nothing follows in this direction."""


@dataclass(slots=True)
class Inbox:
    """The receiving side's account of a direction.

    `open` either takes a frame whole or raises and changes nothing, so that the same frame can be asked for
    again.
    """

    keys: DirectionKeys
    """Of this direction."""
    window: int = SESSION_CREDIT_BYTES
    """How much may be under way or wait to be taken, in bytes."""
    next_number: int = 0
    """Of the frame that must come next."""
    next_transfer: int = 0
    """Of the transfer that must begin next."""
    received: int = 0
    """What came, counted as credit, in bytes."""
    waiting: int = 0
    """The part of it that belongs to whole transfers that nobody has taken yet, in bytes."""
    credit_limit: int = 0
    """What the sender may have sent since the session began, in bytes; never falls."""
    ended: bool = False
    """Whether the sender said that nothing follows."""
    _partial: dict[int, Incoming] = field(default_factory=dict)
    _partial_bytes: int = 0
    _cipher_ahead: TransferCipher | None = None

    def __post_init__(self) -> None:
        self.credit_limit = self.window

    @property
    def partial_transfers(self) -> int:
        """How many transfers have begun and not ended."""
        return len(self._partial)

    def take(self, cost: int) -> None:
        """The application has taken a transfer of that cost: its credit goes back to the sender."""
        self.waiting -= cost
        self._raise_limit()

    def prepare(self) -> None:
        """Derives the next transfer's key beforehand, while there is nothing else to do."""
        if self._cipher_ahead is None:
            self._cipher_ahead = self.keys.transfer(self.next_transfer)

    def _cipher(self, transfer: int) -> TransferCipher:
        """The cipher of a transfer."""
        if transfer == self.next_transfer:
            self.prepare()
            if self._cipher_ahead is not None:
                return self._cipher_ahead
        return self.keys.transfer(transfer)

    def open_whole(self, message: bytes, now_ns: int) -> Arrival | None:
        """Opens a message that is a whole raw transfer, as nearly all are; None, with nothing changed, for any other.

        Args:
            message: As it came.
            now_ns: The monotonic clock.

        Raises:
            SealError: It does not open (SEAL_BROKEN).
            InvalidInputError: Its tensor is none (DTYPE_MISMATCH, LIMIT_EXCEEDED).
        """
        if self.ended:
            return None
        parts = read_whole(message, whole_place(self.next_number, self.next_transfer))
        if parts is None:
            return None
        header, raw_bytes, about, body = parts
        cost = len(body) + FRAME_CREDIT_BYTES
        fits = len(body) == raw_bytes + TAG_BYTES and raw_bytes <= FRAME_BODY_BYTES
        if not fits or self.received + cost > self.credit_limit:
            return None  # `open` says what is wrong
        try:
            info = wire_pb2.TransferInfo.FromString(about)
        except DecodeError:
            return None
        if info.HasField("tensor") and tensor_bytes(info.tensor) != raw_bytes:
            return None
        cipher = self._cipher_ahead or self.keys.transfer(self.next_transfer)
        data = memoryview(bytearray(raw_bytes))
        cipher.open_into(0, True, header, body, data)
        self._cipher_ahead = None
        self.next_number += 1
        self.next_transfer += 1
        self.received += cost
        self.waiting += cost
        return Arrival(Received(info, data, now_ns, 0, len(message)), cost)

    def open(
        self, header: bytes, data: wire_pb2.Data, body: memoryview, now_ns: int, wire_bytes: int
    ) -> Opened:
        """Checks and opens the next frame.

        Args:
            header: The header's bytes as they came.
            data: The same, parsed.
            body: The sealed body.
            now_ns: The monotonic clock.
            wire_bytes: The size of the message.

        Raises:
            SealError: FRAME_REPLAYED, FRAME_OUT_OF_ORDER, FRAME_TRUNCATED, FRAME_MALFORMED, SEAL_BROKEN.
            InvalidInputError: A size is beyond what is allowed or announced (LIMIT_EXCEEDED).
        """
        self._check_place(data)
        raw_bytes = data.raw_size_bytes
        sealed_bytes = len(body) - TAG_BYTES
        self._check_sizes(data, sealed_bytes)
        if data.ends_session:
            return self._open_end(header, data, body)
        incoming = self._partial.get(data.transfer)
        begins = incoming is None
        if incoming is None:
            incoming = self._begin(data, now_ns)
        if data.abandoned:
            incoming.cipher.open(data.index, True, header, body)
            self._settle(incoming, data, len(body), wire_bytes, begins)
            self._partial.pop(data.transfer, None)
            self._partial_bytes -= 0 if begins else len(incoming.data)
            return Opened(None)
        stop = incoming.filled + raw_bytes
        if stop > len(incoming.data):
            raise _too_much(f"a transfer brings {stop} bytes and announced {len(incoming.data)}")
        if data.last and stop < len(incoming.data):
            raise SealError(
                f"a transfer ends after {stop} of {len(incoming.data)} bytes; it is asked for again",
                reason="FRAME_TRUNCATED",
            )
        out = incoming.data[incoming.filled : stop]
        coded = None
        if data.codec == RAW:
            incoming.cipher.open_into(data.index, data.last, header, body, out)
        else:
            coded = incoming.cipher.open(data.index, data.last, header, body)
        self._settle(incoming, data, len(body), wire_bytes, begins)
        incoming.filled = stop
        return Opened(incoming, data.last, coded, data.codec, out)

    def _check_place(self, data: wire_pb2.Data) -> None:
        if data.number != self.next_number:
            raise _misplaced("frame", data.number, self.next_number)
        incoming = self._partial.get(data.transfer)
        if incoming is None and data.transfer != self.next_transfer:
            raise _misplaced("transfer", data.transfer, self.next_transfer)
        expected = 0 if incoming is None else incoming.next_index
        if data.index != expected:
            raise _misplaced(f"in transfer {data.transfer}, frame", data.index, expected)
        if self.ended:
            raise _misplaced("after the session's end, frame", data.number, _NO_TRANSFER)

    def _check_sizes(self, data: wire_pb2.Data, sealed_bytes: int) -> None:
        if sealed_bytes < 0:
            raise malformed(f"a sealed body has {sealed_bytes + TAG_BYTES} bytes, its seal alone {TAG_BYTES}")
        if data.raw_size_bytes > FRAME_BODY_BYTES or sealed_bytes > CODED_FRAME_BYTES:
            raise _too_much(
                f"a frame says it is {data.raw_size_bytes} bytes, at most {FRAME_BODY_BYTES} are allowed"
            )
        if data.codec == RAW and data.raw_size_bytes != sealed_bytes:
            raise malformed(f"a raw frame has {sealed_bytes} bytes and says {data.raw_size_bytes}")
        if data.codec == 0 or ((data.abandoned or data.ends_session) and (sealed_bytes or not data.last)):
            raise malformed("a frame names no codec, or ends what it also continues")
        if self.received + cost_of(sealed_bytes + TAG_BYTES) > self.credit_limit:
            raise _too_much(f"a frame goes beyond the credit of {self.credit_limit} bytes")

    def _begin(self, data: wire_pb2.Data, now_ns: int) -> Incoming:
        """Room for a new transfer, once everything that it says about its size was checked."""
        total = data.total_size_bytes
        if data.last:
            if total:
                raise malformed("a transfer of one frame announces a size beside the frame's own")
            total = data.raw_size_bytes
        elif total <= data.raw_size_bytes:
            raise malformed(f"a transfer of several frames announces {total} bytes")
        if total > TRANSFER_BYTES:
            raise _too_much(f"a transfer announces {total} bytes, at most {TRANSFER_BYTES} are allowed")
        if not data.last and (
            len(self._partial) >= PARTIAL_TRANSFERS or self._partial_bytes + total > TRANSFER_BYTES
        ):
            raise _too_much(f"{len(self._partial)} transfers are under way already")
        info = data.info
        if info.HasField("tensor") and not data.abandoned and tensor_bytes(info.tensor) != total:
            raise _too_much(f"a tensor of {tensor_bytes(info.tensor)} bytes comes with {total} bytes")
        received = Received(info, allocate(total), now_ns, 0, 0)
        return Incoming(data.transfer, Arrival(received), self._cipher(data.transfer))

    def _settle(
        self, incoming: Incoming, data: wire_pb2.Data, body_bytes: int, wire_bytes: int, begins: bool
    ) -> None:
        """The frame was opened: only now does the account change."""
        cost = cost_of(body_bytes)
        self.next_number += 1
        self.received += cost
        incoming.arrival.cost += cost
        incoming.arrival.received.wire_bytes += wire_bytes
        incoming.next_index += 1
        if begins:
            self.next_transfer += 1
            self._cipher_ahead = None
            if not data.last:
                self._partial[data.transfer] = incoming
                self._partial_bytes += len(incoming.data)
        if data.last and not data.abandoned:
            self.waiting += incoming.arrival.cost
            if not begins:
                del self._partial[data.transfer]
                self._partial_bytes -= len(incoming.data)
        self._raise_limit()

    def _open_end(self, header: bytes, data: wire_pb2.Data, body: memoryview) -> Opened:
        self._cipher(data.transfer).open(data.index, data.last, header, body)
        if self._partial:
            raise SealError(
                f"the session ends inside {len(self._partial)} transfers", reason="FRAME_TRUNCATED"
            )
        self.next_number += 1
        self.next_transfer += 1
        self._cipher_ahead = None
        self.received += cost_of(len(body))
        self.ended = True
        return Opened(None, ends_session=True)

    def _raise_limit(self) -> None:
        self.credit_limit = max(self.credit_limit, self.received - self.waiting + self.window)


def _misplaced(what: str, found: int, expected: int) -> SealError:
    if found < expected:
        return SealError(
            f"{what} {found} came again, expected {expected}; it is not taken twice", reason="FRAME_REPLAYED"
        )
    return SealError(
        f"{what} {found} came, expected {expected}: something between is missing; it is asked for again",
        reason="FRAME_OUT_OF_ORDER",
    )


def _too_much(what: str) -> InvalidInputError:
    return InvalidInputError(f"{what}; nothing was allocated for it", reason="LIMIT_EXCEEDED")


def is_refusal(error: BaseException) -> bool:
    """Whether an error is the refusal of a frame, which may come whole when it is asked for again."""
    return isinstance(error, IntegrityError) or (
        isinstance(error, MeshError) and error.reason == "LIMIT_EXCEEDED"
    )
