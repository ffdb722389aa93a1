"""A search for the placement that makes something large: relaxation, dives and small changes, branch and bound.

The linear relaxation (`relaxation`) gives the bound; dives through it and small changes (`placing`) give a placement;
HiGHS' branch and bound starts from that, over the pairs of slice and node that the relaxation's prices do not rule out,
and improves it or proves it the best. Problems of up to `SMALL_PAIRS` pairs are left to HiGHS until it has the proof or
the time is over; larger ones only where the placement is not yet within `GOOD` of the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from orbitmesh.errors import DeadlineError
from services.slices.optimiser.branching import Latency, branch
from services.slices.optimiser.infeasible import explain
from services.slices.optimiser.model import Model
from services.slices.optimiser.placing import Order, Placement, Placing, first_fit
from services.slices.optimiser.relaxation import Relaxed, Wanted, first_of_each, ranked, relax
from services.slices.optimiser.solver import INF, Bools, End, Floats

SMALL_PAIRS = 400
GOOD = 2e-3
TRIES = 100
"""Most small changes of a placement that are tried."""
SEARCH_NODES = 2000
"""Most nodes of the search tree of a larger problem."""
LOOK_AT = 6
"""Nodes of a slice that a dive looks at."""
AFTER_S = 1.0
"""So much longer it may take to say why there is no allocation, or to put the last one down."""


@dataclass(frozen=True)
class Found:
    """A placement with its bound."""

    present: Bools
    """[P]."""
    served: Floats
    """[P]."""
    bound: float
    """Nothing is better."""
    complete: bool
    """False where the time ended the search."""


@dataclass(frozen=True)
class Task:
    """A search: what is to be large, under which conditions."""

    model: Model
    """The problem."""
    wanted: Wanted
    """What is to be large in the relaxation."""
    usable: Bools
    """[P]: no other pairs."""
    presence: Floats | None = None
    """[P]: what dives and small changes value in place of `wanted`: which pairs are present."""
    latency: Latency | None = None
    """What branch and bound asks of the latency."""
    start: Bools | None = None
    """[P]: a placement to begin from."""

    @property
    def valued(self) -> Wanted:
        """What dives and small changes value beside presence."""
        if self.presence is None:
            return self.wanted
        return Wanted(np.zeros(len(self.model.ratio)), beside=float(np.abs(self.presence).max(initial=0.0)))

    @property
    def small(self) -> bool:
        """Whether branch and bound is to prove the best."""
        return int(self.usable.sum()) <= SMALL_PAIRS

    def value(self, placement: Placement) -> float:
        """What is to be large, of a placement."""
        if self.latency is not None and self.latency.most is None:
            return -self.latency.sum_of(self.model, placement.present)
        if self.wanted.fair:
            return float(np.bincount(self.model.slice_of, placement.served, self.model.slices).min())
        return placement.value


def search(task: Task, until: float) -> Found:
    """The placement with the largest value that was found, and its bound.

    Raises:
        InfeasiblePlanError: there is none.
        DeadlineError: none was found in time.
    """
    model = task.model
    relaxed = relax(model, task.wanted, task.usable, until)
    if relaxed and relaxed.short:
        raise explain(model.problem, AFTER_S)
    bound = relaxed.bound if relaxed else INF
    best = _placed(task, relaxed, until)
    if best is not None and (bound - task.value(best) <= GOOD * abs(bound) and not task.small):
        return Found(best.present, best.served, bound, complete=relaxed is not None)
    kept = task.usable
    if relaxed and best is not None:
        # A pair whose price takes more than what the best is short of the bound is in no better placement.
        spare = task.value(best) - relaxed.from_here
        kept = kept & (relaxed.price >= spare - 1e-6 * (1 + abs(spare)))
    found = branch(
        model, task.wanted, kept, latency=task.latency, start=best.present if best else None,
        seconds=until - perf_counter(), nodes=None if task.small else SEARCH_NODES,
    )  # fmt: skip
    if found.end is End.INFEASIBLE and best is None:
        raise explain(model.problem, AFTER_S)
    if found.present is not None:
        exact = settled_at(task, found.present, until + AFTER_S)
        if exact is not None and (best is None or task.value(exact) > task.value(best)):
            best = exact
    if best is None:
        raise DeadlineError(
            "the time ended before an allocation was found, and none was proven impossible: "
            "allow more time, or ask for fewer slices at once"
        )
    bound = min(bound, max(found.bound, task.value(best)))
    return Found(best.present, best.served, bound, complete=relaxed is not None and found.end is not End.TIME)


def _placed(task: Task, relaxed: Relaxed | None, until: float) -> Placement | None:
    """The best placement that a dive and small changes find, from the task's start too."""
    model = task.model
    if relaxed is None or (task.latency is not None and task.latency.most is not None):
        return filled(task, until) if task.start is None else settled_at(task, task.start, until + AFTER_S)
    rank = ranked(relaxed, task.usable)
    valued = task.valued
    if valued.fair:
        # Many slices may be the least served at once, and no single change raises all of them: what each is short of
        # the bound counts too, and nothing above the bound does.
        model = replace(model, upmost=np.maximum(model.least, min(1.0, relaxed.bound)))
        valued = Wanted(model.ratio / model.slices, fair=True)
    modest = Wanted(np.zeros(len(model.ratio)), beside=valued.beside)
    enough = relaxed.bound - GOOD / 4 * abs(relaxed.bound)
    first, best = filled(task, until), None
    lacking: Placement | None = None

    def improved(found: Placement, tries: int) -> Placement:
        # With the present pairs alone: a program of a third of the size.
        placing = Placing(model, valued, found.present, task.presence)
        return placing.improve(found, task.usable, lambda one: task.value(one) >= enough, tries, until)

    if task.start is not None and (found := settled_at(task, task.start, until + AFTER_S)) is not None:
        best = improved(found, TRIES)
    # What asks only for what has to be served is found where the others get stuck, and is but a start.
    for what, look in ((valued, 0.5), (valued, 1), (modest, 1), (valued, 2), (modest, 3)):
        if best is not None and (what is modest or task.small or task.value(best) >= enough or perf_counter() > until):
            continue
        pairs = first_of_each(model, rank, int(look * LOOK_AT))
        found = Placing(model, what, pairs, task.presence).dive(task.usable, until)
        if found is not None and found.lacking.any():
            lacking = min((each for each in (lacking, found) if each), key=lambda one: float(one.lacking.sum()))
        elif found is not None:
            better = improved(found, TRIES)
            best = max((each for each in (best, better) if each), key=task.value)
    if best is None and lacking is not None:
        better = improved(lacking, TRIES)
        best = None if better.lacking.any() else better
    return max((each for each in (best, first) if each is not None), key=task.value, default=None)


