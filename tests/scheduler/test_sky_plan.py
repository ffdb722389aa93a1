"""The plan that finishes first, against an enumeration of every start, every way and every split; and the walk."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.errors import InfeasiblePlanError
from services.scheduler.costs import Objective, PlanLink, PlanModel, PlanNode
from services.scheduler.sky_plan import plan_with_sky
from services.scheduler.sky_walk import Scene, Work, walk
from services.scheduler.windows import RELAYS_MAX, Sky, Ways
from tests.scheduler.test_planner import best_of, every_plan

BATCHES, INSTANCES = 8, 320

Path = tuple[float, float, PlanLink]


def random_scene(seed: int) -> Scene:
    """Up to four nodes that may hold stages, sometimes one more that only relays, up to 14 windows."""
    rng = random.Random(seed)
    layers, names = rng.randint(1, 4), "abcd"[: rng.randint(1, 4)]
    model = PlanModel((10,) * layers, 5, 5, rng.choice((500, 4000)), 8, (0,) * layers, 0)
    whole = 10 * layers + 10
    nodes = {
        n: PlanNode(n, int(whole * rng.choice((0.5, 0.7, 1.2))), (rng.choice((0.0101, 0.0203, 0.0507)),) * layers)
        for n in names
    }
    relays = (*names, *("r" for _ in range(rng.randint(0, 1))))
    home = rng.choice((None, None, names[0], "g"))
    known = [*relays, *(["g"] if home == "g" else [])]
    contacts: list[Contact] = []
    for source, target in itertools.permutations(known, 2):
        at_s = float(rng.choice((0, 0, 3, 20)))
        while at_s < 100 and rng.random() < 0.8:
            end_s = at_s + rng.choice((4, 10, 40, 200))
            points = (LatencyPoint(at_s, rng.choice((0.001, 0.05, 0.3))),)
            rate_bps, acquisition_s = rng.choice((1e5, 1e6)), rng.choice((0.0, 0.0, 1.0))
            contacts.append(Contact(source, target, at_s, end_s, rate_bps, points, acquisition_s=acquisition_s))
            at_s = end_s + rng.choice((1, 15))
    stretch = rng.choice((1.0, 1.0, 10.0))
    work = Work(rng.choice((10, 100, 400)), rng.choice((0.0, 1.0, 8.0)))
    ready = {n: rng.choice((0.0, 5.0, 25.0)) for n in names if rng.random() < 0.3}
    sky = Sky(ContactPlan(0.0, 500.0, tuple(contacts)), rng.choice((0.0, 2.0)), stretch)
    objective = rng.choice((Objective.LATENCY, Objective.LATENCY, Objective.THROUGHPUT))
    return Scene(model, nodes, relays, sky, objective, work, ready, home, hand_overs=False)


def windows_now(scene: Scene, at_s: float) -> dict[tuple[str, str], Contact]:
    return {(c.source, c.target): c for c in scene.sky.plan.contacts if c.start_s + c.acquisition_s <= at_s < c.end_s}


def every_way(scene: Scene, at_s: float) -> dict[tuple[str, str], list[Path]]:
    """(cost, closing, link) of every way over at most `RELAYS_MAX` relays, straight from the definition."""
    names = sorted({*scene.relays, *([scene.home] if scene.home else [])})
    open_now = windows_now(scene, at_s)
    found: dict[tuple[str, str], list[Path]] = {}
    for count in range(2, RELAYS_MAX + 3):
        for nodes in itertools.permutations(names, count):
            hops = [open_now.get(pair) for pair in itertools.pairwise(nodes)]
            if any(hop is None for hop in hops) or not set(nodes[1:-1]) <= set(scene.relays):
                continue
            latency_s = sum(hop.latency_at(at_s) for hop in hops if hop)
            rate_bps = 1 / sum(1 / hop.rate_bps for hop in hops if hop)
            cost = latency_s + scene.model.activation_bytes * 8 / rate_bps
            closes_s = min(hop.end_s for hop in hops if hop)
            found.setdefault((nodes[0], nodes[-1]), []).append((cost, closes_s, PlanLink(latency_s, rate_bps)))
    return found


def brute_finish_s(scene: Scene) -> float:
    """When the best plan that lasts finishes: every start, every length of ways, every split."""
    best = math.inf
    starts = {*scene.ready_s.values(), scene.sky.now_s}
    starts |= {c.start_s + c.acquisition_s for c in scene.sky.plan.contacts}
    for start_s in sorted(starts):
        if start_s < scene.sky.now_s:
            continue
        ways = every_way(scene, start_s)
        for until_s in sorted({closes for paths in ways.values() for _, closes, _ in paths} | {math.inf}):
            # The gateway reaches its nodes by itself, without relays.
            direct = {pair for pair, hop in windows_now(scene, start_s).items() if hop.end_s >= until_s}
            links = {}
            for pair, paths in ways.items():
                lasting = [path for path in paths if path[1] >= until_s]
                if lasting:
                    links[pair] = min(lasting, key=lambda path: path[0])[2]
            nodes = [
                node
                for name, node in scene.nodes.items()
                if scene.ready_s.get(name, 0.0) <= start_s
                and (scene.home in (None, name) or {(scene.home, name), (name, scene.home)} <= direct)
            ]
            here = {node.name for node in nodes}
            between = {pair: link for pair, link in links.items() if set(pair) <= here}
            plans = list(every_plan(scene.model, nodes, between))
            found = best_of(plans, scene.objective, None)
            if found is None:
                continue
            value_s = found[0] if scene.objective is Objective.LATENCY else found[1]
            finish_s = start_s + scene.work.tokens * value_s * scene.sky.stretch
            if until_s >= max(finish_s, start_s + scene.work.least_s * scene.sky.stretch):
                best = min(best, finish_s)
    return best


@pytest.mark.parametrize("batch", range(BATCHES))
def test_the_plan_that_lasts_and_finishes_first_equals_an_enumeration(batch: int) -> None:
    """Where one lasts it is found to the last digit; where none does, the plan says that it waits, or there is none."""
    lasting = 0
    for seed in range(batch, INSTANCES, BATCHES):
        scene = random_scene(seed)
        want = brute_finish_s(scene)
        try:
            found = plan_with_sky(scene, None)
        except InfeasiblePlanError:
            assert want == math.inf, seed
            continue
        if want == math.inf:
            assert found.waits > 0 or found.reroutes > 0, seed
            continue
        lasting += 1
        assert found.waits == 0, seed
        if found.reroutes == 0:
            assert found.finish_s == pytest.approx(want, rel=1e-9), seed
        else:
            assert found.finish_s <= want, seed
        moved = plan_with_sky(dataclasses.replace(scene, hand_overs=True, _ways={}), None)
        assert moved.finish_s <= found.finish_s + 1e-9, seed
    assert lasting > 8


def window(a: str, b: str, start_s: float, end_s: float, latency_s: float = 0.01, **how: float) -> list[Contact]:
    points = (LatencyPoint(start_s, latency_s),)
    return [Contact(s, t, start_s, end_s, 1e9, points, **how) for s, t in ((a, b), (b, a))]  # type: ignore[arg-type]


def scene_of(contacts: list[list[Contact]], nodes: str, **how: object) -> Scene:
    """Two layers, of which a node holds one; 10 ms a layer."""
    model = PlanModel((10, 10), 0, 0, 1000, 8, (0, 0), 0)
    planned = {name: PlanNode(name, 10, (0.01, 0.01)) for name in nodes}
    sky = Sky(ContactPlan(0.0, 1000.0, tuple(itertools.chain(*contacts))), 0.0, **how.pop("sky", {}))  # type: ignore[arg-type]
    given = {"work": Work(1000, 0.0), "ready_s": {}, **how}
    relays = tuple(given.pop("relays", nodes))  # type: ignore[call-overload]
    return Scene(model, planned, relays, sky, Objective.LATENCY, **given)  # type: ignore[arg-type]


def test_a_slower_link_that_lasts_is_preferred_to_a_faster_one_that_closes() -> None:
    """a-b is fast and closes after 20 s, the work takes 40 s; a-c is slower and stays: a-c, with a-b as runner-up."""
    scene = scene_of([window("a", "b", 0, 20, 0.01), window("a", "c", 0, 900, 0.02)], "abc", hand_overs=False)
    found = plan_with_sky(scene, None)
    assert {stage.node for stage in found.plan.stages} == {"a", "c"}
    assert found.finish_s == pytest.approx(60.0, rel=1e-3)
    assert found.runner_up is not None
    assert set(found.runner_up.split[0]) == {"a", "b"}
    assert found.runner_up_finish_s == pytest.approx(40.0, rel=1e-3)
    assert "closes in 20.0 s" in found.reason


def test_waiting_for_a_window_is_chosen_where_it_finishes_sooner() -> None:
    """A link of 1 s latency is open now; one of 10 ms opens in 30 s: 1,000 tokens finish sooner over the latter."""
    scene = scene_of([window("a", "b", 0, 999, 1.0), window("a", "c", 30, 900, 0.01)], "abc")
    found = plan_with_sky(scene, None)
    assert {stage.node for stage in found.plan.stages} == {"a", "c"}
    assert found.start_s == 30.0
    assert found.finish_s == pytest.approx(70.0, rel=1e-3)
    assert found.waits == 0


def test_a_planned_hand_over_lets_the_fast_link_be_used_until_it_closes() -> None:
    """b serves until its window closes at 20 s, then c, which sees a from 5 s on: it finishes before c alone would."""
    contacts = [window("a", "b", 0, 20, 0.01), window("a", "c", 5, 900, 0.02)]
    found = plan_with_sky(scene_of(contacts, "abc"), None)
    assert {stage.node for stage in found.plan.stages} == {"a", "b"}
    (step,) = found.hand_overs
    assert (step.source, step.target, step.at_s) == ("b", "c", 20.0)
    # 20 s at 40 ms a token, and what is left at 60 ms.
    assert found.finish_s == pytest.approx(20 + (1000 - 20 / 0.04) * 0.06, rel=1e-3)
    assert found.waits == 0


def test_where_nothing_lasts_the_work_waits_for_the_next_window() -> None:
    """Windows of 10 s every 50: 40 s of work take four of them."""
    contacts = [window("a", "b", start_s, start_s + 10, 0.01) for start_s in range(0, 500, 50)]
    found = plan_with_sky(scene_of(contacts, "ab"), None)
    assert (found.waits, found.waiting_s) == (4, 160.0)
    assert found.finish_s == pytest.approx(200.02, abs=0.1)


def test_a_way_over_relays_is_as_late_as_the_sum_of_its_hops() -> None:
    """a and b never meet; r sees both: it relays, holds no layer, and is named."""
    scene = scene_of([window("a", "r", 0, 900, 0.01), window("r", "b", 0, 900, 0.02)], "ab", relays="abr")
    found = plan_with_sky(scene, None)
    assert {way.via for _, _, way in found.ways} == {("r",)}
    assert [round(way.link.latency_s, 9) for _, _, way in found.ways] == [0.03, 0.03]
    assert found.plan.token_s == pytest.approx(0.08, rel=1e-3)


def test_stages_out_of_touch_with_the_gateway_are_not_chosen() -> None:
    """b and c see each other all day, but the gateway g sees only a and b."""
    contacts = [window(x, y, 0, 900) for x, y in ("bc", "ab", "ga", "gb")]
    found = plan_with_sky(scene_of(contacts, "abc", home="g", relays="ab"), None)
    assert {stage.node for stage in found.plan.stages} == {"a", "b"}
    assert len(found.ways) == 2 + 4


def test_a_link_found_down_is_not_counted_on_now_but_after_its_next_opening() -> None:
    """The plan says open, the probes say down: the plan is believed again from the next window on."""
    contacts = [window("a", "b", 0, 100, 0.01), window("a", "b", 120, 900, 0.01)]
    scene = scene_of(contacts, "ab", sky={"down": frozenset({("a", "b")})})
    assert plan_with_sky(scene, None).start_s == 120.0


def test_nodes_that_never_see_each_other_are_refused_by_name_of_what_lacks() -> None:
    """Never a hang, and not the blame on memory."""
    with pytest.raises(InfeasiblePlanError, match="links"):
        plan_with_sky(scene_of([window("a", "r", 0, 900), window("b", "q", 0, 900)], "ab", relays="abrq"), None)
    staggered = [window("a", "r", 0, 100), window("r", "b", 100, 900)]
    with pytest.raises(InfeasiblePlanError, match="no moment"):
        plan_with_sky(scene_of(staggered, "ab", relays="abr"), None)


def test_links_of_nodes_that_the_plan_does_not_know_are_taken_as_measured() -> None:
    """A wired pair lasts for ever beside a sky that closes."""
    wired = {pair: PlanLink(0.005, 1e9) for pair in (("x", "y"), ("y", "x"))}
    scene = scene_of([window("a", "b", 0, 20)], "abxy", sky={"wired": wired})
    found = plan_with_sky(scene, None)
    assert {stage.node for stage in found.plan.stages} == {"x", "y"}
    assert all(way.hops[0].contact is None for _, _, way in found.ways)


def test_a_window_cut_off_by_the_end_of_the_plan_is_taken_to_stay_open() -> None:
    """The plan speaks for 1,000 s; work of 4,000 s starts at once over a link that was open at the plan's end."""
    lasting = window("a", "b", 0, 1000, 0.01, truncated_end=True)
    found = plan_with_sky(scene_of([lasting], "ab", work=Work(100_000, 0.0)), None)
    assert (found.waits, found.start_s) == (0, 0.0)
    assert found.finish_s == pytest.approx(4000, rel=1e-2)


@pytest.mark.parametrize("seed", range(40))
def test_every_step_of_a_walk_is_over_ways_that_are_open(seed: int) -> None:
    """A hand-over leads to a node that has its ways at that moment, fits, and was not in the pipeline."""
    scene = dataclasses.replace(random_scene(seed), hand_overs=True, work=Work(400, 8.0), _ways={})
    try:
        found = plan_with_sky(scene, None)
    except InfeasiblePlanError:
        return
    nodes = tuple(stage.node for stage in found.plan.stages)
    bounds = (0, *(stage.stop for stage in found.plan.stages))
    for step in walk(scene, nodes, bounds, found.start_s).hand_overs:
        assert nodes[step.stage_index] == step.source
        assert step.target not in nodes
        size = scene.held_bytes(bounds[step.stage_index], bounds[step.stage_index + 1])
        assert size <= scene.nodes[step.target].memory_bytes
        nodes = (*nodes[: step.stage_index], step.target, *nodes[step.stage_index + 1 :])
        ways = Ways(scene.sky, [*scene.relays, *([scene.home] if scene.home else [])], step.at_s, 1000)
        assert all(ways.reach(source, target, step.at_s) for source, target in scene.pairs(nodes))
