"""Placements: which slice is present on which nodes. Found by diving through the relaxation, then by small changes.

A dive solves the linear program over the pairs that are worth a look, settles those that it wants most as present, and
solves again, until every pair is settled. What can be on one node only comes first, as others go round it; a pair whose
least no longer fits beside what is settled is out; what cannot be served any more is lacking, and dear, and more pairs
are looked at for it.
For a settled placement the parts served are a linear program, whose prices say which change may pay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from time import perf_counter

import numpy as np

from services.slices.optimiser.model import Model
from services.slices.optimiser.relaxation import SHORT, Rows, Wanted, entries, first_of_each, first_rows, prices_of
from services.slices.optimiser.solver import EXACT, INF, Answer, Bools, End, Floats, Ints, Live, Program

WHOLE = 1e-6
"""Closer to 0 or 1 than this is 0 or 1."""
FURTHER = 4
"""Pairs of a slice that lacks something that a dive looks at beside those that it began with."""
MOVES = 200
"""Most changes of one placement that are tried."""
BY = 6
"""Each step settles one in so many of the pairs that are still open."""


@dataclass(frozen=True)
class Placement:
    """A placement and what is served by it."""

    present: Bools
    """[P]."""
    served: Floats
    """[P]: 0 where it is not present."""
    value: float
    """What was to be large."""
    lacking: Floats
    """[S]: how much of what has to be served is not, as a part of that."""


class Placing:
    """The linear program over some pairs, with a switch for each: 0 absent, 1 present, or open.

    Args:
        model: The problem.
        wanted: What is to be large.
        pairs: [P]: the pairs that are looked at.
        presence: [P]: what the presence of a pair adds to the value; none where it is None.
    """

    def __init__(self, model: Model, wanted: Wanted, pairs: Bools, presence: Floats | None = None) -> None:
        self.model, self.wanted = model, wanted
        self.presence = np.zeros(model.pairs) if presence is None else presence
        self.pairs = np.flatnonzero(pairs)
        program, self.switches, self.columns, self.bends, self.rows = program_of(
            model, wanted, self.pairs, self.presence
        )
        self._live = Live(program)
        self._sizes = (program.rows, program.columns)
        self._low = np.zeros(len(self.pairs))
        self._high = np.ones(len(self.pairs))

    def extend(self, pair: int) -> None:
        """Looks at one pair more, which is absent as yet."""
        model, (row, column) = self.model, self._sizes
        bends = np.flatnonzero(model.pair_of == pair)
        self._live.add_rows(np.zeros(1), np.zeros(1))
        present = self.rows.present[model.slice_of[pair]]
        self._live.add_columns(
            self.presence[[pair]], np.zeros(1, dtype=np.int64), np.array([present, row]), np.array([1.0, -1.0])
        )
        costs, starts, rows, values = entries(model, self.wanted, bends, self.rows, present=np.full(len(bends), row))
        self._live.add_columns(costs, starts, rows, values)
        self.pairs = np.append(self.pairs, pair)
        self.switches = np.append(self.switches, column)
        self.columns = np.concatenate([self.columns, column + 1 + np.arange(len(bends))])
        self.bends = np.concatenate([self.bends, bends])
        self._sizes = (row + 1, column + 1 + len(bends))
        self._low, self._high = np.append(self._low, 0.0), np.append(self._high, INF)

    def settle(self, low: Floats, high: Floats) -> None:
        """Sets the bounds of all switches."""
        changed = np.flatnonzero((low != self._low) | (high != self._high))
        if len(changed):
            self._live.set_bounds(self.switches[changed], low[changed], high[changed])
        self._low, self._high = low.copy(), high.copy()

    def solve(self, until: float = INF) -> tuple[Floats, float]:
        """The switches and the value; the switches are empty where there is no solution, or none in time."""
        found = self._live.solve(until - perf_counter())
        if found.end is not End.BEST or found.values is None:
            return np.empty(0), -INF
        self._values, self._found = found.values, found
        return found.values[self.switches], found.objective

    def fairness(self) -> Floats:
        """[S]: what part each slice has in the price of the least part served; their sum is 1."""
        return np.abs(self._found.duals[self.rows.fair])

    def hold(self, slices: Ints, served: float) -> None:
        """From now on these slices are served this part at least, and the least part served is that of the others."""
        for each in slices:
            least, upmost = float(self.model.least[each]), float(self.model.upmost[each])
            self._live.set_row(int(self.rows.served[each]), min(max(least, served), upmost), upmost)
            self._live.set_row(int(self.rows.fair[each]), -INF, INF)

    def placement(self, value: float) -> Placement:
        """The last solution, whose switches are all settled, over all pairs."""
        served = np.zeros(self.model.pairs)
        np.add.at(
            served, self.model.pair_of[self.bends], self._values[self.columns] * self.model.ratio[self.bends]
        )
        present = np.zeros(self.model.pairs, dtype=bool)
        present[self.pairs] = self._values[self.switches] > 0.5
        lacking = self._values[self.rows.lack]
        return Placement(present, np.where(present, served, 0.0), value, np.where(lacking > SHORT, lacking, 0.0))

    def dive(self, usable: Bools, until: float = INF) -> Placement | None:
        """A placement, which may lack what has to be served; None where the time ended it.

        Args:
            usable: [P]: the pairs that may be looked at too, where those of a slice do not do.
            until: When to end, `perf_counter`.
        """
        model = self.model
        hard = (model.spread == 1) & (model.least > 0)  # fit as a whole or not at all: others go round them
        needed = least_of_pairs(model)
        left, taken = model.limits.copy(), np.zeros(model.slices, dtype=np.int64)
        low, high = np.zeros(len(self.pairs)), np.ones(len(self.pairs))
        while True:
            self.settle(low, high)
            switches, value = self.solve(until)
            if not len(switches):
                return None
            fitting = usable & (needed <= left[model.node_of] + EXACT).all(axis=1)
            fitting &= (taken < model.spread)[model.slice_of]
            added = self._look_further(fitting)
            if added:
                low, high = np.append(low, np.zeros(added)), np.append(high, np.ones(added))
                continue
            open_ = np.flatnonzero((switches > WHOLE) & (switches < 1 - WHOLE))
            if not len(open_):
                break
            slices = model.slice_of[self.pairs[open_]]
            if hard[slices].any():
                open_, slices = open_[hard[slices]], slices[hard[slices]]
            order = open_[np.argsort(-switches[open_], kind="stable")]
            for which in order[: max(1, len(order) // BY)]:
                pair = self.pairs[which]
                node, of = model.node_of[pair], model.slice_of[pair]
                if taken[of] < model.spread[of] and (needed[pair] <= left[node] + EXACT).all():
                    low[which] = 1.0
                    left[node] -= needed[pair]
                    taken[of] += 1
                    if taken[of] == model.spread[of]:
                        self._live.set_row(int(self.rows.present[of]), -INF, INF)  # what it lacks needs no room there
            slices, nodes = model.slice_of[self.pairs], model.node_of[self.pairs]
            full = (needed[self.pairs] > left[nodes] + EXACT).any(axis=1) | (taken >= model.spread)[slices]
            high[full & (low == 0)] = 0.0
        # Those that stand at 0 or 1 by themselves are settled as they stand.
        self.settle(np.round(switches), np.round(switches))
        switches, value = self.solve(until)
        return self.placement(value) if len(switches) else None

    def _look_further(self, usable: Bools) -> int:
        """Looks at more pairs of the slices that lack something, the best by price; how many these are."""
        model = self.model
        lacking = self._values[self.rows.lack] > SHORT
        if not lacking.any():
            return 0
        prices = self._prices()
        further = usable & lacking[model.slice_of] & (prices > WHOLE)
        further[self.pairs] = False
        new = np.flatnonzero(first_of_each(model, np.where(further, -prices, INF), FURTHER))
        for pair in new:
            self.extend(int(pair))
        return len(new)

    def _prices(self) -> Floats:
        """[P]: what each pair, were it present, would bring at the prices of the last solution."""
        prices = np.full(self.model.pairs, -INF)
        columns = prices_of(self.model, self.wanted, self._found.duals, self.rows)
        np.maximum.at(prices, self.model.pair_of, columns)
        return np.asarray(prices + self.presence)

    def improve(
        self, placement: Placement, usable: Bools, enough: Callable[[Placement], bool], tries: int, until: float = INF
    ) -> Placement:
        """A placement at least as good, by adding, swapping and dropping one pair at a time.

        Args:
            placement: Where to begin; its pairs are looked at already.
            usable: [P]: no other pairs.
            enough: Whether a placement is so good that the search ends.
            tries: The most changes that are tried.
            until: When to end, `perf_counter`.
        """
        present = placement.present.copy()
        best = placement
        tabu: set[tuple[int, int]] = set()
        value = self._value_of(present, until)
        while value > -INF:
            best = self.placement(value)
            if not best.lacking.any() and enough(best):
                break
            for change in self._moves(present, usable, best.served, self._found, tabu):
                if tries <= 0 or perf_counter() > until:
                    return best
                tries -= 1
                trial = self._changed(present, change)
                got = self._value_of(trial, until)
                if got > value + 1e-7 * abs(value):
                    present, value = trial, got
                    break
                tabu.add(change)
            else:
                break
        return best

    def _changed(self, present: Bools, change: tuple[int, int]) -> Bools:
        add, drop = change
        trial = present.copy()
        if add >= 0:
            trial[add] = True
            if add not in self.pairs:
                self.extend(add)
        if drop >= 0:
            trial[drop] = False
        return trial

    def _value_of(self, present: Bools, until: float) -> float:
        on = present[self.pairs].astype(float)
        self.settle(on, on)
        return self.solve(until)[1]

    def _moves(
        self, present: Bools, usable: Bools, served: Floats, found: Answer, tabu: set[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Pairs to add and to drop, -1 for none, the most promising first."""
        model = self.model
        prices = self._prices()
        scale = 1e-9 + abs(found.objective) * 1e-9
        inside = np.zeros(model.pairs)
        inside[self.pairs] = found.prices[self.switches]
        moves = [(float(inside[pair]), -1, int(pair)) for pair in np.flatnonzero(present & (inside < -scale))]
        count = np.bincount(model.slice_of[present], minlength=model.slices)
        for pair in np.flatnonzero(usable & ~present & (prices > scale)):
            which = model.slice_of[pair]
            drop = -1
            if count[which] >= model.spread[which]:
                own = np.flatnonzero(present & (model.slice_of == which))
                drop = int(own[np.argmin(served[own])])
            moves.append((-float(prices[pair]), int(pair), drop))
        moves += self._relocations(present, usable, served, found, scale)
        moves.sort()
        return [(add, drop) for _, add, drop in moves if (add, drop) not in tabu][:MOVES]

    def _relocations(
        self, present: Bools, usable: Bools, served: Floats, found: Answer, scale: float
    ) -> list[tuple[float, int, int]]:
        """What a slice has on one node moved as it is to another, where that costs less at the prices of now."""
        model = self.model
        price = found.duals[self.rows.room].reshape(-1, 4) / model.unit
        moves: list[tuple[float, int, int]] = []
        for pair in np.flatnonzero(present):
            others = self._pairs_of(model.slice_of[pair])
            others = others[usable[others] & ~present[others] & (model.most[others] >= served[pair] - WHOLE)]
            taken = np.maximum(model.need[model.slice_of[pair]] * served[pair], model.guaranteed[others])
            cost = (price[model.node_of[others]] * taken).sum(axis=1) - self.presence[others]
            now = float(price[model.node_of[pair]] @ model.reserved(int(pair), float(served[pair])))
            gain = now - self.presence[pair] - cost
            moves += [(-float(gain[k]), int(others[k]), int(pair)) for k in np.argsort(-gain)[:2] if gain[k] > scale]
        return moves

    def _pairs_of(self, which: int) -> Ints:
        first, last = np.searchsorted(self.model.slice_of, [which, which + 1])
        return np.arange(first, last)


