"""Values as integers on one scale that all nodes share, so that sums of integers are sums of values.

Secure sums add integers modulo a power of two. A scale per block would have to be the same for every node, and its
largest value would give something away; so the scale is public and the same for the whole round, agreed before it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.spans import Floats

Integers: TypeAlias = npt.NDArray[np.int32]

MIN_BITS = 2
"""Bits of one node's integers at least: -1, 0 and 1."""
MAX_BITS = 24
"""Bits at most: float32 holds every integer up to there."""


def largest_integer(bits: int) -> int:
    """The largest integer of one node, 2**(bits - 1) - 1; the smallest is its negative.

    Raises:
        InvalidInputError: There are fewer bits than MIN_BITS or more than MAX_BITS.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise InvalidInputError(f"integers of {bits} bits were asked for, expected {MIN_BITS} to {MAX_BITS}")
    return int((1 << (bits - 1)) - 1)


def scale_for(largest: float, bits: int) -> float:
    """The scale with which magnitudes up to `largest` just fit, as the float32 that both ends use.

    Raises:
        InvalidInputError: `largest` is not a positive number, or bits are out of range.
    """
    return _checked_scale(largest / largest_integer(bits))


def to_integers(values: Floats, scale: float, bits: int, rng: np.random.Generator | None) -> tuple[Integers, int]:
    """values / scale, rounded, as int32 of the same shape, and how many were beyond the largest and cut to it.

    Args:
        values: What one node adds to the sum.
        scale: The same for every node of the round, above 0.
        bits: Bits of one node's integer with its sign.
        rng: Rounds stochastically with it (unbiased, |error| <= scale), to nearest without (|error| <= scale / 2);
            not where a value was cut.

    Raises:
        InvalidInputError: A value is NaN or infinite (NOT_FINITE), or scale or bits are out of range.
    """
    largest = largest_integer(bits)
    scale = _checked_scale(scale)
    if not bool(np.isfinite(values).all()):
        raise InvalidInputError("a value to be summed as an integer is NaN or infinite", reason="NOT_FINITE")
    # In float64: float32 has no room for a fraction behind 24 bits, and stochastic rounding would be biased.
    scaled = values.astype(np.float64) / scale
    if rng is None:
        np.rint(scaled, out=scaled)
    else:
        scaled += rng.random(scaled.shape)
        np.floor(scaled, out=scaled)
    clipped = int(np.count_nonzero(np.abs(scaled) > largest))
    np.clip(scaled, -largest, largest, out=scaled)
    return scaled.astype(np.int32), clipped


def from_integers(integers: npt.NDArray[np.integer], scale: float) -> Floats:
    """Integers of one node, or a sum of several nodes', as values: float32 of the same shape.

    Raises:
        InvalidInputError: The scale is out of range.
    """
    return (integers.astype(np.float64) * _checked_scale(scale)).astype(np.float32)


def _checked_scale(scale: float) -> float:
    """The scale as float32 has it: both ends must divide and multiply by the same number."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(scale))
    # Bounded so that sums of many nodes' integers times the scale are still float32. NaN fails too.
    if not 2.0**-126 <= rounded <= 2.0**64:
        raise InvalidInputError(f"a scale of {scale} was given, expected 2**-126 to 2**64")
    return rounded
