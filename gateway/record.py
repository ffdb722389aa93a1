"""What a gateway notes of one generation: its pipelines, its stalls, the clocks and the steps of its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from orbitmesh.trace.breakdown import HAND_OVER, RECOVER, WAITING_FOR_CONTACT
from orbitmesh.v1 import executor_pb2

__all__ = ["HAND_OVER", "RECOVER", "WAITING_FOR_CONTACT", "ClockReading", "GenerationRecord", "Stall"]


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


@dataclass(frozen=True)
class Stall:
    """A time in which a generation did not get on. Times in nanoseconds of the gateway's monotonic clock."""

    what: str
    """`RECOVER`, `WAITING_FOR_CONTACT` or `HAND_OVER`."""
    began_ns: int
    """When it was noticed."""
    ended_ns: int
    """When the stages were told to go on."""
    detail: str = ""
    """A sentence about it, for its span: the node, the window; nothing of the prompt or the answer."""


@dataclass
class GenerationRecord:
    """What the gateway noted of one generation. Times in nanoseconds of the gateway's monotonic clock."""

    trace_id: str
    """32 hex digits."""
    deployment: str
    """The deployment's name."""
    pipelines: list[tuple[int, tuple[str, ...]]]
    """The first position computed there, and the nodes in order; the first entry is at position 0. Where two speak for
    a position, the later entry does."""
    prompt_tokens: int
    """Tokens of the prompt."""
    began_ns: int
    """When the request came."""
    began_at_ns: int
    """The same on the wall clock, since 1970."""
    admitted_ns: int = 0
    """When every stage had reserved the cache, for the first time."""
    fed_ns: int = 0
    """When the last chunk of the prompt was with the transport."""
    turn_ns: int = 0
    """Until then: how long frames of the prompt waited for their turn on the link."""
    turn_for: str = ""
    """What they waited for, for people."""
    arrived_ns: list[int] = field(default_factory=list)
    """When each token came."""
    ended_ns: int = 0
    """When the last token came, or the generation was given up; 0 where neither was noted."""
    finish: int = 0
    """The `FinishReason` of the last token."""
    clocks: dict[str, ClockReading] = field(default_factory=dict)
    """The best reading of each node's clock."""
    stages: dict[tuple[int, str], executor_pb2.StageTimings] = field(default_factory=dict)
    """The steps of each stage on each node that had it, by the stage's place and the node, as they came home."""
    raw_bytes: int = 0
    """Bytes sent over links, before codec and seal."""
    wire_bytes: int = 0
    """Bytes sent over links, as messages."""
    stalls: list[Stall] = field(default_factory=list)
    """When it did not get on: in order, disjoint, possibly touching."""
    taken_up_tokens: int = 0
    """Tokens produced before this record begins, where another gateway process began the generation."""
    slice: str = ""
    """The slice that it named; empty for none."""
    error_reason: str = ""
    """Why it ended before its last token, or was refused: a reason of the error table; empty where it was not. Not the
    error itself, which would keep its frames, and the prompt with them."""
    error: str = ""
    """The same for people."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The first pipeline's nodes, in order; none before one is known."""
        return self.pipelines[0][1] if self.pipelines else ()

    @property
    def all_nodes(self) -> tuple[str, ...]:
        """Every node of every pipeline, each once."""
        return tuple(dict.fromkeys(node for _, nodes in self.pipelines for node in nodes))

    @property
    def disturbed(self) -> bool:
        """Whether it stalled or changed its nodes."""
        return bool(self.stalls) or len(self.pipelines) > 1

    @property
    def last_ns(self) -> int:
        """When the generation ended: as noted, or else the last that is known of it."""
        return self.ended_ns or max([self.began_ns, *self.arrived_ns[-1:], *(stall.ended_ns for stall in self.stalls)])

    def nodes_at(self, position: int) -> tuple[str, ...]:
        """The nodes that the step of this position went through, in order."""
        return next((nodes for first, nodes in reversed(self.pipelines) if first <= position), self.nodes)

    def stalls_within(self, start_ns: int, end_ns: int) -> Iterator[tuple[int, int, int]]:
        """The stalls between two times: number, beginning and end, cut to what lies between."""
        for number, stall in enumerate(self.stalls):
            began, ended = max(start_ns, stall.began_ns), min(end_ns, stall.ended_ns)
            if began < ended:
                yield number, began, ended


class StallNotes:
    """Notes stalls one after another, as they begin and end.

    Args:
        stalls: Where they go.
    """

    def __init__(self, stalls: list[Stall]) -> None:
        self._stalls = stalls
        self._open: tuple[str, int, str] | None = None

    def begin(self, what: str, detail: str) -> None:
        """A stall begins; another kind ends the one that is open, but asking again while it waits is part of that."""
        now_ns = time.monotonic_ns()
        if self._open is not None:
            if what in (self._open[0], RECOVER):
                return
            self._stalls.append(Stall(self._open[0], self._open[1], now_ns, self._open[2]))
        self._open = (what, now_ns, detail)

    def end(self) -> None:
        """It gets on again."""
        if self._open is not None:
            self._stalls.append(Stall(self._open[0], self._open[1], time.monotonic_ns(), self._open[2]))
            self._open = None
