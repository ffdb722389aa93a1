"""A scenario: which satellites and sites there are, and which of them may be linked how.

The file is TOML; `docs/constellation.md` has its reference. Everything is checked when it is read: unknown keys, names
that nothing has, numbers out of range and element sets that do not parse are errors with the line and the fix.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from sgp4.api import Satrec

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.names import NAME_MAX_CHARS, check_name
from services.constellation.elements import SATELLITES_MAX, read_elements
from services.constellation.toml_lines import Lines, Table, nearest, refuse
from services.constellation.walker import Walker, grid_links, satellite

SCENARIO_MAX_BYTES = 4 * 1024 * 1024
"""Largest scenario file that is read, in bytes."""

SITES_MAX = 1_000
"""Most ground and edge sites of a scenario."""

PAIRS_MAX = 50_000
"""Most pairs of satellites that laser links may join."""

HOURS_MAX = 24.0 * 31
"""Longest span of a plan, in hours."""

SITE_KINDS = ("ground", "edge")
LINK_KINDS = ("radio", "laser", "wired")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Orbiter:
    """A satellite."""

    name: str
    """Its name in the mesh."""
    satrec: Satrec
    """Its elements, set up for SGP4."""
    epoch_s: float | None
    """When its elements were true, mesh time in seconds; None for a Walker satellite, which is true by definition."""
    source: str
    """Where it comes from: the element set's name and line, or plane and slot."""


@dataclass(frozen=True)
class Site:
    """A place on the ground, or an edge node's."""

    name: str
    """Its name in the mesh."""
    kind: str
    """`ground` or `edge`."""
    latitude_deg: float
    """Geodetic latitude, degrees north."""
    longitude_deg: float
    """Longitude, degrees east."""
    altitude_m: float
    """Above the WGS 84 ellipsoid, in metres."""
    mask_deg: float
    """Lowest elevation that its antenna uses, in degrees."""


@dataclass(frozen=True)
class RadioLinks:
    """Links of sites with the satellites above their masks."""

    line: int
    """Where it stands in the scenario."""
    pairs: tuple[Pair, ...]
    """(site, satellite)."""
    masks_deg: dict[str, float]
    """The mask that holds for each site."""
    range_m: float | None
    """The longest link, in metres; None where the mask alone limits."""
    down_bps: float
    """From satellite to site, in bits per second."""
    up_bps: float
    """From site to satellite, in bits per second."""
    acquisition_s: float
    """How long a link carries nothing after it opens, in seconds."""


@dataclass(frozen=True)
class LaserLinks:
    """Links between satellites."""

    line: int
    """Where it stands in the scenario."""
    pairs: tuple[Pair, ...]
    """Two satellites each, once."""
    range_m: float
    """The longest link, in metres."""
    margin_m: float
    """How far above the equatorial radius the line must stay, in metres."""
    rate_bps: float
    """Each way, in bits per second."""
    acquisition_s: float
    """How long a link carries nothing after it opens, in seconds."""


@dataclass(frozen=True)
class WiredLinks:
    """Links that are always there."""

    line: int
    """Where it stands in the scenario."""
    pairs: tuple[Pair, ...]
    """Two sites each, once."""
    rate_bps: float
    """Each way, in bits per second."""
    latency_s: float
    """One way, in seconds."""


@dataclass(frozen=True)
class Scenario:
    """All of it, checked."""

    name: str
    """What people call it."""
    start_s: float
    """When it begins, mesh time in seconds."""
    hours: float
    """How long a plan of it is by default, in hours."""
    latency_tolerance_s: float
    """How far a plan's latency curves may be from the true ones, in seconds."""
    satellites: dict[str, Orbiter]
    """By name, in the file's order."""
    sites: dict[str, Site]
    """By name, in the file's order."""
    links: tuple[RadioLinks | LaserLinks | WiredLinks, ...]
    """In the file's order; of two that join the same pair, the first counts."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every node."""
        return (*self.satellites, *self.sites)

    def kind(self, name: str) -> str:
        """`satellite`, `edge` or `ground`."""
        return "satellite" if name in self.satellites else self.sites[name].kind

    def check_node(self, name: str) -> str:
        """`name` itself where there is such a node.

        Raises:
            InvalidInputError: There is none; names the nearest.
        """
        if name in self.satellites or name in self.sites:
            return name
        raise refuse(f"scenario {self.name}: there is no node {name[:80]!r}{nearest(name, self.names)}")


