"""A problem as arrays: the pairs of slice and node that are possible, and the columns of its linear programs.

Where a slice is present (z = 1) and a part x of it is served, `max(need x, guaranteed)` is reserved. That is convex and
piecewise linear with bends where the traffic of one resource outgrows its guarantee. Hence every (x, z) is a sum of
columns, each the point x = ratio, z = 1 of one bend, and the linear relaxation over these columns is the tightest that
looks at one pair at a time: at most six columns for a pair, and no row beside capacities and slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from services.slices.optimiser.problem import Problem
from services.slices.optimiser.solver import Bools, Floats, Ints
from services.slices.resources import NAMES, SLACK

SAME = 1e-9
"""Ratios closer than this are one."""


@dataclass(frozen=True)
class Model:
    """Slices S, nodes N, resources 4, pairs P and columns C of a problem."""

    problem: Problem
    """What it was made from."""
    capacity: Floats
    """[N, 4]."""
    free: Floats
    """[N, 4]: capacity without what others have."""
    need: Floats
    """[S, 4]: of full traffic."""
    least: Floats
    """[S]: the part that has to be served."""
    upmost: Floats
    """[S]: the part that may be served."""
    weight: Floats
    """[S]."""
    spread: Ints
    """[S]: on how many nodes at most."""
    slice_of: Ints
    """[P]."""
    node_of: Ints
    """[P]."""
    most: Floats
    """[P]: the part that the node can serve of it, maxima and what is free considered."""
    guaranteed: Floats
    """[P, 4]: reserved for it there in any case."""
    floor_ms: Floats
    """[P]."""
    pair_of: Ints
    """[C]: whose column, in ascending order."""
    ratio: Floats
    """[C]: the part served, at the bend."""
    used: Floats
    """[C, 4]: what is reserved at the bend, as parts of `unit`."""
    unit: Floats
    """[N, 4]: what is free of each resource, 1 where nothing is: the unit of the rows, for the solver's sake."""

    @property
    def slices(self) -> int:
        """S."""
        return len(self.least)

    @property
    def pairs(self) -> int:
        """P."""
        return len(self.slice_of)

    @property
    def limits(self) -> Floats:
        """[N, 4]: what is free in units: 1, or 0 where nothing is."""
        return np.asarray(self.free / self.unit, dtype=np.float64)

    def columns_of(self, pairs: Bools) -> Ints:
        """The columns of the pairs that are marked, [P]."""
        return np.flatnonzero(pairs[self.pair_of])

    def reserved(self, pair: int, served: float) -> Floats:
        """[4]: what is reserved for a pair that is present."""
        return np.asarray(np.maximum(self.need[self.slice_of[pair]] * served, self.guaranteed[pair]))


def model_of(problem: Problem, *, only_least: bool = False) -> Model:
    """The arrays of a problem.

    Args:
        problem: The problem.
        only_least: Serve what has to be served and nothing above it.
    """
    capacity = np.array([node.capacity.values() for node in problem.nodes])
    free = np.array([node.free.values() for node in problem.nodes])
    demands = problem.demands
    need = np.array([demand.need.values() for demand in demands])
    least = np.array([demand.least_served for demand in demands])
    upmost = least if only_least else np.ones(len(demands))
    spread = np.array([demand.nodes_max for demand in demands])
    minimum = np.array([[demand.share(name).minimum for name in NAMES] for demand in demands])
    maximum = np.array([[demand.share(name).maximum for name in NAMES] for demand in demands])
    guaranteed = minimum[:, None, :] * capacity
    room = np.minimum(maximum[:, None, :] * capacity, free)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(need[:, None, :] > 0, room / need[:, None, :], np.inf).min(axis=2)
    floors = floors_of(problem)
    # What is off by a rounding counts as enough: 0.1 + 0.2 of a node and 0.3 of it are the same promise.
    parts = np.where(parts >= upmost[:, None] * (1 - SLACK), upmost[:, None], parts)
    parts = np.where((parts < least[:, None]) & (parts >= least[:, None] * (1 - SLACK)), least[:, None], parts)
    possible = near_enough(problem, floors) & (parts > SAME)
    possible &= (guaranteed <= free * (1 + SLACK)).all(axis=2)
    possible &= (spread > 1)[:, None] | (parts >= least[:, None])
    slice_of, node_of = np.nonzero(possible)
    most = parts[possible]
    least_here = np.where(spread[slice_of] == 1, least[slice_of], 0.0)
    pair_of, ratio = _bends(need[slice_of], guaranteed[possible], least_here, most)
    unit = np.where(free > 0, free, 1.0)
    reserved = np.maximum(need[slice_of[pair_of]] * ratio[:, None], guaranteed[possible][pair_of])
    return Model(
        problem, capacity, free, need, least, upmost,
        np.array([demand.weight for demand in demands]), spread, slice_of, node_of, most, guaranteed[possible],
        floors[possible], pair_of, ratio, np.minimum(reserved / unit[node_of[pair_of]], 1.0), unit,
    )  # fmt: skip


