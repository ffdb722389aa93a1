"""What a tensor is on the wire: an element type and a shape over raw, row-major, little-endian bytes,
unpadded.

This module imports nothing but the standard library, so that whoever only has to describe a tensor needs no
numpy.
"""

from __future__ import annotations

import enum
import math
import sys
from dataclasses import dataclass
from typing import TypeAlias

from orbitmesh.errors import InvalidInputError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous memory; numpy and torch memory comes in as `memoryview(array)`."""

MAX_TENSOR_RANK = 8
"""The most dimensions of one tensor."""
MAX_TENSOR_BYTES = 4 * 1024**3
"""The largest raw size of one tensor, in bytes: bigger ones are cut by their owner, who knows where."""


class DType(enum.IntEnum):
    """The type of one element; the numbers are those of the protobuf enum."""

    UNSPECIFIED = 0
    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    FLOAT64 = 4
    INT8 = 5
    UINT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    BOOL = 10

    @property
    def itemsize(self) -> int:
        """The size of one element in bytes.

        Raises:
            InvalidInputError: The type is UNSPECIFIED.
        """
        match self:
            case DType.INT8 | DType.UINT8 | DType.BOOL:
                return 1
            case DType.FLOAT16 | DType.BFLOAT16 | DType.INT16:
                return 2
            case DType.FLOAT32 | DType.INT32:
                return 4
            case DType.FLOAT64 | DType.INT64:
                return 8
            case _:
                raise InvalidInputError(
                    "the tensor's dtype is UNSPECIFIED; name one of "
                    + ", ".join(member.name for member in DType if member),
                    reason="DTYPE_MISMATCH",
                )

    @property
    def is_float(self) -> bool:
        """True for the types that can hold NaN and infinity."""
        return self in FLOAT_DTYPES


FLOAT_DTYPES = frozenset({DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64})
"""The types that can hold NaN and infinity."""


@dataclass(frozen=True)
class TensorSpec:
    """The type and shape of one tensor, checked against the limits before anything is allocated for it.

    Raises:
        InvalidInputError: The type is UNSPECIFIED, a dimension is not a whole number >= 0 (INVALID_INPUT), or
            the rank or the size is over its limit (LIMIT_EXCEEDED).
    """

    dtype: DType
    """The type of each element."""
    shape: tuple[int, ...]
    """The dimensions, slowest first; empty for a scalar."""

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_TENSOR_RANK:
            raise InvalidInputError(
                f"the tensor has {len(self.shape)} dimensions, {MAX_TENSOR_RANK} are allowed; reshape it",
                reason="LIMIT_EXCEEDED",
            )
        for dimension in self.shape:
            if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 0:
                raise InvalidInputError(
                    f"the shape {self.shape!r} holds {dimension!r}; each dimension is a whole number >= 0"
                )
        if self.size_bytes > MAX_TENSOR_BYTES:
            raise InvalidInputError(
                f"the tensor of shape {self.shape} takes {self.size_bytes} bytes, at most "
                f"{MAX_TENSOR_BYTES} are allowed; send it in parts",
                reason="LIMIT_EXCEEDED",
                metadata={"size_bytes": self.size_bytes, "limit_bytes": MAX_TENSOR_BYTES},
            )

    @property
    def count(self) -> int:
        """The number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The raw size in bytes."""
        return self.count * self.dtype.itemsize


def require_little_endian(byteorder: str = sys.byteorder) -> None:
    """Refuse a host whose memory is not in the wire's byte order.

    Raises:
        InvalidInputError: The host is big-endian.
    """
    if byteorder != "little":
        raise InvalidInputError(
            f"this host is {byteorder}-endian and tensors travel as the little-endian memory they are; "
            "run orbitmesh on a little-endian machine",
            reason="FAILED_PRECONDITION",
        )


def flat_bytes(buffer: Buffer, what: str) -> memoryview:
    """The memory of `buffer` as one run of bytes, without a copy.

    Raises:
        InvalidInputError: The memory is strided; `what` names it in the message.
    """
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise InvalidInputError(f"{what} is strided memory; make it contiguous (row-major) first")
    if view.nbytes == 0:
        # memoryview.cast refuses shapes that hold a zero.
        return memoryview(bytearray())
    return view.cast("B")
