"""Frames as bytes: the gRPC message around a header and a body, and the header of a data frame.

A message is `{bytes header = 1; bytes body = 1000}`, whatever its type is called. It is written and read by
hand: the same bytes as the generated classes give, without their copies of the body.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from orbitmesh.errors import SealError
from orbitmesh.v1 import executor_pb2, wire_pb2

HEADER_BYTES = 64 << 10
"""The most bytes of a frame's header: what a failure's text and facts may need."""

FRAME_CREDIT_BYTES = 1024
"""What a frame counts beside its body: so that no number of tiny frames outgrows the window."""

RAW = 1
"""The codec that leaves bytes as they are."""

_HEADER_TAG = 0x0A
_RAW_SIZE_TAG = 0x30
_INFO_TAG = 0x3A
_BODY_TAG = b"\xc2\x3e"
_VARINTS = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """`value` as a base-128 varint."""
    if value < 128:
        return _VARINTS[value]
    if value < 16384:
        return bytes((value & 0x7F | 0x80, value >> 7))
    out = bytearray()
    while value > 127:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def cost_of(body_bytes: int) -> int:
    """What a frame takes of the credit."""
    return body_bytes + FRAME_CREDIT_BYTES


def message_prefix(header: bytes, body_bytes: int) -> bytes:
    """Everything of a message that stands before its body."""
    if not body_bytes:
        return b"".join((b"\x0a", varint(len(header)), header))
    return b"".join((b"\x0a", varint(len(header)), header, _BODY_TAG, varint(body_bytes)))


def join_message(header: bytes, body: bytes) -> bytes:
    """The message of a header and a body; an empty body is left out, as protobuf does."""
    return message_prefix(header, len(body)) + body


def split_message(message: bytes) -> tuple[bytes, memoryview]:
    """Header and body of a message; the body is a view into it.

    Any order of fields that protobuf allows is understood; the usual one is read without the generated
    parser.

    Raises:
        SealError: The bytes are no such message, or the header is too long (FRAME_MALFORMED).
    """
    end = len(message)
    if end and message[0] == _HEADER_TAG:
        size, start = _read_varint(message, 1)
        stop = start + size
        if start > 0 and stop <= end and size <= HEADER_BYTES:
            if stop == end:
                return message[start:], memoryview(b"")
            if message[stop : stop + 2] == _BODY_TAG:
                size, body = _read_varint(message, stop + 2)
                if body > 0 and body + size == end:
                    return message[start:stop], memoryview(message)[body:]
    return _split_unusual(message)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint of up to four bytes and where it ends, or (0, 0) where there is none."""
    value = shift = 0
    for byte in data[at : at + 4]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, 0


def _split_unusual(message: bytes) -> tuple[bytes, memoryview]:
    try:
        parsed = executor_pb2.ExchangeRequest.FromString(message)
    except DecodeError:
        raise malformed("a message on the session is no frame") from None
    if len(parsed.header) > HEADER_BYTES:
        raise malformed(
            f"a frame's header has {len(parsed.header)} bytes, at most {HEADER_BYTES} are allowed"
        )
    return parsed.header, memoryview(parsed.body)


def data_header(
    number: int,
    transfer: int,
    index: int,
    last: bool,
    codec: int,
    raw_bytes: int,
    info: bytes = b"",
    total_bytes: int = 0,
    *,
    abandoned: bool = False,
    ends_session: bool = False,
) -> bytes:
    """The serialised `FrameHeader` of a data frame, as the generated class would write it.

    Args:
        number: Of the frame in its direction.
        transfer: Of the transfer in its direction.
        index: Of the frame in its transfer.
        last: Whether it is the transfer's last.
        codec: Of the body.
        raw_bytes: What the body decodes to.
        info: The serialised `TransferInfo`, on the first frame.
        total_bytes: What the transfer decodes to, on the first of several frames.
        abandoned: Whether the sender gives the transfer up.
        ends_session: Whether nothing follows in this direction.
    """
    parts: list[bytes] = []
    if number:
        parts += (b"\x08", varint(number))
    if transfer:
        parts += (b"\x10", varint(transfer))
    if index:
        parts += (b"\x18", varint(index))
    if last:
        parts.append(b"\x20\x01")
    if codec:
        parts += (b"\x28", varint(codec))
    if raw_bytes:
        parts += (b"\x30", varint(raw_bytes))
    if info:
        parts += (b"\x3a", varint(len(info)), info)
    if total_bytes:
        parts += (b"\x40", varint(total_bytes))
    if abandoned:
        parts.append(b"\x48\x01")
    if ends_session:
        parts.append(b"\x50\x01")
    data = b"".join(parts)
    return b"".join((b"\x0a", varint(len(data)), data))


