"""Where a curve along moving points is above zero: signs on a grid, bounded bisection between, extrema looked into.

Between two grid points, position and velocity give a cubic Hermite curve. At a step of 30 s its error is some 2 cm in a
low orbit (r w^4 h^4 / 384 with r = 7000 km, w = 0.0011 rad/s), which an edge turns into microseconds. A stretch whose
ends have one sign is looked into where the curve turns round inside it: that is how grazing passes, shorter than the
step, are found, and short gaps in the middle of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Curve = Callable[[Array, Array, Ids], tuple[Array, Array]]
"""(positions (n, d), velocities (n, d), stretch numbers (n,)) to the values (n,) and their rates per second (n,)."""

BISECTIONS = 25
"""Halvings of a stretch: 30 s / 2^25 is a microsecond."""

EXTREMUM_MARGIN = 0.05
"""How far below zero an apex may seem by a first estimate and still be looked into, in the curve's own unit."""

TOUCH_S = 1e-6
"""Windows closer than this are one, and windows shorter than this are none, in seconds."""


@dataclass(frozen=True)
class Stretches:
    """Grid intervals: the state at both ends of each."""

    start_s: Array
    """Left ends, shape (n,), seconds."""
    end_s: Array
    """Right ends, shape (n,), seconds."""
    left: tuple[Array, Array]
    """Positions and velocities at the left ends, shapes (n, d)."""
    right: tuple[Array, Array]
    """Positions and velocities at the right ends, shapes (n, d)."""

    def at(self, ids: Ids, at_s: Array) -> tuple[Array, Array]:
        """Cubic Hermite positions and velocities of stretches `ids` at times, shapes (len(ids), d)."""
        width = (self.end_s[ids] - self.start_s[ids])[:, None]
        x = (at_s - self.start_s[ids])[:, None] / width
        p0, v0 = self.left[0][ids], self.left[1][ids] * width
        p1, v1 = self.right[0][ids], self.right[1][ids] * width
        rise = p1 - p0
        square = 3 * rise - 2 * v0 - v1
        cube = v0 + v1 - 2 * rise
        return p0 + x * (v0 + x * (square + x * cube)), (v0 + x * (2 * square + 3 * x * cube)) / width


@dataclass(frozen=True)
class Pieces:
    """Parts of stretches on which the curve is above zero."""

    ids: Ids
    """The stretch of each piece, shape (m,)."""
    start_s: Array
    """Where it begins, shape (m,)."""
    end_s: Array
    """Where it ends, shape (m,)."""
    peak_s: Array
    """Where the curve is highest on it, shape (m,)."""
    peak: Array
    """The curve there, shape (m,)."""
    slope_start: Array
    """The curve's rate at the beginning, where that is a root; else not a number."""
    slope_end: Array
    """The curve's rate at the end, where that is a root; else not a number."""


def above_zero(stretches: Stretches, curve: Curve, values: tuple[Array, ...]) -> Pieces:
    """The parts of stretches on which a curve is above zero.

    Args:
        stretches: The grid.
        curve: What is asked about.
        values: The curve and its rate at the left ends, then at the right ends, each of shape (n,).
    """
    g0, _, g1, _ = values
    up0, up1 = g0 > 0, g1 > 0
    apexes = _extrema(stretches, curve, values, falling=False)
    dips = _extrema(stretches, curve, values, falling=True)
    split = np.zeros(len(g0), dtype=bool)
    found: list[tuple[Array, ...]] = []

    def add(ids: Ids, start: tuple[Array, Array], end: tuple[Array, Array], peak: tuple[Array, Array]) -> None:
        found.append((ids.astype(np.float64), start[0], end[0], *peak, start[1], end[1]))

    def ends(ids: Ids) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        none = np.full(len(ids), np.nan)
        return (stretches.start_s[ids], none), (stretches.end_s[ids], none)

    # Hidden inside one stretch: a pass whose apex alone is above, a gap whose bottom alone is below.
    ids, at_s, value = apexes
    hidden = ~up0[ids] & ~up1[ids] & (value > 0)
    ids, at_s, value = ids[hidden], at_s[hidden], value[hidden]
    begin, finish = ends(ids)
    add(ids, _roots(stretches, curve, ids, begin[0], at_s), _roots(stretches, curve, ids, at_s, finish[0]),
        (at_s, value))  # fmt: skip
    ids, at_s, value = dips
    hidden = up0[ids] & up1[ids] & (value < 0)
    ids, at_s = ids[hidden], at_s[hidden]
    split[ids] = True
    begin, finish = ends(ids)
    add(ids, begin, _roots(stretches, curve, ids, begin[0], at_s), (begin[0], g0[ids]))
    add(ids, _roots(stretches, curve, ids, at_s, finish[0]), finish, (finish[0], g1[ids]))

    inner = np.full(len(g0), -np.inf)
    inner_s = stretches.start_s.copy()
    ids, at_s, value = apexes
    inner[ids], inner_s[ids] = value, at_s
    peaks = np.maximum(np.maximum(g0, g1), inner)
    peaks_s = np.where(inner >= peaks, inner_s, np.where(g0 >= g1, stretches.start_s, stretches.end_s))
    whole = np.flatnonzero(up0 & up1 & ~split)
    add(whole, *ends(whole), (peaks_s[whole], peaks[whole]))
    rising = np.flatnonzero(~up0 & up1)
    begin, finish = ends(rising)
    add(rising, _roots(stretches, curve, rising, begin[0], finish[0]), finish, (peaks_s[rising], peaks[rising]))
    setting = np.flatnonzero(up0 & ~up1)
    begin, finish = ends(setting)
    add(setting, begin, _roots(stretches, curve, setting, begin[0], finish[0]), (peaks_s[setting], peaks[setting]))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Pieces(columns[0].astype(np.int64), *columns[1:])


