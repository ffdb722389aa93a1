"""Shared index sets: which values every node sends in a round, by turns.

A vector is cut into blocks of 64 values and these into groups of as many blocks as a cycle has rounds. In each round
one block of every group has its turn, and after a cycle each had it once: rounds 0 to L - 1 are the first cycle. Which
turn comes first is drawn anew for each group and cycle, from their numbers alone. From the numbers, so that no pattern
of the data (rows of a matrix) and none of a node's contacts (every fourth pass) keeps meeting the same blocks; from
nothing else, not even the round's seed, because with seeds that differ between the rounds of a cycle some values would
be sent twice and others never.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InvalidInputError
from services.updates.spans import SPAN_VALUES, span_count, span_slice

Indices: TypeAlias = npt.NDArray[np.int64]

BLOCK_VALUES = 64
"""Consecutive values that have their turn together."""
MAX_ROUND_INDEX = 1 << 48
"""Rounds are counted below this."""
_SPAN_BLOCKS = SPAN_VALUES // BLOCK_VALUES


def shared_indices(round_index: int, cycle_rounds: int, span: int, size: int) -> Indices:
    """The indices, within the span and increasing, that every node sends in this round.

    Args:
        round_index: The round, from 0.
        cycle_rounds: L, the rounds of a cycle; 1 / L of the values is sent in each.
        span: The span's number.
        size: Values of the whole vector.

    Raises:
        InvalidInputError: A number is out of range.
    """
    if not 0 <= round_index < MAX_ROUND_INDEX or cycle_rounds < 1:
        raise InvalidInputError(f"round {round_index} of cycles of {cycle_rounds} rounds was asked for")
    where = span_slice(span, size)
    cycle, turn = divmod(round_index, cycle_rounds)
    first = span * _SPAN_BLOCKS
    blocks = np.arange(first, first - (where.start - where.stop) // BLOCK_VALUES, dtype=np.uint64)
    groups, places = blocks // np.uint64(cycle_rounds), blocks % np.uint64(cycle_rounds)
    offsets = _scattered(groups, cycle) % np.uint64(cycle_rounds)
    chosen = np.flatnonzero((offsets + np.uint64(turn)) % np.uint64(cycle_rounds) == places)
    indices: Indices = (chosen[:, np.newaxis] * BLOCK_VALUES + np.arange(BLOCK_VALUES)).reshape(-1)
    # The vector's last block may be short.
    return indices[: np.searchsorted(indices, where.stop - where.start)]


def shared_count(round_index: int, cycle_rounds: int, size: int) -> int:
    """How many values of a vector of `size` values every node sends in this round; raises as `shared_indices` does."""
    return sum(shared_indices(round_index, cycle_rounds, span, size).size for span in range(span_count(size)))


def _scattered(numbers: npt.NDArray[np.uint64], salt: int) -> npt.NDArray[np.uint64]:
    """Numbers without a pattern, from a row of numbers and a salt: the finaliser of SplitMix64 (Steele et al. 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0xD1B54A32D192ED03 % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
