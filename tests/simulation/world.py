"""Virtual time for code that has no clock of its own: a queue of events, run one after the other, without asyncio.

A seed gives the same run on any machine. Use `Network` (in `network`) for messages between endpoints.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.seeds import SEEDS, SimulationError, chosen_seeds, run_seeds

__all__ = ["SEEDS", "SimulationError", "StandstillError", "Timer", "World", "chosen_seeds", "run_seeds"]

EVENTS_MAX = 1_000_000
"""A run with more events than this goes round in circles."""

HISTORY = 60
"""How many of the last notes a failure shows."""


class StandstillError(AssertionError):
    """Nothing will happen any more, or too much did, and what was waited for has not come."""


class Timer:
    """Something that will be done; `cancel` takes it back."""

    __slots__ = ("args", "call", "when_s")

    def __init__(self, when_s: float, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when_s = when_s
        self.call: Callable[..., object] | None = call
        self.args = args

    def cancel(self) -> None:
        """It will not be done."""
        self.call = None

    @property
    def pending(self) -> bool:
        """Whether it is still to be done."""
        return self.call is not None


class World:
    """Time, chance, and what will happen.

    Args:
        seed: Decides everything that chance decides.
        start_s: What the clock shows first, in seconds.
    """

    def __init__(self, seed: int, start_s: float = 0.0) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_s = start_s
        self.events = 0
        self._queue: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._notes: deque[tuple[Any, ...]] = deque(maxlen=HISTORY)

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> Timer:
        """Does something later; things due at the same moment are done in the order in which they were asked for."""
        return self.at(self.now_s + delay_s, call, *args)

    def at(self, when_s: float, call: Callable[..., object], *args: Any) -> Timer:
        """Does something at a moment, or now where that is over."""
        timer = Timer(max(when_s, self.now_s), call, args)
        self._count += 1
        heapq.heappush(self._queue, (timer.when_s, self._count, timer))
        return timer

    def chance(self, probability: float) -> bool:
        """True with that probability; draws nothing where it is 0."""
        return probability > 0 and self.random.random() < probability

    def note(self, *what: Any) -> None:
        """Remembers what happened, for the message of a failure."""
        self._notes.append((self.now_s, *what))

    def history(self) -> str:
        """The last notes, one a line."""
        return "\n".join(f"{now_s:12.6f}  {' '.join(map(str, what))}" for now_s, *what in self._notes)

    def step(self) -> bool:
        """Does the next thing; False where there is none."""
        while self._queue:
            when_s, _, timer = heapq.heappop(self._queue)
            call = timer.call
            if call is None:
                continue
            self.now_s = when_s
            timer.call = None
            self.events += 1
            if self.events > EVENTS_MAX:
                raise StandstillError(self._say(f"{EVENTS_MAX} events and no end"))
            call(*timer.args)
            return True
        return False

    def run(self, until_s: float | None = None) -> None:
        """Goes on until nothing is left to do, or until a moment: then the clock shows that moment."""
        while self._queue and (until_s is None or self._queue[0][0] <= until_s):
            self.step()
        if until_s is not None:
            self.now_s = max(self.now_s, until_s)

    def until(self, holds: Callable[[], bool], within_s: float, what: str = "what was waited for") -> None:
        """Goes on until a condition holds.

        Raises:
            StandstillError: It did not within that time, or nothing is left to do.
        """
        limit_s = self.now_s + within_s
        while not holds():
            if self._queue and self._queue[0][0] > limit_s:
                raise StandstillError(self._say(f"{what} did not happen within {within_s:g} s"))
            if not self.step():
                raise StandstillError(self._say(f"nothing is left to do and {what} did not happen"))

    def _say(self, what: str) -> str:
        return f"seed {self.seed} at {self.now_s:.6f} s: {what}\n{self.history()}"
