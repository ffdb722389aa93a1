"""A generation as one stage sees it: who computes what, how far it is, and the record of its steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import executor_pb2
from services.executor.kvcache import GenerationCache
from services.executor.progress import Phase, Progress
from services.journal.rows import RowJournal

TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
"""A W3C trace context."""
UINT32_MAX = (1 << 32) - 1
"""Durations of one part of a step are kept in 32 bits of nanoseconds (4.3 s); a longer one is cut to it."""


@dataclass(slots=True)
class StepRecord:
    """One step of one generation in one stage. All times in nanoseconds."""

    position: int
    """Position of its first row."""
    rows: int
    """Rows computed."""
    received_ns: int
    """When its first frame arrived, on this node's monotonic clock."""
    open_ns: int
    """Work: opening and decoding."""
    queue_ns: int
    """Wait: from arrival, less `open_ns`, until the computation began."""
    compute_ns: int
    """Work: the computation, sampling included."""
    ended_ns: int
    """When the computation ended, on this node's monotonic clock."""
    codec_ns: int = 0
    """Work of sending on: encoding."""
    seal_ns: int = 0
    """Work of sending on: sealing."""
    credit_ns: int = 0
    """Wait of sending on: credit."""
    send_ns: int = 0
    """From the end of the computation until the last frame was with the transport."""
    held_ns: int = 0
    """Of `queue_ns`: held back by a rule of slices."""
    turn_ns: int = 0
    """Of `send_ns`: waiting for a turn on the link."""


@dataclass(frozen=True)
class Route:
    """Where a stage stands in the pipeline of one generation."""

    stage_index: int
    """The stage's place, from 0."""
    nodes: tuple[str, ...]
    """The nodes of the pipeline, in order."""

    @property
    def is_first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that chooses tokens."""
        return self.stage_index == len(self.nodes) - 1

    @property
    def next_node(self) -> str:
        """The node that takes what this stage sends: hidden states, or tokens for the first stage."""
        return self.nodes[(self.stage_index + 1) % len(self.nodes)]

    @property
    def feeder(self) -> str | None:
        """The node that hidden states come from; None for the first stage."""
        return None if self.is_first else self.nodes[self.stage_index - 1]


def route_of(stage_index: int, pipeline: Sequence[executor_pb2.PeerAddress]) -> Route:
    """The route that a request names.

    Raises:
        InvalidInputError: Where the stage is not in the pipeline.
    """
    if not 0 <= stage_index < len(pipeline):
        raise InvalidInputError(f"stage {stage_index} is not in a pipeline of {len(pipeline)} nodes")
    return Route(stage_index, tuple(peer.name for peer in pipeline))


@dataclass(slots=True)
class Generation:
    """One open generation of a stage."""

    request: executor_pb2.OpenGenerationRequest
    """What it was opened with: its bounds, its sampling, its name in the deployment."""
    gateway: str
    """SPIFFE name of the gateway that opened it: where tokens and failures go."""
    cache: GenerationCache
    """Its keys and values."""
    journal: RowJournal
    """What it made for the next stage; for the last stage always empty."""
    expires_ns: int
    """When it is freed without being told, on this node's monotonic clock."""
    progress: Progress
    """How far it is."""
    route: Route
    """Its way in the epoch that `progress` is in."""
    next_route: Route | None = None
    """Its way from the planned switch on."""
    tokens: list[int] = field(default_factory=list)
    """Ids by position from `tokens_from` on: those that the first stage took, or that the last stage sampled."""
    tokens_from: int = 0
    """The position of the first entry of `tokens`."""
    run: int = 0
    """Counts how often it was stopped: what was begun in an earlier run is not computed."""
    feed_to: str | None = None
    """The node that is fed along with the next stage, because it will take its place."""
    cache_layer: int = 0
    """While a cache is taken over: the layer that comes next."""
    held: list[Callable[[], None]] = field(default_factory=list)
    """Work that arrived before this stage was told to go on."""
    steps: list[StepRecord] = field(default_factory=list)
    """The record, one entry per step; bounded by the context."""
    raw_bytes: int = 0
    """Bytes sent on, before the codec."""
    wire_bytes: int = 0
    """Bytes sent on, as messages."""
    closed: bool = False
    """True when nothing may be computed for it any more."""
    changed_ns: int = 0
    """When it last got on, on this node's monotonic clock."""
    opened_ns: int = 0
    """When it was opened, on this node's monotonic clock."""
    held_by: str = ""
    """The rule of slices that held a step of it back last, for people."""
    turn_for: str = ""
    """What a frame of it waited for last before it had its turn on the link, for people."""
    saved: tuple[int, int] | None = None
    """Its `mark` when it was last written to disk."""
    snapshot: Path | None = None
    """The file that it was written to."""

    @property
    def number(self) -> int:
        """Its number on every node."""
        return self.request.generation

    @property
    def trace_id(self) -> str:
        """The trace that it is part of, 32 hex digits; empty where its gateway named none."""
        return trace_id_of(self.request.traceparent)

    @property
    def running(self) -> bool:
        """Whether results leave the stage."""
        return self.progress.phase is Phase.RUNNING

    @property
    def mark(self) -> tuple[int, int]:
        """Positions and tokens that it holds. An older epoch on disk does no harm: the next stop is above it."""
        return self.progress.length, len(self.tokens)

    @property
    def step_ns(self) -> int:
        """The mean time from step to step so far, in nanoseconds."""
        return (self.changed_ns - self.opened_ns) // max(1, self.progress.length - self.request.prompt_tokens)

    def route_at(self, position: int) -> Route:
        """The way of a step of this position."""
        if self.next_route is not None and self.progress.epoch_at(position) != self.progress.epoch:
            return self.next_route
        return self.route

    def settle_route(self) -> None:
        """Takes the new way once the switch is behind."""
        if self.next_route is not None and self.progress.switch is None:
            self.route, self.next_route, self.feed_to = self.next_route, None, None

    def known_tokens(self, position: int) -> list[int]:
        """Ids from `position` on; none where the stage does not know that one."""
        return self.tokens[position - self.tokens_from :] if position >= self.tokens_from else []

    def note_tokens(self, position: int, ids: Sequence[int]) -> None:
        """Ids from `position` on are these, as far as the stage knows."""
        self.cut_tokens(position)
        if position == self.tokens_from + len(self.tokens):
            self.tokens.extend(ids)

    def cut_tokens(self, position: int) -> None:
        """Forgets ids from `position` on."""
        del self.tokens[max(0, position - self.tokens_from) :]


