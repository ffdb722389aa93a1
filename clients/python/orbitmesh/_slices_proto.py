"""Slices between the values of `slice_results` and the messages of the wire, both ways. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import TypeVar

from orbitmesh._requests import between, checked_name, slice_name, whole
from orbitmesh.errors import InvalidInputError
from orbitmesh.slice_results import (
    GOALS,
    RESOURCES,
    Slice,
    SliceAllocation,
    SliceNode,
    SliceOutcome,
    SliceProfile,
    SlicesApplied,
    SliceShare,
    SlicesOverview,
    SliceTemplate,
    SliceTraffic,
)
from orbitmesh.v1 import slices_pb2

T = TypeVar("T")

TIME_LIMIT_S = 1.0
"""How long the solver may take where nobody says it, in seconds."""
TIME_LIMIT_MAX_S = 60.0
"""How long it may be allowed to take, in seconds."""
LIFETIME_MAX_S = 86400.0
"""The longest admission that may be asked for, in seconds."""
AMOUNT_MAX = 1e12
"""The largest amount of a resource: beyond it doubles no longer tell parts of it apart."""
LATENCY_MAX_MS = 1e9
"""The longest latency, in milliseconds."""
WEIGHT_MAX = 1e6
"""The largest weight."""
TRAFFIC_MAX = 1000.0
"""The most times of its profile's traffic that a slice may be said to have."""
SPREAD_MAX = 1_000_000
"""The most nodes that a slice may be spread on."""
UINT32_MAX = (1 << 32) - 1
TEXT_MAX = 256
"""The longest etag, place or name of a tenant, in characters."""
NAMES_MAX = 40_000
"""The most slices, nodes or allocations in one request."""

_SD = re.compile(r"[0-9A-Fa-f]{6}")
_GOALS = {
    "balanced": slices_pb2.SLICE_GOAL_BALANCED,
    "latency_sensitive": slices_pb2.SLICE_GOAL_LATENCY_SENSITIVE,
    "throughput_max": slices_pb2.SLICE_GOAL_THROUGHPUT_MAX,
}
_STATES = {
    slices_pb2.SLICE_STATE_DEFINED: "defined",
    slices_pb2.SLICE_STATE_ACTIVE: "active",
    slices_pb2.SLICE_STATE_RELEASING: "releasing",
}


def text(value: str, what: str) -> str:
    """The text, where it is one that can be sent; it may be empty.

    Raises:
        InvalidInputError: It is none, or too long.
    """
    if not isinstance(value, str) or len(value) > TEXT_MAX or (value and not value.isprintable()):
        raise InvalidInputError(f"{what} is {value!r:.80}; expected a text of at most {TEXT_MAX} characters")
    return value


def checked_etag(etag: str) -> str:
    """The etag, where it is one.

    Raises:
        InvalidInputError: It is none.
    """
    if not text(etag, "the etag"):
        raise InvalidInputError("the etag is empty; take the one of what the change was decided on")
    return etag


