"""The planner against an enumeration of every plan, and what it says when there is none."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator

import pytest

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from services.scheduler import planner_bottleneck, planner_search
from services.scheduler.planner import (
    Objective,
    Plan,
    PlanLink,
    PlanModel,
    PlanNode,
    assess,
    describe,
    plan,
)

INSTANCES = 2_000
BATCHES = 8
TIE = 1e-9

Links = dict[tuple[str, str], PlanLink]
Instance = tuple[PlanModel, list[PlanNode], Links]
Split = tuple[tuple[str, int, int], ...]


def random_instance(seed: int) -> Instance:
    """L 1..12, N 1..5: slack to hopeless memory, links missing, costs either on a coarse grid (ties) or
    smooth."""
    rng = random.Random(seed)
    layers, count = rng.randint(1, 12), rng.choice((1, 2, 3, 3, 4, 4, 5))
    coarse = rng.random() < 0.4

    def seconds(low: float, high: float) -> float:
        return rng.randint(1, 3) * high / 3 if coarse else rng.uniform(low, high)

    layer_bytes = tuple(rng.randint(1, 9) * 10 if rng.random() < 0.5 else 40 for _ in range(layers))
    kv = tuple(rng.randint(0, 3) for _ in range(layers))
    model = PlanModel(
        layer_bytes,
        rng.randint(0, 60),
        rng.randint(0, 60),
        rng.choice((500, 4096)),
        8,
        kv,
        rng.choice((0, 7)),
    )
    whole = sum(layer_bytes) + model.kv_tokens * sum(kv) + model.embed_bytes + model.head_bytes
    room = rng.choice((0.3, 0.5, 0.7, 1.2))
    nodes = [
        PlanNode(
            f"n{n}",
            int(whole * room * rng.uniform(0.5, 1.3)),
            tuple(seconds(0.001, 0.02) for _ in range(layers)),
            rng.choice((0.0, 0.004)),
            rng.choice((0.0, 0.01)),
        )
        for n in range(count)
    ]
    missing = rng.choice((0.0, 0.0, 0.3, 0.6))
    links = {
        (a.name, b.name): PlanLink(seconds(0.0005, 0.05), rng.choice((1e6, 1e7, 1e9)))
        for a, b in itertools.permutations(nodes, 2)
        if rng.random() >= missing
    }
    return model, nodes, links


def every_plan(model: PlanModel, nodes: list[PlanNode], links: Links) -> Iterator[tuple[float, float, Split]]:
    """(token, bottleneck, split) of every feasible plan: all node orders, all cuts, straight from the
    definition."""
    layers = len(model.layer_bytes)
    size = [b + k * model.kv_tokens for b, k in zip(model.layer_bytes, model.kv_bytes_per_token, strict=True)]

    def extend(
        split: Split, used: frozenset[str], at: int, token: float, bottleneck: float
    ) -> Iterator[tuple[float, float, Split]]:
        for node in nodes:
            if node.name in used:
                continue
            way = links.get((split[-1][0], node.name)) if split else None
            if split and way is None:
                continue
            carry = model.activation_bytes * 8 / way.rate_bps if way else 0.0
            cross = carry + (way.latency_s if way else 0.0)
            held = 0 if split else model.embed_bytes
            compute = 0.0 if split else node.embed_s
            for stop in range(at + 1, layers + 1):
                held += size[stop - 1]
                compute += node.layer_s[stop - 1]
                if held > node.memory_bytes:
                    break
                grown = (*split, (node.name, at, stop))
                if stop < layers:
                    yield from extend(
                        grown,
                        used | {node.name},
                        stop,
                        token + cross + compute,
                        max(bottleneck, carry, compute),
                    )
                    continue
                if held + model.head_bytes > node.memory_bytes:
                    continue
                back = 0.0
                if split:
                    ring = links.get((node.name, split[0][0]))
                    if ring is None:
                        continue
                    back = ring.latency_s + model.token_bytes * 8 / ring.rate_bps
                final = compute + node.head_s
                yield token + cross + final + back, max(bottleneck, carry, final), grown

    yield from extend((), frozenset(), 0, 0.0, 0.0)


def best_of(
    plans: list[tuple[float, float, Split]], objective: Objective, stages: int | None
) -> tuple[float, float] | None:
    """(token, bottleneck) of the optimum among enumerated plans; ties in the bottleneck go to the faster
    token."""
    fit = [
        (token, bottleneck) for token, bottleneck, split in plans if stages is None or len(split) == stages
    ]
    if not fit:
        return None
    if objective is Objective.LATENCY:
        return min(fit)
    least = min(bottleneck for _, bottleneck in fit) * (1 + TIE)
    return min(pair for pair in fit if pair[1] <= least)


def split_of(found: Plan) -> Split:
    return tuple((stage.node, stage.start, stage.stop) for stage in found.stages)


def check(
    instance: Instance, plans: list[tuple[float, float, Split]], objective: Objective, stages: int | None
) -> bool:
    """Compare one plan with the enumeration; True where the instance was feasible."""
    expected = best_of(plans, objective, stages)
    if expected is None:
        with pytest.raises(InfeasiblePlanError) as refused:
            plan(*instance, objective=objective, stages=stages)
        assert refused.value.metadata["binding"] in ("memory", "links")
        return False
    found = plan(*instance, objective=objective, stages=stages)
    assert found.proven_optimal
    assert found.token_s == pytest.approx(expected[0], rel=1e-9) or objective is Objective.THROUGHPUT
    if objective is Objective.THROUGHPUT:
        assert found.bottleneck_s == pytest.approx(expected[1], rel=3e-9)
        assert found.token_s == pytest.approx(expected[0], rel=1e-9)
    # The split itself is among the enumerated ones, at the price that the plan states.
    priced = {split: (token, bottleneck) for token, bottleneck, split in plans}
    assert priced[split_of(found)] == pytest.approx((found.token_s, found.bottleneck_s), rel=1e-9)
    return True


@pytest.mark.parametrize(
    "batch", [0, 1, *(pytest.param(batch, marks=pytest.mark.soak) for batch in range(2, BATCHES))]
)
def test_a_plan_is_the_best_of_all_plans(batch: int) -> None:
    """Free and fixed stage counts, both objectives: equal to the enumeration, infeasible exactly where it is
    empty."""
    feasible = refused = 0
    for seed in range(batch, INSTANCES, BATCHES):
        instance = random_instance(seed)
        plans = list(every_plan(*instance))
        most = min(len(instance[0].layer_bytes), len(instance[1]))
        fixed = random.Random(seed + 1).randint(1, most)
        for stages, objective in itertools.product((None, fixed), Objective):
            worked = check(instance, plans, objective, stages)
            feasible, refused = feasible + worked, refused + (not worked)
    # Both kinds must be there in number, or the comparison says little.
    assert feasible > INSTANCES // BATCHES
    assert refused > INSTANCES // BATCHES // 4


@pytest.mark.parametrize("seed", range(40))
def test_runner_up_and_cut_costs_are_real_prices(seed: int) -> None:
    """Each candidate cut costs what the enumeration says, the runner-up is another plan and never better."""
    instance = random_instance(seed + 50_000)
    plans = list(every_plan(*instance))
    priced = {split: (token, bottleneck) for token, bottleneck, split in plans}
    for objective in Objective:
        if not plans:
            continue
        found = plan(*instance, objective=objective)
        own = split_of(found)
        at = 0 if objective is Objective.LATENCY else 1
        assert len(found.cuts) == len(own) - 1
        for k, table in enumerate(found.cuts):
            assert set(table) == set(range(own[k][1] + 1, own[k + 1][2]))
            for position, value in table.items():
                moved = list(own)
                moved[k] = (own[k][0], own[k][1], position)
                moved[k + 1] = (own[k + 1][0], position, own[k + 1][2])
                expected = priced.get(tuple(moved))
                assert (value is None) == (expected is None)
                assert value is None or expected is None or value == pytest.approx(expected[at], rel=1e-9)
        other = found.runner_up
        if other is not None:
            split = tuple(zip(other.nodes, other.bounds[:-1], other.bounds[1:], strict=True))
            assert split != own
            assert priced[split] == pytest.approx((other.token_s, other.bottleneck_s), rel=1e-9)
            assert (other.token_s, other.bottleneck_s)[at] >= found.objective_s * (1 - TIE)


def ring_of(count: int, layers: int = 12, memory_bytes: int = 10_000) -> Instance:
    """Equal nodes, equal links."""
    model = PlanModel((100,) * layers, 10, 10, 4096, 8, (1,) * layers, 4)
    nodes = [PlanNode(f"n{n}", memory_bytes, (0.01,) * layers) for n in range(count)]
    return model, nodes, {(a.name, b.name): PlanLink(0.02, 1e8) for a, b in itertools.permutations(nodes, 2)}


def test_a_model_that_fits_one_node_is_not_split_for_latency() -> None:
    """Crossing a link costs; where one node holds everything, one stage is best."""
    found = plan(*ring_of(4), objective=Objective.LATENCY)
    assert len(found.stages) == 1
    assert found.ring is None
    assert found.crossings == ()
    assert found.token_s == pytest.approx(0.12)


def test_throughput_spreads_equal_layers_evenly() -> None:
    """Twelve equal layers on four equal nodes: three each, in 30 ms."""
    found = plan(*ring_of(4), objective=Objective.THROUGHPUT)
    assert [len(stage.layers) for stage in found.stages] == [3, 3, 3, 3]
    assert found.bottleneck_s == pytest.approx(0.03)
    assert found.token_s == pytest.approx(0.12 + 4 * 0.02 + 3 * 4096 * 8 / 1e8 + 8 * 8 / 1e8)


def test_parts_of_the_prediction_sum_to_the_token_time() -> None:
    """Stage compute, crossings and the way back add up to token_s; memory used and free add up to the
    node's."""
    found = plan(*ring_of(5, memory_bytes=420), objective=Objective.LATENCY)
    assert len(found.stages) > 2
    assert found.ring is not None
    ways = [*found.crossings, found.ring]
    total = math.fsum([s.compute_s for s in found.stages] + [w.latency_s + w.transfer_s for w in ways])
    assert total == pytest.approx(found.token_s)
    assert all(stage.memory_bytes + stage.free_bytes == 420 for stage in found.stages)


