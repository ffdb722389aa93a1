"""Optimize on the wire: what it answers can be applied, whatever others have; and what it may take is bounded."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

from orbitmesh.errors import CapacityError, DeadlineError, InternalError, MeshError
from orbitmesh.v1 import slices_pb2 as pb
from services.slices import solving
from services.slices.amounts import covers, exact, minus, plus
from services.slices.optimiser.optimise import optimise
from services.slices.optimiser.problem import Allocation, Demand, Goal, NodeCapacity, Outcome, Problem
from services.slices.optimiser.problem_json import dump_outcome, dump_problem, load_outcome, load_problem
from services.slices.resources import Resources, Share
from services.slices.solving import Solvers, in_whole_amounts
from tests.slices.recount import over_commitments
from tests.slices.support import Client, Service, a_profile, a_row, make_active

NODE_42 = pb.SliceNode(name="node-42", capacity={"CPU": 16, "GPU": 2, "MemoryGB": 64, "BandwidthGbps": 40})
TEMPLATES = [pb.Slice(name=f"my-{name}", profile=pb.SliceProfile(template=name)) for name in ("urllc", "embb", "mmtc")]


async def define(client: Client, name: str, **fields: object) -> None:
    """One more slice of the caller's."""
    await client("DefineSlice", pb.DefineSliceRequest(name=name, profile=a_profile(**fields)))


@pytest.mark.parametrize("goal", ["BALANCED", "LATENCY_SENSITIVE", "THROUGHPUT_MAX"])
async def test_what_is_computed_can_be_applied(goal: str, service: Service) -> None:
    """To the last millionth, for random slices over two nodes: what the solver found fits, and holds then."""
    olga, chance = await service.client("operator-olga"), random.Random(goal)
    for index in range(8):
        await define(
            olga, f"s{index}", nodes_max=2, weight=chance.uniform(0.1, 3),
            resources={"CPU": chance.uniform(0.1, 7), "MemoryGB": chance.uniform(0.1, 30)},
            shares={"CPU": pb.SliceShare(min=chance.choice([0, 1 / 30]))},
        )  # fmt: skip
    found = await olga("Optimize", pb.OptimizeRequest(goal=f"SLICE_GOAL_{goal}"))
    assert found.goal == pb.SliceGoal.Value(f"SLICE_GOAL_{goal}")
    assert {each.slice for each in found.allocations} <= {f"s{index}" for index in range(8)}
    applied = await olga("Apply", pb.ApplyRequest(allocations=found.allocations, etag=found.etag))
    assert over_commitments(service.keeper.whole.book) == []
    told = [row for each in applied.slices for row in each.allocations]
    assert sorted(told, key=str) == sorted(found.allocations, key=str)


async def test_the_example_of_the_documentation(service: Service) -> None:
    """node-42 and the three templates, which are nobody's: the answer is the optimiser's, and is none to apply."""
    ann = await service.client("client-ann")
    request = pb.OptimizeRequest(nodes=[NODE_42], what_if=TEMPLATES)
    found = await ann("Optimize", request)
    assert found.etag == ""
    assert found.objective == pytest.approx(found.bound, rel=1e-6)
    for name in ("CPU", "GPU", "MemoryGB", "BandwidthGbps"):
        assert sum(each.resources[name] for each in found.allocations) <= NODE_42.capacity[name]
    assert service.keeper.whole.book.slices == {}


async def test_a_client_gets_what_others_leave(service: Service) -> None:
    """What another tenant has is not in question, and neither are slices that are not named."""
    olga, ann = await service.client("operator-olga"), await service.client("client-ann")
    await make_active(olga, "others", tenant="bob", resources={"CPU": 4, "MemoryGB": 8})
    etag = service.keeper.whole.book.etag
    await olga("Apply", pb.ApplyRequest(allocations=[a_row("others", CPU=13, MemoryGB=60)], etag=etag))
    await define(ann, "mine", resources={"CPU": 10}, nodes=["node-1"])
    found = await ann("Optimize", pb.OptimizeRequest())
    assert [(each.slice, each.node) for each in found.allocations] == [("mine", "node-1")]
    assert found.allocations[0].resources["CPU"] == pytest.approx(3)
    await ann("Apply", pb.ApplyRequest(allocations=found.allocations, etag=found.etag))
    assert over_commitments(service.keeper.whole.book) == []


async def test_traffic_scales_what_is_needed_and_a_resize_keeps_the_scale(service: Service) -> None:
    """Half of the profile's traffic, all of it served, needs half; twice the need then needs the whole."""
    olga = await service.client("operator-olga")
    await define(olga, "a", resources={"CPU": 8}, nodes=["node-1"])
    found = await olga("Optimize", pb.OptimizeRequest(traffic={"a": 0.5}))
    [row] = found.allocations
    assert (row.served, row.traffic, row.resources["CPU"]) == pytest.approx((1.0, 0.5, 4.0))
    made = (await olga("Apply", pb.ApplyRequest(allocations=[row], etag=found.etag))).slices[0]
    resized = (await olga("Resize", pb.ResizeRequest(name="a", resources={"CPU": 16}, etag=made.etag))).slice
    assert resized.allocations[0].resources["CPU"] == pytest.approx(8.0)


