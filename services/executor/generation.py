"""A generation as one stage sees it, and the record of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orbitmesh.v1 import executor_pb2

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


@dataclass(slots=True)
class Generation:
    """One open generation of a stage."""

    number: int
    """Its number on every node."""
    gateway: str
    """SPIFFE name of the gateway that opened it: where tokens and failures go."""
    cache: Any
    """Its keys and values."""
    max_tokens: int
    """Positions that are reserved."""
    stop_position: int
    """The position that is not produced any more."""
    temperature: float
    """0 takes the most probable token."""
    top_p: float
    """The nucleus' probability."""
    seed: int
    """With the position it gives the random number."""
    stop_token_ids: frozenset[int]
    """Tokens that end it."""
    expires_ns: int
    """When it is freed without being told, on this node's monotonic clock."""
    keep_timings: bool
    """Whether steps are recorded."""
    steps: list[StepRecord] = field(default_factory=list)
    """The record, one entry per step; bounded by the context."""
    raw_bytes: int = 0
    """Bytes sent on, before the codec."""
    wire_bytes: int = 0
    """Bytes sent on, as messages."""
    closed: bool = False
    """True when nothing may be computed for it any more."""


def timings_message(stage_index: int, steps: list[StepRecord]) -> executor_pb2.StageTimings:
    """The record as columns, arrival times as differences: a few bytes per step."""
    message = executor_pb2.StageTimings(stage_index=stage_index)
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
