"""Whose step is next: weighted fair queuing over slices, by the time that their steps really took. Pure.

Start-time fair queuing (P. Goyal, H. M. Vin, H. Cheng: Start-time Fair Queuing: A Scheduling Algorithm for Integrated
Services Packet Switching Networks, SIGCOMM 1996; on processors: P. Goyal, X. Guo, H. M. Vin: A Hierarchical CPU
Scheduler for Multimedia Operating Systems, OSDI 1996). It chooses by the tag at which a step starts, so the length of a
step need not be known before it has ended; that is why it, and not a scheme that sorts by finish tags, is used here.

Beside it, per slice: a ceiling, a part that is never lent, and a right to go first, each a token bucket of processor
time. A bucket lets a step begin while it is not in debt, because nobody knows how long the step will take; what the
step took is paid afterwards. So a slice has at most `rate x (time + window) + one step`, over any time.

Without rules there is one line. Within a line owners take turns in the same way, by the time that their steps took: one
who has many steps waiting delays another by about one step, not by all of them. The steps of one owner are served first
come first served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orbitmesh.errors import CapacityError, InvalidInputError

CEILING_WINDOW_NS = 20_000_000
"""How much idle time a ceiling remembers, in nanoseconds: 2 % of what it allows in a second."""
FIRST_WINDOW_NS = 1_000_000_000
"""How much idle time the right to go first remembers, in nanoseconds."""
REST_LEAST = 0.01
"""What those whom no rule names have at the least: a rule may slow them down, never stop them."""
CEILING_LEAST = 0.001
"""The lowest ceiling, for the same reason."""
SLICES_MAX = 256
"""How many slices one node has rules for."""
WAITING_MAX = 1 << 16
"""How many steps wait at once."""
OWNERS_KEPT = 64
"""Of how many owners a line remembers what they had, also when nothing of theirs waits."""
ROUNDING = 1e-9
"""By so much sums of shares may be above 1."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """What a slice has of the time in which steps are computed, as parts from 0 to 1."""

    guaranteed: float = 0.0
    """What it gets while it has steps, lent while it has none; also its weight beside others."""
    dedicated: float = 0.0
    """What others never get. At most `guaranteed`."""
    ceiling: float = 1.0
    """What it never has more of, also while others have no steps."""
    first: bool = False
    """Its steps go before those of all others, as long as it stays within what is guaranteed to it."""

    def check(self, name: str) -> None:
        """Checks the parts against each other.

        Raises:
            InvalidInputError: Where they are not parts of a whole, or contradict each other.
        """
        parts = (self.dedicated, self.guaranteed, self.ceiling)
        if not (all(map(math.isfinite, parts)) and 0 <= parts[0] <= parts[1] <= parts[2] <= 1):
            raise InvalidInputError(
                f"slice {name!r}: 0 <= dedicated <= guaranteed <= ceiling <= 1 is needed, found "
                f"{self.dedicated}, {self.guaranteed}, {self.ceiling}"
            )


class _Bucket:
    """Processor time that may be spent, in nanoseconds: it fills at a rate, up to a depth, and may be in debt."""

    def __init__(self, rate: float, window_ns: int, now_ns: int) -> None:
        self.rate = rate
        self.depth = rate * window_ns
        self.level = self.depth
        self.at_ns = now_ns

    def fill(self, now_ns: int) -> float:
        self.level = min(self.depth, self.level + self.rate * max(0, now_ns - self.at_ns))
        self.at_ns = max(now_ns, self.at_ns)
        return self.level

    def spend(self, spent_ns: float, now_ns: int) -> None:
        """Pays for a step that ends now; paid first, so that what came in while it ran is not above the depth."""
        self.level -= spent_ns
        self.fill(now_ns)

    def ready_ns(self, now_ns: int) -> int:
        """When it is out of debt."""
        level = self.fill(now_ns)
        return now_ns if level >= 0 else now_ns + math.ceil(-level / self.rate)

    def set_rate(self, rate: float, window_ns: int, now_ns: int) -> None:
        self.fill(now_ns)
        self.rate, self.depth = rate, rate * window_ns
        self.level = min(self.level, self.depth)


class _Owner(Generic[T]):
    """What one owner has waiting in a line."""

    __slots__ = ("start", "waiting")

    def __init__(self, start: float) -> None:
        self.start = start
        """The start tag of its next step, in nanoseconds of work."""
        self.waiting: deque[Entry[T]] = deque()


class _Line(Generic[T]):
    """Steps that wait, of owners that take turns."""

    __slots__ = ("_owners", "_virtual", "_waiting")

    def __init__(self) -> None:
        self._owners: dict[int, _Owner[T]] = {}
        self._virtual = 0.0
        self._waiting = 0

    def __bool__(self) -> bool:
        return self._waiting > 0

    def __iter__(self) -> Iterator[Entry[T]]:
        for owner in self._owners.values():
            yield from owner.waiting

    @property
    def first(self) -> Entry[T]:
        """The one whose turn it is."""
        return self._next().waiting[0]

    def append(self, entry: Entry[T]) -> None:
        owner = self._owners.get(entry.owner)
        if owner is None:
            owner = self._owners[entry.owner] = _Owner(self._virtual)
        elif not owner.waiting:
            owner.start = max(owner.start, self._virtual)
        entry.turn = owner
        owner.waiting.append(entry)
        self._waiting += 1

    def popleft(self) -> Entry[T]:
        owner = self._next()
        self._virtual = max(self._virtual, owner.start)
        self._waiting -= 1
        entry = owner.waiting.popleft()
        if not self._waiting:
            # All are equal again; who is served now is charged for it to no effect.
            self._owners.clear()
        elif len(self._owners) > OWNERS_KEPT:
            self._owners = {name: each for name, each in self._owners.items() if each.waiting or each is owner}
        return entry

    def clear(self) -> None:
        self._owners.clear()
        self._waiting = 0

    def _next(self) -> _Owner[T]:
        if len(self._owners) == 1:
            return next(iter(self._owners.values()))
        return min((each for each in self._owners.values() if each.waiting), key=_place)


def _place(owner: _Owner[Any]) -> tuple[float, int]:
    return owner.start, owner.waiting[0].number


class _Lane(Generic[T]):
    """The line of one slice."""

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.waiting: _Line[T] = _Line()
        self.start = start
        """The start tag of the next step: virtual time, in nanoseconds of work per weight."""
        self.weight = 1.0
        self.ceiling: _Bucket | None = None
        self.first: _Bucket | None = None
        self.dedicated: _Bucket | None = None
        self.serving = False
        self.held_since_ns: int | None = None
        self.held_until_ns = 0
        self.held_by = ""
        self.held_ns = 0
        """For how long, in all, steps waited here because of a ceiling or of what is not lent."""

    def set_share(self, share: Share, weight: float, now_ns: int) -> None:
        self.weight = weight
        limit = max(share.ceiling, CEILING_LEAST)
        self.ceiling = _at_rate(self.ceiling, limit if limit < 1 else 0.0, CEILING_WINDOW_NS, now_ns)
        self.first = _at_rate(self.first, share.guaranteed if share.first else 0.0, FIRST_WINDOW_NS, now_ns)
        self.dedicated = _at_rate(self.dedicated, share.dedicated, CEILING_WINDOW_NS, now_ns)

    def held_so_far(self, now_ns: int) -> int:
        return self.held_ns + self._held_now(now_ns)

    def hold(self, now_ns: int, until_ns: int, why: str) -> None:
        if self.held_since_ns is None:
            self.held_since_ns = now_ns
        self.held_until_ns, self.held_by = until_ns, why

    def let_go(self, now_ns: int) -> None:
        self.held_ns += self._held_now(now_ns)
        self.held_since_ns = None

    def _held_now(self, now_ns: int) -> int:
        if self.held_since_ns is None:
            return 0
        return max(0, min(now_ns, self.held_until_ns) - self.held_since_ns)


@dataclass(slots=True)
class Entry(Generic[T]):
    """An item in line, and what became of it there; `FairQueue.ended` wants it back. Made by the queue."""

    number: int
    """Counts what was put."""
    item: T
    """What was put."""
    slice_name: str | None
    """Whose it is, as it was put."""
    owner: int = 0
    """Who takes turns with others in the line, as it was put."""
    held_ns: int = 0
    """For how long it waited because of a rule, though it could have been computed, in nanoseconds."""
    held_by: str = ""
    """The rule that held it back last, for people; empty where none did."""
    lane: _Lane[T] | None = None
    """Whose time it took; None for the node's own work."""
    turn: _Owner[T] | None = None
    """Whose turn it is charged to; None for what goes before all lines."""


