"""Whether a node gets further with what it was asked to do: a round waits for who does, and for nobody else.

A node that dies of its work comes back, begins anew and dies again; it moves bytes all the while. So coming back and
beginning anew count a few times only; from then on a node has to get further than it ever was.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LIVES_MAX = 4
"""Sessions of a node without getting further than ever that count as progress."""
STEP_MAX_S = 600.0
"""How long a node that says it works on the same step is believed."""

Reached = tuple[int, int, int]
"""Spans of weights that the node has, steps that it trained, spans of its contribution that are here."""


class Progress:
    """How far a node is with its assignment.

    Args:
        moved: Called whenever the node got further.
        clock: Seconds that only grow.
    """

    def __init__(self, moved: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._moved = moved
        self._clock = clock
        self._lives = 0
        self._ever: Reached = (0, 0, 0)
        self._now: Reached = (0, 0, 0)
        self._moved_s = self._further_s = clock()

    @property
    def still_s(self) -> float:
        """Seconds since the node got further or was asked."""
        return self._clock() - self._moved_s

    def begin(self) -> None:
        """The node is asked something new."""
        self._lives = 0
        self._ever = (0, 0, 0)
        self._moved_s = self._clock()
        self._restart()

    def connected(self) -> None:
        """A session with the node is open: it may have to begin anew."""
        self._lives += 1
        if self._lives <= LIVES_MAX:
            self._restart()
            self.heard()

    def heard(self) -> None:
        """The node said something that it says once."""
        self._moved_s = self._clock()
        self._moved()

    def works(self, step: int) -> None:
        """The node says that it trains, and at which step; it repeats itself within a step, which may be a long one."""
        self.reached(step=step)
        if self._lives <= LIVES_MAX and self._clock() - self._further_s < STEP_MAX_S:
            self.heard()

    def reached(self, *, weights: int = 0, step: int = 0, spans: int = 0) -> None:
        """How far the node is."""
        ever = _further(self._ever, (weights, step, spans))
        if ever != self._ever:
            self._ever, self._lives = ever, min(self._lives, 1)
        now = _further(self._now, (weights, step, spans))
        if now != self._now:
            self._now, self._further_s = now, self._clock()
            self.heard()

    def _restart(self) -> None:
        self._now = (0, 0, 0)
        self._further_s = self._clock()


def _further(one: Reached, other: Reached) -> Reached:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])
