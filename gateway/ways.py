"""The way of every token: which stage computed it where and when, on the gateway's clock.

A position may have been computed more than once: again after a stop, or on the node that took another's place. The step
that counts is the last one that was over before the next stage's was, and for the last stage before the token came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gateway.ledger import Step
from gateway.record import GenerationRecord
from orbitmesh.v1 import executor_pb2

CLOCK_DRIFT = 1e-4
"""By how much clocks may run apart, at the most: twice what cheap quartz is sold with."""

Executions = dict[tuple[int, str], dict[int, list[Step]]]
"""Per stage and node its steps by the position of their last row, in the order in which they were computed."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One stage's part in the way of a token."""

    node: str
    """The node."""
    step: Step | None
    """What it did; None where it never reported."""


Way = tuple[Leg, ...]
"""One leg per stage, in order."""


def executions(record: GenerationRecord) -> Executions:
    """The steps of every stage on every node, as far as the timings came home."""
    found: Executions = {}
    for (index, node), timings in record.stages.items():
        clock = record.clocks.get(node)
        if clock is not None:
            found[index, node] = _steps(timings, clock.offset_ns)
    return found


def _steps(timings: executor_pb2.StageTimings, offset_ns: int) -> dict[int, list[Step]]:
    steps: dict[int, list[Step]] = {}
    received = -offset_ns
    for index, position in enumerate(timings.position):
        received += timings.received_ns[index]
        opened = received + timings.open_ns[index]
        started = opened + timings.queue_ns[index]
        ended = started + timings.compute_ns[index]
        step = Step(
            received,
            opened,
            started,
            ended,
            ended + timings.send_ns[index],
            timings.codec_ns[index],
            timings.seal_ns[index],
            timings.credit_ns[index],
            timings.held_ns[index] if timings.held_ns else 0,
            timings.held_by,
            timings.turn_ns[index] if timings.turn_ns else 0,
            timings.turn_for,
        )
        steps.setdefault(position + timings.rows[index] - 1, []).append(step)
    return steps


def clock_slack_ns(record: GenerationRecord, end_ns: int) -> int:
    """By how much two times from different clocks can be in the wrong order, at the most."""
    uncertain = max((reading.round_trip_ns // 2 for reading in record.clocks.values()), default=0)
    return 2 * uncertain + round((end_ns - record.began_ns) * CLOCK_DRIFT)


class Ways:
    """The ways of the tokens of one generation.

    Args:
        record: The generation.
        end_ns: When it ended.
    """

    def __init__(self, record: GenerationRecord, end_ns: int) -> None:
        self._record = record
        self._slack_ns = clock_slack_ns(record, end_ns)
        self.executions = executions(record)
        self._others = record.all_nodes if record.disturbed else ()
        self.first = record.prompt_tokens + record.taken_up_tokens - 1
        """The position whose step made the first token."""
        self.ways = [self._way(self.first + index, came) for index, came in enumerate(record.arrived_ns)]
        self.complete = all(leg.step is not None for way in self.ways for leg in way)
        """Whether every step on the way of a token is known."""

    def own_steps(self, index: int, node: str) -> list[Step]:
        """Every step of a stage on a node."""
        return [step for steps in self.executions.get((index, node), {}).values() for step in steps]

    def _way(self, position: int, arrived_ns: int) -> Way:
        nodes = self._record.nodes_at(position)
        bound_ns = arrived_ns
        legs: list[Leg] = []
        for index in range(len(nodes) - 1, -1, -1):
            leg = self._leg(index, nodes[index], position, bound_ns)
            bound_ns = leg.step.ended if leg.step is not None else bound_ns
            legs.append(leg)
        return tuple(reversed(legs))

    def _leg(self, index: int, planned: str, position: int, bound_ns: int) -> Leg:
        """The stage's step; on another node than was planned where only that one has it."""
        for node in (planned, *self._others):
            for step in reversed(self.executions.get((index, node), {}).get(position, [])):
                if not self._record.disturbed or step.ended <= bound_ns + self._slack_ns:
                    return Leg(node, step)
        return Leg(self._silent(index, planned, position), None)

    def _silent(self, index: int, planned: str, position: int) -> str:
        """Who did not report a step: a node that reported none at all, before one that would have told of this one."""
        earlier = [nodes[index] for first, nodes in reversed(self._record.pipelines) if first <= position]
        return next((node for node in [planned, *earlier] if (index, node) not in self.executions), planned)

    def ends(self) -> list[int]:
        """When the last stage was done with each token, on the gateway's clock; in order and never after it came.

        A token's wall time runs from the end of the last stage's work on the token before (for the first: from the
        request) to the end of its own; the copies to the gateway travel beside the ring, so only the last one counts.
        """
        ends: list[int] = []
        for run in self._runs():
            self._place(run, ends)
        return ends

    def _runs(self) -> list[range]:
        """Tokens in a row that the same clock of a last stage speaks for."""
        arrived = self._record.arrived_ns
        starts = [0]
        for index, (before, way) in enumerate(pairwise(self.ways), 1):
            same = before[-1].node == way[-1].node and (before[-1].step is None) is (way[-1].step is None)
            if not same or any(self._record.stalls_within(arrived[index - 1], arrived[index])):
                starts.append(index)
        return [range(start, end) for start, end in pairwise([*starts, len(self.ways)])]

    def _place(self, run: range, ends: list[int]) -> None:
        arrived = self._record.arrived_ns
        floor = ends[-1] if ends else min(max(self._record.began_ns, self._record.admitted_ns), arrived[0])
        known = [way[-1].step for way in self.ways[run.start : run.stop]]
        steps = [step for step in known if step is not None]
        if not steps:
            for index in run:
                floor = max(floor, self._end_of_unreported(index))
                ends.append(floor)
            return
        # By how much the last node's clock must be read differently, at the least, for no token to arrive before it
        # left and for the first not to be there before the work on it was done: else rows could sum to more than the
        # total.
        shift = max(0, floor + self._worked(run.start, floor) - steps[0].ended)
        shift = min(shift, *(arrived[index] - step.ended for index, step in zip(run, steps, strict=True)))
        for step in steps:
            floor = max(floor, step.ended + shift)
            ends.append(floor)

    def _worked(self, index: int, floor: int) -> int:
        """The stages' work on a token, where all of it lies between two tokens."""
        steps = [leg.step for leg in self.ways[index]]
        arrived = self._record.arrived_ns[index]
        if None in steps or any(self._record.stalls_within(floor, arrived)):
            return 0
        return sum(step.ended - step.received for step in steps if step is not None)

    def _end_of_unreported(self, index: int) -> int:
        """The latest time at which the last stage can have been done: the token was here, or back at the first."""
        arrived = self._record.arrived_ns[index]
        following: Sequence[Leg] = self.ways[index + 1] if index + 1 < len(self.ways) else ()
        first = following[0].step if following else None
        return min(arrived, first.received) if first is not None else arrived


def shifted(step: Step, by_ns: int) -> Step:
    """The same step on a clock that is read differently."""
    return replace(
        step,
        received=step.received + by_ns,
        opened=step.opened + by_ns,
        started=step.started + by_ns,
        ended=step.ended + by_ns,
        sent=step.sent + by_ns,
    )
