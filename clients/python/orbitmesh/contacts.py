"""Which links of the mesh are open when: contacts, contact plans, and the clock that both are told in.

Mesh time is seconds since 1970-01-01 UTC (leap seconds not counted, as POSIX has it) on the clock that the mesh lives
by: the real one, or one that a `MeshClock` runs faster, so that an orbit fits a test. Windows are half open: a contact
is open at its start and closed at its end.

A plan travels as JSON (`ContactPlan.dump`, `ContactPlan.parse`) or as a message (`orbitmesh.contacts_proto`). Both are
checked on arrival: a window that is inverted or overlaps another of the same direction is refused by its number and
name, never repaired in silence.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orbitmesh.errors import InvalidInputError

KINDS = ("radio", "laser", "wired")
"""What a link may be made of."""

MAX_PLAN_BYTES = 256 * 1024 * 1024
"""Largest contact plan that is read from JSON, in bytes."""

MAX_CONTACTS = 1_000_000
"""Most contacts of one plan."""

MAX_LATENCY_POINTS = 100_000
"""Most points of one contact's latency curve."""

REASON = "CONTACT_PLAN_INVALID"
"""The reason of every error that this module raises."""


def refuse(message: str) -> InvalidInputError:
    """The error of everything that is wrong with a contact plan."""
    return InvalidInputError(message, reason=REASON)


def _finite(value: float, what: str, where: str) -> None:
    if not math.isfinite(value):
        raise refuse(f"{where}: {what} is {value}; expected a finite number")


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """One corner of a latency curve."""

    at_s: float
    """Mesh time, in seconds."""
    latency_s: float
    """One-way propagation delay at that time, in seconds; never negative."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A window in which a link is open from one node to another; the way back is a contact of its own.

    Raises:
        InvalidInputError: The window is inverted, a number is out of its range, or the latency curve does not span it.
    """

    source: str
    """Name of the sending node."""
    target: str
    """Name of the receiving node."""
    start_s: float
    """When the window opens, mesh time in seconds; open from here on."""
    end_s: float
    """When it closes, mesh time in seconds; closed from here on."""
    rate_bps: float
    """What the link carries once it is locked, in bits per second; above 0."""
    latency: tuple[LatencyPoint, ...]
    """One-way propagation, linear between points; the first at `start_s` and the last at `end_s`, or one for all."""
    kind: str = "radio"
    """One of `KINDS`."""
    acquisition_s: float = 0.0
    """How long after `start_s` the link carries nothing yet (pointing, locking), in seconds; not below 0."""
    max_elevation_deg: float | None = None
    """Highest elevation of the satellite over the site in this window, in degrees; of ground contacts only."""
    truncated_start: bool = False
    """True where the link was open before the plan's span began: the pass is longer than the window."""
    truncated_end: bool = False
    """True where the link stays open after the plan's span ends."""

    def __post_init__(self) -> None:
        where = self.title
        if not self.source or not self.target:
            raise refuse(f"{where}: a contact needs the names of both its nodes")
        if self.source == self.target:
            raise refuse(f"{where}: source and target are the same node; a contact joins two nodes")
        _finite(self.start_s, "start_s", where)
        _finite(self.end_s, "end_s", where)
        if self.end_s <= self.start_s:
            raise refuse(
                f"{where}: the window is inverted, it ends at {self.end_s} s and starts at {self.start_s} s; "
                "swap start_s and end_s, or leave the contact out where it has no length"
            )
        _finite(self.rate_bps, "rate_bps", where)
        if self.rate_bps <= 0:
            raise refuse(f"{where}: rate_bps is {self.rate_bps}; expected bits per second above 0")
        if self.kind not in KINDS:
            raise refuse(f"{where}: kind is {self.kind[:40]!r}; expected one of {', '.join(KINDS)}")
        _finite(self.acquisition_s, "acquisition_s", where)
        if self.acquisition_s < 0:
            raise refuse(f"{where}: acquisition_s is {self.acquisition_s}; expected seconds of 0 or more")
        if self.max_elevation_deg is not None and not -90 <= self.max_elevation_deg <= 90:
            raise refuse(f"{where}: max_elevation_deg is {self.max_elevation_deg}; expected -90 to 90 degrees")
        self._check_latency(where)

    def _check_latency(self, where: str) -> None:
        points = self.latency
        if not 1 <= len(points) <= MAX_LATENCY_POINTS:
            raise refuse(f"{where}: latency has {len(points)} points; expected 1 to {MAX_LATENCY_POINTS}")
        for point in points:
            _finite(point.at_s, "a latency point's at_s", where)
            _finite(point.latency_s, "a latency point's latency_s", where)
            if point.latency_s < 0:
                raise refuse(f"{where}: a latency of {point.latency_s} s at {point.at_s} s; expected 0 or more")
        if len(points) == 1:
            return
        if any(later.at_s <= earlier.at_s for earlier, later in itertools.pairwise(points)):
            raise refuse(f"{where}: the latency points are not in order of time; sort them by at_s, each time once")
        if points[0].at_s != self.start_s or points[-1].at_s != self.end_s:
            raise refuse(
                f"{where}: latency runs from {points[0].at_s} s to {points[-1].at_s} s and the window from "
                f"{self.start_s} s to {self.end_s} s; put the first point at start_s and the last at end_s, "
                "or give one point for all of it"
            )

    @property
    def title(self) -> str:
        """How messages name this contact."""
        return f"contact {self.source} -> {self.target} at {self.start_s} s"

    @property
    def duration_s(self) -> float:
        """Length of the window, in seconds, acquisition included."""
        return self.end_s - self.start_s

    @property
    def carries_from_s(self) -> float:
        """When the first bit may leave, mesh time in seconds; `end_s` where acquisition eats the whole window."""
        return min(self.start_s + self.acquisition_s, self.end_s)

    @property
    def volume_bytes(self) -> float:
        """What the window carries at its rate, in bytes, acquisition taken off."""
        return (self.end_s - self.carries_from_s) * self.rate_bps / 8

    def open_at(self, at_s: float) -> bool:
        """True within the window, its end left out."""
        return self.start_s <= at_s < self.end_s

    def latency_at(self, at_s: float) -> float:
        """One-way propagation delay at a mesh time, in seconds; outside the window the nearest end's."""
        points = self.latency
        after = bisect_right(points, at_s, key=lambda point: point.at_s)
        if after == 0:
            return points[0].latency_s
        if after == len(points):
            return points[-1].latency_s
        left, right = points[after - 1], points[after]
        share = (at_s - left.at_s) / (right.at_s - left.at_s)
        return left.latency_s + share * (right.latency_s - left.latency_s)


