"""Contact plans as values and as JSON, and a mesh clock that no wall clock can push around."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbitmesh.contacts import KINDS, Contact, ContactPlan, LatencyPoint, MeshClock
from orbitmesh.errors import InvalidInputError

SEEN = Contact("sat-1", "berlin", 100.0, 700.0, 1e8, (LatencyPoint(100.0, 0.006), LatencyPoint(700.0, 0.002)))


def plan_of(*contacts: Contact) -> ContactPlan:
    return ContactPlan(0.0, 10_000.0, contacts)


def record_of(*contacts: dict[str, Any], **changes: object) -> str:
    head = {"format": "orbitmesh.contact-plan/1", "start_s": 0.0, "end_s": 10_000.0, "contacts": list(contacts)}
    return json.dumps(head | changes)


def entry(start_s: float = 100.0, end_s: float = 700.0, **changes: object) -> dict[str, Any]:
    found = {"source": "sat-1", "target": "berlin", "start_s": start_s, "end_s": end_s, "rate_bps": 1e8}
    return found | {"latency": [[start_s, 0.006]]} | changes


@st.composite
def plans(draw: st.DrawFn) -> ContactPlan:
    """Plans of up to six pairs with windows that touch, or have gaps, and curves of one to four points."""
    contacts = []
    for source, target in draw(st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=6)):
        marks = sorted(draw(st.sets(st.floats(0, 1e9), min_size=2, max_size=8)))
        for start_s, end_s in itertools.pairwise(marks):
            if draw(st.booleans()):
                inner = draw(st.sets(st.floats(start_s, end_s), max_size=2)) - {start_s, end_s}
                times = draw(st.sampled_from([[start_s], [start_s, *sorted(inner), end_s]]))
                curve = tuple(LatencyPoint(at_s, draw(st.floats(0, 2000))) for at_s in times)
                highest = draw(st.none() | st.floats(-90, 90))
                contacts.append(
                    Contact(
                        source, target, start_s, end_s, draw(st.floats(1e-3, 1e12)), curve,
                        draw(st.sampled_from(KINDS)), draw(st.floats(0, 1e3)), highest,
                        draw(st.booleans()), draw(st.booleans()),
                    )
                )  # fmt: skip
    return ContactPlan(0.0, 1e9, tuple(contacts), tuple(draw(st.lists(st.text(max_size=20), max_size=3))))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_a_plan_comes_back_from_json_to_the_last_bit(plan: ContactPlan) -> None:
    """What `dump` writes, `parse` reads as an equal plan."""
    assert ContactPlan.parse(plan.dump()) == plan


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(-10, 1.1e9))
def test_what_is_open_is_what_a_walk_over_every_window_finds(plan: ContactPlan, at_s: float) -> None:
    """`at`, `open_at` and `next_change` agree with a plain scan, at random times and at every edge."""
    edges = [edge for contact in plan.contacts for edge in (contact.start_s, contact.end_s)]
    for moment_s in [at_s, *edges]:
        scanned = [contact for contact in plan.contacts if contact.start_s <= moment_s < contact.end_s]
        assert list(plan.open_at(moment_s)) == scanned
        for source, target in plan.pairs:
            mine = [contact for contact in scanned if (contact.source, contact.target) == (source, target)]
            assert plan.at(source, target, moment_s) == (mine[0] if mine else None)
        changes = edges + [contact.carries_from_s for contact in plan.contacts]
        assert plan.next_change(moment_s) == min((edge for edge in changes if edge > moment_s), default=None)


def test_latency_is_linear_between_its_points_and_flat_outside() -> None:
    """Half way between 6 ms and 2 ms lie 4 ms; before and after the window the ends hold."""
    assert SEEN.latency_at(400.0) == pytest.approx(0.004)
    assert SEEN.latency_at(0.0) == 0.006
    assert SEEN.latency_at(9_000.0) == 0.002


def test_acquisition_is_taken_off_what_a_window_carries() -> None:
    """600 s at 100 Mbit/s with 60 s of acquisition carry 6.75 GB; one longer than the window carries nothing."""
    slow = dataclasses.replace(SEEN, acquisition_s=60.0)
    assert slow.carries_from_s == 160.0
    assert slow.volume_bytes == pytest.approx(6.75e9)
    assert dataclasses.replace(SEEN, acquisition_s=1e6).volume_bytes == 0
    assert plan_of(slow).next_change(100.0) == 160.0


def test_a_plan_sorts_its_contacts_and_knows_its_nodes() -> None:
    """Contacts given in any order are in order of time; windows that touch are two windows."""
    later = dataclasses.replace(SEEN, start_s=700.0, end_s=800.0, latency=(LatencyPoint(700.0, 0.002),))
    plan = plan_of(later, SEEN)
    assert plan.contacts == (SEEN, later)
    assert plan.nodes == {"sat-1", "berlin"}
    assert plan.at("sat-1", "berlin", 700.0) is later
    assert plan.between("berlin", "sat-1") == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"end_s": 50.0}, "the window is inverted, it ends at 50.0 s and starts at 100.0 s; swap"),
        ({"end_s": 100.0}, "inverted"),
        ({"rate_bps": 0.0}, "rate_bps is 0.0; expected bits per second above 0"),
        ({"rate_bps": float("nan")}, "expected a finite number"),
        ({"target": "sat-1"}, "source and target are the same node"),
        ({"target": ""}, "names of both its nodes"),
        ({"kind": "pigeon"}, "expected one of radio, laser, wired"),
        ({"acquisition_s": -1.0}, "expected seconds of 0 or more"),
        ({"max_elevation_deg": 91.0}, "expected -90 to 90 degrees"),
        ({"latency": ()}, "latency has 0 points"),
        ({"latency": (LatencyPoint(100.0, -0.1),)}, "a latency of -0.1 s"),
        ({"latency": (LatencyPoint(100.0, 0.1), LatencyPoint(600.0, 0.1))}, "put the first point at start_s"),
        ({"latency": (LatencyPoint(700.0, 0.1), LatencyPoint(100.0, 0.1))}, "sort them by at_s"),
    ],
)  # fmt: skip
def test_a_contact_that_cannot_be_is_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    """The message says which contact, what is wrong and what would be right."""
    with pytest.raises(InvalidInputError) as caught:
        dataclasses.replace(SEEN, **changes)
    assert expected in caught.value.message
    assert "contact sat-1 -> " in caught.value.message
    assert caught.value.reason == "CONTACT_PLAN_INVALID"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "expected an object with the keys"),
        (record_of(format="something/9"), "this version reads 'orbitmesh.contact-plan/1'"),
        (record_of(end_s=-1.0), "swap start_s and end_s"),
        (record_of(entry(), entry(650.0, 900.0)), "contacts[1] overlaps contacts[0]: sat-1 -> berlin is open until"),
        (record_of(entry(650.0, 900.0), entry()), "contacts[0] overlaps contacts[1]"),
        (record_of(entry(), entry(900.0, 800.0)), "contacts[1]: contact sat-1 -> berlin at 900.0 s: the window is inv"),
        (record_of(entry(9_000.0, 11_000.0)), "cut the window (truncated_start, truncated_end) or widen the plan"),
        (record_of(entry(color=3)), "contacts[0]: unknown key 'color'; the keys are"),
        (record_of({"source": "a"}), "contacts[0]: the key 'end_s' is missing"),
        (record_of(entry(rate_bps="fast")), "contacts[0]: rate_bps is 'fast'; expected a number"),
        (record_of(entry(rate_bps=True)), "expected a number"),
        (record_of(entry(rate_bps=10**400)), "too large"),
        (record_of(entry(latency=[[1]])), "latency[0] is '[1]'; expected [at_s, latency_s]"),
        (record_of(entry(truncated_end="yes")), "expected true or false"),
        (record_of(entry(source=7)), "source is '7'; expected a text"),
        (record_of(entry(rate_bps=float("inf"))), "Infinity is not a number of a contact plan"),
        ('{"format": 1, "format": 2}', "the key 'format' is there twice"),
    ],
)  # fmt: skip
def test_bad_json_is_refused_by_its_entry_and_with_the_fix(text: str, expected: str) -> None:
    """Inverted and overlapping windows, unknown keys and wrong types are errors that name the entry."""
    with pytest.raises(InvalidInputError) as caught:
        ContactPlan.parse(text)
    assert expected in caught.value.message


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    """Errors of `load` begin with the path; a good file loads."""
    path = tmp_path / "plan.json"
    with pytest.raises(InvalidInputError, match=r"plan\.json: cannot be read"):
        ContactPlan.load(path)
    path.write_text(record_of(entry(5.0, 1.0)))
    with pytest.raises(InvalidInputError, match=r"plan\.json: contacts\[0\]: .*inverted"):
        ContactPlan.load(path)
    path.write_text(plan_of(SEEN).dump())
    assert ContactPlan.load(path) == plan_of(SEEN)


class Hands:
    """A wall clock and a monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.wall_s = 1_000.0
        self.monotonic_s = 5.0

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def clock(self, factor: float) -> MeshClock:
        return MeshClock(50_000.0, 990.0, factor, wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)


