"""A port in virtual time: senders that keep their queue filled or send at given moments, and what went when."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from orbitmesh.errors import CapacityError
from services.egress import Port, PortSpec, Ticket

SECOND = 1_000_000_000
FRAME = 16 << 10
KEPT = 2  # how many frames a sender keeps in the queue


@dataclass(frozen=True)
class Sent:
    name: str
    size: int
    offered_ns: int
    began_ns: int


@dataclass(frozen=True)
class Greedy:
    """Keeps its queue filled from one moment to another."""

    name: str
    size: int = FRAME
    from_ns: int = 0
    to_ns: int = 1 << 62


class World:
    """One port and all that happens on it.

    Args:
        spec: Its rules.
        stalls: From when to when the process does not run, in order; what falls due meanwhile is late.
    """

    def __init__(self, spec: PortSpec, stalls: Sequence[tuple[int, int]] = ()) -> None:
        self._stalls = deque(stalls)
        self.port = Port(spec, 0)
        self.sent: list[Sent] = []
        self.refused = 0
        self.now_ns = 0
        self._names: dict[int, str] = {}
        self._greedy: list[Greedy] = []
        self._kept: dict[Greedy, set[int]] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, at_ns: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_ns, next(self._count), what))

    def greedy(self, *senders: Greedy) -> None:
        for sender in senders:
            self._greedy.append(sender)
            self._kept[sender] = set()
            self.at(sender.from_ns, lambda: None)

    def messages(self, name: str, size: int, at_ns: Iterable[int]) -> None:
        for moment in at_ns:
            self.at(moment, lambda: self.offer(name, size))

    def offer(self, name: str, size: int) -> Ticket | None:
        try:
            ticket = self.port.offer(name, size, self.now_ns)
        except CapacityError:
            self.refused += 1
            return None
        self._names[id(ticket)] = name
        return ticket

    def run(self, until_ns: int) -> None:
        while self.now_ns <= until_ns:
            while self._events and self._events[0][0] <= self.now_ns:
                heapq.heappop(self._events)[2]()
            found = self._next()
            moments = [self._events[0][0]] if self._events else []
            if isinstance(found, int):
                assert found > self.now_ns, "a port that says 'now' and gives nothing is asked for ever"
                moments.append(found)
            if not moments:
                return
            self.now_ns = self._awake(min(moments))

    def _awake(self, at_ns: int) -> int:
        while self._stalls and self._stalls[0][1] <= at_ns:
            self._stalls.popleft()
        return self._stalls[0][1] if self._stalls and self._stalls[0][0] <= at_ns else at_ns

    def _next(self) -> int | None:
        while True:
            for sender in self._greedy:
                kept = self._kept[sender]
                while sender.from_ns <= self.now_ns < sender.to_ns and len(kept) < KEPT:
                    ticket = self.offer(sender.name, sender.size)
                    if ticket is None:
                        break
                    kept.add(id(ticket))
            found = self.port.next(self.now_ns)
            if not isinstance(found, Ticket):
                return found
            for kept in self._kept.values():
                kept.discard(id(found))
            name = self._names.pop(id(found))
            self.sent.append(Sent(name, found.size, found.offered_ns, self.now_ns))

    def bytes_of(self, name: str, from_ns: int = 0, to_ns: int = 1 << 62) -> int:
        return sum(each.size for each in self.sent if each.name == name and from_ns <= each.began_ns < to_ns)

    def windows(self, name: str, from_ns: int, to_ns: int, length_ns: int = SECOND) -> tuple[int, int]:
        """The least and the most bytes that began in any window of that length."""
        mine = [each for each in self.sent if each.name == name]
        starts = {from_ns, to_ns - length_ns}
        for each in mine:
            starts |= {each.began_ns, each.began_ns + 1, each.began_ns - length_ns, each.began_ns - length_ns + 1}
        starts = {start for start in starts if from_ns <= start <= to_ns - length_ns}
        moments = [each.began_ns for each in mine]
        before = [0, *itertools.accumulate(each.size for each in mine)]
        sums = [before[bisect_left(moments, s + length_ns)] - before[bisect_left(moments, s)] for s in starts]
        return min(sums), max(sums)


def fluid_shares(spec: PortSpec, busy: set[str]) -> dict[str, float]:
    """Who gets what, in bit/s, were frames infinitely small: each its guarantee, the rest by weight up to the ceilings.

    Written from the words of the rules, by bisection over what a unit of weight gets; nothing of it is the scheduler's.
    """
    rules = {name: spec.rule(name) for name in busy}
    dedicated = {name: Fraction(rule.dedicated_bps) for name, rule in spec.slices.items()}
    lent = max(Fraction(spec.rate_bps) - sum(dedicated.values()), Fraction(spec.rate_bps) / 100)
    to_give = min(sum(dedicated.get(name, Fraction(0)) for name in busy) + lent, Fraction(spec.rate_bps))
    guarantees = {name: Fraction(rule.guarantee_bps) for name, rule in rules.items()}
    ceilings = {name: Fraction(rule.ceiling_bps or spec.rate_bps) for name, rule in rules.items()}
    weights = {name: max(guarantees[name], Fraction(spec.rate_bps) / 100) for name in rules}

    def shares(level: Fraction) -> dict[str, Fraction]:
        return {name: min(ceilings[name], guarantees[name] + weights[name] * level) for name in rules}

    low, high = Fraction(0), Fraction(1000)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle).values()) <= to_give else (low, middle)
    return {name: float(share) for name, share in shares(low).items()}
