"""Positions: the published SGP4 vectors, frames and geodesy against skyfield, Walker orbits against their geometry."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from sgp4.api import WGS72, Satrec
from skyfield.api import EarthSatellite, load, wgs84
from skyfield.framelib import itrs

from services.constellation import frames
from services.constellation.earth_rotation import ut1_minus_utc_s
from services.constellation.elements import read_elements
from services.constellation.walker import WGS72_RADIUS_KM, Walker, grid_links, satellite

ROOT = Path(__file__).resolve().parents[2]
IRIDIUM = ROOT / "examples" / "iridium" / "iridium.tle"
VECTORS = 666
"""Rows of the published results, without those that end in an error."""
VECTOR_TOLERANCE_MM = 0.12
"""The results are printed to 10 nm of a kilometre's last digit; the implementations differ by no more than this."""


def published() -> Iterator[tuple[Satrec, np.ndarray]]:
    """Every satellite of the verification file with its published rows (minutes, x, y, z in kilometres)."""
    package = resources.files("sgp4")
    lines = package.joinpath("SGP4-VER.TLE").read_text().splitlines()
    satellites = {}
    for first, second in itertools.pairwise(lines):
        if first.startswith("1 ") and second.startswith("2 "):
            found = Satrec.twoline2rv(first[:69], second[:69], WGS72)
            satellites.setdefault(found.satnum, []).append(found)
    blocks = re.split(r"^(\d+) xx\s*$", package.joinpath("tcppver.out").read_text(), flags=re.MULTILINE)[1:]
    for number, body in zip(blocks[::2], blocks[1::2], strict=True):
        rows = [line.split()[:4] for line in body.splitlines() if len(line.split()) >= 7]
        yield satellites[int(number)].pop(0), np.array(rows, dtype=float)


def test_every_published_sgp4_vector_is_met() -> None:
    """All 666 positions of the verification set that the sgp4 wheel carries are met to 0.12 mm."""
    worst_mm, count = 0.0, 0
    for found, rows in published():
        for minutes, *expected_km in rows:
            error, place_km, _ = found.sgp4_tsince(minutes)
            if error:
                continue
            worst_mm = max(worst_mm, float(np.abs(np.array(place_km) - expected_km).max()) * 1e6)
            count += 1
    assert count >= VECTORS
    assert worst_mm <= VECTOR_TOLERANCE_MM


@pytest.fixture(scope="module")
def timescale() -> object:
    return load.timescale(builtin=True)


def test_earth_fixed_positions_and_places_agree_with_skyfield(timescale: object) -> None:
    """TEME to Earth-fixed is within 5 m of skyfield; latitude, longitude and height are its own to millimetres."""
    start_s = datetime(2022, 9, 14, 12, tzinfo=UTC).timestamp()
    at_s = start_s + np.arange(0, 3 * frames.DAY_S, 1_777.7)
    whole, fraction = frames.julian(at_s)
    times = timescale.tai_jd(whole, fraction + 37 / frames.DAY_S)  # type: ignore[attr-defined]
    lines = IRIDIUM.read_text().splitlines()
    for index in range(0, 30, 9):
        theirs = EarthSatellite(*lines[index + 1 : index + 3], lines[index], timescale).at(times)
        error, place_km, speed_km_s = Satrec.twoline2rv(*lines[index + 1 : index + 3]).sgp4_array(whole, fraction)
        assert not error.any()
        ours, moving = frames.teme_to_ecef(at_s, place_km * 1000, speed_km_s * 1000)
        place, velocity = theirs.frame_xyz_and_velocity(itrs)
        assert np.linalg.norm(ours - place.m.T, axis=1).max() <= 5.0
        assert np.abs(moving - velocity.m_per_s.T).max() <= 0.01
        latitude, longitude, altitude = frames.ecef_to_geodetic(place.m.T)
        geographic = wgs84.geographic_position_of(theirs)
        assert np.abs(latitude - geographic.latitude.degrees).max() <= 3e-8
        assert np.abs(longitude - geographic.longitude.degrees).max() <= 3e-8
        assert np.abs(altitude - geographic.elevation.m).max() <= 1e-3


