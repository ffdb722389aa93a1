"""The contact finder against grids: what it misses, how exact its edges are, what it costs.

    python bench/contacts.py [--json] [--rounds 5] [--satellites 400] [--seed 1] [--skip-large]

- 400 satellites x 1 day x 1 site, mask 25 degrees: a mix of shells at 350 to 1,200 km, from a seed. The finder and a
  grid of 1 s run interleaved, `--rounds` times, and CPU time of the process is compared (`process_time`: all threads).
- The grid is made sensibly: the same SGP4 over arrays, the site turned into the satellites' frame instead of all the
  satellites into the site's, one dot product and one root per point, edges by linear interpolation of its sign changes.
- The reference for correctness is exact positions every 0.1 s from a minute before each of the grid's windows to a
  minute after, and over every apex of the grid that lies less than 0.5 degrees below the mask, so that passes shorter
  than a second count too.
- 1,584 satellites (72 planes of 22) x 10 sites x 1 day, in a process of its own: time and peak memory of the windows.
- The whole plan of examples/starlink-shell in a process of its own: five sites, lasers, latency curves, two hours.

`--json` writes `bench/results/contacts.json` too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from sgp4.api import Satrec, SatrecArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python")]

from services.constellation import frames  # noqa: E402 - the paths come first
from services.constellation.finder import Horizon, find_passes  # noqa: E402
from services.constellation.planning import plan_contacts  # noqa: E402
from services.constellation.scenario import load_scenario  # noqa: E402
from services.constellation.walker import Walker, satellite  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "contacts.json"
START_S = 1_767_225_600.0
"""2026-01-01 00:00 UTC."""
DAY_S = 86_400.0
SITE = Horizon(52.52, 13.41, 34.0, 25.0)
GRID_STEP_S = 1.0
GRID_CHUNK = 16
"""Satellites of the grid at a time: 16 x 86,401 positions and velocities are 66 MB."""
REFERENCE_STEP_S = 0.1
MARGIN_S = 60.0
NEAR_DEG = 0.5
PLACES = (
    (52.52, 13.41), (48.86, 2.35), (40.71, -74.01), (-33.87, 151.21), (35.68, 139.69),
    (1.35, 103.82), (-23.55, -46.63), (64.15, -21.94), (19.08, 72.88), (-1.29, 36.82),
)  # fmt: skip
Windows = list[tuple[int, float, float]]


def fleet(count: int, seed: int) -> list[Satrec]:
    """Satellites of random shells and places, the same for a seed."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        altitude_km, inclination_deg = rng.uniform(350, 1_200), rng.choice([43.0, 53.0, 53.2, 70.0, 86.4, 97.6])
        walker = Walker(360, 100, 7, altitude_km, inclination_deg, raan_deg=rng.uniform(0, 360))
        made.append(satellite(walker, rng.randrange(360), rng.randrange(100), START_S))
    return made


def grid(satellites: Sequence[Satrec]) -> tuple[Windows, Windows]:
    """Windows of a 1 s grid, and spans around apexes that are close below the mask, as (satellite, start, end)."""
    at_s = START_S + np.arange(0, DAY_S + GRID_STEP_S / 2, GRID_STEP_S)
    jd, fraction = frames.julian(at_s)
    place = frames.geodetic_to_ecef(SITE.latitude_deg, SITE.longitude_deg, SITE.altitude_m) / 1000
    site = frames.ecef_to_teme(at_s, place)
    up = frames.ecef_to_teme(at_s, frames.vertical(SITE.latitude_deg, SITE.longitude_deg))
    height = np.einsum("kt,kt->t", site, up)
    square = float(place @ place)
    mask = math.sin(math.radians(SITE.mask_deg))
    near = math.sin(math.radians(SITE.mask_deg - NEAR_DEG))
    windows: Windows = []
    close: Windows = []
    for first in range(0, len(satellites), GRID_CHUNK):
        chunk = satellites[first : first + GRID_CHUNK]
        _, position, _ = SatrecArray(list(chunk)).sgp4(jd, fraction)
        for row, each in enumerate(position):
            x, y, z = each.T
            # |r - s|^2 = r.r - 2 r.s + s.s saves the difference's three arrays.
            along = x * site[0] + y * site[1] + z * site[2]
            distance = np.sqrt(np.einsum("tk,tk->t", each, each) - 2 * along + square)
            sine = (x * up[0] + y * up[1] + z * up[2] - height) / distance
            windows += [(first + row, *span) for span in _spans(at_s, sine - mask)]
            apexes = np.flatnonzero((sine[1:-1] > near) & (sine[1:-1] <= mask)
                                    & (sine[1:-1] >= sine[:-2]) & (sine[1:-1] >= sine[2:])) + 1  # fmt: skip
            close += [(first + row, float(at_s[index]), float(at_s[index])) for index in apexes]
    return windows, close


