"""The tokens on whose way something went wrong: between two boundaries lie stalls, and between those the stages' steps.

The window of such a token, from the token before it to its own end, is cut at its stalls. What lies in a stall is the
stall, whatever was computed again in it. In the gaps, the steps that made the token count as they do in a quiet one;
what they leave over before a stall is the time until somebody noticed; what a lost node did not tell is its own row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.ledger import GATEWAY, Hop, Ledger, Step, cross, cross_as_measured, work_parts
from gateway.record import GenerationRecord
from gateway.ways import Leg, Way
from orbitmesh.trace.breakdown import DETECT

FOREVER_NS = 1 << 62
"""Later than any time that a clock shows, and its negative earlier: 146 years."""

OwnSteps = Callable[[int, str], list[Step]]
"""Every step of a stage on a node."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a stall in the window of a token, nanoseconds."""

    start: int
    """When it begins."""
    end: int
    """When it ends."""
    after_stall: bool
    """Whether a stall lies before it."""
    noticed: bool
    """Whether a stall ends it; else the token does."""

    @property
    def earliest(self) -> int:
        """What was over before belongs to the stall; without one, clocks may be wrong, and everything is inside."""
        return self.start if self.after_stall else -FOREVER_NS

    @property
    def latest(self) -> int:
        """What begins after belongs to the stall, or to what follows it."""
        return self.end if self.noticed else FOREVER_NS


class Detour:
    """Adds the time of one token whose way was disturbed.

    Args:
        ledger: Where rows go.
        record: The generation.
        own_steps: Every step of a stage on a node; None where they cannot have been waited for.
        before: The last stage's leg of the token before; the gateway's for the first one.
        way: The token's own legs.
    """

    def __init__(
        self, ledger: Ledger, record: GenerationRecord, own_steps: OwnSteps | None, before: Leg, way: Way
    ) -> None:
        self._ledger = ledger
        self._record = record
        self._own_steps = own_steps
        self._source = before
        self._way = way
        self._first = before.node == GATEWAY
        self._index = 0
        self._lost: tuple[str, ...] = ()

    def add(self, start: int, end: int, *, asked: bool) -> None:
        """Adds all that lies between the end of the token before and the token's own, nanoseconds.

        Args:
            start: The end of the token before.
            end: The token's own.
            asked: Whether nodes were asked for their timings: else nothing is said of them.
        """
        cursor, after_stall = start, False
        for number, began, ended in self._record.stalls_within(start, end):
            self._gap(Gap(cursor, began, after_stall, noticed=True), asked)
            self._ledger.add_stall(number, self._record.stalls[number].what, ended - began)
            cursor, after_stall = ended, True
        self._gap(Gap(cursor, end, after_stall, noticed=False), asked)

    def _gap(self, gap: Gap, asked: bool) -> None:
        start = self._admission(gap)
        if gap.after_stall and self._index == 0:
            # Whatever was under way to the first stage is dropped by a stop: the gateway feeds it again.
            self._source = Leg(GATEWAY, None)
        hops, left = self._visits(gap, start)
        if gap.noticed:
            self._ledger.add(GATEWAY, DETECT, cross_as_measured(self._ledger, hops, left))
            return
        if self._lost:
            hops.append(self._hop(start, gap.end, self._way[-1].node, gap.end))
        if not asked:
            return
        if hops:
            cross(self._ledger, hops, left)
        else:
            self._ledger.add(self._way[-1].node, "queue", left)

    def _admission(self, gap: Gap) -> int:
        """Adds what lies before every stage had admitted the generation; returns when that was, in the gap."""
        if not self._first:
            return gap.start
        admitted = min(max(gap.start, self._record.admitted_ns), gap.end)
        self._ledger.add(GATEWAY, "admit", admitted - gap.start)
        return admitted

    def _visits(self, gap: Gap, start: int) -> tuple[list[Hop], int]:
        """Adds the work in a gap; returns the crossings between, and the time that is left for them."""
        hops: list[Hop] = []
        left = gap.end - start
        for leg in self._way[self._index :]:
            step = leg.step
            if step is None:
                self._lost += (leg.node,)
            elif step.received >= gap.latest:
                break
            else:
                if step.received >= gap.earliest:
                    hops.append(self._hop(start, gap.end, leg.node, step.received))
                left -= self._work(leg.node, step, gap, left)
                if step.ended > gap.latest:
                    break  # it goes on through the stall, and may be done after it
                self._source, self._lost = leg, ()
            self._index += 1
        return hops, left

    def _work(self, node: str, step: Step, gap: Gap, left: int) -> int:
        own = self._own_steps(self._index, node) if self._own_steps is not None else []
        spent = 0
        for what, time_ns in work_parts(step, own, gap.earliest, gap.latest):
            part = min(time_ns, left - spent)
            self._ledger.add(node, what, part)
            spent += part
        return spent

    def _hop(self, start: int, end: int, target: str, received: int) -> Hop:
        """The crossing to a node, from where the token was last seen, as far as it lies in a gap."""
        step = self._source.step
        ended = start if step is None else step.ended
        fed = self._record.fed_ns if self._first and self._source.node == GATEWAY else start
        handed = min(max(start, fed if step is None else step.sent), end)
        # A step that was handed over in part before the gap says nothing of the parts of the rest.
        whole = step if step is not None and ended >= start and handed == step.sent else None
        sending = max(0, handed - max(start, ended))
        return Hop(self._source.node, target, sending, whole, received - handed, lost=self._lost)


def closing(ledger: Ledger, record: GenerationRecord, node: str, start: int, end: int) -> None:
    """Adds the way of the last token to the gateway, and what followed where the generation was given up.

    Args:
        ledger: Where rows go.
        record: The generation.
        node: The last stage's.
        start: When the last stage was done with the last token, nanoseconds.
        end: When the generation ended, nanoseconds.
    """
    arrived, cursor = record.arrived_ns[-1], start
    for number, began, ended in record.stalls_within(start, end):
        link = max(0, arrived - cursor) if arrived <= began else 0
        ledger.add(f"{node}>{GATEWAY}", "link", link)
        ledger.add(GATEWAY, DETECT, began - cursor - link)
        ledger.add_stall(number, record.stalls[number].what, ended - began)
        cursor = ended
    ledger.add(f"{node}>{GATEWAY}", "link", min(arrived, end) - cursor)


def unanswered(ledger: Ledger, record: GenerationRecord, end: int) -> None:
    """Adds the time of a generation that never had a token: where it waited."""
    cursor = record.began_ns
    for number, began, ended in record.stalls_within(cursor, end):
        admitted = min(max(cursor, record.admitted_ns or began), began)
        ledger.add(GATEWAY, "admit", admitted - cursor)
        ledger.add(GATEWAY, DETECT, began - admitted)
        ledger.add_stall(number, record.stalls[number].what, ended - began)
        cursor = ended
    # Where it got is not known; nobody but the stages that admitted it can have held it up.
    ledger.add(GATEWAY, "admit", end - cursor)