def test_description_names_the_binding_node_and_the_runner_up() -> None:
    """The reasons are sentences about this plan."""
    model, nodes, links = ring_of(3)
    nodes[0] = dataclasses.replace(nodes[0], layer_s=(0.005,) * 12)
    lines = "\n".join(describe(plan(model, nodes, links, objective=Objective.LATENCY)))
    assert "proven optimal" in lines
    assert "node n0 binds: 60.000 ms" in lines
    # One layer on n1, eleven on n0, two crossings: 10 + 55 + 2 x 20 ms and the transfers.
    assert "runner-up (n1 0-0, n0 1-11) would take 105.328 ms, +75.55%" in lines


def test_more_stages_than_nodes_or_layers_is_refused_by_reason() -> None:
    """TOO_MANY_STAGES, with the most that is possible."""
    for instance, most in ((ring_of(3), 3), (ring_of(4, layers=2), 2)):
        with pytest.raises(InvalidInputError, match=f"at most {most}") as refused:
            plan(*instance, objective=Objective.LATENCY, stages=most + 1)
        assert refused.value.reason == "TOO_MANY_STAGES"


@pytest.mark.parametrize("stages", [0, -1, True, 1.5])
def test_a_nonsense_stage_count_is_refused(stages: int) -> None:
    """Only whole numbers from 1."""
    with pytest.raises(InvalidInputError):
        plan(*ring_of(3), objective=Objective.LATENCY, stages=stages)


