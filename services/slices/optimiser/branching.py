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
    served: Floats
    """[P]: what is served by it."""
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
        return Branched(None, np.empty(0), INF, End.TIME)
    smallest = latency is not None and latency.most is None
    valued = wanted
    if latency is not None and smallest:
        dearest = float((latency.weight[model.slice_of] * model.floor_ms).max(initial=0.0))
        valued = Wanted(np.zeros(len(model.ratio)), beside=dearest)
    several = np.zeros(model.slices, dtype=bool) if latency is None else model.spread > 1
    alone = np.zeros(model.pairs)
    if latency is not None and smallest:
        # One node each: what is present is the farthest.
        alone = np.where(several[model.slice_of], 0.0, -latency.weight[model.slice_of] * model.floor_ms)
    program, switches, columns, bends, rows = program_of(model, valued, chosen, alone, whole=True)
    if latency is not None:
        far = program.add_columns(model.slices, 0.0, INF, np.where(several, -latency.weight, 0.0) if smallest else 0.0)
        counted = several[model.slice_of[chosen]] | (not smallest)
        farther = program.add_rows(int(counted.sum()), 0.0, INF)
        program.put(farther, far[model.slice_of[chosen[counted]]], 1.0)
        program.put(farther, switches[counted], -model.floor_ms[chosen[counted]])
        # The farthest is no nearer than the mean of what is served: that binds also where presence is in parts.
        pair = model.pair_of[bends]
        least = model.least[model.slice_of[pair]]
        here = several[model.slice_of[pair]] & (least > 0) if smallest else np.zeros(len(pair), dtype=bool)
        mean = program.add_rows(model.slices, 0.0, INF)
        program.put(mean, far, 1.0)
        share = model.ratio[bends[here]] / least[here]
        program.put(mean[model.slice_of[pair[here]]], columns[here], -model.floor_ms[pair[here]] * share)
        if latency.most is not None:
            total = program.add_rows(1, -INF, latency.most * (1 + 1e-9) + 1e-9)
            program.put(np.repeat(total, model.slices), far, latency.weight)
    known = None if start is None else (switches, start[chosen].astype(float))
    found = program.solve(seconds=seconds, nodes=nodes, start=known)
    if found.values is None:
        return Branched(None, np.empty(0), found.bound, found.end)
    if found.values[rows.lack].max(initial=0.0) > SHORT:
        # Something has to be left out in what is best: if that is proven, there is no allocation.
        end = End.INFEASIBLE if found.end is End.BEST else found.end
        return Branched(None, np.empty(0), found.bound, end)
    present, served = np.zeros(model.pairs, dtype=bool), np.zeros(model.pairs)
    present[chosen] = found.values[switches] > 0.5
    np.add.at(served, model.pair_of[bends], found.values[columns] * model.ratio[bends])
    return Branched(present, np.where(present, served, 0.0), found.bound, found.end)
