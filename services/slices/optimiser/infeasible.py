"""Why there is no allocation: the resource that binds, and the smallest relaxation that fits.

Asked of HiGHS as programs of their own: for each resource alone the least that would have to be added, and where; and
the largest common factor of everybody's `least_served` that fits as it is. What is named was found as a solution, so it
does fit; that less does not is proven unless the message says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from orbitmesh.errors import InfeasiblePlanError
from services.slices.optimiser.model import floors_of, near_enough
from services.slices.optimiser.problem import Problem
from services.slices.optimiser.solver import INF, Answer, End, Floats, Ints, Program
from services.slices.resources import NAMES, SLACK, Resources

REASON = "SLICES_INFEASIBLE"
NODES_OF_EACH = 12
"""Nodes of a slice that are looked at: those with the most room for it."""
SEEN = 1e-7
"""Less than this part of a capacity is nothing."""


@dataclass(frozen=True)
class Relief:
    """What would have to be added."""

    extra: Floats
    """[N, 4]."""
    part: float
    """Of the capacity of the mesh, summed over resources."""
    proven: bool
    """Whether less is proven not to fit."""


def refuse_impossible(problem: Problem) -> None:
    """Refuses what no other slice has to do with: a node too far for the latency, a slice larger than the mesh.

    Raises:
        InfeasiblePlanError: LATENCY_BELOW_FLOOR with the floor; SLICES_INFEASIBLE with the resource.
    """
    floors = floors_of(problem)
    near = near_enough(problem, floors)
    capacity = np.array([node.capacity.values() for node in problem.nodes])
    for row, demand in enumerate(problem.demands):
        if not near[row].any():
            allowed = [name.node for name in problem.nodes if not demand.nodes or name.node in demand.nodes]
            nearest = min(allowed, key=demand.floor_ms)
            floor = demand.floor_ms(nearest)
            why = (
                f"a latency of {demand.latency_ms:g} ms is below what light takes: the nearest node that it may use, "
                f"{nearest!r}, is {floor:.3f} ms there and back. Ask for at least that, or allow a nearer node"
                if math.isfinite(floor)
                else "none of the nodes that it may use can be reached from its place: allow others"
            )
            raise InfeasiblePlanError(
                f"slice {demand.slice!r}: {why}",
                reason="LATENCY_BELOW_FLOOR",
                metadata={
                    "slice": demand.slice, "node": nearest, "floor_ms": f"{floor:.6f}",
                    "latency_ms": f"{demand.latency_ms:g}",
                },
            )  # fmt: skip
        here = capacity[near[row]]
        for each, (name, need) in enumerate(demand.need.items()):
            most = np.sort(here[:, each])[::-1][: demand.nodes_max] * demand.share(name).maximum
            room = float(most.sum())
            if need * demand.least_served > room * (1 + SLACK):
                where = "the largest node" if demand.nodes_max == 1 else f"the {demand.nodes_max} largest nodes"
                raise InfeasiblePlanError(
                    f"slice {demand.slice!r} is larger than the mesh: it has to be served {demand.least_served:g} of "
                    f"{need:g} {name}, which is {need * demand.least_served:g}; {where} that it may use can give it "
                    f"{room:g}. Ask for less, serve at most {room / need:.4g} of it, or allow more nodes",
                    reason=REASON,
                    metadata={"slice": demand.slice, "resource": name, "free": f"{room:.9g}",
                              "least_served": f"{room / need:.9g}"},
                )  # fmt: skip


def explain(problem: Problem, seconds: float) -> InfeasiblePlanError:
    """The error that says what binds, for a problem of which it is known that there is no allocation.

    Args:
        problem: The problem.
        seconds: The most that the search for the smallest relaxation may take.
    """
    until = perf_counter() + seconds
    pairs = _pairs(problem)
    alone = {name: _relief(problem, pairs, (index,), until) for index, name in enumerate(NAMES)}
    fitting = {name: relief for name, relief in alone.items() if relief is not None}
    factor = _factor(problem, pairs, until)
    metadata: dict[str, object] = {}
    cures = []
    if fitting:
        name = min(fitting, key=lambda each: fitting[each].part)
        relief = fitting[name]
        extra = {problem.nodes[n].node: float(relief.extra[n, NAMES.index(name)]) for n in range(len(problem.nodes))}
        extra = {node: amount for node, amount in extra.items() if amount > 0}
        total = sum(extra.values())
        shown = ", ".join(f"{amount:.6g} on {node}" for node, amount in list(extra.items())[:4])
        where = f" on node {next(iter(extra))}" if len(extra) == 1 else f" on {len(extra)} nodes"
        says = f"{name} binds{where}"
        least = "" if relief.proven else " (less may do)"
        cures.append(f"add {total:.6g} {name}{least} ({shown})")
        metadata |= {"resource": name, "extra": f"{total:.9g}", "proven": relief.proven}
        metadata |= {"node": next(iter(extra))} if len(extra) == 1 else {}
    else:
        says = "several resources bind together"
        every = _relief(problem, pairs, tuple(range(len(NAMES))), until)
        if every is not None:
            totals = Resources(*every.extra.sum(axis=0))
            cures.append(f"add {totals}" + ("" if every.proven else " (less may do)"))
            metadata |= {"resource": ",".join(name for name, amount in totals.items() if amount > 0)}
    if factor is not None and factor[0] > SEEN:
        more = "" if factor[1] else " or more"
        cures.append(f"cut every least_served to {factor[0]:.6g}{more} of what it is")
        metadata |= {"least_served_factor": f"{factor[0]:.9g}"}
    cure = ", or ".join(cures) or "ask for fewer slices, or smaller guarantees"
    return InfeasiblePlanError(
        f"the slices do not fit with what has to be served of each: {says}. Smallest relaxation: {cure}",
        reason=REASON,
        metadata=metadata,
    )


def _pairs(problem: Problem) -> tuple[Ints, Ints, bool]:
    """Slices and nodes of the pairs that are looked at, and whether these are all."""
    near = near_enough(problem, floors_of(problem))
    free = np.array([node.free.values() for node in problem.nodes])
    slices, nodes = [], []
    for row, demand in enumerate(problem.demands):
        need = np.array(demand.need.values())
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(need > 0, free / need, np.inf).min(axis=1)
        usable = np.flatnonzero(near[row])
        order = usable[np.argsort(-room[usable], kind="stable")][:NODES_OF_EACH]
        # Not the same roomy nodes for all where there are many: every second one is another for each slice.
        spaced = np.roll(usable, -row)[: NODES_OF_EACH // 2]
        both = np.unique(np.concatenate([order, spaced]))
        slices += [row] * len(both)
        nodes += both.tolist()
    return np.array(slices), np.array(nodes), len(slices) == int(near.sum())


def _relief(
    problem: Problem, pairs: tuple[Ints, Ints, bool], resources: tuple[int, ...], until: float
) -> Relief | None:
    """The least that has to be added of some resources; None where that alone does not help, or in no time."""
    program, extra = _program(problem, pairs, resources, factor=False)
    total = np.array([node.capacity.values() for node in problem.nodes]).sum(axis=0)
    answer = _solve(program, until)
    if answer.values is None:
        return None
    found = np.zeros((len(problem.nodes), len(NAMES)))
    for each in resources:
        found[:, each] = answer.values[extra[each]]
    found[found < SEEN * np.maximum(1.0, total)] = 0.0
    part = float((found.sum(axis=0) / np.maximum(total, SEEN)).sum())
    return Relief(found, part, answer.end is End.BEST and pairs[2])


def _factor(problem: Problem, pairs: tuple[Ints, Ints, bool], until: float) -> tuple[float, bool] | None:
    """The largest common factor of what has to be served that fits, and whether that is proven."""
    program, _ = _program(problem, pairs, (), factor=True)
    answer = _solve(program, until)
    return None if answer.values is None else (float(answer.values[0]), answer.end is End.BEST and pairs[2])


def _solve(program: Program, until: float) -> Answer:
    return program.solve(seconds=max(0.05, until - perf_counter()), gap=1e-7)


def _program(
    problem: Problem, pairs: tuple[Ints, Ints, bool], resources: tuple[int, ...], *, factor: bool
) -> tuple[Program, dict[int, Ints]]:
    """x, z, reserved and extra, written out: a guarantee and a maximum grow with what is added to a node.

    Args:
        problem: The problem.
        pairs: Slices and nodes, and whether these are all.
        resources: Those of which something may be added.
        factor: Column 0 is a common factor of what has to be served, to be large, in place of extras that are small.
    """
    slice_of, node_of, _ = pairs
    count = len(slice_of)
    demands = problem.demands
    capacity = np.array([node.capacity.values() for node in problem.nodes])
    free = np.array([node.free.values() for node in problem.nodes])
    need = np.array([demand.need.values() for demand in demands])
    least = np.array([demand.least_served for demand in demands])
    program = Program(maximise=factor)
    common = program.add_columns(1, 0.0, 1.0, 1.0) if factor else program.add_columns(1, 1.0, 1.0, 0.0)
    part = program.add_columns(count, 0.0, 1.0)
    present = program.add_columns(count, 0.0, 1.0, whole=True)
    linked = program.add_rows(count, 0.0, INF)
    program.put(linked, present, 1.0)
    program.put(linked, part, -1.0)
    served = program.add_rows(len(demands), 0.0, INF)
    program.put(served[slice_of], part, 1.0)
    program.put(served, np.repeat(common, len(demands)), -least)
    must = np.where(least > 0, 1.0, 0.0)
    spread = program.add_rows(len(demands), must, np.array([float(demand.nodes_max) for demand in demands]))
    program.put(spread[slice_of], present, 1.0)
    extra: dict[int, Ints] = {}
    for each, name in enumerate(NAMES):
        minimum = np.array([demand.share(name).minimum for demand in demands])[slice_of]
        maximum = np.array([demand.share(name).maximum for demand in demands])[slice_of]
        here = capacity[node_of, each]
        reserved = program.add_columns(count)
        room = program.add_rows(len(problem.nodes), -INF, free[:, each])
        program.put(room[node_of], reserved, 1.0)
        traffic = program.add_rows(count, 0.0, INF)
        program.put(traffic, reserved, 1.0)
        program.put(traffic, part, -need[slice_of, each])
        # Nobody needs more of a node than all slices at once at their smallest maximum.
        smallest = min((share for share in maximum if share > 0), default=1.0)
        enough = float((need[:, each] * least).sum()) / smallest if each in resources else 0.0
        guaranteed = program.add_rows(count, -minimum * enough, INF)
        program.put(guaranteed, reserved, 1.0)
        program.put(guaranteed, present, -minimum * (here + enough))
        most = program.add_rows(count, -INF, maximum * here)
        program.put(most, part, need[slice_of, each])
        if each in resources:
            scale = max(float(capacity[:, each].sum()), SEEN)
            extra[each] = program.add_columns(len(problem.nodes), 0.0, enough, 0.0 if factor else 1.0 / scale)
            program.put(room, extra[each], -1.0)
            program.put(guaranteed, extra[each][node_of], -minimum)
            program.put(most, extra[each][node_of], -maximum)
    return program, extra