def least_of_pairs(model: Model) -> Floats:
    """[P, 4]: the least that is reserved for a pair that is present, as parts of `Model.unit`."""
    least = np.where(model.spread == 1, model.least, 0.0)[model.slice_of]
    needed = np.maximum(model.need[model.slice_of] * least[:, None], model.guaranteed)
    return np.asarray(np.minimum(needed / model.unit[model.node_of], 1.0))


class Order(Enum):
    """Which slice comes first."""

    LARGEST = "largest"
    """Of what has to be served of it."""
    DENSEST = "densest"
    """The heaviest for what all of it takes; those of which nothing has to be served too, where they fit."""


def first_fit(model: Model, usable: Bools, presence: Floats | None, order: Order) -> Bools | None:
    """[P]: what has to be served of each slice on one node, one after the other, each on the node with the most room or
    of the most value; None where some slice finds none.
    """
    left = model.free.copy()
    present = np.zeros(model.pairs, dtype=bool)
    size = (model.need / np.maximum(model.free.sum(axis=0), SHORT)).max(axis=1)
    first = size * model.least if order is Order.LARGEST else model.weight / np.maximum(size, SHORT)
    for which in np.argsort(-first, kind="stable"):
        least = model.least[which]
        if least <= 0 and order is Order.LARGEST:
            continue
        pairs = np.flatnonzero(usable & (model.slice_of == which) & (model.most >= least))
        taken = np.maximum(model.need[which] * least, model.guaranteed[pairs])
        after = left[model.node_of[pairs]] - taken
        fitting = np.flatnonzero((after >= 0).all(axis=1))
        if not len(fitting):
            if least > 0:
                return None
            continue
        room = (after / model.capacity[model.node_of[pairs]].clip(SHORT)).min(axis=1)
        rank = room if presence is None else presence[pairs]
        chosen = fitting[np.argmax(rank[fitting])]
        present[pairs[chosen]] = True
        left[model.node_of[pairs[chosen]]] = after[chosen]
    return present


