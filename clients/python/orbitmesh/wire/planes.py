"""The exponent split: floating-point values pulled apart into planes of which one compresses well.

The values of a tensor are of similar size, so their exponents say little (2.6 bits of entropy for weights),
while sign and mantissa are noise. With the sign rotated to the low end, the exponent fills a byte of its own:

    bf16     s eeeeeeee mmmmmmm             ->  plane 0: eeeeeeee        plane 1: mmmmmmm s
    fp16     s eeeee mmmmmmmmmm             ->  plane 0: eeeee mmm       plane 1: mmmmmmm s
    fp32     s eeeeeeee mmmmmmm m16         ->  planes 0 and 1 as bf16   plane 2: the low 16 bits

It is a permutation of bits: NaN payloads, negative zeros and denormals come back as they were. The fp32
layout keeps the upper half as a bf16, because fp32 values that were once bf16 or fp16 then have a low plane
of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.wire.tensors import DType

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint16]

SPLIT_DTYPES = frozenset({DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32})
"""The types the split knows."""
BLOCK_VALUES = 32 * 1024
"""Values worked on at a time, so that the scratch (320 KiB) stays in the second-level cache."""


@dataclass(frozen=True)
class Scratch:
    """Working memory of one thread, so that no call allocates temporaries as large as its data."""

    first: Words = field(default_factory=lambda: np.empty(BLOCK_VALUES, np.uint16))
    """Room for one block of 16-bit values."""
    second: Words = field(default_factory=lambda: np.empty(BLOCK_VALUES, np.uint16))
    """Room for another."""
    third: Words = field(default_factory=lambda: np.empty(BLOCK_VALUES, np.uint16))
    """Room for the upper halves of 32-bit values."""
    wide: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(BLOCK_VALUES, np.uint32))
    """Room for one block of 32-bit values."""


def plane_sizes(dtype: DType, raw_bytes: int) -> tuple[int, ...]:
    """The size in bytes of each plane of `raw_bytes` (whole values) of `dtype`, exponents first."""
    count = raw_bytes // dtype.itemsize
    return (count, count, 2 * count) if dtype is DType.FLOAT32 else (count, count)


def split(data: memoryview, dtype: DType, scratch: Scratch) -> tuple[Bytes, ...]:
    """The planes of `data` (raw bytes of a type in SPLIT_DTYPES), exponents first, as `plane_sizes` says."""
    if dtype is DType.FLOAT32:
        return _split_wide(np.frombuffer(data, np.uint32), scratch)
    return _split_words(np.frombuffer(data, np.uint16), scratch)


def merge(planes: tuple[Bytes, ...], out: memoryview, dtype: DType, scratch: Scratch) -> None:
    """Undo `split` into `out`, which is writable and as long as the planes together."""
    if dtype is DType.FLOAT32:
        _merge_wide(planes[0], planes[1], planes[2].view(np.uint16), np.frombuffer(out, np.uint32), scratch)
        return
    values = np.frombuffer(out, np.uint16)
    for start in range(0, values.size, BLOCK_VALUES):
        part = slice(start, start + BLOCK_VALUES)
        _merge_words(planes[0][part], planes[1][part], values[part], scratch)


def _split_words(values: Words, scratch: Scratch) -> tuple[Bytes, Bytes]:
    high, low = np.empty(values.size, np.uint8), np.empty(values.size, np.uint8)
    for start in range(0, values.size, BLOCK_VALUES):
        part = slice(start, start + BLOCK_VALUES)
        _split_block(values[part], high[part], low[part], scratch)
    return high, low


def _split_wide(values: npt.NDArray[np.uint32], scratch: Scratch) -> tuple[Bytes, Bytes, Bytes]:
    high, middle = np.empty(values.size, np.uint8), np.empty(values.size, np.uint8)
    low = np.empty(values.size, np.uint16)
    for start in range(0, values.size, BLOCK_VALUES):
        part = slice(start, start + BLOCK_VALUES)
        block = values[part]
        low[part] = block  # assignment keeps the low 16 bits
        shifted, upper = scratch.wide[: block.size], scratch.third[: block.size]
        np.right_shift(block, 16, out=shifted)
        upper[...] = shifted
        _split_block(upper, high[part], middle[part], scratch)
    return high, middle, low.view(np.uint8)


def _split_block(values: Words, high: Bytes, low: Bytes, scratch: Scratch) -> None:
    rotated = scratch.first[: values.size]
    carry = scratch.second[: values.size]
    np.left_shift(values, 1, out=rotated)
    np.right_shift(values, 15, out=carry)
    np.bitwise_or(rotated, carry, out=rotated)
    low[...] = rotated  # assignment keeps the low 8 bits
    np.right_shift(rotated, 8, out=rotated)
    high[...] = rotated


def _merge_words(high: Bytes, low: Bytes, out: Words, scratch: Scratch) -> None:
    """One block: out = (high << 7) | (low >> 1) | (low << 15), the rotation undone."""
    upper, lower = scratch.first[: out.size], scratch.second[: out.size]
    upper[...] = high
    np.left_shift(upper, 7, out=upper)
    lower[...] = low
    np.left_shift(lower, 15, out=out)
    np.right_shift(lower, 1, out=lower)
    np.bitwise_or(upper, lower, out=upper)
    np.bitwise_or(out, upper, out=out)


def _merge_wide(
    high: Bytes, middle: Bytes, low: Words, out: npt.NDArray[np.uint32], scratch: Scratch
) -> None:
    for start in range(0, out.size, BLOCK_VALUES):
        part = slice(start, start + BLOCK_VALUES)
        block = out[part]
        upper = scratch.third[: block.size]
        _merge_words(high[part], middle[part], upper, scratch)
        block[...] = upper
        np.left_shift(block, 16, out=block)
        np.bitwise_or(block, low[part], out=block)
