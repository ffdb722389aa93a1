"""What slices may use of this node, as told by the service that keeps them. Pure.

A slice has rules here where something is reserved for it here. Its share of the time in which steps are computed is
that of the node's processors, or of its accelerators where the stages run on one; its share of memory is its part of
each stage's room for keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.executor.fairqueue import SLICES_MAX, Share
from services.executor.kvcache import CacheShare

URLLC = 2
"""The slice/service type (3GPP TS 23.501, 5.15.2.2) of slices that go first."""
OVER = 1e-3
"""By how much what is guaranteed may be more than all of it by rounding alone."""


@dataclass(frozen=True)
class SliceRules:
    """The rules of one node; without any, all is first come, first served."""

    steps: Mapping[str, Share] = field(default_factory=dict)
    """Shares of the time in which steps are computed, by slice."""
    caches: Mapping[str, CacheShare] = field(default_factory=dict)
    """Shares of each stage's room for keys and values, by slice."""
    overbooked: Mapping[str, float] = field(default_factory=dict)
    """By resource, how many times what there is was guaranteed, where that is more than once: a node that came back
    smaller than it was when it was promised. Each slice then has its part of what there is."""


def rules_for(node: str, told: slices_pb2.WatchSlicesResponse, *, accelerated: bool) -> SliceRules:
    """The rules for a node.

    Args:
        node: Its name.
        told: How the slices are.
        accelerated: Whether stages run on an accelerator.

    Raises:
        InvalidInputError: A share is no part of a whole, or shares contradict each other.
    """
    capacity = next((dict(each.capacity) for each in told.nodes if each.name == node), {})
    held = [each for each in told.slices if _holds(each, node)]
    if len(held) > SLICES_MAX:
        raise InvalidInputError(f"a node has rules for at most {SLICES_MAX} slices, not {len(held)}")
    processor = "GPU" if accelerated else "CPU"
    steps = {each.name: _parts(each, node, capacity, processor) for each in held}
    caches = {each.name: _parts(each, node, capacity, "MemoryGB") for each in held}
    totals = {name: sum(each.guaranteed for each in of.values()) for name, of in
              ((processor, steps), ("MemoryGB", caches))}  # fmt: skip
    by_time, by_memory = 1 / max(1.0, totals[processor]), 1 / max(1.0, totals["MemoryGB"])
    return SliceRules(
        {
            each.name: Share(
                guaranteed=steps[each.name].guaranteed * by_time,
                dedicated=steps[each.name].dedicated * by_time,
                ceiling=steps[each.name].ceiling,
                first=each.profile.snssai.sst == URLLC,
            )
            for each in held
        },
        {
            name: CacheShare(guaranteed=parts.guaranteed * by_memory, most=parts.ceiling)
            for name, parts in caches.items()
        },
        {name: total for name, total in totals.items() if total > 1 + OVER},
    )


def _holds(each: slices_pb2.Slice, node: str) -> bool:
    """Whether something is reserved for a slice on a node: also while it ends with what it has."""
    states = (slices_pb2.SLICE_STATE_ACTIVE, slices_pb2.SLICE_STATE_RELEASING)
    return bool(each.name) and each.state in states and any(_reserved(each, node))


def _reserved(each: slices_pb2.Slice, node: str) -> Iterator[slices_pb2.SliceAllocation]:
    return (allocation for allocation in each.allocations if allocation.node == node)


def _parts(each: slices_pb2.Slice, node: str, capacity: Mapping[str, float], resource: str) -> Share:
    """What a slice has of a resource: at least what its shares say, and what is reserved for its traffic."""
    share = each.profile.shares[resource] if resource in each.profile.shares else slices_pb2.SliceShare()
    most = share.max if share.HasField("max") else 1.0
    has = capacity.get(resource, 0.0)
    reserved = sum(allocation.resources.get(resource, 0.0) for allocation in _reserved(each, node))
    part = reserved / has if has > 0 else 0.0
    numbers = (share.dedicated, share.min, most, part)
    if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or most > 1:
        raise InvalidInputError(
            f"slice {each.name!r} on {node}: shares of {resource} lie between 0 and 1, found dedicated "
            f"{share.dedicated}, min {share.min}, max {most}, reserved {part}"
        )
    if max(share.dedicated, share.min) > most:
        raise InvalidInputError(f"slice {each.name!r} on {node}: more of {resource} is guaranteed than its max {most}")
    return Share(
        guaranteed=min(most, max(share.dedicated, share.min, part)), dedicated=share.dedicated, ceiling=most
    )

