"""Increasing indices within a span as bytes: Rice-coded distances, or a bitmap where that is smaller.

Of values chosen without a pattern, one in a hundred, an index carries 8.08 bits; Rice's code takes 8.2, uint16
distances 16. A distance is split at its k lowest bits: the upper part follows as that many zeros and a one, the k bits
as they are (Rice 1971). All upper parts come first, then all lower ones, so that both are read without a loop.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from services.updates.faults import malformed

Indices: TypeAlias = npt.NDArray[np.int64]

MAX_RICE_BITS = 16
"""Lower bits of a distance at most: spans have 2**16 values."""
BITMAP = MAX_RICE_BITS + 1
"""Written in place of a number of lower bits where the indices are a bitmap."""


def index_bytes_bound(length: int) -> int:
    """The most bytes that indices within `length` values take."""
    return -(-length // 8)


def pack_indices(indices: Indices, length: int) -> tuple[int, bytes]:
    """The number of lower bits, or BITMAP, and the bytes, of n > 0 increasing indices below `length`."""
    distances = np.diff(indices, prepend=-1) - 1
    guess = int(np.mean(distances) * 0.69).bit_length()
    tried = range(max(0, guess - 1), min(MAX_RICE_BITS, guess + 1) + 1)
    lower_bits = min(tried, key=lambda bits: _rice_bytes(distances, bits))
    if _rice_bytes(distances, lower_bits) >= index_bytes_bound(length):
        bitmap = np.zeros(length, np.uint8)
        bitmap[indices] = 1
        return BITMAP, np.packbits(bitmap, bitorder="little").tobytes()
    upper = distances >> lower_bits
    ends = np.cumsum(upper + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    lower = (distances[:, np.newaxis] >> np.arange(lower_bits)) & 1
    lower_packed = np.packbits(lower.astype(np.uint8).reshape(-1), bitorder="little")
    return lower_bits, np.packbits(unary, bitorder="little").tobytes() + lower_packed.tobytes()


def unpack_indices(lower_bits: int, data: memoryview, count: int, length: int) -> tuple[Indices, int]:
    """Undoes `pack_indices` at the beginning of `data`: `count` > 0 increasing indices, and how many bytes they took.

    Raises:
        IntegrityError: The bytes are none that `pack_indices` returns (UPDATE_MALFORMED).
    """
    if lower_bits == BITMAP:
        size = index_bytes_bound(length)
        bitmap = _bits(data, size)
        indices = np.flatnonzero(bitmap)
        if len(data) < size or indices.size != count or indices[-1] >= length:
            raise malformed(f"a bitmap of {length} values does not name {count} of them")
        return indices, size
    # No index is beyond the span, so the upper parts have no more zeros than this.
    ends = np.flatnonzero(_bits(data, -(-(count + (length >> lower_bits)) // 8)))
    if ends.size < count:
        raise malformed(f"{ends.size} distances came where {count} are announced")
    upper_size = int(ends[count - 1]) // 8 + 1
    if ends.size > count and ends[count] < 8 * upper_size:
        raise malformed("bits are set behind the last distance")
    upper = np.diff(ends[:count], prepend=-1) - 1
    lower_size = -(-count * lower_bits // 8)
    if len(data) < upper_size + lower_size:
        raise malformed("the lower bits of the distances are cut off")
    lower = _bits(data[upper_size:], lower_size)
    if lower[count * lower_bits :].any():
        raise malformed("bits are set behind the last distance")
    places = lower[: count * lower_bits].reshape(count, lower_bits).astype(np.int64) << np.arange(lower_bits)
    indices = np.cumsum((upper << lower_bits) + places.sum(axis=1) + 1) - 1
    if indices[-1] >= length:
        raise malformed(f"index {indices[-1]} is outside a span of {length} values")
    return indices, upper_size + lower_size


def _rice_bytes(distances: Indices, lower_bits: int) -> int:
    upper_bits = distances.size + int(np.sum(distances >> lower_bits))
    return -(-upper_bits // 8) - (-distances.size * lower_bits // 8)


def _bits(data: memoryview, size: int) -> npt.NDArray[np.uint8]:
    """The bits of the first `size` bytes, or of as many as there are."""
    return np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little")
