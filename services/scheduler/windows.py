"""Ways that stand: which nodes can talk at a moment, directly or through relays, for how long and at what cost. Pure.

A pipeline's frames are not kept by relays for later: a way needs all of its hops open at once. Its latency is the sum
over the hops, its transfer time too (each relay takes a piece in before it sends it on), and it closes with the first
of its windows. Of the ways that stay open for as long as is asked, the cheapest for one activation is taken; of equals
the one with fewer relays, then with the smaller names.

Where the contact plan speaks for both ends of a link, it decides whether the link is there; links of other nodes are
taken as measured, and to last. A link that was found down although its window is open is not counted on now.

Times are mesh time; latencies and transfer times are real seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from orbitmesh.contacts import Contact, ContactPlan
from services.scheduler.costs import Floats, Ints, PlanLink

RELAYS_MAX = 3
"""The most relays of one way."""


@dataclass(frozen=True)
class WayHop:
    """One link of a way."""

    source: str
    """Sending node."""
    target: str
    """Receiving node."""
    contact: Contact | None
    """The window; None where the link is not of the contact plan."""
    link: PlanLink
    """Latency and rate at the moment that was asked for."""
    closes_s: float
    """When it closes, mesh time in seconds; `inf` where nothing says that it does."""


@dataclass(frozen=True)
class Way:
    """How one node reaches another at a moment."""

    hops: tuple[WayHop, ...]
    """In order, at least one."""

    @property
    def via(self) -> tuple[str, ...]:
        """The relaying nodes, in order."""
        return tuple(hop.target for hop in self.hops[:-1])

    @property
    def closes_s(self) -> float:
        """When the first of its windows closes, mesh time in seconds."""
        return min(hop.closes_s for hop in self.hops)

    @property
    def link(self) -> PlanLink:
        """The way as one link: latencies add up, and so do the times that a bit takes."""
        bit_s = sum(1.0 / hop.link.rate_bps for hop in self.hops)
        return PlanLink(sum(hop.link.latency_s for hop in self.hops), 1.0 / bit_s if bit_s > 0 else math.inf)


@dataclass(frozen=True)
class Sky:
    """The contact plan as the planner sees it from a moment on."""

    plan: ContactPlan
    """The windows."""
    now_s: float
    """The moment, mesh time in seconds."""
    stretch: float = 1.0
    """Mesh seconds per real second."""
    wired: Mapping[tuple[str, str], PlanLink] = field(default_factory=dict)
    """Measured links; only those count whose ends the plan does not both know."""
    down: frozenset[tuple[str, str]] = frozenset()
    """Links that were found down since their window opened."""

    def hop(self, source: str, target: str, at_s: float) -> WayHop | None:
        """The direct link at a moment, where it carries; None where it does not."""
        if source not in self.plan.nodes or target not in self.plan.nodes:
            wire = self.wired.get((source, target))
            return None if wire is None else WayHop(source, target, None, wire, math.inf)
        contact = self.plan.at(source, target, at_s)
        if contact is None or at_s < contact.carries_from_s:
            return None
        if at_s <= self.now_s and (source, target) in self.down:
            return None
        link = PlanLink(contact.latency_at(at_s), contact.rate_bps)
        return WayHop(source, target, contact, link, closing_s(self.plan, contact))

    def moments(self) -> list[float]:
        """Now, and every later time at which a link begins to carry; mesh time in seconds."""
        later = {contact.carries_from_s for contact in self.plan.contacts if contact.carries_from_s > self.now_s}
        return [self.now_s, *sorted(at_s for at_s in later if at_s < self.plan.end_s)]

    def best_ever(self, source: str, target: str) -> PlanLink | None:
        """A link at least as good as any that the two will have; None where they will never have one."""
        if source not in self.plan.nodes or target not in self.plan.nodes:
            return self.wired.get((source, target))
        found = [contact for contact in self.plan.between(source, target) if contact.end_s > self.now_s]
        if not found:
            return None
        latency_s = min(point.latency_s for contact in found for point in contact.latency)
        return PlanLink(latency_s, max(contact.rate_bps for contact in found))


def closing_s(plan: ContactPlan, contact: Contact) -> float:
    """When a window closes; `inf` where the plan says that it outlasts the plan itself."""
    return math.inf if contact.truncated_end and contact.end_s >= plan.end_s else contact.end_s


class Ways:
    """All ways among some nodes at one moment, for any length of time.

    Args:
        sky: The windows.
        names: The nodes, relays included.
        at_s: The moment, mesh time in seconds.
        size_bytes: Of one activation: what is cheap is judged by it.
        relays: Those of them that relay; all where left out.
    """

    def __init__(
        self, sky: Sky, names: Sequence[str], at_s: float, size_bytes: int, relays: Collection[str] | None = None
    ) -> None:
        self._names = sorted(names)
        self._index = {name: index for index, name in enumerate(self._names)}
        count = len(self._names)
        self._relays = np.array([relays is None or name in relays for name in self._names], dtype=bool)
        self._cost, self._closes = np.full((count, count), np.inf), np.full((count, count), -np.inf)
        self._direct: dict[tuple[int, int], WayHop] = {}
        self._found: dict[float, tuple[list[Ints], Floats]] = {}
        for a, source in enumerate(self._names):
            for b, target in enumerate(self._names):
                hop = sky.hop(source, target, at_s) if a != b else None
                if hop is not None:
                    self._direct[a, b] = hop
                    self._cost[a, b] = hop.link.latency_s + size_bytes * 8 / hop.link.rate_bps
                    self._closes[a, b] = hop.closes_s

    def way(self, source: str, target: str, until_s: float) -> Way | None:
        """The cheapest way that stays open until then; None where there is none, or the two are the same."""
        if source not in self._index or target not in self._index:
            return None
        steps, cost = self._until(until_s)
        a, b = self._index[source], self._index[target]
        if a == b or not math.isfinite(cost[a, b]):
            return None
        path = [b]
        for step in reversed(steps):
            relay = int(step[a, path[0]])
            if relay >= 0:
                path.insert(0, relay)
        nodes = [a, *path]
        return Way(tuple(self._direct[pair] for pair in pairwise(nodes)))

    def direct(self, source: str, target: str, until_s: float) -> Way | None:
        """The way without relays, where it stays open until then."""
        hop = self._direct.get((self._index.get(source, -1), self._index.get(target, -1)))
        return Way((hop,)) if hop is not None and hop.closes_s >= until_s else None

    def links(self, names: Sequence[str], until_s: float) -> dict[tuple[str, str], PlanLink]:
        """The ways among some of the nodes that stay open until then, each as one link."""
        found = {}
        for source in names:
            for target in names:
                way = self.way(source, target, until_s)
                if way is not None:
                    found[source, target] = way.link
        return found

    def reach(self, source: str, target: str, until_s: float) -> bool:
        """Whether one can talk to the other until then; a node always can to itself."""
        if source == target:
            return True
        if source not in self._index or target not in self._index:
            return False
        return math.isfinite(self._until(until_s)[1][self._index[source], self._index[target]])

    def _until(self, until_s: float) -> tuple[list[Ints], Floats]:
        """Per relay added: [N, N] the last relay of the way, -1 where it did not help; and the cost, [N, N]."""
        if until_s not in self._found:
            direct = np.where(self._closes >= until_s, self._cost, np.inf)
            cost, steps = direct, []
            for _ in range(RELAYS_MAX):
                relay = np.full(cost.shape, -1, dtype=np.int64)
                better = cost.copy()
                for a in range(cost.shape[0]):
                    through = np.where(self._relays[:, None], cost[a][:, None] + direct, np.inf)
                    best = through.argmin(axis=0)
                    least = through[best, np.arange(best.size)]
                    helps = least < better[a]
                    helps[a] = False
                    relay[a, helps], better[a, helps] = best[helps], least[helps]
                steps.append(relay)
                cost = better
            self._found[until_s] = (steps, cost)
        return self._found[until_s]
