"""The exact search behind the planner: cheapest ring of distinct nodes that holds all layers.

Three parts share one recursion (a stage is a window minimum over its start, a crossing a minimum over nodes):

1. `complete`: the relaxed completion cost of every (stages left, node, first node, layer), without the rule
   that a node serves once. Node prices (Lagrange multipliers, set by subgradient steps on the rule) make it
   tight: with price p[n] for each visit, cost + sum(p) over visits - sum(p) over unused nodes never exceeds
   the true cost.
2. `Sweep`: forward labels (first node, set of nodes, last node), each a vector over layers done, merged by
   minimum and cut wherever label + completion reaches the incumbent. With every label kept it is exact
   (Held-Karp with bounds); with the best few kept it is a beam that finds incumbents.
3. `solve`: single stage, then a beam, then prices, then the exact sweep, stopping as soon as bound meets
   incumbent.

The worst case is exponential in nodes; `LABEL_BUDGET` ends it, and the answer then says that it is not
proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from services.scheduler.costs import Costs, Floats, Ints, Windows, price
from services.scheduler.planner_packing import Packing

LABEL_BUDGET = 150_000
"""Labels (first node, node set, last node) that one exact sweep may keep before it gives up proving."""
BEAM_WIDTHS = (16, 128, 1024)
"""Labels kept per stage by the sweeps that look for incumbents."""
PRICE_ROUNDS = 2
"""Rounds of price steps before a sweep; each looks at the first node with the weakest bound."""
PRICE_STEPS = 12
"""Subgradient steps on the node prices per round."""
CHUNK_PAIRS = 8192
"""(label, next node) pairs expanded at once, which bounds the sweep's working memory."""
CLOSE_REL = 1e-12
"""Improvements below this share of the incumbent are rounding, not improvements."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the search knows at its end."""

    nodes: tuple[int, ...]
    """The node of each stage; empty where nothing feasible was found."""
    bounds: tuple[int, ...]
    """Stage k holds layers [bounds[k], bounds[k+1])."""
    value_s: float
    """Token time of the split in seconds; `inf` where nothing was found."""
    lower_s: float
    """No feasible split is faster than this, in seconds."""
    proven: bool
    """Whether the split is optimal (or, where none was found, the instance infeasible)."""


@dataclass(frozen=True, eq=False)
class _RangeMin:
    """Minima over index ranges, the same ranges for every row of one node; a sparse table of power-of-two
    spans."""

    levels: int
    """Levels of the table."""
    left: Ints
    """[N, J]: flat (level, index) of the span that starts the range."""
    right: Ints
    """[N, J]: flat (level, index) of the span that ends it."""
    empty: npt.NDArray[np.bool_]
    """[N, J]: whether the range is empty."""

    @classmethod
    def over(cls, start: Ints, stop: Ints) -> _RangeMin:
        """Ranges [start, stop) of [N, J] each."""
        width = stop - start
        level = np.zeros_like(width)
        for power in range(1, int(width.max(initial=1)).bit_length()):
            level[width >= (1 << power)] = power
        empty = width <= 0
        columns = start.shape[1]
        left = level * columns + np.where(empty, 0, start)
        right = level * columns + np.where(empty, 0, stop - (1 << level))
        return cls(int(level.max(initial=0)) + 1, left, right, empty)

    def __call__(self, values: Floats, node: Ints) -> Floats:
        """Minima of `values` [Q, J], row q over the ranges of `node[q]`; `inf` over an empty range."""
        rows, columns = values.shape
        table = np.empty((rows, self.levels, columns))
        table[:, 0] = values
        for level in range(1, self.levels):
            half, valid = 1 << (level - 1), columns - (1 << level) + 1
            below = table[:, level - 1]
            np.minimum(below[:, :valid], below[:, half : half + valid], out=table[:, level, :valid])
        flat = table.reshape(-1)
        offset = (np.arange(rows) * (self.levels * columns))[:, None]
        left, right = self.left[node], self.right[node]
        left += offset
        right += offset
        found: Floats = flat.take(left)
        np.minimum(found, flat.take(right), out=found)
        found[self.empty[node]] = np.inf
        return found


