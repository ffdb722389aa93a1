"""When satellites stand above the masks of sites.

In three steps, each over arrays of (satellites x times):

1. A coarse grid of SGP4, four minutes for a low orbit, tells where a satellite may be near a site: the angle at the
   Earth's centre is compared with the widest at which the mask can be met, plus what satellite and Earth can turn in
   half a step. That is a bound, not a guess: what it leaves out cannot be seen.
2. What is left, a few per cent, is propagated on a grid of 30 s or less, and `curves` finds roots and apexes between.
3. Each edge is set right by one step of Newton's method on an exact propagation.

The curve is sin(elevation) - sin(mask) on the WGS 84 ellipsoid, without refraction. No clock, no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sgp4.api import Satrec, SatrecArray

from services.constellation import frames
from services.constellation.curves import Array, Curve, Ids, Stretches, Windows, above_zero, intersect, join

FINE_STEP_S = 30.0
"""The grid on which signs are looked at, in seconds."""

COARSE_STEPS = (1, 2, 4, 8, 16, 32)
"""Coarse steps that are used, in fine ones."""

COARSE_TURN_RAD = 0.3
"""The most that a satellite may turn in one coarse step, seen from the Earth's centre: 240 s for a low orbit."""

RATE_MARGIN = 1.05
"""Perturbations may make a satellite so much faster than its elements say."""

RADIUS_MARGIN = 1.01
"""Between grid points a satellite may be so much higher than on them."""

DEFLECTION_RAD = math.radians(0.2)
"""More than the angle between the ellipsoid's normal and the direction from the Earth's centre (at most 0.193 deg)."""

CHUNK_SATELLITES = 256
"""Satellites that are worked on at a time: bounds memory."""

CHUNK_NODES = 1024
"""Coarse times that are worked on at a time: bounds memory."""

NEWTON_LIMIT_S = 0.5
"""The furthest that the exact step may move an edge, in seconds; further means that the edge is not simple."""


@dataclass(frozen=True)
class Horizon:
    """A site and the elevation from which it counts."""

    latitude_deg: float
    """Geodetic latitude, degrees north."""
    longitude_deg: float
    """Longitude, degrees east."""
    altitude_m: float
    """Above the WGS 84 ellipsoid, in metres."""
    mask_deg: float
    """Lowest elevation that counts, in degrees."""
    range_m: float | None = None
    """The furthest that counts, in metres; None where the mask alone limits."""


@dataclass(frozen=True)
class Pass:
    """A satellite above a site's mask."""

    satellite: int
    """Its number in what was given."""
    site: int
    """Its number in what was given."""
    start_s: float
    """When it rises above the mask, mesh time in seconds."""
    end_s: float
    """When it sets below it."""
    peak_s: float
    """When it is highest within the pass."""
    max_elevation_deg: float
    """Its elevation then, in degrees."""
    truncated_start: bool
    """True where it was up before the span began."""
    truncated_end: bool
    """True where it is still up when the span ends."""


@dataclass(frozen=True)
class Passes:
    """What was found, and which satellites could not be followed to the end."""

    passes: tuple[Pass, ...]
    """By site, satellite and time."""
    lost: dict[int, tuple[float, int]]
    """Satellites that SGP4 gave up on: from when (mesh time), and its error code."""


@dataclass(frozen=True)
class _Grid:
    """The times of a chunk: fine points, every `stride`-th of them coarse."""

    times_s: Array
    jd: Array
    fraction: Array
    stride: int


