"""Windows against second opinions: skyfield's passes, dense grids of exact positions, and the known hard cases."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sgp4.api import SGP4_ERRORS, WGS72, Satrec
from skyfield.api import EarthSatellite, load, wgs84

from services.constellation import frames
from services.constellation.elements import read_elements
from services.constellation.finder import Horizon, Pass, find_passes
from services.constellation.visibility import Sight, find_encounters
from services.constellation.walker import Walker, satellite

ROOT = Path(__file__).resolve().parents[2]
IRIDIUM = ROOT / "examples" / "iridium" / "iridium.tle"
START_S = datetime(2022, 9, 15, tzinfo=UTC).timestamp()
DAY_S = 86_400.0
BERLIN = Horizon(52.52, 13.41, 34.0, 10.0)
EDGE_TOLERANCE_S = 0.05
"""How far an edge may be from a dense reference, in seconds."""
REFERENCE_STEP_S = 0.1
"""The step of the dense reference around edges, in seconds."""


def elevation_deg(found: Satrec, horizon: Horizon, at_s: np.ndarray) -> np.ndarray:
    """Exact elevations by another route than the finder's: the angle of the ray against the local vertical."""
    _, place_km, speed_km_s = found.sgp4_array(*frames.julian(at_s))
    place, _ = frames.teme_to_ecef(at_s, place_km * 1000, speed_km_s * 1000)
    ray = place - frames.geodetic_to_ecef(horizon.latitude_deg, horizon.longitude_deg, horizon.altitude_m)
    up = frames.vertical(horizon.latitude_deg, horizon.longitude_deg)
    across = np.linalg.norm(np.cross(ray, up), axis=1)
    return np.degrees(np.arctan2(ray @ up, across))


def dense(found: Satrec, horizon: Horizon, start_s: float, end_s: float, step_s: float) -> list[tuple[float, float]]:
    """Windows off a plain grid of exact elevations; an edge is half a step off at most."""
    at_s = np.append(np.arange(start_s, end_s, step_s), end_s)
    up = elevation_deg(found, horizon, at_s) > horizon.mask_deg
    marks = np.flatnonzero(np.diff(np.concatenate(([False], up, [False])).astype(int)))
    windows = []
    for first, last in zip(marks[::2], marks[1::2] - 1, strict=True):
        begin = at_s[first] if first == 0 else (at_s[first - 1] + at_s[first]) / 2
        finish = at_s[last] if last == len(at_s) - 1 else (at_s[last] + at_s[last + 1]) / 2
        windows.append((float(begin), float(finish)))
    return windows


def check_edges(found: Satrec, horizon: Horizon, seen: Pass) -> None:
    """Around each edge that the span does not cut, a grid of 0.1 s changes its sign within 50 ms of the edge."""
    for edge_s, cut, before in ((seen.start_s, seen.truncated_start, False), (seen.end_s, seen.truncated_end, True)):
        if cut:
            continue
        at_s = edge_s + EDGE_TOLERANCE_S + np.array([-REFERENCE_STEP_S, 0.0])
        up = elevation_deg(found, horizon, at_s) > horizon.mask_deg
        assert up.tolist() == [before, not before], (seen, edge_s)


def skyfield_passes(lines: tuple[str, str], horizon: Horizon, hours: float) -> list[list[float]]:
    """[rise, culmination, set] of the complete passes that skyfield finds, as mesh times."""
    timescale = load.timescale(builtin=True)
    found = EarthSatellite(*lines, "x", timescale)
    place = wgs84.latlon(horizon.latitude_deg, horizon.longitude_deg, horizon.altitude_m)
    begin = datetime.fromtimestamp(START_S, UTC)
    first, last = timescale.from_datetime(begin), timescale.from_datetime(
        datetime.fromtimestamp(START_S + hours * 3600, UTC)
    )
    times, events = found.find_events(place, first, last, altitude_degrees=horizon.mask_deg)
    passes: list[list[float]] = []
    for at, event in zip(times, events, strict=True):
        if event == 0:
            passes.append([])
        if passes:
            passes[-1].append(at.utc_datetime().timestamp())
    return [each for each in passes if len(each) >= 3]


