"""Which frame leaves a link next: no clock, no event loop and no task; the time is an argument.

A frame may go when the link is free and its slice is below its ceiling. Among those that may,

1. slices that are urgent go first, as far as that takes nothing from what others are guaranteed;
2. then slices within their guarantee, the one that is owed for the longest first (virtual clock);
3. then whoever borrows what is idle: urgent slices first, the others by deficit round robin weighted by guarantee.

What is dedicated to a slice is never lent: borrowers have a meter in common that leaves it out, so the link is idle
where nothing else is left. A frame that has begun is never interrupted, so who is first waits for one frame at most.

The levels are those of a hierarchy of token buckets (HTB); each bucket is a `Meter`. What is borrowed is not held
against a guarantee later.

A link behind which its frames wait for another turn, that of the node's own way out, is told when each of them leaves
(`depart`). Until then its slice gets no other turn there, but for short frames that are together no longer than one:
so a slice that waits for the way out keeps no other slice from the link, and no frames pile up between the two. What a
frame waited there costs the link nothing, as far as a frame of the way out takes; on the way out, links take turns
within a slice.
"""

from __future__ import annotations

import math

from orbitmesh.errors import CapacityError, InvalidInputError
from services.egress.lanes import BURST_FRAMES, Cause, Lane, State, Ticket
from services.egress.meter import NS_BITS, Meter
from services.egress.rounds import Round
from services.egress.spec import DEFAULT_SLICE, FRAME_S, QUEUE_BYTES, QUEUE_FRAMES, SLICES_MAX, PortSpec, SliceRule
from services.egress.traffic import Traffic

CATCH_UP_NS = 4_000_000
"""How late a timer may be without the link losing rate, in nanoseconds; what catches up lies below the port for
a while, before whoever is urgent."""

DEPART_CATCH_UP_NS = round(FRAME_S * 1e9)
"""The same where frames wait for the way out as well: as long as its own frames take at most."""

LEAST_SHARED = 0.01
"""Where nearly all of a link is dedicated, this part of it is lent while it is idle: no slice is shut out for ever."""

FORGOTTEN = 2 * SLICES_MAX
"""Of so many slices in all counts are kept, also of those that are gone."""


