"""A node's port rules from what the slices' service says, against arithmetic by hand."""

from __future__ import annotations

import pytest

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import slices_pb2
from services.egress import Port, SliceRule, Traffic
from services.egress.rules import port_spec, traffic_since

RATE = 10e6
ACTIVE = slices_pb2.SLICE_STATE_ACTIVE


def node(name: str = "node-42", gbps: float = 40.0) -> slices_pb2.SliceNode:
    return slices_pb2.SliceNode(name=name, capacity={"BandwidthGbps": gbps, "CPU": 16})


def slice_(
    name: str,
    gbps: float,
    *,
    sst: int = 1,
    state: slices_pb2.SliceState = ACTIVE,
    share: slices_pb2.SliceShare | None = None,
    at: str = "node-42",
    latency_ms: float = 0.0,
) -> slices_pb2.Slice:
    return slices_pb2.Slice(
        name=name,
        state=state,
        profile=slices_pb2.SliceProfile(
            snssai=slices_pb2.Snssai(sst=sst),
            shares={} if share is None else {"BandwidthGbps": share},
            latency_ms=latency_ms,
        ),
        allocations=[slices_pb2.SliceAllocation(slice=name, node=at, served=1, resources={"BandwidthGbps": gbps})],
    )


def test_parts_of_a_node_are_parts_of_its_link() -> None:
    """4 of 40 Gbit/s are a tenth of a link of 10 Mbit/s; shares are parts of the same; SST 2 goes first."""
    response = slices_pb2.WatchSlicesResponse(
        nodes=[node("other", 1.0), node()],
        slices=[
            slice_("fast", 4.0, sst=2, latency_ms=20, share=slices_pb2.SliceShare(dedicated=0.05, min=0.1, max=0.5)),
            slice_("wide", 20.0),
            slice_("elsewhere", 20.0, at="other"),
            slice_("planned", 20.0, state=slices_pb2.SLICE_STATE_DEFINED),
            slice_("ending", 2.0, state=slices_pb2.SLICE_STATE_RELEASING),
        ],
    )
    spec = port_spec(response, "node-42", RATE)
    assert dict(spec.slices) == {
        "fast": SliceRule(1e6, 0.5e6, 5e6, urgent=True, latency_s=0.02),
        "wide": SliceRule(5e6),
        "ending": SliceRule(0.5e6),
        "": SliceRule(1e6),
    }


def test_the_default_slice_has_what_is_not_reserved() -> None:
    """Traffic without a slice is guaranteed what is left, a tenth of the link at most; with no slices it has it all."""
    full = slices_pb2.WatchSlicesResponse(nodes=[node()], slices=[slice_("a", 38.0)])
    assert port_spec(full, "node-42", RATE).rule("").guarantee_bps == pytest.approx(0.05 * RATE)
    alone = port_spec(slices_pb2.WatchSlicesResponse(), "node-42", RATE)
    assert alone.rule("anything") == SliceRule(0.1 * RATE)
    assert alone.rule("").ceiling_bps is None


def test_guarantees_never_pass_the_link() -> None:
    """Shares that together pass the node by a rounding, or by their least shares, are all cut by the same part."""
    share = slices_pb2.SliceShare(min=0.6)
    response = slices_pb2.WatchSlicesResponse(
        nodes=[node()], slices=[slice_("a", 10.0, share=share), slice_("b", 10.0, share=share)]
    )
    spec = port_spec(response, "node-42", RATE)
    assert spec.rule("a").guarantee_bps == spec.rule("b").guarantee_bps == pytest.approx(RATE / 2)
    assert spec.slices[""].guarantee_bps == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("gbps", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(gbps: float) -> None:
    """A reservation that is negative, infinite or no number gives no rules but a typed error."""
    response = slices_pb2.WatchSlicesResponse(nodes=[node()], slices=[slice_("a", gbps)])
    with pytest.raises(InvalidInputError):
        port_spec(response, "node-42", RATE)


def test_each_report_has_what_was_measured_since_the_last_one() -> None:
    """Reports add up to the port's counts, tell nothing twice, and leave the default slice out."""
    response = slices_pb2.WatchSlicesResponse(nodes=[node()], slices=[slice_("a", 20.0, latency_ms=1)])
    port, before, moment = Port(port_spec(response, "node-42", RATE), 0), dict[str, Traffic](), 0
    reports = []
    for count in (3, 0, 5):
        for _ in range(count):
            port.offer("a", 4096, moment)
            port.offer("", 4096, moment)
        while (found := port.next(moment)) is not None:
            moment = found if isinstance(found, int) else moment
        reports.append(traffic_since(port.traffic, before))
    assert [set(report) for report in reports] == [{"a"}, set(), {"a"}]
    assert [reports[at]["a"].frames for at in (0, 2)] == [3, 5]
    for name in ("offered_bytes", "sent_bytes", "violations"):
        assert sum(getattr(reports[at]["a"], name) for at in (0, 2)) == getattr(port.traffic["a"], name)
    assert sum(sum(reports[at]["a"].wait_buckets) for at in (0, 2)) == 8