class _Site:
    """What is asked again and again of one horizon."""

    def __init__(self, horizon: Horizon) -> None:
        place = (horizon.latitude_deg, horizon.longitude_deg)
        self.position_m = frames.geodetic_to_ecef(*place, horizon.altitude_m)
        self.up = frames.vertical(*place)
        self.radius_m = float(np.linalg.norm(self.position_m))
        self.direction = self.position_m / self.radius_m
        self.mask_rad = math.radians(horizon.mask_deg)
        self.sin_mask = math.sin(self.mask_rad)
        self.range_m = horizon.range_m

    def widest_rad(self, radius_m: Array) -> Array:
        """The largest angle at the Earth's centre at which a satellite of that radius can meet the mask."""
        mask = self.mask_rad - DEFLECTION_RAD
        return np.asarray(np.arccos(np.clip(self.radius_m * math.cos(mask) / radius_m, -1, 1)) - mask)

    def curves(self) -> tuple[Curve, ...]:
        """What must all be above zero: the elevation first."""
        return (self.elevation,) if self.range_m is None else (self.elevation, self.within_range)

    def within_range(self, position_m: Array, velocity_m_s: Array, _ids: Ids) -> tuple[Array, Array]:
        """1 - (distance / range)^2 and its rate per second, for Earth-fixed states of shape (n, 3)."""
        ray = position_m - self.position_m
        square = (self.range_m or math.inf) ** 2
        return 1 - np.einsum("nk,nk->n", ray, ray) / square, -2 * np.einsum("nk,nk->n", ray, velocity_m_s) / square

    def elevation(self, position_m: Array, velocity_m_s: Array, _ids: Ids) -> tuple[Array, Array]:
        """sin(elevation) - sin(mask) and its rate per second, for Earth-fixed states of shape (n, 3)."""
        ray = position_m - self.position_m
        distance = np.sqrt(np.einsum("nk,nk->n", ray, ray))
        height = ray @ self.up
        approach = np.einsum("nk,nk->n", ray, velocity_m_s) / distance
        return height / distance - self.sin_mask, (velocity_m_s @ self.up - height / distance * approach) / distance


def find_passes(satellites: Sequence[Satrec], horizons: Sequence[Horizon], start_s: float, end_s: float) -> Passes:
    """Every pass of every satellite over every site within a span.

    Args:
        satellites: Elements, set up for SGP4.
        horizons: Sites with their masks.
        start_s: Begin of the span, mesh time in seconds.
        end_s: Its end.
    """
    sites = [_Site(horizon) for horizon in horizons]
    lost: dict[int, tuple[float, int]] = {}
    parts: list[Windows] = []
    by_stride: dict[int, list[int]] = {}
    for number, satellite in enumerate(satellites):
        by_stride.setdefault(_stride(satellite), []).append(number)
    for stride, numbers in sorted(by_stride.items()):
        for first in range(0, len(numbers), CHUNK_SATELLITES):
            chosen = numbers[first : first + CHUNK_SATELLITES]
            work = _Work([satellites[number] for number in chosen], np.array(chosen), sites, lost)
            for grid in _grids(start_s, end_s, stride):
                parts += work.windows(grid)
    found = join(parts)
    return Passes(_as_passes(found, sites, len(satellites), start_s, end_s), lost)


def turn_rate_rad_s(satellite: Satrec) -> float:
    """How fast a satellite turns round the Earth's centre at its perigee, with a margin, in radians per second."""
    eccentricity = min(max(satellite.ecco, 0.0), 0.99)
    mean = satellite.no_kozai / 60
    return float(RATE_MARGIN * mean * math.sqrt(1 - eccentricity**2) / (1 - eccentricity) ** 2)


def _stride(satellite: Satrec) -> int:
    longest_s = COARSE_TURN_RAD / turn_rate_rad_s(satellite)
    return max((step for step in COARSE_STEPS if step * FINE_STEP_S <= longest_s), default=COARSE_STEPS[0])


def _grids(start_s: float, end_s: float, stride: int) -> list[_Grid]:
    coarse = math.ceil((end_s - start_s) / (FINE_STEP_S * stride))
    grids = []
    for first in range(0, coarse, CHUNK_NODES):
        last = min(first + CHUNK_NODES, coarse)
        index = np.arange(first * stride, last * stride + 1, dtype=np.float64)
        times_s = np.minimum(start_s + index * FINE_STEP_S, end_s)
        grids.append(_Grid(times_s, *frames.julian(times_s), stride))
    return grids


