"""Can what is left still fit into the unused nodes? A bound that looks at room alone, never at links.

The embedding, the layers and the head are L+2 items in a row, each with a weight; a node holds at most the
heaviest run that fits it. If the nodes' heaviest runs together weigh less than the items that are left,
nothing fits. Any weights give a valid argument; several are tried and the sharpest kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.scheduler.costs import Costs, Floats, Ints, Windows

HEAVY_SHARES = (0.0, 0.5, 0.8, 0.95)
"""Layers at or above this share of the heaviest count as one, lighter ones as nothing: a run that profits
from the few light layers must not be taken for one that every node can have."""
ROUNDING = 1e-9
"""Share of the whole by which the argument errs on the safe side."""

Bits = npt.NDArray[np.bool_]


class Packing:
    """The packing argument for one instance and one cap on compute."""

    def __init__(self, costs: Costs, fits: Windows, stages: int | None) -> None:
        self.layers = costs.layers
        self.count = costs.memory_bytes.size
        self.most = stages or min(self.count, self.layers)
        count, last = self.count, self.layers
        low = np.zeros((count, last + 3), dtype=np.int64)
        index = np.arange(last + 1)
        low[:, 1 : last + 2] = fits.low + 1
        low[:, 1 : last + 2][(index <= fits.first_stop[:, None]) & (fits.first_stop[:, None] > 0)] = 0
        low[:, last + 2] = np.where(fits.last_start < last, fits.last_start + 1, last + 2)
        self._low = low
        self._choose(costs)

    def _choose(self, costs: Costs) -> None:
        """Of some sensible weights keep those under which the nodes hold least."""
        items, best = self.layers + 2, np.inf
        for weight in _weights(costs):
            total = np.concatenate([[0.0], np.cumsum(weight * (items / weight.sum()))])
            gain = total - total[self._low]
            room = float(np.sort(gain.max(axis=1))[-self.most :].sum())
            if room < best:
                best, self._total = room, total
        starts = np.arange(items + 1)
        stops = np.stack([np.searchsorted(row, starts, "right") - 1 for row in self._low])
        hold = self._total[np.maximum(stops, starts)] - self._total
        # Position j of a label is item j+1: the embedding lies before it.
        self.hold: Floats = np.maximum.accumulate(hold[:, ::-1], axis=1)[:, ::-1][:, 1 : self.layers + 2]
        self._need: Floats = (items - self._total)[1 : self.layers + 2] - items * ROUNDING
        self.possible: bool = best >= items * (1 - ROUNDING)

    def unused(self, mask: Ints) -> Floats:
        """[R, N]: 1.0 for each node outside the set."""
        return np.asarray((((mask[:, None] >> np.arange(self.count)) & 1) == 0).astype(np.float64))

    def room(self, mask: Ints, left: int) -> Floats:
        """[R]: the most weight that `left` unused nodes hold."""
        free = self.unused(mask) * self.hold[:, 0]
        return np.asarray(np.sort(free, axis=1)[:, -left:].sum(axis=1))

    def may_finish(self, mask: Ints, left: int) -> Bits:
        """[R, J]: whether what lies behind layer j fits into at most `left` unused nodes."""
        fits: Bits = self.unused(mask) @ self.hold >= self._need
        if left < self.count - 1:
            fits &= self.room(mask, left)[:, None] >= self._need
        return fits

    def slack(self, mask: Ints, layer: Ints, left: int) -> Floats:
        """[R]: room left over once everything behind `layer` is placed; larger is easier."""
        return np.asarray(self.room(mask, left) - self._need[layer])


def _weights(costs: Costs) -> list[Floats]:
    """[L+2] each: counts, heavy layers only, mean compute and bytes; with and without embedding and head."""
    rate = np.diff(costs.compute_s, axis=1)
    whole = costs.compute_s[:, -1]
    scale = np.where(whole > 0, whole, 1.0)
    mean = (rate / scale[:, None]).mean(axis=0)
    ends = float((costs.embed_s / scale).mean()), float((costs.head_s / scale).mean())
    found = [(mean >= share * mean.max()).astype(np.float64) for share in HEAVY_SHARES]
    found = [np.concatenate([[0.0], weight, [0.0]]) for weight in found]
    size = np.diff(costs.layer_bytes).astype(np.float64)
    found.append(np.concatenate([[ends[0]], mean, [ends[1]]]))
    found.append(np.concatenate([[costs.embed_bytes], size, [costs.head_bytes]]).astype(np.float64))
    heavy = found[2].copy()
    heavy[-1] = min(1.0, ends[1] / max(float(np.median(mean)), 1e-300))
    found.append(heavy)
    return [weight for weight in found if weight.sum() > 0]