@dataclass(frozen=True, eq=False)
class Problem:
    """One latency problem: windows already hold memory and any bottleneck cap; `cross_s` is `inf` where
    barred."""

    costs: Costs
    """The instance."""
    fits: Windows
    """Runs of layers each node may hold."""
    cross_s: Floats
    """[N, N]: seconds of a crossing."""
    stages: int | None
    """The exact number of stages, or any."""
    forward: _RangeMin = field(init=False)
    backward: _RangeMin = field(init=False)
    close_s: Floats = field(init=False)
    packing: Packing = field(init=False)

    def __post_init__(self) -> None:
        low, last = self.fits.low, self.costs.layers
        index = np.broadcast_to(np.arange(last + 1), low.shape)
        stop = np.stack([np.searchsorted(row, np.arange(last + 1), "right") for row in low])
        spent = self.costs.compute_s
        close = spent[:, -1:] - spent + self.costs.head_s[:, None]
        close[index < self.fits.last_start[:, None]] = np.inf
        close[:, last] = np.inf
        object.__setattr__(self, "forward", _RangeMin.over(low, index))
        object.__setattr__(self, "backward", _RangeMin.over(index + 1, np.minimum(stop, last)))
        object.__setattr__(self, "close_s", close)
        object.__setattr__(self, "packing", Packing(self.costs, self.fits, self.stages))

    @property
    def most(self) -> int:
        """The largest number of stages."""
        return self.stages or min(self.costs.memory_bytes.size, self.costs.layers)


@dataclass(frozen=True, eq=False)
class Completion:
    """Relaxed cost of what is left, node prices included: a list over stages left."""

    enter: list[Floats]
    """[k][N, F, J]: about to start a stage on n at layer j, k stages left with this one."""
    leave: list[Floats]
    """[k][N, F, J]: done with a stage on n that stopped at j, k stages left after it."""
    firsts: Ints
    """[F]: the first nodes that the second axis stands for."""
    price: Floats
    """[N]: the price of a visit."""
    start: Floats
    """[F, J]: embedding and first stage up to j, `inf` where it does not fit."""
    lower: Floats
    """[F]: lower bound on any plan of two or more stages that starts at each first node."""


def complete(problem: Problem, firsts: Ints, price: Floats) -> Completion:
    """The relaxed backward recursion for the given first nodes and prices."""
    costs, cross = problem.costs, problem.cross_s
    count, columns = costs.compute_s.shape
    spent, slot = costs.compute_s[:, None, :], np.arange(firsts.size)
    close = problem.close_s[:, None, :] + costs.return_s[:, firsts][:, :, None] + price[:, None, None]
    close[firsts, slot] = np.inf
    owner = np.repeat(np.arange(count), firsts.size)
    barred = np.full_like(close, np.inf)
    enter, leave, left = [barred, close], [barred], problem.most - 1
    for k in range(1, left + 1):
        if k > 2 and enter[k] is enter[k - 1]:
            leave.append(leave[-1])
            enter.append(enter[k])
            continue
        out = _over_links(cross, enter[k])
        leave.append(out)
        if k == left:
            break
        stage = problem.backward((spent + out).reshape(-1, columns), owner).reshape(close.shape)
        stage += price[:, None, None] - spent
        stage[firsts, slot] = np.inf
        if problem.stages is None:
            np.minimum(stage, enter[k], out=stage)
            if np.array_equal(stage, enter[k]):
                stage = enter[k]
        enter.append(stage)
    index = np.arange(columns)
    start = costs.compute_s[firsts] + costs.embed_s[firsts][:, None]
    start[(index < 1) | (index >= columns - 1) | (index > problem.fits.first_stop[firsts][:, None])] = np.inf
    lower = (start + leave[left][firsts, slot]).min(axis=1) - (price.sum() - price[firsts])
    return Completion(enter, leave, firsts, price, start, lower)


