"""Problems and outcomes as JSON, for the process that solves them. Pure."""

from __future__ import annotations

import json
from typing import Any

from services.slices.optimiser.problem import Allocation, Demand, Goal, NodeCapacity, Outcome, Problem
from services.slices.resources import Resources, Share


def dump_problem(problem: Problem, time_limit_s: float) -> bytes:
    """A problem and how long it may take; `load_problem` gives equal ones back."""
    demands = [
        {
            "slice": each.slice,
            "need": each.need.values(),
            "shares": {name: (one.dedicated, one.minimum, one.maximum) for name, one in each.shares.items()},
            "least_served": each.least_served,
            "weight": each.weight,
            "latency_ms": each.latency_ms,
            "floors_ms": dict(each.floors_ms),
            "nodes": each.nodes,
            "nodes_max": each.nodes_max,
        }
        for each in problem.demands
    ]
    nodes = [(each.node, each.capacity.values(), each.taken.values()) for each in problem.nodes]
    return json.dumps(
        {"goal": problem.goal.value, "time_limit_s": time_limit_s, "demands": demands, "nodes": nodes}
    ).encode()


def load_problem(text: bytes) -> tuple[Problem, float]:
    """The problem, and how long it may take in seconds.

    Raises:
        InvalidInputError: It makes no sense.
    """
    raw: dict[str, Any] = json.loads(text)
    demands = tuple(
        Demand(
            slice=each["slice"],
            need=Resources(*each["need"]),
            shares={name: Share(*one) for name, one in each["shares"].items()},
            least_served=each["least_served"],
            weight=each["weight"],
            latency_ms=each["latency_ms"],
            floors_ms=each["floors_ms"],
            nodes=tuple(each["nodes"]),
            nodes_max=each["nodes_max"],
        )
        for each in raw["demands"]
    )
    nodes = tuple(NodeCapacity(name, Resources(*has), Resources(*taken)) for name, has, taken in raw["nodes"])
    return Problem(demands, nodes, Goal(raw["goal"])), float(raw["time_limit_s"])


def dump_outcome(outcome: Outcome) -> bytes:
    """An outcome; `load_outcome` gives an equal one back."""
    rows = [(each.slice, each.node, each.served, each.resources.values()) for each in outcome.allocations]
    return json.dumps(
        {
            "goal": outcome.goal.value,
            "allocations": rows,
            "objective": outcome.objective,
            "bound": outcome.bound,
            "gap": outcome.gap,
            "took_s": outcome.took_s,
            "complete": outcome.complete,
        }
    ).encode()


def load_outcome(raw: dict[str, Any]) -> Outcome:
    """The outcome in what `json.loads` gave."""
    rows = tuple(Allocation(name, node, served, Resources(*has)) for name, node, served, has in raw["allocations"])
    return Outcome(
        Goal(raw["goal"]), rows, raw["objective"], raw["bound"], raw["gap"], raw["took_s"], raw["complete"]
    )
