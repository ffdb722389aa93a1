"""When a relay is open and what it is like, from a contact plan: pure arithmetic, no socket, no thread.

TCP needs both directions: a link carries while a contact of each direction is open and has acquired. Mesh time may run
faster than real time by the clock's factor; then windows, acquisition and ramps pass that much faster, while latencies
and rates stay as the plan says, in real seconds and real bits per second. So a window of 8 minutes at factor 60 carries
what 8 seconds at its rate carry, and a round trip takes as long as it would in orbit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orbitmesh.contacts import Contact, ContactPlan, MeshClock
from orbitmesh.errors import InvalidInputError
from services.links.shaper import MIN_RATE_BPS, Shape

OUTAGES = ("cut", "hold")
"""What an outage does to connections: `cut` resets them, `hold` keeps them and all bytes until the next window."""
RAMP_FROM = 0.1
"""The share of the rate with which a link starts where it is told to ramp up."""


@dataclass(frozen=True)
class Window:
    """A stretch of mesh time in which both directions carry."""

    start_s: float
    """From here on the link carries, mesh time in seconds: acquisition of both directions is over."""
    end_s: float
    """From here on it does not, mesh time in seconds."""
    forward: Contact
    """What the direction from source to target is like."""
    reverse: Contact
    """What the direction from target to source is like."""


def windows(plan: ContactPlan, source: str, target: str) -> tuple[Window, ...]:
    """The stretches in which contacts of both directions are open and have acquired, in order of time."""
    forward, reverse = plan.between(source, target), plan.between(target, source)
    found, one, other = [], 0, 0
    while one < len(forward) and other < len(reverse):
        there, back = forward[one], reverse[other]
        start_s = max(there.carries_from_s, back.carries_from_s)
        end_s = min(there.end_s, back.end_s)
        if start_s < end_s:
            found.append(Window(start_s, end_s, there, back))
        if there.end_s <= back.end_s:
            one += 1
        else:
            other += 1
    return tuple(found)


@dataclass(frozen=True)
class Schedule:
    """What a relay is to follow.

    Raises:
        InvalidInputError: `outage`, `ramp_s` or a name is wrong.
    """

    plan: ContactPlan
    """Which links are open when."""
    source: str
    """The node of the plan on the client's side of the relay."""
    target: str
    """The node of the plan on the target's side."""
    clock: MeshClock
    """Which mesh time it is."""
    outage: str = "cut"
    """One of `OUTAGES`."""
    ramp_s: float = 0.0
    """How long after acquisition the rate climbs from `RAMP_FROM` of it to all of it, mesh time in seconds."""

    def __post_init__(self) -> None:
        if self.outage not in OUTAGES:
            raise InvalidInputError(f"outage is {self.outage!r:.80}; expected one of {', '.join(OUTAGES)}")
        number = isinstance(self.ramp_s, int | float) and not isinstance(self.ramp_s, bool)
        if not number or not 0 <= self.ramp_s < math.inf:
            raise InvalidInputError(f"ramp_s is {self.ramp_s!r:.80}; expected mesh seconds from 0")
        for name, what in ((self.source, "source"), (self.target, "target")):
            if not isinstance(name, str) or not name:
                raise InvalidInputError(f"{what} is {name!r:.80}; expected the name of a node of the plan")

    def warnings(self) -> tuple[str, ...]:
        """What a reader should know: a pair that never meets, a plan that has ended."""
        pair = f"{self.source} and {self.target}"
        said = []
        unknown = sorted({self.source, self.target} - self.plan.nodes)
        if unknown:
            said.append(f"the plan does not know {' and '.join(unknown)}: the link stays closed")
        elif not windows(self.plan, self.source, self.target):
            one_way = self.plan.between(self.source, self.target) or self.plan.between(self.target, self.source)
            why = "have contacts in one direction only, and TCP needs both" if one_way else "never meet in the plan"
            said.append(f"{pair} {why}: the link stays closed")
        now_s = self.clock.now_s()
        if now_s >= self.plan.end_s:
            said.append(
                f"the plan ended at mesh time {self.plan.end_s:.3f} s and it is {now_s:.3f} s: the link stays closed; "
                "give a later plan or another origin"
            )
        return tuple(said)


