"""What is to be optimised, and what an allocation is: the words that the optimiser and its callers share.

Of the traffic of slice s the part x[s,n] is served on node n, and a slice is either present on a node or not:

- it is present on at most `nodes_max` nodes, each of them allowed and near enough (`floors_ms` within `latency_ms`);
- `least_served` <= sum over n of x[s,n] <= 1;
- where it is present, `max(need * x, minimum * capacity)` of each resource is reserved for it: what its traffic takes,
  and at least what it was guaranteed. `need * x` is at most `maximum * capacity`;
- on each node all that is reserved, and what others had before (`NodeCapacity.taken`), is at most the capacity.

A guarantee is reserved although it is lent while idle: only then can all guarantees of a node be called in at once.
`dedicated` says what may not even be lent; as it is never more than the minimum, it changes nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orbitmesh.errors import InvalidInputError
from services.slices.resources import WHOLE, Resources, Share, check_names

SLICES_MOST = 2000
NODES_MOST = 2000
PAIRS_MOST = 200_000
"""Pairs of slice and node that are asked for at once: what fits into memory and a minute."""


class Goal(StrEnum):
    """What an allocation is to be best in."""

    BALANCED = "balanced"
    """The least served slice gets the most that it can; then the next, and so on. Weights play no part."""
    LATENCY_SENSITIVE = "latency_sensitive"
    """The weighted mean of the slices' latencies is least, where a slice has the latency of the farthest node that
    serves it; then the sum of what is served is greatest, each part counted with weight / latency_ms."""
    THROUGHPUT_MAX = "throughput_max"
    """The weighted sum of the parts served is greatest."""


@dataclass(frozen=True)
class Demand:
    """One slice, as far as an allocation has to do with it.

    Args:
        slice: Its name.
        need: What all of its traffic needs.
        shares: Parts of each node's capacity by resource; a resource without one has `WHOLE`.
        least_served: The part of its traffic that has to be served, 0 to 1.
        weight: How it weighs beside others, above 0.
        latency_ms: There and back at most, above 0; infinity where it has no bound.
        floors_ms: There and back by light from the slice's place, by node; a node that is not named is at the place.
        nodes: Only these nodes; empty means all.
        nodes_max: On how many nodes it may be present at most.

    Raises:
        InvalidInputError: a value outside what is said above.
    """

    slice: str
    need: Resources
    shares: Mapping[str, Share] = field(default_factory=dict)
    least_served: float = 0.0
    weight: float = 1.0
    latency_ms: float = math.inf
    floors_ms: Mapping[str, float] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    nodes_max: int = 1

    def __post_init__(self) -> None:
        name = f"slice {self.slice!r:.80}"
        check_names(self.shares, f"{name}: shares")
        if not 0 <= self.least_served <= 1:
            raise InvalidInputError(f"{name}: least_served is {self.least_served!r}; expected 0 to 1")
        if not 0 < self.weight <= 1e6:
            raise InvalidInputError(f"{name}: weight is {self.weight!r}; expected above 0 and at most 1e6")
        if not self.latency_ms > 0:
            raise InvalidInputError(f"{name}: latency_ms is {self.latency_ms!r}; expected above 0")
        if self.nodes_max < 1:
            raise InvalidInputError(f"{name}: nodes_max is {self.nodes_max!r}; expected at least 1")
        for node, floor in self.floors_ms.items():
            if not floor >= 0:
                raise InvalidInputError(f"{name}: the floor of node {node!r:.80} is {floor!r} ms; expected at least 0")

    def share(self, resource: str) -> Share:
        """Its share of a resource of each node."""
        return self.shares.get(resource, WHOLE)

    def floor_ms(self, node: str) -> float:
        """There and back by light; infinity for a node that cannot be reached."""
        return self.floors_ms.get(node, 0.0)

    def reserved(self, capacity: Resources, served: float) -> Resources:
        """What is reserved for it on a node of `capacity` where this part of its traffic is served."""
        guaranteed = Resources(*(self.share(name).minimum * amount for name, amount in capacity.items()))
        return self.need.times(served).at_least(guaranteed)

    def most_served(self, capacity: Resources) -> float:
        """The largest part of its traffic that its maxima let a node of `capacity` serve, 0 to 1."""
        parts = [self.share(name).maximum * capacity[name] / need for name, need in self.need.items() if need > 0]
        return min([1.0, *parts])


@dataclass(frozen=True)
class NodeCapacity:
    """A node.

    Args:
        node: Its name.
        capacity: What it has in all; shares are parts of this.
        taken: What slices that are not part of the problem have of it.
    """

    node: str
    capacity: Resources
    taken: Resources = field(default_factory=Resources)

    @property
    def free(self) -> Resources:
        """What can still be reserved."""
        return self.capacity - self.taken


@dataclass(frozen=True)
class Problem:
    """Slices, nodes and what is to be best.

    Raises:
        InvalidInputError: names that come twice, a slice that names a node that is not there, no slice, no node, or
            more of them than `SLICES_MOST`, `NODES_MOST`, `PAIRS_MOST`.
    """

    demands: tuple[Demand, ...]
    nodes: tuple[NodeCapacity, ...]
    goal: Goal = Goal.BALANCED

    def __post_init__(self) -> None:
        if not self.demands or not self.nodes:
            raise InvalidInputError("nothing to allocate: expected at least one slice and one node")
        if len(self.demands) > SLICES_MOST or len(self.nodes) > NODES_MOST:
            raise InvalidInputError(
                f"{len(self.demands)} slices on {len(self.nodes)} nodes; at most {SLICES_MOST} and {NODES_MOST} at once"
            )
        if len(self.demands) * len(self.nodes) > PAIRS_MOST:
            raise InvalidInputError(
                f"{len(self.demands)} slices on {len(self.nodes)} nodes are more than {PAIRS_MOST} pairs; ask for fewer"
            )
        known = _unique("node", [node.node for node in self.nodes])
        _unique("slice", [demand.slice for demand in self.demands])
        for demand in self.demands:
            for name in demand.nodes:
                if name not in known:
                    raise InvalidInputError(f"slice {demand.slice!r:.80} names node {name!r:.80}, which is not there")


@dataclass(frozen=True)
class Allocation:
    """What a slice has on one node."""

    slice: str
    """Which slice."""
    node: str
    """Which node."""
    served: float
    """The part of its traffic that is served there, above 0 and at most 1."""
    resources: Resources
    """What is reserved there: see `Demand.reserved`."""


@dataclass(frozen=True)
class Outcome:
    """An allocation of all slices, and how good it is."""

    goal: Goal
    """What it was best in."""
    allocations: tuple[Allocation, ...]
    """Ordered by the problem's slices, then nodes."""
    objective: float
    """balanced: the least part served; latency_sensitive: weighted mean of latencies, ms; throughput_max: weighted sum
    of the parts served."""
    bound: float
    """No allocation has a better objective: from above, for latency_sensitive from below."""
    gap: float
    """How far the two are apart, as a part of the bound; 0 where both are equal."""
    took_s: float
    """Seconds from call to answer."""
    complete: bool
    """False where the time limit ended the search: the same call may then find another allocation."""

    def served(self, name: str) -> float:
        """The part of a slice's traffic that is served, over all nodes."""
        return sum(each.served for each in self.allocations if each.slice == name)


def _unique(kind: str, names: list[str]) -> frozenset[str]:
    found = frozenset(names)
    if len(found) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{kind} {twice!r:.80} comes twice; give each once")
    return found
