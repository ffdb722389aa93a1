"""The hand-written bytes of frames against the generated classes, which are the second opinion."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from orbitmesh.errors import SealError
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.frames import (
    HEADER_BYTES,
    data_header,
    join_message,
    parse_header,
    read_whole,
    split_message,
    whole_header,
    whole_place,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
INFO = st.builds(
    lambda generation, shape: wire_pb2.TransferInfo(
        tensor=wire_pb2.TensorSpec(dtype=wire_pb2.DTYPE_FLOAT32, shape=shape),
        step=wire_pb2.StepInfo(generation=generation, position=len(shape), sample=True),
    ),
    U64,
    st.lists(U32, max_size=4),
)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_message_is_the_bytes_that_the_generated_class_writes(header: bytes, body: bytes) -> None:
    """Any header that is not empty and any body: same bytes, and both parsers read both."""
    header = header or b"\x00"
    message = join_message(header, body)
    assert message == executor_pb2.ExchangeRequest(header=header, body=body).SerializeToString()
    found, view = split_message(message)
    assert (found, bytes(view)) == (header, body)


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, (1 << 20) + 16])
def test_lengths_at_the_edges_of_a_varint(size: int) -> None:
    """Bodies whose length takes one byte more are written and read as protobuf does."""
    body = bytes(size)
    message = join_message(b"h", body)
    assert message == executor_pb2.ExchangeRequest(header=b"h", body=body).SerializeToString()
    assert len(split_message(message)[1]) == size


@given(
    U64, U64, U32, st.booleans(), st.integers(0, 6), U32, st.none() | INFO, U64, st.booleans(), st.booleans()
)
def test_a_data_header_is_the_bytes_that_the_generated_class_writes(
    number: int, transfer: int, index: int, last: bool, codec: int, raw: int,
    info: wire_pb2.TransferInfo | None, total: int, abandoned: bool, ends: bool,
) -> None:  # fmt: skip
    """Every field, at every value, canonical."""
    data = wire_pb2.Data(
        number=number, transfer=transfer, index=index, last=last, codec=wire_pb2.Codec.Name(codec),
        raw_size_bytes=raw, info=info, total_size_bytes=total, abandoned=abandoned, ends_session=ends,
    )  # fmt: skip
    written = data_header(
        number, transfer, index, last, codec, raw, info.SerializeToString() if info else b"", total,
        abandoned=abandoned, ends_session=ends,
    )  # fmt: skip
    assert written == wire_pb2.FrameHeader(data=data).SerializeToString()


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\x0a\x02hi" + tail))
def test_any_bytes_are_read_as_the_generated_parser_reads_them(message: bytes) -> None:
    """Odd orders, unknown fields, doubled fields, cut messages: the same answer, or the same refusal."""
    try:
        expected = executor_pb2.ExchangeRequest.FromString(message)
    except DecodeError:
        with pytest.raises(SealError) as raised:
            split_message(message)
        assert raised.value.reason == "FRAME_MALFORMED"
        return
    header, body = split_message(message)
    assert (header, bytes(body)) == (expected.header, expected.body)


def test_a_header_without_end_is_refused() -> None:
    """A header longer than its bound is no frame, however it is written."""
    with pytest.raises(SealError) as raised:
        split_message(join_message(bytes(HEADER_BYTES + 1), b"body"))
    assert raised.value.reason == "FRAME_MALFORMED"


@given(st.binary(max_size=40))
def test_a_header_of_any_bytes_is_parsed_or_refused(header: bytes) -> None:
    """No bytes make the header's parser fail in another way."""
    try:
        parse_header(header)
    except SealError as error:
        assert error.reason == "FRAME_MALFORMED"


@given(U64, U64, st.integers(0, 2000), st.none() | INFO)
def test_a_whole_transfer_is_written_as_the_generated_class_writes_it(
    number: int, transfer: int, raw: int, info: wire_pb2.TransferInfo | None
) -> None:
    """The short way to write a header gives the same bytes, and the short way to read a message gives its parts."""
    data = wire_pb2.Data(
        number=number, transfer=transfer, last=True, codec=wire_pb2.CODEC_RAW, raw_size_bytes=raw, info=info
    )
    about = info.SerializeToString() if info else b""
    place = whole_place(number, transfer)
    header = whole_header(place, raw, about)
    assert header == wire_pb2.FrameHeader(data=data).SerializeToString()
    body = bytes(raw + 16)
    parts = read_whole(join_message(header, body), place)
    if raw and about and len(header) < 128:
        assert parts is not None
        assert (*parts[:3], bytes(parts[3])) == (header, raw, about, body)
    else:
        assert parts is None
    assert read_whole(join_message(header, body), whole_place(number ^ 1, transfer)) is None
    assert read_whole(join_message(header, body), whole_place(number, transfer ^ 1)) is None


@given(st.integers(1, 300), INFO, st.data())
def test_the_short_way_to_read_finds_what_the_generated_class_finds_or_nothing(
    raw: int, info: wire_pb2.TransferInfo, data: st.DataObject
) -> None:
    """Whatever bytes are changed, cut off or added: never an exception, never other content than protobuf reads."""
    place = whole_place(7, 5)
    whole = join_message(whole_header(place, raw, info.SerializeToString()), bytes(raw + 16))
    message = bytearray(whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=3)))
    for at in data.draw(st.lists(st.integers(0, min(60, len(message))), max_size=3)):
        message[at : at + 1] = data.draw(st.binary(max_size=2))
    parts = read_whole(bytes(message), place)
    if parts is None:
        return
    header, raw_bytes, about, body = parts
    second = executor_pb2.ExchangeRequest.FromString(bytes(message))
    assert (header, bytes(body)) == (second.header, second.body)
    try:
        found = wire_pb2.FrameHeader.FromString(header).data
    except DecodeError:
        with pytest.raises(DecodeError):
            wire_pb2.TransferInfo.FromString(about)
        return
    assert found.info == wire_pb2.TransferInfo.FromString(about)
    assert (found.number, found.transfer, found.index, found.last) == (7, 5, 0, True)
    assert (found.codec, found.raw_size_bytes) == (wire_pb2.CODEC_RAW, raw_bytes)