def _extrema(
    stretches: Stretches, curve: Curve, values: tuple[Array, ...], *, falling: bool
) -> tuple[Ids, Array, Array]:
    """Stretches with a maximum (or, `falling`, a minimum) inside that matters: its time and value."""
    sign = -1.0 if falling else 1.0
    g0, d0, g1, d1 = (sign * each for each in values)
    turning = np.flatnonzero((d0 > 0) & (d1 < 0))
    width = stretches.end_s[turning] - stretches.start_s[turning]
    # The tangents at both ends meet above the apex of a curve that bends one way: a bound that costs nothing.
    bound = np.minimum(g0[turning] + d0[turning] * width, g1[turning] - d1[turning] * width)
    matters = bound > (0.0 if falling else -EXTREMUM_MARGIN)
    ids = turning[matters]
    low, high = stretches.start_s[ids].copy(), stretches.end_s[ids].copy()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rate = sign * curve(*stretches.at(ids, middle), ids)[1]
        low, high = np.where(rate > 0, middle, low), np.where(rate > 0, high, middle)
    at_s = (low + high) / 2
    return ids, at_s, curve(*stretches.at(ids, at_s), ids)[0]


def _roots(stretches: Stretches, curve: Curve, ids: Ids, low: Array, high: Array) -> tuple[Array, Array]:
    """The one sign change between `low` and `high` of each stretch, and the curve's rate there."""
    below = curve(*stretches.at(ids, low), ids)[0] <= 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = (curve(*stretches.at(ids, middle), ids)[0] <= 0) == below
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    at_s = (low + high) / 2
    return at_s, curve(*stretches.at(ids, at_s), ids)[1]


@dataclass(frozen=True)
class Windows:
    """Spans of time per subject, in order of subject, then time."""

    subject: Ids
    """Whose span it is, shape (k,)."""
    start_s: Array
    """Where it begins, shape (k,)."""
    end_s: Array
    """Where it ends, shape (k,)."""
    peak_s: Array
    """Where its curve is highest, shape (k,)."""
    peak: Array
    """The curve there, shape (k,)."""

    @staticmethod
    def none() -> Windows:
        """No windows."""
        empty = np.zeros(0)
        return Windows(np.zeros(0, dtype=np.int64), empty, empty, empty, empty)


def join(parts: list[Windows]) -> Windows:
    """Spans that touch become one; the highest peak is kept."""
    if not parts:
        return Windows.none()
    subject = np.concatenate([part.subject for part in parts])
    start, end = np.concatenate([part.start_s for part in parts]), np.concatenate([part.end_s for part in parts])
    peak_s, peak = np.concatenate([part.peak_s for part in parts]), np.concatenate([part.peak for part in parts])
    order = np.lexsort((start, subject))
    subject, start, end, peak_s, peak = (each[order] for each in (subject, start, end, peak_s, peak))
    if not len(subject):
        return Windows.none()
    fresh = np.ones(len(subject), dtype=bool)
    fresh[1:] = (subject[1:] != subject[:-1]) | (start[1:] > end[:-1] + TOUCH_S)
    heads = np.flatnonzero(fresh)
    group = np.cumsum(fresh) - 1
    by_peak = np.lexsort((peak, group))
    best = by_peak[np.append(heads[1:], len(subject)) - 1]
    last = np.maximum.reduceat(end, heads)
    long_enough = last - start[heads] > TOUCH_S
    return Windows(*(each[long_enough] for each in (subject[heads], start[heads], last, peak_s[best], peak[best])))


def intersect(first: Windows, second: Windows) -> Windows:
    """Where both are open; the peak is that of the first, brought into the span."""
    parts = []
    shared = np.intersect1d(first.subject, second.subject)
    for subject in shared:
        mine = slice(*np.searchsorted(first.subject, [subject, subject + 1]))
        theirs = slice(*np.searchsorted(second.subject, [subject, subject + 1]))
        start = np.maximum.outer(first.start_s[mine], second.start_s[theirs])
        end = np.minimum.outer(first.end_s[mine], second.end_s[theirs])
        rows, columns = np.nonzero(end > start)
        begin, finish = start[rows, columns], end[rows, columns]
        peak_s = np.clip(first.peak_s[mine][rows], begin, finish)
        parts.append(Windows(np.full(len(rows), subject), begin, finish, peak_s, first.peak[mine][rows]))
    return join(parts)