def _spans(at_s: np.ndarray, value: np.ndarray) -> list[tuple[float, float]]:
    """Where a sampled curve is above zero, with edges by linear interpolation."""
    up = value > 0
    turns = np.flatnonzero(up[1:] != up[:-1])
    edges = (at_s[turns] + (at_s[turns + 1] - at_s[turns]) * value[turns] / (value[turns] - value[turns + 1])).tolist()
    edges = ([float(at_s[0])] if up[0] else []) + edges + ([float(at_s[-1])] if up[-1] else [])
    return list(zip(edges[::2], edges[1::2], strict=True))


def reference(satellites: Sequence[Satrec], candidates: Windows) -> Windows:
    """Windows of exact elevations every 0.1 s around each candidate, by another formula than the finder's."""
    ground = frames.geodetic_to_ecef(SITE.latitude_deg, SITE.longitude_deg, SITE.altitude_m)
    up = frames.vertical(SITE.latitude_deg, SITE.longitude_deg)
    found: Windows = []
    for number, begin_s, finish_s in candidates:
        low_s, high_s = max(START_S, begin_s - MARGIN_S), min(START_S + DAY_S, finish_s + MARGIN_S)
        at_s = np.append(np.arange(low_s, high_s, REFERENCE_STEP_S), high_s)
        _, place_km, speed_km_s = satellites[number].sgp4_array(*frames.julian(at_s))
        place, _ = frames.teme_to_ecef(at_s, place_km * 1000, speed_km_s * 1000)
        ray = place - ground
        elevation = np.arctan2(ray @ up, np.linalg.norm(np.cross(ray, up), axis=1))
        found += [(number, *span) for span in _spans(at_s, elevation - math.radians(SITE.mask_deg))]
    return found


def compare(mine: Windows, expected: Windows) -> dict[str, object]:
    """What is missing, what is too many, and how far the edges are from the reference."""
    errors_s: list[float] = []
    missed = 0
    used: set[int] = set()
    for number, begin_s, finish_s in expected:
        match = [
            index
            for index, (other, start_s, end_s) in enumerate(mine)
            if other == number and start_s < finish_s and begin_s < end_s
        ]
        if len(match) != 1:
            missed += 1
            continue
        used.add(match[0])
        errors_s += [abs(mine[match[0]][1] - begin_s), abs(mine[match[0]][2] - finish_s)]
    too_many = [mine[index] for index in range(len(mine)) if index not in used]
    return {
        "windows": len(expected),
        "missed": missed,
        "not_in_reference": len(too_many),
        "longest_not_in_reference_s": max((end - start for _, start, end in too_many), default=0.0),
        "edge_error_ms": {
            "median": statistics.median(errors_s) * 1e3,
            "p99": sorted(errors_s)[int(len(errors_s) * 0.99)] * 1e3,
            "max": max(errors_s) * 1e3,
        },
    }


