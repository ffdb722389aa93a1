"""From a scenario and a span to a contact plan: windows found, latency curves drawn, warnings said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from sgp4.api import SGP4_ERRORS, Satrec

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from services.constellation import frames
from services.constellation.curves import Array
from services.constellation.elements import age_warning
from services.constellation.finder import Horizon, Pass, find_passes
from services.constellation.scenario import LaserLinks, Pair, RadioLinks, Scenario, WiredLinks
from services.constellation.toml_lines import refuse
from services.constellation.visibility import Sight, find_encounters

RADIO_SAMPLE_S = 10.0
"""How close the distances of a radio link are looked at first, in seconds."""

LASER_SAMPLE_S = 60.0
"""How close the distances of a laser link are looked at first, in seconds."""

SAMPLE_MIN_S = 0.5
"""How close distances are looked at where they bend sharply, in seconds."""

NAMES_SHOWN = 6
"""How many names a warning lists."""

WARNINGS_PER_KIND = 20
"""How many warnings of one kind are told one by one; the rest is counted."""

Distances = Callable[[Array], Array]


def plan_contacts(
    scenario: Scenario,
    start_s: float | None = None,
    end_s: float | None = None,
    between: tuple[str, str] | None = None,
) -> ContactPlan:
    """All contacts of a scenario within a span. A link that is open when the span begins has been acquired before.

    Args:
        scenario: What there is.
        start_s: Begin of the span, mesh time in seconds; the scenario's start where left out.
        end_s: Its end; the scenario's hours later where left out.
        between: Only the contacts of these two nodes, both directions.

    Raises:
        InvalidInputError: The span is inverted, or there is no node of that name.
    """
    begin = scenario.start_s if start_s is None else start_s
    finish = begin + scenario.hours * 3600 if end_s is None else end_s
    if not math.isfinite(begin) or not math.isfinite(finish) or finish <= begin:
        raise refuse(f"scenario {scenario.name}: the span from {begin} s to {finish} s is empty; end it later")
    only = None if between is None else frozenset(scenario.check_node(name) for name in between)
    if only is not None and len(only) != 2:
        raise refuse(f"scenario {scenario.name}: a link joins two nodes; name two different ones")
    planner = _Planner(scenario, begin, finish, only)
    contacts = planner.contacts()
    warnings = [*_ages(scenario, begin, only), *planner.lost_warnings()]
    if only is None:
        warnings += [*planner.idle_rules(), *_strangers(scenario, contacts)]
    elif not contacts:
        warnings.append(f"{' and '.join(sorted(only))} never see each other in this span")
    return ContactPlan(begin, finish, tuple(contacts), tuple(warnings))


class _Planner:
    """One plan in the making."""

    def __init__(self, scenario: Scenario, start_s: float, end_s: float, only: frozenset[str] | None) -> None:
        self._scenario = scenario
        self._start_s = start_s
        self._end_s = end_s
        self._only = only
        self._joined: set[frozenset[str]] = set()
        self._lost: dict[str, tuple[float, int]] = {}
        self._idle: list[int] = []

    def contacts(self) -> list[Contact]:
        found: list[Contact] = []
        for rule in self._scenario.links:
            pairs = self._fresh(rule.pairs)
            made = self._contacts_of(rule, pairs) if pairs else []
            if pairs and not made:
                self._idle.append(rule.line)
            found += made
        return found

    def lost_warnings(self) -> list[str]:
        """What SGP4 could not follow."""
        said = [
            f"{name} ({self._scenario.satellites[name].source}): cannot be followed from "
            f"{at_s - self._start_s:.0f} s into the span: {SGP4_ERRORS[code]}; it has no contacts from there"
            for name, (at_s, code) in sorted(self._lost.items())
        ]
        return _shortened(said, "satellites that cannot be followed")

    def idle_rules(self) -> list[str]:
        return [f"the links of line {line} never open in this span" for line in self._idle]

    def _fresh(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that no earlier rule joins and that were asked for."""
        fresh = []
        for pair in pairs:
            both = frozenset(pair)
            if both not in self._joined and (self._only is None or both == self._only):
                self._joined.add(both)
                fresh.append(pair)
        return fresh

    def _contacts_of(self, rule: RadioLinks | LaserLinks | WiredLinks, pairs: list[Pair]) -> list[Contact]:
        if isinstance(rule, RadioLinks):
            return self._radio(rule, pairs)
        if isinstance(rule, LaserLinks):
            return self._laser(rule, pairs)
        curve = (LatencyPoint(self._start_s, rule.latency_s),)
        return [
            Contact(source, target, self._start_s, self._end_s, rule.rate_bps, curve, "wired",
                    truncated_start=True, truncated_end=True)
            for pair in pairs
            for source, target in (pair, pair[::-1])
        ]  # fmt: skip

    def _radio(self, rule: RadioLinks, pairs: list[Pair]) -> list[Contact]:
        sites = list(dict.fromkeys(site for site, _ in pairs))
        satellites = list(dict.fromkeys(satellite for _, satellite in pairs))
        wanted = set(pairs)
        places = [self._scenario.sites[site] for site in sites]
        horizons = [
            Horizon(each.latitude_deg, each.longitude_deg, each.altitude_m, rule.masks_deg[each.name], rule.range_m)
            for each in places
        ]
        elements = [self._scenario.satellites[name].satrec for name in satellites]
        found = find_passes(elements, horizons, self._start_s, self._end_s)
        self._lost |= {satellites[number]: how for number, how in found.lost.items()}
        grounds = [frames.geodetic_to_ecef(each.latitude_deg, each.longitude_deg, each.altitude_m) for each in places]
        contacts: list[Contact] = []
        for each in found.passes:
            if (sites[each.site], satellites[each.satellite]) in wanted:
                distances = _to_site(elements[each.satellite], grounds[each.site])
                contacts += self._radio_contacts(rule, each, sites[each.site], satellites[each.satellite], distances)
        return contacts

    def _radio_contacts(
        self, rule: RadioLinks, seen: Pass, site: str, satellite: str, distances: Distances
    ) -> list[Contact]:
        curve = latency_curve(
            distances, seen.start_s, seen.end_s, self._scenario.latency_tolerance_s, RADIO_SAMPLE_S
        )
        return [
            Contact(source, target, seen.start_s, seen.end_s, rate_bps, curve, "radio",
                    0.0 if seen.truncated_start else rule.acquisition_s,
                    min(seen.max_elevation_deg, 90.0), seen.truncated_start, seen.truncated_end)
            for source, target, rate_bps in ((satellite, site, rule.down_bps), (site, satellite, rule.up_bps))
        ]  # fmt: skip

    def _laser(self, rule: LaserLinks, pairs: list[Pair]) -> list[Contact]:
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        number = {name: index for index, name in enumerate(names)}
        elements = [self._scenario.satellites[name].satrec for name in names]
        chosen = [(number[first], number[second]) for first, second in pairs]
        sight = Sight(rule.range_m, rule.margin_m)
        contacts = []
        for seen in find_encounters(elements, chosen, sight, self._start_s, self._end_s):
            first, second = chosen[seen.pair]
            curve = latency_curve(
                _apart(elements[first], elements[second]),
                seen.start_s, seen.end_s, self._scenario.latency_tolerance_s, LASER_SAMPLE_S,
            )  # fmt: skip
            contacts += [
                Contact(source, target, seen.start_s, seen.end_s, rule.rate_bps, curve, "laser",
                        0.0 if seen.truncated_start else rule.acquisition_s,
                        None, seen.truncated_start, seen.truncated_end)
                for source, target in (pairs[seen.pair], pairs[seen.pair][::-1])
            ]  # fmt: skip
        return contacts