def test_windows_agree_with_skyfields_events() -> None:
    """Each complete pass over Berlin is one of skyfield's, and by skyfield's own elevations our edges
    are right.

    Its `find_events` itself stops some 0.1 s beside the edge, where its elevation is up to 0.01 degrees off the mask.
    """
    timescale = load.timescale(builtin=True)
    place = wgs84.latlon(BERLIN.latitude_deg, BERLIN.longitude_deg, BERLIN.altitude_m)
    lines = IRIDIUM.read_text().splitlines()
    compared = 0
    for index in range(0, 30, 6):
        pair = (lines[index + 1], lines[index + 2])
        ours = find_passes([Satrec.twoline2rv(*pair)], [BERLIN], START_S, START_S + DAY_S).passes
        theirs = skyfield_passes(pair, BERLIN, 24)
        complete = [each for each in ours if not each.truncated_start and not each.truncated_end]
        assert len(complete) == len(theirs)
        for mine, (rise_s, *_, set_s) in zip(complete, theirs, strict=True):
            assert mine.start_s == pytest.approx(rise_s, abs=0.25)
            assert mine.end_s == pytest.approx(set_s, abs=0.25)
            for edge_s in (mine.start_s, mine.end_s):
                at = timescale.from_datetime(datetime.fromtimestamp(edge_s, UTC))
                altitude = (EarthSatellite(*pair, "x", timescale) - place).at(at).altaz()[0]
                assert altitude.degrees == pytest.approx(BERLIN.mask_deg, abs=1e-4)
            compared += 1
    assert compared > 15


def test_every_window_of_every_satellite_is_found() -> None:
    """Real satellites over sites from pole to equator: the windows are those of a 1 s grid, the edges of a 0.1 s one.

    Windows too short for the reference to see may be there besides.
    """
    satellites = [each.satrec for each in read_elements(IRIDIUM)]
    sites = [Horizon(89.5, 0, 0, 20.0), Horizon(0.0, -150.0, 2_000.0, 5.0), Horizon(-35.0, 149.0, 600.0, 60.0)]
    end_s = START_S + 6 * 3600
    found = find_passes(satellites, sites, START_S, end_s)
    assert not found.lost
    expected = 0
    for (row, satrec), (column, site) in itertools.product(enumerate(satellites), enumerate(sites)):
        mine = [each for each in found.passes if each.satellite == row and each.site == column]
        reference = dense(satrec, site, START_S, end_s, 1.0)
        expected += len(reference)
        visible = [each for each in mine if each.end_s - each.start_s > 1.0]
        for begin, finish in reference:
            match = [each for each in mine if abs(each.start_s - begin) <= 0.5 and abs(each.end_s - finish) <= 0.5]
            assert len(match) == 1, (row, column, begin)
        assert len(visible) <= len(reference)
        for each in mine:
            check_edges(satrec, site, each)
            middle = elevation_deg(satrec, site, np.array([each.peak_s]))[0]
            assert each.max_elevation_deg == pytest.approx(middle, abs=1e-3)
    assert expected > 100


def random_orbit(rng: random.Random) -> Satrec:
    """Low, medium, eccentric and geosynchronous orbits of any inclination."""
    perigee_km, eccentricity = rng.choice([(rng.uniform(250, 1_500), rng.choice([0.0, 0.01, 0.3, 0.7])), (35_700, 0.0)])
    axis = (6_378.135 + perigee_km) / (1 - eccentricity)
    made = Satrec()
    motion = (398_600.8 / axis**3) ** 0.5 * 60
    angles = [rng.uniform(0, 6.28) for _ in range(3)]
    epoch_days = START_S / DAY_S + frames.UNIX_EPOCH_JD - 2_433_281.5
    made.sgp4init(WGS72, "i", 1, epoch_days, 0.0, 0.0, 0.0, eccentricity, angles[0], rng.uniform(0, 3.1), angles[1],
                  motion, angles[2])  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(12))