@dataclass(frozen=True, slots=True)
class _Index:
    """What a plan looks up in, made once."""

    pairs: Mapping[tuple[str, str], tuple[Contact, ...]]
    changes_s: tuple[float, ...]
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class ContactPlan:
    """All contacts of a span of mesh time. Contacts given in another order are sorted.

    Raises:
        InvalidInputError: The span is inverted, a contact lies outside it, or two contacts of one direction overlap.
    """

    start_s: float
    """Mesh time from which the plan speaks, in seconds."""
    end_s: float
    """Mesh time until which it speaks, in seconds; about later times it says nothing."""
    contacts: tuple[Contact, ...]
    """Every window, by (start_s, source, target)."""
    warnings: tuple[str, ...] = ()
    """What a reader should know: old element sets, nodes that never meet."""
    _index: _Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _finite(self.start_s, "start_s", "contact plan")
        _finite(self.end_s, "end_s", "contact plan")
        if self.end_s <= self.start_s:
            raise refuse(
                f"contact plan: it ends at {self.end_s} s and starts at {self.start_s} s; swap start_s and end_s"
            )
        if len(self.contacts) > MAX_CONTACTS:
            raise refuse(f"contact plan: {len(self.contacts)} contacts; expected at most {MAX_CONTACTS}")
        ordered = tuple(sorted(self.contacts, key=lambda contact: (contact.start_s, contact.source, contact.target)))
        object.__setattr__(self, "contacts", ordered)
        object.__setattr__(self, "_index", self._indexed(ordered))

    def _indexed(self, contacts: Iterable[Contact]) -> _Index:
        pairs: dict[tuple[str, str], list[Contact]] = {}
        changes: set[float] = set()
        for contact in contacts:
            if contact.start_s < self.start_s or contact.end_s > self.end_s:
                raise refuse(
                    f"{contact.title}: it ends at {contact.end_s} s and the plan speaks for {self.start_s} s to "
                    f"{self.end_s} s; cut the window (truncated_start, truncated_end) or widen the plan"
                )
            windows = pairs.setdefault((contact.source, contact.target), [])
            if windows and windows[-1].end_s > contact.start_s:
                raise refuse(
                    f"{contact.title}: it overlaps the window of the same direction from {windows[-1].start_s} s to "
                    f"{windows[-1].end_s} s; merge the two or move one"
                )
            windows.append(contact)
            changes.update((contact.start_s, contact.carries_from_s, contact.end_s))
        names = frozenset(name for pair in pairs for name in pair)
        return _Index({pair: tuple(found) for pair, found in pairs.items()}, tuple(sorted(changes)), names)

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the nodes that have a contact."""
        return self._index.nodes

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) that has a contact."""
        return frozenset(self._index.pairs)

    def between(self, source: str, target: str) -> tuple[Contact, ...]:
        """The windows of one direction in order of time; none where the two never meet."""
        return self._index.pairs.get((source, target), ())

    def at(self, source: str, target: str, at_s: float) -> Contact | None:
        """The window of one direction that is open at a mesh time, or None."""
        windows = self.between(source, target)
        before = bisect_right(windows, at_s, key=lambda contact: contact.start_s)
        if before and windows[before - 1].open_at(at_s):
            return windows[before - 1]
        return None

    def open_at(self, at_s: float) -> tuple[Contact, ...]:
        """Every window that is open at a mesh time, in the plan's order."""
        before = bisect_right(self.contacts, at_s, key=lambda contact: contact.start_s)
        return tuple(contact for contact in self.contacts[:before] if at_s < contact.end_s)

    def next_change(self, at_s: float) -> float | None:
        """The first mesh time after `at_s` at which a window opens, has acquired or closes; None after the last."""
        after = bisect_right(self._index.changes_s, at_s)
        return self._index.changes_s[after] if after < len(self._index.changes_s) else None

    def dump(self) -> str:
        """The plan as JSON; `parse` gives back an equal plan, to the last bit of every number."""
        from orbitmesh import contacts_json

        return contacts_json.dump(self)

    @staticmethod
    def parse(text: str) -> ContactPlan:
        """The plan that a JSON text holds.

        Raises:
            InvalidInputError: It is no JSON, has unknown or missing keys, or is no valid plan; the message names
                the entry by its number in `contacts` and says what to do.
        """
        from orbitmesh import contacts_json

        return contacts_json.parse(text)

    @staticmethod
    def load(path: str | Path) -> ContactPlan:
        """The plan in a file.

        Raises:
            InvalidInputError: The file cannot be read or holds no valid plan; the message begins with its path.
        """
        file = Path(path)
        try:
            if file.stat().st_size > MAX_PLAN_BYTES:
                raise refuse(f"{file}: more than {MAX_PLAN_BYTES} bytes; split the plan into shorter spans")
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise refuse(f"{file}: cannot be read as a contact plan: {error}") from None
        try:
            return ContactPlan.parse(text)
        except InvalidInputError as error:
            raise refuse(f"{file}: {error.message}") from None


