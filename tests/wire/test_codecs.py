"""Codecs against independent second opinions: torch's casts, exact fractions, and hostile bytes."""

from __future__ import annotations

import contextlib
import math
import struct
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orbitmesh.errors import IntegrityError, InvalidInputError
from orbitmesh.v1 import wire_pb2
from orbitmesh.wire.codecs import (
    CODECS,
    MAX_EXPANSION_BYTES,
    MAX_FRAME_RAW_BYTES,
    CodecContext,
    CodecId,
    codec_by_name,
    codec_table,
    decode_into,
    encode,
    max_encoded_bytes,
)
from orbitmesh.wire.tensors import (
    MAX_TENSOR_BYTES,
    MAX_TENSOR_RANK,
    DType,
    TensorSpec,
    require_little_endian,
)

ROOT = Path(__file__).resolve().parents[2]
LOSSLESS = [
    (codec.codec_id, dtype) for codec in CODECS.values() if codec.lossless for dtype in sorted(codec.dtypes)
]
EVERY = [(codec.codec_id, dtype) for codec in CODECS.values() for dtype in sorted(codec.dtypes)]
TORCH = {
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT64: torch.float64,
    DType.INT8: torch.int8,
    DType.UINT8: torch.uint8,
    DType.INT16: torch.int16,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
    DType.BOOL: torch.bool,
}


@pytest.fixture(scope="module")
def context() -> CodecContext:
    return CodecContext()


def decoded(context: CodecContext, codec: CodecId, payload: bytes, dtype: DType, size: int) -> bytes:
    out = bytearray(size)
    context.decode_into(codec, payload, dtype, memoryview(out))
    return bytes(out)


def round_trip(context: CodecContext, codec: CodecId, raw: bytes, dtype: DType) -> bytes:
    payload = context.encode(codec, raw, dtype)
    assert len(payload) <= max_encoded_bytes(codec, dtype, len(raw))
    if CODECS[codec].fixed_rate:
        assert len(payload) == max_encoded_bytes(codec, dtype, len(raw))
    return decoded(context, codec, payload, dtype, len(raw))