def _over_links(cross: Floats, enter: Floats) -> Floats:
    """min over m of cross[n, m] + enter[m]: [N, F, J]."""
    if enter.shape[1] == 1:
        return np.asarray((cross[:, :, None, None] + enter[None]).min(axis=1))
    out, work = np.full_like(enter, np.inf), np.empty_like(enter)
    for m in range(cross.shape[0]):
        np.add(cross[:, m, None, None], enter[m], out=work)
        np.minimum(out, work, out=out)
    return out


def relaxed_path(problem: Problem, done: Completion, slot: int) -> list[int]:
    """The nodes of the relaxed optimum that starts at `done.firsts[slot]`; a node may appear more than
    once."""
    costs, left = problem.costs, problem.most - 1
    node = int(done.firsts[slot])
    first, path = node, [node]
    stop = int(np.argmin(done.start[slot] + done.leave[left][node, slot]))
    while True:
        node = int(np.argmin(problem.cross_s[node] + done.enter[left][:, slot, stop]))
        path.append(node)
        close = problem.close_s[node, stop] + costs.return_s[node, first] + done.price[node]
        if left == 1 or close <= done.enter[left][node, slot, stop]:
            return path
        left -= 1
        reach = int(np.searchsorted(problem.fits.low[node], stop, "right"))
        ahead = costs.compute_s[node] + done.leave[left][node, slot]
        stop = stop + 1 + int(np.argmin(ahead[stop + 1 : min(reach, costs.layers)]))


@dataclass(eq=False)
class _Labels:
    """Labels of one stage count: R of them."""

    first: Ints
    mask: Ints
    last: Ints
    spent: Floats
    """[R, J]: least seconds with layers [0, j) done."""


