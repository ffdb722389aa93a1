"""A relay that follows a contact plan: wakes at each edge of a window and opens or closes the link.

Everything here runs on the engine's thread.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from orbitmesh.errors import MeshError
from services.links.engine import Engine
from services.links.schedule import ContactCourse, Schedule, Timeline, Window, windows

RETRY_S = 0.1
"""How soon a link that could not be opened (another program took its port) is tried again, in seconds."""


@dataclass(frozen=True)
class DirectionNow:
    """What one direction of an open link is like at this moment."""

    latency_ms: float
    """Propagation of what enters the link now, milliseconds."""
    rate_bps: float
    """Bits per second that enter the link now."""
    kind: str
    """What the contact is made of."""


@dataclass(frozen=True)
class ScheduleStats:
    """Where a relay stands in its plan."""

    source: str
    """The node of the plan on the client's side."""
    target: str
    """The node of the plan on the target's side."""
    outage: str
    """What an outage does: `cut` or `hold`."""
    mesh_s: float
    """The mesh time now, in seconds."""
    factor: float
    """Mesh seconds per real second."""
    open: bool
    """Whether the plan has the link open now."""
    window_start_s: float | None
    """When the window that is open began to carry, mesh time in seconds."""
    window_end_s: float | None
    """When it closes, mesh time in seconds."""
    forward: DirectionNow | None
    """Source to target; None while closed."""
    reverse: DirectionNow | None
    """Target to source; None while closed."""
    next_change_s: float | None
    """When the link next opens or closes, mesh time in seconds; None: never again."""
    next_change_in_s: float | None
    """The same in real seconds from now."""
    windows_opened: int
    """Windows that were opened since the relay follows."""
    windows_left: int
    """Windows that are yet to open."""
    problem: str
    """Why the link is closed although the plan has it open; empty where all is well."""


class Follower:
    """Opens and closes one relay as its schedule says (a `Sleeper`).

    Args:
        schedule: What to follow.
        engine: Whose thread this runs on.
        enter: Called with a window and the shapes' courses for both directions as the link opens or changes; may
            raise `MeshError` where it cannot be opened now.
        leave: Called as it closes.
    """

    def __init__(
        self,
        schedule: Schedule,
        engine: Engine,
        enter: Callable[[Window, ContactCourse, ContactCourse], None],
        leave: Callable[[], None],
    ) -> None:
        self._schedule = schedule
        self._engine = engine
        self._enter = enter
        self._leave = leave
        self._timeline = Timeline(schedule.clock)
        self._windows = windows(schedule.plan, schedule.source, schedule.target)
        # Edges are compared on the engine's own clock: rounding can then never wake it a hair too early for ever.
        self._starts_s = [self._timeline.at_s(window.start_s) for window in self._windows]
        self._ends_s = [self._timeline.at_s(window.end_s) for window in self._windows]
        self._current: int | None = None
        self._opened = 0
        self._problem = ""

    def start(self) -> None:
        """Bring the link to where the plan has it now, and follow from there."""
        if self._index_at(time.monotonic()) is None:
            self._leave()
        self.wake()

    def stop(self) -> None:
        """Follow no more; the link stays as it is."""
        self._engine.wake_at(self, None)

    def wake(self) -> None:
        """An edge has come: pass from the window before to the one that is open now."""
        now_s = time.monotonic()
        index = self._index_at(now_s)
        if index != self._current:
            if self._current is not None and not self._joined(self._current, index):
                self._leave()
            self._current = None
            if index is not None and not self._open(index):
                self._engine.wake_at(self, now_s + RETRY_S)
                return
        self._engine.wake_at(self, self._next_edge_s(now_s))

    def stats(self) -> ScheduleStats:
        """Where the relay stands in its plan."""
        now_s = time.monotonic()
        schedule, index = self._schedule, self._index_at(now_s)
        window = None if index is None else self._windows[index]
        edge_s = self._next_edge_s(now_s)
        return ScheduleStats(
            source=schedule.source,
            target=schedule.target,
            outage=schedule.outage,
            mesh_s=self._timeline.mesh_s(now_s),
            factor=self._timeline.factor,
            open=window is not None,
            window_start_s=window.start_s if window else None,
            window_end_s=window.end_s if window else None,
            forward=self._direction(window, True, now_s),
            reverse=self._direction(window, False, now_s),
            next_change_s=None if edge_s is None else self._timeline.mesh_s(edge_s),
            next_change_in_s=None if edge_s is None else edge_s - now_s,
            windows_opened=self._opened,
            windows_left=len(self._windows) - bisect_right(self._starts_s, now_s),
            problem=self._problem,
        )

    def _open(self, index: int) -> bool:
        window = self._windows[index]
        try:
            self._enter(window, self._course(window, True), self._course(window, False))
        except MeshError as error:
            self._problem = error.message
            return False
        self._problem = ""
        self._current = index
        self._opened += 1
        return True

    def _course(self, window: Window, forward: bool) -> ContactCourse:
        contact = window.forward if forward else window.reverse
        return ContactCourse(contact, self._timeline, self._schedule.ramp_s)

    def _direction(self, window: Window | None, forward: bool, now_s: float) -> DirectionNow | None:
        if window is None:
            return None
        course = self._course(window, forward)
        kind = (window.forward if forward else window.reverse).kind
        return DirectionNow(course.latency_s(now_s) * 1000, course.rate_bps(now_s), kind)

    def _index_at(self, now_s: float) -> int | None:
        index = bisect_right(self._starts_s, now_s) - 1
        return index if index >= 0 and now_s < self._ends_s[index] else None

    def _joined(self, before: int, after: int | None) -> bool:
        """Whether no gap lies between two windows, also one that a late wake-up has slept through."""
        between = self._windows[before : None if after is None else after + 1]
        return after is not None and all(one.end_s == other.start_s for one, other in pairwise(between))

    def _next_edge_s(self, now_s: float) -> float | None:
        index = self._index_at(now_s)
        if index is not None:
            return self._ends_s[index]
        later = bisect_right(self._starts_s, now_s)
        return self._starts_s[later] if later < len(self._starts_s) else None