class FairQueue(Generic[T]):
    """Items of slices, in the order in which they are to be served one at a time. It has no clock of its own.

    Items of one slice and owner are served in the order in which they were put, also across a change of the rules. A
    slice that no rule names shares the line of those that name none.
    """

    def __init__(self) -> None:
        self._rest: _Lane[T] = _Lane("", 0.0)
        self._lanes: dict[str, _Lane[T]] = {}
        self._own: deque[Entry[T]] = deque()
        self._pool: _Bucket | None = None
        self._virtual = 0.0
        self._count = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Everything that waits, in the order in which it was put."""
        return (entry.item for entry in self._entries())

    @property
    def ruled(self) -> bool:
        """Whether there are rules."""
        return bool(self._lanes)

    def put(self, item: T, slice_name: str | None, now_ns: int, owner: int = 0) -> None:
        """Adds an item.

        Args:
            item: What is to be served.
            slice_name: Whose it is, empty for nobody's in particular; None is the node's own work, which goes first
                where there are rules and is charged to nobody.
            now_ns: The time, nanoseconds.
            owner: Who takes turns with others in the same slice; 0 for nobody in particular.

        Raises:
            CapacityError: Too many wait.
        """
        if self._length >= WAITING_MAX:
            raise CapacityError(f"{WAITING_MAX} steps wait on this node, the most that it takes; try again later")
        self._length += 1
        self._count += 1
        entry = Entry(self._count, item, slice_name, owner)
        if not self._lanes:
            self._rest.waiting.append(entry)
        elif slice_name is None:
            self._own.append(entry)
        else:
            lane = self._lanes.get(slice_name, self._rest)
            if not lane.waiting and not lane.serving:
                lane.start = max(lane.start, self._virtual)
            entry.held_ns = -lane.held_so_far(now_ns)
            lane.waiting.append(entry)

    def take(self, now_ns: int) -> Entry[T] | None:
        """The item that is to be served now; None where none waits, or rules hold back all that do."""
        if not self._length:
            return None
        if not self._lanes or self._own:
            self._length -= 1
            return (self._own or self._rest.waiting).popleft()
        chosen: _Lane[T] | None = None
        least: tuple[bool, float, int] | None = None
        lowest = math.inf
        for lane in self._waiting():
            until_ns, why = self._free_at(lane, now_ns)
            if until_ns > now_ns:
                lane.hold(now_ns, until_ns, why)
                continue
            lane.let_go(now_ns)
            lowest = min(lowest, lane.start)
            later = lane.first is None or lane.first.fill(now_ns) < 0
            place = (later, lane.start, lane.waiting.first.number)
            if least is None or place < least:
                chosen, least = lane, place
        if chosen is None:
            return None
        # Who goes first has a higher tag than others that wait: the virtual time must not jump ahead of them.
        self._virtual = max(self._virtual, lowest)
        return self._pop(chosen)

    def ended(self, entry: Entry[T], spent_ns: int, now_ns: int) -> None:
        """An item was served: its slice pays for what it took."""
        if entry.turn is not None:
            entry.turn.start += spent_ns
        lane = entry.lane
        if lane is None:
            return
        lane.serving = False
        if not self._lanes:
            return
        lane.start += spent_ns / lane.weight
        for bucket in (lane.ceiling, lane.first):
            if bucket is not None:
                bucket.spend(spent_ns, now_ns)
        self._pay_pool(lane, spent_ns, now_ns)
        if not self._length:
            # The end of a busy time: all are equal again, and the numbers stay small.
            self._virtual = 0.0
            for other in self._all():
                other.start = 0.0

    def next_ns(self, now_ns: int) -> int | None:
        """When an item that is held back now may be served, unless others come; None where nothing waits."""
        return min((self._free_at(lane, now_ns)[0] for lane in self._waiting()), default=None)

    def set_rules(self, shares: Mapping[str, Share], now_ns: int) -> None:
        """Puts new rules in the place of the old ones; nothing that waits is lost, and none of it changes places
        with what is of the same slice. Without shares, all is one line again.

        Raises:
            InvalidInputError: The shares are more than there is, or contradict themselves; nothing is changed then.
        """
        check_shares(shares)
        entries = self._entries()
        for lane in self._all():
            lane.let_go(now_ns)
            lane.waiting.clear()
        self._own.clear()
        # The line of those without a rule keeps its tag too: a change of rules is no way to the front.
        self._lanes = {name: self._lanes.get(name) or _Lane(name, self._virtual) for name in shares}
        guaranteed = sum(share.guaranteed for share in shares.values())
        unreserved = [name for name, share in shares.items() if share.guaranteed <= 0]
        rest = max(REST_LEAST, 1 - guaranteed) / (1 + len(unreserved))
        for name, share in shares.items():
            self._lanes[name].set_share(share, share.guaranteed or rest, now_ns)
        self._rest.weight = rest
        dedicated = sum(share.dedicated for share in shares.values())
        lent = max(REST_LEAST, 1 - dedicated) if dedicated > 0 else 0.0
        self._pool = _at_rate(self._pool, lent, CEILING_WINDOW_NS, now_ns)
        self._length = 0
        # As if all came now: what a slice could not use under the old rules, it does not catch up under the new ones.
        for entry in entries:
            self.put(entry.item, entry.slice_name, now_ns, entry.owner)

    def _pop(self, lane: _Lane[T]) -> Entry[T]:
        entry = lane.waiting.popleft()
        self._length -= 1
        lane.serving = True
        entry.lane = lane
        entry.held_ns += lane.held_ns
        entry.held_by = lane.held_by if entry.held_ns else ""
        return entry

    def _all(self) -> Iterator[_Lane[T]]:
        yield self._rest
        yield from self._lanes.values()

    def _waiting(self) -> Iterator[_Lane[T]]:
        return (lane for lane in self._all() if lane.waiting)

    def _entries(self) -> list[Entry[T]]:
        entries = [*self._own, *(entry for lane in self._all() for entry in lane.waiting)]
        return sorted(entries, key=lambda entry: entry.number)

    def _free_at(self, lane: _Lane[T], now_ns: int) -> tuple[int, str]:
        """From when on rules let the lane be served, and which one holds it back."""
        until_ns, why = now_ns, ""
        if lane.ceiling is not None and (ready_ns := lane.ceiling.ready_ns(now_ns)) > until_ns:
            until_ns, why = ready_ns, f"slice {lane.name} ceiling {lane.ceiling.rate:.0%}"
        if self._pool is not None:
            ready_ns = self._pool.ready_ns(now_ns)
            if lane.dedicated is not None:
                ready_ns = min(ready_ns, lane.dedicated.ready_ns(now_ns))
            if ready_ns > until_ns:
                until_ns, why = ready_ns, f"slice {lane.name or '(none)'}: the rest is dedicated to others"
        return until_ns, why

    def _pay_pool(self, lane: _Lane[T], spent_ns: int, now_ns: int) -> None:
        """First from what only this slice has, then from what is lent; a debt of its own where that is spent too."""
        if self._pool is None:
            return
        own = 0.0
        if lane.dedicated is not None:
            had = lane.dedicated.level + lane.dedicated.rate * spent_ns
            own = min(spent_ns, max(0.0, had)) if self._pool.level >= 0 else spent_ns
            lane.dedicated.spend(own, now_ns)
        self._pool.spend(spent_ns - own, now_ns)


def check_shares(shares: Mapping[str, Share]) -> None:
    """Checks that the shares are parts of one whole.

    Raises:
        InvalidInputError: They are too many, more than there is, or contradict themselves.
    """
    if len(shares) > SLICES_MAX:
        raise InvalidInputError(f"a node has rules for at most {SLICES_MAX} slices, not {len(shares)}")
    for name, share in shares.items():
        share.check(name)
        if not name:
            raise InvalidInputError("a slice needs a name")
    total = sum(share.guaranteed for share in shares.values())
    if total > 1 + ROUNDING:
        raise InvalidInputError(f"the slices of this node are guaranteed {total:.4f} of its time, more than all of it")


def _at_rate(bucket: _Bucket | None, rate: float, window_ns: int, now_ns: int) -> _Bucket | None:
    """A bucket of this rate, with the debt of the one before; None at rate 0."""
    if rate <= 0:
        return None
    if bucket is None:
        return _Bucket(rate, window_ns, now_ns)
    bucket.set_rate(rate, window_ns, now_ns)
    return bucket