def shape_in(contact: Contact, base: Shape) -> Shape:
    """The shape of a direction during a contact: its rate, its largest latency, jitter and damage as `base` has them.

    Raises:
        InvalidInputError: the emulator cannot carry that; the message names the contact.
    """
    if contact.rate_bps < MIN_RATE_BPS:
        raise InvalidInputError(
            f"{contact.title}: rate_bps is {contact.rate_bps:g} and the emulator carries at least {MIN_RATE_BPS:g}; "
            "raise it, or leave the contact out"
        )
    longest_ms = max(point.latency_s for point in contact.latency) * 1000
    try:
        return replace(base, latency_ms=longest_ms, rate_bps=contact.rate_bps)
    except InvalidInputError as error:
        raise InvalidInputError(f"{contact.title}: {error.message}", reason=error.reason) from None


class Timeline:
    """Mesh time on the monotonic clock: one straight line, read off the mesh's clock once."""

    def __init__(self, clock: MeshClock) -> None:
        self.factor = clock.factor
        self._origin_s = time.monotonic()
        self._origin_mesh_s = clock.now_s()

    def mesh_s(self, at_s: float) -> float:
        """The mesh time at a moment of the monotonic clock, seconds."""
        return self._origin_mesh_s + (at_s - self._origin_s) * self.factor

    def at_s(self, mesh_s: float) -> float:
        """The moment of the monotonic clock at a mesh time, seconds."""
        return self._origin_s + (mesh_s - self._origin_mesh_s) / self.factor


class ContactCourse:
    """Latency and rate of one direction during one contact (a `Course`).

    Both are computed for each chunk at the moment it enters the link, so there is no step between the plan and what a
    byte sees. What is already on the link keeps its time: bytes never overtake.
    """

    def __init__(self, contact: Contact, timeline: Timeline, ramp_s: float) -> None:
        self._contact = contact
        self._timeline = timeline
        self._ramp_s = ramp_s

    def latency_s(self, at_s: float) -> float:
        """The propagation of what enters the link at a moment of the monotonic clock, in seconds."""
        return self._contact.latency_at(self._timeline.mesh_s(at_s))

    def rate_bps(self, at_s: float) -> float:
        """Bits per second at a moment of the monotonic clock."""
        rate_bps = self._contact.rate_bps
        if not self._ramp_s:
            return rate_bps
        since_s = self._timeline.mesh_s(at_s) - self._contact.carries_from_s
        share = RAMP_FROM + (1 - RAMP_FROM) * min(max(since_s / self._ramp_s, 0.0), 1.0)
        return max(rate_bps * share, MIN_RATE_BPS)


_FIELDS = frozenset({"source", "target", "plan", "origin_mesh_s", "origin_wall_s", "factor", "outage", "ramp_s"})


def parse_schedule(fields: Mapping[str, object], plan: ContactPlan) -> Schedule:
    """A schedule from JSON fields; the caller has read the plan that they name.

    Left out, the clock's origin is the plan's start, now.

    Raises:
        InvalidInputError: a field is missing, unknown, of the wrong type, or out of range.
    """
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise InvalidInputError(f"unknown field {unknown[0]!r:.80}; a schedule has {', '.join(sorted(_FIELDS))}")
    numbers: dict[str, float] = {
        "origin_mesh_s": plan.start_s, "origin_wall_s": time.time(), "factor": 1.0, "ramp_s": 0.0
    }  # fmt: skip
    for name in numbers:
        value = fields.get(name, numbers[name])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(f"{name} is {value!r:.80}; expected a number")
        numbers[name] = float(value)
    clock = MeshClock(numbers["origin_mesh_s"], numbers["origin_wall_s"], numbers["factor"])
    source, target, outage = fields.get("source", ""), fields.get("target", ""), fields.get("outage", "cut")
    return Schedule(plan, source, target, clock, outage, numbers["ramp_s"])  # type: ignore[arg-type] # it checks them
