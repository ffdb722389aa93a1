"""From a question about an allocation to the problem that a solver gets, and from its outcome to the answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from orbitmesh.errors import InvalidInputError
from orbitmesh.trust.names import check_name
from orbitmesh.v1 import slices_pb2
from services.slices.access import Caller, own, visible
from services.slices.amounts import NOTHING, Amounts, minus, parse, plus, to_resources
from services.slices.book import check_bounds
from services.slices.fitting import TRAFFIC_MAX, demand_of
from services.slices.floors import Light
from services.slices.messages import allocation_message, duration_s, node_from, profile_from
from services.slices.optimiser.problem import Goal, NodeCapacity, Outcome, Problem
from services.slices.solving import in_whole_amounts
from services.slices.templates import merged
from services.slices.values import Book, Node, Promise, Reserved, State

TIME_LIMIT_S = 1.0
"""How long the solver may take where the caller does not say."""
TIME_LIMIT_MAX_S = 60.0
"""The longest that it may."""
GOALS: Mapping[int, Goal] = MappingProxyType(
    {
        slices_pb2.SLICE_GOAL_UNSPECIFIED: Goal.BALANCED,
        slices_pb2.SLICE_GOAL_BALANCED: Goal.BALANCED,
        slices_pb2.SLICE_GOAL_LATENCY_SENSITIVE: Goal.LATENCY_SENSITIVE,
        slices_pb2.SLICE_GOAL_THROUGHPUT_MAX: Goal.THROUGHPUT_MAX,
    }
)


@dataclass(frozen=True)
class Question:
    """An allocation to compute."""

    problem: Problem
    """What the solver gets."""
    free: Mapping[str, Amounts]
    """What every node of it has left."""
    traffic: Mapping[str, float]
    """How much of its profile's traffic each slice has; 1 where it is not named."""
    time_limit_s: float
    """How long the solver may take."""
    etag: str
    """Of the state that it is asked of; empty where it is about what would be."""


def question(request: slices_pb2.OptimizeRequest, caller: Caller, book: Book, light: Light, now_ns: int) -> Question:
    """What is asked.

    Args:
        request: As it came in.
        caller: For whom.
        book: The state.
        light: How long light takes.
        now_ns: The time.

    Raises:
        InvalidInputError: It makes no sense.
        PermissionError_: `SLICE_NOT_YOURS`.
    """
    if request.goal not in GOALS:
        raise InvalidInputError(f"there is no goal {request.goal}; the goals are {', '.join(Goal)}")
    promises = _promises(request, caller, book, now_ns)
    taken = _taken(request, caller, book, promises)
    nodes, taken = (_given(request) if request.nodes else _of_mesh(book, taken))
    traffic = _traffic(request, promises)
    floors = light.floors({each.profile.place for each in promises.values() if each.profile.place}, nodes)
    demands = []
    for name, promise in promises.items():
        demand = demand_of(promise, floors)
        demands.append(replace(demand, need=demand.need.times(traffic.get(name, 1.0))))
    rows = [
        NodeCapacity(name, to_resources(node.capacity), to_resources(taken.get(name, NOTHING)))
        for name, node in nodes.items()
    ]
    return Question(
        problem=Problem(tuple(demands), tuple(rows), GOALS[request.goal]),
        free={name: minus(node.capacity, taken.get(name, NOTHING)) for name, node in nodes.items()},
        traffic=traffic,
        time_limit_s=_time_limit(request),
        etag="" if request.nodes or request.what_if else book.etag,
    )


def answer(asked: Question, outcome: Outcome) -> slices_pb2.OptimizeResponse:
    """What was found, as it can be applied: in whole millionths and not more than there is."""
    amounts = in_whole_amounts(outcome, asked.free)
    message = slices_pb2.OptimizeResponse(
        allocations=[
            allocation_message(
                each.slice,
                each.node,
                Reserved(each.served, amounts[each.slice, each.node], asked.traffic.get(each.slice, 1.0)),
            )
            for each in outcome.allocations
        ],
        objective=outcome.objective,
        bound=outcome.bound,
        gap=outcome.gap,
        etag=asked.etag,
        goal=f"SLICE_GOAL_{outcome.goal.name}",
    )
    message.took.FromNanoseconds(round(outcome.took_s * 1e9))
    return message


