"""Who could take a place of a pipeline: standbys before anything happens, spares after it has. Pure.

A candidate needs memory for the stage. Of those that have it, the one with the least token time of the pipeline wins;
a standby is rather taken from outside the pipeline, because a node that serves two places is lost with both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from services.scheduler.costs import PlanLink, PlanModel, PlanNode

Links = Mapping[tuple[str, str], PlanLink]


@dataclass(frozen=True)
class Ring:
    """A pipeline as it stands."""

    model: PlanModel
    """The model."""
    nodes: tuple[str, ...]
    """The node of each stage; one may have several."""
    bounds: tuple[int, ...]
    """Stage k holds layers [bounds[k], bounds[k+1])."""
    memory_bytes: tuple[int, ...]
    """What each stage takes, weights and caches, in bytes."""

    def with_node(self, index: int, node: str) -> Ring:
        """The same with another node in one place."""
        nodes = (*self.nodes[:index], node, *self.nodes[index + 1 :])
        return Ring(self.model, nodes, self.bounds, self.memory_bytes)


@dataclass(frozen=True, order=True)
class Rank:
    """How good a candidate is; the smallest is the best."""

    absent: bool
    """Whether it has yet to load the stage; one that holds it, or is loading it, comes first."""
    unmeasured: int
    """How many of the ways to and from its neighbours nobody has measured yet."""
    inside: bool
    """Whether it holds another place of the pipeline; only looked at for standbys."""
    stands_by: int
    """For how many other places it stands by already; only looked at for standbys."""
    seconds: float
    """Token time of what it changes: its computation and the ways to and from its neighbours, in seconds."""
    node: str
    """Its name: the last tie is decided by it."""


def stage_s(model: PlanModel, node: PlanNode, start: int, stop: int) -> float:
    """Seconds of layers [start, stop) on a node, with embedding and head where they belong."""
    ends = (node.embed_s if start == 0 else 0.0) + (node.head_s if stop == len(model.layer_bytes) else 0.0)
    return sum(node.layer_s[start:stop]) + ends


def way_s(model: PlanModel, links: Links, source: str, target: str, *, token: bool) -> float:
    """Seconds of one crossing; 0 within a node, `inf` without a link."""
    if source == target:
        return 0.0
    link = links.get((source, target))
    if link is None:
        return math.inf
    return link.latency_s + (model.token_bytes if token else model.activation_bytes) * 8 / link.rate_bps


def token_s(ring: Ring, nodes: Mapping[str, PlanNode], links: Links) -> float:
    """Seconds of one token round the ring; `inf` where a node or a link is missing."""
    total = 0.0
    for index, name in enumerate(ring.nodes):
        node = nodes.get(name)
        if node is None:
            return math.inf
        total += stage_s(ring.model, node, ring.bounds[index], ring.bounds[index + 1])
        last = index == len(ring.nodes) - 1
        total += way_s(ring.model, links, name, ring.nodes[(index + 1) % len(ring.nodes)], token=last)
    return total


def rank_for_place(
    ring: Ring,
    index: int,
    candidates: Sequence[PlanNode],
    links: Links,
    *,
    members: Collection[str],
    here: Collection[str] = (),
    down: Collection[tuple[str, str]] = (),
    standbys: Sequence[str] | None = None,
) -> list[Rank]:
    """The candidates that could take a place, best first.

    Args:
        ring: The pipeline.
        index: The place.
        candidates: Nodes with the memory that they have free; the place's own node is passed over.
        links: The links that are up.
        members: Nodes that are up; a neighbour that is not has no links to judge by.
        here: Nodes that hold the stage already or are loading it: they need no more memory.
        down: Links that were measured and are down: a candidate that would need one is passed over.
        standbys: Where a standby is sought: the nodes that stand by for other places already.
    """
    count = len(ring.nodes)
    before, after = ring.nodes[(index - 1) % count], ring.nodes[(index + 1) % count]
    found = []
    for node in candidates:
        absent = node.name not in here
        if node.name == ring.nodes[index] or (absent and node.memory_bytes < ring.memory_bytes[index]):
            continue
        ways = [] if count == 1 else [(before, node.name, index == 0), (node.name, after, index == count - 1)]
        if any((source, target) in down for source, target, _ in ways):
            continue
        seconds, unmeasured = stage_s(ring.model, node, ring.bounds[index], ring.bounds[index + 1]), 0
        for source, target, token in ways:
            way = way_s(ring.model, links, source, target, token=token)
            if math.isfinite(way):
                seconds += way
            elif source in members and target in members:
                unmeasured += 1
        found.append(Rank(absent, unmeasured, *_load(ring, node.name, standbys), seconds, node.name))
    return sorted(found)


def _load(ring: Ring, node: str, standbys: Sequence[str] | None) -> tuple[bool, int]:
    return (False, 0) if standbys is None else (node in ring.nodes, standbys.count(node))
