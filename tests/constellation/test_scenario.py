"""Scenario files: what is wrong in one is said by its line and with the fix; what is doubtful is a stated warning."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from orbitmesh.contacts import ContactPlan
from orbitmesh.errors import InvalidInputError
from services.constellation import frames
from services.constellation.elements import checksum, parse_elements
from services.constellation.planning import latency_curve, plan_contacts
from services.constellation.scenario import Scenario, load_scenario

ROOT = Path(__file__).resolve().parents[2]
IRIDIUM = ROOT / "examples" / "iridium" / "iridium.tle"

GOOD = """\
name = "small"
start = 2022-09-15T00:00:00Z
hours = 3

[[satellites]]
prefix = "sat-"
walker = { planes = 3, per_plane = 8, phasing = 1, altitude_km = 1200, inclination_deg = 60 }

[[sites]]
name = "berlin"
latitude_deg = 52.5
longitude_deg = 13.4
mask_deg = 10

[[sites]]
name = "edge-1"
kind = "edge"
latitude_deg = 48.0
longitude_deg = 2.0

[[links]]
kind = "radio"
rate_mbps = 100
up_rate_mbps = 20
acquisition_s = 2

[[links]]
kind = "laser"
pattern = "grid"
range_km = 12000
rate_mbps = 1000

