"""Spans: the pieces in which a flat vector is encoded, sent and summed, so that no end holds a whole encoded update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError

Floats: TypeAlias = npt.NDArray[np.float32]

SPAN_VALUES = 65_536
"""Values of a span; the last one of a vector may have fewer."""


def span_count(size: int) -> int:
    """How many spans a vector of `size` values has."""
    return -(-size // SPAN_VALUES)


def span_slice(span: int, size: int) -> slice:
    """Where span number `span` of a vector of `size` values lies.

    Raises:
        InvalidInputError: The vector has no such span.
    """
    if not 0 <= span < span_count(size):
        raise InvalidInputError(
            f"span {span} was named of a vector of {size} values, which has {span_count(size)} spans counted from 0"
        )
    return slice(span * SPAN_VALUES, min(size, (span + 1) * SPAN_VALUES))


def span_length(span: int, size: int) -> int:
    """How many values that span has; raises as `span_slice` does."""
    where = span_slice(span, size)
    return int(where.stop - where.start)


def spans(size: int) -> Iterator[tuple[int, slice]]:
    """Every span of a vector of `size` values as (number, where it lies), in order."""
    for span in range(span_count(size)):
        yield span, span_slice(span, size)