class Sweep:
    """Forward labels against completion bounds; remembers the best split over several runs."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.value_s = math.inf
        self.nodes: tuple[int, ...] = ()
        self.bounds: tuple[int, ...] = ()
        alone = np.flatnonzero(problem.fits.alone)
        if problem.stages in (None, 1) and alone.size:
            costs = problem.costs
            seconds = costs.compute_s[:, -1] + costs.embed_s + costs.head_s
            node = int(alone[np.argmin(seconds[alone])])
            self.value_s, self.nodes, self.bounds = float(seconds[node]), (node,), (0, costs.layers)

    def run(self, done: Completion, width: int | None) -> bool:
        """One pass; with a width it keeps only that many labels per stage. True if nothing promising was
        dropped."""
        problem, whole = self.problem, True
        slot_of = np.full(problem.costs.memory_bytes.size, -1)
        slot_of[done.firsts] = np.arange(done.firsts.size)
        unused = float(done.price.sum())
        labels = _Labels(done.firsts, np.int64(1) << done.firsts, done.firsts, done.start.copy())
        labels, _ = self._prune(labels, done, slot_of, unused - done.price[done.firsts], problem.most - 1)
        levels, kept = [labels], labels.first.size
        while labels.first.size and len(levels) < problem.most:
            labels, score = self._expand(levels, done, slot_of)
            if width is not None and labels.first.size > width:
                best = np.argpartition(score, width)[:width]
                labels = _Labels(labels.first[best], labels.mask[best], labels.last[best], labels.spent[best])
                whole = False
            levels.append(labels)
            kept += labels.first.size
            if kept > LABEL_BUDGET:
                return False
        return whole

    def offer(self, nodes: tuple[int, ...], bounds: tuple[int, ...]) -> None:
        """Take a feasible split as the incumbent if it is better than what is known."""
        _, latency = price(self.problem.costs, np.array([nodes]), np.array([bounds]))
        if latency[0] < self.value_s:
            self.value_s, self.nodes, self.bounds = float(latency[0]), nodes, bounds

    @property
    def limit_s(self) -> float:
        """Only what is cheaper than this is worth looking at."""
        return self.value_s * (1 - CLOSE_REL) if self.value_s < math.inf else math.inf

    def _unused(self, done: Completion, mask: Ints) -> Floats:
        bits = (mask[:, None] >> np.arange(done.price.size)) & 1
        return np.asarray((1 - bits) @ done.price)

    def _prune(
        self, labels: _Labels, done: Completion, slot_of: Ints, unused: Floats, left: int
    ) -> tuple[_Labels, Floats]:
        """Drop what cannot beat the incumbent; also each survivor's bound."""
        total = labels.spent + done.leave[left][labels.last, slot_of[labels.first]] - unused[:, None]
        total[~self.problem.packing.may_finish(labels.mask, left)] = np.inf
        labels.spent[~(total < self.limit_s)] = np.inf
        score = total.min(axis=1)
        keep = score < self.limit_s
        return _Labels(labels.first[keep], labels.mask[keep], labels.last[keep], labels.spent[keep]), score[
            keep
        ]

    def _expand(self, levels: list[_Labels], done: Completion, slot_of: Ints) -> tuple[_Labels, Floats]:
        problem, labels = self.problem, levels[-1]
        left = problem.most - len(levels)
        count = problem.costs.memory_bytes.size
        free = ((labels.mask[:, None] >> np.arange(count)) & 1) == 0
        rows, nodes = np.nonzero(free & np.isfinite(problem.cross_s[labels.last]))
        unused = self._unused(done, labels.mask)
        parts = []
        for at in range(0, rows.size, CHUNK_PAIRS):
            row, node = rows[at : at + CHUNK_PAIRS], nodes[at : at + CHUNK_PAIRS]
            parts.append(self._step(levels, row, node, done, slot_of, unused, left))
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            return _Labels(none, none, none, np.zeros((0, problem.costs.layers + 1))), np.zeros(0)
        merged = _merge(parts, count)
        return self._prune(merged, done, slot_of, self._unused(done, merged.mask), left - 1)

    def _step(
        self,
        levels: list[_Labels],
        row: Ints,
        node: Ints,
        done: Completion,
        slot_of: Ints,
        unused: Floats,
        left: int,
    ) -> _Labels:
        """Cross to `node` from label `row`, close the ring where that is allowed, and hold a middle stage
        there."""
        problem, labels = self.problem, levels[-1]
        costs = problem.costs
        ready = labels.spent[row] + problem.cross_s[labels.last[row], node][:, None]
        total = ready + done.enter[left][node, slot_of[labels.first[row]]] - unused[row][:, None]
        ready[~(total < self.limit_s)] = np.inf
        keep = np.isfinite(ready).any(axis=1)
        row, node, ready = row[keep], node[keep], ready[keep]
        first = labels.first[row]
        if row.size and (problem.stages is None or left == 1):
            closed = ready + problem.close_s[node]
            cut = closed.argmin(axis=1)
            value = closed[np.arange(row.size), cut] + costs.return_s[node, first]
            best = int(value.argmin())
            if value[best] < self.limit_s:
                self.value_s = float(value[best])
                self._trace(levels, int(row[best]), int(node[best]), int(cut[best]))
        if left == 1:
            row, node, first, ready = row[:0], node[:0], first[:0], ready[:0]
        spent = costs.compute_s[node]
        ready -= spent
        after = problem.forward(ready, node) + spent
        after[:, -1] = np.inf
        return _Labels(first, labels.mask[row] | (np.int64(1) << node), node, after)

    def _trace(self, levels: list[_Labels], row: int, node: int, stop: int) -> None:
        """Walk back from the closing stage on `node`, which starts at `stop`, and remember the whole
        split."""
        costs, cross = self.problem.costs, self.problem.cross_s
        nodes, bounds = [node], [costs.layers, stop]
        for depth in range(len(levels) - 1, -1, -1):
            labels = levels[depth]
            node, first, mask = int(labels.last[row]), int(labels.first[row]), int(labels.mask[row])
            nodes.append(node)
            if depth == 0:
                break
            before = levels[depth - 1]
            pick = np.flatnonzero((before.first == first) & (before.mask == (mask ^ (1 << node))))
            low = int(self.problem.fits.low[node, stop])
            spent = before.spent[pick, low:stop] + cross[before.last[pick], node][:, None]
            spent -= costs.compute_s[node, low:stop]
            best, start = np.unravel_index(int(spent.argmin()), spent.shape)
            row, stop = int(pick[best]), low + int(start)
            bounds.append(stop)
        self.nodes, self.bounds = tuple(reversed(nodes)), (0, *reversed(bounds))


