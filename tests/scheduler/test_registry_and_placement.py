"""Membership by lease, and what the planner is told of nodes and links."""

from __future__ import annotations

import hashlib
import json

import pytest

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from orbitmesh.pack import Manifest
from orbitmesh.v1 import scheduler_pb2
from services.scheduler.costs import Objective
from services.scheduler.placement import choose_nodes, plan_links, plan_message, plan_model, plan_node
from services.scheduler.planner import plan
from services.scheduler.registry import NodeRecord, Registry


def beat(address: str = "127.0.0.1:1", **fields: object) -> scheduler_pb2.HeartbeatRequest:
    return scheduler_pb2.HeartbeatRequest(
        address=address, memory_free_bytes=10**9, memory_bandwidth=1e10, flops=1e10, **fields
    )  # type: ignore[arg-type]


def manifest(layers: int = 4, *, tied: bool = False) -> Manifest:
    names = [
        "config.json",
        "embed.safetensors",
        "head.safetensors",
        *(f"layer-{i:02}.safetensors" for i in range(layers)),
    ]
    files = [
        {"name": name, "size_bytes": 1000, "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in sorted(names)
    ]
    return Manifest.parse(
        json.dumps(
            {
                "format_version": 1, "name": "m", "architecture": "llama", "dtype": "float32", "layer_count": layers,
                "hidden_size": 64, "vocab_size": 100, "context_tokens": 128, "tied": tied, "eos_token_ids": [1],
                "layer_bytes": [1000] * layers, "kv_bytes_per_token": [512] * layers, "files": files,
                "created_at": "2026-01-01T00:00:00Z", "transformers_version": "5.23.0",
            }
        ).encode()
    )  # fmt: skip


def test_a_node_is_a_member_for_one_lease_after_its_heartbeat() -> None:
    """Up until the lease runs out, lost afterwards, up again with the next heartbeat, which counts from one."""
    registry = Registry(lease_s=5.0)
    record = registry.heartbeat("sat-1", beat(), now_s=100.0, now_ns=0)
    assert registry.state(record, 105.0) == scheduler_pb2.NODE_STATE_UP
    assert registry.state(record, 105.1) == scheduler_pb2.NODE_STATE_LOST
    assert registry.up(106.0) == []
    assert registry.heartbeat("sat-1", beat(), now_s=110.0, now_ns=0).beats == 1
    assert registry.heartbeat("sat-1", beat(), now_s=111.0, now_ns=0).beats == 2


def test_a_draining_node_and_one_that_left_take_no_new_work() -> None:
    """Draining keeps the lease but not the place in plans; leaving ends the lease at once."""
    registry = Registry(lease_s=5.0)
    draining = registry.heartbeat("sat-1", beat(draining=True), 0.0, 0)
    registry.heartbeat("sat-2", beat(), 0.0, 0)
    assert registry.state(draining, 1.0) == scheduler_pb2.NODE_STATE_DRAINING
    registry.leave("sat-2")
    assert registry.up(1.0) == []
    assert [peer.name for peer in registry.peers_of("sat-2", 1.0)] == ["sat-1"]


def test_a_tied_head_weighs_what_the_embedding_does() -> None:
    """The last stage of a tied model holds the embedding too; the planner must know."""
    assert plan_model(manifest(), 10).head_bytes == 1000
    assert plan_model(manifest(tied=True), 10).head_bytes == 2000
    assert plan_model(manifest(), 10).activation_bytes == 64 * 4


def test_measured_times_replace_the_estimate() -> None:
    """A node that ran this model is planned with its own times."""
    record = NodeRecord("a", beat(), 0.0, 0)
    model = plan_model(manifest(), 10)
    assert plan_node(record, model, {"a": (0.5, 0.1, 0.2)}).layer_s == (0.5,) * 4
    estimated = plan_node(record, model, {})
    assert 0 < estimated.layer_s[0] < 0.01


def test_only_links_that_are_up_between_chosen_nodes_are_planned_with() -> None:
    """A link that is down, unmeasured, or leads elsewhere does not exist for the planner."""
    links = [
        scheduler_pb2.LinkMeasure(peer="b", rtt_ns=40_000_000, rate_bps=1e8, up=True),
        scheduler_pb2.LinkMeasure(peer="c", rtt_ns=1, rate_bps=1e8, up=False),
        scheduler_pb2.LinkMeasure(peer="elsewhere", rtt_ns=1, rate_bps=1e8, up=True),
    ]
    records = [
        NodeRecord("a", beat(links=links), 0.0, 0),
        NodeRecord("b", beat(), 0.0, 0),
        NodeRecord("c", beat(), 0.0, 0),
    ]
    found = plan_links(records)
    assert set(found) == {("a", "b")}
    assert found["a", "b"].latency_s == pytest.approx(0.02)


def test_wanting_a_node_that_is_not_up_is_an_error_that_names_those_that_are() -> None:
    """The message helps; and no node at all is another error."""
    up = [NodeRecord("a", beat(), 0.0, 0)]
    with pytest.raises(InvalidInputError, match="not up: b; up are: a"):
        choose_nodes(up, ["a", "b"])
    with pytest.raises(InfeasiblePlanError):
        choose_nodes([], [])


def test_a_plan_keeps_its_reasons_on_the_wire() -> None:
    """Stages, crossings with the ring's return, runner-up, the cost of each cut: all of it survives."""
    model = plan_model(manifest(6), 10)
    links = [scheduler_pb2.LinkMeasure(peer=peer, rtt_ns=40_000_000, rate_bps=1e8, up=True) for peer in "abc"]
    records = [NodeRecord(name, beat(links=links), 0.0, 0) for name in "abc"]
    found = plan(
        model, [plan_node(record, model, {}) for record in records], plan_links(records),
        objective=Objective.LATENCY, stages=3,
    )  # fmt: skip
    message = plan_message(found, 0.001)
    assert message.stages[0].layer_start == 0
    assert message.stages[-1].layer_stop == 6
    assert len(message.crossings) == 3
    assert message.crossings[-1].to == message.stages[0].node
    assert len(message.cuts) == 2
    assert message.runner_up.objective_s >= message.objective_s
    assert message.reasons