def timings_message(
    stage_index: int, steps: list[StepRecord], held_by: str = "", turn_for: str = ""
) -> executor_pb2.StageTimings:
    """The record as columns, arrival times as differences: a few bytes per step."""
    message = executor_pb2.StageTimings(stage_index=stage_index, held_by=held_by, turn_for=turn_for)
    if turn_for:
        message.turn_ns.extend(min(step.turn_ns, UINT32_MAX) for step in steps)
    if held_by:
        message.held_ns.extend(min(step.held_ns, UINT32_MAX) for step in steps)
    before = 0
    for step in steps:
        message.position.append(step.position)
        message.rows.append(step.rows)
        message.received_ns.append(step.received_ns - before)
        before = step.received_ns
        message.open_ns.append(min(step.open_ns, UINT32_MAX))
        message.queue_ns.append(min(step.queue_ns, UINT32_MAX))
        message.compute_ns.append(min(step.compute_ns, UINT32_MAX))
        message.codec_ns.append(min(step.codec_ns, UINT32_MAX))
        message.seal_ns.append(min(step.seal_ns, UINT32_MAX))
        message.credit_ns.append(min(step.credit_ns, UINT32_MAX))
        message.send_ns.append(min(step.send_ns, UINT32_MAX))
    return message


def trace_id_of(traceparent: str) -> str:
    """The trace of a W3C trace context (version-trace-parent-flags), 32 hex digits; empty where it is none."""
    found = TRACEPARENT.fullmatch(traceparent)
    return found[1] if found else ""


def about(generation: Generation) -> dict[str, int | str]:
    """What every log line on a generation says of it."""
    return {"generation": generation.number, "trace_id": generation.trace_id}
