"""Whether what slices are to have can be promised: shares, nodes, light, and what is admitted to them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from services.slices.amounts import (
    NOTHING,
    UNIT,
    Amounts,
    covers,
    exact,
    in_words,
    lacking,
    rounded_down,
    to_map,
    to_resources,
)
from services.slices.optimiser.problem import Demand
from services.slices.resources import NAMES, Resources
from services.slices.values import Floors, Node, Promise, Reserved

TRAFFIC_MAX = 1000.0
"""The most times of its profile's traffic that an allocation is computed for."""
SERVED_SLACK = 1e-6
"""Parts of traffic that are compared come from a solver that works in doubles."""
AMOUNT_SLACK = 4
"""Millionths by which a reservation may miss a share: the rounding of products of doubles, in one or two steps."""


def demand_of(promise: Promise, floors: Floors) -> Demand:
    """A slice as the optimiser sees it."""
    profile = promise.profile
    return Demand(
        slice=promise.name,
        need=profile.need,
        shares=profile.shares,
        least_served=profile.least_served,
        weight=profile.weight,
        latency_ms=profile.latency_ms or math.inf,
        floors_ms=floors.get(profile.place, {}) if profile.place else {},
        nodes=profile.nodes,
        nodes_max=profile.nodes_max,
    )


def reservations(
    promise: Promise, wanted: Mapping[str, Reserved], nodes: Mapping[str, Node], floors: Floors
) -> Mapping[str, Reserved]:
    """What a slice is to have, where its own terms allow it; rows of nothing are left out.

    Raises:
        InvalidInputError: A part served is none, or `NOT_FOUND`, there is no such node.
        InfeasiblePlanError: `SLICES_INFEASIBLE` or `LATENCY_BELOW_FLOOR`.
    """
    for node, part in wanted.items():
        if node not in nodes:
            raise InvalidInputError(
                f"there is no node {node[:63]!r}; there are: {', '.join(sorted(nodes)[:8]) or 'none'}",
                reason="NOT_FOUND",
                metadata={"node": node[:63]},
            )
        if not (0 <= part.served <= 1 and 0 < part.traffic <= TRAFFIC_MAX):
            raise InvalidInputError(
                f"slice {promise.name!r} is to have {part.served!r} of {part.traffic!r} times its traffic served on "
                f"{node}; expected 0 to 1 of more than 0 and at most {TRAFFIC_MAX:g}"
            )
    kept = {node: part for node, part in wanted.items() if part.amounts != NOTHING or part.served > 0}
    demand = demand_of(promise, floors)
    if not kept:
        raise InvalidInputError(f"slice {promise.name!r} is to have nothing anywhere; release it to free what it has")
    if len(kept) > demand.nodes_max:
        raise _infeasible(
            promise, f"is to be on {len(kept)} nodes, and its profile allows {demand.nodes_max} (nodes_max)"
        )
    served = math.fsum(part.served for part in kept.values())
    if not demand.least_served - SERVED_SLACK <= served <= 1 + SERVED_SLACK:
        raise _infeasible(
            promise,
            f"is to have {served:g} of its traffic served; expected {demand.least_served:g} (least_served) to 1",
        )
    for node, part in kept.items():
        check_terms(promise, demand, node, nodes[node], part)
    return kept


def resized(promise: Promise, nodes: Mapping[str, Node], floors: Floors) -> Mapping[str, Reserved]:
    """What a slice is to have where its profile was changed and it goes on serving the same parts on the same nodes.

    Raises:
        InfeasiblePlanError: `SLICES_INFEASIBLE` or `LATENCY_BELOW_FLOOR`.
    """
    demand, found = demand_of(promise, floors), {}
    for node, part in promise.reserved.items():
        amounts = rounded_down(demand.reserved(to_resources(nodes[node].capacity), part.load))
        found[node] = Reserved(part.served, amounts, part.traffic)
        check_terms(promise, demand, node, nodes[node], found[node])
    return found


