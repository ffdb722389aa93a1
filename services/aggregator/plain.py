"""Contributions that the aggregator may see: decoded and combined span by span, all of them in step.

The mean is made where the next weights will be, in a file: beside it there is one span of each contribution in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from orbitmesh.errors import InvalidInputError
from services.aggregator.strategies.base import Each, Matrix, Mean
from services.privacy.clipping import squared_norm
from services.updates.codec import decode_span
from services.updates.scheme import Scheme
from services.updates.spans import Floats, spans

NORM_RATIO_MAX = 100.0
"""A contribution whose norm is so many times the median's is not counted: what it holds is no training."""
NORM_COMPARED_MIN = 3
"""The fewest contributions among which one can stand out."""


@dataclass(frozen=True)
class Part:
    """One contribution."""

    node: str
    """Whose."""
    weight: float
    """What it counts in the mean."""
    round_index: int
    """The round that it was encoded for."""
    read: Callable[[], Iterator[bytes]]
    """Its encoded spans, from the first one, at each call."""


class OutlierError(InvalidInputError):
    """A contribution stands out by its norm.

    Args:
        node: Whose.
        ratio: Its norm over the median of all.
    """

    def __init__(self, node: str, ratio: float) -> None:
        super().__init__(
            f"the norm of {node}'s contribution is {ratio:.3g} times the median of the round, at most "
            f"{NORM_RATIO_MAX:g} is taken: look at its data and its learning rate",
            reason="NORM_OUTLIER",
            metadata={"node": node, "ratio": f"{ratio:.3g}"},
        )
        self.node = node


def check_span(scheme: Scheme, size: int, round_index: int) -> Callable[[int, memoryview], None]:
    """What looks at each span as it comes in.

    Raises:
        IntegrityError: From the returned function: the bytes are none that an encoder writes (UPDATE_MALFORMED).
        InvalidInputError: There is no such span.
    """

    def check(index: int, data: memoryview) -> None:
        decode_span(scheme, data, index, size, round_index=round_index)

    return check


def mean_of(parts: Sequence[Part], scheme: Scheme, out: Floats) -> Mean:
    """The weighted mean of contributions.

    Args:
        parts: The contributions, always in the same order.
        scheme: How they are encoded.
        out: Where to put it, shape (d,).

    Raises:
        OutlierError: One of them stands out; without it the mean may be asked for again.
        IntegrityError: One of them is damaged.
    """
    total = sum(part.weight for part in parts)
    size = out.size
    norms = [0.0] * len(parts)
    streams = [part.read() for part in parts]
    for span, where in spans(size):
        summed = np.zeros(where.stop - where.start, np.float64)
        for place, (part, stream) in enumerate(zip(parts, streams, strict=True)):
            values = decode_span(scheme, next(stream), span, size, round_index=part.round_index)
            norms[place] += squared_norm(values)
            summed += values * (part.weight / total)
        out[where] = summed
    _compare(parts, norms)
    return Mean(out, total, len(parts))


def each_of(parts: Sequence[Part], scheme: Scheme, size: int) -> Each:
    """The contributions one by one, for strategies that compare them."""

    def read() -> Iterator[Matrix]:
        streams = [part.read() for part in parts]
        for span, _ in spans(size):
            rows: list[Floats] = [
                decode_span(scheme, next(stream), span, size, round_index=part.round_index)
                for part, stream in zip(parts, streams, strict=True)
            ]
            yield np.stack(rows)

    return Each(len(parts), read)


def _compare(parts: Sequence[Part], squared: list[float]) -> None:
    if len(parts) < NORM_COMPARED_MIN:
        return
    norms = [math.sqrt(each) for each in squared]
    middle = median(norms)
    if middle <= 0:
        return
    worst = max(range(len(parts)), key=norms.__getitem__)
    if norms[worst] > NORM_RATIO_MAX * middle:
        raise OutlierError(parts[worst].node, norms[worst] / middle)