def sequence(values: Iterable[T], what: str, of: str) -> list[T]:
    """The entries of a list that is not too long.

    Raises:
        InvalidInputError: It is none, or longer.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{what} is {values!r:.80}; expected a list of {of}")
    if len(values) > NAMES_MAX:
        raise InvalidInputError(f"{what} has {len(values)} entries; at most {NAMES_MAX} are taken")
    return list(values)


def node_names(nodes: Sequence[str]) -> list[str]:
    """Names of nodes, which may be none.

    Raises:
        InvalidInputError: They are no list of names.
    """
    return [checked_name(node, "a node's name") for node in sequence(nodes, "nodes", "names of nodes")]


def amounts(resources: Mapping[str, float] | None, what: str) -> dict[str, float]:
    """Amounts by resource, where they are some.

    Raises:
        InvalidInputError: A resource is not known, or an amount is negative or no number; the message names it.
    """
    return {
        name: between(value, f"{what}[{name!r}]", 0.0, AMOUNT_MAX)
        for name, value in _by_resource(resources, what, "amounts").items()
    }


def share_messages(shares: Mapping[str, SliceShare] | None) -> dict[str, slices_pb2.SliceShare]:
    """Shares by resource as messages.

    Raises:
        InvalidInputError: A resource is not known, or a share does not lie in order from 0 to 1.
    """
    found: dict[str, slices_pb2.SliceShare] = {}
    for name, share in _by_resource(shares, "shares", "SliceShare(...)").items():
        what = f"shares[{name!r}]"
        if not isinstance(share, SliceShare):
            raise InvalidInputError(f"{what} is {share!r:.80}; expected SliceShare(dedicated=, min=, max=)")
        dedicated = between(share.dedicated, f"{what}.dedicated", 0.0, 1.0)
        least = between(share.min, f"{what}.min", 0.0, 1.0) or dedicated
        most = None if share.max is None else between(share.max, f"{what}.max", 0.0, 1.0)
        if least < dedicated or (most is not None and most < least):
            raise InvalidInputError(
                f"{what} has dedicated {dedicated:g}, min {least:g} and max {'none' if most is None else f'{most:g}'}; "
                "expected each to be at least the one before it"
            )
        found[name] = slices_pb2.SliceShare(dedicated=dedicated, min=least, max=most)
    return found


def profile_message(profile: SliceProfile) -> slices_pb2.SliceProfile:
    """What a slice is to be, as a message.

    Raises:
        InvalidInputError: Something is out of range; the message names it.
    """
    if profile.sd and not (isinstance(profile.sd, str) and _SD.fullmatch(profile.sd)):
        raise InvalidInputError(f"sd is {profile.sd!r:.80}; expected six hexadecimal digits")
    message = slices_pb2.SliceProfile(
        template=text(profile.template, "template"),
        resources=amounts(profile.resources, "resources"),
        shares=share_messages(profile.shares),
        latency_ms=between(profile.latency_ms, "latency_ms", 0.0, LATENCY_MAX_MS),
        within_latency_permille=between(profile.within_latency_permille, "within_latency_permille", 0.0, 1000.0),
        least_served=between(profile.least_served, "least_served", 0.0, 1.0),
        weight=between(profile.weight, "weight", 0.0, WEIGHT_MAX),
        place=text(profile.place, "place"),
        nodes=node_names(profile.nodes),
        nodes_max=whole(profile.nodes_max, "nodes_max", 0, SPREAD_MAX),
        max_number_of_ues=whole(profile.max_number_of_ues, "max_number_of_ues", 0, UINT32_MAX),
    )
    if profile.sst or profile.sd:
        sst = whole(profile.sst, "sst", 0, 255)
        message.snssai.CopyFrom(slices_pb2.Snssai(sst=sst, sd=profile.sd.lower()))
    return message


def optimize_request(
    goal: str,
    *,
    slices: Sequence[str] | None,
    traffic: Mapping[str, float] | None,
    nodes: Sequence[SliceNode] | None,
    what_if: Mapping[str, SliceProfile] | None,
    time_limit_s: float,
) -> slices_pb2.OptimizeRequest:
    """The request for an allocation.

    Raises:
        InvalidInputError: Something is out of range; the message names it.
    """
    request = slices_pb2.OptimizeRequest(
        goal=_goal_number(goal),
        slices=[slice_name(name) for name in sequence(slices or (), "slices", "names of slices")],
        traffic=_traffic(traffic),
        nodes=[_node_message(node) for node in sequence(nodes or (), "nodes", "SliceNode(...)")],
    )
    if what_if is not None and not isinstance(what_if, Mapping):
        raise InvalidInputError(f"what_if is {what_if!r:.80}; expected profiles by the names of slices")
    for name, profile in _few(what_if or {}, "what_if").items():
        if not isinstance(profile, SliceProfile):
            raise InvalidInputError(f"what_if[{name!r:.80}] is {profile!r:.80}; expected SliceProfile(...)")
        request.what_if.add(name=slice_name(name), profile=profile_message(profile))
    seconds = between(time_limit_s, "time_limit_s", 0.001, TIME_LIMIT_MAX_S)
    request.time_limit.FromNanoseconds(round(seconds * 1e9))
    return request


def apply_request(outcome: SliceOutcome, request_id: str) -> slices_pb2.ApplyRequest:
    """The request that makes an outcome the allocation that holds.

    Raises:
        InvalidInputError: It is none, or was computed for what is not the mesh's.
    """
    if not isinstance(outcome, SliceOutcome):
        raise InvalidInputError(f"the outcome is {outcome!r:.80}; expected what `optimize` returned")
    if outcome.what_if:
        raise InvalidInputError(
            "this outcome was computed for slices or nodes that are not the mesh's, so that it cannot be applied; "
            "define the slices, and optimize without `what_if` and `nodes`",
            reason="FAILED_PRECONDITION",
        )
    allocations = sequence(outcome.allocations, "outcome.allocations", "SliceAllocation(...)")
    return slices_pb2.ApplyRequest(
        allocations=[_allocation_message(each) for each in allocations],
        etag=checked_etag(outcome.etag),
        request_id=request_id,
    )


def resize_request(
    name: str,
    resources: Mapping[str, float] | None,
    shares: Mapping[str, SliceShare] | None,
    request_id: str,
) -> slices_pb2.ResizeRequest:
    """The request for a change of one slice, still without its etag.

    Raises:
        InvalidInputError: Nothing is to be changed, or something is out of range.
    """
    if not resources and not shares:
        raise InvalidInputError(f"nothing of {name} is to be changed; give resources, shares or both")
    return slices_pb2.ResizeRequest(
        name=slice_name(name),
        resources=amounts(resources, "resources"),
        shares=share_messages(shares),
        request_id=request_id,
    )


def a_slice(message: slices_pb2.Slice) -> Slice:
    """A slice."""
    return Slice(
        name=message.name,
        tenant=message.tenant,
        profile=_profile(message.profile),
        state=_STATES.get(message.state, "unknown"),
        allocations=tuple(map(_allocation, message.allocations)),
        etag=message.etag,
        admitted=message.admitted,
        changed_at=message.changed_at.ToDatetime(tzinfo=UTC) if message.HasField("changed_at") else None,
        traffic=_measured(message.traffic),
    )


def overview(message: slices_pb2.ListSlicesResponse | slices_pb2.WatchSlicesResponse) -> SlicesOverview:
    """The slices and the nodes at one moment."""
    return SlicesOverview(
        slices=tuple(map(a_slice, message.slices)), nodes=tuple(map(_node, message.nodes)), etag=message.etag
    )


def template(message: slices_pb2.SliceTemplate) -> SliceTemplate:
    """A template."""
    return SliceTemplate(name=message.name, profile=_profile(message.profile), about=message.about)


def outcome(message: slices_pb2.OptimizeResponse, request: slices_pb2.OptimizeRequest) -> SliceOutcome:
    """An allocation that was computed."""
    return SliceOutcome(
        goal=next((name for name, number in _GOALS.items() if number == message.goal), "unknown"),
        allocations=tuple(map(_allocation, message.allocations)),
        objective=message.objective,
        bound=message.bound,
        gap=message.gap,
        took_s=message.took.ToNanoseconds() / 1e9,
        etag=message.etag,
        what_if=bool(request.nodes or request.what_if),
    )


def applied(message: slices_pb2.ApplyResponse) -> SlicesApplied:
    """What an allocation has changed."""
    return SlicesApplied(slices=tuple(map(a_slice, message.slices)), etag=message.etag)


def _goal_number(goal: str) -> slices_pb2.SliceGoal:
    if not isinstance(goal, str) or goal not in _GOALS:
        raise InvalidInputError(f"the goal is {goal!r:.80}; expected one of {', '.join(GOALS)}")
    return _GOALS[goal]


def _traffic(traffic: Mapping[str, float] | None) -> dict[str, float]:
    if traffic is not None and not isinstance(traffic, Mapping):
        raise InvalidInputError(f"traffic is {traffic!r:.80}; expected numbers by the names of slices")
    return {
        slice_name(name): between(value, f"traffic[{name!r}]", 0.0, TRAFFIC_MAX)
        for name, value in _few(traffic or {}, "traffic").items()
    }


def _node_message(node: SliceNode) -> slices_pb2.SliceNode:
    if not isinstance(node, SliceNode):
        raise InvalidInputError(f"a node is {node!r:.80}; expected SliceNode(name, capacity)")
    name = checked_name(node.name, "a node's name")
    return slices_pb2.SliceNode(
        name=name,
        capacity=amounts(node.capacity, f"capacity of {name}"),
        reserved=amounts(node.reserved, f"reserved of {name}"),
        absent=bool(node.absent),
    )


def _allocation_message(allocation: SliceAllocation) -> slices_pb2.SliceAllocation:
    if not isinstance(allocation, SliceAllocation):
        raise InvalidInputError(f"an allocation is {allocation!r:.80}; expected SliceAllocation(...)")
    return slices_pb2.SliceAllocation(
        slice=slice_name(allocation.slice),
        node=checked_name(allocation.node, "a node's name"),
        served=between(allocation.served, f"served of {allocation.slice}", 0.0, 1.0 + 1e-6),
        resources=amounts(allocation.resources, f"resources of {allocation.slice}"),
        traffic=between(allocation.traffic, f"traffic of {allocation.slice}", 0.0, TRAFFIC_MAX),
    )


def _by_resource(values: Mapping[str, T] | None, what: str, of: str) -> Mapping[str, T]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{what} is {values!r:.80}; expected {of} by resource, such as {{'CPU': ...}}")
    for name in values:
        if name not in RESOURCES:
            raise InvalidInputError(f"{what} names {name!r:.80}; the resources are {', '.join(RESOURCES)}")
    return values


def _few(values: Mapping[str, T], what: str) -> Mapping[str, T]:
    if len(values) > NAMES_MAX:
        raise InvalidInputError(f"{what} has {len(values)} entries; at most {NAMES_MAX} are taken")
    return values


def _profile(message: slices_pb2.SliceProfile) -> SliceProfile:
    return SliceProfile(
        template=message.template,
        resources=_ordered(message.resources),
        shares={name: _share(message.shares[name]) for name in _names(message.shares)},
        latency_ms=message.latency_ms,
        within_latency_permille=message.within_latency_permille,
        least_served=message.least_served,
        weight=message.weight,
        place=message.place,
        nodes=tuple(message.nodes),
        nodes_max=message.nodes_max,
        max_number_of_ues=message.max_number_of_ues,
        sst=message.snssai.sst,
        sd=message.snssai.sd,
    )


def _share(message: slices_pb2.SliceShare) -> SliceShare:
    return SliceShare(
        dedicated=message.dedicated, min=message.min, max=message.max if message.HasField("max") else None
    )


def _allocation(message: slices_pb2.SliceAllocation) -> SliceAllocation:
    return SliceAllocation(
        slice=message.slice,
        node=message.node,
        served=message.served,
        resources=_ordered(message.resources),
        traffic=message.traffic or 1.0,
    )


def _node(message: slices_pb2.SliceNode) -> SliceNode:
    return SliceNode(
        name=message.name,
        capacity=_ordered(message.capacity),
        reserved=_ordered(message.reserved),
        absent=message.absent,
    )


def _measured(message: slices_pb2.SliceTraffic) -> SliceTraffic:
    return SliceTraffic(
        offered_bytes=message.offered_bytes,
        sent_bytes=message.sent_bytes,
        dropped_bytes=message.dropped_bytes,
        frames=message.frames,
        violations=message.violations,
        wait_buckets=tuple(message.wait_buckets),
    )


def _names(values: Mapping[str, object]) -> list[str]:
    """Resources in their order; a map of protobuf has none."""
    return sorted(values, key=lambda name: (RESOURCES.index(name) if name in RESOURCES else len(RESOURCES), name))


def _ordered(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in _names(values)}
