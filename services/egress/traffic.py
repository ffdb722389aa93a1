"""What a port has measured of one slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

WAIT_BUCKETS = 32
"""How many buckets the waits are counted in; the last has all longer ones."""


@dataclass
class Traffic:
    """Counts since the port knows the slice; what waits is offered, and neither sent nor dropped yet."""

    offered_bytes: int = 0
    """What senders wanted to send; not what they took back."""
    sent_bytes: int = 0
    """What had its turn."""
    dropped_bytes: int = 0
    """What was refused because the queue was full."""
    frames: int = 0
    """Frames that had their turn."""
    violations: int = 0
    """Frames that waited longer than the slice's latency allows."""
    wait_buckets: list[int] = field(default_factory=lambda: [0] * WAIT_BUCKETS)
    """How long frames waited: bucket i has those of less than 2^i microseconds and at least half of that."""

    def sent(self, size: int, waited_ns: int, latency_s: float) -> None:
        """A frame had its turn.

        Args:
            size: In bytes.
            waited_ns: How long it waited, in nanoseconds.
            latency_s: What the slice allows, in seconds; 0 for no bound.
        """
        self.sent_bytes += size
        self.frames += 1
        self.wait_buckets[min((waited_ns // 1000).bit_length(), WAIT_BUCKETS - 1)] += 1
        if latency_s and waited_ns > latency_s * 1e9:
            self.violations += 1

    def unsent(self, size: int) -> None:
        """A frame that had its turn was not sent after all; its wait stays counted."""
        self.offered_bytes -= size
        self.sent_bytes -= size
        self.frames -= 1


def added(*counted: Mapping[str, Traffic]) -> dict[str, Traffic]:
    """The sums of what several ports have measured, by slice."""
    if len(counted) == 1:
        return dict(counted[0])
    found: dict[str, Traffic] = {}
    for name in dict.fromkeys(name for each in counted for name in each):
        parts = [each[name] for each in counted if name in each]
        found[name] = Traffic(
            sum(each.offered_bytes for each in parts),
            sum(each.sent_bytes for each in parts),
            sum(each.dropped_bytes for each in parts),
            sum(each.frames for each in parts),
            sum(each.violations for each in parts),
            [sum(bucket) for bucket in zip(*(each.wait_buckets for each in parts), strict=True)],
        )
    return found