def program_of(
    model: Model, wanted: Wanted, pairs: Ints, presence: Floats, *, whole: bool = False
) -> tuple[Program, Ints, Ints, Ints, Rows]:
    """The program over some pairs, its switches [pairs], its bends' columns, which of the model's they are, its rows.

    Args:
        model: The problem.
        wanted: What is to be large.
        pairs: The pairs.
        presence: [P]: what the presence of each pair adds.
        whole: Whether switches are 0 or 1.
    """
    chosen = np.zeros(model.pairs, dtype=bool)
    chosen[pairs] = True
    place = np.zeros(model.pairs, dtype=np.int64)
    place[pairs] = np.arange(len(pairs))
    bends = model.columns_of(chosen)
    program, rows = first_rows(model, wanted)
    costs, _, places, values = entries(model, wanted, bends, rows, present=np.full(len(bends), -1))
    columns = program.add_columns(len(bends), 0.0, INF, costs)
    kept = places >= 0
    program.put(places[kept], np.repeat(columns, len(places) // max(1, len(bends)))[kept], values[kept])
    switches = program.add_columns(len(pairs), 0.0, 1.0, presence[pairs], whole=whole)
    program.put(rows.present[model.slice_of[pairs]], switches, 1.0)
    both = program.add_rows(len(pairs), 0.0, 0.0)
    program.put(both, switches, -1.0)
    program.put(both[place[model.pair_of[bends]]], columns, 1.0)
    return program, switches, columns, bends, rows
