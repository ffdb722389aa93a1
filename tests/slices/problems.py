"""Problems for the tests of the optimiser."""

from __future__ import annotations

import random
from dataclasses import replace

from services.slices.optimiser.problem import Allocation, Demand, Goal, NodeCapacity, Outcome, Problem
from services.slices.resources import NAMES, Resources, Share
from services.slices.templates import TEMPLATES

NODE_42 = NodeCapacity("node-42", Resources(16, 2, 64, 40))


def demand_of(template: str, **changes: object) -> Demand:
    """What a template asks for."""
    profile = TEMPLATES[template].profile
    made = Demand(
        template, profile.need, profile.shares, profile.least_served, profile.weight, profile.latency_ms,
        nodes_max=profile.nodes_max,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def node_42(goal: Goal, **least: float) -> Problem:
    """The three templates on node-42."""
    demands = [demand_of(name) for name in TEMPLATES]
    changed = [replace(each, least_served=least.get(each.slice, each.least_served)) for each in demands]
    return Problem(tuple(changed), (NODE_42,), goal)


def random_problem(rng: random.Random, slices: int, nodes: int, goal: Goal, spread: int = 2) -> Problem:
    """Small whole numbers and few of them, so that ties and exact fits are frequent."""
    capacities = []
    for index in range(nodes):
        capacity = Resources(*(rng.choice((2, 4, 8)) * max(1, slices // 2) for _ in NAMES))
        capacities.append(NodeCapacity(f"n{index}", capacity, capacity.times(rng.choice((0, 0, 0.25)))))
    demands = []
    for index in range(slices):
        shares = {}
        for name in rng.sample(NAMES, 2):
            minimum = rng.choice((0, 0.125, 0.25)) / max(1, slices // 2)
            shares[name] = Share(rng.choice((0, minimum)), minimum, rng.choice((0.5, 1.0)))
        demands.append(
            Demand(
                f"s{index}",
                Resources(*(rng.choice((0, 1, 2, 3)) for _ in NAMES)),
                shares,
                rng.choice((0, 0.25, 0.5, 1)),
                rng.choice((1, 2, 5)),
                rng.choice((10, 20, 100)),
                {node.node: rng.choice((0, 4, 8, 15)) for node in capacities},
                nodes_max=rng.randint(1, spread),
            )
        )
    return Problem(tuple(demands), tuple(capacities), goal)


def filled_up(problem: Problem) -> tuple[Allocation, ...]:
    """What a greedy serves: each slice on the first node with room for what has to be served, then as much as fits."""
    left = {node.node: node.free for node in problem.nodes}
    nodes = {node.node: node for node in problem.nodes}
    at: dict[str, tuple[str, float]] = {}
    for fill in (False, True):
        for demand in sorted(problem.demands, key=lambda each: -each.weight):
            if demand.slice in at:
                name, part = at[demand.slice]
                room = left[name] + demand.reserved(nodes[name].capacity, part)
                most = min(room[each] / need for each, need in demand.need.items() if need)
                at[demand.slice] = (name, max(part, min(most, demand.most_served(nodes[name].capacity))))
                left[name] = room - demand.reserved(nodes[name].capacity, at[demand.slice][1])
            elif not fill:
                fitting = [
                    node.node
                    for node in problem.nodes
                    if demand.floor_ms(node.node) <= demand.latency_ms
                    and demand.reserved(node.capacity, demand.least_served).fits(left[node.node])
                    and demand.most_served(node.capacity) >= demand.least_served
                ]
                at[demand.slice] = (fitting[0], demand.least_served)
                left[fitting[0]] -= demand.reserved(nodes[fitting[0]].capacity, demand.least_served)
    return tuple(Allocation(name, node, part, Resources()) for name, (node, part) in at.items())


def check(problem: Problem, outcome: Outcome) -> None:
    """Every promise, from the words of the problem."""
    demands = {demand.slice: demand for demand in problem.demands}
    served = dict.fromkeys(demands, 0.0)
    count = dict.fromkeys(demands, 0)
    for node in problem.nodes:
        here = [each for each in outcome.allocations if each.node == node.node]
        for name in NAMES:
            used = sum(each.resources[name] for each in here) + node.taken[name]
            assert used <= node.capacity[name] * (1 + 1e-9) + 1e-12, (node.node, name, used)
        for each in here:
            demand = demands[each.slice]
            served[each.slice] += each.served
            count[each.slice] += 1
            assert 0 < each.served <= 1
            assert not demand.nodes or node.node in demand.nodes
            assert demand.floor_ms(node.node) <= demand.latency_ms
            for name in NAMES:
                share = demand.share(name)
                assert each.resources[name] >= share.minimum * node.capacity[name] * (1 - 1e-12)
                assert each.resources[name] >= demand.need[name] * each.served * (1 - 1e-12)
                assert demand.need[name] * each.served <= share.maximum * node.capacity[name] * (1 + 1e-9)
    for name, demand in demands.items():
        assert demand.least_served - 1e-9 <= served[name] <= 1 + 1e-9, (name, served[name])
        assert count[name] <= demand.nodes_max
    if problem.goal is Goal.LATENCY_SENSITIVE:
        assert outcome.bound <= outcome.objective + 1e-9
    else:
        assert outcome.bound >= outcome.objective - 1e-9
