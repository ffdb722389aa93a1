"""Earliest arrival over a contact plan: contact graph routing for messages that relays may keep and send on. Pure.

A message of `size_bytes` at a node waits for a contact, takes `size x 8 / rate` to leave, and arrives one propagation
delay later; a contact carries from the end of its acquisition until its end, and the last bit must have left by then.
Arriving earlier at a node never hurts, because the message may wait there (a delay cannot shrink faster than time
passes), so Dijkstra's algorithm on arrival times is exact.

Routes that arrive at the same time are told apart as CCSDS 734.3-B-1 (schedule-aware bundle routing) does: fewer hops,
then the later end of the route's first contact to end, then the smaller name of the first node after the source, and,
where even these agree, the smaller names along the whole route.

Times are mesh time; rates and delays are of real seconds and are stretched by the clock's factor.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from orbitmesh.contacts import Contact, ContactPlan
from orbitmesh.errors import InvalidInputError

HOPS_MAX = 64
"""The most hops of a route."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One contact of a route."""

    contact: Contact
    """The window."""
    departs_s: float
    """When the first bit leaves, mesh time in seconds."""
    arrives_s: float
    """When the last bit is there, mesh time in seconds."""


@dataclass(frozen=True, slots=True)
class Route:
    """A way from one node to another over contacts."""

    hops: tuple[Hop, ...]
    """In order; none where source and target are the same node."""
    arrives_s: float
    """When the last bit is at the target, mesh time in seconds."""

    @property
    def via(self) -> tuple[str, ...]:
        """The relaying nodes, in order."""
        return tuple(hop.contact.target for hop in self.hops[:-1])

    @property
    def ends_s(self) -> float:
        """When the first of its windows closes, mesh time in seconds."""
        return min((hop.contact.end_s for hop in self.hops), default=math.inf)


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows from one node to another, by time."""

    target: str
    contacts: tuple[Contact, ...]
    ends_s: tuple[float, ...]


class Router:
    """Answers for one contact plan; made once, asked often.

    Args:
        plan: The windows.
        stretch: Mesh seconds per real second.
    """

    def __init__(self, plan: ContactPlan, stretch: float = 1.0) -> None:
        if not (math.isfinite(stretch) and stretch > 0):
            raise InvalidInputError(f"stretch is {stretch}; expected mesh seconds per real second, above 0")
        self._stretch = stretch
        self._from: dict[str, list[_Windows]] = {}
        for source, target in sorted(plan.pairs):
            found = plan.between(source, target)
            self._from.setdefault(source, []).append(_Windows(target, found, tuple(c.end_s for c in found)))

    def earliest(self, source: str, target: str, start_s: float, size_bytes: float = 0) -> Route | None:
        """A route that arrives as early as any does; None where none ever does.

        Args:
            source: Where the message is.
            target: Where it is to go.
            start_s: When it is ready, mesh time in seconds.
            size_bytes: Its size.
        """
        if source == target:
            return Route((), start_s)
        arrives: dict[str, float] = {source: start_s}
        came_by: dict[str, Hop] = {}
        done: set[str] = set()
        queue = [(start_s, source)]
        while queue:
            at_s, node = heapq.heappop(queue)
            if node == target:
                return _trace(came_by, source, target)
            if node in done:
                continue
            done.add(node)
            bound_s = arrives.get(target, math.inf)
            for windows in self._from.get(node, ()):
                if windows.target in done:
                    continue
                known_s = min(arrives.get(windows.target, math.inf), bound_s)
                hop = self._first(windows, at_s, size_bytes, known_s)
                if hop is not None:
                    arrives[windows.target] = hop.arrives_s
                    came_by[windows.target] = hop
                    heapq.heappush(queue, (hop.arrives_s, windows.target))
                    if windows.target == target:
                        bound_s = hop.arrives_s
        return None

    def best(self, source: str, target: str, start_s: float, size_bytes: float = 0) -> Route | None:
        """The earliest route, ties told apart by hops, end, first node and names; None where there is none."""
        found = self.earliest(source, target, start_s, size_bytes)
        if found is None or not found.hops:
            return found
        arrival_s = found.arrives_s
        most = len(found.hops)
        labels = self._labels(source, target, start_s, size_bytes, arrival_s, most)
        final = [label for label in labels if label[0] == arrival_s]
        hops = min(len(label[2]) for label in final)
        best = min(
            (label for label in final if len(label[2]) == hops),
            key=lambda label: (-label[1], [hop.contact.target for hop in label[2]]),
        )
        return Route(best[2], arrival_s)

    def _labels(
        self, source: str, target: str, start_s: float, size_bytes: float, bound_s: float, most: int
    ) -> list[tuple[float, float, tuple[Hop, ...]]]:
        """Routes to the target hop by hop: (arrival, end, hops), none worse than another in arrival, end and names."""
        here: dict[str, list[tuple[float, float, tuple[Hop, ...]]]] = {source: [(start_s, math.inf, ())]}
        for _ in range(min(most, HOPS_MAX)):
            reached: dict[str, list[tuple[float, float, tuple[Hop, ...]]]] = {}
            for node in sorted(here):
                for at_s, end_s, hops in here[node]:
                    for windows in self._from.get(node, ()):
                        for hop in self._all(windows, at_s, size_bytes, bound_s):
                            label = (hop.arrives_s, min(end_s, hop.contact.end_s), (*hops, hop))
                            _keep(reached.setdefault(windows.target, []), label)
            if any(label[0] == bound_s for label in reached.get(target, ())):
                return reached[target]
            here = reached
        return here.get(target, [])

    def _first(self, windows: _Windows, at_s: float, size_bytes: float, before_s: float) -> Hop | None:
        """The hop over these windows that arrives first and before `before_s`."""
        best: Hop | None = None
        for index in range(bisect_right(windows.ends_s, at_s), len(windows.contacts)):
            contact = windows.contacts[index]
            if contact.start_s >= before_s:
                break  # later windows open later still
            hop = self._over(contact, at_s, size_bytes)
            if hop is not None and hop.arrives_s < before_s:
                best, before_s = hop, hop.arrives_s
        return best

    def _all(self, windows: _Windows, at_s: float, size_bytes: float, until_s: float) -> list[Hop]:
        found = []
        for index in range(bisect_right(windows.ends_s, at_s), len(windows.contacts)):
            contact = windows.contacts[index]
            if contact.start_s > until_s:
                break
            hop = self._over(contact, at_s, size_bytes)
            if hop is not None and hop.arrives_s <= until_s:
                found.append(hop)
        return found

    def _over(self, contact: Contact, at_s: float, size_bytes: float) -> Hop | None:
        departs_s = max(at_s, contact.start_s + contact.acquisition_s)
        leaves_s = departs_s + size_bytes * 8 / contact.rate_bps * self._stretch
        if departs_s >= contact.end_s or leaves_s > contact.end_s:
            return None
        return Hop(contact, departs_s, leaves_s + contact.latency_at(leaves_s) * self._stretch)


def _keep(
    labels: list[tuple[float, float, tuple[Hop, ...]]], label: tuple[float, float, tuple[Hop, ...]]
) -> None:
    """Adds a label unless one that is there is as early, ends as late and has names as small."""

    def names(hops: Sequence[Hop]) -> list[str]:
        return [hop.contact.target for hop in hops]

    mine = names(label[2])
    if any(other[0] <= label[0] and other[1] >= label[1] and names(other[2]) <= mine for other in labels):
        return
    labels[:] = [
        other for other in labels if not (label[0] <= other[0] and label[1] >= other[1] and mine <= names(other[2]))
    ]
    labels.append(label)


def _trace(came_by: dict[str, Hop], source: str, target: str) -> Route:
    hops = []
    node = target
    while node != source:
        hops.append(came_by[node])
        node = came_by[node].contact.source
    return Route(tuple(reversed(hops)), hops[0].arrives_s)


def first_opening(contacts: Sequence[Contact], at_s: float) -> Contact | None:
    """The window that is open at a time or opens next; None after the last."""
    index = bisect_left([contact.end_s for contact in contacts], at_s)
    while index < len(contacts) and contacts[index].end_s <= at_s:
        index += 1
    return contacts[index] if index < len(contacts) else None