def at_level(model: Model, level: float) -> tuple[Model, Bools]:
    """Each slice is served this part of its traffic, or what it has to be where that is more, and nothing above it.

    Args:
        model: The problem; its slices may be served in full.
        level: 0 to 1.

    Returns:
        The problem at that level; and which of the model's pairs are its pairs, [P].
    """
    least = np.maximum(model.least, level)
    kept = (model.spread[model.slice_of] > 1) | (model.most >= least[model.slice_of] * (1 - SLACK))
    slice_of, node_of = model.slice_of[kept], model.node_of[kept]
    most = np.minimum(model.most[kept], least[slice_of])
    most = np.where(most >= least[slice_of] * (1 - SLACK), least[slice_of], most)
    guaranteed = model.guaranteed[kept]
    least_here = np.where(model.spread[slice_of] == 1, least[slice_of], 0.0)
    pair_of, ratio = _bends(model.need[slice_of], guaranteed, least_here, most)
    reserved = np.maximum(model.need[slice_of[pair_of]] * ratio[:, None], guaranteed[pair_of])
    there = replace(
        model, least=least, upmost=least, slice_of=slice_of, node_of=node_of, most=most, guaranteed=guaranteed,
        floor_ms=model.floor_ms[kept], pair_of=pair_of, ratio=ratio,
        used=np.minimum(reserved / model.unit[node_of[pair_of]], 1.0),
    )  # fmt: skip
    return there, kept


def pairs_in(model: Model, other: Model, marked: Bools, slices: Ints | None = None) -> Bools:
    """[P]: the pairs of a model that are marked in another one, which has the same nodes.

    Args:
        model: The model.
        other: The other one; each of its pairs that is marked is a pair of the model too.
        marked: [P of the other]: those that are meant.
        slices: [S of the other]: which slices of the model its slices are; the same ones where it is None.
    """
    place = np.full((model.slices, len(model.free)), -1)
    place[model.slice_of, model.node_of] = np.arange(model.pairs)
    which = np.flatnonzero(marked)
    of = other.slice_of[which]
    found = np.zeros(model.pairs, dtype=bool)
    found[place[of if slices is None else slices[of], other.node_of[which]]] = True
    return found


def floors_of(problem: Problem) -> Floats:
    """[S, N]: there and back by light, ms."""
    names = [node.node for node in problem.nodes]
    return np.array([[demand.floor_ms(name) for name in names] for demand in problem.demands])


def near_enough(problem: Problem, floors: Floats) -> Bools:
    """[S, N]: whether the node is allowed and its floor within the slice's latency."""
    names = [node.node for node in problem.nodes]
    allowed = np.ones(floors.shape, dtype=bool)
    for row, demand in enumerate(problem.demands):
        if demand.nodes:
            wanted = frozenset(demand.nodes)
            allowed[row] = [name in wanted for name in names]
    latency = np.array([demand.latency_ms for demand in problem.demands])
    return np.asarray(allowed & np.isfinite(floors) & (floors <= latency[:, None] * (1 + SLACK)))


def _bends(need: Floats, guaranteed: Floats, least: Floats, most: Floats) -> tuple[Ints, Floats]:
    """Pair and ratio of each column: the bends between what has to be and what can be served, ascending."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bends = np.where(need > 0, guaranteed / need, np.inf)
    bends = np.clip(bends, least[:, None], most[:, None])
    # The least one too: on several nodes together a slice may be served less than their first bends sum to.
    bends = np.sort(np.concatenate([least[:, None], bends, most[:, None]], axis=1), axis=1)
    kept = np.ones(bends.shape, dtype=bool)
    kept[:, :-1] = np.diff(bends, axis=1) > SAME
    pair_of, place = np.nonzero(kept)
    return pair_of, bends[pair_of, place]
