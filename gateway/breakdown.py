"""Where the time of a generation went: a pure function from the record of its steps to rows that sum to the total.

The path is cut at every boundary that somebody measured. Between two boundaries on one machine the time is a
difference of that machine's own monotonic clock. A link's row is the difference between the receiver's and the
sender's clock, corrected by offsets that were estimated from round trips (midpoint rule); what lies between a
sender's hand-over to its transport and the receiver's first frame counts as link, kernel and gRPC included. Offsets
cancel around the ring, so a wrong one can shift time between links but never change a sum.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from orbitmesh.v1 import executor_pb2, gateway_pb2

NS = 1e-9
GATEWAY = "gateway"


@dataclass(frozen=True)
class ClockReading:
    """A node's clock, read by a call. All times in nanoseconds of monotonic clocks."""

    sent_ns: int
    """When the call left, on the gateway's clock."""
    received_ns: int
    """When its answer came, on the gateway's clock."""
    node_ns: int
    """What the node's clock showed in between."""

    @property
    def round_trip_ns(self) -> int:
        """How long the call took: twice the most by which the offset can be wrong."""
        return self.received_ns - self.sent_ns

    @property
    def offset_ns(self) -> int:
        """The node's clock minus the gateway's."""
        return self.node_ns - (self.sent_ns + self.received_ns) // 2


@dataclass
class GenerationRecord:
    """What the gateway noted of one generation. Times in nanoseconds of the gateway's monotonic clock."""

    trace_id: str
    """32 hex digits."""
    deployment: str
    """The deployment's name."""
    nodes: tuple[str, ...]
    """The pipeline's nodes, in order."""
    prompt_tokens: int
    """Tokens of the prompt."""
    began_ns: int
    """When the request came."""
    began_at_ns: int
    """The same on the wall clock, since 1970."""
    admitted_ns: int = 0
    """When every stage had reserved the cache."""
    fed_ns: int = 0
    """When the last chunk of the prompt was with the transport."""
    arrived_ns: list[int] = field(default_factory=list)
    """When each token came."""
    ended_ns: int = 0
    """When the last token came; 0 where it never did."""
    finish: int = 0
    """The `FinishReason` of the last token."""
    clocks: dict[str, ClockReading] = field(default_factory=dict)
    """The best reading of each node's clock."""
    stages: dict[int, executor_pb2.StageTimings] = field(default_factory=dict)
    """The steps of each stage, as they came home."""
    raw_bytes: int = 0
    """Bytes sent over links, before codec and seal."""
    wire_bytes: int = 0
    """Bytes sent over links, as messages."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the gateway's clock, nanoseconds."""

    received: int
    opened: int
    started: int
    ended: int
    sent: int
    codec: int
    seal: int
    credit: int


Row = tuple[str, str]
"""Place and what."""
WAITS = frozenset({"queue", "credit", "link", "admit", "unattributed"})


class _Ledger:
    """Collects (place, what) -> times, in the order in which they first came."""

    def __init__(self) -> None:
        self.times: dict[Row, list[int]] = {}
        self._total = 0

    def add(self, place: str, what: str, time_ns: int) -> None:
        if time_ns > 0:
            self._total += time_ns
            self.times.setdefault((place, what), []).append(time_ns)

    def total(self) -> int:
        """Nanoseconds added so far."""
        return self._total


