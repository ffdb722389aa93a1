"""Slices, nodes and what was measured as messages, and back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.slices.amounts import NOTHING, Amounts, parse, to_map
from services.slices.resources import Share
from services.slices.templates import TEMPLATES, Profile
from services.slices.traffic import Traffic
from services.slices.values import Book, Node, Promise, Reserved, Slice, State

_STATES: Mapping[State, int] = MappingProxyType(
    {
        State.DEFINED: slices_pb2.SLICE_STATE_DEFINED,
        State.ACTIVE: slices_pb2.SLICE_STATE_ACTIVE,
        State.RELEASING: slices_pb2.SLICE_STATE_RELEASING,
    }
)


def shares_from(given: Mapping[str, slices_pb2.SliceShare]) -> dict[str, Share]:
    """Shares by resource.

    Raises:
        InvalidInputError: A part is outside 0 to 1, or they are in no order.
    """
    return {
        name: Share(each.dedicated, each.min or each.dedicated, each.max if each.HasField("max") else 1.0)
        for name, each in given.items()
    }


def profile_from(given: slices_pb2.SliceProfile) -> Profile:
    """A profile as it was asked for.

    Raises:
        InvalidInputError: A value outside what the contract says, or an unknown resource.
    """
    return Profile(
        template=given.template,
        sst=given.snssai.sst,
        sd=given.snssai.sd,
        resources=dict(given.resources),
        shares=shares_from(given.shares),
        latency_ms=given.latency_ms,
        within_latency_permille=given.within_latency_permille,
        least_served=given.least_served,
        weight=given.weight,
        place=given.place,
        nodes=tuple(given.nodes),
        nodes_max=given.nodes_max,
        max_number_of_ues=given.max_number_of_ues,
    )


def profile_message(profile: Profile) -> slices_pb2.SliceProfile:
    """A profile as a message; `profile_from` gives an equal one back."""
    return slices_pb2.SliceProfile(
        template=profile.template,
        snssai=slices_pb2.Snssai(sst=profile.sst, sd=profile.sd),
        resources=dict(profile.resources),
        shares={
            name: slices_pb2.SliceShare(dedicated=each.dedicated, min=each.minimum, max=each.maximum)
            for name, each in profile.shares.items()
        },
        latency_ms=profile.latency_ms,
        within_latency_permille=profile.within_latency_permille,
        least_served=profile.least_served,
        weight=profile.weight,
        place=profile.place,
        nodes=profile.nodes,
        nodes_max=profile.nodes_max,
        max_number_of_ues=profile.max_number_of_ues,
    )


def templates_message() -> slices_pb2.ListTemplatesResponse:
    """The templates."""
    return slices_pb2.ListTemplatesResponse(
        templates=[
            slices_pb2.SliceTemplate(name=each.name, profile=profile_message(each.profile), about=each.about)
            for each in TEMPLATES.values()
        ]
    )


def reserved_from(given: slices_pb2.SliceAllocation) -> Reserved:
    """What one row of an allocation gives.

    Raises:
        InvalidInputError: An amount is none.
    """
    what = f"slice {given.slice[:63]!r} on {given.node[:63]!r}"
    return Reserved(given.served, parse(given.resources, what), given.traffic or 1.0)


def allocation_message(name: str, node: str, part: Reserved) -> slices_pb2.SliceAllocation:
    """One row of an allocation; `reserved_from` gives an equal one back."""
    return slices_pb2.SliceAllocation(
        slice=name, node=node, served=part.served, resources=to_map(part.amounts), traffic=part.traffic
    )


def promise_message(promise: Promise, etag: str) -> slices_pb2.Slice:
    """What was promised; `promise_from` gives an equal one back."""
    message = slices_pb2.Slice(
        name=promise.name,
        tenant=promise.tenant,
        profile=profile_message(promise.profile),
        state=_STATES[promise.state],  # type: ignore[arg-type] # the stubs know the names, not the numbers
        allocations=[
            allocation_message(promise.name, node, promise.reserved[node]) for node in sorted(promise.reserved)
        ],
        etag=etag,
    )
    message.changed_at.FromNanoseconds(promise.changed_ns)
    return message


def promise_from(message: slices_pb2.Slice) -> Promise:
    """What was promised, from a message of ours.

    Raises:
        InvalidInputError: It is none.
    """
    states = {number: state for state, number in _STATES.items()}
    version = message.etag.rpartition("-")[2]
    if message.state not in states or not version.isdecimal():
        raise InvalidInputError(f"slice {message.name[:63]!r} has the state {message.state}, the etag {message.etag!r}")
    return Promise(
        name=message.name,
        tenant=message.tenant,
        profile=profile_from(message.profile),
        state=states[message.state],
        reserved=MappingProxyType({each.node: reserved_from(each) for each in message.allocations}),
        version=int(version),
        changed_ns=message.changed_at.ToNanoseconds(),
    )


def slice_message(book: Book, held: Slice, traffic: Traffic | None) -> slices_pb2.Slice:
    """A slice as it is."""
    message = promise_message(held.promise, book.etag_of(held.promise))
    message.admitted = len(held.admissions)
    if traffic is not None:
        message.traffic.CopyFrom(traffic_message(traffic, percentiles=True))
    return message


def node_message(name: str, node: Node, reserved: Amounts = NOTHING) -> slices_pb2.SliceNode:
    """A node; `node_from` gives an equal one back, without what is reserved."""
    return slices_pb2.SliceNode(
        name=name, capacity=to_map(node.capacity), reserved=to_map(reserved), absent=node.absent
    )


def node_from(message: slices_pb2.SliceNode) -> Node:
    """A node.

    Raises:
        InvalidInputError: An amount is none.
    """
    return Node(parse(message.capacity, f"node {message.name[:63]!r}"), message.absent)


def traffic_from(message: slices_pb2.SliceTraffic) -> Traffic:
    """What was measured."""
    return Traffic(
        message.offered_bytes,
        message.sent_bytes,
        message.dropped_bytes,
        message.frames,
        message.violations,
        tuple(message.wait_buckets),
    )


def traffic_message(traffic: Traffic, *, percentiles: bool = False) -> slices_pb2.SliceTraffic:
    """What was measured; `traffic_from` gives an equal one back."""
    message = slices_pb2.SliceTraffic(
        offered_bytes=traffic.offered_bytes,
        sent_bytes=traffic.sent_bytes,
        dropped_bytes=traffic.dropped_bytes,
        frames=traffic.frames,
        violations=traffic.violations,
        wait_buckets=traffic.waits,
    )
    if percentiles:
        message.wait_p50_ms = traffic.wait_ms(0.5)
        message.wait_p99_ms = traffic.wait_ms(0.99)
        message.wait_p999_ms = traffic.wait_ms(0.999)
    return message


def duration_s(message: Any) -> float:
    """Seconds of a `Duration`.

    Raises:
        InvalidInputError: It is longer than such messages may be.
    """
    seconds = float(message.seconds + message.nanos / 1e9)
    if not -3.2e11 < seconds < 3.2e11:
        raise InvalidInputError(f"a duration of {seconds:g} s is none")
    return seconds
