"""The lossy number formats: bf16 and fp16 casts of fp32, and int8 blocks, each with a bound on its error.

bf16 values are handled as their 16 bits (numpy has no such type). All of it works block by block, so that
temporaries stay small; none of it keeps state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import IntegrityError, InvalidInputError
from orbitmesh.wire.tensors import DType

Floats: TypeAlias = npt.NDArray[np.float32]

INT8_BLOCK_VALUES = 256
"""Values that share one scale in the int8 format."""
SCALE_BYTES = 4
"""Size of one block's scale, an fp32: its range is needed because bf16 and fp32 values have it too."""
WORK_VALUES = 64 * 1024
"""Values worked on at a time; a multiple of INT8_BLOCK_VALUES, small enough for the second-level cache."""

_MIN_SCALE = np.float32(2.0**-126)
_MAX_SCALE = np.float32(np.finfo(np.float32).max / 127)
# A shade under 1/127, so that 127 * scale never rounds above the block's largest value, and so never to
# infinity.
_PER_STEP = np.float32((1 - 2.0**-22) / 127)

_EXPONENT_MASKS: Mapping[DType, np.uint16 | np.uint32 | np.uint64] = {
    DType.FLOAT32: np.uint32(0x7F80_0000),
    DType.FLOAT16: np.uint16(0x7C00),
    DType.BFLOAT16: np.uint16(0x7F80),
    DType.FLOAT64: np.uint64(0x7FF0_0000_0000_0000),
}


def refuse_non_finite(data: memoryview, dtype: DType, what: str = "the tensor") -> None:
    """Check the raw bytes of a floating-point type; any other type passes.

    Raises:
        InvalidInputError: A value is NaN or infinite (NOT_FINITE).
    """
    if dtype not in _EXPONENT_MASKS:
        return
    mask = _EXPONENT_MASKS[dtype]
    values: npt.NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, mask.dtype)
    for start in range(0, values.size, WORK_VALUES):
        bad = np.flatnonzero((values[start : start + WORK_VALUES] & mask) == mask)
        if bad.size:
            raise InvalidInputError(
                f"{what} holds NaN or infinity (first at element {start + int(bad[0])} of the frame) where "
                "finite values are required; find where it arises, or send it with a codec that accepts it",
                reason="NOT_FINITE",
            )