@pytest.mark.parametrize("year", [2001, 2012, 2017, 2022, 2026])
def test_the_earths_turn_is_within_five_milliseconds_of_what_was_measured(year: int, timescale: object) -> None:
    """UT1 - UTC of the table is within 5 ms (2.3 m on the equator) of skyfield's daily values over a year."""
    start_s = datetime(year, 1, 1, tzinfo=UTC).timestamp()
    at_s = start_s + np.arange(0.5, 364, 3) * frames.DAY_S
    times = [timescale.from_datetime(datetime.fromtimestamp(each, UTC)) for each in at_s]  # type: ignore[attr-defined]
    assert np.abs(ut1_minus_utc_s(at_s) - [each.dut1 for each in times]).max() <= 0.005


@pytest.mark.parametrize(("latitude", "longitude"), [(0, 0), (52.5, 13.4), (-33.9, 151.2), (90, 0), (-89.9, -179.9)])
def test_sites_and_their_verticals_agree_with_skyfield(latitude: float, longitude: float) -> None:
    """A site's Earth-fixed place is skyfield's to a millimetre, and coming back gives the site."""
    ours = frames.geodetic_to_ecef(latitude, longitude, 1_234.5)
    assert np.abs(ours - wgs84.latlon(latitude, longitude, 1_234.5).itrs_xyz.m).max() <= 1e-3
    back = frames.ecef_to_geodetic(ours + 1e4 * frames.vertical(latitude, longitude))
    assert back[0] == pytest.approx(latitude, abs=1e-9)
    assert back[2] == pytest.approx(11_234.5, abs=1e-3)


def test_velocity_is_the_rate_of_position() -> None:
    """The Earth-fixed velocity is the difference of Earth-fixed positions, to a part in 10^4."""
    found = read_elements(IRIDIUM)[0]
    at_s = found.epoch_s + np.array([0.0, 1.0])
    _, place_km, speed_km_s = found.satrec.sgp4_array(*frames.julian(at_s))
    place, velocity = frames.teme_to_ecef(at_s, place_km * 1000, speed_km_s * 1000)
    assert np.abs(place[1] - place[0] - velocity.mean(axis=0)).max() < 0.8


@pytest.mark.parametrize("inclination_deg", [0.0, 53.0, 86.4, 97.6])
def test_a_walker_satellite_flies_at_its_height(inclination_deg: float) -> None:
    """The mean height that SGP4 gives a Walker satellite is the one asked for; the flown one is within 15 km."""
    made = satellite(Walker(6, 11, 2, 780.0, inclination_deg), 2, 3, 1.7e9)
    assert (made.a - 1) * WGS72_RADIUS_KM == pytest.approx(780.0, abs=0.05)
    _, place_km, _ = made.sgp4_array(*frames.julian(1.7e9 + np.arange(0, 12_000, 60.0)))
    assert np.abs(np.linalg.norm(place_km, axis=1) - WGS72_RADIUS_KM - 780).max() < 15


def test_walker_neighbours_are_near_and_stay_so() -> None:
    """Every link of a delta's grid keeps its length within what inclination does to it, over the wrap of planes too."""
    walker = Walker(12, 8, 5, 1_200.0, 53.0)
    links = grid_links(walker)
    assert len(links) == 2 * 12 * 8
    start_s = 1.7e9
    at_s = frames.julian(start_s + np.arange(0, 7_000, 100.0))
    places = {
        (plane, slot): satellite(walker, plane, slot, start_s).sgp4_array(*at_s)[1]
        for plane in range(12)
        for slot in range(8)
    }
    axis_km = WGS72_RADIUS_KM + 1_200
    for first, second in links:
        longest_km = np.linalg.norm(places[first] - places[second], axis=1).max()
        # A neighbour in the plane is 45 degrees away; one in the next plane at most 30 and what the phase adds.
        assert longest_km < 2 * axis_km * math.sin(math.radians(46 if first[0] != second[0] else 23))


def test_a_star_has_no_links_over_its_seam() -> None:
    """In a star the first and the last plane fly against each other: the grid does not join them."""
    pairs = {frozenset((first[0], second[0])) for first, second in grid_links(Walker(6, 11, 2, 780.0, 86.4, star=True))}
    assert frozenset((0, 5)) not in pairs
    assert frozenset((2, 3)) in pairs