def _small(count: int, seed: int, rounds: int) -> dict[str, object]:
    satellites = fleet(count, seed)
    finder_s: list[float] = []
    grid_s: list[float] = []
    finder_wall_s: list[float] = []
    find_passes(satellites[:10], [SITE], START_S, START_S + DAY_S)  # tables and imports are there before we count
    for turn in range(rounds):
        for what in (("finder", "grid"), ("grid", "finder"))[turn % 2]:
            before_s, wall_s = time.process_time(), time.perf_counter()
            if what == "finder":
                passes = find_passes(satellites, [SITE], START_S, START_S + DAY_S).passes
                finder_s.append(time.process_time() - before_s)
                finder_wall_s.append(time.perf_counter() - wall_s)
            else:
                windows, close = grid(satellites)
                grid_s.append(time.process_time() - before_s)
    mine = [(each.satellite, each.start_s, each.end_s) for each in passes]
    expected = reference(satellites, windows)
    covered = {(number, round(begin)) for number, begin, _ in expected}
    expected += [each for each in reference(satellites, close) if (each[0], round(each[1])) not in covered]
    return {
        "satellites": count,
        "seed": seed,
        "site": {"latitude_deg": SITE.latitude_deg, "longitude_deg": SITE.longitude_deg, "mask_deg": SITE.mask_deg},
        "against_0.1_s_reference": compare(mine, expected),
        "grid_1_s_against_reference": compare(windows, expected),
        "finder_cpu_s": _spread(finder_s),
        "finder_wall_s": _spread(finder_wall_s),
        "grid_1_s_cpu_s": _spread(grid_s),
        "times_less_cpu": _spread([slow / fast for slow, fast in zip(grid_s, finder_s, strict=True)]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def _large_child(whole_plan: bool) -> None:
    """1,584 satellites x 10 sites x 1 day, alone in a process; writes one JSON line."""
    scenario = load_scenario(ROOT / "examples" / "starlink-shell" / "scenario.toml")
    satellites = [each.satrec for each in scenario.satellites.values()]
    horizons = [Horizon(latitude, longitude, 0.0, 25.0) for latitude, longitude in PLACES]
    base = _peak_bytes()
    before_s, wall_s = time.process_time(), time.perf_counter()
    if whole_plan:
        # The example's own five sites, its +grid of lasers and latency curves, for its two hours.
        count = len(plan_contacts(scenario).contacts)
    else:
        count = len(find_passes(satellites, horizons, START_S, START_S + DAY_S).passes)
    report = {
        "found": count,
        "cpu_s": time.process_time() - before_s,
        "wall_s": time.perf_counter() - wall_s,
        "memory_before_bytes": base,
        "peak_memory_bytes": _peak_bytes(),
    }
    print(json.dumps(report))


def _peak_bytes() -> int:
    """The most memory that this process had, by its own status: getrusage's figure outlives exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _large(rounds: int, flag: str) -> dict[str, object]:
    runs = []
    for _ in range(rounds):
        command = [sys.executable, __file__, flag]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    measured = [key for key in runs[0] if key != "found"]
    return {"found": runs[0]["found"], **{key: _spread([run[key] for run in runs]) for key in measured}}


def _machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    model = next(names, platform.processor())
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit.stdout.strip(),
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, and write the results with `--json`."""
    parser = argparse.ArgumentParser(description="The contact finder against grids.")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and print it")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs, in turns")
    parser.add_argument("--satellites", type=int, default=400, help="how many satellites over one site")
    parser.add_argument("--seed", type=int, default=1, help="which random satellites")
    parser.add_argument("--skip-large", action="store_true", help="leave out the 1,584 satellites")
    parser.add_argument("--large-windows", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--large-plan", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large_windows or arguments.large_plan:
        _large_child(arguments.large_plan)
        return
    machine = _machine()
    report: dict[str, object] = {
        "bench": "contacts",
        "command": shlex.join(["python", "bench/contacts.py", *sys.argv[1:]]),
        "machine": machine,
        "one_site_one_day": _small(arguments.satellites, arguments.seed, arguments.rounds),
    }
    if not arguments.skip_large:
        report["shell_1584_ten_sites_one_day"] = _large(arguments.rounds, "--large-windows")
        report["shell_1584_plan_with_lasers_two_hours"] = _large(arguments.rounds, "--large-plan")
    if arguments.json:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
