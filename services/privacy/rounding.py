"""From real values to whole numbers without losing the bound on their norm.

Rounding up or down by chance keeps the mean, and could lengthen a vector of d values by as much as sqrt(d), which noise
would have to cover. It hardly ever does: with a chance of at least 1 - beta the squared norm of what x is rounded to is

    at most  |x|² + d / 4 + sqrt(2 ln(1 / beta)) (|x| + sqrt(d) / 2)

(Kairouz, Liu, Steinke 2021, section 3.1). So each span is rounded again until it is, and the bound always holds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import InternalError
from services.privacy.keystream import Floats, Keystream

_TRIES_MAX = 1000
"""Each try succeeds with a chance of at least 1 - exp(-1/2), thus all of these fail with less than 1e-200."""
_SLACK = 1.0
"""sqrt(2 ln(1 / beta)) for beta = exp(-1/2)."""
_FINE = 2.0**-53


def rounded_norm(norm_steps: float, values: int, span_values: int) -> float:
    """The largest norm of a vector of norm `norm_steps` after `round_span` on each of its spans, in steps.

    It is the sensitivity that the noise of a sum has to cover. A property of the layout alone, so that it says nothing
    about the data: by Cauchy and Schwarz the norms of s spans sum to at most sqrt(s) times the whole norm.

    Args:
        norm_steps: The norm before rounding, in steps.
        values: Length of the whole vector.
        span_values: Length of a span; the last may be shorter.
    """
    spans = math.ceil(values / span_values)
    halves = sum(math.sqrt(min(span_values, values - span * span_values)) / 2 for span in range(spans))
    gained = values / 4 + _SLACK * (math.sqrt(spans) * norm_steps + halves)
    return min(math.sqrt(norm_steps**2 + gained), norm_steps + math.sqrt(values))


def round_span(values: Floats, stream: Keystream) -> NDArray[np.int64]:
    """Each value to a whole number next to it, so that the mean stays and the span's norm is bounded.

    Args:
        values: One span in steps, float64, finite, below 2^62 in size.
        stream: Where chance comes from: one stream for one span of one round.

    Returns:
        Whole numbers, int64, of the same shape.
    """
    norm, count = float(np.linalg.norm(values)), len(values)
    limit = norm**2 + count / 4 + _SLACK * (norm + math.sqrt(count) / 2)
    floor = np.floor(values)
    part = values - floor
    for _ in range(_TRIES_MAX):
        chance = (stream.words(count) >> np.uint64(11)).astype(np.float64) * _FINE
        rounded = floor + (chance < part)
        if float(np.dot(rounded, rounded)) <= limit:
            return rounded.astype(np.int64)
    raise InternalError(f"{_TRIES_MAX} roundings of one span were all too long, which chance does not do")
