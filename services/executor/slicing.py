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
"""By how much what is guaranteed may be more than all of it: reservations are rounded. It is scaled down then."""


@dataclass(frozen=True)
class SliceRules:
    """The rules of one node; without any, all is first come, first served."""

    steps: Mapping[str, Share] = field(default_factory=dict)
    """Shares of the time in which steps are computed, by slice."""
    caches: Mapping[str, CacheShare] = field(default_factory=dict)
    """Shares of each stage's room for keys and values, by slice."""


def rules_for(node: str, told: slices_pb2.WatchSlicesResponse, *, accelerated: bool) -> SliceRules:
    """The rules for a node.

    Args:
        node: Its name.
        told: How the slices are.
        accelerated: Whether stages run on an accelerator.

    Raises:
        InvalidInputError: A share is no part of a whole, shares contradict each other, or they are more than there is.
    """
    capacity = next((dict(each.capacity) for each in told.nodes if each.name == node), {})
    held = [each for each in told.slices if _holds(each, node)]
    if len(held) > SLICES_MAX:
        raise InvalidInputError(f"a node has rules for at most {SLICES_MAX} slices, not {len(held)}")
    processor = "GPU" if accelerated else "CPU"
    steps = {each.name: _parts(each, node, capacity, processor) for each in held}
    caches = {each.name: _parts(each, node, capacity, "MemoryGB") for each in held}
    by_time, by_memory = _scale(steps, processor), _scale(caches, "MemoryGB")
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
    if not all(map(math.isfinite, numbers)) or min(numbers) < 0 or most > 1 or part > 1 + OVER:
        raise InvalidInputError(
            f"slice {each.name!r} on {node}: parts of {resource} lie between 0 and 1, found dedicated "
            f"{share.dedicated}, min {share.min}, max {most}, reserved {part}"
        )
    if max(share.dedicated, share.min) > most:
        raise InvalidInputError(f"slice {each.name!r} on {node}: more of {resource} is guaranteed than its max {most}")
    return Share(
        guaranteed=min(most, max(share.dedicated, share.min, part)), dedicated=share.dedicated, ceiling=most
    )


def _scale(parts: Mapping[str, Share], resource: str) -> float:
    """What guarantees are multiplied by, so that they are no more than there is."""
    total = sum(each.guaranteed for each in parts.values())
    if total > 1 + OVER:
        raise InvalidInputError(f"{total:.4f} of this node's {resource} is guaranteed to slices, more than all of it")
    return 1.0 if total <= 1 else 1.0 / total
