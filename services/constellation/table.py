"""`python -m services.constellation.table`: a plan for the command line, as JSON on stdout.

The command `orbitmesh contacts` runs it, so that the base install needs neither numpy nor sgp4. It writes one object:
`{"scenario": ..., "plan": text of the plan, "nodes": ..., "tracks": ...}`, or
`{"error": {"reason": ..., "message": ...}}` and ends with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from typing import Any

import numpy as np

from orbitmesh.errors import MeshError
from services.constellation import frames
from services.constellation.planning import plan_contacts
from services.constellation.scenario import Scenario, load_scenario
from services.constellation.toml_lines import refuse

TRACK_STEP_S = 30.0
"""How close the points of a ground track are, in seconds."""

TRACK_SPAN_S = 6_000.0
"""How much of a ground track is drawn: about one low orbit, in seconds."""

TRACKS_MAX = 200
"""Most ground tracks that are drawn."""


def answer(scenario: Scenario, arguments: argparse.Namespace) -> dict[str, Any]:
    """The plan, the nodes and, where asked for, the ground tracks."""
    start_s = scenario.start_s if arguments.start is None else _time(arguments.start)
    hours = scenario.hours if arguments.hours is None else arguments.hours
    between = tuple(arguments.between) if arguments.between else None
    plan = plan_contacts(scenario, start_s, start_s + hours * 3600, between)
    nodes = {name: {"kind": scenario.kind(name)} for name in scenario.names}
    for name, site in scenario.sites.items():
        nodes[name] |= {"latitude_deg": site.latitude_deg, "longitude_deg": site.longitude_deg}  # type: ignore[dict-item]
    found: dict[str, Any] = {"scenario": scenario.name, "nodes": nodes, "plan": plan.dump()}
    if arguments.tracks:
        wanted = plan.nodes if between else scenario.satellites
        chosen = [name for name in scenario.satellites if name in wanted][:TRACKS_MAX]
        found["tracks"] = {name: _track(scenario, name, start_s, plan.end_s) for name in chosen}
    return found


def _track(scenario: Scenario, name: str, start_s: float, end_s: float) -> list[list[float]]:
    """Longitude and latitude in degrees under a satellite, as long as its elements can be followed."""
    times_s = np.arange(start_s, min(end_s, start_s + TRACK_SPAN_S), TRACK_STEP_S)
    errors, place_km, speed_km_s = scenario.satellites[name].satrec.sgp4_array(*frames.julian(times_s))
    good = errors == 0
    place, _ = frames.teme_to_ecef(times_s[good], place_km[good] * 1000, speed_km_s[good] * 1000)
    latitude, longitude, _ = frames.ecef_to_geodetic(place)
    return np.round(np.stack((longitude, latitude), axis=1), 3).tolist()  # type: ignore[no-any-return]


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise refuse(f"--from is {text[:40]!r}; expected a time, for instance 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise refuse(f"--from is {text[:40]!r} without a zone; add Z for UTC")
    return found.timestamp()


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="A contact plan as JSON.")
    parser.add_argument("scenario")
    parser.add_argument("--from", dest="start")
    parser.add_argument("--hours", type=float)
    parser.add_argument("--between", nargs=2)
    parser.add_argument("--tracks", action="store_true")
    arguments = parser.parse_args()
    try:
        found = answer(load_scenario(arguments.scenario), arguments)
    except MeshError as error:
        found = {"error": {"reason": error.reason, "message": error.message}}
    sys.stdout.write(json.dumps(found))
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