def whole_place(number: int, transfer: int) -> bytes:
    """How the data of a whole transfer in one raw frame begins: all that stands before its size.

    Nearly every transfer of a running pipeline is such a frame. Both ends know its place beforehand, so the sender
    writes its header, and the receiver recognises it, without the generated classes.
    """
    if number and transfer:
        return b"".join((b"\x08", varint(number), b"\x10", varint(transfer), b"\x20\x01\x28\x01"))
    first = b"\x08" + varint(number) if number else b""
    second = b"\x10" + varint(transfer) if transfer else b""
    return b"".join((first, second, b"\x20\x01\x28\x01"))


def whole_header(place: bytes, raw_bytes: int, info: bytes) -> bytes:
    """The serialised `FrameHeader` of a whole transfer in one raw frame: what `data_header` gives, in less time."""
    parts = [place]
    if raw_bytes:
        parts += (b"\x30", varint(raw_bytes))
    if info:
        parts += (b"\x3a", varint(len(info)), info)
    data = b"".join(parts)
    return b"".join((b"\x0a", varint(len(data)), data))


def read_whole(message: bytes, place: bytes) -> tuple[bytes, int, bytes, memoryview] | None:
    """A message that is a whole transfer in one raw frame, at a place.

    Args:
        message: As it came.
        place: From `whole_place`, of the frame that must come next.

    Returns:
        Its header, raw size in bytes, serialised `TransferInfo` and body; None where it is anything else or is
        written in another way: then `split_message` and `parse_header` read it.
    """
    try:
        stop = message[1] + 2
        at = len(place) + 4
        if (
            stop > 129
            or message[0] != _HEADER_TAG
            or message[2] != _HEADER_TAG
            or message[3] + 4 != stop
            or not message.startswith(place, 4)
            or message[at] != _RAW_SIZE_TAG
        ):
            return None
        raw_bytes, at = _read_varint(message, at + 1)
        if at == 0 or message[at] != _INFO_TAG or message[at + 1] + at + 2 != stop:
            return None
        if message[stop] != _BODY_TAG[0] or message[stop + 1] != _BODY_TAG[1]:
            return None
        size, body = _read_varint(message, stop + 2)
    except IndexError:
        return None
    if body == 0 or body + size != len(message):
        return None
    return message[2:stop], raw_bytes, message[at + 2 : stop], memoryview(message)[body:]


def control_message(header: wire_pb2.FrameHeader) -> bytes:
    """The message of a frame without a body: hello, open, accept, ack."""
    return join_message(header.SerializeToString(), b"")


def parse_header(header: bytes) -> wire_pb2.FrameHeader:
    """The header of a frame.

    Raises:
        SealError: The bytes are no header (FRAME_MALFORMED).
    """
    try:
        return wire_pb2.FrameHeader.FromString(header)
    except DecodeError:
        raise malformed("the header of a frame cannot be read") from None


def malformed(what: str) -> SealError:
    """The error for a frame that is no frame."""
    return SealError(
        f"{what}; expected a frame of wire version 1: check that both ends run the same version and that "
        "nothing between them changes messages",
        reason="FRAME_MALFORMED",
    )
