"""What is said where slices do not fit: the resource, and the smallest relaxation; it fits, and less does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orbitmesh.errors import InfeasiblePlanError
from services.slices.optimiser.optimise import optimise
from services.slices.optimiser.problem import Demand, Goal, NodeCapacity, Problem
from services.slices.resources import NAMES, Resources, Share
from tests.slices.problems import check, demand_of, node_42

LIMIT_S = 60.0


def refused(problem: Problem, reason: str = "SLICES_INFEASIBLE") -> InfeasiblePlanError:
    """The error that the problem is refused with."""
    with pytest.raises(InfeasiblePlanError) as error:
        optimise(problem, time_limit_s=LIMIT_S)
    assert error.value.reason == reason
    return error.value


def fits(problem: Problem) -> bool:
    """Whether there is an allocation, and a good one."""
    try:
        check(problem, optimise(problem, time_limit_s=LIMIT_S))
    except InfeasiblePlanError:
        return False
    return True


def with_more(problem: Problem, node: str, resource: str, amount: float) -> Problem:
    """The same with more of a resource on one node."""
    more = Resources(**{dict(zip(NAMES, ("cpu", "gpu", "memory_gb", "bandwidth_gbps"), strict=True))[resource]: amount})
    nodes = [replace(each, capacity=each.capacity + more) if each.node == node else each for each in problem.nodes]
    return replace(problem, nodes=tuple(nodes))


def with_factor(problem: Problem, factor: float) -> Problem:
    """The same with less that has to be served."""
    return replace(
        problem, demands=tuple(replace(each, least_served=each.least_served * factor) for each in problem.demands)
    )


@pytest.mark.parametrize("goal", list(Goal))
def test_the_resource_and_the_node_are_named(goal: Goal) -> None:
    """On two nodes of which GPUs are short: the named amount on the named node fits, and 1 % less does not."""
    nodes = (NodeCapacity("a", Resources(64, 1, 256, 40)), NodeCapacity("b", Resources(64, 2, 256, 40)))
    shares = {"GPU": Share(0, 0.1, 0.9)}
    demands = tuple(Demand(f"s{i}", Resources(4, 0.9, 8, 1), shares, 1.0) for i in range(4))
    error = refused(Problem(demands, nodes, goal))
    assert error.metadata["resource"] == "GPU"
    node, extra = error.metadata["node"], float(error.metadata["extra"])
    assert node in str(error) and "GPU" in str(error)
    assert fits(with_more(Problem(demands, nodes, goal), node, "GPU", extra * (1 + 1e-6)))
    for each in ("a", "b"):
        assert not fits(with_more(Problem(demands, nodes, goal), each, "GPU", extra * 0.99))


def test_a_maximum_and_a_guarantee_grow_with_what_is_added() -> None:
    """One GPU more lets a slice with a maximum of one half have half of it, and others are guaranteed parts of it."""
    node = NodeCapacity("n", Resources(16, 2, 64, 40))
    demands = (
        Demand("big", Resources(cpu=1, gpu=0.8), {"GPU": Share(0, 0, 0.5)}, 1.0),
        Demand("idle", Resources(cpu=1), {"GPU": Share(0.2, 0.65, 1.0)}, 1.0),
    )
    error = refused(Problem(demands, (node,)))
    # 0.65 (2 + e) + 0.8 <= 2 + e: e = 0.8 / 0.35 - 2.
    assert error.metadata["resource"] == "GPU"
    assert float(error.metadata["extra"]) == pytest.approx(0.8 / 0.35 - 2, rel=1e-5)


def test_the_cut_of_what_has_to_be_served() -> None:
    """Three templates in full on node-42: several resources bind; the cut that is named fits, and a smaller one not."""
    problem = node_42(Goal.BALANCED, urllc=1.0, embb=1.0, mmtc=1.0)
    error = refused(problem)
    factor = float(error.metadata["least_served_factor"])
    assert factor == pytest.approx(16 / 22, rel=1e-5)  # CPU: 4 + 10 + 8
    assert {"CPU", "GPU", "BandwidthGbps"} == set(error.metadata["resource"].split(","))
    assert fits(with_factor(problem, factor * (1 - 1e-6)))
    assert not fits(with_factor(problem, factor * 1.01))


def test_guarantees_alone_do_not_fit() -> None:
    """Two slices that are guaranteed 0.6 of a node each: no cut of what is served helps, and none is offered."""
    demands = tuple(Demand(f"s{i}", Resources(cpu=1), {"CPU": Share(0, 0.6, 1)}, 0.5) for i in range(2))
    error = refused(Problem(demands, (NodeCapacity("n", Resources(16, 2, 64, 40)),)))
    assert "least_served_factor" not in error.metadata
    assert "guarantees" in str(error)


@pytest.mark.parametrize("nodes_max", [1, 2])
def test_a_slice_larger_than_the_mesh(nodes_max: int) -> None:
    """A slice that no node, or no two of them, can hold is refused by name, with the resource and what would fit."""
    nodes = (NodeCapacity("a", Resources(16, 1, 64, 40)), NodeCapacity("b", Resources(16, 2, 64, 40)))
    demand = Demand("huge", Resources(cpu=1, gpu=5), {}, 0.8, nodes_max=nodes_max)
    error = refused(Problem((demand,), nodes))
    assert error.metadata["resource"] == "GPU"
    assert error.metadata["slice"] == "huge"
    least = float(error.metadata["least_served"])
    assert least == pytest.approx((2 if nodes_max == 1 else 3) / 5)
    assert fits(Problem((replace(demand, least_served=least),), nodes))
    assert not fits(Problem((replace(demand, least_served=least * 1.01),), nodes))


def test_a_latency_below_the_floor() -> None:
    """A latency that light cannot keep is refused with the floor of the nearest node; the floor itself is accepted."""
    nodes = (NodeCapacity("near", Resources(16, 2, 64, 40)), NodeCapacity("far", Resources(16, 2, 64, 40)))
    floors = {"near": 7.338, "far": 15.0}
    problem = Problem((demand_of("urllc", latency_ms=1.0, floors_ms=floors),), nodes)
    error = refused(problem, "LATENCY_BELOW_FLOOR")
    assert error.metadata["node"] == "near"
    assert float(error.metadata["floor_ms"]) == pytest.approx(7.338)
    assert "7.338 ms" in str(error)
    kept = Problem((demand_of("urllc", latency_ms=7.338, floors_ms=floors),), nodes)
    assert [each.node for each in optimise(kept, time_limit_s=LIMIT_S).allocations] == ["near"]


def test_only_allowed_nodes_count_for_the_floor() -> None:
    """The floor is that of the nodes that the slice may use, also where a nearer one exists."""
    nodes = (NodeCapacity("near", Resources(16, 2, 64, 40)), NodeCapacity("far", Resources(16, 2, 64, 40)))
    demand = demand_of("urllc", latency_ms=10.0, floors_ms={"near": 1.0, "far": 15.0}, nodes=("far",))
    assert refused(Problem((demand,), nodes), "LATENCY_BELOW_FLOOR").metadata["node"] == "far"


def test_a_node_that_cannot_be_reached() -> None:
    """A node without a path is no node for the slice."""
    nodes = (NodeCapacity("n", Resources(16, 2, 64, 40)),)
    error = refused(Problem((demand_of("embb", floors_ms={"n": float("inf")}),), nodes), "LATENCY_BELOW_FLOOR")
    assert "can be reached" in str(error)