class _Work:
    """One chunk of satellites."""

    def __init__(
        self, satellites: list[Satrec], numbers: Ids, sites: list[_Site], lost: dict[int, tuple[float, int]]
    ) -> None:
        self._satellites = satellites
        self._numbers = numbers
        self._sites = sites
        self._lost = lost
        self._array = SatrecArray(satellites)
        self._rates = np.array([turn_rate_rad_s(each) for each in satellites])

    def windows(self, grid: _Grid) -> list[Windows]:
        """The windows of these satellites over all sites on one grid."""
        near = self._near(grid)
        anywhere = np.any(near, axis=0)
        if not anywhere.any():
            return []
        points = _Points(self._satellites, anywhere, grid)
        parts = []
        for number, site in enumerate(self._sites):
            lefts = points.lefts(near[number], grid.stride)
            if len(lefts):
                parts.append(self._windows_of(number, site, points, lefts))
        return parts

    def _near(self, grid: _Grid) -> NDArray[np.bool_]:
        """Which coarse intervals may hold a part of a pass, shape (sites, satellites, intervals)."""
        times_s, jd, fraction = (each[:: grid.stride].copy() for each in (grid.times_s, grid.jd, grid.fraction))
        errors, position_km, _ = self._array.sgp4(jd, fraction)
        self._note_lost(errors, times_s)
        distance_km = np.sqrt(np.einsum("stk,stk->st", position_km, position_km))
        highest_m = np.nanmax(np.where(errors == 0, distance_km, 0.0), axis=1) * (RADIUS_MARGIN * 1000)
        half_step_s = grid.stride * FINE_STEP_S / 2
        x, y, z = (np.ascontiguousarray(position_km[:, :, axis]) for axis in range(3))
        found = np.zeros((len(self._sites), len(self._satellites), len(times_s) - 1), dtype=bool)
        for number, site in enumerate(self._sites):
            towards = frames.ecef_to_teme(times_s, site.direction)
            reach = site.widest_rad(np.maximum(highest_m, site.radius_m))
            reach = reach + (self._rates + frames.EARTH_RATE_RAD_S) * half_step_s
            cosine = np.cos(np.minimum(reach, math.pi))
            close = x * towards[0] + y * towards[1] + z * towards[2] > distance_km * cosine[:, None]
            found[number] = close[:, 1:] | close[:, :-1]
        return found

    def _note_lost(self, errors: NDArray[np.uint8], times_s: Array) -> None:
        for row in np.flatnonzero(errors.any(axis=1)):
            column = int(np.flatnonzero(errors[row])[0])
            seen = (float(times_s[column]), int(errors[row, column]))
            number = int(self._numbers[row])
            self._lost[number] = min(self._lost.get(number, seen), seen)

    def _windows_of(self, number: int, site: _Site, points: _Points, lefts: Ids) -> Windows:
        stretches = points.stretches(lefts)
        spans = [self._above(number, curve, points, stretches, lefts) for curve in site.curves()]
        return spans[0] if len(spans) == 1 else intersect(*spans)

    def _above(self, number: int, curve: Curve, points: _Points, stretches: Stretches, lefts: Ids) -> Windows:
        values = (*curve(*stretches.left, lefts), *curve(*stretches.right, lefts))
        pieces = above_zero(stretches, curve, values)
        rows = points.row[lefts[pieces.ids]]
        low, high = stretches.start_s[pieces.ids], stretches.end_s[pieces.ids]
        start_s = np.clip(self._exact(curve, rows, pieces.start_s, pieces.slope_start), low, high)
        end_s = np.clip(self._exact(curve, rows, pieces.end_s, pieces.slope_end), low, high)
        subject = number * SUBJECTS + self._numbers[rows]
        return join([Windows(subject, start_s, np.maximum(start_s, end_s), pieces.peak_s, pieces.peak)])

    def _exact(self, curve: Curve, rows: Ids, at_s: Array, slope: Array) -> Array:
        """Roots moved by one step of Newton's method on exact propagation; what is no root stays."""
        moved = at_s.copy()
        roots = np.flatnonzero(np.isfinite(slope))
        roots = roots[np.argsort(rows[roots], kind="stable")]
        jd, fraction = frames.julian(at_s[roots])
        state = _propagate(self._satellites, rows[roots], jd, fraction)
        value, rate = curve(*frames.teme_to_ecef(at_s[roots], *state), roots)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -value / rate
        simple = np.isfinite(step) & (np.abs(step) <= NEWTON_LIMIT_S)
        moved[roots[simple]] += step[simple]
        return moved


