"""Generations that go wrong as a test tells them: what every node would have reported, and what really happened."""

from __future__ import annotations

import random
from collections import Counter

from gateway.record import ClockReading, GenerationRecord, Stall
from orbitmesh.v1 import executor_pb2

MS = 1_000_000
PROMPT = 9
PARTS = ("open", "queue", "compute", "codec", "seal", "credit", "send")


class Story:
    """One generation, told event by event; every node's clock shows something else.

    Args:
        seed: Of the clocks and of every duration.
        nodes: The first pipeline.
        clock_error_ns: By how much an offset is known wrong, at the most.
        untold: Nodes that never report, because they were lost.
        taken_up: Tokens that were produced before the record begins.
    """

    def __init__(self, seed: int, nodes: str, *, clock_error_ns: int = 0, untold: str = "", taken_up: int = 0) -> None:
        self.chance = random.Random(seed)
        self.now = self.chance.randrange(10**12)
        self.nodes = tuple(nodes)
        self.untold = untold
        self.truth: Counter[tuple[str, str]] = Counter()
        """(place, what) -> nanoseconds."""
        self.record = GenerationRecord("ab" * 16, "demo", [(0, self.nodes)], PROMPT, self.now, 0)
        self.record.taken_up_tokens = taken_up
        self.offsets: dict[str, int] = {}
        self._error_ns = clock_error_ns
        self.told: dict[tuple[int, str], executor_pb2.StageTimings] = {}
        """What every node has to tell, by the stage's place and the node."""
        self._before: dict[tuple[int, str], int] = {}
        self._source = "gateway"
        self._sending: dict[str, int] = {}
        self.stage = 0
        self._pass("gateway", "admit", self._some())
        self.record.admitted_ns = self.now
        self._pass("gateway", "send", self._some())
        self.record.fed_ns = self.now

    @property
    def position(self) -> int:
        """The position whose step makes the next token."""
        return PROMPT - 1 + self.record.taken_up_tokens + len(self.record.arrived_ns)

    def run(self, stages: int | None = None, *, backlog_ns: int = 0) -> None:
        """The token under way gets through so many stages more, by default all.

        Args:
            stages: How many.
            backlog_ns: For so long the first of them computes earlier positions, which came with the token's.
        """
        target = len(self.nodes) if stages is None else self.stage + stages
        while self.stage < target:
            node = self.nodes[self.stage]
            for what in ("codec", "seal", "credit", "send"):
                self._pass(self._source, what, self._sending.get(what, 0))
            link = ("queue", node) if self._source == node else ("link", f"{self._source}>{node}")
            self._pass(link[1], link[0], 5 * MS + self._some())
            parts = self.compute(self.stage, self.position, backlog_ns)
            self.truth[node, "compute"] += max(0, backlog_ns - parts["open"])
            backlog_ns = 0
            for what in ("open", "queue", "compute"):
                self.truth[node, what] += parts[what]
            self._source, self._sending = node, {} if len(self.nodes) == 1 else parts
            self.stage += 1
        if self.stage == len(self.nodes):
            self.record.arrived_ns.append(self.now + 5 * MS)
            self.stage = 0

    def tokens(self, count: int) -> None:
        """So many tokens without trouble."""
        for _ in range(count):
            self.run()

    def compute(self, stage: int, position: int, backlog_ns: int = 0) -> dict[str, int]:
        """A step at `position`, which the node will report; time passes, and nobody is told what for."""
        node = self.nodes[stage]
        parts = {what: self.chance.randrange(MS) for what in PARTS}
        if backlog_ns:
            self._report(stage, node, (0, position), dict.fromkeys(PARTS, 0) | {"compute": backlog_ns})
        waited = max(0, backlog_ns - parts["open"])
        first = position == PROMPT - 1
        rows = (0, PROMPT) if first else (position, 1)
        self._report(stage, node, rows, parts | {"queue": parts["queue"] + waited})
        self.now += waited + sum(parts[what] for what in ("open", "queue", "compute"))
        return parts

    def _report(self, stage: int, node: str, rows: tuple[int, int], parts: dict[str, int]) -> None:
        if node not in self.offsets:
            self._learn_clock(node)
        column = self.told.setdefault((stage, node), executor_pb2.StageTimings(stage_index=stage))
        column.position.append(rows[0])
        column.rows.append(rows[1])
        received = self.now + self.offsets[node]
        column.received_ns.append(received - self._before.get((stage, node), 0))
        self._before[stage, node] = received
        for what in PARTS[:-1]:
            getattr(column, f"{what}_ns").append(parts[what])
        column.send_ns.append(sum(parts[what] for what in ("codec", "seal", "credit", "send")))

    def in_vain(self, stages: int) -> None:
        """So many stages compute the token under way, and what they made is lost."""
        began = self.now
        for stage in range(self.stage, self.stage + stages):
            self.compute(stage, self.position)
        self.truth["gateway", "detect"] += self.now - began

    def unnoticed(self, time_ns: int) -> None:
        """Nothing happens, and nobody knows yet."""
        self._pass("gateway", "detect", time_ns)

    def stall(
        self, what: str, time_ns: int, nodes: str = "", replays: tuple[int, ...] = (), within: int = 0
    ) -> None:
        """The generation stands, gets other nodes, and goes on behind the first stage that is another one.

        Args:
            what: Its name.
            time_ns: How long; longer where more is computed in it.
            nodes: The new pipeline, where it changes.
            replays: Stages that compute again what was known.
            within: So many stages have the token under way while it lasts.
        """
        began = self.now
        if nodes:
            self.move(nodes)
        for stage in replays:
            for position in range(PROMPT - 1, self.position):
                self.compute(stage, position)
        for _ in range(within):
            self.compute(self.stage, self.position)
            self._source, self.stage = self.nodes[self.stage], self.stage + 1
        if within and self.stage == len(self.nodes):
            self.record.arrived_ns.append(began + time_ns + 5 * MS)
            self.stage = 0
        self.now = max(self.now, began + time_ns)
        self.truth["gateway", what] += self.now - began
        self.record.stalls.append(Stall(what, began, self.now, "a test's"))
        self._sending = {}
        if self.stage == 0:
            self._source = "gateway"

    def move(self, nodes: str) -> None:
        """From the token under way on, these are the nodes; what new ones lack is computed again."""
        changed = [index for index, (old, new) in enumerate(zip(self.nodes, nodes, strict=True)) if old != new]
        self.nodes = tuple(nodes)
        self.record.pipelines.append((self.position, self.nodes))
        self.stage = min([self.stage, *changed])
        if self.stage:
            self._source = self.nodes[self.stage - 1]

    def end(self) -> GenerationRecord:
        """The record as the gateway has it, with what every node told."""
        self.record.ended_ns = self.record.arrived_ns[-1]
        self.truth[f"{self._source}>gateway", "link"] += 5 * MS
        self.record.stages = {place: column for place, column in self.told.items() if place[1] not in self.untold}
        return self.record

    def _some(self) -> int:
        return self.chance.randrange(MS)

    def _pass(self, place: str, what: str, time_ns: int) -> None:
        self.now += time_ns
        if time_ns:
            self.truth[place, what] += time_ns

    def _learn_clock(self, node: str) -> None:
        self.offsets[node] = self.chance.randrange(-(10**10), 10**10)
        wrong = self.chance.randint(-self._error_ns, self._error_ns)
        trip = 2 * self._error_ns + 1000
        self.record.clocks[node] = ClockReading(0, trip, trip // 2 + self.offsets[node] + wrong)
