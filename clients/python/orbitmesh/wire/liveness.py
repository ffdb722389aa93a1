"""Whether the other end is still there, asked for while a session is in use and only then.

TCP says nothing of a peer that stopped, or of a link that swallows what it is given, for minutes. A session in use
that has heard nothing for a while therefore asks, by an acknowledgement that wants an answer, and gives its connection
up after too long a silence; an idle one costs nothing. Whatever arrives counts as heard, so a busy one never asks.

What must not be taken for silence: a late link (four round trips are allowed), a thin one on which a frame takes long
(the allowance doubles after each connection given up in vain, and remembers silences that ended well), and time in
which this process itself stood still. A peer that has never answered is not judged.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

SILENCE_S = 1.0
"""After so long without a word a connection is given up, in seconds."""

SILENCE_ROUND_TRIPS = 4
"""But never before so many round trips: a lost packet costs two or three."""

PINGS_PER_SILENCE = 4
"""How often is asked during such a silence."""

LINGER_S = 5.0
"""For how long after its last frame a session counts as in use, in seconds."""

LATE_S = 0.02
"""A timer that is later than this says that the process stood still, in seconds."""

DOUBLINGS_MAX = 6
"""How often the allowance may double: up to 64 times."""

LEARNED_MAX_S = 120.0
"""The most that silences which ended well may allow, in seconds."""

LEARNED_FADE_S = 30.0
"""After so long without such a silence what they allow is halved, in seconds."""

ROUND_TRIP_SAMPLES = 4
"""The round trip is the shortest of so many: one that waited behind a burst says nothing of the link."""

SAMPLE_S = 5.0
"""How often a session in use measures it, also where it hears enough, in seconds."""

UNANSWERED_MAX = 8
"""How often a peer that never answers is asked on one connection: it runs an older version."""

QUESTIONS_KEPT = 16
"""How many questions without an answer are remembered."""

_ROUNDING_S = 1e-6


class Liveness:
    """Of one session, on one connection after the other.

    Args:
        loop: Its clock is used, and no other.
        silence_s: What is allowed where round trips are short, in seconds; infinite where nothing is asked.
        busy: Whether anything is under way that the peer must answer, or somebody watches.
        progress: How many data frames came, and were acknowledged, so far.
        ask: Sends a question with that number.
        give_up: Ends the connection; is told for how long nothing was heard, in seconds.
    """

    __slots__ = (
        "_answered",
        "_ask",
        "_asked",
        "_asked_s",
        "_busy",
        "_doublings",
        "_due_s",
        "_give_up",
        "_learned_at_s",
        "_learned_s",
        "_loop",
        "_number",
        "_progress",
        "_progress_seen",
        "_round_trips",
        "_timer",
        "_up",
        "_used_s",
        "heard_s",
        "idle",
        "round_trip_s",
        "silence_s",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        silence_s: float,
        busy: Callable[[], bool],
        progress: Callable[[], int],
        ask: Callable[[int], None],
        give_up: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self.silence_s = silence_s
        self._busy = busy
        self._progress = progress
        self._ask = ask
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._asked: dict[int, float] = {}
        self._asked_s = -math.inf
        self._number = 0
        self._answered = False
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIP_SAMPLES)
        self._progress_seen = 0
        self._used_s = -math.inf
        self._learned_s = 0.0
        self._learned_at_s = 0.0
        self._doublings = 0
        self._up = False
        self.idle = False
        self.round_trip_s = 0.0
        self.heard_s = loop.time()

    @property
    def usual_s(self) -> float:
        """The silence that is allowed while all goes well, in seconds."""
        return max(self.silence_s, SILENCE_ROUND_TRIPS * self.round_trip_s, self._learned_s)

    @property
    def allowed_s(self) -> float:
        """The silence after which the connection is given up, in seconds."""
        return float(self.usual_s * 2**self._doublings)

    # --- connections
    # -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A connection carries the session from now on. It is asked at once: that measures the round trip."""
        if math.isinf(self.silence_s):
            return
        self._up = True
        self._asked.clear()
        self._number = 0
        self.wake()
        self._question(self._loop.time())

    def end(self) -> None:
        """The connection is over, or nothing more can be written on it."""
        self._up = self.idle = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """The session is used: silence counts from now on."""
        if self._timer is None and self._up:
            now = self._loop.time()
            self.heard_s = self._used_s = now
            self.idle = False
            self._schedule(now)

    # --- what is heard
    # -----------------------------------------------------------------------------------------------

    def heard_late(self, now: float) -> None:
        """Something came after a longer silence than `silence_s`, which ended well: it is usual from now on."""
        if self._timer is not None and now <= self._due_s + LATE_S:
            self._learned_s = min(max(self._learned_s, 2 * (now - self.heard_s)), LEARNED_MAX_S)
            self._learned_at_s = now

    def answered(self, number: int) -> None:
        """The peer answered a question."""
        asked_s = self._asked.pop(number, None)
        if asked_s is None:
            return
        for older in [each for each in self._asked if each < number]:
            del self._asked[older]
        self._round_trips.append(self._loop.time() - asked_s)
        self.round_trip_s = min(self._round_trips)
        self._answered = True

    # --- the clock
    # ---------------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> None:
        due_s = max(self.heard_s, self._asked_s) + self._interval_s
        if self._answered:
            due_s = min(due_s, self.heard_s + self.allowed_s)
        self._due_s = max(now, due_s)
        self._timer = self._loop.call_at(self._due_s, self._tick)

    @property
    def _interval_s(self) -> float:
        return self.usual_s / PINGS_PER_SILENCE

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        late_s = now - self._due_s
        if late_s > LATE_S:
            # This process stood still: what came meanwhile is not read yet.
            self.heard_s = min(now, self.heard_s + late_s)
        if not self._in_use(now):
            self.idle = True
            return
        silent_s = now - self.heard_s
        if self._answered and silent_s >= self.allowed_s - _ROUNDING_S:
            self._doublings = min(self._doublings + 1, DOUBLINGS_MAX)
            self._give_up(silent_s)
            return
        due_s = min(max(self.heard_s, self._asked_s) + self._interval_s, self._asked_s + SAMPLE_S)
        if now >= due_s - _ROUNDING_S:
            if not self._answered and self._number >= UNANSWERED_MAX:
                return
            self._question(now)
        if self._up:
            self._schedule(now)

    def _in_use(self, now: float) -> bool:
        progress = self._progress()
        if progress != self._progress_seen:
            self._progress_seen = progress
            self._doublings = 0
            self._used_s = now
        elif self._busy():
            self._used_s = now
        if self._learned_s and now - self._learned_at_s > LEARNED_FADE_S:
            self._learned_s = self._learned_s / 2 if self._learned_s > self.silence_s else 0.0
            self._learned_at_s = now
        return now - self._used_s < LINGER_S

    def _question(self, now: float) -> None:
        self._number += 1
        self._asked[self._number] = self._asked_s = now
        if len(self._asked) > QUESTIONS_KEPT:
            del self._asked[min(self._asked)]
        self._ask(self._number)
