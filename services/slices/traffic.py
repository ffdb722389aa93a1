"""What nodes have measured of slices, added up. Pure.

A node numbers its reports and repeats one that was not acknowledged: a report that comes twice counts once. Who reports
is remembered, and of each the last few processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from orbitmesh.errors import InvalidInputError

BUCKETS_MAX = 32
"""The most buckets that waits are counted in."""
COUNT_MAX = (1 << 64) - 1
"""Counts stay there once they reach it."""
REPORTERS_MAX = 1024
"""How many nodes and services may report; one more lets the one that was new first be forgotten."""
PROCESSES_MAX = 4
"""Of how many processes of one reporter the last number is known."""
PROCESS_BYTES = 16
"""How long the name of a process is."""


@dataclass(frozen=True)
class Traffic:
    """What was measured of one slice."""

    offered_bytes: int = 0
    """Bytes that senders wanted to send."""
    sent_bytes: int = 0
    """Bytes that were sent."""
    dropped_bytes: int = 0
    """Bytes refused by rule."""
    frames: int = 0
    """Frames sent."""
    violations: int = 0
    """Frames that waited longer than the slice's latency allows."""
    waits: tuple[int, ...] = ()
    """Frames by how long they waited: bucket i has those below 2^i microseconds and at least half of that."""

    def __add__(self, other: Traffic) -> Traffic:
        length = max(len(self.waits), len(other.waits))
        mine, theirs = (each + (0,) * (length - len(each)) for each in (self.waits, other.waits))
        return Traffic(
            _sum(self.offered_bytes, other.offered_bytes),
            _sum(self.sent_bytes, other.sent_bytes),
            _sum(self.dropped_bytes, other.dropped_bytes),
            _sum(self.frames, other.frames),
            _sum(self.violations, other.violations),
            tuple(_sum(one, two) for one, two in zip(mine, theirs, strict=True)),
        )

    def wait_ms(self, part: float) -> float:
        """How long this part of the frames waited at most, by the upper edge of the bucket that it ends in; 0 where no
        frame was counted.

        Args:
            part: 0 to 1; 0.99 for the 99th percentile.
        """
        counted = sum(self.waits)
        needed, met = part * counted, 0
        for index, count in enumerate(self.waits):
            met += count
            if count and met >= needed:
                return float(2**index) / 1e3
        return 0.0


def _sum(one: int, other: int) -> int:
    return min(COUNT_MAX, one + other)


@dataclass(frozen=True)
class Totals:
    """All that was measured."""

    slices: Mapping[str, Traffic] = field(default_factory=lambda: MappingProxyType({}))
    """By slice."""
    reporters: Mapping[str, tuple[tuple[bytes, int], ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By who reports: the last number of each of its processes, the newest process last."""


def add(
    totals: Totals,
    reporter: str,
    process: bytes,
    number: int,
    measured: Mapping[str, Traffic],
    active: Collection[str],
) -> Totals:
    """The totals with one report; the same where it came before.

    Args:
        totals: What was measured before.
        reporter: Who reports, `role/name`.
        process: Which process of it, `PROCESS_BYTES` random bytes.
        number: The report's number, from 1.
        measured: By slice; of slices that are not active nothing counts.
        active: The slices that are.

    Raises:
        InvalidInputError: Process or number make no sense, or there are too many buckets.
    """
    if len(process) != PROCESS_BYTES or number < 1:
        raise InvalidInputError(
            f"a report has the number {number} of a process that is named by {len(process)} bytes; expected a number "
            f"from 1 and {PROCESS_BYTES} bytes"
        )
    for name, each in measured.items():
        if len(each.waits) > BUCKETS_MAX:
            raise InvalidInputError(
                f"the waits of slice {name[:63]!r} are in {len(each.waits)} buckets; expected at most {BUCKETS_MAX}"
            )
    known = dict(totals.reporters.get(reporter, ()))
    if number <= known.get(process, 0):
        return totals
    known[process] = number
    while len(known) > PROCESSES_MAX:
        del known[next(iter(known))]
    reporters = {**totals.reporters, reporter: tuple(known.items())}
    while len(reporters) > REPORTERS_MAX:
        del reporters[next(iter(reporters))]
    slices = dict(totals.slices)
    for name, each in measured.items():
        if name in active:
            slices[name] = slices.get(name, Traffic()) + each
    return Totals(MappingProxyType(slices), MappingProxyType(reporters))


def without(totals: Totals, active: Collection[str]) -> Totals:
    """The totals without slices that are not there any more."""
    if all(name in active for name in totals.slices):
        return totals
    kept = {name: each for name, each in totals.slices.items() if name in active}
    return Totals(MappingProxyType(kept), totals.reporters)
