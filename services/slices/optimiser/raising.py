"""The level that all slices can have: placements for one level after the other, and levels that no placement reaches.

At a given level every slice is served that much and no more, so that sizes are fixed: what is asked is whether they
fit. Where the linear relaxation does not fit, nothing does, and the level is a bound, which is sharper than that of the
relaxation of the least part: there, a slice may be served the level in part on a node that cannot serve it alone. Where
a dive fits, the level is reached. The levels close in on each other from both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from services.slices.optimiser.branching import branch
from services.slices.optimiser.model import Model, at_level
from services.slices.optimiser.placing import Placing
from services.slices.optimiser.relaxation import Relaxed, Wanted, first_of_each, ranked, relax
from services.slices.optimiser.solver import INF, Bools, End

PROVEN = -1e-3
"""What a relaxation lacks costs more than this where it is more than a rounding."""
STEPS = (0.004, 0.02, 0.1, 0.25)
"""So far below what may be possible the first placements are looked for, as parts of it."""
LOOKS = (3, 6)
"""Nodes of a slice that a dive looks at: more where few slices lack something."""
FEW = 1.5
"""Slices that lack something are few up to this many, parts of slices added."""
NEAR = 2e-3
"""Levels no farther apart than this part are close enough."""
APART = 0.03
"""Where sizes are whole, branch and bound finds more than dives do from here on."""
THRIFT = 1e-3
"""What a part of a node's resources counts against what is lacking."""


@dataclass(frozen=True)
class Raised:
    """What is known of the level."""

    present: Bools | None
    """[P]: a placement for `reached`; None where none was found."""
    reached: float
    """A level that all slices have in it."""
    bound: float
    """No placement reaches a higher one."""


def raise_level(model: Model, reached: float, bound: float, until: float) -> Raised:
    """A placement for a level as high as can be found.

    Args:
        model: The problem.
        reached: A level that is known to be reached.
        bound: One that is not exceeded.
        until: When to end, `perf_counter`.
    """
    bound = _bounded(model, reached, bound, until)
    whole = bool((model.spread == 1).all())
    best: Bools | None = None
    failed, steps = bound, [] if whole else list(STEPS)  # the bound is far where sizes are whole
    while perf_counter() < until and failed - reached > (APART if whole else NEAR / 2) * bound > 0:
        if bound - reached <= NEAR * bound:
            break
        goal = max(bound * (1 - steps.pop(0)), reached) if steps else (reached + failed) / 2
        if goal <= reached:
            steps = []
            continue
        for look in LOOKS:
            placed = _at(model, goal, look, until)
            if placed.level > reached:
                best, reached = placed.present, placed.level
            if placed.level >= goal or placed.lacking > FEW:
                break
        if reached >= goal:
            steps = []
        else:
            failed = goal
            if placed.lacking > 2 * FEW:
                steps = steps[1:]
    while whole and perf_counter() < until and bound - reached > NEAR * bound:
        goal = reached + (bound - reached) / 4
        there, kept = at_level(model, goal)
        found = branch(
            there, Wanted(np.zeros(len(there.ratio))), np.ones(there.pairs, dtype=bool), latency=None, start=None,
            seconds=until - perf_counter(), nodes=None,
        )  # fmt: skip
        if found.end is End.INFEASIBLE:
            bound = goal
        elif found.present is None:
            break
        else:
            best, reached = _marked(kept, found.present), goal
    return Raised(best, reached, bound)


def _bounded(model: Model, reached: float, bound: float, until: float) -> float:
    """The lowest level that is known not to be exceeded, to within half of what is close."""
    step = NEAR / 2 * bound
    low = reached
    while bound - low > step and perf_counter() < until:
        level = bound - step if low == reached else (low + bound) / 2
        relaxed = _relaxed(model, level, until)[1]
        if relaxed is None:
            break
        if relaxed.bound < PROVEN:
            bound = level
            step = max(step, (bound - reached) / 8) if low == reached else step
        else:
            low = level
            step = NEAR / 2 * bound
    return bound


def _relaxed(model: Model, level: float, until: float) -> tuple[Model, Relaxed | None, Bools]:
    there, kept = at_level(model, level)
    return there, relax(there, Wanted(np.zeros(len(there.ratio))), np.ones(there.pairs, dtype=bool), until), kept


@dataclass(frozen=True)
class Placed:
    """A placement that was made for a level."""

    present: Bools | None
    """[P]."""
    level: float
    """What all slices have in it."""
    lacking: float
    """How much slices lack of the level that it was made for, in slices."""


def _at(model: Model, level: float, look: int, until: float) -> Placed:
    """A placement for a level, which some slices may lack."""
    there, relaxed, kept = _relaxed(model, level, until)
    if relaxed is None or relaxed.bound < PROVEN:
        return Placed(None, 0.0, INF)
    everything = np.ones(there.pairs, dtype=bool)
    wanted = Wanted(-THRIFT * there.used.sum(axis=1))
    found = Placing(there, wanted, first_of_each(there, ranked(relaxed, everything), look)).dive(everything, until)
    if found is None:
        return Placed(None, 0.0, INF)
    present, lacking = _marked(kept, found.present), float(found.lacking.sum())
    if not lacking:
        return Placed(present, level, 0.0)
    return Placed(present, level_of(model, present, until) if lacking < 1 else 0.0, lacking)


def level_of(model: Model, present: Bools, until: float = INF) -> float:
    """What all slices have in a placement; 0 where some lack what has to be served."""
    placing = Placing(model, Wanted(np.zeros(len(model.ratio)), fair=True), present)
    on = np.ones(len(placing.pairs))
    placing.settle(on, on)
    switches, value = placing.solve(until)
    return 0.0 if not len(switches) or placing.placement(value).lacking.any() else value


def _marked(kept: Bools, present: Bools) -> Bools:
    marked = kept.copy()
    marked[kept] = present
    return marked
