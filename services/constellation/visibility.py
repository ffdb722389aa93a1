"""When two satellites see each other: in range, and with the line between them clear of the Earth and its air.

The line of sight is clear where its point nearest to the Earth's centre stays outside a sphere of the equatorial radius
plus a margin; the sphere is the safe side of the ellipsoid, which is up to 21 km lower at the poles. Range and
clearance are two smooth curves, asked about one by one on a grid of 30 s; a link is open where both are above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sgp4.api import Satrec, SatrecArray

from services.constellation import frames
from services.constellation.curves import Array, Curve, Ids, Stretches, Windows, above_zero, intersect, join
from services.constellation.finder import FINE_STEP_S

CHUNK_STRETCHES = 120_000
"""Pairs times grid intervals that are worked on at a time: bounds memory."""

CHUNK_TIMES = 120
"""Grid intervals that are worked on at a time."""


@dataclass(frozen=True)
class Sight:
    """What a class of laser links can do."""

    range_m: float
    """The longest link, in metres."""
    margin_m: float
    """How far above the Earth's equatorial radius the line must stay, in metres."""


@dataclass(frozen=True)
class Encounter:
    """A span in which two satellites see each other."""

    pair: int
    """The pair's number in what was given."""
    start_s: float
    """When they begin to see each other, mesh time in seconds."""
    end_s: float
    """When they cease to."""
    truncated_start: bool
    """True where they saw each other before the span began."""
    truncated_end: bool
    """True where they still do when the span ends."""


def range_curve(range_m: float) -> Curve:
    """1 - (distance / range)^2 and its rate, for states of shape (n, 6): both satellites one after the other."""

    def curve(position_m: Array, velocity_m_s: Array, _ids: Ids) -> tuple[Array, Array]:
        apart = position_m[:, 3:] - position_m[:, :3]
        moving = velocity_m_s[:, 3:] - velocity_m_s[:, :3]
        square = range_m * range_m
        return (
            1 - np.einsum("nk,nk->n", apart, apart) / square,
            -2 * np.einsum("nk,nk->n", apart, moving) / square,
        )

    return curve


def clearance_curve(margin_m: float) -> Curve:
    """(nearest distance of the line to the Earth's centre / allowed)^2 - 1 and its rate, for states of shape (n, 6).

    The nearest point of the segment A + x (B - A), 0 <= x <= 1, has x = -A.(B - A) / |B - A|^2, cut to the segment;
    as x is a minimiser, the rate needs no derivative of x.
    """
    square = (frames.WGS84_RADIUS_M + margin_m) ** 2

    def curve(position_m: Array, velocity_m_s: Array, _ids: Ids) -> tuple[Array, Array]:
        first, apart = position_m[:, :3], position_m[:, 3:] - position_m[:, :3]
        length = np.maximum(np.einsum("nk,nk->n", apart, apart), 1.0)
        x = np.clip(-np.einsum("nk,nk->n", first, apart) / length, 0, 1)[:, None]
        near = first + x * apart
        moving = velocity_m_s[:, :3] + x * (velocity_m_s[:, 3:] - velocity_m_s[:, :3])
        return (
            np.einsum("nk,nk->n", near, near) / square - 1,
            2 * np.einsum("nk,nk->n", near, moving) / square,
        )

    return curve


def find_encounters(
    satellites: Sequence[Satrec], pairs: Sequence[tuple[int, int]], sight: Sight, start_s: float, end_s: float
) -> tuple[Encounter, ...]:
    """Every span in which the two satellites of each pair see each other, by pair and time.

    Args:
        satellites: Elements, set up for SGP4.
        pairs: Numbers of satellites, each pair once.
        sight: Range and margin.
        start_s: Begin of the span, mesh time in seconds.
        end_s: Its end.
    """
    if not pairs:
        return ()
    used, ends = np.unique(np.array(pairs, dtype=np.int64), return_inverse=True)
    ends = ends.reshape(-1, 2)
    array = SatrecArray([satellites[number] for number in used])
    curves = (clearance_curve(sight.margin_m), range_curve(sight.range_m))
    open_spans: tuple[list[Windows], ...] = ([], [])
    count = int(np.ceil((end_s - start_s) / FINE_STEP_S))
    for first in range(0, count, CHUNK_TIMES):
        last = min(first + CHUNK_TIMES, count)
        times_s = np.minimum(start_s + np.arange(first, last + 1) * FINE_STEP_S, end_s)
        errors, place_km, speed_km_s = array.sgp4(*frames.julian(times_s))
        place_km[errors != 0] = np.nan
        for low in range(0, len(pairs), CHUNK_STRETCHES // CHUNK_TIMES):
            chosen = ends[low : low + CHUNK_STRETCHES // CHUNK_TIMES]
            stretches, subject = _stretches(times_s, place_km, speed_km_s, chosen)
            for curve, spans in zip(curves, open_spans, strict=True):
                spans.append(_open(stretches, subject + low, curve))
    found = intersect(join(open_spans[0]), join(open_spans[1]))
    rows = zip(found.subject.tolist(), found.start_s.tolist(), found.end_s.tolist(), strict=True)
    return tuple(Encounter(pair, begin, end, begin <= start_s, end >= end_s) for pair, begin, end in rows)


def _stretches(times_s: Array, place_km: Array, speed_km_s: Array, ends: Ids) -> tuple[Stretches, Ids]:
    """The grid of some pairs, TEME states of both ends side by side, and the pair of each stretch."""
    place = np.concatenate((place_km[ends[:, 0]], place_km[ends[:, 1]]), axis=2) * 1000
    speed = np.concatenate((speed_km_s[ends[:, 0]], speed_km_s[ends[:, 1]]), axis=2) * 1000
    pairs, steps = len(ends), len(times_s) - 1
    good = np.isfinite(place[:, 1:, :] + place[:, :-1, :]).all(axis=2).ravel()
    start_s = np.broadcast_to(times_s[:-1], (pairs, steps)).ravel()[good]
    end_s = np.broadcast_to(times_s[1:], (pairs, steps)).ravel()[good]
    left = (place[:, :-1].reshape(-1, 6)[good], speed[:, :-1].reshape(-1, 6)[good])
    right = (place[:, 1:].reshape(-1, 6)[good], speed[:, 1:].reshape(-1, 6)[good])
    return Stretches(start_s, end_s, left, right), np.repeat(np.arange(pairs), steps)[good]


def _open(stretches: Stretches, subject: Ids, curve: Curve) -> Windows:
    values = (*curve(*stretches.left, subject), *curve(*stretches.right, subject))
    pieces = above_zero(stretches, curve, values)
    return join([Windows(subject[pieces.ids], pieces.start_s, pieces.end_s, pieces.peak_s, pieces.peak)])
