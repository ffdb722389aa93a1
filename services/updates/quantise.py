"""Integers with a scale per block of 256 values: value = step * scale.

The scale is the block's largest magnitude / the largest step (absmax quantisation, arXiv 2110.02861), rounded up to the
upper half of a float32 (bf16). Not fp16: updates of 1e-5 have scales of 1e-7, which fp16 cannot tell apart, while the
three bits that bf16 lacks make a step at most 1/128 coarser. Rounding is to nearest, |error| <= scale / 2; or, with a
random source, up or down so that the mean is the value, |error| <= scale (stochastic rounding).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.faults import malformed
from services.updates.spans import Floats

Scales: TypeAlias = npt.NDArray[np.uint16]
Steps: TypeAlias = npt.NDArray[np.int8]

BLOCK_VALUES = 256
"""Values that share a scale."""
LEVELS = {8: 127, 4: 7}
"""The largest step, by bits of a step."""
MAX_MAGNITUDE = 2.0**126
"""The largest magnitude that is encoded; above it a step times its scale could leave float32."""
_SMALLEST_SCALE = np.uint16(0x0080)
"""2**-126 as bf16: the smallest scale that dividing by is exact enough with; below it is only 0."""
_ROUND_UP = np.uint32(0xFFFF)


def to_steps(values: Floats, bits: int, rng: np.random.Generator | None) -> tuple[Scales, Steps]:
    """The scales (bf16 bits, one per begun block) and steps (one per value) of values of shape (n,).

    Args:
        values: What is quantised.
        bits: 8 or 4, bits of a step; steps go from -127 to 127, or from -7 to 7.
        rng: Rounds stochastically with it, to nearest without.

    Raises:
        InvalidInputError: A value is NaN, infinite or beyond MAX_MAGNITUDE (NOT_FINITE).
    """
    levels = LEVELS[bits]
    blocks = _blocks(values)
    largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    # Written so that NaN fails too.
    if not bool((largest <= MAX_MAGNITUDE).all()):
        raise InvalidInputError(
            f"a value to be sent as int{bits} is NaN, infinite or beyond {MAX_MAGNITUDE:.1e}", reason="NOT_FINITE"
        )
    exact = largest / np.float32(levels)
    scales = ((exact.view(np.uint32) + _ROUND_UP) >> 16).astype(np.uint16)
    scales = np.where(largest > 0, np.maximum(scales, _SMALLEST_SCALE), np.uint16(0))
    scaled = blocks / np.where(scales > 0, _as_float32(scales), np.float32(1))[:, np.newaxis]
    if rng is None:
        np.rint(scaled, out=scaled)
    else:
        scaled += rng.random(scaled.shape, np.float32)
        np.floor(scaled, out=scaled)
    # 127 plus a random number just below 1 is 128 in float32.
    np.clip(scaled, -levels, levels, out=scaled)
    return scales, scaled.reshape(-1)[: values.size].astype(np.int8)


def from_steps(scales: Scales, steps: Steps, bits: int) -> Floats:
    """Undoes `to_steps`: float32 of shape (n,), finite whatever the scales and steps claim.

    Raises:
        IntegrityError: A scale or step is one that no encoder writes, or they are not as many as they should be
            (UPDATE_MALFORMED).
    """
    levels = LEVELS[bits]
    if scales.size != -(-steps.size // BLOCK_VALUES):
        raise malformed(f"{scales.size} scales came with {steps.size} values")
    factors = _as_float32(scales)
    # NaN, infinities and negative zero have larger bits than the largest scale.
    if bool((scales > largest_scale(bits)).any()) or bool(((scales > 0) & (scales < _SMALLEST_SCALE)).any()):
        raise malformed("a scale is negative, NaN, infinite or out of range")
    if bool((steps < -levels).any()) or bool((steps > levels).any()):
        raise malformed(f"a step is outside -{levels} to {levels}")
    values = _blocks(steps.astype(np.float32)) * factors[:, np.newaxis]
    return values.reshape(-1)[: steps.size]


def largest_scale(bits: int) -> int:
    """The largest scale that is believed, as bf16 bits: with it the largest step still is a float32."""
    exact = np.array([MAX_MAGNITUDE / LEVELS[bits]], np.float32)
    return int(((exact.view(np.uint32) + _ROUND_UP) >> 16)[0])


def _blocks(values: Floats) -> Floats:
    """The values as rows of one block each; a short last block is filled up with zeros."""
    short = -values.size % BLOCK_VALUES
    return (np.pad(values, (0, short)) if short else values).reshape(-1, BLOCK_VALUES)


def _as_float32(scales: Scales) -> Floats:
    return np.left_shift(scales, 16, dtype=np.uint32).view(np.float32)