def float32_to_bfloat16(data: memoryview) -> bytes:
    """fp32 bytes as bf16 bytes, rounded to nearest, ties to even; what is above the largest becomes infinite.

    NaN stays NaN (made quiet, sign kept): adding the rounding bias alone could carry its mantissa over into
    infinity.
    """
    bits = np.frombuffer(data, np.uint32)
    out = np.empty(bits.size, np.uint16)
    for start in range(0, bits.size, WORK_VALUES):
        block = bits[start : start + WORK_VALUES]
        rounded = block >> np.uint32(16)
        tie = rounded & np.uint32(1)
        tie += np.uint32(0x7FFF)
        tie += block  # may wrap, but only for NaN, which is mended below
        tie >>= np.uint32(16)
        part = out[start : start + WORK_VALUES]
        part[...] = tie
        nan = (block & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
        if nan.any():
            part[nan] = rounded[nan] | np.uint32(0x40)
    return out.tobytes()


def bfloat16_to_float32(payload: memoryview, out: memoryview) -> None:
    """bf16 bytes as fp32 bytes into `out` (twice as long), exactly."""
    target = np.frombuffer(out, np.uint32)
    np.left_shift(np.frombuffer(payload, np.uint16), 16, out=target, dtype=np.uint32)


def float32_to_float16(data: memoryview) -> bytes:
    """fp32 bytes as fp16 bytes, rounded to nearest, ties to even; from 65520 on they become infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.frombuffer(data, np.float32).astype(np.float16).tobytes()


def float16_to_float32(payload: memoryview, out: memoryview) -> None:
    """fp16 bytes as fp32 bytes into `out` (twice as long), exactly."""
    with np.errstate(invalid="ignore"):
        np.frombuffer(out, np.float32)[...] = np.frombuffer(payload, np.float16)


def int8_block_bytes(count: int) -> int:
    """The size of `count` values in the int8 format: one scale per begun block, then one byte per value."""
    return SCALE_BYTES * -(-count // INT8_BLOCK_VALUES) + count


def to_int8_blocks(data: memoryview, dtype: DType) -> bytes:
    """fp32, fp16 or bf16 as scales (fp32 each) followed by int8 steps: value = step * scale of its block.

    The scale is the block's largest magnitude / 127 (absmax quantisation, arXiv 2110.02861), never below
    2**-126, so a block of zeros needs no special case.

    Raises:
        InvalidInputError: A value is NaN or infinite (NOT_FINITE); it would ruin the whole block.
    """
    count = len(data) // dtype.itemsize
    scales = np.empty(-(-count // INT8_BLOCK_VALUES), np.float32)
    steps = np.empty(count, np.int8)
    for start in range(0, count, WORK_VALUES):
        stop = min(start + WORK_VALUES, count)
        values = _as_float32(data[start * dtype.itemsize : stop * dtype.itemsize], dtype)
        blocks = _padded_blocks(values)
        largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
        if not np.isfinite(largest).all():
            refuse_non_finite(data, dtype, "a tensor to be sent as int8 blocks")
        scale = np.maximum(largest * _PER_STEP, _MIN_SCALE)
        first_block = start // INT8_BLOCK_VALUES
        scales[first_block : first_block + scale.size] = scale
        scaled = blocks * (np.float32(1) / scale)[:, np.newaxis]
        np.rint(scaled, out=scaled)
        steps[start:stop] = scaled.reshape(-1)[: stop - start]
    return b"".join((scales.data, steps.data))


def from_int8_blocks(payload: memoryview, out: memoryview, dtype: DType) -> None:
    """Undo `to_int8_blocks` into `out`, rounding to `dtype`; `payload` has the size `int8_block_bytes` says.

    Raises:
        IntegrityError: A scale or a step is one that no encoder writes.
    """
    count = len(out) // dtype.itemsize
    scales = np.frombuffer(payload, np.float32, -(-count // INT8_BLOCK_VALUES))
    steps = np.frombuffer(payload, np.int8, count, offset=scales.nbytes)
    # Written so that NaN fails too.
    if not bool(((scales >= _MIN_SCALE) & (scales <= _MAX_SCALE)).all()) or bool((steps == -128).any()):
        raise IntegrityError(
            "an int8 block holds a scale or a step that no encoder writes; the frame is damaged"
        )
    for start in range(0, count, WORK_VALUES):
        stop = min(start + WORK_VALUES, count)
        first_block = start // INT8_BLOCK_VALUES
        blocks = _padded_blocks(steps[start:stop].astype(np.float32))
        blocks *= scales[first_block : first_block + blocks.shape[0], np.newaxis]
        _store_float32(
            blocks.reshape(-1)[: stop - start], out[start * dtype.itemsize : stop * dtype.itemsize], dtype
        )


def _as_float32(data: memoryview, dtype: DType) -> Floats:
    if dtype is DType.FLOAT32:
        return np.frombuffer(data, np.float32)
    if dtype is DType.FLOAT16:
        with np.errstate(invalid="ignore"):
            return np.frombuffer(data, np.float16).astype(np.float32)
    return np.left_shift(np.frombuffer(data, np.uint16), 16, dtype=np.uint32).view(np.float32)


def _store_float32(values: Floats, out: memoryview, dtype: DType) -> None:
    if dtype is DType.FLOAT32:
        np.frombuffer(out, np.float32)[...] = values
    elif dtype is DType.FLOAT16:
        with np.errstate(over="ignore", under="ignore"):
            np.frombuffer(out, np.float16)[...] = values
    else:
        out[:] = float32_to_bfloat16(values.data.cast("B"))


def _padded_blocks(values: Floats) -> Floats:
    """The values as rows of one block each; a short last block is filled up with zeros."""
    short = -values.size % INT8_BLOCK_VALUES
    if short:
        values = np.concatenate((values, np.zeros(short, np.float32)))
    return values.reshape(-1, INT8_BLOCK_VALUES)
