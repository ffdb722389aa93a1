"""Where the time of a generation went: a pure function from the record of its steps to rows that sum to the total.

The path is cut at every boundary that somebody measured. Between two boundaries on one machine the time is a
difference of that machine's own monotonic clock. A link's row is the difference between the receiver's and the
sender's clock, corrected by offsets that were estimated from round trips (midpoint rule); what lies between a
sender's hand-over to its transport and the receiver's first frame counts as link, kernel and gRPC included. Offsets
cancel around the ring, so a wrong one can shift time between links but never change a sum.

A token on whose way nothing went wrong is divided here; one that a stall or a lost node touched, in `detours`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from gateway.detours import Detour, closing, unanswered
from gateway.ledger import GATEWAY, Hop, Ledger, Step, cross, work_parts
from gateway.record import ClockReading, GenerationRecord, Stall
from gateway.ways import Leg, Way, Ways, shifted
from orbitmesh.trace.breakdown import DETECT, RULED, STALLS, UNATTRIBUTED, UNREPORTED
from orbitmesh.v1 import gateway_pb2

__all__ = ["WAITS", "ClockReading", "GenerationRecord", "Stall", "breakdown"]

NS = 1e-9
WAITS = frozenset({"queue", "credit", "link", "admit", DETECT, *STALLS, UNREPORTED, UNATTRIBUTED})
"""The rows that are waiting, or not known to be work."""


def breakdown(record: GenerationRecord) -> gateway_pb2.Breakdown:
    """The breakdown of a generation that ended; empty rows where it never produced a token."""
    arrived = record.arrived_ns
    end = record.last_ns
    total = end - record.began_ns
    message = gateway_pb2.Breakdown(
        trace_id=record.trace_id,
        title=f"{record.deployment}: {record.prompt_tokens} tokens in, {len(arrived)} out",
        total_s=total * NS,
        new_tokens=len(arrived),
        slice=record.slice,
        error_reason=record.error_reason,
        error=record.error,
    )
    message.started_at.FromNanoseconds(record.began_at_ns)
    for name, reading in record.clocks.items():
        message.clock_offsets.add(node=name, offset_ns=reading.offset_ns, uncertainty_ns=reading.round_trip_ns // 2)
    ledger = Ledger()
    if arrived:
        ways = Ways(record, end)
        message.incomplete = not ways.complete
        if ways.complete or record.disturbed:
            _Path(ledger, record, ways).add(end, message)
        else:
            for earlier, later in pairwise([record.began_ns, *arrived]):
                message.token_attributed.append(0.0)
                message.token_s.append((later - earlier) * NS)
    else:
        unanswered(ledger, record, end)
    _write(message, ledger, total)
    return message


def _write(message: gateway_pb2.Breakdown, ledger: Ledger, total: int) -> None:
    named_total = ledger.total()
    ledger.add("", UNATTRIBUTED, max(0, total - named_total))
    message.attributed = min(1.0, named_total / total) if total > 0 else 1.0
    for (place, what), times in ledger.times.items():
        message.rows.add(
            place=place,
            what=what,
            wait=what in WAITS or what.startswith(RULED),
            total_s=sum(times) * NS,
            count=len(times),
            median_s=statistics.median(times) * NS,
            share=sum(times) / total if total > 0 else 0.0,
        )


class _Path:
    """Adds the way of every token, and that of the last one to the gateway."""

    def __init__(self, ledger: Ledger, record: GenerationRecord, ways: Ways) -> None:
        self._ledger = ledger
        self._record = record
        self._ways = ways
        # Where no node reported anything, timings were not asked for: no node is to blame for what is not known.
        self._asked = any(ways.executions.values())
        self._shift = 0

    def add(self, end: int, message: gateway_pb2.Breakdown) -> None:
        start, before = self._record.began_ns, Leg(GATEWAY, None)
        for way, ended in zip(self._ways.ways, self._ways.ends(), strict=True):
            tail = way[-1].step
            self._shift = ended - tail.ended if tail is not None else 0
            way = way if tail is None else (*way[:-1], Leg(way[-1].node, shifted(tail, self._shift)))
            named = self._ledger.total()
            self._token(before, way, start, ended)
            named = self._ledger.total() - named
            message.token_s.append((ended - start) * NS)
            message.token_attributed.append(min(1.0, named / (ended - start)) if ended > start else 1.0)
            start, before = ended, way[-1]
        closing(self._ledger, self._record, before.node, start, end)

    def _token(self, before: Leg, way: Way, start: int, end: int) -> None:
        steps = [leg.step for leg in way if leg.step is not None]
        source, first = before.step, before.node == GATEWAY
        stalled = any(self._record.stalls_within(start, end))
        known = len(steps) == len(way) and (first or source is not None)
        # More work than time: after a move, clocks may be wrong by more than the links take.
        crowded = _time_of(steps) > end - (max(start, self._record.admitted_ns) if first else start)
        if stalled or crowded or not known:
            own_steps = self._own_steps if first or stalled else None
            Detour(self._ledger, self._record, own_steps, before, way).add(start, end, asked=self._asked)
        elif source is None:
            self._begin(way, steps, end)
        else:
            self._decode(before.node, source, way, steps, end)

    def _own_steps(self, index: int, node: str) -> list[Step]:
        """Every step of a stage on a node; those of the last stage on the clock that the token's own step is on."""
        steps = self._ways.own_steps(index, node)
        is_last = index == len(self._ways.ways[0]) - 1
        return [shifted(step, self._shift) for step in steps] if is_last and self._shift else steps

    def _begin(self, way: Way, steps: Sequence[Step], end: int) -> None:
        """The first token: admission, the prompt's way to the first stage, the last chunk's way through all stages."""
        record = self._record
        self._ledger.add(GATEWAY, "admit", record.admitted_ns - record.began_ns)
        sending, crossing = record.fed_ns - record.admitted_ns, steps[0].received - record.fed_ns
        to_first = Hop(GATEWAY, way[0].node, sending, None, crossing, record.turn_ns, record.turn_for)
        for index, (leg, step) in enumerate(zip(way, steps, strict=True)):
            self._work(leg.node, step, self._own_steps(index, leg.node))
        cross(self._ledger, [to_first, *_hops(way, steps)], end - record.admitted_ns - _time_of(steps))

    def _decode(self, tail: str, before: Step, way: Way, steps: Sequence[Step], end: int) -> None:
        """One token more: from the last stage back to the first and through all of them."""
        for leg, step in zip(way, steps, strict=True):
            self._work(leg.node, step, ())
        left = end - before.ended - _time_of(steps)
        if len(way) == 1 and tail == way[0].node:
            self._ledger.add(tail, "queue", left)
            return
        back = Hop(tail, way[0].node, before.sent - before.ended, before, steps[0].received - before.sent)
        cross(self._ledger, [back, *_hops(way, steps)], left)

    def _work(self, node: str, step: Step, own_steps: Sequence[Step]) -> None:
        for what, time_ns in work_parts(step, own_steps, step.received, step.ended):
            self._ledger.add(node, what, time_ns)


def _time_of(steps: Sequence[Step]) -> int:
    return sum(step.ended - step.received for step in steps)


def _hops(way: Way, steps: Sequence[Step]) -> list[Hop]:
    return [
        Hop(
            way[index].node,
            way[index + 1].node,
            step.sent - step.ended,
            step,
            steps[index + 1].received - step.sent,
        )
        for index, step in enumerate(steps[:-1])
    ]
