"""The linear relaxation: a bound that no allocation beats, and the pairs of slice and node that are worth a look.

Solved by column generation: a few nodes of each slice first, then those whose prices pay, until none is left or what is
left cannot move the bound. The bound is that of linear duality over all columns, also over those never looked at:
value + sum over slices of nodes_max times the best price of any column that is not in.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from services.slices.optimiser.model import Model
from services.slices.optimiser.solver import INF, Bools, End, Floats, Ints, Live, Program

ROUNDS = 60
SHORT = 1e-6
"""Lacking more than this part of what has to be served is lacking it."""
CLOSE = 1e-5
"""A bound this close to the value, as a part of it, is the value."""
PRICE = 1e-9
"""What costs less is free."""
FIRST_CHEAP, FIRST_SPACED = 2, 4
"""Nodes of a slice that are looked at first: the cheapest, and some evenly over all that are possible."""
EACH_ROUND = 6
"""Most pairs that a slice gets in a round."""


@dataclass(frozen=True)
class Wanted:
    """What is to be as large as possible: `cost` of the columns, or the least part that any slice is served."""

    cost: Floats
    """[C]: for each column."""
    fair: bool = False
    """The least part served, in place of the costs."""
    enough: float = 1.0
    """The least part served counts up to this."""
    pull: float = 1.0
    """How much it counts."""
    beside: float = 0.0
    """The most that anything else counts that is valued beside this: lacking is dearer."""


@dataclass(frozen=True)
class Relaxed:
    """The relaxation, solved."""

    bound: float
    """No allocation is better."""
    weight: Floats
    """[P]: how much of each pair's presence it wants, 0 to 1."""
    price: Floats
    """[P]: no allocation that has the pair is better than `from_here` plus this, at most 0 but for rounding."""
    from_here: float
    """The bound by the prices as they were last; never below `bound`."""
    scarce: Bools
    """[N]: whether room on the node has a price."""
    short: bool
    """True where something that has to be served was not: then there may be no allocation at all."""


def relax(model: Model, wanted: Wanted, usable: Bools, until: float = INF) -> Relaxed | None:
    """Solves the relaxation; None where the time ended it before there was any bound.

    Args:
        model: The problem.
        wanted: What is to be large.
        usable: [P]: no other pairs.
        until: When to end, `perf_counter`.
    """
    program, rows = first_rows(model, wanted)
    live = Live(program)
    inside = np.zeros(model.pairs, dtype=bool)
    columns = np.empty(0, dtype=np.int64)
    new = _first_pairs(model, wanted) & usable
    best, here, answer, prices = INF, INF, None, np.empty(0)
    for _ in range(ROUNDS):
        added = model.columns_of(new)
        columns = np.concatenate([columns, added])
        inside |= new
        live.add_columns(*entries(model, wanted, added, rows))
        found = live.solve(until - perf_counter())
        if found.end is not End.BEST or found.values is None:
            break
        answer = found
        prices = np.where(usable[model.pair_of], prices_of(model, wanted, found.duals, rows), -INF)
        top = np.zeros(model.slices)
        np.maximum.at(top, model.slice_of[model.pair_of], prices)
        here = found.objective + float(top @ model.spread)
        best = min(best, here)
        pair_price = _best_of_pairs(model, prices)
        new = _paying(model, pair_price, inside, CLOSE * (1 + abs(found.objective)) / (model.slices + 1))
        if best - found.objective <= CLOSE * max(1e-9, abs(found.objective)) or not new.any():
            break
    if answer is None or answer.values is None:
        return None
    offset = program.columns
    weight = np.zeros(model.pairs)
    known = columns[: len(answer.values) - offset]  # the time may have ended the round that added more
    np.add.at(weight, model.pair_of[known], answer.values[offset:])
    short = bool(answer.values[rows.lack].max(initial=0.0) > SHORT)
    scarce = np.asarray((answer.duals[rows.room].reshape(-1, 4) > PRICE).any(axis=1))
    return Relaxed(best, np.minimum(weight, 1.0), _best_of_pairs(model, prices), here, scarce, short)


def ranked(relaxed: Relaxed, usable: Bools) -> Floats:
    """[P]: the pairs that the relaxation wants most have the lowest rank, then those whose price is best."""
    return np.where(usable, np.where(relaxed.weight > SHORT, -1 - relaxed.weight, -relaxed.price), INF)


@dataclass(frozen=True)
class Rows:
    """Which rows of a program are which."""

    room: Ints
    """[N * 4]: what is reserved on a node."""
    served: Ints
    """[S]: the part that is served."""
    present: Ints
    """[S]: on how many nodes."""
    fair: Ints
    """[S]: the part served is at least the least; empty where that is not asked for."""
    lack: Ints
    """[S], columns: how much of what has to be served is not; dear."""


