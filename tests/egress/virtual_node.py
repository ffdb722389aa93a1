"""A node with thin links in virtual time: each frame has its turn on its link, then on the way out."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.egress import Port, PortSpec, Ticket

OUT = ""
"""The way of frames whose link is as fast as the way out."""
KEPT_BYTES = 128 << 10
"""How much a sender keeps in the queue; two frames at least."""


@dataclass(frozen=True)
class Left:
    link: str
    name: str
    size: int
    offered_ns: int
    left_ns: int


@dataclass(frozen=True)
class Sender:
    """Keeps its queue filled."""

    link: str
    name: str
    size: int
    from_ns: int = 0
    to_ns: int = 1 << 62


class Node:
    """The two stages, put together from pure ports alone."""

    def __init__(self, out: PortSpec, links: dict[str, PortSpec]) -> None:
        self.out = Port(out, 0)
        self.links = {name: Port(spec, 0, departs=True) for name, spec in links.items()}
        self.left: list[Left] = []
        self.now_ns = 0
        self._senders: dict[Sender, int] = {}
        self._of: dict[Ticket, tuple[str, Ticket, Sender | None]] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, at_ns: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_ns, next(self._count), what))

    def greedy(self, *senders: Sender) -> None:
        for sender in senders:
            self._senders[sender] = 0
            self.at(sender.from_ns, lambda: None)

    def messages(self, link: str, name: str, size: int, at_ns: Iterable[int]) -> None:
        for moment in at_ns:
            self.at(moment, lambda: self.offer(link, name, size))

    def offer(self, link: str, name: str, size: int, sender: Sender | None = None) -> None:
        port = self.links.get(link, self.out)
        ticket = port.offer(name, size, self.now_ns)
        self._of[ticket] = link, ticket, sender

    def run(self, until_ns: int) -> None:
        while self.now_ns <= until_ns:
            while self._events and self._events[0][0] <= self.now_ns:
                heapq.heappop(self._events)[2]()
            moments = [self._events[0][0]] if self._events else []
            moments += [found for found in self._step() if found is not None]
            if not moments:
                return
            assert min(moments) > self.now_ns, "a port that says 'now' and gives nothing is asked for ever"
            self.now_ns = min(moments)

    def _step(self) -> list[int | None]:
        """All that happens now; until when nothing does, by port."""
        while True:
            for sender in self._senders:
                kept = max(KEPT_BYTES // sender.size, 2)
                while sender.from_ns <= self.now_ns < sender.to_ns and self._senders[sender] < kept:
                    self._senders[sender] += 1
                    self.offer(sender.link, sender.name, sender.size, sender)
            moments: list[int | None] = []
            moved = False
            for name, port in self.links.items():
                while isinstance(found := port.next(self.now_ns), Ticket):
                    second = self.out.offer(found.name, found.size, self.now_ns, found.since_ns, name)
                    self._of[second] = self._of.pop(found)
                    moved = True
                moments.append(found)
            while isinstance(found := self.out.next(self.now_ns), Ticket):
                link, first, sender = self._of.pop(found)
                if first is not found:
                    self.links[link].depart(first, self.now_ns)
                if sender is not None:
                    self._senders[sender] -= 1
                self.left.append(Left(link, found.name, found.size, first.offered_ns, self.now_ns))
                moved = True
            moments.append(found)
            if not moved:
                return moments

    def bytes_of(self, link: str | None, name: str | None, from_ns: int, to_ns: int) -> int:
        return sum(
            each.size
            for each in self.left
            if link in (None, each.link) and name in (None, each.name) and from_ns <= each.left_ns < to_ns
        )

    def begun(self, link: str, rate_bps: float) -> list[tuple[Left, float]]:
        """When each frame begins on a link that carries so much, first come first served, in nanoseconds: plain
        arithmetic over what left."""
        found, free_ns = [], 0.0
        for each in self.left:
            if each.link == link:
                began_ns = max(free_ns, each.left_ns)
                free_ns = began_ns + each.size * 8e9 / rate_bps
                found.append((each, began_ns))
        return found

    def below_ns(self, link: str, rate_bps: float) -> float:
        """The longest that any frame waited below for a link that carries so much."""
        return max(began_ns - each.left_ns for each, began_ns in self.begun(link, rate_bps))
