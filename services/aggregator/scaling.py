"""What one step of an integer in a secure sum is worth: public, the same for all nodes, agreed before the round.

Without privacy it follows the updates: a few times the largest value of the last round's mean, since single updates are
larger than their mean. What is cut off by too small a bound is not lost, nodes send it later (`services.updates`).
With noise in shares it follows the clip: a fixed number of steps, so that the noise has room in the ring.
"""

from __future__ import annotations

import math

import numpy as np

from services.aggregator.spec import RunSpec
from services.privacy.events import LATTICE_VARIANCE_STEPS2
from services.privacy.noise import VARIANCE_MAX_STEPS2
from services.privacy.rounding import rounded_norm
from services.updates.integers import largest_integer, scale_for
from services.updates.spans import SPAN_VALUES, Floats

FIRST_BOUND, FIRST_BOUND_MAX = 0.05, 1.0
"""The largest value that fits in the first round, before anything is known of the updates: with 8 bits; with more."""
HEADROOM, HEADROOM_MAX = 4.0, 64.0
"""The bound over the largest value of the last mean: with 8 bits, where steps are dear; with more."""
CHANGE_MAX = 8.0
"""By how much the bound changes between two rounds, at most."""
BOUND_MIN, BOUND_MAX = 2.0**-40, 2.0**20
"""The bound stays in here."""
CLIP_STEPS = 1_000.0
"""Steps to which a node's clip is cut where noise comes in shares; fewer where the noise needs that."""
RECORD_CLIP_STEPS = 8_000.0
"""The same for an example's clip: rounding a sum of examples adds up to the root of d steps to what one adds."""
ROOM = 0.8
"""How much of that range is used: rounding makes a vector, and thus its noise, longer."""
TAIL_DEVIATIONS = 17.0
"""Noise beyond so many standard deviations does not happen (`services.privacy.noise`)."""


class Scaling:
    """The scale of a run's rounds.

    Args:
        spec: The run.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        spare = 2.0 ** max(0, spec.sum_bits - 8)
        self.bound = min(FIRST_BOUND_MAX, FIRST_BOUND * spare)
        self._headroom = min(HEADROOM_MAX, HEADROOM * spare)

    def clip_steps(self, values: int) -> float:
        """The longest vector of one node in steps, after rounding; 0 where no noise is shared."""
        if not self._spec.shared_noise:
            return 0.0
        if self._spec.node_private:
            return rounded_norm(self._clip_steps, values, SPAN_VALUES)
        return self._clip_steps + math.sqrt(values)

    def largest(self, values: int, examples: int) -> int:
        """The largest magnitude of one node's integer, its noise included.

        Args:
            values: Length of the vector.
            examples: The most that one node has.
        """
        if not self._spec.shared_noise:
            return largest_integer(self._spec.sum_bits)
        noise = self._spec.message.privacy.noise_multiplier * self.clip_steps(values)
        share = math.ceil((noise**2 + LATTICE_VARIANCE_STEPS2) / self._spec.quorum)
        terms = 1 if self._spec.node_private else examples
        return math.ceil(terms * self.clip_steps(values) + TAIL_DEVIATIONS * math.sqrt(share))

    def scale(self) -> float:
        """What one step is worth, as float32 has it."""
        if self._spec.shared_noise:
            return float(np.float32(self._spec.message.privacy.clip / self._clip_steps))
        return scale_for(self.bound, self._spec.sum_bits)

    @property
    def _clip_steps(self) -> float:
        noise = self._spec.message.privacy.noise_multiplier
        room = ROOM * math.sqrt(VARIANCE_MAX_STEPS2 * self._spec.quorum)
        most = CLIP_STEPS if self._spec.node_private else RECORD_CLIP_STEPS
        return min(most, room / noise) if noise else most

    def learn(self, delta: Floats) -> None:
        """Takes a round's mean into account."""
        largest = float(np.abs(delta).max(initial=0.0))
        wanted = min(max(self._headroom * largest, self.bound / CHANGE_MAX), self.bound * CHANGE_MAX)
        self.bound = min(max(wanted, BOUND_MIN), BOUND_MAX)

