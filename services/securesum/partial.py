"""Sums made on the way: several nodes' masked words become one upload, before a thin link.

Masks add up like values do, so a node in the middle adds what its neighbours send without any key, and what it sees is
as masked as what the aggregator sees. Whoever is in such a sum survives or vanishes together with the others in it.
"""

from __future__ import annotations

import numpy as np

from services.securesum.packing import Words, lane, pack, unpack
from services.securesum.rounds import RoundPlan


class PartialSum:
    """One span of several contributions, added up.

    Args:
        plan: The round.
        span: The index of the span.
    """

    def __init__(self, plan: RoundPlan, span: int) -> None:
        self._bits = plan.bits
        self._words: Words = np.zeros(plan.spans[span], lane(plan.bits))

    def add(self, packed: bytes | memoryview) -> None:
        """Adds one node's span; each contribution must be added once, and in all spans or in none.

        Raises:
            InvalidInputError: It is of another size.
        """
        self._words += unpack(packed, len(self._words), self._bits)

    def packed(self) -> bytes:
        """The sum, for `RoundSum.take_span`."""
        return pack(self._words, self._bits)
