"""Slices as values, frozen and free of protobuf: what is asked of one, what it has, and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

RESOURCES = ("CPU", "GPU", "MemoryGB", "BandwidthGbps")
"""The resources of a node: cores, devices, gigabytes, gigabits per second."""
GOALS = ("balanced", "latency_sensitive", "throughput_max")
"""What an allocation can be best in."""
WITHIN_LATENCY_PERMILLE = 999.0
"""How many of 1000 transfers keep the latency of a slice that does not say it."""
WAIT_BUCKETS = 32
"""The most buckets of a count of waits; the last one of these has no upper end."""


@dataclass(frozen=True)
class SliceShare:
    """How much of a resource of each node a slice has, as parts of that node's capacity from 0 to 1.

    Example:
        >>> mesh.slices.resize("cam", shares={"CPU": SliceShare(min=0.25, max=0.5)}).profile.shares["CPU"].max
        0.5
    """

    dedicated: float = 0.0
    """Never lent to others, also while it is idle."""
    min: float = 0.0
    """Guaranteed, lent while it is idle; 0 takes `dedicated`, which it must not be below."""
    max: float | None = None
    """Never exceeded, also while others are idle; None means all of it."""


@dataclass(frozen=True)
class SliceProfile:
    """What a slice is to be. What is 0, empty or missing here comes from the template.

    Example:
        >>> mesh.slices.get("cam").profile.latency_ms
        20.0
    """

    template: str = ""
    """The template: `urllc`, `embb`, `mmtc`; empty for none."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What full traffic needs, by resource: `CPU` (cores), `GPU` (devices), `MemoryGB`, `BandwidthGbps`."""
    shares: Mapping[str, SliceShare] = field(default_factory=dict)
    """Parts of a node's capacity, by the same names."""
    latency_ms: float = 0.0
    """From its place to a node that serves it and back by light at least, in milliseconds."""
    within_latency_permille: float = 0.0
    """Of 1000 transfers, so many keep the latency."""
    least_served: float = 0.0
    """The part of its traffic that has to be served, 0 to 1."""
    weight: float = 0.0
    """How it weighs beside others; 0 means 1."""
    place: str = ""
    """Where its traffic comes from: a node, or a site of the contact plan; empty where that does not matter."""
    nodes: tuple[str, ...] = ()
    """Only these nodes; empty means all."""
    nodes_max: int = 0
    """On how many nodes it may be spread; 0 means 1."""
    max_number_of_ues: int = 0
    """How many pieces of work may be admitted at once; 0 means 1000."""
    sst: int = 0
    """Slice/service type of its S-NSSAI: 1 eMBB, 2 URLLC, 3 MIoT."""
    sd: str = ""
    """Slice differentiator of its S-NSSAI: six hexadecimal digits, empty for none."""


@dataclass(frozen=True)
class SliceAllocation:
    """What a slice has on one node.

    Example:
        >>> mesh.slices.get("cam").allocations[0].served
        1.0
    """

    slice: str
    """Which slice."""
    node: str
    """Which node."""
    served: float
    """The part of its traffic that is served there, 0 to 1."""
    resources: Mapping[str, float]
    """What is reserved there, by resource."""
    traffic: float = 1.0
    """How much of the traffic of its profile it was computed for, which `served` is a part of."""


@dataclass(frozen=True)
class SliceTraffic:
    """What was measured of a slice since it became active.

    Example:
        >>> mesh.slices.get("cam").traffic.dropped_bytes
        0
    """

    offered_bytes: int = 0
    """Bytes that senders wanted to send."""
    sent_bytes: int = 0
    """Bytes that were sent."""
    dropped_bytes: int = 0
    """Bytes refused by rule: a full queue."""
    frames: int = 0
    """Frames sent."""
    violations: int = 0
    """Frames that waited longer than the slice's latency allows."""
    wait_buckets: tuple[int, ...] = ()
    """How long frames waited for their turn, counted: bucket i has those of less than 2^i microseconds and at least
    half of that, the 32nd all longer ones."""

    def wait_s(self, part: float) -> float | None:
        """The wait that this part of the frames did not exceed, in seconds; None where nothing was counted.

        It is the upper end of the bucket in which that frame is: never below what was measured, and less than twice as
        long; infinite where it lies beyond the last bucket's beginning.

        Args:
            part: Above 0 and at most 1: 0.5 is the median, 0.99 the 99th percentile.

        Raises:
            ValueError: `part` is no such number.

        Example:
            >>> SliceTraffic(frames=4, wait_buckets=(0, 0, 3, 1)).wait_s(0.5)
            4e-06
        """
        if not 0.0 < part <= 1.0:
            raise ValueError(f"part is {part!r:.80}; expected a number above 0 and at most 1")
        total = sum(self.wait_buckets)
        if not total:
            return None
        # A part such as 0.99 is no binary fraction: 0.99 * 100 must not become the 100th frame.
        rank = max(1, math.ceil(part * total - 1e-9 * total))
        seen = 0
        for index, count in enumerate(self.wait_buckets):
            seen += count
            if seen >= rank:
                return math.inf if index >= WAIT_BUCKETS - 1 else 2**index / 1e6
        return math.inf


