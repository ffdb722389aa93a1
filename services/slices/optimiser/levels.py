"""Max-min to the last slice: after the least served has the most that it can, the next, and so on.

For a given placement this is a row of linear programs: the least part of all is raised until some slice cannot follow;
the prices say which; those are held there, and the others go on. Over placements (`exact`) it is the sum of the k least
parts that is maximised for k = 1, 2, ..., each with the sums before it kept: sum of the k least = max over r of
k r - sum over slices of max(0, r - served), which is linear (Ogryczak and Sliwinski, 2003).
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from services.slices.optimiser.model import Model
from services.slices.optimiser.placing import Placing, program_of
from services.slices.optimiser.relaxation import Wanted
from services.slices.optimiser.solver import INF, Bools, End, Floats

EXACT_SLICES = 8
"""Up to so many slices the order is exact over all placements; beyond, over the parts served of the one found."""
KEPT = 1e-7
"""What was reached for the less served may be missed by this."""
STUCK = 1e-6
"""A slice whose part in the price of the level is above this cannot rise any more."""


def level(
    model: Model, present: Bools, served: Floats, until: float, later: float, *, exact: bool
) -> tuple[Bools, Floats, bool]:
    """The placement, what it serves, and whether all was done in time.

    Args:
        model: The problem.
        present: [P]: a placement whose least served slice has the most that it can.
        served: [P]: what it serves; the answer where there is no time at all.
        until: When to end the search for other placements, `perf_counter`.
        later: When to end the levelling of the one that was found.
        exact: Whether to look at other placements; done for up to `EXACT_SLICES` slices.
    """
    complete = True
    if exact and model.slices <= EXACT_SLICES:
        present, complete = _over_placements(model, present, until)
    levelled, done = _for_placement(model, present, later)
    return present, served if levelled is None else levelled, complete and done


def _for_placement(model: Model, present: Bools, until: float) -> tuple[Floats | None, bool]:
    placing = Placing(model, Wanted(np.zeros(len(model.ratio)), fair=True), present)
    on = np.ones(len(placing.pairs))
    placing.settle(on, on)
    rising = np.ones(model.slices, dtype=bool)
    served = None
    while rising.any():
        switches, value = placing.solve(until)
        if not len(switches):
            return served, False
        served = placing.placement(value).served
        stuck = rising & (placing.fairness() > STUCK)
        if value >= 1 - KEPT or not stuck.any():
            stuck = rising
        placing.hold(np.flatnonzero(stuck), value * (1 - 1e-12))  # what was reached, but for the last bits
        rising &= ~stuck
    return served, True


def _over_placements(model: Model, present: Bools, until: float) -> tuple[Bools, bool]:
    pairs = np.arange(model.pairs)
    sums: list[float] = []
    while len(sums) < model.slices:
        program, switches, columns, bends, rows = program_of(
            model, Wanted(np.zeros(len(model.ratio))), pairs, np.zeros(model.pairs), whole=True
        )
        for level_, reached in enumerate([*sums, None], start=1):
            last = reached is None
            threshold = program.add_columns(1, 0.0, 1.0, float(level_) if last else 0.0)
            below = program.add_columns(model.slices, 0.0, INF, -1.0 if last else 0.0)
            gap = program.add_rows(model.slices, 0.0, INF)
            program.put(gap, below, 1.0)
            program.put(gap, np.repeat(threshold, model.slices), -1.0)
            program.put(gap[model.slice_of[model.pair_of[bends]]], columns, model.ratio[bends])
            if reached is not None:
                total = program.add_rows(1, reached - KEPT, INF)
                program.put(total, threshold, float(level_))
                program.put(np.repeat(total, model.slices), below, -1.0)
        found = program.solve(seconds=until - perf_counter(), start=(switches, present.astype(float)))
        if found.values is None or found.end is not End.BEST or found.values[rows.lack].max(initial=0.0) > KEPT:
            return present, False
        present = found.values[switches] > 0.5
        sums.append(found.objective)
    return present, True