def weights(count: int, dtype: DType, seed: int = 7) -> bytes:
    """N(0, 0.02) of a float type, made by torch."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(count, generator=generator) * 0.02).to(TORCH[dtype])
    return values.view(torch.uint8).numpy().tobytes()


def torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


SAMPLES = [b"", b"\x00" * 8, b"\xff" * 24, bytes(range(256)) * 8, b"\x00\x00\x80\x3f" * 6000]


@pytest.mark.parametrize(("codec", "dtype"), LOSSLESS, ids=lambda value: value.name)
def test_a_lossless_codec_returns_every_bit_of_any_bytes(
    context: CodecContext, codec: CodecId, dtype: DType
) -> None:
    """Noise, constants, weights, empty frames and sizes around the work blocks come back as they were."""
    rng = np.random.default_rng(codec * 100 + dtype)
    sizes = [1, 2, 3, 255, 32 * 1024 - 1, 32 * 1024, 32 * 1024 + 1, 100_003]
    samples = SAMPLES + [rng.bytes(size * dtype.itemsize) for size in sizes]
    if dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16):
        samples += [weights(size, dtype) for size in sizes]
    for raw in samples:
        assert round_trip(context, codec, raw, dtype) == raw


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16], ids=lambda value: value.name)
def test_the_exponent_split_keeps_every_16_bit_pattern(context: CodecContext, dtype: DType) -> None:
    """All 65,536 patterns (each NaN payload, -0, each denormal) survive, in order and shuffled."""
    patterns = np.arange(65536, dtype=np.uint16)
    for values in (patterns, np.random.default_rng(1).permutation(patterns), np.repeat(patterns, 2)):
        assert round_trip(context, CodecId.EXPONENT_SPLIT_ZSTD, values.tobytes(), dtype) == values.tobytes()


def test_the_exponent_split_keeps_every_special_fp32_pattern(context: CodecContext) -> None:
    """Every exponent with either sign, with lone mantissa bits, survives inside compressible data."""
    signs, exponents = np.meshgrid([0, 1 << 31], np.arange(256) << 23)
    heads = (signs | exponents).astype(np.uint32).reshape(-1, 1)
    mantissas = np.array([0, 1, 0x7FFFFF, 0x400000] + [1 << bit for bit in range(23)], np.uint32)
    raw = (heads | mantissas).tobytes() + weights(4096, DType.FLOAT32)
    assert round_trip(context, CodecId.EXPONENT_SPLIT_ZSTD, raw, DType.FLOAT32) == raw


@given(raw=st.binary(max_size=4000), pick=st.sampled_from(LOSSLESS))
@settings(max_examples=300, deadline=None)
def test_lossless_round_trips_hold_for_arbitrary_frames(raw: bytes, pick: tuple[CodecId, DType]) -> None:
    """Whatever the bytes, cut to whole values, they come back, and never outgrow the stated bound."""
    codec, dtype = pick
    raw = raw[: len(raw) - len(raw) % dtype.itemsize]
    assert round_trip(SHARED, codec, raw, dtype) == raw


SHARED = CodecContext()


def test_weights_reach_the_ratio_that_is_promised(context: CodecContext) -> None:
    """bf16 weights take at most 0.69, fp32 and fp16 ones 0.85 of their size; noise grows by one byte."""
    limits = {DType.BFLOAT16: 0.69, DType.FLOAT32: 0.85, DType.FLOAT16: 0.85}
    for dtype, limit in limits.items():
        raw = weights(1 << 18, dtype)
        assert len(context.encode(CodecId.EXPONENT_SPLIT_ZSTD, raw, dtype)) <= limit * len(raw)
    noise = np.random.default_rng(0).bytes(1 << 20)
    for codec in (CodecId.ZSTD, CodecId.EXPONENT_SPLIT_ZSTD):
        assert len(context.encode(codec, noise, DType.FLOAT32)) == len(noise) + MAX_EXPANSION_BYTES


def test_fp32_that_came_from_bf16_or_zeros_compresses_its_other_planes(context: CodecContext) -> None:
    """Values that were bf16 once take at most 0.35 as fp32; values clipped at zero beat plain weights."""
    widened = torch.frombuffer(bytearray(weights(1 << 18, DType.BFLOAT16)), dtype=torch.bfloat16).float()
    raw = torch_bytes(widened)
    assert len(context.encode(CodecId.EXPONENT_SPLIT_ZSTD, raw, DType.FLOAT32)) <= 0.35 * len(raw)
    clipped = torch_bytes(widened.relu().to(torch.bfloat16))
    assert len(context.encode(CodecId.EXPONENT_SPLIT_ZSTD, clipped, DType.BFLOAT16)) <= 0.55 * len(clipped)


def test_a_frame_of_the_largest_size_works_and_one_more_value_is_refused(context: CodecContext) -> None:
    raw = weights(1 << 16, DType.BFLOAT16) * (MAX_FRAME_RAW_BYTES // (2 << 16))
    for codec in (CodecId.ZSTD, CodecId.EXPONENT_SPLIT_ZSTD, CodecId.INT8_BLOCK):
        back = round_trip(context, codec, raw, DType.BFLOAT16)
        assert codec is CodecId.INT8_BLOCK or back == raw
    with pytest.raises(InvalidInputError) as caught:
        context.encode(CodecId.RAW, raw + b"\x00\x00", DType.BFLOAT16)
    assert caught.value.reason == "LIMIT_EXCEEDED"


# ---- casts


def awkward_fp32(seed: int = 3) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Random bit patterns, every exponent, ties, the edges of bf16 and fp16, zeros and denormals."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 1 << 32, 300_000, dtype=np.uint32)
    heads = rng.integers(0, 1 << 16, 60_000, dtype=np.uint32) << 16
    ties = [heads | low for low in (0x7FFF, 0x8000, 0x8001, 0x1000, 0x0FFF, 0x3000)]
    edges = np.array(
        [
            0.0,
            -0.0,
            65504,
            65519.99,
            65520,
            -65520,
            3.3895e38,
            3.4e38,
            6e-8,
            2.9e-8,
            3e-8,
            1e-45,
            1e-40,
            -1e-40,
        ],
        np.float32,
    ).view(np.uint32)
    specials = np.array([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000], np.uint32)
    return np.concatenate([patterns, *ties, edges, specials]).view(np.float32)


@pytest.mark.parametrize(
    ("codec", "narrow"), [(CodecId.CAST_BFLOAT16, torch.bfloat16), (CodecId.CAST_FLOAT16, torch.float16)]
)
def test_casts_equal_those_of_torch_bit_for_bit(
    context: CodecContext, codec: CodecId, narrow: torch.dtype
) -> None:
    """Both ways, for all values but NaN, which must stay NaN (its payload is nobody's promise)."""
    values = awkward_fp32()
    payload = context.encode(codec, values.data, DType.FLOAT32)
    expected = torch.from_numpy(values.copy()).to(narrow)
    ours = torch.frombuffer(bytearray(payload), dtype=narrow)
    nan = torch.isnan(expected)
    assert nan.any() and torch.equal(torch.isnan(ours), nan)
    assert torch.equal(ours.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])
    back = np.frombuffer(decoded(context, codec, payload, DType.FLOAT32, values.nbytes), np.uint32)
    assert torch.equal(torch.from_numpy(back.copy()).view(torch.float32)[~nan], expected.float()[~nan])
    assert np.isnan(back.view(np.float32)[nan.numpy()]).all()