def dived(task: Task, relaxed: Relaxed, until: float) -> Placement | None:
    """The better of what a dive finds, which may lack what has to be served, and what fits one after the other."""
    pairs = first_of_each(task.model, ranked(relaxed, task.usable), LOOK_AT)
    found = Placing(task.model, task.valued, pairs, task.presence).dive(task.usable, until)
    both = (found, filled(task, until))
    return max(
        (each for each in both if each is not None), key=lambda one: (-one.lacking.sum(), task.value(one)), default=None
    )


def filled(task: Task, until: float) -> Placement | None:
    """The best of what fits one after the other, the largest slice first or the densest, in no time."""
    fitted = [first_fit(task.model, task.usable, task.presence, by) for by in Order]
    placed = [settled_at(task, each, until + AFTER_S) for each in fitted if each is not None]
    return max((each for each in placed if each is not None), key=task.value, default=None)


def settled_at(task: Task, present: Bools, until: float) -> Placement | None:
    """What a placement serves at best; None where it cannot serve what it has to."""
    placing = Placing(task.model, task.valued, present, task.presence)
    on = np.ones(len(placing.pairs))
    placing.settle(on, on)
    switches, value = placing.solve(until)
    if not len(switches):
        return None
    placement = placing.placement(value)
    return None if placement.lacking.any() else placement
