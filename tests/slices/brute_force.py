"""The best allocation by trying every placement: from the words of `optimiser.problem`, not from its code.

For each placement (each slice on each set of at most `nodes_max` nodes) scipy's `linprog` finds the parts served.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import linprog

from services.slices.optimiser.problem import Demand, Goal, Problem
from services.slices.resources import NAMES

Placement = tuple[tuple[int, ...], ...]


def placements(problem: Problem) -> Iterator[Placement]:
    """Every choice of nodes for every slice."""
    choices = []
    for demand in problem.demands:
        usable = [
            index
            for index, node in enumerate(problem.nodes)
            if (not demand.nodes or node.node in demand.nodes) and demand.floor_ms(node.node) <= demand.latency_ms
        ]
        if not usable:
            return
        fewest = 1 if demand.least_served > 0 else 0
        choices.append(
            [some for size in range(fewest, demand.nodes_max + 1) for some in itertools.combinations(usable, size)]
        )
    yield from itertools.product(*choices)


class Fixed:
    """What can be served by one placement: columns are a part for each slice and node in it, then one amount reserved
    for each of them and each resource, then one level."""

    def __init__(self, problem: Problem, placement: Placement) -> None:
        self.problem = problem
        self.pairs = [(row, node) for row, nodes in enumerate(placement) for node in nodes]
        self.size = len(self.pairs) * 5 + 1
        rows: list[np.ndarray] = []
        limits: list[float] = []

        def add(entries: dict[int, float], limit: float) -> None:
            row = np.zeros(self.size)
            for column, value in entries.items():
                row[column] += value
            rows.append(row)
            limits.append(limit)

        for k, (row, n) in enumerate(self.pairs):
            demand, node = problem.demands[row], problem.nodes[n]
            for r, name in enumerate(NAMES):
                share = demand.share(name)
                add({k: demand.need[name], self._amount(k, r): -1.0}, 0.0)
                add({self._amount(k, r): -1.0}, -share.minimum * node.capacity[name])
                add({k: demand.need[name]}, share.maximum * node.capacity[name])
        for n, node in enumerate(problem.nodes):
            for r, name in enumerate(NAMES):
                here = {self._amount(k, r): 1.0 for k, (_, where) in enumerate(self.pairs) if where == n}
                add(here, node.capacity[name] - node.taken[name])
        for row, demand in enumerate(problem.demands):
            add(self.part_of(row, -1.0), -demand.least_served)
            add(self.part_of(row, 1.0), 1.0)
        self.rows, self.limits = rows, limits

    def _amount(self, pair: int, resource: int) -> int:
        return len(self.pairs) + pair * 4 + resource

    def part_of(self, row: int, factor: float) -> dict[int, float]:
        """The entries of what a slice is served."""
        return {k: factor for k, (whose, _) in enumerate(self.pairs) if whose == row}

    def best(self, gain: dict[int, float], least: dict[int, float] | None = None, level: tuple[int, ...] = ()) -> float:
        """The largest value, -inf where nothing fits.

        `least` are parts that slices have to be served beside what they must; `level` are slices that are served at
        least the last column.
        """
        rows, limits = list(self.rows), list(self.limits)
        for whose, part in (least or {}).items():
            row = np.zeros(self.size)
            for column in self.part_of(whose, 1.0):
                row[column] = -1.0
            rows.append(row)
            limits.append(-part)
        for whose in level:
            row = np.zeros(self.size)
            for column in self.part_of(whose, 1.0):
                row[column] = -1.0
            row[-1] = 1.0
            rows.append(row)
            limits.append(0.0)
        cost = np.zeros(self.size)
        for column, value in gain.items():
            cost[column] -= value
        found = linprog(cost, A_ub=np.array(rows), b_ub=np.array(limits), bounds=(0, None), method="highs")
        return -float(found.fun) if found.status == 0 else -np.inf


def gain_of(fixed: Fixed, weights: list[float]) -> dict[int, float]:
    """Entries for a weighted sum of what is served."""
    return {k: weights[row] for k, (row, _) in enumerate(fixed.pairs)}


def levels(fixed: Fixed) -> list[float]:
    """What each slice is served in max-min order, ascending, for one placement; empty where it does not fit."""
    rising, held = set(range(len(fixed.problem.demands))), dict[int, float]()
    while rising:
        order = tuple(sorted(rising))
        level = min(1.0, fixed.best({fixed.size - 1: 1.0}, held, order))
        if level == -np.inf:
            return []
        floor = {**held, **dict.fromkeys(order, level - 1e-9)}
        stuck = [
            row for row in order if fixed.best(fixed.part_of(row, 1.0), {**floor, row: 0.0}) <= level + 1e-6
        ]
        for row in stuck or order:
            held[row] = level - 1e-9
            rising.discard(row)
    return sorted(held.values())


def latency_of(demands: tuple[Demand, ...], problem: Problem, placement: Placement) -> float:
    """Weighted mean over the slices that have to be served, of the farthest node of each."""
    asked = [(demand, nodes) for demand, nodes in zip(demands, placement, strict=True) if demand.least_served > 0]
    total = sum(
        demand.weight * max(demand.floor_ms(problem.nodes[node].node) for node in nodes) for demand, nodes in asked
    )
    return total / sum(demand.weight for demand, _ in asked) if asked else 0.0


def best_of(problem: Problem) -> tuple[float, list[float]] | None:
    """The objective, and what decides among equals: all levels or the sum by urgency; None where nothing fits."""
    best: tuple[float, list[float]] | None = None
    urgency = [demand.weight / min(demand.latency_ms, 10_000.0) for demand in problem.demands]
    for placement in placements(problem):
        fixed = Fixed(problem, placement)
        if problem.goal is Goal.THROUGHPUT_MAX:
            value = fixed.best(gain_of(fixed, [demand.weight for demand in problem.demands]))
            found = (value, [value])
        elif problem.goal is Goal.BALANCED:
            level = fixed.best({fixed.size - 1: 1.0}, level=tuple(range(len(problem.demands))))
            if level == -np.inf or (best is not None and min(level, 1.0) < best[0] - 1e-7):
                continue
            found = (min(1.0, level), levels(fixed))
        else:
            latency = latency_of(problem.demands, problem, placement)
            if best is not None and latency > -best[0] + 1e-9:
                continue
            value = fixed.best(gain_of(fixed, urgency))
            if value == -np.inf:
                continue
            found = (-latency, [value])
        if found[0] == -np.inf:
            continue
        if best is None or found[0] > best[0] + 1e-6 or (found[0] > best[0] - 1e-6 and found[1] > best[1]):
            best = found
    return best