def first_rows(model: Model, wanted: Wanted) -> tuple[Program, Rows]:
    """A program with the rows of all its columns; of these only the least part served, and what it lacks."""
    program = Program(maximise=True)
    rows = Rows(
        program.add_rows(model.limits.size, -INF, model.limits.ravel()),
        program.add_rows(model.slices, model.least, model.upmost),
        program.add_rows(model.slices, np.where(model.least > 0, 1.0, 0.0), model.spread.astype(float)),
        program.add_rows(model.slices if wanted.fair else 0, 0.0, INF),
        program.add_columns(model.slices, 0.0, np.where(model.least > 0, INF, 0.0), -lack_cost(model, wanted)),
    )
    program.put(rows.served, rows.lack, model.least)
    program.put(rows.present, rows.lack, 1.0)
    if wanted.fair:
        least = program.add_columns(1, 0.0, wanted.enough, wanted.pull)
        program.put(rows.fair, np.repeat(least, model.slices), -1.0)
    return program, rows


def lack_cost(model: Model, wanted: Wanted) -> float:
    """What it costs to leave all that a slice has to be served: more than anything else can bring."""
    most = float(np.abs(wanted.cost).max(initial=0.0)) + wanted.beside
    return 10.0 * (1.0 + most * model.slices + wanted.pull * wanted.fair)


def entries(
    model: Model, wanted: Wanted, columns: Ints, rows: Rows, present: Ints | None = None
) -> tuple[Floats, Ints, Ints, Floats]:
    """Costs, starts, rows and values of columns, in the form that `Live.add_columns` takes.

    Args:
        model: The problem.
        wanted: What is to be large.
        columns: Which of the model's columns.
        rows: The rows of the program.
        present: [columns]: the row that says how often each may be taken; that of its slice where it is None.
    """
    pair = model.pair_of[columns]
    slices, nodes = model.slice_of[pair], model.node_of[pair]
    ratio = model.ratio[columns]
    places = [rows.room[nodes * 4 + each] for each in range(4)]
    places += [rows.served[slices], rows.present[slices] if present is None else present]
    values = [model.used[columns, each] for each in range(4)] + [ratio, np.ones(len(columns))]
    if wanted.fair:
        places.append(rows.fair[slices])
        values.append(ratio)
    starts = np.arange(len(columns)) * len(places)
    return wanted.cost[columns], starts, np.stack(places, 1).ravel(), np.stack(values, 1).ravel()


def prices_of(model: Model, wanted: Wanted, duals: Floats, rows: Rows) -> Floats:
    """[C]: what one more of each column would bring at these duals."""
    slices = model.slice_of[model.pair_of]
    room = duals[rows.room].reshape(-1, 4)[model.node_of[model.pair_of]]
    per_ratio = duals[rows.served]
    if wanted.fair:
        per_ratio = per_ratio + duals[rows.fair]
    used = (room * model.used).sum(axis=1)
    return np.asarray(wanted.cost - used - per_ratio[slices] * model.ratio - duals[rows.present][slices])


def _best_of_pairs(model: Model, prices: Floats) -> Floats:
    best = np.full(model.pairs, -INF)
    np.maximum.at(best, model.pair_of, prices)
    return best


def _paying(model: Model, price: Floats, inside: Bools, least: float) -> Bools:
    """The pairs outside that pay most: at most `EACH_ROUND` of a slice."""
    return first_of_each(model, np.where(~inside & (price > least), -price, INF), EACH_ROUND)


def first_of_each(model: Model, rank: Floats, count: int) -> Bools:
    """[P]: the `count` pairs of each slice with the lowest rank; an infinite rank is none."""
    order = np.lexsort((np.arange(model.pairs), rank, model.slice_of))
    starts = np.searchsorted(model.slice_of[order], np.arange(model.slices))
    place = np.arange(model.pairs) - starts[model.slice_of[order]]
    chosen = np.zeros(model.pairs, dtype=bool)
    chosen[order[(place < count) & np.isfinite(rank[order])]] = True
    return chosen


def _first_pairs(model: Model, wanted: Wanted) -> Bools:
    """Cheap ones by what would be scarce if all were served, and some spaced evenly."""
    scarce = model.need.sum(axis=0) / np.maximum(model.free.sum(axis=0), 1e-12)
    last = np.zeros(model.pairs, dtype=np.int64)
    last[model.pair_of] = np.arange(len(model.pair_of))  # the bend where most is served
    dear = (model.used[last] * scarce).sum(axis=1) / model.ratio[last]
    gain = wanted.cost[last] / model.ratio[last]
    first = first_of_each(model, dear - gain if gain.any() else dear, FIRST_CHEAP)
    first |= first_of_each(model, -gain, FIRST_CHEAP) if gain.any() else first
    count = np.bincount(model.slice_of, minlength=model.slices)
    place = np.arange(model.pairs) - np.searchsorted(model.slice_of, np.arange(model.slices))[model.slice_of]
    step = np.maximum(1, count // FIRST_SPACED)[model.slice_of]
    return np.asarray(first | ((place + model.slice_of) % step == 0))
