"""Bounding what one node adds to a sum: its update is scaled down to a norm, never up.

The norm of an update that is handled in spans is the root of the sum of `squared_norm` over its spans; the factor of
`clip_factor` then applies to each span, in float64, so that neither end needs the whole update at once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import InvalidInputError

_ROUND_DOWN = 1.0 - 2.0**-20
"""Without this the norm of scaled values could end a rounding above the clip."""


def squared_norm(values: NDArray[np.float32]) -> float:
    """The sum of squares of a span or an update, in float64.

    Raises:
        InvalidInputError: A value is NaN or infinite (`NOT_FINITE`).
    """
    wide = values.astype(np.float64).ravel()
    total = float(np.dot(wide, wide))
    # The square of the largest float32 fits a double many times over, so only such values make the sum so.
    if not math.isfinite(total):
        bad = int(np.flatnonzero(~np.isfinite(wide))[0])
        raise InvalidInputError(
            f"value {bad} of the update is {wide[bad]}: an update with NaN or Inf has no norm; lower the learning rate",
            reason="NOT_FINITE",
        )
    return total


def clip_factor(norm: float, clip: float) -> float:
    """What to multiply an update of that norm with so that its norm is at most `clip`; 1 where it is already.

    Raises:
        InvalidInputError: The clip is not above 0, or a number is not finite.
    """
    if not (math.isfinite(clip) and clip > 0):
        raise InvalidInputError(f"a clip is a finite norm above 0, not {clip}: at 0 nothing could be learnt")
    if not (math.isfinite(norm) and norm >= 0):
        raise InvalidInputError(f"a norm is finite and at least 0, not {norm}", reason="NOT_FINITE")
    return 1.0 if norm <= clip else clip / norm * _ROUND_DOWN