async def test_what_cannot_be_is_refused_by_name_and_nothing_is_changed(service: Service) -> None:
    """A template larger than the mesh, and a latency below what light takes, each with its reason."""
    olga = await service.client("operator-olga")
    large = pb.Slice(name="a", profile=a_profile(resources={"CPU": 1000}, least_served=1))
    with pytest.raises(MeshError) as refused:
        await olga("Optimize", pb.OptimizeRequest(what_if=[large]))
    assert refused.value.reason == "SLICES_INFEASIBLE"
    assert "CPU" in refused.value.message
    assert service.keeper.whole.book.version == 0


def a_large_problem() -> Problem:
    """One that takes a while."""
    chance = random.Random(7)
    demands = tuple(
        Demand(f"s{index}", Resources(chance.uniform(1, 9), 0, chance.uniform(1, 30), chance.uniform(0.1, 5)),
               weight=chance.uniform(0.5, 2), nodes_max=2)
        for index in range(300)
    )  # fmt: skip
    nodes = tuple(NodeCapacity(f"n{index}", Resources(16, 2, 64, 40)) for index in range(60))
    return Problem(demands, nodes, Goal.BALANCED)


async def test_so_many_are_computed_at_once_and_others_hear_that_at_once(service: Service) -> None:
    """The service has one solver here; it answers everything else while that computes."""
    olga, otto = await service.client("operator-olga"), await service.client("operator-otto")
    slices = [
        pb.Slice(name=each.slice, profile=pb.SliceProfile(resources=each.need.to_map(), nodes_max=2))
        for each in a_large_problem().demands
    ]
    nodes = [pb.SliceNode(name=each.node, capacity=each.capacity.to_map()) for each in a_large_problem().nodes]
    long = pb.OptimizeRequest(what_if=slices, nodes=nodes, time_limit=Duration(seconds=20))
    computing = asyncio.ensure_future(olga("Optimize", long))
    while not service.solvers.busy:
        await otto("ListTemplates", pb.ListTemplatesRequest())
    with pytest.raises(CapacityError) as error:
        await otto("Optimize", pb.OptimizeRequest(what_if=TEMPLATES, nodes=[NODE_42]))
    assert error.value.reason == "CAPACITY_EXHAUSTED"
    assert not computing.done()
    await otto("ListSlices", pb.ListSlicesRequest())
    assert not computing.done()
    computing.cancel()


async def test_a_solver_that_dies_or_hangs_is_an_error_and_the_next_one_answers(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle; stopped, so that it answers nothing; and given up by its caller."""
    solvers = Solvers(1, service.host.log)
    small = Problem((Demand("a", Resources(cpu=1)),), (NodeCapacity("n", Resources(2)),))
    assert (await solvers.solve(small, 5.0)).served("a") == pytest.approx(1.0)
    [process] = solvers._idle
    os.kill(process.pid, signal.SIGKILL)
    asked = asyncio.ensure_future(solvers.solve(small, 5.0))
    with pytest.raises(InternalError):
        await asked
    assert (await solvers.solve(small, 5.0)).served("a") == pytest.approx(1.0)
    [process] = solvers._idle
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(solving, "GRACE_S", 0.2)
    with pytest.raises(DeadlineError):
        await solvers.solve(small, 0.1)
    monkeypatch.setattr(solving, "GRACE_S", 30.0)
    given_up = asyncio.ensure_future(solvers.solve(a_large_problem(), 20.0))
    await asyncio.sleep(0.5)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert (await solvers.solve(small, 5.0)).served("a") == pytest.approx(1.0)
    await solvers.close()


def test_a_problem_and_its_outcome_are_the_same_on_the_other_side() -> None:
    """Also what is infinite."""
    demand = Demand(
        "a", Resources(1, 0.1, 2, 3), {"CPU": Share(0.1, 0.2, 0.9)}, 0.3, 2.5, math.inf, {"n": 3.7, "m": math.inf},
        ("n",), 1,
    )  # fmt: skip
    problem = Problem((demand, replace(demand, slice="b")), (NodeCapacity("n", Resources(9, 1, 9, 9), Resources(1)),))
    assert load_problem(dump_problem(problem, 1.5)) == (problem, 1.5)
    outcome = optimise(Problem((replace(demand, least_served=0.0),), problem.nodes), time_limit_s=1.0)
    assert load_outcome(json.loads(dump_outcome(outcome))) == outcome


@pytest.mark.parametrize("seed", range(20))
def test_what_rounds_to_too_much_is_trimmed(seed: int) -> None:
    """Allocations that together are a billionth part more than a node has become as much as it has, and none loses more
    than that."""
    chance = random.Random(seed)
    capacity = Resources(*(chance.uniform(1, 1e6) for _ in range(4)))
    parts = [chance.random() for _ in range(7)]
    rows = [
        Allocation(f"s{index}", "n", 0.5, capacity.times(part / sum(parts) * (1 + 1e-9)))
        for index, part in enumerate(parts)
    ]
    outcome = Outcome(Goal.BALANCED, tuple(rows), 0, 0, 0, 0, complete=True)
    found = in_whole_amounts(outcome, {"n": exact(capacity)})
    total = (0, 0, 0, 0)
    for amounts in found.values():
        total = plus(total, amounts)
    assert covers(exact(capacity), total)
    left = minus(exact(capacity), total)
    assert all(each <= 10 for each in left)