@dataclass(frozen=True)
class Slice:
    """A slice: what it is to be, what it has, and what was measured of it.

    Example:
        >>> mesh.slices.get("cam").state
        'active'
    """

    name: str
    """Its name, unique in the mesh."""
    tenant: str
    """Whose it is."""
    profile: SliceProfile
    """What it is to be, with all that came from its template."""
    state: str
    """`defined` (nothing is reserved), `active` (what it has is reserved and enforced) or `releasing` (it takes no new
    work, and ends with what it has)."""
    allocations: tuple[SliceAllocation, ...]
    """What it has."""
    etag: str
    """Changes with every change of the slice."""
    admitted: int
    """Pieces of work admitted now."""
    changed_at: datetime | None
    """When it was last changed, in UTC; None for one that nobody has kept."""
    traffic: SliceTraffic
    """What was measured of it since it became active."""

    @property
    def served(self) -> float:
        """The part of its traffic that its allocations serve, 0 to 1; of that which they were computed for.

        Example:
            >>> mesh.slices.get("cam").served
            1.0
        """
        return math.fsum(each.served for each in self.allocations)

    @property
    def violations_allowed(self) -> float:
        """How many of the frames sent so far may have waited too long.

        Example:
            >>> mesh.slices.get("cam").violations_allowed
            0.0
        """
        within = self.profile.within_latency_permille or WITHIN_LATENCY_PERMILLE
        return self.traffic.frames * (1000.0 - within) / 1000.0

    @property
    def error_budget_left(self) -> float | None:
        """What is left of the violations that it may have: 1 is all, 0 nothing, below 0 it was overspent; None before
        its first frame. Minus infinity where none is allowed and there were some.

        Example:
            >>> mesh.slices.get("cam").error_budget_left is None
            True
        """
        if not self.traffic.frames:
            return None
        if not self.traffic.violations:
            return 1.0
        allowed = self.violations_allowed
        return 1.0 - self.traffic.violations / allowed if allowed > 0 else -math.inf


@dataclass(frozen=True)
class SliceTemplate:
    """A template that slices are defined from.

    Example:
        >>> [template.name for template in mesh.slices.templates()]
        ['urllc', 'embb', 'mmtc']
    """

    name: str
    """Its name."""
    profile: SliceProfile
    """What it sets."""
    about: str
    """What it is for."""


@dataclass(frozen=True)
class SliceNode:
    """A node as slices see it.

    Example:
        >>> SliceNode("node-42", {"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40}).name
        'node-42'
    """

    name: str
    """Its name."""
    capacity: Mapping[str, float]
    """What it has in all, by resource."""
    reserved: Mapping[str, float] = field(default_factory=dict)
    """What is reserved of it by active slices."""
    absent: bool = False
    """Whether it is out of reach: what is reserved there stays, and nothing new is."""


@dataclass(frozen=True)
class SlicesOverview:
    """The slices and the nodes at one moment.

    Example:
        >>> [(each.name, each.state) for each in mesh.slices.list().slices]
        [('cam', 'active'), ('sensors', 'defined')]
    """

    slices: tuple[Slice, ...]
    """By name."""
    nodes: tuple[SliceNode, ...]
    """By name."""
    etag: str
    """Changes with every change of any allocation."""


@dataclass(frozen=True)
class SliceOutcome:
    """An allocation that was computed; nothing of it holds before `apply`.

    Example:
        >>> outcome = mesh.slices.optimize(goal="balanced", slices=["cam"])
        >>> outcome.goal
        'balanced'
    """

    goal: str
    """What it is best in: `balanced`, `latency_sensitive` or `throughput_max`."""
    allocations: tuple[SliceAllocation, ...]
    """What each slice gets on each node."""
    objective: float
    """What it was best in, as a number: for `balanced` the least part served, for `latency_sensitive` milliseconds, for
    `throughput_max` the weighted sum of what is served."""
    bound: float
    """What no allocation can be better than."""
    gap: float
    """How far the two are apart, as a part of the bound."""
    took_s: float
    """How long it took, in seconds."""
    etag: str
    """The state that it was computed from."""
    what_if: bool = False
    """Whether it was computed for slices or nodes that are not the mesh's, so that it cannot be applied."""

    @property
    def served(self) -> Mapping[str, float]:
        """The part of its traffic that each slice gets served, 0 to 1, by name.

        Example:
            >>> mesh.slices.optimize(goal="balanced", slices=["cam"]).served
            {'cam': 1.0}
        """
        parts: dict[str, list[float]] = {}
        for each in self.allocations:
            parts.setdefault(each.slice, []).append(each.served)
        return {name: math.fsum(parts[name]) for name in sorted(parts)}


@dataclass(frozen=True)
class SlicesApplied:
    """What an allocation has changed.

    Example:
        >>> applied = mesh.slices.apply(mesh.slices.optimize(slices=["cam"]))
        >>> [each.state for each in applied.slices]
        ['active']
    """

    slices: tuple[Slice, ...]
    """The slices that it changed."""
    etag: str
    """The etag of the state as it is now."""
