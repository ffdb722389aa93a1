"""Branch and bound by HiGHS over placements: the proof, and what small changes do not find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.slices.optimiser.model import Model
from services.slices.optimiser.placing import program_of
from services.slices.optimiser.relaxation import SHORT, Wanted
from services.slices.optimiser.solver import INF, Bools, End, Floats


@dataclass(frozen=True)
class Latency:
    """How the latency of slices counts: that of the farthest node that serves each."""

    weight: Floats
    """[S]: 0 for a slice whose latency does not count."""
    most: float | None = None
    """The weighted sum is at most this; None: it is to be small, and nothing else counts."""

    def sum_of(self, model: Model, present: Bools) -> float:
        """The weighted sum for a placement, ms."""
        farthest = np.zeros(model.slices)
        np.maximum.at(farthest, model.slice_of[present], model.floor_ms[present])
        return float(farthest @ self.weight)


@dataclass(frozen=True)
class Branched:
    """What branch and bound found."""

    present: Bools | None
    """[P]; None where nothing was found."""
    bound: float
    """No placement of the pairs that were looked at is better."""
    end: End
    """How it ended."""


def branch(
    model: Model,
    wanted: Wanted,
    pairs: Bools,
    *,
    latency: Latency | None,
    start: Bools | None,
    seconds: float,
    nodes: int | None,
) -> Branched:
    """The best placement over some pairs.

    Args:
        model: The problem.
        wanted: What is to be large, unless it is the latency that is to be small.
        pairs: [P]: those that are looked at.
        latency: What is asked of the latency; None for nothing.
        start: [P]: a placement to begin from.
        seconds: The most it may take.
        nodes: The most nodes of the search tree; None for any number.
    """
    chosen = np.flatnonzero(pairs)
    if not len(chosen) or seconds <= 0:
        return Branched(None, INF, End.TIME)
    smallest = latency is not None and latency.most is None
    valued = Wanted(np.zeros(len(model.ratio))) if smallest else wanted
    program, switches, _, _, rows = program_of(model, valued, chosen, np.zeros(model.pairs), whole=True)
    if latency is not None:
        far = program.add_columns(model.slices, 0.0, INF, -latency.weight if smallest else 0.0)
        farther = program.add_rows(len(chosen), 0.0, INF)
        program.put(farther, far[model.slice_of[chosen]], 1.0)
        program.put(farther, switches, -model.floor_ms[chosen])
        if latency.most is not None:
            total = program.add_rows(1, -INF, latency.most * (1 + 1e-9) + 1e-9)
            program.put(np.repeat(total, model.slices), far, latency.weight)
    known = None if start is None else (switches, start[chosen].astype(float))
    found = program.solve(seconds=seconds, nodes=nodes, start=known)
    if found.values is None:
        return Branched(None, found.bound, found.end)
    if found.values[rows.lack].max(initial=0.0) > SHORT:
        # Something has to be left out in what is best: if that is proven, there is no allocation.
        return Branched(None, found.bound, End.INFEASIBLE if found.end is End.BEST else found.end)
    present = np.zeros(model.pairs, dtype=bool)
    present[chosen] = found.values[switches] > 0.5
    return Branched(present, found.bound, found.end)