def breakdown(record: GenerationRecord) -> gateway_pb2.Breakdown:
    """The breakdown of a generation that ended; empty rows where it never produced a token."""
    arrived = record.arrived_ns
    end = record.ended_ns or (arrived[-1] if arrived else record.began_ns)
    total = end - record.began_ns
    message = gateway_pb2.Breakdown(
        trace_id=record.trace_id,
        title=f"{record.deployment}: {record.prompt_tokens} tokens in, {len(arrived)} out",
        total_s=total * NS,
        new_tokens=len(arrived),
    )
    message.started_at.FromNanoseconds(record.began_at_ns)
    for name, reading in record.clocks.items():
        message.clock_offsets.add(node=name, offset_ns=reading.offset_ns, uncertainty_ns=reading.round_trip_ns // 2)
    ledger = _Ledger()
    stages = _steps(record) if arrived else None
    message.incomplete = bool(arrived) and stages is None
    if stages is not None:
        _path(ledger, record, stages, message)
    elif arrived:
        for earlier, later in pairwise([record.began_ns, *arrived]):
            message.token_attributed.append(0.0)
            message.token_s.append((later - earlier) * NS)
    else:
        ledger.add(GATEWAY, "admit", total)
    named_total = ledger.total()
    ledger.add("", "unattributed", max(0, total - named_total))
    message.attributed = min(1.0, named_total / total) if total > 0 else 1.0
    for (place, what), times in ledger.times.items():
        message.rows.add(
            place=place,
            what=what,
            wait=what in WAITS,
            total_s=sum(times) * NS,
            count=len(times),
            median_s=statistics.median(times) * NS,
            share=sum(times) / total if total > 0 else 0.0,
        )
    return message


def steps_on_gateway_clock(record: GenerationRecord) -> list[dict[int, Step]]:
    """Per stage its steps by the position of their last row, as far as the timings came home."""
    found = []
    for index, node in enumerate(record.nodes):
        timings, clock = record.stages.get(index), record.clocks.get(node)
        found.append({} if timings is None or clock is None else _stage_steps(timings, clock.offset_ns))
    return found


def _steps(record: GenerationRecord) -> list[dict[int, Step]] | None:
    """The same; None where a step on the way of a token is missing."""
    found = steps_on_gateway_clock(record)
    sampled = [record.prompt_tokens - 1 + index for index in range(len(record.arrived_ns))]
    if any(position not in steps for steps in found for position in sampled):
        return None
    return found


def _stage_steps(timings: executor_pb2.StageTimings, offset_ns: int) -> dict[int, Step]:
    steps = {}
    received = -offset_ns
    for index, position in enumerate(timings.position):
        received += timings.received_ns[index]
        opened = received + timings.open_ns[index]
        started = opened + timings.queue_ns[index]
        ended = started + timings.compute_ns[index]
        steps[position + timings.rows[index] - 1] = Step(
            received,
            opened,
            started,
            ended,
            ended + timings.send_ns[index],
            timings.codec_ns[index],
            timings.seal_ns[index],
            timings.credit_ns[index],
        )
    return steps


def _path(
    ledger: _Ledger, record: GenerationRecord, stages: Sequence[dict[int, Step]], message: gateway_pb2.Breakdown
) -> None:
    """Adds the way of every token, and that of the last one to the gateway.

    A token's wall time runs from the end of the last stage's work on the token before (for the first: from the
    request) to the end of its own; the copies to the gateway travel beside the ring, so only the last one counts.
    """
    tail = stages[-1]
    first = record.prompt_tokens - 1
    ends = [tail[first + index].ended for index in range(len(record.arrived_ns))]
    # By how much the last node's clock must be read differently, at the least, for no token to arrive before it left
    # and for the first not to be there before the work on it was done: else rows could sum to more than the total.
    worked = sum(step.ended - step.received for step in (steps[first] for steps in stages))
    shift = max(0, record.admitted_ns + worked - ends[0])
    shift = min(shift, *(came - ended for came, ended in zip(record.arrived_ns, ends, strict=True)))
    _begin(ledger, record, stages, ends[0] + shift)
    walls = [ends[0] + shift - record.began_ns, *(later - earlier for earlier, later in pairwise(ends))]
    named = [ledger.total()]
    for index in range(1, len(ends)):
        before = ledger.total()
        _decode(ledger, record, stages, first + index)
        named.append(ledger.total() - before)
    ledger.add(f"{record.nodes[-1]}>{GATEWAY}", "link", record.arrived_ns[-1] - ends[-1] - shift)
    for wall, part in zip(walls, named, strict=True):
        message.token_s.append(wall * NS)
        message.token_attributed.append(min(1.0, part / wall) if wall > 0 else 1.0)


def _begin(ledger: _Ledger, record: GenerationRecord, stages: Sequence[dict[int, Step]], ended: int) -> None:
    """The first token: admission, the prompt's way to the first stage, the last chunk's way through all stages."""
    names = record.nodes
    ledger.add(GATEWAY, "admit", record.admitted_ns - record.began_ns)
    path = [steps[record.prompt_tokens - 1] for steps in stages]
    hops = [
        _Hop(GATEWAY, names[0], record.fed_ns - record.admitted_ns, None, path[0].received - record.fed_ns),
        *_hops(names, path),
    ]
    worked = _work(ledger, names, path, stages)
    _cross(ledger, hops, ended - record.admitted_ns - worked)


def _decode(ledger: _Ledger, record: GenerationRecord, stages: Sequence[dict[int, Step]], position: int) -> None:
    """One token more: from the last stage back to the first and through all of them."""
    names = record.nodes
    path = [steps[position] for steps in stages]
    before = stages[-1][position - 1]
    worked = _work(ledger, names, path, None)
    left = path[-1].ended - before.ended - worked
    if len(names) == 1:
        ledger.add(names[0], "queue", left)
        return
    back = _Hop(names[-1], names[0], before.sent - before.ended, before, path[0].received - before.sent)
    _cross(ledger, [back, *_hops(names, path)], left)


@dataclass(frozen=True, slots=True)
class _Hop:
    """One crossing, nanoseconds."""

    source: str
    target: str
    sending: int
    """From the end of the work until the sender had handed everything over."""
    step: Step | None
    """The sender's step, for the parts of `sending`."""
    crossing: int
    """From there to the receiver's first frame, by the two clocks; negative where they are read wrong, or where the
    receiver had it before the sender's call returned."""


def _hops(names: Sequence[str], path: Sequence[Step]) -> list[_Hop]:
    return [
        _Hop(names[index], names[index + 1], step.sent - step.ended, step, path[index + 1].received - step.sent)
        for index, step in enumerate(path[:-1])
    ]


def _work(ledger: _Ledger, names: Sequence[str], path: Sequence[Step], own: Sequence[dict[int, Step]] | None) -> int:
    """Adds what every stage did on one step; returns its time."""
    for place, step in enumerate(path):
        _working(ledger, names[place], step, own[place] if own is not None else None)
    return sum(step.ended - step.received for step in path)


def _cross(ledger: _Ledger, hops: Sequence[_Hop], left: int) -> None:
    """Divides the time between the stages' work among sending and links, so that the parts sum to it.

    The sum is known exactly, from clocks that are read once each. Two things blur the parts: a sender's call returns
    after the receiver has the frame already, and an offset may be wrong by more than a fast link takes. So sending is
    cut first to what is there at all, and links share the rest in proportion to what the clocks say of each.
    """
    left = max(0, left)
    sending = sum(hop.sending for hop in hops)
    scale = min(1.0, left / sending) if sending else 1.0
    for hop in hops:
        _sending(ledger, hop, scale)
    rest = max(0, left - round(sending * scale))
    positive = [max(0, hop.crossing) for hop in hops]
    measured = sum(positive)
    for hop, crossing in zip(hops, positive, strict=True):
        share = crossing / measured if measured else 1 / len(hops)
        ledger.add(f"{hop.source}>{hop.target}", "link", round(rest * share))


def _sending(ledger: _Ledger, hop: _Hop, scale: float) -> None:
    parts = (0, 0, 0) if hop.step is None else (hop.step.codec, hop.step.seal, hop.step.credit)
    for what, part in zip(("codec", "seal", "credit"), parts, strict=True):
        ledger.add(hop.source, what, round(part * scale))
    ledger.add(hop.source, "send", round((hop.sending - sum(parts)) * scale))


def _working(ledger: _Ledger, node: str, step: Step, own_steps: dict[int, Step] | None) -> None:
    ledger.add(node, "open", step.opened - step.received)
    waited = step.started - step.opened
    if own_steps is not None and waited > 0:
        # While it waited, the stage computed earlier chunks of the same prompt: that is work on it, not a queue.
        own = sum(
            max(0, min(other.ended, step.started) - max(other.started, step.opened))
            for other in own_steps.values()
            if other.ended <= step.started
        )
        ledger.add(node, "compute", min(own, waited))
        waited -= min(own, waited)
    ledger.add(node, "queue", waited)
    ledger.add(node, "compute", step.ended - step.started)