def test_random_orbits_and_masks_against_the_dense_grid(seed: int) -> None:
    """Whatever the orbit, the site and the mask (0 to 88 degrees): the windows are those of a dense grid."""
    rng = random.Random(seed)
    satellites = [random_orbit(rng) for _ in range(4)]
    mask_deg = rng.choice([0.0, 5.0, 25.0, 46.0, 70.0, 88.0])
    site = Horizon(rng.uniform(-90, 90), rng.uniform(-180, 180), rng.uniform(0, 4e3), mask_deg)
    end_s = START_S + rng.uniform(5, 8) * 3600
    found = find_passes(satellites, [site], START_S, end_s).passes
    for row, satrec in enumerate(satellites):
        mine = [each for each in found if each.satellite == row]
        reference = dense(satrec, site, START_S, end_s, 1.0)
        longer = [each for each in mine if each.end_s - each.start_s > 1.0]
        assert len(longer) <= len(reference) <= len(mine), (seed, row)
        for begin, finish in reference:
            assert any(abs(each.start_s - begin) <= 0.5 and abs(each.end_s - finish) <= 0.5 for each in mine)
        for each in mine:
            check_edges(satrec, site, each)


def overhead(hour: float = 1.0) -> tuple[Satrec, Horizon, Pass]:
    """A low satellite and its first long pass over Berlin after so many hours."""
    satrec = satellite(Walker(1, 1, 0, 550.0, 60.0, raan_deg=200.0), 0, 0, START_S)
    site = Horizon(52.52, 13.41, 34.0, 5.0)
    passes = find_passes([satrec], [site], START_S + hour * 3600, START_S + DAY_S).passes
    return satrec, site, next(each for each in passes if each.max_elevation_deg > 40)


def test_skyfield_case_in_progress_at_the_start() -> None:
    """A pass under way when the span begins is a window that is marked as cut there (skyfield #550, #856)."""
    satrec, site, whole = overhead()
    middle_s = (whole.start_s + whole.end_s) / 2
    (cut,) = find_passes([satrec], [site], middle_s, whole.end_s + 60).passes
    assert (cut.start_s, cut.truncated_start, cut.truncated_end) == (middle_s, True, False)
    assert cut.end_s == pytest.approx(whole.end_s, abs=1e-3)


def test_skyfield_case_in_progress_at_the_end() -> None:
    """A pass under way when the span ends is a window that is marked as cut there; a span inside a pass is one too."""
    satrec, site, whole = overhead()
    (cut,) = find_passes([satrec], [site], whole.start_s - 60, whole.start_s + 20).passes
    assert (cut.end_s, cut.truncated_start, cut.truncated_end) == (whole.start_s + 20, False, True)
    (inside,) = find_passes([satrec], [site], whole.start_s + 30, whole.start_s + 50).passes
    assert (inside.truncated_start, inside.truncated_end) == (True, True)


@pytest.mark.parametrize("above_deg", [1e-1, 1e-3, 1e-5])
def test_skyfield_case_grazing(above_deg: float) -> None:
    """A pass whose apex is a hair above the mask is found, and one whose apex is a hair below is not (#559)."""
    satrec, site, whole = overhead()
    for sign, expected in ((-1, 1), (1, 0)):
        grazing = Horizon(
            site.latitude_deg, site.longitude_deg, site.altitude_m, whole.max_elevation_deg + sign * above_deg
        )
        found = find_passes([satrec], [grazing], whole.start_s - 600, whole.end_s + 600).passes
        assert len(found) == expected
        for each in found:
            assert each.start_s < whole.peak_s < each.end_s
            assert each.end_s - each.start_s < 30
            around_s = np.array([each.start_s - 0.05, whole.peak_s, each.end_s + 0.05])
            assert (elevation_deg(satrec, grazing, around_s) > grazing.mask_deg).tolist() == [False, True, False]