def test_every_nan_of_fp32_stays_nan_through_a_cast(context: CodecContext) -> None:
    """Also those whose mantissa would round over into infinity or wrap around to zero."""
    mantissas = np.array([1, 0x7FFF, 0x8000, 0xFFFF, 0x3FFFFF, 0x400000, 0x7FFFFF, 0x7F8000], np.uint32)
    values = np.concatenate([0x7F800000 | mantissas, 0xFF800000 | mantissas]).astype(np.uint32)
    for codec in (CodecId.CAST_BFLOAT16, CodecId.CAST_FLOAT16):
        back = np.frombuffer(round_trip(context, codec, values.tobytes(), DType.FLOAT32), np.float32)
        assert np.isnan(back).all()
        assert (np.signbit(back) == np.signbit(values.view(np.float32))).all()


def finite_float32(bound: float) -> st.SearchStrategy[float]:
    return st.floats(min_value=-bound, max_value=bound, width=32, allow_nan=False, allow_infinity=False)


LARGEST_BF16 = math.ldexp(255, 120)


@given(values=st.lists(finite_float32(LARGEST_BF16), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_bf16_cast_keeps_its_stated_bound_in_exact_arithmetic(values: list[float]) -> None:
    """abs(x - y) <= max(2^-8 abs(x), 2^-134), checked with fractions."""
    raw = np.array(values, np.float32).tobytes()
    back = np.frombuffer(round_trip(SHARED, CodecId.CAST_BFLOAT16, raw, DType.FLOAT32), np.float32)
    for sent, received in zip(values, back.tolist(), strict=True):
        x, y = Fraction(sent), Fraction(received)
        assert abs(x - y) <= max(abs(x) / 2**8, Fraction(1, 2**134))


@given(values=st.lists(finite_float32(65504.0), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_fp16_cast_keeps_its_stated_bound_in_exact_arithmetic(values: list[float]) -> None:
    """abs(x - y) <= max(2^-11 abs(x), 2^-25), checked with fractions."""
    raw = np.array(values, np.float32).tobytes()
    back = np.frombuffer(round_trip(SHARED, CodecId.CAST_FLOAT16, raw, DType.FLOAT32), np.float32)
    for sent, received in zip(values, back.tolist(), strict=True):
        x, y = Fraction(sent), Fraction(received)
        assert abs(x - y) <= max(abs(x) / 2**11, Fraction(1, 2**25))


@pytest.mark.parametrize(
    ("codec", "largest", "overflows"),
    [(CodecId.CAST_BFLOAT16, LARGEST_BF16, math.ldexp(511, 119)), (CodecId.CAST_FLOAT16, 65504.0, 65520.0)],
)
def test_a_cast_overflows_exactly_where_its_table_says(
    context: CodecContext, codec: CodecId, largest: float, overflows: float
) -> None:
    """The value just under the edge becomes the largest finite one; the edge itself becomes infinite."""
    under = np.nextafter(np.float32(overflows), np.float32(0))
    raw = np.array([under, overflows, -under, -overflows], np.float32).tobytes()
    back = np.frombuffer(round_trip(context, codec, raw, DType.FLOAT32), np.float32)
    assert back.tolist() == [largest, math.inf, -largest, -math.inf]
    with pytest.raises(InvalidInputError) as caught:
        context.encode(codec, raw, DType.FLOAT32, refuse_non_finite=True)
    assert caught.value.reason == "NOT_FINITE"


# ---- int8 blocks


def as_values(raw: bytes, dtype: DType) -> list[float]:
    """The values of raw bytes, read by torch."""
    if not raw:
        return []
    return torch.frombuffer(bytearray(raw), dtype=TORCH[dtype]).double().tolist()


def int8_bound(largest: Fraction, value: float, dtype: DType) -> Fraction:
    """The stated bound for one value of a block with that largest magnitude, in exact arithmetic."""
    steps = max(largest / 254, Fraction(1, 2**127)) * (1 + Fraction(1, 2**14))
    received = abs(Fraction(value)) + steps
    if dtype is DType.BFLOAT16:
        return steps + max(received / 2**8, Fraction(1, 2**134))
    if dtype is DType.FLOAT16:
        return steps + max(received / 2**11, Fraction(1, 2**25))
    return steps


def block_samples(dtype: DType) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    spread = torch.randn(1500, generator=generator) * torch.logspace(-30, 30, 1500)
    largest = torch.finfo(TORCH[dtype]).max
    tiny = torch.finfo(TORCH[dtype]).smallest_normal / 8
    samples = [
        torch.randn(1, generator=generator),
        torch.randn(255, generator=generator) * 0.02,
        torch.randn(1025, generator=generator) * 0.02,
        torch.zeros(700),
        torch.full((300,), largest),
        torch.tensor([largest, -largest, 1.0, 0.0, -0.0]),
        torch.tensor([tiny, -tiny, tiny / 3, 0.0]),
        torch.cat(
            [torch.zeros(256), torch.tensor([1e4]), torch.zeros(255), torch.randn(10, generator=generator)]
        ),
        spread.clamp(-largest, largest),
    ]
    return [sample.to(TORCH[dtype]) for sample in samples]


@pytest.mark.parametrize(
    "dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16], ids=lambda value: value.name
)
def test_int8_blocks_keep_their_stated_bound_in_exact_arithmetic(context: CodecContext, dtype: DType) -> None:
    """For weights, outliers, zeros, denormals, the largest value there is, and blocks cut short."""
    for sample in block_samples(dtype):
        raw = torch_bytes(sample)
        back = as_values(round_trip(context, CodecId.INT8_BLOCK, raw, dtype), dtype)
        sent = as_values(raw, dtype)
        largest = [Fraction(max(map(abs, sent[start : start + 256]))) for start in range(0, len(sent), 256)]
        for index, (x, y) in enumerate(zip(sent, back, strict=True)):
            assert math.isfinite(y), (x, y)
            assert abs(Fraction(x) - Fraction(y)) <= int8_bound(largest[index // 256], x, dtype), (x, y)


def test_int8_blocks_agree_with_a_plain_loop(context: CodecContext) -> None:
    """Step and scale of every value are the textbook formula's, up to ties that may tip either way."""
    raw = weights(1000, DType.FLOAT32, seed=5)
    values = as_values(raw, DType.FLOAT32)
    payload = context.encode(CodecId.INT8_BLOCK, raw, DType.FLOAT32)
    scales = struct.unpack("<4f", payload[:16])
    steps = struct.unpack("<1000b", payload[16:])
    for index, value in enumerate(values):
        block = values[index - index % 256 : index - index % 256 + 256]
        scale = max(map(abs, block)) / 127
        assert scales[index // 256] == pytest.approx(scale, rel=1e-6)
        assert abs(steps[index] - value / scale) <= 0.5 + 1e-4


def test_a_small_value_keeps_its_precision_beside_an_outlier_in_another_block(context: CodecContext) -> None:
    """A scale belongs to its block alone: a tensor-wide one would round every small value here to zero."""
    values = torch.full((512,), 1e-3)
    values[0] = 1e6
    back = as_values(
        round_trip(context, CodecId.INT8_BLOCK, torch_bytes(values), DType.FLOAT32), DType.FLOAT32
    )
    assert back[300] == pytest.approx(1e-3, rel=1e-2)
    assert back[100] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16], ids=lambda value: value.name
)
def test_nan_and_infinity_are_refused_where_they_cannot_be_carried(
    context: CodecContext, dtype: DType, bad: float
) -> None:
    """int8 blocks refuse them always, any codec when asked to; the error names the element."""
    values = torch.zeros(70_000, dtype=TORCH[dtype])
    values[66_000] = bad
    raw = torch_bytes(values)
    with pytest.raises(InvalidInputError, match="element 66000") as caught:
        context.encode(CodecId.INT8_BLOCK, raw, dtype)
    assert caught.value.reason == "NOT_FINITE"
    for codec in (CodecId.RAW, CodecId.EXPONENT_SPLIT_ZSTD):
        with pytest.raises(InvalidInputError, match="element 66000") as caught:
            context.encode(codec, raw, dtype, refuse_non_finite=True)
        assert caught.value.reason == "NOT_FINITE"
        assert decoded(context, codec, context.encode(codec, raw, dtype), dtype, len(raw)) == raw


def test_refusing_non_finite_lets_every_finite_value_pass(context: CodecContext) -> None:
    """The largest and smallest finite values of each float type pass, and integers of any pattern."""
    for dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64):
        finfo = torch.finfo(TORCH[dtype])
        raw = torch_bytes(
            torch.tensor([finfo.max, finfo.min, finfo.smallest_normal, 0.0], dtype=TORCH[dtype])
        )
        assert context.encode(CodecId.RAW, raw, dtype, refuse_non_finite=True) == raw
    assert context.encode(CodecId.RAW, b"\xff" * 8, DType.INT64, refuse_non_finite=True) == b"\xff" * 8


# ---- hostile payloads


def attempt(codec: CodecId, payload: bytes, dtype: DType, size: int) -> None:
    """Decode: exactly `size` bytes or an IntegrityError; canaries show writes outside `out`."""
    memory = bytearray(b"\xa5" * (size + 32))
    with contextlib.suppress(IntegrityError):
        SHARED.decode_into(codec, payload, dtype, memoryview(memory)[16 : 16 + size])
    assert memory[:16] == b"\xa5" * 16
    assert memory[-16:] == b"\xa5" * 16


@given(payload=st.binary(max_size=600), pick=st.sampled_from(EVERY), count=st.integers(0, 300))
@settings(max_examples=500, deadline=None)
@example(payload=b"", pick=(CodecId.ZSTD, DType.UINT8), count=0)
@example(payload=b"\x07" + b"\xff" * 12, pick=(CodecId.EXPONENT_SPLIT_ZSTD, DType.FLOAT32), count=4)
def test_random_bytes_decode_to_a_typed_error_or_the_exact_length(
    payload: bytes, pick: tuple[CodecId, DType], count: int
) -> None:
    """Nothing else is raised, and nothing is written outside the memory given."""
    attempt(pick[0], payload, pick[1], count * pick[1].itemsize)


@given(
    pick=st.sampled_from(EVERY),
    count=st.integers(1, 2000),
    announced=st.integers(-3, 3),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    tail=st.binary(max_size=5),
)
@settings(max_examples=600, deadline=None)
def test_a_mutated_payload_decodes_to_a_typed_error_or_the_exact_length(
    pick: tuple[CodecId, DType],
    count: int,
    announced: int,
    changes: list[tuple[float, int]],
    keep: float,
    tail: bytes,
) -> None:
    """Valid payloads with bytes flipped, cut, appended, or opened under another length."""
    codec, dtype = pick
    raw = (weights(2000, DType.FLOAT32) * 2)[: count * dtype.itemsize]
    if codec is CodecId.INT8_BLOCK:
        raw = weights(count, dtype)
    payload = bytearray(SHARED.encode(codec, raw, dtype))
    for where, flip in changes:
        payload[int(where * len(payload))] ^= flip
    mutated = bytes(payload[: int(keep * len(payload))]) + tail
    attempt(codec, mutated, dtype, max(0, count + announced) * dtype.itemsize)


@pytest.mark.parametrize(("codec", "dtype"), EVERY, ids=lambda value: value.name)
def test_a_payload_of_another_length_than_announced_is_refused(
    context: CodecContext, codec: CodecId, dtype: DType
) -> None:
    """Longer is a decompression bomb, shorter is damage, for every codec and type."""
    raw = bytes(1024 * dtype.itemsize)
    payload = context.encode(codec, raw, dtype)
    with pytest.raises(IntegrityError) as caught:
        decoded(context, codec, payload, dtype, 512 * dtype.itemsize)
    assert caught.value.reason == "DECOMPRESSION_BOMB"
    with pytest.raises(IntegrityError) as caught:
        decoded(context, codec, payload, dtype, 2048 * dtype.itemsize)
    assert caught.value.reason == "INTEGRITY"


def bomb(size: int, *, write_content_size: bool) -> bytes:
    """A few kilobytes of zstd that become `size` zeros."""
    compressor = zstandard.ZstdCompressor(level=19, write_content_size=write_content_size)
    return compressor.compress(bytes(size))


@pytest.mark.parametrize("stated", [True, False], ids=["size stated", "size hidden"])
def test_a_bomb_is_refused_before_memory_is_taken_for_it(context: CodecContext, stated: bool) -> None:
    """64 MiB of zeros in a few KiB: refused as DECOMPRESSION_BOMB, with less than 1 MiB taken on the way."""
    body = bomb(64 * 1024**2, write_content_size=stated)
    split = b"\x01" + struct.pack("<I", len(body)) + body + bytes(512)
    out = memoryview(bytearray(1024))
    decoded(context, CodecId.ZSTD, context.encode(CodecId.ZSTD, bytes(64), DType.UINT8), DType.UINT8, 64)
    tracemalloc.start()
    try:
        for codec, payload in ((CodecId.ZSTD, b"\x01" + body), (CodecId.EXPONENT_SPLIT_ZSTD, split)):
            with pytest.raises(IntegrityError) as caught:
                context.decode_into(codec, payload, DType.BFLOAT16, out)
            assert caught.value.reason == "DECOMPRESSION_BOMB"
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()


def test_a_frame_that_lies_about_its_length_is_refused(context: CodecContext) -> None:
    """The header states what is announced, the blocks hold more: zstd's own check ends it there."""
    honest = bytearray(zstandard.ZstdCompressor().compress(bytes(4096)))
    # Header of a 4096-byte single segment: magic, descriptor, u16 of size - 256 (RFC 8878, 3.1.1.1).
    assert struct.unpack_from("<H", honest, 5)[0] == 4096 - 256
    struct.pack_into("<H", honest, 5, 1024 - 256)
    assert zstandard.get_frame_parameters(bytes(honest)).content_size == 1024
    with pytest.raises(IntegrityError):
        decoded(context, CodecId.ZSTD, b"\x01" + bytes(honest), DType.UINT8, 1024)


def test_a_frame_that_asks_for_a_large_window_is_refused(context: CodecContext) -> None:
    """A window beyond the announced length is memory that no honest encoder needs."""
    # RFC 8878: magic, descriptor (u16 size, a window byte), window 2^24, size - 256, one last RLE block.
    header = struct.pack("<IBBH", zstandard.MAGIC_NUMBER, 0x40, (24 - 10) << 3, 2048 - 256)
    body = header + ((2048 << 3) | 0b011).to_bytes(3, "little") + b"\x00"
    assert zstandard.ZstdDecompressor().decompress(body) == bytes(2048)
    with pytest.raises(IntegrityError, match="window"):
        decoded(context, CodecId.ZSTD, b"\x01" + body, DType.UINT8, 2048)


@pytest.mark.parametrize(("codec", "dtype"), EVERY, ids=lambda value: value.name)
def test_a_payload_cut_by_a_byte_or_grown_by_one_is_refused(
    context: CodecContext, codec: CodecId, dtype: DType
) -> None:
    """Also where what is left over stands behind a complete zstd frame."""
    raw = bytes(1024 * dtype.itemsize)
    payload = context.encode(codec, raw, dtype)
    for damaged in (payload[:-1], payload + b"\x00", payload + payload[1:]):
        with pytest.raises(IntegrityError):
            decoded(context, codec, damaged, dtype, len(raw))


@pytest.mark.parametrize(
    "codec", [CodecId.EXPONENT_SPLIT_ZSTD, CodecId.ZSTD, CodecId.INT8_BLOCK], ids=lambda c: c.name
)
def test_decoding_takes_no_more_memory_than_the_raw_length_and_a_constant(
    context: CodecContext, codec: CodecId
) -> None:
    """The peak while decoding 8 MiB stays under 8 MiB plus 1.5 MiB of working memory."""
    size = 8 * 1024**2
    for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        raw = weights(1 << 16, dtype) * (size // ((1 << 16) * dtype.itemsize))
        payload = context.encode(codec, raw, dtype)
        out = memoryview(bytearray(size))
        context.decode_into(codec, payload, dtype, out)
        tracemalloc.start()
        try:
            context.decode_into(codec, payload, dtype, out)
            assert tracemalloc.get_traced_memory()[1] <= size + 1.5 * 1024**2
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("scale", "step"), [(math.nan, 1), (math.inf, 1), (-1.0, 1), (0.0, 1), (3e38, 1), (1.0, -128)]
)
def test_int8_scales_and_steps_that_no_encoder_writes_are_refused(
    context: CodecContext, scale: float, step: int
) -> None:
    payload = struct.pack("<f4b", scale, 0, step, 0, 0)
    with pytest.raises(IntegrityError):
        decoded(context, CodecId.INT8_BLOCK, payload, DType.FLOAT32, 16)


# ---- callers' mistakes


def test_a_codec_refuses_types_it_does_not_take_and_frames_cut_inside_a_value(context: CodecContext) -> None:
    for codec in CODECS.values():
        for dtype in set(DType) - codec.dtypes:
            with pytest.raises(InvalidInputError) as caught:
                context.encode(codec.codec_id, bytes(64), dtype)
            assert caught.value.reason == "DTYPE_MISMATCH"
            with pytest.raises(InvalidInputError):
                context.decode_into(codec.codec_id, bytes(64), dtype, memoryview(bytearray(64)))
        wide = sorted(dtype for dtype in codec.dtypes if dtype.itemsize > 1)
        for dtype in wide:
            with pytest.raises(InvalidInputError, match="whole number"):
                context.encode(codec.codec_id, bytes(2 * dtype.itemsize + 1), dtype)
            with pytest.raises(InvalidInputError, match="whole number"):
                max_encoded_bytes(codec.codec_id, dtype, 2 * dtype.itemsize + 1)
    with pytest.raises(InvalidInputError, match="there is no codec 0"):
        context.encode(CodecId.UNSPECIFIED, b"", DType.UINT8)


def test_strided_and_read_only_memory_is_refused_and_multi_dimensional_memory_taken(
    context: CodecContext,
) -> None:
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    with pytest.raises(InvalidInputError, match="contiguous"):
        context.encode(CodecId.RAW, grid.T.data, DType.FLOAT32)
    with pytest.raises(InvalidInputError, match="contiguous"):
        context.decode_into(CodecId.RAW, bytes(96), DType.FLOAT32, np.empty((6, 4), np.float32).T.data)
    with pytest.raises(InvalidInputError, match="read-only"):
        context.decode_into(CodecId.RAW, bytes(96), DType.FLOAT32, memoryview(bytes(96)))
    target = np.empty_like(grid)
    payload = context.encode(CodecId.EXPONENT_SPLIT_ZSTD, grid.data, DType.FLOAT32)
    context.decode_into(CodecId.EXPONENT_SPLIT_ZSTD, payload, DType.FLOAT32, target.data)
    assert (target == grid).all()
    empty = np.empty((3, 0, 2), np.float32)
    assert context.encode(CodecId.RAW, empty.data, DType.FLOAT32) == b""


def test_decoding_works_at_an_odd_address(context: CodecContext) -> None:
    """`out` may be a slice of a larger buffer that starts anywhere."""
    raw = weights(5000, DType.FLOAT32)
    for codec in (
        CodecId.EXPONENT_SPLIT_ZSTD,
        CodecId.CAST_BFLOAT16,
        CodecId.CAST_FLOAT16,
        CodecId.INT8_BLOCK,
    ):
        payload = b"\x00" + context.encode(codec, memoryview(b"\x00" + raw)[1:], DType.FLOAT32)
        straight = decoded(context, codec, payload[1:], DType.FLOAT32, len(raw))
        odd = bytearray(len(raw) + 1)
        context.decode_into(codec, memoryview(payload)[1:], DType.FLOAT32, memoryview(odd)[1:])
        assert odd[1:] == straight


def test_one_context_serves_many_threads_at_once() -> None:
    """Four threads code different data through one context; each gets its own back, every time."""
    context = CodecContext()
    wrong: list[int] = []

    def work(seed: int) -> None:
        raw = weights(60_000, DType.BFLOAT16, seed)
        for _ in range(10):
            for codec in (CodecId.EXPONENT_SPLIT_ZSTD, CodecId.ZSTD):
                if round_trip(context, codec, raw, DType.BFLOAT16) != raw:
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_module_functions_do_what_a_context_does(context: CodecContext) -> None:
    raw = weights(1000, DType.BFLOAT16)
    payload = encode(CodecId.EXPONENT_SPLIT_ZSTD, raw, DType.BFLOAT16)
    assert payload == context.encode(CodecId.EXPONENT_SPLIT_ZSTD, raw, DType.BFLOAT16)
    out = bytearray(len(raw))
    decode_into(CodecId.EXPONENT_SPLIT_ZSTD, payload, DType.BFLOAT16, memoryview(out))
    assert out == raw


# ---- names, table, tensors


def test_a_codec_is_found_by_name_and_an_unknown_name_lists_the_valid_ones() -> None:
    for codec in CODECS.values():
        assert codec_by_name(codec.name) is codec
    with pytest.raises(InvalidInputError) as caught:
        codec_by_name("gzip")
    for codec in CODECS.values():
        assert codec.name in caught.value.message


def test_the_documentation_holds_exactly_the_table_of_the_code() -> None:
    text = (ROOT / "docs" / "codecs.md").read_text(encoding="utf-8")
    assert text.count(codec_table()) == 1
    assert codec_table().count("\n") == 2 + len(CODECS)


def test_importing_the_wire_package_and_its_catalogue_loads_no_numpy_and_no_zstandard() -> None:
    """The SDK's base install has neither."""
    code = (
        "import sys, orbitmesh.wire, orbitmesh.wire.tensors, orbitmesh.wire.catalog; "
        "sys.exit(int(any(name in sys.modules for name in ('numpy', 'zstandard', 'torch'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_codecs_need_no_torch() -> None:
    code = "import sys, orbitmesh.wire.codecs, orbitmesh.wire.policy; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_numbers_are_those_of_the_contract() -> None:
    """`DType` and `CodecId` and the enums of the protos agree, name by name."""
    for ours, theirs, prefix in ((DType, wire_pb2.Dtype, "DTYPE_"), (CodecId, wire_pb2.Codec, "CODEC_")):
        assert {prefix + member.name: member.value for member in ours} == dict(theirs.items())


def test_types_have_the_sizes_that_torch_gives_them() -> None:
    for dtype, theirs in TORCH.items():
        assert dtype.itemsize == theirs.itemsize
        assert dtype.is_float == theirs.is_floating_point
    with pytest.raises(InvalidInputError):
        _ = DType.UNSPECIFIED.itemsize


@given(shape=st.lists(st.integers(0, 9), max_size=MAX_TENSOR_RANK), dtype=st.sampled_from(sorted(TORCH)))
@settings(max_examples=100, deadline=None)
def test_a_spec_counts_as_torch_does(shape: list[int], dtype: DType) -> None:
    spec = TensorSpec(dtype, tuple(shape))
    tensor = torch.empty(shape, dtype=TORCH[dtype], device="meta")
    assert (spec.count, spec.size_bytes) == (tensor.numel(), tensor.nbytes)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1,) * (MAX_TENSOR_RANK + 1), DType.INT8, "LIMIT_EXCEEDED"),
        ((MAX_TENSOR_BYTES + 1,), DType.INT8, "LIMIT_EXCEEDED"),
        ((1 << 40, 1 << 40), DType.FLOAT32, "LIMIT_EXCEEDED"),
        ((2, -1), DType.FLOAT32, "INVALID_INPUT"),
        ((2.0,), DType.FLOAT32, "INVALID_INPUT"),
        ((True,), DType.FLOAT32, "INVALID_INPUT"),
        ((2,), DType.UNSPECIFIED, "DTYPE_MISMATCH"),
    ],
)
def test_an_impossible_spec_is_refused(shape: tuple[int, ...], dtype: DType, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        TensorSpec(dtype, shape)
    assert caught.value.reason == reason


def test_the_largest_spec_is_allowed() -> None:
    assert TensorSpec(DType.INT8, (MAX_TENSOR_BYTES,)).size_bytes == MAX_TENSOR_BYTES


def test_a_big_endian_host_is_refused() -> None:
    require_little_endian("little")
    with pytest.raises(InvalidInputError, match="big-endian"):
        require_little_endian("big")
