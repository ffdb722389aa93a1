"""Who takes a place: ranked as a plain recount of the token time ranks them, and only where there is room."""

from __future__ import annotations

import random

import pytest

from services.scheduler.costs import PlanLink, PlanModel, PlanNode
from services.scheduler.places import Ring, rank_for_place, token_s
from services.scheduler.planner import assess

NAMES = ("a", "b", "c", "d", "e")


def ring_of(rng: random.Random) -> tuple[Ring, dict[str, PlanNode], dict[tuple[str, str], PlanLink]]:
    layers, stages = 6, rng.randint(1, 3)
    model = PlanModel((10,) * layers, 5, 7, 4096, 64, (1,) * layers, 3)
    bounds = (0, *sorted(rng.sample(range(1, layers), stages - 1)), layers)
    speeds = {name: tuple(rng.uniform(0.001, 0.02) for _ in range(layers)) for name in NAMES}
    nodes = {name: PlanNode(name, rng.choice((1000, 20)), speeds[name], 0.002, 0.003) for name in NAMES}
    links = {
        (a, b): PlanLink(rng.uniform(0.001, 0.05), rng.choice((1e6, 1e8))) for a in NAMES for b in NAMES if a != b
    }
    return Ring(model, NAMES[:stages], bounds, (100,) * stages), nodes, links


@pytest.mark.parametrize("seed", range(200))
def test_the_best_spare_is_the_one_with_the_least_token_time(seed: int) -> None:
    """Of the outside nodes with room the order is that of the planner's own price of the whole pipeline."""
    rng = random.Random(seed)
    ring, nodes, links = ring_of(rng)
    index = rng.randrange(len(ring.nodes))
    outside = [nodes[name] for name in NAMES if name not in ring.nodes]
    ranked = [rank.node for rank in rank_for_place(ring, index, outside, links, members=NAMES)]
    free = [PlanNode(n.name, 10**6, n.layer_s, n.embed_s, n.head_s) for n in nodes.values()]

    def priced(name: str) -> float:
        taken = ring.with_node(index, name)
        split = [(taken.nodes[k], taken.bounds[k], taken.bounds[k + 1]) for k in range(len(taken.nodes))]
        return assess(ring.model, free, links, split)[0]

    assert ranked == sorted((n.name for n in outside if n.memory_bytes >= 100), key=priced)
    for name in ranked:
        assert token_s(ring.with_node(index, name), nodes, links) == pytest.approx(priced(name))


def test_a_standby_is_rather_outside_the_pipeline_and_never_the_place_itself() -> None:
    """However slow a node outside is; and one that stands by already comes after one that does not."""
    ring, _, links = ring_of(random.Random(4))
    ring = Ring(ring.model, ("a", "b"), (0, 3, 6), (100, 100))
    candidates = [PlanNode(n, 1000, (5.0 if n > "b" else 0.001,) * 6) for n in NAMES]
    ranked = [r.node for r in rank_for_place(ring, 0, candidates, links, members=NAMES, standbys=["c", "d", "d"])]
    assert ranked[:3] == ["e", "c", "d"]
    assert ranked[3:] == ["b"]


def test_a_node_that_is_loading_the_stage_needs_no_more_memory_and_comes_first() -> None:
    """Who holds the stage takes the place before any faster node that would have to load it."""
    ring, _, links = ring_of(random.Random(4))
    ring = Ring(ring.model, ("a", "b"), (0, 3, 6), (100, 100))
    candidates = [PlanNode("c", 1000, (0.001,) * 6), PlanNode("d", 0, (5.0,) * 6), PlanNode("e", 0, (0.001,) * 6)]
    ranked = [r.node for r in rank_for_place(ring, 0, candidates, links, members=NAMES, here={"d"})]
    assert ranked == ["d", "c"]


def test_a_link_that_is_down_rules_a_candidate_out_and_one_never_measured_puts_it_last() -> None:
    """A neighbour that is lost itself says nothing for or against a candidate."""
    ring, _, links = ring_of(random.Random(4))
    ring = Ring(ring.model, ("a", "b"), (0, 3, 6), (100, 100))
    candidates = [PlanNode(n, 1000, (0.001,) * 6) for n in "cde"]
    del links["b", "c"]
    ranked = [r.node for r in rank_for_place(ring, 0, candidates, links, members=NAMES, down={("d", "b")})]
    assert ranked == ["e", "c"]
    ranked = [r.node for r in rank_for_place(ring, 0, candidates, {}, members={"a", "c", "d", "e"})]
    assert ranked == ["c", "d", "e"]