def test_mesh_time_runs_by_its_factor_from_its_origin() -> None:
    """Ten real seconds after the origin at 60x, 600 mesh seconds have passed; waits are told in real seconds."""
    hands = Hands()
    clock = hands.clock(60.0)
    assert clock.now_s() == pytest.approx(50_600.0)
    hands.pass_by(2.0)
    assert clock.now_s() == pytest.approx(50_720.0)
    assert clock.seconds_until(50_780.0) == pytest.approx(1.0)
    assert clock.wall_s(50_720.0) == pytest.approx(hands.wall_s)


@pytest.mark.parametrize("jump_s", [-3_600.0, -0.5, 86_400.0])
def test_a_wall_clock_that_is_set_moves_no_mesh_time(jump_s: float) -> None:
    """A wall clock set back an hour or forward a day under a running mesh neither stops time nor turns it round."""
    hands = Hands()
    clock = hands.clock(60.0)
    before_s = clock.now_s()
    hands.wall_s += jump_s
    assert clock.now_s() == pytest.approx(before_s)
    assert clock.wall_jump_s() == pytest.approx(jump_s)
    hands.pass_by(1.0)
    assert clock.now_s() == pytest.approx(before_s + 60.0)


def test_clocks_of_two_processes_agree_and_the_real_one_is_real() -> None:
    """Two clocks of one origin made at different times tell the same; `real` runs with the machine's clock."""
    hands = Hands()
    first = hands.clock(60.0)
    hands.pass_by(30.0)
    assert hands.clock(60.0).now_s() == pytest.approx(first.now_s())
    real = MeshClock.real()
    assert real.now_s() <= real.now_s()
    assert abs(real.now_s() - real.wall_s(real.now_s())) < 1.0


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clock_that_would_not_run_is_refused(factor: float) -> None:
    """Factors of 0 and below, and those that are no number, are errors."""
    with pytest.raises(InvalidInputError, match="factor"):
        MeshClock(0.0, 0.0, factor)


def test_the_module_needs_neither_numpy_nor_protobuf() -> None:
    """A base install reads contact plans: importing the module loads no package of an extra."""
    code = (
        "import sys, orbitmesh.contacts as c; c.ContactPlan(0, 1, ()).dump(); "
        "print(sorted({'numpy', 'torch', 'google.protobuf.message', 'sgp4'} & (set(sys.modules) - before)))"
    )
    # What orbitmesh's own __init__ loads is not this module's doing.
    code = "import sys, orbitmesh; before = set(sys.modules); " + code
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
