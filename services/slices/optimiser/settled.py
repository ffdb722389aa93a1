"""From a placement and the parts served to allocations that keep every promise to the last bit, and their value."""

from __future__ import annotations

import numpy as np

from services.slices.optimiser.model import Model
from services.slices.optimiser.problem import Allocation, Goal, Problem
from services.slices.optimiser.solver import Bools, Floats
from services.slices.resources import SLACK

TINY = 1e-7
"""Serving less than this part of a slice's traffic on a node is not serving it there."""
NEAR = 1e-6
"""A part served this close to what has to be, or to all, is that."""


def allocations_of(model: Model, present: Bools, served: Floats) -> tuple[Allocation, ...]:
    """The allocations, with the rounding of the solver taken out.

    Parts that are all but nothing are dropped, sums that are all but what has to be served are exactly that, and where
    a sum on a node is too large by a rounding, those who have more than they must give that much back.
    """
    parts = np.where(present & (served > TINY), served, 0.0)
    totals = np.bincount(model.slice_of, parts, model.slices)
    aim = np.where(np.abs(totals - model.least) < NEAR, model.least, np.minimum(totals, model.upmost))
    aim = np.where(aim > model.upmost - NEAR, model.upmost, aim)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts *= np.where(totals > 0, aim / totals, 0.0)[model.slice_of]
    here = parts > 0
    for node in range(len(model.free)):
        pairs = np.flatnonzero(here & (model.node_of == node))
        for _ in range(4):
            reserved = np.array([model.reserved(int(pair), float(parts[pair])) for pair in pairs]).reshape(-1, 4)
            over = reserved.sum(axis=0) - model.free[node]
            if (over <= 0).all():
                break
            resource = int(np.argmax(over / model.unit[node]))
            _give_back(model, parts, pairs[reserved[:, resource] > model.guaranteed[pairs, resource]], resource, over)
    demands, nodes = model.problem.demands, model.problem.nodes
    found = []
    for pair in np.flatnonzero(here):
        demand, node, part = demands[model.slice_of[pair]], nodes[model.node_of[pair]], float(parts[pair])
        found.append(Allocation(demand.slice, node.node, part, demand.reserved(node.capacity, part)))
    return tuple(found)


def _give_back(model: Model, parts: Floats, pairs: Floats, resource: int, over: Floats) -> None:
    totals = np.bincount(model.slice_of, parts, model.slices)
    for pair in pairs:
        which = model.slice_of[pair]
        need = model.need[which, resource]
        spare = min(totals[which] - model.least[which], parts[pair])
        back = min(spare, over[resource] / need * (1 + SLACK) + 1e-15)
        if back > 0:
            parts[pair] -= back
            return


def value_of(problem: Problem, allocations: tuple[Allocation, ...]) -> float:
    """The objective of allocations, by the goal of the problem: see `Outcome.objective`."""
    demands = {demand.slice: demand for demand in problem.demands}
    served = dict.fromkeys(demands, 0.0)
    farthest = dict.fromkeys(demands, 0.0)
    for each in allocations:
        served[each.slice] += each.served
        farthest[each.slice] = max(farthest[each.slice], demands[each.slice].floor_ms(each.node))
    if problem.goal is Goal.BALANCED:
        return min(served.values())
    if problem.goal is Goal.THROUGHPUT_MAX:
        return sum(demands[name].weight * part for name, part in served.items())
    asked = [demand for demand in problem.demands if demand.least_served > 0]
    weight = sum(demand.weight for demand in asked)
    return sum(demand.weight * farthest[demand.slice] for demand in asked) / weight if asked else 0.0