def check_terms(promise: Promise, demand: Demand, node: str, there: Node, part: Reserved) -> None:
    """Lets a reservation pass that the slice's own terms allow on that node.

    Raises:
        InfeasiblePlanError: `SLICES_INFEASIBLE` or `LATENCY_BELOW_FLOOR`.
    """
    if demand.nodes and node not in demand.nodes:
        raise _infeasible(promise, f"may not be on {node}: its profile names {', '.join(demand.nodes[:8])}", node=node)
    before = promise.reserved.get(node)
    if there.absent and not (before is not None and covers(before.amounts, part.amounts)):
        raise _infeasible(promise, f"gets nothing new on {node}, which is out of reach or wants no new work", node=node)
    floor_ms = demand.floor_ms(node)
    if floor_ms > demand.latency_ms * (1 + 1e-9):
        raise below_floor(promise.name, promise.profile.place, node, demand.latency_ms, floor_ms)
    capacity = to_resources(there.capacity)
    most = Resources(*(demand.share(name).maximum * amount for name, amount in capacity.items()))
    _compare(promise, node, part.amounts, exact(most), "its shares allow at most (max)", at_most=True)
    least = exact(demand.reserved(capacity, part.load))
    _compare(promise, node, part.amounts, least, "its traffic and its shares (min) need", at_most=False)


def _compare(promise: Promise, node: str, amounts: Amounts, bound: Amounts, why: str, *, at_most: bool) -> None:
    for name, amount, limit in zip(NAMES, amounts, bound, strict=True):
        slack = AMOUNT_SLACK + limit // UNIT
        if (amount > limit + slack) if at_most else (amount < limit - slack):
            raise _infeasible(
                promise,
                f"is to have {name} {amount / UNIT:g} on {node}, and {why} {limit / UNIT:g}",
                node=node,
                resource=name,
                limit=limit / UNIT,
            )


def check_node(node: str, capacity: Amounts, before: Amounts, after: Amounts) -> None:
    """Lets a change pass after which a node has all that is reserved on it; or, where it had become too small before,
    one that takes nothing more.

    Raises:
        InfeasiblePlanError: `SLICES_INFEASIBLE`, with the resource and by how much.
    """
    if covers(capacity, after) or covers(before, after):
        return
    short = lacking(capacity, after)
    name = max(short, key=lambda each: short[each])
    raise InfeasiblePlanError(
        f"node {node} has {in_words(capacity)}, and with this change {in_words(after)} would be reserved: "
        f"{', '.join(f'{each} {amount:g}' for each, amount in short.items())} too much; give slices less there, or put "
        "one of them on another node",
        reason="SLICES_INFEASIBLE",
        metadata={"node": node, "resource": name, "lacking": f"{short[name]:g}"},
    )


def check_kept(name: str, used: Mapping[str, Amounts], kept: Mapping[str, Reserved]) -> None:
    """Lets a change pass that leaves a slice what is admitted to it.

    Raises:
        InvalidInputError: `SLICE_IN_USE`.
    """
    for node, amounts in used.items():
        left = kept[node].amounts if node in kept else NOTHING
        if node not in kept or not covers(left, amounts):
            raise InvalidInputError(
                f"the work that slice {name!r} has on {node} holds {in_words(amounts)}, and {in_words(left)} would be "
                "left to it: wait for some of it to end, or leave more",
                reason="SLICE_IN_USE",
                metadata={"slice": name, "node": node}
                | {f"used_{each}": f"{amount:g}" for each, amount in to_map(amounts).items()},
            )


def below_floor(name: str, place: str, node: str, latency_ms: float, floor_ms: float) -> InfeasiblePlanError:
    """The error for a latency that light itself does not keep."""
    away = "is never reached" if math.isinf(floor_ms) else f"takes light {floor_ms:.3f} ms there and back"
    return InfeasiblePlanError(
        f"slice {name!r} is to have a latency of {latency_ms:g} ms, and {node} {away} from {place!r}: allow more, or "
        "take a nearer node",
        reason="LATENCY_BELOW_FLOOR",
        metadata={"slice": name, "node": node, "floor_ms": f"{floor_ms:.6f}", "latency_ms": f"{latency_ms:g}"},
    )


def _infeasible(promise: Promise, why: str, **metadata: object) -> InfeasiblePlanError:
    return InfeasiblePlanError(
        f"slice {promise.name!r} {why}", reason="SLICES_INFEASIBLE", metadata={"slice": promise.name, **metadata}
    )