def test_malformed_input_is_refused() -> None:
    """NaN, negative, infinite, unknown names, duplicates, wrong lengths: each is InvalidInputError, nothing
    else."""
    model, nodes, links = ring_of(2)
    way = PlanLink(0.02, 1e8)
    swap = dataclasses.replace
    cases: list[Instance] = [
        (model, [nodes[0], swap(nodes[1], layer_s=(math.nan,) * 12)], links),
        (model, [nodes[0], swap(nodes[1], layer_s=(0.01,) * 11)], links),
        (model, [nodes[0], swap(nodes[1], embed_s=-1.0)], links),
        (model, [nodes[0], swap(nodes[1], head_s=math.inf)], links),
        (model, [nodes[0], swap(nodes[1], memory_bytes=-1)], links),
        (model, [nodes[0], nodes[0]], links),
        (model, [], links),
        (model, nodes, {**links, ("n0", "nobody"): way}),
        (model, nodes, {**links, ("n0", "n0"): way}),
        (model, nodes, {("n0", "n1"): PlanLink(math.nan, 1e8)}),
        (model, nodes, {("n0", "n1"): PlanLink(0.1, 0.0)}),
        (model, nodes, {("n0", "n1"): PlanLink(0.1, -5.0)}),
        (swap(model, layer_bytes=()), nodes, links),
        (swap(model, kv_bytes_per_token=(1,)), nodes, links),
        (swap(model, kv_tokens=-1), nodes, links),
        (swap(model, embed_bytes=1 << 60), nodes, links),
    ]
    for case in cases:
        with pytest.raises(InvalidInputError):
            plan(*case, objective=Objective.LATENCY)