class MeshClock:
    """Mesh time, kept by the machine's monotonic clock.

    The wall clock is read once, when the clock is made, to learn how long ago the origin was; from then on only the
    monotonic clock counts. A wall clock that is set back or forward under a running process moves nothing: mesh time
    never runs backward. Processes that share the three numbers agree, as well as their wall clocks did at their start.

    Args:
        origin_mesh_s: The mesh time at the origin, in seconds since 1970-01-01 UTC.
        origin_wall_s: The wall time of the origin, in seconds since 1970-01-01 UTC.
        factor: Seconds of mesh time per real second; 60 lets an orbit of 95 minutes pass in 95 seconds.
        wall: Reads the wall clock, in seconds.
        monotonic: Reads the monotonic clock, in seconds.

    Raises:
        InvalidInputError: A number is not finite, or the factor is not above 0.
    """

    def __init__(
        self,
        origin_mesh_s: float,
        origin_wall_s: float,
        factor: float = 1.0,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        _finite(origin_mesh_s, "origin_mesh_s", "mesh clock")
        _finite(origin_wall_s, "origin_wall_s", "mesh clock")
        _finite(factor, "factor", "mesh clock")
        if factor <= 0:
            raise refuse(f"mesh clock: factor is {factor}; expected mesh seconds per real second, above 0")
        self.origin_mesh_s = origin_mesh_s
        self.origin_wall_s = origin_wall_s
        self.factor = factor
        self._wall = wall
        self._monotonic = monotonic
        self._wall_ahead_s = wall() - monotonic()

    @classmethod
    def real(cls) -> MeshClock:
        """The clock whose mesh time is the wall time of its making, and real time from there."""
        now_s = time.time()
        return cls(now_s, now_s)

    def now_s(self) -> float:
        """The mesh time, in seconds; never runs backward."""
        return self._mesh_s(self._monotonic() + self._wall_ahead_s)

    def wall_s(self, mesh_s: float) -> float:
        """The wall time of a mesh time, in seconds, on the wall clock as it stood when this clock was made."""
        return self.origin_wall_s + (mesh_s - self.origin_mesh_s) / self.factor

    def seconds_until(self, mesh_s: float) -> float:
        """Real seconds until a mesh time; below 0 where it has passed."""
        return (mesh_s - self.now_s()) / self.factor

    def wall_jump_s(self) -> float:
        """How far the wall clock was moved since this clock was made, in real seconds; below 0 where it went back."""
        return self._wall() - (self._monotonic() + self._wall_ahead_s)

    def _mesh_s(self, wall_s: float) -> float:
        return self.origin_mesh_s + (wall_s - self.origin_wall_s) * self.factor