def _merge(parts: list[_Labels], count: int) -> _Labels:
    """One label per (first, set, last): the cheapest at every layer."""
    first, mask, last = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "mask", "last")
    )
    spent = np.concatenate([part.spent for part in parts])
    if not first.size:
        return _Labels(first, mask, last, spent)
    key = (mask * count + first) * count + last
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    head = order[starts]
    return _Labels(first[head], mask[head], last[head], np.minimum.reduceat(spent[order], starts, axis=0))


def _tune(problem: Problem, sweep: Sweep, done: Completion) -> Completion:
    """Raise the bound with node prices: rounds of subgradient steps, each on the first node whose bound is
    weakest."""
    best = done
    for _ in range(PRICE_ROUNDS):
        weakest = int(np.argmin(done.lower))
        price = _ascend(problem, sweep, done, weakest)
        done = complete(problem, done.firsts, price)
        if float(done.lower.min()) > float(best.lower.min()):
            best = done
        if not float(best.lower.min()) < sweep.limit_s:
            break
    return best


def _ascend(problem: Problem, sweep: Sweep, done: Completion, slot: int) -> Floats:
    """Projected subgradient with Polyak steps towards the incumbent, for one first node; the best prices
    seen."""
    first = done.firsts[slot : slot + 1]
    price, best_s, best = done.price.copy(), -math.inf, done.price
    scale, stale = 1.0, 0
    for _ in range(PRICE_STEPS):
        one = complete(problem, first, price)
        lower = float(one.lower[0])
        stale += 1
        if lower > best_s:
            best_s, best, stale = lower, price, 0
        if not lower < sweep.limit_s or lower == math.inf:
            break
        if stale >= 3:
            scale, stale = scale / 2, 0
        visits = np.bincount(relaxed_path(problem, one, 0), minlength=price.size) - 1.0
        visits[first] = 0.0
        visits[(price <= 0) & (visits < 0)] = 0.0
        square = float(visits @ visits)
        if square == 0:
            break
        goal = sweep.value_s if sweep.value_s < math.inf else lower * 1.1
        price = np.maximum(price + scale * (goal - lower) / square * visits, 0.0)
    return best


def solve(problem: Problem, start: tuple[tuple[int, ...], tuple[int, ...]] | None = None) -> Found:
    """The fastest ring; exact unless `LABEL_BUDGET` runs out, which `Found.proven` tells.

    Args:
        problem: What to solve.
        start: Nodes and bounds of a split that is known to be feasible, as the first incumbent.
    """
    sweep = Sweep(problem)
    if start is not None:
        sweep.offer(*start)
    firsts = np.flatnonzero(problem.fits.first_stop > 0)
    if problem.most == 1 or not firsts.size:
        return _found(sweep, sweep.value_s, proven=True)
    done = complete(problem, firsts, np.zeros(problem.costs.memory_bytes.size))
    lower = float(done.lower.min())
    if not lower < sweep.limit_s or lower == math.inf:
        return _found(sweep, sweep.value_s, proven=True)
    whole = sweep.run(done, BEAM_WIDTHS[0])
    for width in (*BEAM_WIDTHS[1:], None):
        if whole or not lower < sweep.limit_s:
            return _found(sweep, sweep.value_s, proven=True)
        done = complete(problem, done.firsts[done.lower < sweep.limit_s], done.price)
        done = _tune(problem, sweep, done)
        lower = max(lower, float(done.lower.min()))
        whole = sweep.run(done, width)
    proven = whole or not lower < sweep.limit_s
    return _found(sweep, sweep.value_s if proven else lower, proven=proven)


def _found(sweep: Sweep, lower_s: float, *, proven: bool) -> Found:
    return Found(sweep.nodes, sweep.bounds, sweep.value_s, lower_s, proven)