[[links]]
kind = "wired"
between = [["berlin", "edge-1"]]
latency_ms = 7
rate_mbps = 500
"""


def read(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text)
    assert caught.value.reason == "SCENARIO_INVALID"
    return caught.value.message


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        ("mask_deg = 10", "mask_dge = 10", "mask_dge", "unknown key 'mask_dge'; did you mean 'mask_deg'?"),
        ("hours = 3", "huors = 3", "huors", "unknown key 'huors'; did you mean 'hours'?"),
        ("planes = 3", "plains = 3", "walker", "the key 'planes' is missing here"),
        ("phasing = 1", "phase = 1", "walker", "unknown key 'phase'; did you mean 'phasing'?"),
        ('["berlin", "edge-1"]', '["berlin", "edge-2"]', "between", "no site 'edge-2'; did you mean 'edge-1'?"),
        ('pattern = "grid"', 'satellites = ["moon-*"]', "moon", "there is no satellite 'moon-*'"),
        ('name = "edge-1"', 'name = "berlin"', 'kind = "edge"', "the name 'berlin' is taken already (line 9)"),
        ('name = "edge-1"', 'name = "Edge 1"', "Edge 1", "cannot be a name"),
        ("mask_deg = 10", "mask_deg = 95", "mask_deg", "mask_deg is 95; expected from 0 to 90 degrees"),
        ("mask_deg = 10", "mask_deg = 90", "mask_deg", "expected 0 to less than 90 degrees"),
        ("mask_deg = 10", "mask_deg = -1", "mask_deg", "mask_deg is -1; expected from 0"),
        ("latitude_deg = 52.5", "latitude_deg = 152.5", "152.5", "expected from -90 to 90 degrees"),
        ("latitude_deg = 52.5", 'latitude_deg = "north"', "north", "expected a number of degrees"),
        ("altitude_km = 1200", "altitude_km = 12", "walker", "altitude_km is 12; expected from 160 to 50000 km"),
        ("phasing = 1", "phasing = 3", "walker", "expected 0 to 2 (planes - 1)"),
        ("2022-09-15T00:00:00Z", "2022-09-15T00:00:00", "start", "without a zone; add Z for UTC"),
        ("2022-09-15T00:00:00Z", "1663200000", "start", "expected a time, for instance"),
        ('kind = "wired"', 'kind = "wire"', '"wire"', "kind is 'wire'; did you mean 'wired'?; expected one of"),
        ("rate_mbps = 500", "rate_mbps = 0", "rate_mbps = 0", "expected above 0"),
        ("range_km = 12000", "range_km = nan", "nan", "expected a number of km"),
        ("acquisition_s = 2", "acquisition_s = -2", "acquisition_s", "expected from 0 to 3600 seconds"),
        ('prefix = "sat-"', 'prefix = "sat-"\ntle = "x.tle"', "[[satellites]]", "needs one of `tle` and `walker`"),
        ("walker = {", "# walker = {", "[[satellites]]", "needs one of `tle` and `walker`"),
        ('between = [["berlin", "edge-1"]]', 'between = [["berlin", "berlin"]]', "between", "linked with itself"),
        ('between = [["berlin", "edge-1"]]', 'between = ["berlin", "edge-1"]', "between", "expected pairs of names"),
        ("latency_ms = 7\n", "", 'kind = "wired"', "the key 'latency_ms' is missing here; add `latency_ms = ...`"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_scenario_is_said_by_line_and_with_the_fix(
    old: str, new: str, at: str, expected: str, tmp_path: Path
) -> None:
    """Unknown keys, unknown and doubled names, numbers out of range: each error has the file, the line and the fix."""
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    message = refused(tmp_path, text)
    assert expected in message
    line = line_of(text, at)
    # A missing key and a doubled name are told at their table, whose header is above the line looked for.
    told = int(re.search(r"scenario\.toml, line (\d+)", message)[1])  # type: ignore[index]
    assert line - 2 <= told <= line


def test_broken_toml_and_missing_files_are_told(tmp_path: Path) -> None:
    """Syntax errors carry tomllib's line; missing files and empty scenarios say what to give."""
    assert "is no TOML" in refused(tmp_path, GOOD.replace("[[sites]]", "[[sites]", 1))
    assert "line 9" in refused(tmp_path, GOOD.replace("[[sites]]", "[[sites]", 1))
    assert "the scenario has no node" in refused(tmp_path, "start = 2022-09-15T00:00:00Z\n")
    assert "cannot be read" in refused(tmp_path, GOOD.replace("prefix", "tle").replace("walker", "# walker"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_scenario(tmp_path / "nothing.toml")


def test_a_scenario_gives_every_kind_of_link(tmp_path: Path) -> None:
    """Radio with the rates of each way and its acquisition, lasers of the grid, wires: each in both directions."""
    plan = plan_contacts(read(tmp_path, GOOD))
    assert {contact.kind for contact in plan.contacts} == {"radio", "laser", "wired"}
    for contact in plan.contacts:
        back = [each for each in plan.between(contact.target, contact.source) if each.start_s == contact.start_s]
        assert len(back) == 1
        assert (back[0].end_s, back[0].latency) == (contact.end_s, contact.latency)
        if contact.kind == "radio":
            upward = contact.source in ("berlin", "edge-1")
            assert contact.rate_bps == (20e6 if upward else 100e6)
            assert contact.acquisition_s == (0 if contact.truncated_start else 2)
            assert contact.max_elevation_deg is not None
            assert contact.max_elevation_deg > 9.99
    (wire,) = plan.between("berlin", "edge-1")
    assert (wire.latency_at(plan.start_s), wire.truncated_start, wire.truncated_end) == (0.007, True, True)
    assert plan.warnings == ()
    assert ContactPlan.parse(plan.dump()) == plan


def test_latencies_are_the_distances_at_the_speed_of_light(tmp_path: Path) -> None:
    """Every latency curve of the plan is within its tolerance of exact positions, between its points too."""
    scenario = read(tmp_path, GOOD)
    plan = plan_contacts(scenario)
    checked = 0
    for contact in plan.contacts[::7]:
        if contact.kind == "wired":
            continue
        at_s = np.linspace(contact.start_s, contact.end_s, 173)
        places = []
        for name in (contact.source, contact.target):
            if name in scenario.sites:
                site = scenario.sites[name]
                fixed = frames.geodetic_to_ecef(site.latitude_deg, site.longitude_deg, site.altitude_m)
                places.append(np.broadcast_to(fixed, (len(at_s), 3)))
            else:
                _, place_km, speed = scenario.satellites[name].satrec.sgp4_array(*frames.julian(at_s))
                places.append(frames.teme_to_ecef(at_s, place_km * 1000, speed * 1000)[0])
        delays_s = np.linalg.norm(places[0] - places[1], axis=1) / frames.LIGHT_M_S
        ours_s = np.array([contact.latency_at(each) for each in at_s])
        assert np.abs(ours_s - delays_s).max() <= scenario.latency_tolerance_s
        checked += 1
    assert checked > 10


def test_a_sharp_bend_makes_the_curve_finer() -> None:
    """Two satellites that pass each other at 15 km/s in 20 km: the curve follows, though the first grid is 60 s."""

    def distances(at_s: np.ndarray) -> np.ndarray:
        return np.hypot(15_000.0 * (at_s - 500.0), 20_000.0)

    curve = latency_curve(distances, 0.0, 1_000.0, 50e-6, 60.0)
    at_s = np.linspace(0, 1_000, 5_001)
    ours_s = np.interp(at_s, [point.at_s for point in curve], [point.latency_s for point in curve])
    assert np.abs(ours_s - distances(at_s) / frames.LIGHT_M_S).max() <= 50e-6


def test_nodes_that_never_see_each_other_are_a_stated_warning(tmp_path: Path) -> None:
    """A site no satellite rises over, two parts that never meet, links that never open: said in the plan, no hang."""
    polar = GOOD.replace("inclination_deg = 60", "inclination_deg = 0").replace("= 52.5", "= 89")
    alone = plan_contacts(read(tmp_path, polar[: polar.rindex("[[links]]")].replace("= 48.0", "= -89.0")))
    assert any("berlin, edge-1 never see another node in this span" in each for each in alone.warnings)
    assert any(f"the links of line {line_of(polar, '[[links]]')} never open" in each for each in alone.warnings)
    apart = plan_contacts(read(tmp_path, polar.replace("= 48.0", "= -89.0")))
    assert any("4 groups that never see each other" in each and "| berlin, edge-1" in each for each in apart.warnings)
    nothing = plan_contacts(read(tmp_path, GOOD[: GOOD.index("[[links]]")]))
    assert nothing.contacts == ()
    assert any("no two nodes of the scenario see each other" in each for each in nothing.warnings)
    pair = plan_contacts(read(tmp_path, GOOD), between=("sat-0-0", "sat-1-2"))
    assert pair.contacts == ()
    assert pair.warnings == ("sat-0-0 and sat-1-2 never see each other in this span",)


def test_a_span_or_a_pair_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Inverted spans, unknown nodes and a link of a node with itself are errors."""
    scenario = read(tmp_path, GOOD)
    with pytest.raises(InvalidInputError, match="is empty"):
        plan_contacts(scenario, 100.0, 50.0)
    with pytest.raises(InvalidInputError, match="no node 'berln'; did you mean 'berlin'"):
        plan_contacts(scenario, between=("berln", "sat-0-0"))
    with pytest.raises(InvalidInputError, match="two different ones"):
        plan_contacts(scenario, between=("berlin", "berlin"))


def test_of_two_rules_for_a_pair_the_first_counts(tmp_path: Path) -> None:
    """A special rule above a general one holds for its pairs alone, and no windows overlap."""
    special = '[[links]]\nkind = "radio"\nsites = ["berlin"]\nsatellites = ["sat-0-*"]\nrate_mbps = 7\n\n'
    plan = plan_contacts(read(tmp_path, GOOD.replace("[[links]]", special + "[[links]]", 1)))
    rates = {contact.source: contact.rate_bps for contact in plan.contacts if contact.target == "berlin"}
    assert {rate for source, rate in rates.items() if source.startswith("sat-0-")} == {7e6}
    assert 100e6 in rates.values()


TLE_LINES = IRIDIUM.read_text().splitlines()[:6]


@pytest.mark.parametrize(
    ("index", "change", "line", "expected"),
    [
        (4, lambda text: text[:20] + "9" + text[21:], 5, "is damaged: its checksum is"),
        (2, lambda text: text[:30] + "7" + text[31:], 3, "is damaged: its checksum is"),
        (1, lambda text: text[:-3], 2, "has 66 characters; expected 69"),
        (5, lambda _: TLE_LINES[2], 6, "is of satellite 24793 and the line before it of 24795"),
        (2, lambda _: "", 4, "expected line 2 of the element set of line 2"),
        (1, lambda _: "", 3, "without its line 1"),
        (4, lambda text: text[:8] + "\u00df" + text[9:], 5, "must be ASCII"),
    ],
)  # fmt: skip
def test_a_damaged_element_set_is_an_error_with_its_line(
    index: int, change: object, line: int, expected: str
) -> None:
    """A wrong checksum, a cut line, mixed satellites, a lost line: the error names the line; nothing is dropped."""
    lines = list(TLE_LINES)
    lines[index] = change(lines[index])  # type: ignore[operator]
    with pytest.raises(InvalidInputError) as caught:
        parse_elements("\n".join(lines) + "\n", "some.tle")
    assert f"some.tle, line {line}:" in caught.value.message
    assert expected in caught.value.message


def test_element_sets_are_read_whatever_their_dress() -> None:
    """With names, without, with "0 " before names, with CRLF and blank lines: the same satellites come out."""
    named = parse_elements("\n".join(TLE_LINES), "a")
    bare = parse_elements("\n".join(TLE_LINES[1:3] + TLE_LINES[4:6]), "b")
    dressed = parse_elements("\r\n\r\n".join(("0 " + TLE_LINES[0], *TLE_LINES[1:])) + "\r\n", "c")
    assert [each.title for each in named] == ["IRIDIUM 7 [-]", "IRIDIUM 5 [-]"] == [each.title for each in dressed]
    assert [each.title for each in bare] == ["24793", "24795"] == [each.catalogue for each in named]
    assert [each.epoch_s for each in named] == [each.epoch_s for each in bare] == [each.epoch_s for each in dressed]
    with pytest.raises(InvalidInputError, match="no element set in it"):
        parse_elements("\n\n", "empty.tle")
    with pytest.raises(InvalidInputError, match="'IRIDIUM 9' has no element set after it"):
        parse_elements("\n".join([*TLE_LINES, "IRIDIUM 9"]), "cut.tle")


def test_old_elements_are_a_warning_with_the_expected_error(tmp_path: Path) -> None:
    """A start 40 days after the elements' epoch is warned about with 1 to 3 km a day; one 10 days after is not."""
    (tmp_path / "two.tle").write_text("\n".join(TLE_LINES) + "\n")
    text = 'start = 2022-09-24T00:00:00Z\nhours = 1\n[[satellites]]\ntle = "two.tle"\n[[links]]\nkind = "laser"\n'
    text += 'pattern = "all"\nrate_mbps = 1\nrange_km = 100000\n'
    fresh = plan_contacts(read(tmp_path, text))
    assert not [each for each in fresh.warnings if "elements are" in each]
    old = plan_contacts(read(tmp_path, text.replace("09-24", "10-24")))
    said = [each for each in old.warnings if "iridium-7" in each]
    assert len(said) == 1
    assert "its elements are 39 days older than the start" in said[0]
    assert "expect positions off by 39 to 118 km (1 to 3 km a day)" in said[0]
    early = plan_contacts(read(tmp_path, text.replace("2022-09-24", "2022-07-24")))
    assert any("days newer than the start" in each for each in early.warnings)


def test_a_satellite_that_cannot_be_followed_is_a_warning_by_name(tmp_path: Path) -> None:
    """Elements whose drag ends the orbit before the start: no contacts, and the plan says which and why."""
    lines = list(TLE_LINES)
    dragged = lines[4][:53] + " 50000-0" + lines[4][61:68]
    lines[4] = dragged + str(checksum(dragged))
    (tmp_path / "two.tle").write_text("\n".join(lines) + "\n")
    text = 'start = 2022-10-10T00:00:00Z\nhours = 1\n[[satellites]]\ntle = "two.tle"\n[[sites]]\nname = "x"\n'
    text += 'latitude_deg = 0\nlongitude_deg = 0\n[[links]]\nkind = "radio"\nrate_mbps = 1\n'
    plan = plan_contacts(read(tmp_path, text))
    assert any("iridium-5" in each and "cannot be followed" in each and "line 5" in each for each in plan.warnings)


def test_selected_satellites_get_the_names_that_they_are_given(tmp_path: Path) -> None:
    """`select` and `names` make mesh nodes of some element sets; an unknown one is an error with the nearest."""
    (tmp_path / "two.tle").write_text("\n".join(TLE_LINES) + "\n")
    head = 'start = 2022-09-24T00:00:00Z\n[[satellites]]\ntle = "two.tle"\n'
    chosen = read(tmp_path, head + 'select = ["IRIDIUM 5 [-]"]\nnames = ["sat-1"]\n')
    assert list(chosen.satellites) == ["sat-1"]
    assert "line 4" in refused(tmp_path, head + 'select = ["IRIDIUM 6 [-]"]\n')
    assert "2 names for 1 selected" in refused(tmp_path, head + 'select = ["IRIDIUM 5 [-]"]\nnames = ["a", "b"]\n')
    catalogue = read(tmp_path, head + 'naming = "catalogue"\nprefix = "n-"\n')
    assert list(catalogue.satellites) == ["n-24793", "n-24795"]
    twice = refused(tmp_path, head + '[[satellites]]\ntle = "two.tle"\n')
    assert "line 5: IRIDIUM 7 [-] (two.tle, line 2): the name 'iridium-7' is taken already (line 2)" in twice


@pytest.mark.parametrize(("name", "satellites", "sites"), [("iridium", 31, 4), ("starlink-shell", 1_584, 5)])
def test_the_examples_load_and_have_links_of_each_kind(name: str, satellites: int, sites: int) -> None:
    """The scenarios of the examples hold every satellite of their sources and give a plan without warnings."""
    scenario = load_scenario(ROOT / "examples" / name / "scenario.toml")
    assert (len(scenario.satellites), len(scenario.sites)) == (satellites, sites)
    plan = plan_contacts(scenario, scenario.start_s, scenario.start_s + 1_200)
    assert {contact.kind for contact in plan.contacts} == {"radio", "laser", "wired"}
    assert not [each for each in plan.warnings if "elements" in each]
    readme = (ROOT / "examples" / name / "README.md").read_text()
    assert f"orbitmesh contacts examples/{name}/scenario.toml" in readme


def test_a_part_of_a_shell_keeps_only_the_links_inside_it(tmp_path: Path) -> None:
    """`only_planes` and `only_slots` leave satellites out by choice, and the grid joins those that are left."""
    part = GOOD.replace('prefix = "sat-"', 'prefix = "sat-"\nonly_planes = [0, 1]\nonly_slots = [0, 1]')
    scenario = read(tmp_path, part)
    assert list(scenario.satellites) == ["sat-0-0", "sat-0-1", "sat-1-0", "sat-1-1"]
    pairs = {frozenset(pair) for link in scenario.links for pair in link.pairs}
    grid = {pair for pair in pairs if all(name.startswith("sat-") for name in pair)}
    close = [("sat-0-0", "sat-0-1"), ("sat-1-0", "sat-1-1"), ("sat-0-0", "sat-1-0"), ("sat-0-1", "sat-1-1")]
    assert grid == {frozenset(pair) for pair in close}
    assert not any(frozenset(pair) in grid for pair in itertools.product(["sat-0-0"], ["sat-1-1"]))