def load_scenario(path: str | Path) -> Scenario:
    """The scenario in a file; element sets are looked for beside it.

    Raises:
        InvalidInputError: Something in it is wrong; the message names file and line and says what to do.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise refuse(f"{file}: cannot be read: {error.strerror}; give the path of a scenario file") from None
    if len(data) > SCENARIO_MAX_BYTES:
        raise refuse(f"{file}: more than {SCENARIO_MAX_BYTES} bytes; expected a scenario in TOML")
    try:
        text = data.decode("utf-8")
        record = tomllib.loads(text)
    except UnicodeDecodeError:
        raise refuse(f"{file}: is no text; expected a scenario in TOML") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise refuse(f"{file}: is no TOML: {error}") from None
    return _Reader(file, Table(record, (), Lines(text), str(file))).read()


class _Reader:
    """Reads one file."""

    def __init__(self, file: Path, top: Table) -> None:
        self._file = file
        self._top = top
        self._satellites: dict[str, Orbiter] = {}
        self._sites: dict[str, Site] = {}
        self._lines: dict[str, int] = {}
        self._grids: list[Pair] = []

    def read(self) -> Scenario:
        top = self._top
        name = top.text("name", self._file.stem)
        start_s = self._start_s()
        hours = top.number("hours", 0, HOURS_MAX, 24.0, above=True, unit="hours")
        tolerance_us = top.number("latency_tolerance_us", 1, 1e6, 50.0, unit="microseconds")
        satellites, sites, links = top.tables("satellites"), top.tables("sites"), top.tables("links")
        top.finish()
        for table in satellites:
            self._read_satellites(table, start_s)
        for table in sites:
            self._read_site(table)
        if not self._satellites and not self._sites:
            raise top.wrong(None, "the scenario has no node; add [[satellites]] and [[sites]]")
        rules = tuple(self._read_links(table) for table in links)
        return Scenario(name, start_s, hours, tolerance_us / 1e6, self._satellites, self._sites, rules)

    def _start_s(self) -> float:
        start = self._top.value("start")
        if not isinstance(start, datetime):
            raise self._top.wrong("start", f"start is {start!r}; expected a time, for instance 2026-01-31T12:00:00Z")
        if start.tzinfo is None:
            raise self._top.wrong("start", f"start is {start.isoformat()} without a zone; add Z for UTC")
        return start.timestamp()

    def _read_satellites(self, table: Table, start_s: float) -> None:
        if table.has("tle") == table.has("walker"):
            raise table.wrong(None, "[[satellites]] needs one of `tle` and `walker`; give exactly one")
        if table.has("tle"):
            self._read_tle(table)
        else:
            self._read_walker(table, start_s)
        if len(self._satellites) > SATELLITES_MAX:
            raise table.wrong(None, f"more than {SATELLITES_MAX} satellites; split the scenario")

    def _read_tle(self, table: Table) -> None:
        file = self._file.parent / table.text("tle")
        prefix = self._prefix(table, "")
        select = table.texts("select", [])
        names = table.texts("names", [])
        by_catalogue = table.text("naming", "title", ("title", "catalogue")) == "catalogue"
        table.finish()
        if names and len(names) != len(select):
            raise table.wrong("names", f"{len(names)} names for {len(select)} selected satellites; give one for each")
        sets = read_elements(file)
        by_title = {each.title: each for each in sets}
        chosen = sets
        if select:
            for title in select:
                if title not in by_title:
                    hint = nearest(title, by_title)
                    raise table.wrong("select", f"{file} has no satellite {title!r}{hint}")
            chosen = tuple(by_title[title] for title in select)
        for index, found in enumerate(chosen):
            name = names[index] if names else prefix + slug(found.catalogue if by_catalogue else found.title)
            where = f"{found.title} ({file.name}, line {found.line})"
            self._claim(name, table, "names" if names else "tle", where)
            self._satellites[name] = Orbiter(name, found.satrec, found.epoch_s, where)

    def _read_walker(self, table: Table, start_s: float) -> None:
        shape = table.table("walker")
        walker = Walker(
            planes=shape.count("planes", 1, 1_000),
            per_plane=shape.count("per_plane", 1, 1_000),
            phasing=shape.count("phasing", 0, 999, 0),
            altitude_km=shape.number("altitude_km", 160, 50_000, unit="km"),
            inclination_deg=shape.number("inclination_deg", 0, 180, unit="degrees"),
            star=shape.text("pattern", "delta", ("delta", "star")) == "star",
            raan_deg=shape.number("raan_deg", -360, 360, 0.0, unit="degrees"),
        )
        shape.finish()
        if walker.phasing >= walker.planes:
            raise shape.wrong("phasing", f"phasing is {walker.phasing}; expected 0 to {walker.planes - 1} (planes - 1)")
        if walker.planes * walker.per_plane > SATELLITES_MAX:
            raise shape.wrong("planes", f"more than {SATELLITES_MAX} satellites; take fewer planes")
        prefix = self._prefix(table, "sat-")
        planes, slots = table.indices("only_planes", walker.planes), table.indices("only_slots", walker.per_plane)
        table.finish()
        placed: dict[tuple[int, int], str] = {}
        for plane in planes:
            for slot in slots:
                name = placed[plane, slot] = f"{prefix}{plane}-{slot}"
                where = f"plane {plane}, slot {slot}"
                self._claim(name, table, "prefix", where)
                self._satellites[name] = Orbiter(name, satellite(walker, plane, slot, start_s), None, where)
        self._grids += [
            (placed[first], placed[second])
            for first, second in grid_links(walker)
            if first in placed and second in placed
        ]

    def _prefix(self, table: Table, default: str) -> str:
        return table.text("prefix", default) if table.has("prefix") else default

    def _read_site(self, table: Table) -> None:
        site = Site(
            name=table.text("name"),
            kind=table.text("kind", "ground", SITE_KINDS),
            latitude_deg=table.number("latitude_deg", -90, 90, unit="degrees"),
            longitude_deg=table.number("longitude_deg", -180, 180, unit="degrees"),
            altitude_m=table.number("altitude_m", -500, 50_000, 0.0, unit="metres"),
            mask_deg=_mask(table, 10.0),
        )
        table.finish()
        self._claim(site.name, table, "name", f"site {site.name}")
        self._sites[site.name] = site
        if len(self._sites) > SITES_MAX:
            raise table.wrong(None, f"more than {SITES_MAX} sites; split the scenario")

    def _claim(self, name: str, table: Table, key: str, what: str) -> None:
        try:
            check_name(name)
        except InvalidInputError as error:
            raise table.wrong(key, f"{what}: {error.message}") from None
        if name in self._lines:
            raise table.wrong(
                key,
                f"{what}: the name {name!r} is taken already (line {self._lines[name]}); "
                + ('set `naming = "catalogue"` or another prefix' if key == "tle" else "give one of them another name"),
            )
        self._lines[name] = table.line

    def _read_links(self, table: Table) -> RadioLinks | LaserLinks | WiredLinks:
        kind = table.text("kind", choices=LINK_KINDS)
        made: RadioLinks | LaserLinks | WiredLinks
        if kind == "radio":
            made = self._radio(table)
        elif kind == "laser":
            made = self._laser(table)
        else:
            made = self._wired(table)
        table.finish()
        return made

    def _radio(self, table: Table) -> RadioLinks:
        sites = self._matching(table, "sites", tuple(self._sites))
        satellites = self._matching(table, "satellites", tuple(self._satellites))
        masks = {name: self._sites[name].mask_deg for name in sites}
        if table.has("mask_deg"):
            masks = dict.fromkeys(sites, _mask(table, 0.0))
        rate = table.number("rate_mbps", 0, 1e9, above=True, unit="Mbit/s")
        return RadioLinks(
            line=table.line,
            pairs=tuple((site, satellite) for site in sites for satellite in satellites),
            masks_deg=masks,
            range_m=self._range_m(table) if table.has("range_km") else None,
            down_bps=rate * 1e6,
            up_bps=table.number("up_rate_mbps", 0, 1e9, rate, above=True, unit="Mbit/s") * 1e6,
            acquisition_s=_acquisition_s(table),
        )

    def _laser(self, table: Table) -> LaserLinks:
        if table.has("between"):
            pairs = self._between(table, self._satellites, "satellite")
        else:
            chosen = self._matching(table, "satellites", tuple(self._satellites))
            pairs = self._pattern(table, chosen)
        if len(pairs) > PAIRS_MAX:
            raise table.wrong(None, f"{len(pairs)} pairs of satellites; expected at most {PAIRS_MAX}: name fewer")
        return LaserLinks(
            line=table.line,
            pairs=tuple(pairs),
            range_m=self._range_m(table),
            margin_m=table.number("margin_km", 0, 10_000, 80.0, unit="km") * 1e3,
            rate_bps=table.number("rate_mbps", 0, 1e9, above=True, unit="Mbit/s") * 1e6,
            acquisition_s=_acquisition_s(table),
        )

    def _pattern(self, table: Table, chosen: tuple[str, ...]) -> list[Pair]:
        if table.text("pattern", "grid", ("grid", "all")) == "all":
            count = len(chosen) * (len(chosen) - 1) // 2
            if count > PAIRS_MAX:
                raise table.wrong("pattern", f"{count} pairs of satellites; expected at most {PAIRS_MAX}: name fewer")
            return [(first, second) for index, first in enumerate(chosen) for second in chosen[index + 1 :]]
        members = frozenset(chosen)
        pairs = [pair for pair in self._grids if members.issuperset(pair)]
        if not pairs:
            raise table.wrong(
                "pattern",
                "the grid joins neighbours of a Walker constellation, and these satellites have none; "
                'use pattern = "all" or between = [["a", "b"]]',
            )
        return pairs

    def _wired(self, table: Table) -> WiredLinks:
        return WiredLinks(
            line=table.line,
            pairs=tuple(self._between(table, self._sites, "site")),
            rate_bps=table.number("rate_mbps", 0, 1e9, above=True, unit="Mbit/s") * 1e6,
            latency_s=table.number("latency_ms", 0, 60_000, unit="ms") / 1e3,
        )

    def _range_m(self, table: Table) -> float:
        return table.number("range_km", 0, 1e6, 5_000.0, above=True, unit="km") * 1e3

    def _between(self, table: Table, known: dict[str, Orbiter] | dict[str, Site], what: str) -> list[Pair]:
        found: dict[frozenset[str], Pair] = {}
        for first, second in table.pairs("between"):
            for name in (first, second):
                if name not in known:
                    raise table.wrong("between", f"there is no {what} {name!r}{nearest(name, known)}")
            if first == second:
                raise table.wrong("between", f"{first!r} is linked with itself; name two nodes")
            found.setdefault(frozenset((first, second)), (first, second))
        if not found:
            raise table.wrong("between", 'expected at least one pair of names, for instance [["a", "b"]]')
        return list(found.values())

    def _matching(self, table: Table, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        patterns = table.texts(key, ["*"])
        what = key.removesuffix("s")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise table.wrong(key, f"there is no {what} {pattern!r}{nearest(pattern, known)}; define it first")
        return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))


def _mask(table: Table, default: float) -> float:
    mask = table.number("mask_deg", 0, 90, default, unit="degrees")
    if mask == 90:
        raise table.wrong("mask_deg", "mask_deg is 90; expected 0 to less than 90 degrees above the horizon")
    return mask


def _acquisition_s(table: Table) -> float:
    return table.number("acquisition_s", 0, 3_600, 0.0, unit="seconds")


def slug(title: str) -> str:
    """A satellite's title as the name of a node: "IRIDIUM 7 [-]" is iridium-7."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:NAME_MAX_CHARS]
