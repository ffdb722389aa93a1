"""The best allocation of slices to nodes that can be found in time, and a bound that none is better than.

By goal: `throughput_max` is a search (`search`); `balanced` one for the least part that all can have; for
`latency_sensitive` the nearest nodes (`nearest`) come first, then a search for as much as possible there.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np

from orbitmesh.errors import InvalidInputError
from services.slices.optimiser.branching import Latency
from services.slices.optimiser.infeasible import explain, refuse_impossible
from services.slices.optimiser.levels import level
from services.slices.optimiser.model import Model, model_of, pairs_in
from services.slices.optimiser.nearest import place_near
from services.slices.optimiser.problem import Goal, Outcome, Problem
from services.slices.optimiser.raising import raise_level
from services.slices.optimiser.relaxation import Wanted, relax
from services.slices.optimiser.search import AFTER_S, Found, Task, filled, search, settled_at
from services.slices.optimiser.settled import allocations_of, value_of
from services.slices.optimiser.solver import INF, Floats
from services.slices.resources import SLACK

__all__ = ["optimise"]

TIME_LIMIT_S = 1.0
TIME_LIMIT_MOST_S = 60.0
PART = 0.6
"""So much of the time is for what comes first."""
LEVELLING = 0.05
"""So much of the time is left for raising those above the least, for the placement that was found."""
UNBOUNDED_MS = 10_000.0
"""A slice without a latency counts as one with this where urgency is weighed."""


def optimise(problem: Problem, *, time_limit_s: float = TIME_LIMIT_S) -> Outcome:
    """The best allocation that was found, with a bound.

    Args:
        problem: Slices, nodes and goal.
        time_limit_s: The most that the search may take, above 0 and at most 60. The same problem gets the same answer,
            unless the time ended the search: `Outcome.complete` is False then.

    Raises:
        InvalidInputError: a time limit out of range.
        InfeasiblePlanError: SLICES_INFEASIBLE: not all can have what has to be served; the message names the resource
            that binds and the smallest relaxation that fits. LATENCY_BELOW_FLOOR: no node that a slice may use is near
            enough.
        DeadlineError: the time ended before any allocation was found, and none was proven impossible.
    """
    if not 0 < time_limit_s <= TIME_LIMIT_MOST_S:
        raise InvalidInputError(f"time limit is {time_limit_s!r} s; expected above 0, at most {TIME_LIMIT_MOST_S:g}")
    began = perf_counter()
    until = began + time_limit_s
    refuse_impossible(problem)
    model = model_of(problem)
    ways = {Goal.BALANCED: _balanced, Goal.LATENCY_SENSITIVE: _nearest, Goal.THROUGHPUT_MAX: _most}
    found = ways[problem.goal](model, until)
    allocations = allocations_of(model, found.present, found.served)
    objective = value_of(problem, allocations)
    bound = (min if problem.goal is Goal.LATENCY_SENSITIVE else max)(found.bound, objective)
    gap = abs(objective - bound) / bound if bound else float(objective != bound)
    took_s = perf_counter() - began
    return Outcome(problem.goal, allocations, objective, bound, gap if gap > SLACK else 0.0, took_s, found.complete)


def _most(model: Model, until: float) -> Found:
    return search(Task(model, _gain(model, model.weight), np.ones(model.pairs, dtype=bool)), until)


def _balanced(model: Model, until: float) -> Found:
    fair = Wanted(np.zeros(len(model.ratio)), fair=True)
    task = Task(model, fair, np.ones(model.pairs, dtype=bool))
    found = search(task, until) if task.small else _raised(task, until - LEVELLING * (until - perf_counter()))
    present, served, complete = level(
        model, found.present, found.served, until, until + AFTER_S, exact=task.small and found.complete
    )
    return Found(present, served, found.bound, found.complete and complete)


def _raised(task: Task, until: float) -> Found:
    """The best level that was found for many pairs."""
    relaxed = relax(task.model, task.wanted, task.usable, until)
    if relaxed is None:
        return search(task, until)
    if relaxed.short:
        raise explain(task.model.problem, AFTER_S)
    first = filled(task, until)
    now = perf_counter()
    raised = raise_level(
        task.model, task.value(first) if first else 0.0, relaxed.bound, until if first else now + (until - now) * PART
    )
    best = first if raised.present is None else settled_at(task, raised.present, until + AFTER_S) or first
    if best is None:
        found = search(task, until)
        return replace(found, bound=min(found.bound, raised.bound))
    return Found(best.present, best.served, raised.bound, complete=perf_counter() < until)


def _nearest(model: Model, until: float) -> Found:
    """Least latency with what has to be served alone: more would only need more room. Then as much as possible."""
    demands = model.problem.demands
    urgency = np.array([each.weight / min(each.latency_ms, UNBOUNDED_MS) for each in demands])
    task = Task(model, _gain(model, urgency), np.ones(model.pairs, dtype=bool))
    asked = np.flatnonzero(model.least > 0)
    if not len(asked):
        return replace(search(task, until), bound=0.0)
    low = model_of(replace(model.problem, demands=tuple(demands[each] for each in asked)), only_least=True)
    share = low.weight / low.weight.sum()
    near = place_near(low, share, until)
    weight = np.zeros(model.slices)
    weight[asked] = share
    start = pairs_in(model, low, near.present, asked)
    if task.small:
        most = Latency(weight).sum_of(model, start)
        much = search(replace(task, latency=Latency(weight, most), start=start), until)
    else:
        # Every slice keeps to nodes that are no farther than the farthest that serves it now.
        far = np.full(model.slices, INF)
        far[asked] = 0.0
        np.maximum.at(far, model.slice_of[start], model.floor_ms[start])
        much = search(replace(task, usable=model.floor_ms <= far[model.slice_of] * (1 + SLACK), start=start), until)
    return Found(much.present, much.served, max(0.0, near.bound), near.proven and much.complete)


def _gain(model: Model, weight: Floats) -> Wanted:
    return Wanted(weight[model.slice_of[model.pair_of]] * model.ratio)
