"""The slices of a port as its scheduler sees them: what waits of each, and what each may have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from services.egress.flows import Flows
from services.egress.meter import NS_BITS, Ceiling, Meter
from services.egress.spec import PortSpec, SliceRule
from services.egress.traffic import Traffic

BURST_FRAMES = 2
"""How many frames a slice within its guarantee may send at once after a pause."""


class Cause(Enum):
    """Why a frame waits."""

    CEILING = 0
    """Its slice has all that it may have."""
    URGENT = 1
    """A frame of an urgent slice goes before it."""
    LINK = 2
    """Another frame is on the link, or was before it in its turn."""
    DEDICATED = 3
    """What is idle is dedicated to other slices."""


class State(Enum):
    """How a ticket is."""

    WAITS = 0
    SENT = 1
    WITHDRAWN = 2


@dataclass(slots=True, eq=False)
class Ticket:
    """A frame's place in the queue of its slice."""

    lane: Lane = field(repr=False)
    name: str
    """The slice that was asked for."""
    size: int
    """In bytes."""
    offered_ns: int
    """When it came."""
    since_ns: int
    """From when on its wait counts in what is measured: when it came to the first of its ports."""
    flow: str
    """Frames of a slice keep their order within a flow; flows take turns."""
    before_ns: tuple[float, ...]
    """How long its slice had waited for each cause until then."""
    state: State = State.WAITS
    dedicated: bool = False
    """Whether it was paid from what is dedicated to its slice."""
    within: bool = False
    """Whether it was within its slice's guarantee."""
    waited_ns: int = 0
    """How long it waited, once it had its turn."""
    cause: Cause | None = None
    """What it waited for longest; None where it did not wait."""


class Lane:
    """One slice on the link."""

    def __init__(self, name: str, traffic: Traffic, now_ns: int) -> None:
        self.name = name
        self.rule = SliceRule()
        self.traffic = traffic
        self.queue: Flows[Ticket] = Flows()
        self.frames = 0  # in the queue
        self.queued_bytes = 0
        self.since_ns = now_ns  # from when on it has had frames to send
        self.idle_ns: float = -math.inf  # when it had none last
        self.blocked_ns = [0.0] * len(Cause)
        self.deficit = 0.0
        self.quantum = 1.0
        self.held_frames = 0  # that had their turn and have not left
        self.held_bytes = 0
        self.held_max = 0  # with so many of them, no other has its turn
        # The guarantee; of an urgent slice, all that it may have before others.
        self.within = Meter(0.0, 0.0, now_ns)
        self.dedicated = Meter(0.0, 0.0, now_ns)
        self.ceiling = Ceiling(math.inf, now_ns)

    def head_bytes(self) -> int:
        """The size of its next frame; 0 where it has none."""
        return self.queue.head.size if self.frames else 0

    @property
    def held(self) -> bool:
        """Whether its next frame has no turn before one that had has left."""
        return bool(self.held_bytes) and self.held_bytes + self.head_bytes() > self.held_max

    def change(self, rule: SliceRule, spec: PortSpec, within_bps: float, quantum: float, now_ns: int) -> None:
        """Takes another rule from now on."""
        burst = BURST_FRAMES * spec.frame_bytes(SliceRule()) * NS_BITS
        self.held_max = spec.frame_bytes(SliceRule())
        self.rule = rule
        self.within.change(within_bps, burst / within_bps if within_bps else 0.0, now_ns)
        self.dedicated.change(rule.dedicated_bps, burst / rule.dedicated_bps if rule.dedicated_bps else 0.0, now_ns)
        ceiling = math.inf if rule.ceiling_bps is None or rule.ceiling_bps >= spec.rate_bps else rule.ceiling_bps
        self.ceiling.change(ceiling, 0.0, now_ns)
        self.quantum = quantum
