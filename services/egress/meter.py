"""Token buckets as points in time: a meter says from when on the next frame conforms to a rate.

It is the generic cell rate algorithm (ITU-T I.371): after a frame of `size` bytes the next one conforms `size / rate`
later, whatever came late by up to the slack catches up. A bucket of tokens says the same; a point in time also says
until when nothing may go.
"""

from __future__ import annotations

import math
from collections import deque

NS_BITS = 8e9
"""Nanoseconds times bits per byte."""

WINDOW_NS = 1_000_000_000
"""A ceiling holds in any time of this length, in nanoseconds."""

WINDOW_OVER = 1.01
"""So much of the ceiling may go in it: what came late catches up by no more than this."""

CEILING_SLACK_NS = 50_000_000
"""How late frames that wait may come without their slice losing a part of its ceiling, in nanoseconds."""


class Meter:
    """One rate.

    Args:
        rate_bps: In bits per second; 0: nothing ever conforms; infinite: everything does.
        slack_ns: By how much a frame may be late without the rate being lost, in nanoseconds: a burst of
            `rate x slack` after a pause.
        now_ns: The time, in nanoseconds.
    """

    __slots__ = ("free_ns", "rate_bps", "slack_ns")

    def __init__(self, rate_bps: float, slack_ns: float, now_ns: int) -> None:
        self.rate_bps = rate_bps
        self.slack_ns = slack_ns
        self.free_ns: float = now_ns - slack_ns if rate_bps > 0 else math.inf

    def take(self, size: int, since_ns: float) -> None:
        """A frame goes.

        Args:
            size: In bytes.
            since_ns: What was not used before this, less the slack, is lost: the time, or an earlier one from which on
                frames waited.
        """
        if self.rate_bps > 0:
            self.free_ns = max(self.free_ns, since_ns - self.slack_ns) + size * NS_BITS / self.rate_bps

    def give_back(self, size: int) -> None:
        """A frame that was taken did not go after all."""
        if self.rate_bps > 0:
            self.free_ns -= size * NS_BITS / self.rate_bps

    def change(self, rate_bps: float, slack_ns: float, now_ns: int) -> None:
        """Changes the rate: what was taken too much stays so in bytes, and nothing waits longer than it would have."""
        if rate_bps <= 0:
            self.free_ns = math.inf
        elif self.rate_bps <= 0 or math.isinf(rate_bps):
            self.free_ns = min(self.free_ns, now_ns)
        elif self.free_ns > now_ns:
            self.free_ns = now_ns + (self.free_ns - now_ns) * min(1.0, self.rate_bps / rate_bps)
        self.rate_bps = rate_bps
        self.slack_ns = slack_ns


class Ceiling(Meter):
    """A rate that is not passed in any second either, whatever catches up.

    Args:
        rate_bps: In bits per second; infinite for none.
        now_ns: The time, in nanoseconds.
    """

    __slots__ = ("_due_ns", "_sent", "_sent_bytes")

    def __init__(self, rate_bps: float, now_ns: int) -> None:
        super().__init__(rate_bps, 0.0, now_ns)
        self._due_ns = self.free_ns
        self._sent: deque[tuple[float, int]] = deque()
        self._sent_bytes = 0

    def pass_by(self, size: int, since_ns: float, now_ns: int) -> None:
        """A frame goes; the next one is taken to be as large.

        Args:
            size: In bytes.
            since_ns: From when on frames waited: only these catch up.
            now_ns: The time.
        """
        if math.isinf(self.rate_bps):
            return
        self.free_ns = self._due_ns
        self.take(size, min(max(since_ns, now_ns - CEILING_SLACK_NS), now_ns))
        self._due_ns = self.free_ns
        self._sent.append((now_ns, size))
        self._sent_bytes += size
        while self._sent[0][0] <= now_ns - WINDOW_NS:
            self._sent_bytes -= self._sent.popleft()[1]
        over = self._sent_bytes + size - max(self.rate_bps / NS_BITS * WINDOW_NS * WINDOW_OVER, size)
        for sent_ns, sent_bytes in self._sent:
            if over <= 0:
                break
            over -= sent_bytes
            self.free_ns = max(self.free_ns, sent_ns + WINDOW_NS)

    def leave(self, size: int, held: int, now_ns: int) -> None:
        """A frame that passed before leaves only now: what holds in any second holds of when they leave.

        Args:
            size: In bytes.
            held: How many that passed have not left, with this one, which passed first of them.
            now_ns: The time.
        """
        if math.isinf(self.rate_bps):
            return
        if held <= len(self._sent):
            self._sent[-held] = now_ns, size
        else:  # it passed longer ago than counts
            self._sent.append((now_ns, size))
            self._sent_bytes += size

    def give_back(self, size: int) -> None:
        """The frame that was taken last did not go after all."""
        if self._sent:
            self.free_ns = self._due_ns = self._due_ns - size * NS_BITS / self.rate_bps
            self._sent_bytes -= self._sent.pop()[1]

    def change(self, rate_bps: float, slack_ns: float, now_ns: int) -> None:
        """Changes the rate; what went before the change is forgotten but for what is still owed."""
        if rate_bps == self.rate_bps:
            return
        self.free_ns = self._due_ns
        super().change(rate_bps, slack_ns, now_ns)
        self._due_ns = self.free_ns
        self._sent.clear()
        self._sent_bytes = 0
