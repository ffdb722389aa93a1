"""Contact plans as messages, and the reading of one from a constellation service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from orbitmesh.contacts import MAX_CONTACTS, Contact, ContactPlan, LatencyPoint, refuse
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.v1 import constellation_pb2, constellation_pb2_grpc

PAGES_MAX = 100_000
"""Most pages that one plan is read from."""


def stamp(mesh_s: float) -> Timestamp:
    """A mesh time as a message, to the nanosecond."""
    made = Timestamp()
    made.FromNanoseconds(round(mesh_s * 1e9))
    return made


def mesh_time(message: Timestamp) -> float:
    """The mesh time of a message, in seconds; doubles hold it to a quarter of a microsecond."""
    return float(message.seconds + message.nanos / 1e9)


def contact_to_proto(contact: Contact) -> constellation_pb2.SkyContact:
    """A contact as a message."""
    return constellation_pb2.SkyContact(
        source=contact.source,
        target=contact.target,
        start_s=contact.start_s,
        end_s=contact.end_s,
        rate_bps=contact.rate_bps,
        latency=[
            constellation_pb2.SkyLatency(at_s=point.at_s, latency_s=point.latency_s) for point in contact.latency
        ],
        kind=contact.kind,
        acquisition_s=contact.acquisition_s,
        max_elevation_deg=contact.max_elevation_deg,
        truncated_start=contact.truncated_start,
        truncated_end=contact.truncated_end,
    )


def contact_from_proto(message: constellation_pb2.SkyContact) -> Contact:
    """The contact in a message.

    Raises:
        InvalidInputError: It is no valid contact.
    """
    return Contact(
        source=message.source,
        target=message.target,
        start_s=message.start_s,
        end_s=message.end_s,
        rate_bps=message.rate_bps,
        latency=tuple(LatencyPoint(point.at_s, point.latency_s) for point in message.latency),
        kind=message.kind,
        acquisition_s=message.acquisition_s,
        max_elevation_deg=message.max_elevation_deg if message.HasField("max_elevation_deg") else None,
        truncated_start=message.truncated_start,
        truncated_end=message.truncated_end,
    )


def to_proto(plan: ContactPlan) -> constellation_pb2.SkyContactPlan:
    """A plan as one message; `from_proto` gives back an equal plan."""
    return constellation_pb2.SkyContactPlan(
        start_s=plan.start_s,
        end_s=plan.end_s,
        contacts=[contact_to_proto(contact) for contact in plan.contacts],
        warnings=plan.warnings,
    )


def from_proto(message: constellation_pb2.SkyContactPlan) -> ContactPlan:
    """The plan in a message.

    Raises:
        InvalidInputError: It is no valid plan.
    """
    contacts = tuple(contact_from_proto(contact) for contact in message.contacts)
    return ContactPlan(message.start_s, message.end_s, contacts, tuple(message.warnings))


async def fetch_plan(
    channel: grpc.aio.Channel,
    *,
    start_s: float | None = None,
    span_s: float | None = None,
    nodes: Sequence[str] = (),
    timeout_s: float = CONTROL_DEADLINE_S,
) -> ContactPlan:
    """The plan that a constellation service has, put together from its pages.

    Args:
        channel: To a constellation service; `orbitmesh.rpc.open_channel` makes one.
        start_s: Begin of the span, mesh time in seconds; the service's now where left out.
        span_s: Its length, in seconds of mesh time; the scenario's own where left out.
        nodes: Only the links of this node, or between these two.
        timeout_s: The deadline of each page, in real seconds.

    Raises:
        InvalidInputError: The pages are no valid plan.
        MeshError: The service says no, or cannot be reached.
    """
    stub: Any = constellation_pb2_grpc.ConstellationServiceStub(channel)
    request = constellation_pb2.GetContactPlanRequest(nodes=nodes)
    if start_s is not None:
        request.starts_at.CopyFrom(stamp(start_s))
    if span_s is not None:
        length = Duration()
        length.FromNanoseconds(round(span_s * 1e9))
        request.span.CopyFrom(length)
    contacts: list[Contact] = []
    for _ in range(PAGES_MAX):
        with mapped_errors():
            answer = await stub.GetContactPlan(request, timeout=timeout_s)
        contacts += [contact_from_proto(contact) for contact in answer.plan.contacts]
        if len(contacts) > MAX_CONTACTS:
            raise refuse(f"the service's plan has more than {MAX_CONTACTS} contacts; ask for a shorter span")
        if not answer.next_page_token:
            plan = answer.plan
            return ContactPlan(plan.start_s, plan.end_s, tuple(contacts), tuple(plan.warnings))
        request.page_token = answer.next_page_token
    raise refuse(f"the service's plan has more than {PAGES_MAX} pages; ask for a shorter span")