def _promises(
    request: slices_pb2.OptimizeRequest, caller: Caller, book: Book, now_ns: int
) -> dict[str, Promise]:
    """The slices that get an allocation, by name."""
    named = list(dict.fromkeys(request.slices))
    if request.what_if:
        invented = {}
        for each in request.what_if:
            profile = merged(profile_from(each.profile))
            check_bounds(profile)
            name = check_name(each.name)
            if name in invented:
                raise InvalidInputError(f"slice {name!r} comes twice in what_if; give each a name of its own")
            invented[name] = Promise(name, caller.name, profile, State.DEFINED, MappingProxyType({}), 0, now_ns)
        for name in named:
            if name not in invented:
                raise InvalidInputError(f"there is no slice {name[:63]!r} in what_if", reason="NOT_FOUND")
        return {name: invented[name] for name in named} if named else invented
    if named:
        held = [own(caller, book, name) for name in named]
        for mine in held:
            if mine.promise.state is State.RELEASING:
                raise InvalidInputError(
                    f"slice {mine.name!r} is being released and gets nothing new", reason="FAILED_PRECONDITION"
                )
    else:
        held = [mine for mine in visible(caller, book) if mine.promise.state is not State.RELEASING]
    if not held:
        raise InvalidInputError("there is no slice to allocate to; define one first", reason="FAILED_PRECONDITION")
    return {mine.name: mine.promise for mine in held}


def _taken(
    request: slices_pb2.OptimizeRequest, caller: Caller, book: Book, promises: Mapping[str, Promise]
) -> dict[str, Amounts]:
    """What slices have that are not asked about."""
    mine = {each.name for each in visible(caller, book)} if request.what_if else set(promises)
    found: dict[str, Amounts] = {}
    for name, held in book.slices.items():
        for node, part in held.reserved.items() if name not in mine else ():
            found[node] = plus(found.get(node, NOTHING), part.amounts)
    return found


def _given(request: slices_pb2.OptimizeRequest) -> tuple[dict[str, Node], dict[str, Amounts]]:
    nodes, taken = {}, {}
    for each in request.nodes:
        name = check_name(each.name)
        if name in nodes:
            raise InvalidInputError(f"node {name!r} comes twice; give each a name of its own")
        if each.absent:
            continue
        nodes[name], taken[name] = node_from(each), parse(each.reserved, f"node {name!r}")
    return nodes, taken


def _of_mesh(book: Book, taken: dict[str, Amounts]) -> tuple[dict[str, Node], dict[str, Amounts]]:
    nodes = {name: node for name, node in sorted(book.nodes.items()) if not node.absent}
    if not nodes:
        raise InvalidInputError(
            "no node is in reach; see `orbitmesh nodes`, or give nodes to ask what would be",
            reason="FAILED_PRECONDITION",
        )
    # A node that came back with less than was promised there has nothing to give.
    return nodes, {name: _at_most(taken.get(name, NOTHING), node.capacity) for name, node in nodes.items()}


def _at_most(one: Amounts, other: Amounts) -> Amounts:
    cpu, gpu, memory, bandwidth = map(min, one, other)
    return cpu, gpu, memory, bandwidth


def _traffic(request: slices_pb2.OptimizeRequest, promises: Mapping[str, Promise]) -> dict[str, float]:
    for name, value in request.traffic.items():
        if name not in promises:
            raise InvalidInputError(f"traffic names slice {name[:63]!r}, which gets no allocation here")
        if not 0 < value <= TRAFFIC_MAX or math.isnan(value):
            raise InvalidInputError(
                f"the traffic of slice {name!r} is {value!r}; expected more than 0 and at most {TRAFFIC_MAX:g} times "
                "that of its profile"
            )
    return dict(request.traffic)


def _time_limit(request: slices_pb2.OptimizeRequest) -> float:
    if not request.HasField("time_limit"):
        return TIME_LIMIT_S
    limit_s = duration_s(request.time_limit)
    if not 0 < limit_s <= TIME_LIMIT_MAX_S:
        raise InvalidInputError(
            f"time_limit is {limit_s:g} s; expected more than 0 and at most {TIME_LIMIT_MAX_S:g} s"
        )
    return limit_s
