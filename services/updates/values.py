"""A run of values as bytes, in each number format. Everything is little-endian.

    fp32          4 bytes each
    fp16          i8 power of two, then 2 bytes each: value = half * 2**power
    int8, int4    u16 scale (bf16) per begun block of 256, then a step of 8 or 4 bits each; of two in a byte
                  the first is in the lower half

The steps of int8 and int4 are compressed where that makes them smaller: most of them are small numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import zstandard

from orbitmesh.errors import IntegrityError, InvalidInputError
from services.updates.faults import malformed
from services.updates.quantise import BLOCK_VALUES, MAX_MAGNITUDE, from_steps, to_steps
from services.updates.scheme import Number
from services.updates.spans import Floats

STEP_BITS = {Number.INT8: 8, Number.INT4: 4}
"""Bits of a step, of the formats that have steps."""
MAX_POWER = 112
"""The largest power of two of a span of fp16, and the smallest with its sign turned."""
_HALF_EXPONENT = 14
"""Values are brought below 2**15, clear of the largest fp16 (65504)."""
_LARGEST_FP16 = np.uint16(0x7800)
"""2**15 as fp16: what a value just below it is rounded to."""
_LARGEST_FP32 = np.float32(MAX_MAGNITUDE).view(np.uint32)
_ZSTD_LEVEL = 1
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
"""Without the four bytes that say what it is, which the flags of a span say already."""
_MAX_WINDOW_BYTES = 1 << 20


def packed_bytes(number: Number, count: int) -> int:
    """The size of `count` values, uncompressed: the most that `pack` returns."""
    if number is Number.FP32:
        return 4 * count
    if number is Number.FP16:
        return 1 + 2 * count
    return _scale_bytes(count) + _step_bytes(STEP_BITS[number], count)


def pack(number: Number, values: Floats, rng: np.random.Generator | None) -> tuple[bytes, bool]:
    """Values of shape (n,), n > 0, as bytes, and whether the steps in them are compressed.

    Args:
        number: The format.
        values: What is packed.
        rng: Rounds steps stochastically with it, to nearest without.

    Raises:
        InvalidInputError: A value is NaN, infinite or beyond `quantise.MAX_MAGNITUDE` (NOT_FINITE).
    """
    largest = float(np.max(np.abs(values)))
    if not largest <= MAX_MAGNITUDE:  # NaN too
        raise InvalidInputError(
            f"an update holds a value that is NaN, infinite or beyond {MAX_MAGNITUDE:.1e}", reason="NOT_FINITE"
        )
    if number is Number.FP32:
        return values.astype("<f4", copy=False).tobytes(), False
    if number is Number.FP16:
        power = max(-MAX_POWER, int(np.frexp(np.float32(largest))[1]) - 1 - _HALF_EXPONENT) if largest else 0
        halves = (values * np.float32(2.0**-power)).astype("<f2")
        return power.to_bytes(1, "little", signed=True) + halves.tobytes(), False
    bits = STEP_BITS[number]
    scales, steps = to_steps(values, bits, rng)
    plain = steps.tobytes() if bits == 8 else _to_nibbles(steps).tobytes()
    packed = _compress(plain)
    pays = len(packed) < len(plain)
    return scales.astype("<u2", copy=False).tobytes() + (packed if pays else plain), pays


def unpack(number: Number, data: memoryview, count: int, *, is_compressed: bool) -> Floats:
    """Undoes `pack`: float32 of shape (count,), finite whatever the bytes are.

    Raises:
        IntegrityError: The bytes are too few, too many, or none that `pack` returns (UPDATE_MALFORMED).
    """
    if number not in STEP_BITS:
        if is_compressed or len(data) != packed_bytes(number, count):
            raise malformed(f"{count} values of {number.value} came as {len(data)} bytes")
        return _unpack_floats(number, data)
    bits = STEP_BITS[number]
    scale_bytes, step_bytes = _scale_bytes(count), _step_bytes(bits, count)
    rest = data[scale_bytes:]
    steps_at_most = step_bytes - 1 if is_compressed else step_bytes
    if len(data) < scale_bytes or len(rest) > steps_at_most or (not is_compressed and len(rest) < step_bytes):
        raise malformed(f"{count} values of {number.value} came as {len(data)} bytes")
    plain = _decompress(rest, step_bytes) if is_compressed else rest
    steps = np.frombuffer(plain, np.int8)
    scales = np.frombuffer(data[:scale_bytes], "<u2").astype(np.uint16, copy=False)
    return from_steps(scales, _from_nibbles(steps, count) if bits == 4 else steps, bits)


def _unpack_floats(number: Number, data: memoryview) -> Floats:
    # Compared as bits, because arithmetic on a NaN that somebody made up warns.
    if number is Number.FP32:
        values = np.frombuffer(data, "<f4").astype(np.float32)
        if bool(((values.view(np.uint32) & np.uint32(0x7FFFFFFF)) > _LARGEST_FP32).any()):
            raise malformed("a value of fp32 is NaN, infinite or larger than is sent")
        return values
    power = int.from_bytes(data[:1], "little", signed=True)
    if abs(power) > MAX_POWER:
        raise malformed(f"a span of fp16 has the power {power}, outside -{MAX_POWER} to {MAX_POWER}")
    halves = np.frombuffer(data[1:], "<u2").astype(np.uint16)
    if bool(((halves & np.uint16(0x7FFF)) > _LARGEST_FP16).any()):
        raise malformed("a value of fp16 is NaN, infinite or larger than is sent")
    return halves.view(np.float16).astype(np.float32) * np.float32(2.0**power)


def _scale_bytes(count: int) -> int:
    return 2 * -(-count // BLOCK_VALUES)


def _step_bytes(bits: int, count: int) -> int:
    return -(-count * bits // 8)


def _to_nibbles(steps: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    halves = np.pad(steps, (0, steps.size % 2)).view(np.uint8) & np.uint8(15)
    return halves[0::2] | (halves[1::2] << np.uint8(4))


def _from_nibbles(packed: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.int8]:
    halves = np.empty(2 * packed.size, np.int8)
    # Shifting a signed number right keeps its sign, so the lower half goes up first.
    np.right_shift(np.left_shift(packed, 4), 4, out=halves[0::2])
    np.right_shift(packed, 4, out=halves[1::2])
    if halves[count:].any():
        raise malformed("the half byte behind the last step is not 0")
    return halves[:count]


def _compress(plain: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL, format=_FORMAT, source_size=len(plain), write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


def _decompress(packed: memoryview, size: int) -> bytes:
    try:
        # zstandard allocates whatever size a frame states, so frames that state one are refused: ours state none.
        stated = zstandard.get_frame_parameters(packed, format=_FORMAT)
        if stated.content_size != zstandard.CONTENTSIZE_UNKNOWN or stated.window_size > _MAX_WINDOW_BYTES:
            raise IntegrityError(
                f"compressed steps state a size of {stated.content_size} bytes and a window of {stated.window_size}, "
                f"expected none and at most {_MAX_WINDOW_BYTES}; refused",
                reason="DECOMPRESSION_BOMB",
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES, format=_FORMAT)
        plain = decompressor.decompress(packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise malformed(f"compressed steps do not decompress to {size} bytes ({error})") from None
    if len(plain) != size:
        raise malformed(f"compressed steps have {len(plain)} bytes, expected {size}")
    return plain
