"""Where things are: times, the turning Earth, and the ellipsoid.

SGP4 gives positions in TEME (true equator, mean equinox of date). The Earth-fixed frame here is TEME turned by
Greenwich mean sidereal time (Vallado, Fundamentals of Astrodynamics, 4th ed., section 3.7.3 and algorithm 15; Vallado,
Crawford, Hujsak, Kelso, Revisiting Spacetrack Report 3, AIAA 2006-6753, appendix C). Polar motion, at most 10 m on the
ground, is left out. Lengths are metres, times mesh time in seconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from services.constellation.earth_rotation import ut1_minus_utc_s

Array = NDArray[np.float64]

DAY_S = 86_400.0
"""Seconds of a day."""

UNIX_EPOCH_JD = 2_440_587.5
"""The Julian date of 1970-01-01 UTC."""

J2000_JD = 2_451_545.0
"""The Julian date of 2000-01-01 12:00."""

WGS84_RADIUS_M = 6_378_137.0
"""Equatorial radius of the WGS 84 ellipsoid, in metres (NIMA TR8350.2)."""

WGS84_FLATTENING = 1 / 298.257223563
"""Flattening of the WGS 84 ellipsoid (NIMA TR8350.2)."""

EARTH_RATE_RAD_S = 7.292115146706979e-5
"""How fast the Earth turns against TEME, in radians per second (Vallado, section 3.7.3)."""

LIGHT_M_S = 299_792_458.0
"""Speed of light in vacuum, in metres per second."""


def julian(at_s: Array) -> tuple[Array, Array]:
    """Whole and fractional Julian date in UTC: the pair that SGP4 takes, exact to 0.3 microseconds."""
    days = np.floor(at_s / DAY_S)
    return UNIX_EPOCH_JD + days, (at_s - days * DAY_S) / DAY_S


def sidereal_angle_rad(at_s: Array) -> Array:
    """Greenwich mean sidereal time (IAU 1982; Vallado, equation 3-45), in radians from 0 to 2 pi."""
    ut1_s = at_s + ut1_minus_utc_s(at_s)
    days = np.floor(ut1_s / DAY_S)
    into_day_s = ut1_s - days * DAY_S
    # The day's own turn is taken apart: at full length the cubic would lose a millisecond to rounding.
    centuries = (UNIX_EPOCH_JD - J2000_JD + days + into_day_s / DAY_S) / 36_525.0
    slow_s = 67_310.54841 + (8_640_184.812866 + (0.093104 - 6.2e-6 * centuries) * centuries) * centuries
    # 876600 h per century is one turn a day of UT1, counted from noon.
    turns_s = into_day_s - DAY_S / 2
    return np.asarray(np.mod(slow_s + turns_s, DAY_S) * (2 * math.pi / DAY_S))


def teme_to_ecef(at_s: Array, position_m: Array, velocity_m_s: Array) -> tuple[Array, Array]:
    """Positions and velocities from TEME to the frame that turns with the Earth.

    Args:
        at_s: Times, shape (...).
        position_m: Shape (..., 3), metres.
        velocity_m_s: Shape (..., 3), metres per second.

    Returns:
        Both in the Earth-fixed frame, of the same shapes.
    """
    angle = sidereal_angle_rad(at_s)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = position_m[..., 0], position_m[..., 1]
    fixed = np.stack((cos * x + sin * y, cos * y - sin * x, position_m[..., 2]), axis=-1)
    vx, vy = velocity_m_s[..., 0], velocity_m_s[..., 1]
    moving = np.stack((cos * vx + sin * vy, cos * vy - sin * vx, velocity_m_s[..., 2]), axis=-1)
    moving[..., 0] += EARTH_RATE_RAD_S * fixed[..., 1]
    moving[..., 1] -= EARTH_RATE_RAD_S * fixed[..., 0]
    return fixed, moving


def ecef_to_teme(at_s: Array, position_m: Array) -> Array:
    """One Earth-fixed point as it turns with the Earth.

    Args:
        at_s: Times, shape (n,).
        position_m: The point, shape (3,).

    Returns:
        Shape (3, n), metres in TEME.
    """
    angle = sidereal_angle_rad(at_s)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = (float(each) for each in position_m)
    return np.stack((cos * x - sin * y, sin * x + cos * y, np.full_like(cos, z)))


def geodetic_to_ecef(latitude_deg: float, longitude_deg: float, altitude_m: float) -> Array:
    """A place on or above the WGS 84 ellipsoid (Vallado, algorithm 51), shape (3,), metres."""
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    squared = WGS84_FLATTENING * (2 - WGS84_FLATTENING)
    across = WGS84_RADIUS_M / math.sqrt(1 - squared * math.sin(latitude) ** 2)
    level = (across + altitude_m) * math.cos(latitude)
    return np.array(
        [
            level * math.cos(longitude),
            level * math.sin(longitude),
            (across * (1 - squared) + altitude_m) * math.sin(latitude),
        ]
    )


def vertical(latitude_deg: float, longitude_deg: float) -> Array:
    """The ellipsoid's upward normal at a place, shape (3,): what elevation is counted from."""
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    return np.array(
        [math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)]
    )


def ecef_to_geodetic(position_m: Array) -> tuple[Array, Array, Array]:
    """Latitude and longitude in degrees and altitude in metres on WGS 84.

    Bowring's formula (1976) applied twice: below a millimetre from the ground up to geostationary height.

    Args:
        position_m: Shape (..., 3), metres, not at the Earth's centre.
    """
    x, y, z = position_m[..., 0], position_m[..., 1], position_m[..., 2]
    squared = WGS84_FLATTENING * (2 - WGS84_FLATTENING)
    polar_m = WGS84_RADIUS_M * (1 - WGS84_FLATTENING)
    level = np.hypot(x, y)
    reduced = np.arctan2(z * WGS84_RADIUS_M, level * polar_m)
    for _ in range(2):
        latitude = np.arctan2(
            z + squared / (1 - squared) * polar_m * np.sin(reduced) ** 3,
            level - squared * WGS84_RADIUS_M * np.cos(reduced) ** 3,
        )
        reduced = np.arctan2((1 - WGS84_FLATTENING) * np.sin(latitude), np.cos(latitude))
    across = WGS84_RADIUS_M / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    # Not level / cos: that divides by nothing at the poles.
    altitude = level * np.cos(latitude) + z * np.sin(latitude) - across * (1 - squared * np.sin(latitude) ** 2)
    return np.degrees(latitude), np.degrees(np.arctan2(y, x)), altitude
