"""Words of b bits, back to back: how masked values travel, and how wide they have to be.

The words of a sum are taken modulo 2^b. Nothing is lost where b bits hold every possible sum, so b follows from the
largest magnitude of one node's value and from the number of nodes; `to_words` refuses a value above it.
In memory words stand in lanes of 8, 16 or 32 bits, which wrap by themselves: 2^b divides 2^lane, so the bits above b
may hold anything until they are cut off at the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import InvalidInputError

BITS_MIN = 4
"""The narrowest word, in bits."""
BITS_MAX = 32
"""The widest word, in bits."""
_GROUP = 8
"""Words that are packed together: they fill whole bytes whatever their width."""

Words = NDArray[np.unsignedinteger]


def word_bits(largest: int, nodes: int) -> int:
    """The narrowest words in which a sum over nodes cannot overflow.

    Args:
        largest: The largest magnitude of one node's value, noise included.
        nodes: The most nodes in a sum.

    Returns:
        The least b of 4 to 32 with nodes * largest < 2^(b - 1).

    Raises:
        InvalidInputError: No word of up to 32 bits holds the sum.
    """
    if largest < 0 or nodes < 1:
        raise InvalidInputError(f"a sum of {nodes} values of up to {largest} makes no sense")
    bits = max(BITS_MIN, (largest * nodes).bit_length() + 1)
    if bits > BITS_MAX:
        raise InvalidInputError(
            f"the sum of {nodes} values of magnitude up to {largest} needs {bits} bits and words have at most "
            f"{BITS_MAX}; quantise to fewer levels or add less noise"
        )
    return bits


def check_bits(bits: int) -> None:
    """Refuses a width that words cannot have.

    Raises:
        InvalidInputError: It is outside 4 to 32.
    """
    if not BITS_MIN <= bits <= BITS_MAX:
        raise InvalidInputError(f"words of {bits} bits were asked for; expected {BITS_MIN} to {BITS_MAX}")


def lane(bits: int) -> np.dtype[np.unsignedinteger]:
    """The type in which words of `bits` bits are held."""
    check_bits(bits)
    return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def to_words(values: NDArray[np.signedinteger], largest: int, bits: int) -> Words:
    """Signed values as words modulo 2^b.

    Args:
        values: Shape (n,).
        largest: The magnitude that `word_bits` was asked for.
        bits: The width of a word.

    Raises:
        InvalidInputError: `LIMIT_EXCEEDED`, a value is larger than promised: the sum could wrap around; or
            `DTYPE_MISMATCH`, the values are no signed integers.
    """
    if values.dtype.kind != "i":
        raise InvalidInputError(
            f"values of type {values.dtype} cannot be summed exactly; quantise them to signed integers",
            reason="DTYPE_MISMATCH",
        )
    if len(values) and (int(values.max()) > largest or int(values.min()) < -largest):
        raise InvalidInputError(
            f"a value has a magnitude above {largest}, for which words of {bits} bits were chosen; clip it before",
            reason="LIMIT_EXCEEDED",
        )
    return values.astype(lane(bits))


def to_signed(words: Words, bits: int) -> NDArray[np.int64]:
    """Words modulo 2^b as the signed values nearest to zero."""
    values = words.astype(np.int64) & ((1 << bits) - 1)
    values[values >= 1 << (bits - 1)] -= 1 << bits
    return values


def packed_bytes(count: int, bits: int) -> int:
    """The size of `count` packed words, in bytes."""
    return -(-count * bits // 8)


def pack(words: Words, bits: int) -> bytes:
    """The low `bits` bits of each word, back to back, the lowest bit first.

    Args:
        words: Shape (n,), of the lane's type.
        bits: The width of a word.

    Returns:
        `packed_bytes(n, bits)` bytes; unused bits of the last one are 0.
    """
    if words.dtype.itemsize * 8 == bits and lane(bits) == words.dtype:
        return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
    count = len(words)
    groups = -(-count // _GROUP)
    wide = _wide(bits)
    columns = np.zeros((_GROUP, groups), wide)
    padded = np.zeros(groups * _GROUP, wide)
    padded[:count] = words
    padded &= wide.type((1 << bits) - 1)
    columns[:] = padded.reshape(groups, _GROUP).T
    packed = np.zeros((bits, groups), np.uint8)
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        shifted = columns[place] << wide.type(shift)
        for byte in range(-(-(shift + bits) // 8)):
            packed[first + byte] |= (shifted >> wide.type(8 * byte)).astype(np.uint8)
    return packed.T.tobytes()[: packed_bytes(count, bits)]


def unpack(data: bytes | memoryview, count: int, bits: int) -> Words:
    """The words that `pack` was given.

    Returns:
        Shape (count,), of the lane's type.

    Raises:
        InvalidInputError: The bytes are not as many as `count` words take, or a bit behind the last word is set.
    """
    check_bits(bits)
    if len(data) != packed_bytes(count, bits):
        raise InvalidInputError(
            f"{len(data)} bytes were sent for {count} words of {bits} bits; expected {packed_bytes(count, bits)}"
        )
    unused = len(data) * 8 - count * bits
    if unused and data[-1] >> (8 - unused):
        raise InvalidInputError(f"bits behind the last of {count} words are set; expected them to be 0")
    dtype = lane(bits)
    if dtype.itemsize * 8 == bits:
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    groups = -(-count // _GROUP)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    wide = _wide(bits)
    rows = padded.reshape(groups, bits).T.astype(wide)
    words = np.empty((groups, _GROUP), dtype)
    for place in range(_GROUP):
        first, shift = divmod(place * bits, 8)
        value = rows[first].copy()
        for byte in range(1, -(-(shift + bits) // 8)):
            value |= rows[first + byte] << wide.type(8 * byte)
        words[:, place] = (value >> wide.type(shift)) & wide.type((1 << bits) - 1)
    return words.reshape(-1)[:count]


def _wide(bits: int) -> np.dtype[np.unsignedinteger]:
    # A word begins up to 7 bits into its first byte.
    return np.dtype(np.uint32 if bits + 7 <= 32 else np.uint64)
