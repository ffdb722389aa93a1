"""An update to spans of bytes and back, in any scheme.

    span    = flags u8 | [count varint | indices] | values
    flags   = bit 0: the values are compressed | bits 3 to 7: lower bits of the indices, or 17 for a bitmap

`count` and `indices` are there where each node chooses its values (top-k). Shared blocks need none, and where no value
of a span is sent nothing follows the flags and the count. `indices` and `values` are described in the modules of those
names. There are no lengths and no checksums: the frame that carries a span has both.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.blocks import shared_indices
from services.updates.faults import malformed
from services.updates.indices import BITMAP, index_bytes_bound, pack_indices, unpack_indices
from services.updates.scheme import Kind, Scheme
from services.updates.spans import Floats, span_count, span_length, span_slice, spans
from services.updates.topk import threshold
from services.updates.values import pack, packed_bytes, unpack

_COMPRESSED = 1
_INDEX_SHIFT = 3
_UNUSED_FLAGS = 0b110
_COUNT_BYTES = 3
"""Bytes of a varint up to SPAN_VALUES, at most."""


class Encoded:
    """An update in a scheme, encoded span by span as it is asked for.

    Only `decoded` grows with the update: no more than one span's bytes are in memory. A span that is asked for again
    (a transfer that resumes) has the same bytes again.

    Args:
        scheme: How it is encoded.
        values: The update, float32 of shape (d,), d > 0, all finite; not copied, so it must not change meanwhile.
        round_index: The round, from 0.
        rng: Rounds int8 and int4 stochastically with it, to nearest without. A node that may have to encode again
            after a crash seeds it from run, round and its own name.

    Raises:
        InvalidInputError: The values have another form or are not finite (NOT_FINITE).
    """

    def __init__(self, scheme: Scheme, values: Floats, *, round_index: int, rng: np.random.Generator | None) -> None:
        if values.ndim != 1 or values.size == 0 or values.dtype != np.float32:
            raise InvalidInputError(
                f"an update of shape {values.shape} and type {values.dtype} was given, expected (d,) and float32"
            )
        for span, where in spans(values.size):
            if not bool(np.isfinite(values[where]).all()):
                raise InvalidInputError(f"span {span} of an update holds NaN or Inf", reason="NOT_FINITE")
        self.scheme = scheme
        self.round_index = round_index
        self._values = values
        self._threshold = threshold(values, scheme.top_count(values.size)) if scheme.kind is Kind.TOPK else None
        self._key = rng.integers(0, 1 << 63, 2).tolist() if rng is not None else None
        self._decoded = np.zeros(values.size, np.float32)
        self._sizes: list[int] = [0] * span_count(values.size)

    def span(self, span: int) -> bytes:
        """The bytes of one span.

        Raises:
            InvalidInputError: There is no such span, or a value of it is too large to be encoded (NOT_FINITE).
        """
        data = self._encode(span)
        if not self._sizes[span]:
            self._decoded[span_slice(span, self._values.size)] = decode_span(
                self.scheme, data, span, self._values.size, round_index=self.round_index
            )
            self._sizes[span] = len(data)
        return data

    def spans(self) -> Iterator[tuple[int, bytes]]:
        """Every span as (number, bytes), in order."""
        for span in range(len(self._sizes)):
            yield span, self.span(span)

    @property
    def wire_bytes(self) -> int:
        """The size of all spans together."""
        self._finish()
        return sum(self._sizes)

    @property
    def decoded(self) -> Floats:
        """What the other end will see, float32 of shape (d,)."""
        self._finish()
        return self._decoded

    def _finish(self) -> None:
        for span, size in enumerate(self._sizes):
            if not size:
                self.span(span)

    def _encode(self, span: int) -> bytes:
        values = self._values[span_slice(span, self._values.size)]
        head = b""
        flags = 0
        if self._threshold is not None:
            indices = self._threshold.select(values, span)
            head = _varint(indices.size)
            if indices.size:
                lower_bits, packed = pack_indices(indices, values.size)
                flags |= lower_bits << _INDEX_SHIFT
                head += packed
            values = values[indices]
        elif self.scheme.kind is Kind.BLOCKS:
            values = values[shared_indices(self.round_index, self.scheme.cycle_rounds, span, self._values.size)]
        if not values.size:
            return bytes((flags,)) + head
        rng = np.random.default_rng([*self._key, span]) if self._key is not None else None
        body, is_compressed = pack(self.scheme.number, values, rng)
        return bytes((flags | _COMPRESSED * is_compressed,)) + head + body


def encode(scheme: Scheme, values: Floats, *, round_index: int, rng: np.random.Generator | None) -> Encoded:
    """Encodes an update; arguments and errors are those of `Encoded`."""
    return Encoded(scheme, values, round_index=round_index, rng=rng)


def decode_span(scheme: Scheme, data: bytes | memoryview, span: int, size: int, *, round_index: int) -> Floats:
    """The values of one span: float32, zero where none was sent, finite whatever the bytes are.

    Args:
        scheme: How it was encoded.
        data: The bytes, of whoever sent them.
        span: The span's number.
        size: Values of the whole vector, d.
        round_index: The round that they were encoded for.

    Raises:
        IntegrityError: The bytes are too few, too many, or none that an encoder writes (UPDATE_MALFORMED,
            DECOMPRESSION_BOMB).
        InvalidInputError: The vector has no such span.
    """
    length = span_length(span, size)
    view = memoryview(data)
    if not 0 < len(view) <= span_bytes_bound(scheme, span, size):
        raise malformed(f"a span of {length} values came as {len(view)} bytes in the scheme {scheme}")
    flags, body = view[0], view[1:]
    lower_bits = flags >> _INDEX_SHIFT
    if flags & _UNUSED_FLAGS or lower_bits > (BITMAP if scheme.kind is Kind.TOPK else 0):
        raise malformed(f"a span has the flags {flags:#04x} in the scheme {scheme}")
    is_compressed = bool(flags & _COMPRESSED)
    if scheme.kind is Kind.DENSE:
        return unpack(scheme.number, body, length, is_compressed=is_compressed)
    if scheme.kind is Kind.TOPK:
        indices, body = _chosen(lower_bits, body, length)
    else:
        indices = shared_indices(round_index, scheme.cycle_rounds, span, size)
    values = np.zeros(length, np.float32)
    if indices.size:
        values[indices] = unpack(scheme.number, body, indices.size, is_compressed=is_compressed)
    elif len(body) or flags:
        raise malformed("bytes follow where no value is sent")
    return values


def span_bytes_bound(scheme: Scheme, span: int, size: int) -> int:
    """The most bytes that a span of a vector of `size` values takes; raises as `decode_span` does for the span."""
    length = span_length(span, size)
    indices = _COUNT_BYTES + index_bytes_bound(length) if scheme.kind is Kind.TOPK else 0
    return 1 + indices + packed_bytes(scheme.number, length)


def _chosen(lower_bits: int, body: memoryview, length: int) -> tuple[npt.NDArray[np.int64], memoryview]:
    """The indices of a top-k span, and what follows them."""
    count, body = _read_varint(body)
    if count > length:
        raise malformed(f"{count} values came for a span of {length}")
    if not count:
        return np.zeros(0, np.int64), body
    indices, used = unpack_indices(lower_bits, body, count, length)
    return indices, body[used:]


def _varint(number: int) -> bytes:
    """Seven bits per byte, the lowest first; the top bit says that more follow (as in protobuf)."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: memoryview) -> tuple[int, memoryview]:
    number = 0
    for place, byte in enumerate(data[:_COUNT_BYTES]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, data[place + 1 :]
    raise malformed("the count of values is cut off or too long")