def _teme(satellite: Satrec, at_s: Array) -> tuple[Array, Array]:
    _, place_km, speed_km_s = satellite.sgp4_array(*frames.julian(at_s))
    return place_km * 1000, speed_km_s * 1000


def _to_site(satellite: Satrec, ground_m: Array) -> Distances:
    def distances(at_s: Array) -> Array:
        place, _ = frames.teme_to_ecef(at_s, *_teme(satellite, at_s))
        return np.asarray(np.linalg.norm(place - ground_m, axis=1))

    return distances


def _apart(first: Satrec, second: Satrec) -> Distances:
    def distances(at_s: Array) -> Array:
        return np.asarray(np.linalg.norm(_teme(first, at_s)[0] - _teme(second, at_s)[0], axis=1))

    return distances


def latency_curve(
    distances: Distances, start_s: float, end_s: float, tolerance_s: float, sample_s: float
) -> tuple[LatencyPoint, ...]:
    """Propagation delay over a window, linear between as few evenly spaced points as keep to the tolerance.

    The error of a chord of length h is at most h^2 / 8 times the largest second derivative, which is taken from second
    differences of a closer grid; where that grid itself is too coarse for the bend, it is made finer.

    Args:
        distances: From times, shape (n,), to metres.
        start_s: Begin of the window, mesh time in seconds.
        end_s: Its end.
        tolerance_s: How far the curve may be off, in seconds.
        sample_s: The grid to begin with, in seconds.
    """
    while True:
        count = max(2, math.ceil((end_s - start_s) / sample_s))
        at_s = np.linspace(start_s, end_s, count + 1)
        delay_s = distances(at_s) / frames.LIGHT_M_S
        bend = float(np.abs(np.diff(delay_s, 2)).max())
        if bend / 8 <= tolerance_s / 4 or sample_s <= SAMPLE_MIN_S:
            break
        sample_s = max(SAMPLE_MIN_S, sample_s / 4)
    # Half the tolerance is kept for what second differences do not see.
    longest = math.sqrt(4 * tolerance_s / max(bend, 1e-15))
    pieces = max(1, math.ceil(count / max(1.0, longest)))
    at_s = np.linspace(start_s, end_s, pieces + 1)
    delays = (distances(at_s) / frames.LIGHT_M_S).tolist()
    times = at_s.tolist()
    times[0], times[-1] = start_s, end_s
    return tuple(LatencyPoint(*point) for point in zip(times, delays, strict=True))


