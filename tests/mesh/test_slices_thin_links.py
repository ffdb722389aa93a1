"""Slices of a real mesh whose links are thinner than its nodes, as its contact plan says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from orbitmesh import Mesh
from orbitmesh.contacts import Contact, ContactPlan, LatencyPoint
from orbitmesh.trust import Role, load_identity
from orbitmesh.v1 import gateway_pb2_grpc, slices_pb2, slices_pb2_grpc
from tests.mesh.support import Models, channel_to, deployed, nodes_of
from tests.mesh.test_slices_compute import CALL_S, Calls, again_until, held

EPOCH_S = 1_700_000_000.0
SPAN_S = 100_000.0
RATE_BPS = 20e6
NAMES = ("leo-1", "leo-2", "oslo")
MOST = 0.02
"""Of every node: of 20 Mbit/s that leaves 388 kbit/s, of the node's 1 Gbit/s 19.4 Mbit/s."""


def plan() -> ContactPlan:
    point = (LatencyPoint(EPOCH_S, 0.002),)
    pairs = itertools.permutations(NAMES, 2)
    contacts = [
        Contact(source, target, EPOCH_S, EPOCH_S + SPAN_S, RATE_BPS, point, truncated_end=True)
        for source, target in pairs
    ]
    return ContactPlan(EPOCH_S, EPOCH_S + SPAN_S, tuple(contacts))


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    where = tmp_path_factory.mktemp("thin")
    with Mesh.local(node_names=list(NAMES), contacts=plan(), gateway_at="oslo", directory=where) as mesh:
        yield mesh


def test_links_of_the_plan_hold_a_slice_to_its_part_of_them_and_the_trace_says_so(thin: Mesh, models: Models) -> None:
    """A generation in a slice with 2 % of every node has 2 % of the links that the plan gives 20 Mbit/s, from the
    gateway to the first node and between nodes: the rows of its trace name that ceiling and not the node's; its tokens
    are those of the unsplit model; what was sent of it is counted; and what names no slice waits for no ceiling."""
    model = models.get("llama")
    prompt = model.prompt(300)
    expected = model.answer(prompt, 4)
    rule = f"waiting: slice ceiling {MOST * RATE_BPS * 0.97 / 1e3:g} kbit/s"
    identity = load_identity(thin.local.operator_identity)
    with (
        channel_to(thin.local.gateway, identity, Role.GATEWAY, "gateway") as channel,
        deployed(thin, model, "cut", stages=2, nodes=["leo-1", "leo-2"]) as deployment,
    ):
        calls = Calls(slices_pb2_grpc.SlicesServiceStub(channel), gateway_pb2_grpc.GatewayServiceStub(channel))
        assert set(nodes_of(deployment)) == {"leo-1", "leo-2"}
        first = nodes_of(deployment)[0]
        places: set[str] = set()

        def waits_on_links() -> bool:
            ids, breakdown = calls.generate("cut", prompt, 4, "cut")
            assert ids == expected
            rows = [row for row in breakdown.rows if row.what.startswith("waiting: slice ceiling")]
            assert all(row.wait for row in rows)
            assert sum(row.total_s for row in breakdown.rows) == pytest.approx(breakdown.total_s, rel=0.01)
            places.update(row.place for row in rows if row.what == rule)
            return places >= {"gateway", first}

        most = slices_pb2.SliceShare()
        most.max = MOST
        with held(calls, "cut", {"BandwidthGbps": most}):
            again_until(waits_on_links, "a frame waited for its slice's part of a link, at the gateway and at a node")

            def is_told() -> bool:
                found = calls.slices.GetSlice(slices_pb2.GetSliceRequest(name="cut"), timeout=CALL_S).slice.traffic
                assert found.sent_bytes <= found.offered_bytes
                return found.frames >= 8 and sum(found.wait_buckets) == found.frames

            again_until(is_told, "gateway and executors told what they had sent")
            _, breakdown = calls.generate("cut", prompt, 4, "")
            assert not any(row.what.startswith("waiting: slice") for row in breakdown.rows)
