"""Hand-overs decided on a virtual clock, and one carried out by real processes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from services.scheduler.costs import Objective, PlanModel, PlanNode
from services.scheduler.hand_over import FEED_S, MARGIN_S, STAY_S, decide, lead_s
from services.scheduler.sky_walk import Scene, Work
from services.scheduler.windows import Sky
from tests.mesh.support import Model, until
from tests.scheduler.conftest import nodes, scheduler_of

BOUNDS = (0, 1, 2)
CLOSES_IN_S = 16.0


def window(a: str, b: str, start_s: float, end_s: float, latency_s: float = 0.01, **how: float) -> list[Contact]:
    points = (LatencyPoint(start_s, latency_s),)
    return [Contact(s, t, start_s, end_s, 1e9, points, **how) for s, t in ((a, b), (b, a))]  # type: ignore[arg-type]


def scene_of(now_s: float, names: str, *contacts: list[Contact], **how: object) -> Scene:
    model = PlanModel((10, 10), 0, 0, 1000, 8, (0, 0), 0)
    planned = {name: PlanNode(name, 10, (0.01, 0.01)) for name in names}
    plan = ContactPlan(0.0, 1000.0, tuple(itertools.chain(*contacts)))
    given = {"ready_s": {}, **how}
    stretch = float(given.pop("stretch", 1.0))  # type: ignore[arg-type]
    relays = tuple(given.pop("relays", names))  # type: ignore[call-overload]
    return Scene(model, planned, relays, Sky(plan, now_s, stretch), Objective.LATENCY, Work(), **given)  # type: ignore[arg-type]


PASSES = (window("a", "b", 0, 100, max_elevation_deg=70.0), window("a", "c", 80, 300), window("a", "d", 0, 200))


def test_nothing_moves_before_the_lead_time_and_the_longest_lasting_successor_after_it() -> None:
    """b sets at 100 s; c, which has just risen, lasts longer than d: at 69 s nothing, at 88 s b hands over to c."""
    lead = lead_s(5.0)
    assert lead == 5.0 + FEED_S + MARGIN_S
    assert decide(scene_of(69, "abcd", *PASSES), ("a", "b"), BOUNDS, lead_s=lead) is None
    move = decide(scene_of(90, "abcd", *PASSES), ("a", "b"), BOUNDS, lead_s=lead)
    assert move is not None
    assert (move.stage_index, move.source, move.target, move.closes_s) == (1, "b", "c", 100.0)
    assert "closes in 10.0 s" in move.reason
    assert "70.0 deg" in move.reason


def test_a_fast_clock_makes_the_lead_time_longer_in_mesh_time() -> None:
    """At 10 mesh seconds a second a lead of 8 s begins 80 mesh seconds before the closing."""
    passes = (window("a", "b", 0, 200), window("a", "c", 0, 600))
    assert decide(scene_of(119, "abc", *passes, stretch=10.0), ("a", "b"), BOUNDS, lead_s=8.0) is None
    assert decide(scene_of(121, "abc", *passes, stretch=10.0), ("a", "b"), BOUNDS, lead_s=8.0) is not None


@pytest.mark.parametrize(
    "why",
    ["it closes too soon after", "it cannot be ready", "it is not in touch while it is fed", "it has no room", "taken"],
)
def test_a_successor_that_would_not_do_is_not_chosen(why: str) -> None:
    """Each reason by itself is enough."""
    stays = {"it closes too soon after": 100 + STAY_S - 0.1}.get(why, 300.0)
    opens = {"it is not in touch while it is fed": 97.0}.get(why, 0.0)
    scene = scene_of(95, "abc", window("a", "b", 0, 100), window("a", "c", opens, stays))
    taken: frozenset[int] = frozenset()
    if why == "it cannot be ready":
        scene = dataclasses.replace(scene, ready_s={"c": 101.0})
    if why == "it has no room":
        scene = dataclasses.replace(scene, nodes={**scene.nodes, "c": PlanNode("c", 9, (0.01, 0.01))})
    if why == "taken":
        taken = frozenset({1})
    assert decide(scene, ("a", "b"), BOUNDS, lead_s=20.0, taken=taken) is None
    good = scene_of(95, "abc", window("a", "b", 0, 100), window("a", "c", 0, 300))
    assert decide(good, ("a", "b"), BOUNDS, lead_s=20.0) is not None


def test_a_way_that_another_way_replaces_moves_no_stage() -> None:
    """The direct link closes, but a relay sees both: the nodes stay where they are."""
    contacts = (window("a", "b", 0, 100), window("a", "r", 0, 900), window("r", "b", 0, 900), window("a", "c", 0, 900))
    assert decide(scene_of(95, "abc", *contacts, relays="abcr"), ("a", "b"), BOUNDS, lead_s=20.0) is None


def test_a_stage_that_loses_the_gateway_moves_too() -> None:
    """The ring holds, but the gateway g sees a no more: that b and c could relay does not help it."""
    ring = (window("a", "b", 0, 900), window("a", "c", 0, 900), window("g", "a", 0, 100), window("g", "c", 0, 900))
    contacts = (*ring, window("g", "b", 0, 900), window("b", "c", 0, 900))
    move = decide(scene_of(95, "abc", *contacts, home="g"), ("a", "b"), BOUNDS, lead_s=20.0)
    assert move is not None
    assert (move.stage_index, move.source, move.target) == (0, "a", "c")
    assert decide(scene_of(70, "abc", *contacts, home="g"), ("a", "b"), BOUNDS, lead_s=20.0) is None


def sky(sets_s: float) -> ContactPlan:
    """sat-1 is near and sets at some time, sat-2 stays."""
    contacts = (
        *window("ground-1", "sat-1", 0, sets_s, max_elevation_deg=51.0),
        *window("ground-1", "sat-2", 0, 900, 0.02),
        *window("sat-1", "sat-2", 0, sets_s, 0.02),
    )
    return ContactPlan(0.0, 1000.0, contacts)


@pytest.mark.soak
def test_a_satellite_that_sets_hands_its_stage_over(tmp_path: Path, tiny: Model) -> None:
    """Real processes: the successor is named ahead, and takes the place though scheduler and gateway were killed."""
    with Mesh.local(nodes=3, contacts=sky(800), time_factor=2.0, directory=tmp_path / "mesh") as mesh:
        mesh.deploy(tiny.pack, name="sets", stages=2, standbys=1, kv_tokens=256)
        with scheduler_of(mesh, tmp_path) as scheduler:
            before = scheduler.deployment("sets")
            assert before.plan.HasField("sky")
            assert not before.hand_overs
            index = nodes(before).index("sat-1")
            # It would end a hand-over of a deployment without generations at once; its pack is on sat-2 already.
            mesh.local.kill("gateway")
            newer = sky(mesh.local.clock().now_s() + 2.0 * CLOSES_IN_S)
            (mesh.local.directory / "contacts.json").write_text(newer.dump())
            until(lambda: len(scheduler.deployment("sets").hand_overs) == 1, "the hand-over is named", 40)
            (named,) = scheduler.deployment("sets").hand_overs
        assert (named.stage_index, getattr(named, "from"), named.to.name) == (index, "sat-1", "sat-2")
        assert named.closes_in_s < CLOSES_IN_S
        assert "51.0 deg" in named.reason
        mesh.local.kill("scheduler")
        mesh.local.restart("scheduler")
        with scheduler_of(mesh, tmp_path) as scheduler:
            until(lambda: nodes(scheduler.deployment("sets"))[index] == "sat-2", "it takes the place", 60)
            assert not scheduler.deployment("sets").hand_overs
