"""The least weighted latency: nodes have bounds only where too many slices want them.

Most nodes have room for all that would be near them. Without the bounds of those, a slice that may be on such a node in
full is on no farther one and not spread over others with it: what is left to decide is who is on the few contested
nodes, which HiGHS decides and proves in a moment. A node that is then promised too much is contested too, and all is
decided again. As every answer is the best under some of the bounds, no allocation is better; one that keeps all of them
is the best. (Which rows of a program matter is found in this way since Dantzig, Fulkerson and Johnson, 1954.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from services.slices.optimiser.branching import Latency, branch
from services.slices.optimiser.infeasible import explain
from services.slices.optimiser.model import Model, model_of, pairs_in
from services.slices.optimiser.placing import Placing
from services.slices.optimiser.relaxation import Relaxed, Wanted, relax
from services.slices.optimiser.search import AFTER_S, TRIES, Task, dived, search
from services.slices.optimiser.solver import INF, Bools, End, Floats, Ints
from services.slices.resources import SLACK

SINGLE, MOVED, BOUNDED = 0.5, 0.6, 0.75
"""Up to these parts of the time every slice is placed on one node each, that is improved, and the bound is raised."""


@dataclass(frozen=True)
class Near:
    """A placement for the latency."""

    present: Bools
    """[P]."""
    bound: float
    """No allocation has a smaller weighted sum of latencies, ms."""
    proven: bool
    """Whether the placement is proven to be the best."""


@dataclass(frozen=True)
class Nearest:
    """Where slices are best for the latency, as far as that is known."""

    bound: float
    """No allocation has a smaller weighted sum of latencies, ms."""
    present: Bools | None
    """[P]: the best placement; None where the time ended the search."""
    fits: bool
    """False where it is proven that there is no allocation at all."""


def place_near(model: Model, share: Floats, until: float) -> Near:
    """A placement with a small weighted latency.

    Args:
        model: Slices that are served what they have to be and nothing above it.
        share: [S]: what a ms of each slice counts.
        until: When to end, `perf_counter`.

    Raises:
        InfeasiblePlanError: there is none.
        DeadlineError: none was found in time.
    """
    now = perf_counter()
    part = until - now
    task = _task(model, share)
    relaxed = relax(model, task.wanted, task.usable, until)
    if relaxed is None:
        return Near(search(task, until).present, 0.0, proven=False)
    if relaxed.short:
        raise explain(model.problem, AFTER_S)
    bound, best, hard = -relaxed.bound, None, False
    if (model.spread > 1).any():
        # One node each is decided much faster, and more are hardly ever nearer.
        demands = tuple(replace(each, nodes_max=1) for each in model.problem.demands)
        one = _task(model_of(replace(model.problem, demands=demands), only_least=True), share)
        narrowed = relax(one.model, one.wanted, one.usable, until)
        if narrowed is not None and not narrowed.short:
            single = nearest(one.model, share, narrowed.scarce, now + SINGLE * part)
            best = single.present
            if best is None and single.fits:
                best = _moved(one, narrowed, now + MOVED * part)
                hard = best is None
            best = None if best is None else pairs_in(model, one.model, best)
    found = nearest(model, share, relaxed.scarce, now + (MOVED if hard else BOUNDED) * part)
    if not found.fits:
        raise explain(model.problem, AFTER_S)
    bound = max(bound, found.bound)
    counted = Latency(share)
    value = INF if best is None else counted.sum_of(model, best)
    if found.present is not None and counted.sum_of(model, found.present) < value:
        return Near(found.present, bound, proven=True)
    if best is None:
        best = search(task, until).present
    return Near(best, bound, proven=counted.sum_of(model, best) <= bound * (1 + SLACK))


def _task(model: Model, share: Floats) -> Task:
    cost = share[model.slice_of] * model.floor_ms
    mean = Wanted(-(cost / model.least[model.slice_of])[model.pair_of] * model.ratio)
    return Task(model, mean, np.ones(model.pairs, dtype=bool), presence=-cost, latency=Latency(share))


def _moved(task: Task, relaxed: Relaxed, until: float) -> Bools | None:
    """[P]: what a dive finds, and small changes after it."""
    placed = dived(task, relaxed, until)
    if placed is None:
        return None
    placing = Placing(task.model, task.valued, placed.present, task.presence)
    moved = placing.improve(placed, task.usable, lambda _: False, TRIES, until)
    return None if moved.lacking.any() else moved.present


def nearest(model: Model, share: Floats, contested: Bools, until: float) -> Nearest:
    """The best placement for the latency, with its proof.

    Args:
        model: Slices that are served what they have to be and nothing above it.
        share: [S]: what a ms of each slice counts.
        contested: [N]: the nodes that have bounds from the beginning.
        until: When to end, `perf_counter`.
    """
    bound = 0.0
    while True:
        open_, spread = _worth(model, contested)
        freed = replace(model, free=np.where(contested[:, None], model.free, INF), spread=spread)
        found = branch(
            freed, Wanted(np.zeros(len(model.ratio))), open_, latency=Latency(share), start=None,
            seconds=until - perf_counter(), nodes=None,
        )  # fmt: skip
        if found.end is End.INFEASIBLE:
            return Nearest(bound, None, fits=False)
        if np.isfinite(found.bound):
            bound = max(bound, -found.bound)
        if found.end is not End.BEST or found.present is None:
            return Nearest(bound, None, fits=True)
        over = _over(model, found.present, found.served) & ~contested
        if not over.any():
            return Nearest(bound, found.present, fits=True)
        contested = contested | over


def _worth(model: Model, contested: Bools) -> tuple[Bools, Ints]:
    """[P]: the pairs that some best placement is made of; [S]: on how many of them a slice may be."""
    whole = (model.most >= model.least[model.slice_of] * (1 - SLACK)) & ~contested[model.node_of]
    first = np.full(model.slices, -1)
    order = np.lexsort((np.arange(model.pairs), model.floor_ms))
    for pair in order[::-1]:
        if whole[pair]:
            first[model.slice_of[pair]] = pair
    limit = np.where(first >= 0, model.floor_ms[first], INF)
    nearer = model.floor_ms < limit[model.slice_of]
    open_ = nearer.copy()
    open_[first[first >= 0]] = True
    alone = (first >= 0) & (np.bincount(model.slice_of[nearer], minlength=model.slices) < 2)
    return open_, np.where(alone, 1, model.spread)


def _over(model: Model, present: Bools, served: Floats) -> Bools:
    """[N]: where more is reserved than there is."""
    here = np.flatnonzero(present)
    reserved = np.maximum(model.need[model.slice_of[here]] * served[here][:, None], model.guaranteed[here])
    total = np.zeros(model.free.shape)
    np.add.at(total, model.node_of[here], reserved)
    return np.asarray((total > model.free * (1 + SLACK)).any(axis=1))