def test_a_layer_that_fits_nowhere_is_named() -> None:
    """The message says which layer, what it needs, the roomiest node and how much is missing."""
    model, nodes, links = ring_of(3, memory_bytes=400)
    model = dataclasses.replace(model, layer_bytes=(100,) * 5 + (500,) + (100,) * 6)
    with pytest.raises(
        InfeasiblePlanError, match=r"layer 5 .* needs 504 bytes.*n0, has 400.* 104 bytes more"
    ) as refused:
        plan(model, nodes, links, objective=Objective.LATENCY)
    assert refused.value.metadata["binding"] == "memory"


def test_too_little_memory_in_all_says_how_much_is_missing_and_what_helps() -> None:
    """1,268 bytes are needed, 1,220 are there: 48 more, or KV for no tokens; and with that advice a plan
    exists."""
    model, nodes, links = ring_of(2, memory_bytes=610)
    with pytest.raises(
        InfeasiblePlanError, match=r"needs 1268 bytes.* have 1220.*Free 48 .* at most 0 tokens"
    ):
        plan(model, nodes, links, objective=Objective.THROUGHPUT)
    plan(dataclasses.replace(model, kv_tokens=0), nodes, links, objective=Objective.THROUGHPUT)


def test_fragmented_memory_names_the_extra_bytes_that_suffice() -> None:
    """Enough in all, but whole layers do not fit: the extra bytes per node it names are enough, one less is
    not."""
    model, nodes, links = ring_of(3, layers=4, memory_bytes=190)
    with pytest.raises(InfeasiblePlanError, match="whole layers do not fit") as refused:
        plan(model, nodes, links, objective=Objective.LATENCY)
    extra = int(refused.value.metadata["extra_bytes_per_node"])
    for more, works in ((extra, True), (extra - 1, False)):
        grown = [dataclasses.replace(node, memory_bytes=190 + more) for node in nodes]
        if works:
            plan(model, grown, links, objective=Objective.LATENCY)
        else:
            with pytest.raises(InfeasiblePlanError):
                plan(model, grown, links, objective=Objective.LATENCY)


def test_missing_links_are_named_and_bringing_them_up_is_enough() -> None:
    """Nodes without a way in or out are named; with the links that the error lists a plan exists."""
    model, nodes, links = ring_of(3, memory_bytes=700)
    for target in ("n0", "n1"):
        del links["n2", target]
    del links["n0", "n1"]
    with pytest.raises(
        InfeasiblePlanError, match=r"no ring of links.*Without a way in or out: n1, n2"
    ) as refused:
        plan(model, nodes, links, objective=Objective.LATENCY)
    assert refused.value.metadata["binding"] == "links"
    down = refused.value.metadata["links_down"].split("; ")
    assert len(down) == 1
    source, target = down[0].split(" -> ")
    plan(model, nodes, {**links, (source, target): PlanLink(0.02, 1e8)}, objective=Objective.LATENCY)


def test_a_spent_budget_returns_the_incumbent_with_an_honest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no budget the plan is feasible and its lower bound holds against the proven optimum."""
    rng = random.Random(11)
    model = PlanModel((100,) * 40, 50, 50, 16_384, 8, (0,) * 40, 0)
    nodes = [
        PlanNode(f"n{n}", rng.randint(380, 600), tuple(rng.uniform(0.002, 0.02) for _ in range(40)))
        for n in range(14)
    ]
    links = {
        (a.name, b.name): PlanLink(10 ** rng.uniform(-3, -0.5), 10 ** rng.uniform(6, 10))
        for a, b in itertools.permutations(nodes, 2)
    }
    best = plan(model, nodes, links, objective=Objective.LATENCY)
    assert best.proven_optimal
    assert best.gap == 0.0
    monkeypatch.setattr(planner_search, "LABEL_BUDGET", 10)
    monkeypatch.setattr(planner_search, "BEAM_WIDTHS", (16,))
    monkeypatch.setattr(planner_search, "PRICE_ROUNDS", 1)
    monkeypatch.setattr(planner_search, "PRICE_STEPS", 2)
    monkeypatch.setattr(planner_bottleneck, "REACH_BUDGET", 10)
    rushed = plan(model, nodes, links, objective=Objective.LATENCY)
    assert not rushed.proven_optimal
    assert rushed.lower_bound_s <= best.objective_s <= rushed.objective_s
    assert 0.0 < rushed.gap < 1.0
    assert assess(model, nodes, links, split_of(rushed)) == pytest.approx(
        (rushed.token_s, rushed.bottleneck_s)
    )
