"""The smallest bottleneck that any pipeline reaches: a search over thresholds.

Every possible bottleneck is a stage's compute or a link's occupancy, so the candidates are finite. For one
threshold the question is only whether some ring of distinct nodes exists whose stages and crossings all stay
below it; that is answered by labels (first node, set of nodes, last node) with one bit per layer reached,
cut by a packing argument: what is left must fit into what the unused nodes can hold at most, counted in
layers and in mean compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orbitmesh.errors import InternalError
from services.scheduler.costs import TIE_REL, Costs, Floats, Ints, Windows, windows
from services.scheduler.planner_packing import Packing

BEAM_LABELS = 48
"""Labels kept per stage while a threshold that works is looked for."""
WIDE_LABELS = 512
"""Labels kept per stage once a proof is out of reach."""
REACH_BUDGET = 40_000
"""Labels that one exact answer for one threshold may keep before it is given up as unknown."""

Bits = npt.NDArray[np.bool_]
Split = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Threshold:
    """The outcome: `lower_s == value_s` where it is proven."""

    value_s: float
    """The smallest bottleneck known to be reachable, in seconds; `inf` where none is."""
    lower_s: float
    """No pipeline has a smaller bottleneck, in seconds."""
    proven: bool
    """Whether every smaller candidate was refuted."""
    split: Split | None
    """Nodes and bounds of one split that reaches it."""


def candidates(costs: Costs) -> Floats:
    """Every value that a bottleneck can take, sorted, in seconds."""
    fits, last = windows(costs), costs.layers
    values = [costs.occupy_s[np.isfinite(costs.occupy_s)]]
    index = np.arange(last + 1)
    for n in range(costs.memory_bytes.size):
        spent = costs.compute_s[n]
        inside = (index[:, None] >= fits.low[n][None, :]) & (index[:, None] < index[None, :])
        values.append((spent[None, :] - spent[:, None])[inside])
        values.append(spent[1 : fits.first_stop[n] + 1] + costs.embed_s[n])
        values.append(spent[last] - spent[fits.last_start[n] : last] + costs.head_s[n])
        if fits.alone[n]:
            values.append(np.array([spent[last] + costs.embed_s[n] + costs.head_s[n]]))
    return np.unique(np.concatenate(values))


def smallest(costs: Costs, stages: int | None) -> Threshold:
    """Bisect the candidates: first by packing alone, then by a beam from above, then exactly in between."""
    values = candidates(costs)
    splits: dict[int, Split | None] = {}
    unknown = False

    def works(at: int, width: int | None) -> bool:
        nonlocal unknown
        question = Question(costs, float(values[at]), stages)
        if width is None and unknown:
            width = (
                WIDE_LABELS  # One open threshold already rules the proof out: only look for better, cheaply.
            )
        known = question.answer(width)
        unknown = unknown or (known is None and width is None)
        if known:
            splits[at] = question.split
        return known is True

    low = _bisect(0, values.size, lambda at: Question(costs, float(values[at]), stages).packs())
    if low == values.size:
        return Threshold(np.inf, np.inf, True, None)
    top = _bisect(low, values.size, lambda at: works(at, BEAM_LABELS))
    found = _bisect(low, top, lambda at: works(at, None))
    if found == values.size:
        return Threshold(np.inf, float(values[low]) if unknown else np.inf, not unknown, None)
    return Threshold(
        float(values[found]), float(values[low if unknown else found]), not unknown, splits[found]
    )


def _bisect(low: int, high: int, works: Callable[[int], bool]) -> int:
    """The first index in [low, high) that works, `high` if none; tries near `low` first, where the answer
    mostly is."""
    step = 1
    while low < high:
        at = min(low + step - 1, (low + high) // 2) if step < high - low else (low + high) // 2
        if works(at):
            high, step = at, 1 << 62
        else:
            low, step = at + 1, step * 4
    return low


@dataclass(frozen=True, eq=False)
class _Reach:
    """Labels of one stage count."""

    first: Ints
    mask: Ints
    last: Ints
    done: Bits
    """[R, J]: whether layers [0, j) can be done."""

    def pick(self, rows: Ints) -> _Reach:
        """Only these labels."""
        return _Reach(self.first[rows], self.mask[rows], self.last[rows], self.done[rows])

    def furthest(self) -> Ints:
        """[R]: the largest layer reached."""
        return np.asarray(self.done.shape[1] - 1 - self.done[:, ::-1].argmax(axis=1))


class Question:
    """Does a ring exist whose stages and crossings all stay at or below the threshold?"""

    def __init__(self, costs: Costs, cap_s: float, stages: int | None) -> None:
        self.costs = costs
        self.fits: Windows = windows(costs, cap_s)
        self.stages = stages
        self.packing = Packing(costs, self.fits, stages)
        self.open: Bits = costs.occupy_s <= cap_s * (1 + TIE_REL)
        self.back: Bits = np.isfinite(costs.return_s)
        self.split: Split | None = None
        """Nodes and bounds of a split that works, once one is found."""
        links = self.packing.count * (self.packing.count - 1)
        self._last_matters = int(self.open.sum()) < links
        self._first_matters = int(self.back.sum()) < links

    def packs(self) -> bool:
        """The packing argument for the whole model; False refutes the threshold."""
        if self._alone():
            return True
        ends = (self.fits.first_stop > 0).any() and (self.fits.last_start < self.costs.layers).any()
        return bool(ends) and self.packing.most > 1 and self.packing.possible

    def _alone(self) -> bool:
        return self.stages in (None, 1) and bool(self.fits.alone.any())

    def answer(self, width: int | None) -> bool | None:
        """True, False, or None for unknown (a beam of `width` labels that found nothing, or the budget
        spent)."""
        if not self.packs():
            return False
        if self._alone():
            self.split = (int(self.fits.alone.argmax()),), (0, self.costs.layers)
            return True
        first = np.flatnonzero(self.fits.first_stop > 0)
        index = np.arange(self.costs.layers + 1)
        done = (index > 0) & (index <= self.fits.first_stop[first][:, None]) & (index < self.costs.layers)
        labels, levels, dropped, kept = _Reach(first, np.int64(1) << first, first, done), [], False, 0
        for left in range(self.packing.most - 1, 0, -1):
            labels.done[~self.packing.may_finish(labels.mask, left)] = False
            labels = labels.pick(np.flatnonzero(labels.done.any(axis=1)))
            kept += labels.first.size
            if not labels.first.size:
                break
            if width is not None and labels.first.size > width:
                slack = self.packing.slack(labels.mask, labels.furthest(), left)
                kept_rows: Ints = np.argpartition(-slack, width)[:width]
                labels, dropped = labels.pick(kept_rows), True
            elif width is None and kept > REACH_BUDGET:
                return None
            levels.append(labels)
            if (self.stages is None or left == 1) and self._close(levels):
                return True
            if left > 1:
                labels = self._grow(labels)
        return None if dropped else False

    def _pairs(self, labels: _Reach) -> tuple[Ints, Ints]:
        rows, nodes = np.nonzero((self.packing.unused(labels.mask) > 0) & self.open[labels.last])
        return rows, nodes

    def _close(self, levels: list[_Reach]) -> bool:
        labels = levels[-1]
        rows, nodes = self._pairs(labels)
        ok = (labels.furthest()[rows] >= self.fits.last_start[nodes]) & self.back[nodes, labels.first[rows]]
        if not ok.any():
            return False
        at = int(ok.argmax())
        row, stop = int(rows[at]), int(labels.furthest()[rows[at]])
        chain, bounds = [int(nodes[at])], [self.costs.layers, stop]
        for depth in range(len(levels) - 1, 0, -1):
            node, row, stop = self._before(levels[depth - 1], levels[depth], row, stop)
            chain.append(node)
            bounds.append(stop)
        chain.append(int(levels[0].last[row]))
        self.split = tuple(reversed(chain)), (0, *reversed(bounds))
        return True

    def _before(self, before: _Reach, here: _Reach, row: int, stop: int) -> tuple[int, int, int]:
        """The node of the stage that stops at `stop`, the label it grew from, and where it starts."""
        mask = int(here.mask[row])
        several = (n for n in range(self.packing.count) if mask >> n & 1)
        for node in several if not self._last_matters else (int(here.last[row]),):
            same = before.mask == (mask ^ (1 << node))
            if self._first_matters:
                same &= before.first == here.first[row]
            low = int(self.fits.low[node, stop])
            for at in np.flatnonzero(same & self.open[before.last, node]):
                starts = np.flatnonzero(before.done[at, low:stop])
                if starts.size:
                    return node, int(at), low + int(starts[-1])
        raise InternalError("a label without a predecessor; the planner's reach search is inconsistent")

    def _grow(self, labels: _Reach) -> _Reach:
        rows, nodes = self._pairs(labels)
        total = np.zeros((labels.done.shape[0], labels.done.shape[1] + 1), dtype=np.int32)
        np.cumsum(labels.done, axis=1, out=total[:, 1:])
        spread = total[rows]
        after = spread[:, :-1] > np.take_along_axis(spread, self.fits.low[nodes], axis=1)
        after[:, -1] = False
        keep = after.any(axis=1)
        rows, nodes, after = rows[keep], nodes[keep], after[keep]
        first, mask = labels.first[rows], labels.mask[rows] | (np.int64(1) << nodes)
        # Where every link may be used, who came first or last no longer matters to what can follow.
        count = self.packing.count
        key = mask * count + (first if self._first_matters else 0)
        key = key * count + (nodes if self._last_matters else 0)
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        if not starts.size:
            return _Reach(first, mask, nodes, after)
        head = order[starts]
        return _Reach(
            first[head], mask[head], nodes[head], np.logical_or.reduceat(after[order], starts, axis=0)
        )
