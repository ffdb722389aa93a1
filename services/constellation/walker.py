"""Walker constellations: circular orbits in evenly spread planes, and who is next to whom in them.

T satellites stand in P planes of S = T / P; the planes' ascending nodes are spread over 360 degrees ("delta") or 180
("star"), and each plane is ahead of the one before by F x 360 / T degrees (J. G. Walker, Satellite constellations,
Journal of the British Interplanetary Society 37, 1984). Each satellite becomes a set of SGP4 elements without drag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgp4.api import WGS72, Satrec

from services.constellation import frames

SGP4_EPOCH_JD = 2_433_281.5
"""The Julian date from which SGP4 counts its epochs: 1949-12-31."""

WGS72_RADIUS_KM = 6_378.135
"""Equatorial radius of SGP4's Earth, in kilometres (Spacetrack Report 3)."""

WGS72_MU_KM3_S2 = 398_600.8
"""Gravitational parameter of SGP4's Earth (Spacetrack Report 3)."""

WGS72_J2 = 0.001082616
"""Second zonal harmonic of SGP4's Earth (Spacetrack Report 3)."""


@dataclass(frozen=True)
class Walker:
    """The parameters of a constellation."""

    planes: int
    """P, at least 1."""
    per_plane: int
    """S, at least 1."""
    phasing: int
    """F, from 0 to P - 1."""
    altitude_km: float
    """Mean height above the equatorial radius, in kilometres."""
    inclination_deg: float
    """Of every plane, in degrees."""
    star: bool = False
    """True spreads the planes over 180 degrees, for polar orbits; False over 360."""
    raan_deg: float = 0.0
    """Ascending node of the first plane, in degrees of TEME."""


def mean_motion_rad_min(altitude_km: float, inclination_deg: float) -> float:
    """The Kozai mean motion whose SGP4 semi-major axis is the equatorial radius plus the altitude.

    SGP4 takes Kozai's mean motion and turns it into Brouwer's (Spacetrack Report 3, section 6); this goes the other way
    for a circular orbit, so that the altitude that was asked for is the one that is flown.
    """
    axis = 1 + altitude_km / WGS72_RADIUS_KM
    brouwer = math.sqrt(WGS72_MU_KM3_S2 / (axis * WGS72_RADIUS_KM) ** 3) * 60
    shift = 0.75 * WGS72_J2 * (3 * math.cos(math.radians(inclination_deg)) ** 2 - 1)
    return brouwer * (1 + shift / axis**2)


def satellite(walker: Walker, plane: int, slot: int, epoch_s: float) -> Satrec:
    """The elements of one satellite.

    Args:
        walker: The constellation.
        plane: From 0 to P - 1.
        slot: From 0 to S - 1.
        epoch_s: When it stands at its place, mesh time in seconds.
    """
    spread_deg = 180.0 if walker.star else 360.0
    node_deg = walker.raan_deg + plane * spread_deg / walker.planes
    total = walker.planes * walker.per_plane
    place_deg = slot * 360.0 / walker.per_plane + plane * walker.phasing * 360.0 / total
    made = Satrec()
    made.sgp4init(
        WGS72,
        "i",
        (plane * walker.per_plane + slot + 1) % 340_000,
        epoch_s / frames.DAY_S + frames.UNIX_EPOCH_JD - SGP4_EPOCH_JD,
        0.0,  # no drag: the constellation keeps its height
        0.0,
        0.0,
        0.0,  # circular
        0.0,
        math.radians(walker.inclination_deg),
        math.radians(place_deg % 360.0),
        mean_motion_rad_min(walker.altitude_km, walker.inclination_deg),
        math.radians(node_deg % 360.0),
    )
    return made


def grid_links(walker: Walker) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """The "+grid": each satellite with the next in its plane and with its neighbour in the next plane.

    Between the last plane and the first, the neighbour is F slots further on, where the phases meet. In a star the two
    fly against each other there (the seam): no neighbour lasts, and none is given. Each pair is given once, as
    (plane, slot).
    """
    links: dict[frozenset[tuple[int, int]], tuple[tuple[int, int], tuple[int, int]]] = {}

    def add(first: tuple[int, int], second: tuple[int, int]) -> None:
        if first != second:
            links.setdefault(frozenset((first, second)), (first, second))

    for plane in range(walker.planes):
        for slot in range(walker.per_plane):
            add((plane, slot), (plane, (slot + 1) % walker.per_plane))
            if plane + 1 < walker.planes:
                add((plane, slot), (plane + 1, slot))
            elif walker.planes > 1 and not walker.star:
                add((plane, slot), (0, (slot + walker.phasing) % walker.per_plane))
    return tuple(links.values())
