"""How long light takes, against every way that there is."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest

from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.errors import MeshError
from orbitmesh.v1 import slices_pb2 as pb
from services.slices.floors import Light
from tests.slices.support import a_profile, a_row, serving


def contact(source: str, target: str, start_s: float, *latencies_s: float) -> Contact:
    """A window of ten seconds."""
    step = 10 / max(1, len(latencies_s) - 1)
    points = tuple(LatencyPoint(start_s + index * step, each) for index, each in enumerate(latencies_s))
    return Contact(source, target, start_s, start_s + 10, 1e6, points)


def every_way_ms(plan: ContactPlan, place: str, node: str) -> float:
    """The shortest of all ways there and back, tried one by one, each link at its best moment."""

    def one_way_s(start: str, end: str) -> float:
        if start == end:
            return 0.0
        best = math.inf
        others = sorted(plan.nodes - {start, end})
        for count in range(len(others) + 1):
            for between in itertools.permutations(others, count):
                hops = itertools.pairwise((start, *between, end))
                best = min(best, sum(_best_s(plan, *hop) for hop in hops))
        return best

    return (one_way_s(place, node) + one_way_s(node, place)) * 1e3


def _best_s(plan: ContactPlan, source: str, target: str) -> float:
    points = [point.latency_s for each in plan.between(source, target) for point in each.latency]
    return min(points, default=math.inf)


@pytest.mark.parametrize("seed", range(30))
def test_the_floor_is_the_shortest_of_all_ways(seed: int) -> None:
    """Over random plans of five places, windows at different times, ways there that are not the ways back."""
    chance = random.Random(seed)
    names = ["a", "b", "c", "d", "e"]
    contacts = [
        contact(source, target, start, *[chance.uniform(0.001, 0.02) for _ in range(chance.choice([1, 2, 4]))])
        for source, target in itertools.permutations(names, 2)
        for start in (0.0, 20.0)
        if chance.random() < 0.3
    ]
    plan = ContactPlan(0.0, 100.0, tuple(contacts))
    found = Light(plan, {}).floors(names, names)
    for place, node in itertools.product(sorted(plan.nodes), repeat=2):
        assert found[place][node] == pytest.approx(every_way_ms(plan, place, node), rel=1e-12)


def test_nothing_is_said_of_what_the_plan_does_not_know() -> None:
    """Neither of places nor of nodes; a node may stand at a place of another name."""
    plan = ContactPlan(0.0, 100.0, (contact("berlin", "sky", 0.0, 0.004), contact("sky", "berlin", 0.0, 0.003)))
    light = Light(plan, {"sat-1": "sky"})
    assert light.floors(["berlin", "paris"], ["sat-1", "sat-2", "sky"]) == {
        "berlin": {"sat-1": pytest.approx(7.0), "sky": pytest.approx(7.0)}
    }
    assert Light(None, {}).floors(["berlin"], ["sat-1"]) == {}


async def test_a_latency_that_light_does_not_keep_is_refused_with_the_floor(pki: Path, tmp_path: Path) -> None:
    """On the wire: an allocation to a node that is too far away, and a nearer one that will do."""
    far, near = (0.020, 0.015, 0.030), (0.004,)
    contacts = [
        contact(*pair, 0.0, *latency)
        for node, latency in (("node-1", far), ("node-2", near))
        for pair in (("berlin", node), (node, "berlin"))
    ]
    (tmp_path / "plan.json").write_text(ContactPlan(0.0, 100.0, tuple(contacts)).dump())
    async with serving(pki, tmp_path / "state", tmp_path / "plan.json") as service:
        olga = await service.client("operator-olga")
        profile = a_profile(latency_ms=20, place="berlin")
        await olga("DefineSlice", pb.DefineSliceRequest(name="a", profile=profile))
        etag = service.keeper.whole.book.etag
        with pytest.raises(MeshError) as refused:
            await olga("Apply", pb.ApplyRequest(allocations=[a_row("a", "node-1")], etag=etag))
        assert refused.value.reason == "LATENCY_BELOW_FLOOR"
        assert float(refused.value.metadata["floor_ms"]) == pytest.approx(30.0)
        await olga("Apply", pb.ApplyRequest(allocations=[a_row("a", "node-2")], etag=etag))