SUBJECTS = 1 << 32
"""Site and satellite make one number: site * SUBJECTS + satellite."""


class _Points:
    """Exact states at the fine times that some site needs, satellite after satellite."""

    def __init__(self, satellites: list[Satrec], needed: NDArray[np.bool_], grid: _Grid) -> None:
        wanted = np.zeros((len(satellites), len(grid.times_s)), dtype=bool)
        fine = np.repeat(needed, grid.stride, axis=1)
        wanted[:, :-1] = fine
        wanted[:, 1:] |= fine
        self.row, column = np.nonzero(wanted)
        self._ids = np.cumsum(wanted.ravel()).reshape(wanted.shape) - 1
        self.times_s = grid.times_s[column]
        state = _propagate(satellites, self.row, grid.jd[column], grid.fraction[column])
        self._position_m, self._velocity_m_s = frames.teme_to_ecef(self.times_s, *state)

    def lefts(self, near: NDArray[np.bool_], stride: int) -> Ids:
        """Numbers of the left ends of the fine stretches of coarse intervals; the right end is the next number."""
        fine = np.repeat(near, stride, axis=1)
        ids = self._ids[:, :-1][fine]
        # The span's end cuts the last stretches to nothing; a satellite that is lost has no position.
        good = (self.times_s[ids + 1] > self.times_s[ids]) & np.isfinite(
            self._position_m[ids, 0] + self._position_m[ids + 1, 0]
        )
        return np.asarray(ids[good], dtype=np.int64)

    def stretches(self, lefts: Ids) -> Stretches:
        """The fine stretches that begin at those points."""
        rights = lefts + 1
        return Stretches(
            self.times_s[lefts],
            self.times_s[rights],
            (self._position_m[lefts], self._velocity_m_s[lefts]),
            (self._position_m[rights], self._velocity_m_s[rights]),
        )


def _propagate(satellites: Sequence[Satrec], rows: Ids, jd: Array, fraction: Array) -> tuple[Array, Array]:
    """TEME states in metres, each satellite (rows ascending) at its own times, shapes (n, 3)."""
    position = np.full((len(rows), 3), np.nan)
    velocity = np.full((len(rows), 3), np.nan)
    if not len(rows):
        return position, velocity
    heads = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    for begin, end in zip(heads, [*heads[1:], len(rows)], strict=True):
        errors, place_km, speed_km_s = satellites[rows[begin]].sgp4_array(jd[begin:end], fraction[begin:end])
        good = errors == 0
        position[begin:end][good] = place_km[good] * 1000
        velocity[begin:end][good] = speed_km_s[good] * 1000
    return position, velocity


def _as_passes(found: Windows, sites: list[_Site], count: int, start_s: float, end_s: float) -> tuple[Pass, ...]:
    sin_masks = np.array([site.sin_mask for site in sites])
    site_of = found.subject // SUBJECTS
    elevation = np.degrees(np.arcsin(np.clip(found.peak + sin_masks[site_of], -1, 1)))
    columns = (found.subject % SUBJECTS, site_of, found.start_s, found.end_s, found.peak_s, elevation)
    early, late = found.start_s <= start_s, found.end_s >= end_s
    rows = zip(*(column.tolist() for column in (*columns, early, late)), strict=True)
    return tuple(Pass(*row) for row in rows)