class Port:
    """One link and the frames that wait for it. All times are nanoseconds of one monotonic clock.

    Args:
        spec: The link and its slices.
        now_ns: The time.
        ahead_ns: How long before the link is free a frame may be handed over, where timers are not exact. What lies
            below the port is never more than this and one frame.
        departs: Whether frames that had their turn leave later, when `depart` says so.
    """

    def __init__(self, spec: PortSpec, now_ns: int, *, ahead_ns: int = 0, departs: bool = False) -> None:
        self.spec = spec
        self.queued = 0
        self._ahead_ns = ahead_ns
        self._lanes: dict[str, Lane] = {}
        self._traffic: dict[str, Traffic] = {}
        self._round: Round[Lane] = Round()
        self._link_ns: float = now_ns
        self._departs = departs
        self._departing: dict[Ticket, int] = {}
        self._marked_ns = now_ns
        self._flying: Lane | None = None
        self._common = Meter(math.inf, 0.0, now_ns)
        self.change(spec, now_ns)

    @property
    def traffic(self) -> dict[str, Traffic]:
        """What was measured, by slice, also of slices that are gone."""
        return dict(self._traffic)

    @property
    def departing(self) -> int:
        """How many frames had their turn and have not left."""
        return len(self._departing)

    @property
    def queued_by_slice(self) -> dict[str, int]:
        """How many frames of each slice wait."""
        return {name: lane.frames for name, lane in self._lanes.items()}

    def frame_bytes(self, name: str) -> int:
        """How large the frames of a slice should be."""
        return self.spec.frame_bytes(self.spec.rule(name))

    def change(self, spec: PortSpec, now_ns: int) -> None:
        """Takes other rules from now on. No frame is lost: those of a slice that is gone wait in the default one."""
        self._account(now_ns)
        self.spec = spec
        dedicated = sum(rule.dedicated_bps for rule in spec.slices.values())
        shared = max(spec.rate_bps - dedicated, LEAST_SHARED * spec.rate_bps) if dedicated else math.inf
        frame = spec.frame_bytes(SliceRule())
        self._common.change(shared, BURST_FRAMES * frame * NS_BITS / shared, now_ns)
        gone = [lane for name, lane in self._lanes.items() if name not in spec.slices and name != DEFAULT_SLICE]
        for lane in gone:
            del self._lanes[lane.name]
        for name in (DEFAULT_SLICE, *spec.slices):
            if name not in self._lanes:
                self._lanes[name] = Lane(name, self._traffic.setdefault(name, Traffic()), now_ns)
        first_bps = _first_bps(spec)
        largest = max(spec.weight(spec.rule(name)) for name in self._lanes)
        for name, lane in self._lanes.items():
            rule = spec.rule(name)
            quantum = frame * spec.weight(rule) / largest
            lane.change(rule, spec, first_bps.get(name, rule.guarantee_bps), quantum, now_ns)
        self._round.set(list(self._lanes.values()))
        for lane in (*gone, self._lanes[DEFAULT_SLICE]):
            self._move(lane, now_ns)
        for name in list(self._traffic)[: max(len(self._traffic) - FORGOTTEN, 0)]:
            if name not in self._lanes:
                del self._traffic[name]

    def offer(self, name: str, size: int, now_ns: int, since_ns: int | None = None, flow: str = "") -> Ticket:
        """Queues a frame.

        Args:
            name: Of its slice; one that is not known counts as the default one.
            size: In bytes.
            now_ns: The time.
            since_ns: From when on its wait counts in what is measured; None: from now on.
            flow: Frames of a slice keep their order within a flow; flows take turns.

        Raises:
            CapacityError: The queue of the slice is full (SLICE_FULL).
            InvalidInputError: The size is not positive.
        """
        if size <= 0:
            raise InvalidInputError(f"a frame of {size} bytes has no turn; expected at least 1")
        lane = self._lanes.get(name) or self._lanes[DEFAULT_SLICE]
        lane.traffic.offered_bytes += size
        waiting = lane.frames
        # One frame of a flow always fits, whatever its size: else it could never be sent. Those of a link are bounded
        # there, and are not refused for what goes elsewhere.
        full = waiting >= QUEUE_FRAMES or lane.queued_bytes + size > QUEUE_BYTES
        if full and lane.queue.waits(flow):
            lane.traffic.dropped_bytes += size
            raise CapacityError(
                f"{waiting} frames of {lane.queued_bytes} bytes of slice {lane.name!r} wait for the link already, and "
                f"at most {QUEUE_FRAMES} frames of {QUEUE_BYTES} bytes may; send less, or give the slice more",
                reason="SLICE_FULL",
                metadata={"slice": lane.name, "queued_bytes": lane.queued_bytes, "limit_bytes": QUEUE_BYTES},
            )
        self._account(now_ns)
        since_ns = now_ns if since_ns is None else since_ns
        ticket = Ticket(lane, name, size, now_ns, since_ns, flow, tuple(lane.blocked_ns))
        self._append(lane, ticket, now_ns)
        self.queued += 1
        return ticket

    def next(self, now_ns: int) -> Ticket | int | None:
        """The frame that goes now, or until when none may; None where none waits, or none may before one has left.

        A frame that is returned keeps the link for its time; ask again for the one after it.
        """
        if not self.queued:
            return None
        self._account(now_ns)
        busy_ns = self._busy_ns()
        if busy_ns > now_ns + self._ahead_ns:
            return math.ceil(busy_ns) - self._ahead_ns
        lane = self._choose(now_ns)
        if lane is None:
            waiting = [self._ready_ns(each) for each in self._lanes.values() if each.frames and not each.held]
            return max(math.ceil(min(waiting)), now_ns + 1) if waiting else None
        ticket = lane.queue.pop()
        self._left(lane, ticket, now_ns)
        self._take(lane, ticket, now_ns)
        ticket.state = State.SENT
        ticket.waited_ns = now_ns - ticket.offered_ns
        waits = [after - before for after, before in zip(lane.blocked_ns, ticket.before_ns, strict=True)]
        ticket.cause = Cause(waits.index(max(waits))) if ticket.waited_ns and max(waits) > 0 else None
        lane.traffic.sent(ticket.size, now_ns - ticket.since_ns, lane.rule.latency_s)
        return ticket

    def withdraw(self, ticket: Ticket, now_ns: int) -> None:
        """Gives a place back, or a turn whose frame will not be sent; repeating it changes nothing."""
        lane = ticket.lane
        if ticket.state is State.WAITS:
            self._account(now_ns)
            lane.queue.remove(ticket)
            self._left(lane, ticket, now_ns)
            lane.traffic.offered_bytes -= ticket.size
        elif ticket.state is State.SENT:
            if not self._left_turn(ticket):
                took_ns = ticket.size * NS_BITS / self.spec.rate_bps
                self._link_ns = max(self._link_ns - took_ns, min(self._link_ns, now_ns))
            lane.ceiling.give_back(ticket.size)
            (lane.dedicated if ticket.dedicated else self._common).give_back(ticket.size)
            if ticket.within:
                lane.within.give_back(ticket.size)
            lane.traffic.unsent(ticket.size)
        ticket.state = State.WITHDRAWN

    def depart(self, ticket: Ticket, now_ns: int) -> None:
        """A frame that had its turn leaves: it is on the link from now on; repeating it changes nothing."""
        if ticket in self._departing:
            self._account(now_ns)
            ticket.lane.ceiling.leave(ticket.size, ticket.lane.held_frames, now_ns)
            self._left_turn(ticket)
            self._occupy_with(ticket, now_ns, DEPART_CATCH_UP_NS)

    def begin(self, ticket: Ticket, now_ns: int) -> None:
        """The frame of a turn begins to be sent, later than its turn came: it keeps the link from then on.

        Else the next one would follow at once, and lie below the port before whoever is urgent. What a wake-up usually
        takes costs no rate.
        """
        if ticket.state is State.SENT and not self._departs:
            ends_ns = now_ns - CATCH_UP_NS + ticket.size * NS_BITS / self.spec.rate_bps
            if ends_ns > self._link_ns:
                self._account(now_ns)
                self._link_ns = ends_ns

    def occupy(self, size: int, now_ns: int) -> None:
        """Something else goes on the link, at once and without a turn: the frames that wait go after it.

        Args:
            size: In bytes.
            now_ns: The time.
        """
        self._account(now_ns)
        self._link_ns = max(self._link_ns, now_ns) + size * NS_BITS / self.spec.rate_bps

    def _append(self, lane: Lane, ticket: Ticket, now_ns: int) -> None:
        if not lane.frames:
            frame_ns = self.spec.frame_bytes(SliceRule()) * NS_BITS / self.spec.rate_bps
            if now_ns - lane.idle_ns > frame_ns:
                # A sender that asks for its next frame once the last one went has not been idle.
                lane.since_ns = now_ns
        lane.queue.append(ticket)
        lane.frames += 1
        lane.queued_bytes += ticket.size

    def _left(self, lane: Lane, ticket: Ticket, now_ns: int) -> None:
        self.queued -= 1
        lane.queued_bytes -= ticket.size
        lane.frames -= 1
        if not lane.frames:
            lane.idle_ns = now_ns

    def _move(self, old: Lane, now_ns: int) -> None:
        """The frames of a slice that is gone wait among those of the default one, and go back once it is there."""
        waiting, old.queued_bytes, old.frames = old.queue.take_all(), 0, 0
        moved: set[str] = set()
        for ticket in waiting:
            lane = ticket.lane = self._lanes.get(ticket.name) or self._lanes[DEFAULT_SLICE]
            if lane is not old:
                ticket.before_ns = tuple(lane.blocked_ns)
                old.traffic.offered_bytes -= ticket.size
                lane.traffic.offered_bytes += ticket.size
                moved.add(lane.name)
            self._append(lane, ticket, now_ns)
        for name in moved:
            queue = self._lanes[name].queue
            queue.extend(queue.take_all())  # each flow in its order again

    def _choose(self, now_ns: int) -> Lane | None:
        """The slice whose frame goes now, if any may; a borrower is paid for in its round."""
        best: tuple[bool, float] = (True, math.inf)
        within: Lane | None = None
        borrowers: list[Lane] = []
        for lane in self._lanes.values():
            if not lane.frames or lane.ceiling.free_ns > now_ns or (self._departs and lane.held):
                continue
            if lane.within.free_ns <= now_ns or lane.dedicated.free_ns <= now_ns:
                rank = (not lane.rule.urgent, lane.within.free_ns)
                if within is None or rank < best:
                    best, within = rank, lane
            elif self._common.free_ns <= now_ns:
                borrowers.append(lane)
        if within is not None or not borrowers:
            return within
        urgent = [lane for lane in borrowers if lane.rule.urgent]
        return self._round.pick(urgent or borrowers)

    def _ready_ns(self, lane: Lane) -> float:
        """From when on a slice's frame may go, were it alone."""
        return max(lane.ceiling.free_ns, min(lane.within.free_ns, lane.dedicated.free_ns, self._common.free_ns))

    def _take(self, lane: Lane, ticket: Ticket, now_ns: int) -> None:
        size = ticket.size
        ticket.dedicated = lane.dedicated.free_ns <= now_ns
        ticket.within = ticket.dedicated or lane.within.free_ns <= now_ns
        (lane.dedicated if ticket.dedicated else self._common).take(size, now_ns)
        if ticket.within:
            lane.within.take(size, min(lane.since_ns, now_ns))
        lane.ceiling.pass_by(size, lane.since_ns, now_ns)
        if self._departs:
            self._departing[ticket] = now_ns
            lane.held_bytes += size
            lane.held_frames += 1
        else:
            self._occupy_with(ticket, now_ns, CATCH_UP_NS)
        self._flying = lane

    def _occupy_with(self, ticket: Ticket, now_ns: int, late_ns: int) -> None:
        # A timer that comes late costs the link nothing: the frame could have begun as soon as the link was free.
        start_ns = max(self._link_ns, min(now_ns, max(ticket.offered_ns, now_ns - late_ns)))
        self._link_ns = start_ns + ticket.size * NS_BITS / self.spec.rate_bps

    def _left_turn(self, ticket: Ticket) -> bool:
        """Whether a frame had its turn and had not left; it counts as such no longer."""
        if self._departing.pop(ticket, None) is None:
            return False
        ticket.lane.held_bytes -= ticket.size
        ticket.lane.held_frames -= 1
        return True

    def _busy_ns(self) -> float:
        """Until when the link is taken, were those that have had their turn to leave as soon as they can."""
        busy_ns = self._link_ns
        for ticket, turn_ns in self._departing.items():
            busy_ns = max(busy_ns, turn_ns) + ticket.size * NS_BITS / self.spec.rate_bps
        return busy_ns

    def _account(self, now_ns: int) -> None:
        """Divides the time since the last look among the causes, for each slice that waited."""
        marked_ns, self._marked_ns = self._marked_ns, max(now_ns, self._marked_ns)
        if now_ns <= marked_ns:
            return
        flying = self._flying
        urgent = flying is not None and flying.rule.urgent
        busy_ns = self._busy_ns()
        for lane in self._lanes.values():
            if not lane.frames:
                continue
            below_ns = min(max(lane.ceiling.free_ns, marked_ns), now_ns)
            link_ns = min(max(busy_ns, below_ns), now_ns)
            before = Cause.URGENT if urgent and flying is not lane else Cause.LINK
            lane.blocked_ns[Cause.CEILING.value] += below_ns - marked_ns
            lane.blocked_ns[before.value] += link_ns - below_ns
            after = Cause.CEILING if below_ns > marked_ns else before  # nothing but a late timer: what it was set for
            if min(lane.within.free_ns, self._common.free_ns) > below_ns:
                after = Cause.DEDICATED
            lane.blocked_ns[after.value] += now_ns - link_ns


def _first_bps(spec: PortSpec) -> dict[str, float]:
    """What each urgent slice may have before all others: its guarantee, and its part of what nobody is guaranteed."""
    urgent = {name: rule for name, rule in spec.slices.items() if rule.urgent}
    spare = max(spec.rate_bps - sum(rule.guarantee_bps for rule in spec.slices.values()), 0.0)
    weights = sum(spec.weight(rule) for rule in urgent.values())
    ceilings = {name: rule.ceiling_bps or math.inf for name, rule in urgent.items()}
    return {
        name: min(ceilings[name], rule.guarantee_bps + spare * spec.weight(rule) / weights)
        for name, rule in urgent.items()
    }