@pytest.mark.parametrize("mask_deg", [45.0, 60.0, 80.0, 89.0])
def test_skyfield_case_masks_above_45_degrees(mask_deg: float) -> None:
    """High masks lose no pass: 120 satellites of a shell over a day have the windows of the dense grid (#1000)."""
    walker = Walker(12, 10, 3, 550.0, 53.0)
    satellites = [satellite(walker, plane, slot, START_S) for plane in range(12) for slot in range(10)]
    site = Horizon(52.0, 13.4, 0.0, mask_deg)
    end_s = START_S + 4 * 3600
    found = find_passes(satellites, [site], START_S, end_s).passes
    reference = [dense(satrec, site, START_S, end_s, 2.0) for satrec in satellites[::4]]
    for row, windows in enumerate(reference):
        mine = [each for each in found if each.satellite == 4 * row]
        assert len([each for each in mine if each.end_s - each.start_s > 2]) <= len(windows) <= len(mine)
        for each in mine:
            check_edges(satellites[4 * row], site, each)
    if mask_deg < 80:
        assert any(reference)


def test_skyfield_case_no_culmination_above_the_mask() -> None:
    """Windows at whose ends the satellite still climbs or sinks, with no culmination inside, are windows (#996)."""
    satrec, site, whole = overhead()
    rising = find_passes([satrec], [site], whole.start_s + 20, whole.peak_s - 20).passes
    (only,) = rising
    assert only.peak_s == only.end_s == whole.peak_s - 20
    assert only.max_elevation_deg == pytest.approx(
        elevation_deg(satrec, site, np.array([only.end_s]))[0], abs=1e-6
    )
    never = Horizon(site.latitude_deg, site.longitude_deg, site.altitude_m, whole.max_elevation_deg + 1)
    assert find_passes([satrec], [never], whole.start_s - 60, whole.end_s + 60).passes == ()


def test_skyfield_case_highly_eccentric() -> None:
    """A Molniya orbit: hours near apogee and minutes near perigee are found as the dense grid has them (#1017)."""
    made = Satrec()
    epoch_days = START_S / DAY_S + frames.UNIX_EPOCH_JD - 2_433_281.5
    made.sgp4init(WGS72, "i", 2, epoch_days, 0.0, 0.0, 0.0, 0.74, 4.712, 1.107, 0.0, 2.00612 * 2 * np.pi / 1440, 1.0)
    sites = [Horizon(65.0, 40.0, 0.0, 10.0), Horizon(-50.0, -70.0, 0.0, 10.0), Horizon(-45.0, 30.0, 0.0, 0.0)]
    found = find_passes([made], sites, START_S, START_S + DAY_S).passes
    longest_s = max(each.end_s - each.start_s for each in found)
    assert longest_s > 5 * 3600
    for column, site in enumerate(sites):
        mine = [each for each in found if each.site == column]
        reference = dense(made, site, START_S, START_S + DAY_S, 1.0)
        assert len(mine) == len(reference) >= 1
        for each, (begin, finish) in zip(mine, reference, strict=True):
            assert each.start_s == pytest.approx(begin, abs=0.5)
            assert each.end_s == pytest.approx(finish, abs=0.5)
            check_edges(made, site, each)


def test_skyfield_case_geostationary() -> None:
    """A geostationary satellite is up all the time, open at both ends, or not at all; one with inclination comes and
    goes."""
    made = []
    epoch_days = START_S / DAY_S + frames.UNIX_EPOCH_JD - 2_433_281.5
    sidereal = float(frames.sidereal_angle_rad(np.array(START_S)))
    for inclination in (0.0002, 0.12):
        satrec = Satrec()
        satrec.sgp4init(WGS72, "i", 3, epoch_days, 0.0, 0.0, 0.0, 0.0001, 0.0, inclination, sidereal % (2 * np.pi),
                        1.0027379 * 2 * np.pi / 1440, 0.0)  # fmt: skip
        made.append(satrec)
    ends_s = (START_S, START_S + 2 * DAY_S)
    below, away, rim = Horizon(0, 5, 0, 10), Horizon(0, 180, 0, 0), Horizon(76.0, 0.0, 0, 5.0)
    found = find_passes(made, [below, away, rim], *ends_s).passes
    (still,) = [each for each in found if each.satellite == 0 and each.site == 0]
    assert (still.start_s, still.end_s, still.truncated_start, still.truncated_end) == (*ends_s, True, True)
    assert still.max_elevation_deg > 80
    assert not [each for each in found if each.site == 1]
    swinging = [each for each in found if each.satellite == 1 and each.site == 2]
    reference = dense(made[1], rim, *ends_s, 2.0)
    assert len(swinging) == len(reference) >= 2
    for each in swinging:
        check_edges(made[1], rim, each)


