"""Noise for sums: integers for the ring of a secure sum, doubles for the path without one.

**Integers.** `DiscreteGaussian(v)` draws k with probability exp(-k² / 2v) / Z. How shares of it compose, with steps of
the ring as the unit and r² = `LATTICE_VARIANCE_STEPS2` = 4:

1. The sum of m independent shares of variance v is a discrete Gaussian of variance m v: the ratio of the two
   probabilities of any value lies within 1 ± 10 m exp(-pi² v) (Kairouz, Liu, Steinke 2021).
2. A discrete Gaussian of variance V is a continuous one of variance V - r², rounded at random by a discrete Gaussian of
   variance r² around it: the convolution of the two bells is exactly the bell of variance V, and the normalisers differ
   from constants by a factor within 1 ± 2 exp(-2 pi² r²) (Peikert 2010, theorem 3.1). Rounding afterwards costs no
   privacy, and whole-number sums stay whole, so a sum with discrete noise of variance V is at least as private as one
   with continuous noise of variance V - r².

With v >= `VARIANCE_MIN_STEPS2` the factors are below 1e-33 for each value: a billion values over a million rounds
change epsilon by less than 1e-17, far inside the accountant's margin. Thus m shares count as continuous noise of
variance m v - r², which is what `services.privacy.events.SharedNoise` tells the accountant; r² is the price of
integers.

The values must be whole numbers before noise is added, and the clip must hold for them: see
`services.privacy.rounding`.

The sampler compares a 64-bit word with a table of the distribution function, and where the two are equal goes on with
the next 64 bits, to 192: a value's probability is off by less than 2^-180. It needs one word for each value, where the
rejection sampler of Canonne, Kamath and Steinke (2020) needs a dozen; like that one it does not run in constant time.

**Doubles.** `gaussian_noise` for sums that no secure sum carries; see `Keystream.gaussian`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from orbitmesh.errors import InvalidInputError
from services.privacy.events import LATTICE_VARIANCE_STEPS2
from services.privacy.keystream import Floats, Keystream

VARIANCE_MIN_STEPS2 = 16
"""The least variance of one share, in squared steps: below it shares do not add up to a discrete Gaussian."""
VARIANCE_MAX_STEPS2 = 1 << 28
"""The largest variance of one share, in squared steps: its table takes 2 MiB and a second to make."""
_LIMBS = 3
_LIMB_BITS = 64
_FIXED_BITS = 256
_TAIL_DEVIATIONS = 17.0
_PURPOSE_SPAN, _PURPOSE_TIES = 0x6E6F6973, 0x74696573


def share_variance(noise_steps: float, shares_promised: int) -> int:
    """The variance of each share so that `shares_promised` of them count as noise of `noise_steps`, in squared steps.

    Args:
        noise_steps: Standard deviation that the sum needs, in steps of the ring.
        shares_promised: The fewest survivors with which the sum is to count.

    Raises:
        InvalidInputError: The share's variance is out of the sampler's range.
    """
    if not (math.isfinite(noise_steps) and noise_steps > 0 and shares_promised >= 1):
        raise InvalidInputError(f"expected noise above 0 and at least 1 share, got {noise_steps} and {shares_promised}")
    return _checked(math.ceil((noise_steps**2 + LATTICE_VARIANCE_STEPS2) / shares_promised))


def _checked(variance_steps2: int) -> int:
    if not VARIANCE_MIN_STEPS2 <= variance_steps2 <= VARIANCE_MAX_STEPS2:
        finer = "finer" if variance_steps2 < VARIANCE_MIN_STEPS2 else "coarser"
        raise InvalidInputError(
            f"a noise share has a variance of {VARIANCE_MIN_STEPS2} to {VARIANCE_MAX_STEPS2} squared steps, not "
            f"{variance_steps2}: choose {finer} steps of the ring"
        )
    return variance_steps2


class DiscreteGaussian:
    """Draws whole numbers k with probability proportional to exp(-k² / (2 variance)).

    Args:
        variance_steps2: The variance, in squared steps.

    Raises:
        InvalidInputError: It is out of the sampler's range.
    """

    def __init__(self, variance_steps2: int) -> None:
        self.variance_steps2 = _checked(variance_steps2)
        self._exact = _distribution(self.variance_steps2)
        self._least = -(len(self._exact) // 2)
        shift = _LIMB_BITS * (_LIMBS - 1)
        # The last entry is 1 and has no word of its own: a draw above all others is the largest value.
        self._table = np.array([entry >> shift for entry in self._exact[:-1]], dtype=np.uint64)

    def span(self, seed: bytes, span: int, count: int) -> NDArray[np.int64]:
        """Noise for `count` values of one span, int64; the same again for the same seed and span.

        Args:
            seed: 32 secret bytes, never used for another round.
            span: The span's index.
            count: How many values it has.
        """
        words = Keystream(seed, _PURPOSE_SPAN, span).words(count)
        places = np.searchsorted(self._table, words, side="right")
        ties = np.flatnonzero(self._table[np.maximum(places - 1, 0)] == words)
        if len(ties):
            more = Keystream(seed, _PURPOSE_TIES, span)
            for tie in ties.tolist():
                places[tie] = self._settle(int(words[tie]), more)
        return places.astype(np.int64) + self._least

    def _settle(self, word: int, more: Keystream) -> int:
        draw = word
        for limb in more.words(_LIMBS - 1).tolist():
            draw = draw << _LIMB_BITS | limb
        low, high = 0, len(self._exact) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if draw < self._exact[middle] else (middle + 1, high)
        return low


def _distribution(variance: int) -> list[int]:
    """The distribution function at -T..T in units of 2^-192, in whole numbers of 256 bits.

    Each bell value is the one before it times exp(-(2k + 1) / 2v), and that factor the one before times exp(-1 / v).
    """
    reach = math.ceil(_TAIL_DEVIATIONS * math.sqrt(variance))
    one = 1 << _FIXED_BITS
    ratio, step = _exp_of_minus(1, 2 * variance), _exp_of_minus(1, variance)
    bell = [one]
    for _ in range(reach):
        bell.append(bell[-1] * ratio >> _FIXED_BITS)
        ratio = ratio * step >> _FIXED_BITS
    total = 2 * sum(bell) - one
    scale_bits = _LIMB_BITS * _LIMBS
    entries, below = [], 0
    for place in range(-reach, reach + 1):
        below += bell[abs(place)]
        entries.append((below << scale_bits) // total)
    return entries


def _exp_of_minus(numerator: int, denominator: int) -> int:
    """exp(-numerator / denominator) in units of 2^-256, by its series; the argument is at most 1."""
    total = term = 1 << _FIXED_BITS
    sign = 1
    for order in range(1, _FIXED_BITS):
        term = term * numerator // (denominator * order)
        sign = -sign
        total += sign * term
        if not term:
            break
    return total


def gaussian_noise(seed: bytes, span: int, count: int, deviation: float) -> Floats:
    """Continuous noise for `count` values of one span, float64; the same again for the same seed and span.

    Raises:
        InvalidInputError: The deviation is negative or not finite, or the seed has another length.
    """
    if not (math.isfinite(deviation) and deviation >= 0):
        raise InvalidInputError(f"a standard deviation is finite and at least 0, not {deviation}")
    scaled: Floats = Keystream(seed, _PURPOSE_SPAN, span).gaussian(count) * deviation
    return scaled
