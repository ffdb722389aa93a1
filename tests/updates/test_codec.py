"""Updates as spans of bytes: what comes back, how few they are, and what no bytes can do to the receiver."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.updates.blocks import shared_indices
from services.updates.codec import decode_span, encode, span_bytes_bound
from services.updates.quantise import BLOCK_VALUES, LEVELS
from services.updates.scheme import Kind, Number, Scheme
from services.updates.spans import SPAN_VALUES, span_count, spans
from services.updates.values import pack, packed_bytes, unpack

DENSE = ["fp32", "fp16", "int8", "int4"]
TEXTS = [
    *DENSE,
    *("topk:0.01", "topk:0.01+fp16", "topk:0.3+int4", "topk:1+fp32"),
    *("blocks:0.25", "blocks:0.25+int4", "blocks:0.1+fp16", "blocks:1+fp32"),
]
SCHEMES = [Scheme.parse(text) for text in TEXTS]
ANY_SCHEME = st.sampled_from(SCHEMES)
VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 700),
    elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-1, 1, width=32),
    fill=st.just(0.0),
)
CNN_VALUES = 56_970


def update(size: int, seed: int = 0) -> np.ndarray:
    """Values as those of an update after some epochs: heavy tails, small."""
    return (np.random.default_rng(seed).laplace(size=size) * 1e-3).astype(np.float32)


def received(scheme: Scheme, data: dict[int, bytes], size: int, round_index: int) -> np.ndarray:
    return np.concatenate(
        [decode_span(scheme, data[span], span, size, round_index=round_index) for span in range(span_count(size))]
    )


@settings(max_examples=250)
@given(ANY_SCHEME, VALUES, st.integers(0, 50), st.none() | st.integers(0, 2**32))
def test_what_the_sender_keeps_as_decoded_is_what_the_receiver_sees(
    scheme: Scheme, values: np.ndarray, round_index: int, seed: int | None
) -> None:
    """In any scheme, rounding and round: equal to the bit, finite, and zero or near the value everywhere."""
    rng = None if seed is None else np.random.default_rng(seed)
    encoded = encode(scheme, values, round_index=round_index, rng=rng)
    data = dict(encoded.spans())
    seen = received(scheme, data, values.size, round_index)
    np.testing.assert_array_equal(seen, encoded.decoded)
    assert seen.dtype == np.float32 and seen.shape == values.shape and np.isfinite(seen).all()
    assert encoded.wire_bytes == sum(map(len, data.values()))
    assert all(len(piece) <= span_bytes_bound(scheme, span, values.size) for span, piece in data.items())
    # A step is at most the largest magnitude / 7, a little more as bf16, with the smallest scale below it.
    step = np.abs(values).max() / 7 * (1 + 1 / 64) + 2.0**-125
    sent = seen != 0
    assert (np.abs(seen[sent].astype(np.float64) - values[sent]) <= step).all()


@pytest.mark.parametrize("number", [Number.INT8, Number.INT4])
def test_steps_come_back_around_the_size_where_compressing_begins_to_pay(number: Number) -> None:
    """Wherever the sizes are as near as can be, what was written is what is read."""
    gains = set()
    for seed in range(1_500):
        count = 1 + seed % 300
        values = np.round(update(count, seed) * 4e3)
        data, is_compressed = pack(number, values, None)
        gains.add(packed_bytes(number, count) - len(data))
        seen = unpack(number, memoryview(data), count, is_compressed=is_compressed)
        assert np.abs(seen - values).max() <= np.abs(values).max() / LEVELS[4]
    assert {0, 2, 3} <= gains


@pytest.mark.parametrize("text", TEXTS)
def test_a_vector_of_several_spans_comes_back(text: str) -> None:
    """Values that are sent are within the error of their number format, the others are zero; a span that is asked for
    again has the same bytes, in any order."""
    scheme = Scheme.parse(text)
    size = 2 * SPAN_VALUES + 1_234
    values = update(size)
    encoded = encode(scheme, values, round_index=6, rng=np.random.default_rng(1))
    last_first = {span: encoded.span(span) for span in (2, 0, 1)}
    assert dict(encoded.spans()) == last_first
    seen = received(scheme, last_first, size, 6)
    expected = np.zeros(size, bool)
    if scheme.kind is Kind.TOPK:
        expected[np.argsort(-np.abs(values), kind="stable")[: scheme.top_count(size)]] = True
    elif scheme.kind is Kind.BLOCKS:
        for span, where in spans(size):
            expected[where][shared_indices(6, scheme.cycle_rounds, span, size)] = True
    else:
        expected[:] = True
    assert not seen[~expected].any()
    error = np.abs(seen - values)[expected]
    if scheme.number is Number.FP32:
        assert not error.any()
    elif scheme.number is Number.FP16:
        assert (error <= np.abs(values[expected]) * 2.0**-11 + 1e-9).all()
    else:
        bits = 8 if scheme.number is Number.INT8 else 4
        assert error.max() <= np.abs(values).max() / LEVELS[bits] * (1 + 1 / 64)
        assert np.count_nonzero(error) > 0


def test_a_crashed_node_encodes_the_same_bytes_again() -> None:
    """With the random source seeded alike, so that a transfer goes on where it was cut."""
    values = update(3 * SPAN_VALUES)
    one, other = (
        dict(encode(Scheme.parse("int4"), values, round_index=0, rng=np.random.default_rng(9)).spans()) for _ in "12"
    )
    assert one == other
    assert one != dict(encode(Scheme.parse("int4"), values, round_index=0, rng=np.random.default_rng(8)).spans())


@pytest.mark.parametrize(
    ("text", "bytes_at_most"),
    [
        ("topk:0.01", 1_160),  # 1.1 kB: 196 times less than fp32
        ("topk:0.01+fp16", 1_760),
        ("blocks:0.25", 0.26 * CNN_VALUES),
        ("blocks:0.25+int4", 0.13 * CNN_VALUES),
        ("int8", 1.01 * CNN_VALUES),
        ("int4", 0.51 * CNN_VALUES),
        ("fp16", 2 * CNN_VALUES + 2),
        ("fp32", 4 * CNN_VALUES + 1),
    ],
)
@pytest.mark.parametrize("distribution", ["laplace", "normal", "uniform"])
def test_the_bytes_of_the_small_cnn(text: str, bytes_at_most: float, distribution: str) -> None:
    """56,970 parameters take what the figures promise, however the values are distributed."""
    values = getattr(np.random.default_rng(3), distribution)(size=CNN_VALUES).astype(np.float32)
    assert encode(Scheme.parse(text), values - values.mean(), round_index=1, rng=None).wire_bytes <= bytes_at_most


def test_tiny_and_huge_updates_keep_their_precision_in_two_bytes() -> None:
    """fp16 alone would lose 1e-9 and overflow at 1e6; with a power of two per span neither happens."""
    for factor in (1e-9, 1.0, 1e6, 1e30):
        values = update(1_000) * np.float32(factor)
        seen = encode(Scheme.parse("fp16"), values, round_index=0, rng=None).decoded.astype(np.float64)
        values = values.astype(np.float64)
        assert np.linalg.norm(seen - values) <= 2.0**-11 * np.linalg.norm(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("text", TEXTS)
def test_an_update_that_is_no_number_is_not_sent(text: str, bad: float) -> None:
    """NaN and Inf are refused at once, magnitudes near the end of float32 at the latest where they would be sent."""
    values = update(SPAN_VALUES + 9)
    values[SPAN_VALUES + 3] = bad
    with pytest.raises(InvalidInputError) as caught:
        for round_index in range(10):
            encode(Scheme.parse(text), values, round_index=round_index, rng=None).decoded.sum()
    assert caught.value.reason == "NOT_FINITE"


@pytest.mark.parametrize("values", [np.zeros(0, np.float32), np.zeros((3, 3), np.float32), np.zeros(4)])
def test_what_is_no_flat_vector_is_not_encoded(values: np.ndarray) -> None:
    """Empty, of two dimensions, or float64."""
    with pytest.raises(InvalidInputError, match="expected"):
        encode(Scheme.parse("int8"), values, round_index=0, rng=None)


def outcome(scheme: Scheme, data: bytes, size: int) -> None:
    """Decodes bytes that anybody may have sent: finite values, or the one typed error."""
    try:
        seen = decode_span(scheme, data, 0, size, round_index=2)
    except IntegrityError as error:
        assert error.reason in ("UPDATE_MALFORMED", "DECOMPRESSION_BOMB")
    else:
        assert seen.shape == (min(size, SPAN_VALUES),) and seen.dtype == np.float32 and np.isfinite(seen).all()


@settings(max_examples=600)
@given(ANY_SCHEME, st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_are_values_or_a_typed_error(scheme: Scheme, data: bytes, size: int) -> None:
    """No bytes make the receiver raise anything else, or see NaN."""
    outcome(scheme, data, size)


@settings(max_examples=300)
@given(ANY_SCHEME, st.integers(1, 700), st.data())
def test_a_changed_span_is_values_or_a_typed_error(scheme: Scheme, size: int, data: st.DataObject) -> None:
    """Bytes changed, taken out and put in, near the beginning above all."""
    whole = bytearray(encode(scheme, update(size), round_index=2, rng=None).span(0))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(whole), 12)) | st.integers(0, len(whole)))
        new = data.draw(st.binary(max_size=3))
        whole[at : at + data.draw(st.integers(0, 3))] = new
    outcome(scheme, bytes(whole), size)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 5, 640, 20_000])
def test_every_cut_and_every_surplus_is_refused(text: str, size: int) -> None:
    """No span is a part of another, so a frame that lost or gained bytes never goes unnoticed."""
    scheme = Scheme.parse(text)
    whole = encode(scheme, update(size), round_index=2, rng=None).span(0)
    cuts = {*range(min(len(whole), 64)), *range(0, len(whole), max(1, len(whole) // 97)), len(whole) - 1}
    for cut in cuts:
        with pytest.raises(IntegrityError):
            decode_span(scheme, whole[:cut], 0, size, round_index=2)
    for surplus in (b"\0", b"\1", b"\xff" * 9):
        with pytest.raises(IntegrityError):
            decode_span(scheme, whole + surplus, 0, size, round_index=2)


def int8_span(scale: bytes, steps: bytes, flags: int = 0) -> bytes:
    return bytes((flags,)) + scale + steps


def magicless(plain: bytes, *, states_size: bool = False) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=states_size
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


ONE = b"\x80\x3f"
TOPK = Scheme.parse("topk:0.5")


@pytest.mark.parametrize(
    ("scheme", "data", "size"),
    [
        pytest.param(SCHEMES[2], int8_span(b"\xc0\x7f", b"\1" * 9), 9, id="NaN scale"),
        pytest.param(SCHEMES[2], int8_span(b"\x80\xff", b"\1" * 9), 9, id="scale of minus infinity"),
        pytest.param(SCHEMES[2], int8_span(ONE, b"\x80" * 9), 9, id="step -128"),
        pytest.param(SCHEMES[3], int8_span(ONE, b"\x88"), 2, id="step -8 of int4"),
        pytest.param(SCHEMES[3], int8_span(ONE, b"\x11"), 1, id="half byte behind the last step"),
        pytest.param(SCHEMES[2], int8_span(ONE, b"\1" * 9, flags=2), 9, id="unknown flag"),
        pytest.param(SCHEMES[2], int8_span(ONE, b"\1" * 9, flags=8), 9, id="indices in a dense scheme"),
        pytest.param(SCHEMES[2], int8_span(ONE * 2, magicless(b"\1" * 900), flags=1), 512, id="more steps than values"),
        pytest.param(SCHEMES[2], int8_span(ONE * 2, magicless(b"\1" * 9), flags=1), 512, id="fewer steps than values"),
        pytest.param(SCHEMES[0], b"\0" + struct.pack("<f", np.nan), 1, id="NaN"),
        pytest.param(SCHEMES[0], b"\0" + struct.pack("<f", 3e38), 1, id="larger than is sent"),
        pytest.param(SCHEMES[0], b"\1" + struct.pack("<f", 1), 1, id="compressed fp32"),
        pytest.param(SCHEMES[1], b"\0\x70" + struct.pack("<e", np.inf), 1, id="infinite fp16"),
        pytest.param(SCHEMES[1], b"\0\0\x01\x7d", 1, id="fp16 that is a signalling NaN"),
        pytest.param(SCHEMES[1], b"\0\x71" + struct.pack("<e", 1), 1, id="power of two too large"),
        pytest.param(TOPK, b"\0\x03\x07" + ONE + b"\1\1\1", 2, id="more values than the span has"),
        pytest.param(TOPK, b"\0\x02\x05" + ONE + b"\1\1", 2, id="an index outside"),
        pytest.param(TOPK, b"\0\x02\x13" + ONE + b"\1\1", 8, id="a bit behind the last distance"),
        pytest.param(TOPK, b"\x80\x01\x01\0" + ONE + b"\1", 8, id="lower bits cut off"),
        pytest.param(TOPK, b"\x88\x02\x07" + ONE + b"\1\1", 8, id="a bitmap of another count"),
        pytest.param(TOPK, b"\x88\x02\x81" + ONE + b"\1\1", 7, id="a bitmap with a bit outside"),
        pytest.param(TOPK, b"\x90\x02\x03" + ONE + b"\1\1", 8, id="eighteen lower bits"),
        pytest.param(TOPK, b"\0\0\0", 8, id="bytes where no value is sent"),
        pytest.param(TOPK, b"\0\xff\xff\xff\x7f", 8, id="a count of more bytes than there are"),
        pytest.param(TOPK, b"\0\x80", 8, id="a count cut off"),
    ],
)
def test_bytes_that_no_encoder_writes_are_refused(scheme: Scheme, data: bytes, size: int) -> None:
    """Each of the ways in which a span can be wrong has its own check."""
    with pytest.raises(IntegrityError) as caught:
        decode_span(scheme, data, 0, size, round_index=0)
    assert caught.value.reason == "UPDATE_MALFORMED"


def test_steps_that_would_become_gigabytes_are_refused_before_they_do() -> None:
    """A frame that states a size is refused whatever it states; one that states none is bounded by the span."""
    scheme = Scheme.parse("int8")
    scales = ONE * (SPAN_VALUES // BLOCK_VALUES)
    bomb = magicless(bytes(1 << 24), states_size=True)
    with pytest.raises(IntegrityError) as caught:
        decode_span(scheme, b"\1" + scales + bomb, 0, SPAN_VALUES, round_index=0)
    assert caught.value.reason == "DECOMPRESSION_BOMB"
    with pytest.raises(IntegrityError):
        decode_span(scheme, b"\1" + scales + magicless(bytes(1 << 20)), 0, SPAN_VALUES, round_index=0)


def test_spans_that_there_are_not_are_refused() -> None:
    """A span beyond the end is the caller's mistake, not damage."""
    with pytest.raises(InvalidInputError):
        decode_span(SCHEMES[0], b"\0", 1, 100, round_index=0)
    with pytest.raises(InvalidInputError):
        encode(SCHEMES[0], update(100), round_index=0, rng=None).span(1)
