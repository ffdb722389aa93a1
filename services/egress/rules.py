"""The rules of a node's port, from what the slices' service says of it, and what the port measured for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.egress.spec import DEFAULT_SLICE, PortSpec, SliceRule
from services.egress.traffic import Traffic

BANDWIDTH = "BandwidthGbps"
"""The resource that a port divides."""

URLLC_SST = 2
"""The slice/service type whose frames go before those of others (TS 23.501, table 5.15.2.2-1)."""

DEFAULT_PART = 0.1
"""The part of a link that traffic without a slice is guaranteed, where so much of it is not reserved."""

_ENFORCED = (slices_pb2.SLICE_STATE_ACTIVE, slices_pb2.SLICE_STATE_RELEASING)


def port_spec(response: slices_pb2.WatchSlicesResponse, node: str, rate_bps: float) -> PortSpec:
    """What a port of a node has to keep to.

    A slice has of the link what it has of the node: the part of its bandwidth that is reserved for it is guaranteed,
    its dedicated and greatest shares are the part that is never lent and the ceiling. One that has neither there
    counts as none.

    Args:
        response: The slices, as `WatchSlices` tells of them.
        node: The name of the node.
        rate_bps: What the port may give away of its link, in bits per second.

    Raises:
        InvalidInputError: The numbers are none, or more slices have bandwidth there than a port serves.
    """
    capacity = capacity_bps(response, node)
    rules: dict[str, SliceRule] = {}
    for found in response.slices:
        reserved = [each.resources.get(BANDWIDTH, 0.0) for each in found.allocations if each.node == node]
        if found.state in _ENFORCED and reserved:
            if not found.name:
                raise InvalidInputError("a slice without a name has no rule; that name is the default slice's")
            reserved_bps = sum(reserved) * 1e9
            if not 0 <= reserved_bps < math.inf:
                raise InvalidInputError(f"{reserved_bps:g} bit/s are reserved for {found.name!r}; expected 0 or more")
            if reserved_bps or BANDWIDTH in found.profile.shares:
                part = reserved_bps / (capacity if capacity > 0 else rate_bps)
                rules[found.name] = _rule(found.profile, part, rate_bps)
    guaranteed = sum(rule.guarantee_bps for rule in rules.values())
    if guaranteed > rate_bps:  # shares of a node that all fit it may pass one by a rounding, or by its own `min`
        rules = {name: _scaled(rule, rate_bps / guaranteed) for name, rule in rules.items()}
        guaranteed = rate_bps
    rules[DEFAULT_SLICE] = SliceRule(guarantee_bps=min(max(rate_bps - guaranteed, 0.0), DEFAULT_PART * rate_bps))
    return PortSpec(rate_bps, rules)


def traffic_since(now: Mapping[str, Traffic], before: dict[str, Traffic]) -> dict[str, slices_pb2.SliceTraffic]:
    """What was measured since the last call, by slice, without the default one and those of which nothing was.

    Args:
        now: A port's counts.
        before: What was told until now; brought up to date.
    """
    told: dict[str, slices_pb2.SliceTraffic] = {}
    for name, traffic in now.items():
        last = before.get(name, Traffic())
        message = slices_pb2.SliceTraffic(
            offered_bytes=max(traffic.offered_bytes - last.offered_bytes, 0),
            sent_bytes=max(traffic.sent_bytes - last.sent_bytes, 0),
            dropped_bytes=max(traffic.dropped_bytes - last.dropped_bytes, 0),
            frames=max(traffic.frames - last.frames, 0),
            violations=max(traffic.violations - last.violations, 0),
        )
        # Less than before: one of several ports has forgotten a slice that it had not seen for long.
        waits = [max(one - other, 0) for one, other in zip(traffic.wait_buckets, last.wait_buckets, strict=True)]
        if any(waits) or message.ByteSize():
            message.wait_buckets.extend(waits)
            if name != DEFAULT_SLICE:
                told[name] = message
            before[name] = deepcopy(traffic)
    for name in set(before) - set(now):
        del before[name]
    return told


def by_node(response: slices_pb2.WatchSlicesResponse) -> dict[str, slices_pb2.WatchSlicesResponse]:
    """What concerns each node, in one pass: `port_spec` and `capacity_bps` of it are those of the whole."""
    found: dict[str, slices_pb2.WatchSlicesResponse] = {}
    for node in response.nodes:
        found[node.name] = slices_pb2.WatchSlicesResponse(nodes=[node])
    for each in response.slices:
        for name in {allocation.node for allocation in each.allocations} & set(found):
            found[name].slices.append(each)
    return found


def capacity_bps(response: slices_pb2.WatchSlicesResponse, node: str) -> float:
    """What a node can send in all, in bits per second; 0 where that is not said."""
    return next((each.capacity.get(BANDWIDTH, 0.0) for each in response.nodes if each.name == node), 0.0) * 1e9


def _rule(profile: slices_pb2.SliceProfile, part: float, rate_bps: float) -> SliceRule:
    """The rule of a slice that a part of the link is reserved for."""
    share = profile.shares[BANDWIDTH] if BANDWIDTH in profile.shares else slices_pb2.SliceShare()
    guarantee = max(part, share.min) * rate_bps
    return SliceRule(
        guarantee_bps=guarantee,
        dedicated_bps=min(share.dedicated * rate_bps, guarantee),
        ceiling_bps=max(share.max * rate_bps, guarantee, 1.0) if share.HasField("max") else None,
        urgent=profile.snssai.sst == URLLC_SST,
        latency_s=profile.latency_ms / 1e3,
    )


def _scaled(rule: SliceRule, factor: float) -> SliceRule:
    return SliceRule(
        rule.guarantee_bps * factor, rule.dedicated_bps * factor, rule.ceiling_bps, rule.urgent, rule.latency_s
    )
