"""The k values of largest magnitude: a sample guesses the threshold, one counting pass makes it exact.

The bits of a float32 without its sign are in the order of the magnitudes, so they are compared as integers. The sample
gives a bracket that holds the k-th largest magnitude nearly always; one pass counts what is above the bracket and
collects what is in it, a few per cent; the k-th largest of those is the threshold. Where the bracket missed, everything
is collected. The answer is the same either way: exactly k values, or all that are not zero where those are fewer. Of
values as large as the threshold those with lower indices are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.spans import Floats, spans

Bits: TypeAlias = npt.NDArray[np.uint32]
Indices: TypeAlias = npt.NDArray[np.int64]

SAMPLE_VALUES = 16_384
"""Values looked at to guess the threshold."""
SAMPLE_DEVIATIONS = 4.0
"""Standard deviations of the guess, to each side, that the bracket spans; a guess of uneven data may still miss."""
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_GOLDEN = 0.6180339887498949
"""Multiples of it, without their whole parts, spread evenly and in step with no period of the data."""


@dataclass(frozen=True)
class Threshold:
    """From where on a magnitude is one of the k largest."""

    bits: int
    """The smallest magnitude that is taken, as float32 bits; 0 takes whatever is not zero."""
    ties: tuple[int, ...]
    """Of values exactly that large, how many are taken of each span."""
    above: int
    """How many values are larger."""

    @property
    def count(self) -> int:
        """How many values are taken."""
        return self.above + sum(self.ties)

    def select(self, values: Floats, span: int) -> Indices:
        """The indices, within the span and increasing, of those of its values that are taken."""
        magnitudes = _magnitudes(values)
        taken = magnitudes > self.bits
        if self.ties[span]:
            taken[np.flatnonzero(magnitudes == self.bits)[: self.ties[span]]] = True
        return np.flatnonzero(taken)


def threshold(values: Floats, count: int) -> Threshold:
    """The threshold of the `count` largest magnitudes of finite values of shape (d,).

    Raises:
        InvalidInputError: `count` is below 1 or above d.
    """
    if not 1 <= count <= values.size:
        raise InvalidInputError(f"the {count} largest of {values.size} values were asked for")
    above, candidates = _collect(values, *_bracket(values, count))
    if not above < count <= above + candidates.size:
        above, candidates = _collect(values, 0, int(_MAGNITUDE))
    rank = candidates.size - (count - above)
    bits = int(np.partition(candidates, rank)[rank])
    above += int(np.count_nonzero(candidates > bits))
    return Threshold(bits, _ties(values, bits, count - above), above)


def _bracket(values: Floats, count: int) -> tuple[int, int]:
    """The least and the greatest bits between which the threshold is, in all likelihood."""
    if values.size <= 2 * SAMPLE_VALUES:
        return 0, int(_MAGNITUDE)
    places = (np.arange(SAMPLE_VALUES) * _GOLDEN % 1.0 * values.size).astype(np.int64)
    sample = np.sort(_magnitudes(values[places]))[::-1]
    share = count / values.size
    rank = share * SAMPLE_VALUES
    margin = SAMPLE_DEVIATIONS * (SAMPLE_VALUES * share * (1 - share)) ** 0.5 + 2
    high, low = int(rank - margin), int(rank + margin)
    return (
        int(sample[low]) if low < SAMPLE_VALUES else 0,
        int(sample[high]) if high >= 0 else int(_MAGNITUDE),
    )


def _collect(values: Floats, low: int, high: int) -> tuple[int, Bits]:
    """How many magnitudes are above `high`, and those from `low` to `high`."""
    above = 0
    parts: list[Bits] = []
    for _, where in spans(values.size):
        magnitudes = _magnitudes(values[where])
        magnitudes = magnitudes[magnitudes >= low]
        inside = magnitudes[magnitudes <= high]
        above += magnitudes.size - inside.size
        parts.append(inside)
    return above, np.concatenate(parts)


def _ties(values: Floats, bits: int, wanted: int) -> tuple[int, ...]:
    """How many values of exactly these bits are taken of each span, `wanted` in all, from the first span on."""
    taken: list[int] = []
    for _, where in spans(values.size):
        # Zeros are what the other end assumes anyway.
        found = int(np.count_nonzero(_magnitudes(values[where]) == bits)) if wanted and bits else 0
        taken.append(min(found, wanted))
        wanted -= taken[-1]
    return tuple(taken)


def _magnitudes(values: Floats) -> Bits:
    return values.view(np.uint32) & _MAGNITUDE