def _ages(scenario: Scenario, start_s: float, only: frozenset[str] | None) -> list[str]:
    said = []
    for each in scenario.satellites.values():
        if each.epoch_s is not None and (only is None or each.name in only):
            warning = age_warning(f"{each.name} ({each.source})", each.epoch_s, start_s)
            if warning:
                said.append(warning)
    return _shortened(said, "satellites with old elements")


def _shortened(said: list[str], what: str) -> list[str]:
    if len(said) <= WARNINGS_PER_KIND:
        return said
    return [*said[:WARNINGS_PER_KIND], f"{len(said) - WARNINGS_PER_KIND} more {what}"]


def _strangers(scenario: Scenario, contacts: Iterable[Contact]) -> list[str]:
    """Nodes that never see each other, not even by way of others at other times."""
    group = {name: name for name in scenario.names}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    for contact in contacts:
        group[root(contact.source)] = root(contact.target)
    groups: dict[str, list[str]] = {}
    for name in scenario.names:
        groups.setdefault(root(name), []).append(name)
    if len(groups) <= 1:
        return []
    alone = [members[0] for members in groups.values() if len(members) == 1]
    together = [members for members in groups.values() if len(members) > 1]
    said = []
    if not together:
        return ["no two nodes of the scenario see each other in this span; look at links, masks, ranges and hours"]
    if alone:
        said.append(f"{_listed(alone)} never {'see' if len(alone) > 1 else 'sees'} another node in this span")
    if len(together) > 1:
        said.append(
            f"the nodes fall into {len(together)} groups that never see each other in this span: "
            + " | ".join(_listed(members) for members in together[:NAMES_SHOWN])
        )
    return said


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