def test_a_range_limit_cuts_windows_where_the_distance_is_reached() -> None:
    """With a longest range the window is where elevation and distance both allow it, exact to 50 ms."""
    satrec, site, whole = overhead()
    near = Horizon(site.latitude_deg, site.longitude_deg, site.altitude_m, site.mask_deg, range_m=1.2e6)
    (each,) = find_passes([satrec], [near], whole.start_s - 60, whole.end_s + 60).passes
    assert whole.start_s < each.start_s < each.end_s < whole.end_s
    ground = frames.geodetic_to_ecef(site.latitude_deg, site.longitude_deg, site.altitude_m)
    for edge_s, inside in ((each.start_s, 1), (each.end_s, -1)):
        at_s = edge_s + np.array([-EDGE_TOLERANCE_S, EDGE_TOLERANCE_S]) * inside
        _, place_km, speed = satrec.sgp4_array(*frames.julian(at_s))
        place, _ = frames.teme_to_ecef(at_s, place_km * 1000, speed * 1000)
        far, close = np.linalg.norm(place - ground, axis=1)
        assert close < 1.2e6 < far


def test_a_satellite_that_comes_down_is_reported_and_followed_until_then() -> None:
    """Strong drag ends an orbit within the span: the finder says when and why, and keeps the windows before."""
    made = Satrec()
    epoch_days = START_S / DAY_S + frames.UNIX_EPOCH_JD - 2_433_281.5
    made.sgp4init(WGS72, "i", 4, epoch_days, 0.002, 0.0, 0.0, 0.001, 0.0, 0.9, 0.0, 16.3 * 2 * np.pi / 1440, 1.0)
    steady = satellite(Walker(1, 1, 0, 550.0, 60.0), 0, 0, START_S)
    found = find_passes([steady, made], [Horizon(50, 10, 0, 0)], START_S, START_S + 5 * DAY_S)
    at_s, code = found.lost[1]
    assert list(found.lost) == [1]
    assert code in SGP4_ERRORS
    ends = [each.end_s for each in found.passes if each.satellite == 1]
    assert ends
    assert max(ends) <= at_s
    assert len({each.start_s // DAY_S for each in found.passes if each.satellite == 0}) == 5


def test_laser_windows_are_those_of_a_dense_grid() -> None:
    """Every pair of real satellites: range and the Earth's shadow open and close links as exact positions every 2 s
    say."""
    satellites = [each.satrec for each in read_elements(IRIDIUM)][:9]
    pairs = list(itertools.combinations(range(9), 2))
    sight = Sight(range_m=5.5e6, margin_m=80e3)
    end_s = START_S + 3 * 3600
    found = find_encounters(satellites, pairs, sight, START_S, end_s)
    at_s = np.append(np.arange(START_S, end_s, 2.0), end_s)
    places = [each.sgp4_array(*frames.julian(at_s))[1] * 1000 for each in satellites]
    shares = np.linspace(0, 1, 401)[:, None, None]
    windows = 0
    for number, (first, second) in enumerate(pairs):
        apart = np.linalg.norm(places[first] - places[second], axis=1)
        # The nearest point by trying 401 points of the line: coarser, and another way than the finder's.
        nearest = np.linalg.norm(places[first] + shares * (places[second] - places[first]), axis=2).min(axis=0)
        clear = (apart < sight.range_m) & (nearest > frames.WGS84_RADIUS_M + sight.margin_m)
        marks = np.flatnonzero(np.diff(np.concatenate(([False], clear, [False])).astype(int)))
        mine = [each for each in found if each.pair == number]
        assert len(mine) == len(marks) // 2, (first, second)
        for each, begin, finish in zip(mine, marks[::2], marks[1::2] - 1, strict=True):
            assert each.start_s == pytest.approx(at_s[begin], abs=2.01)
            assert each.end_s == pytest.approx(at_s[finish], abs=2.01)
            assert each.truncated_start == (begin == 0)
            assert each.truncated_end == (finish == len(at_s) - 1)
            windows += 1
    assert windows > 20
