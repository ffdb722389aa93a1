"""From what nodes measured and a manifest says to the planner's terms, and from its plan to a message. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError
from orbitmesh.pack import Manifest
from orbitmesh.v1 import scheduler_pb2
from services.scheduler.costs import Objective, PlanLink, PlanModel, PlanNode
from services.scheduler.planner import Plan, PlanStage, describe
from services.scheduler.registry import NodeRecord

LAYER_OVERHEAD_S = 4e-4
"""What one layer's step costs beside arithmetic and memory, in seconds: the calls themselves (the shipped model, whose
arithmetic is next to nothing, takes 2.7 ms for 6 layers and the head). Only for nodes that have not run the model yet;
those that have report their own times."""
TOKEN_BYTES = 64
"""A token on its way back to the first stage, with header and seal."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

MeasuredTimes = Mapping[str, tuple[float, float, float]]
"""Node -> seconds of one layer, of the embedding, of the head, as measured with this very model."""

OBJECTIVES = {
    scheduler_pb2.OBJECTIVE_UNSPECIFIED: Objective.LATENCY,
    scheduler_pb2.OBJECTIVE_LATENCY: Objective.LATENCY,
    scheduler_pb2.OBJECTIVE_THROUGHPUT: Objective.THROUGHPUT,
}


def plan_model(manifest: Manifest, kv_tokens: int) -> PlanModel:
    """The model in the planner's terms."""
    embed = manifest.file("embed.safetensors").size_bytes
    head = manifest.file("head.safetensors").size_bytes + (embed if manifest.tied else 0)
    return PlanModel(
        layer_bytes=manifest.layer_bytes,
        embed_bytes=embed,
        head_bytes=head,
        activation_bytes=manifest.hidden_size * ITEM_BYTES[manifest.dtype],
        token_bytes=TOKEN_BYTES,
        kv_bytes_per_token=manifest.kv_bytes_per_token,
        kv_tokens=kv_tokens,
    )


def plan_node(record: NodeRecord, model: PlanModel, measured: MeasuredTimes) -> PlanNode:
    """A node in the planner's terms: measured times where it ran the model, else a roofline of its measured rates.

    The time of a layer for one token is the longer of reading its weights once and of two operations per weight
    (taken as 4 bytes each), plus `LAYER_OVERHEAD_S`.
    """
    known = measured.get(record.name)
    if known is not None:
        layer_s, embed_s, head_s = known
        return PlanNode(
            record.name, record.measures.memory_free_bytes, (layer_s,) * len(model.layer_bytes), embed_s, head_s
        )
    bandwidth, flops = max(record.measures.memory_bandwidth, 1e6), max(record.measures.flops, 1e6)

    def roofline(weight_bytes: int) -> float:
        return max(weight_bytes / bandwidth, weight_bytes / 2 / flops)

    return PlanNode(
        record.name,
        record.measures.memory_free_bytes,
        tuple(LAYER_OVERHEAD_S + roofline(size) for size in model.layer_bytes),
        0.0,
        roofline(model.head_bytes),
    )


def plan_links(records: Iterable[NodeRecord]) -> dict[tuple[str, str], PlanLink]:
    """The links that are up, as measured by their sending side; one way is taken as half of a round trip."""
    names = {record.name for record in records}
    return {
        (record.name, link.peer): PlanLink(link.rtt_ns / 2e9, link.rate_bps)
        for record in records
        for link in record.measures.links
        if link.up and link.peer in names and link.peer != record.name and link.rate_bps > 0
    }


def down_links(records: Iterable[NodeRecord]) -> frozenset[tuple[str, str]]:
    """The links whose last probes failed."""
    return frozenset((record.name, link.peer) for record in records for link in record.measures.links if not link.up)


def measuring(records: Iterable[NodeRecord], since_s: float) -> bool:
    """Whether a node that joined after `since_s` has links that were not tried yet, from it or to it."""
    members = list(records)
    told = {record.name: {link.peer for link in record.measures.links} for record in members}
    late = [record.name for record in members if record.joined_s > since_s]
    return any(
        other.name not in told[name] or name not in told[other.name]
        for name in late
        for other in members
        if other.name != name
    )


def choose_nodes(up: list[NodeRecord], wanted: Iterable[str]) -> list[NodeRecord]:
    """The nodes to plan with.

    Raises:
        InvalidInputError: Where a wanted node is not up.
        InfeasiblePlanError: Where no node is up.
    """
    asked = list(wanted)
    by_name = {record.name: record for record in up}
    missing = sorted(set(asked) - set(by_name))
    if missing:
        raise InvalidInputError(
            f"not up: {', '.join(missing)}; up are: {', '.join(by_name) or 'none'}", reason="NOT_FOUND"
        )
    chosen = [by_name[name] for name in dict.fromkeys(asked)] if asked else up
    if not chosen:
        raise InfeasiblePlanError("no node is up: start executors, or see their logs for why they cannot join")
    return chosen


def _stage_message(stage: PlanStage) -> scheduler_pb2.PlannedStage:
    return scheduler_pb2.PlannedStage(
        node=stage.node,
        layer_start=stage.start,
        layer_stop=stage.stop,
        compute_s=stage.compute_s,
        memory_bytes=stage.memory_bytes,
    )


def plan_message(plan: Plan, planning_s: float) -> scheduler_pb2.Plan:
    """A plan as others see it."""
    latency = plan.objective is Objective.LATENCY
    message = scheduler_pb2.Plan(
        stages=[_stage_message(stage) for stage in plan.stages],
        objective=scheduler_pb2.OBJECTIVE_LATENCY if latency else scheduler_pb2.OBJECTIVE_THROUGHPUT,
        objective_s=plan.objective_s,
        token_s=plan.token_s,
        reasons=describe(plan),
        proven_optimal=plan.proven_optimal,
        planning_s=planning_s,
    )
    for crossing in (*plan.crossings, *((plan.ring,) if plan.ring is not None else ())):
        message.crossings.add(
            **{"from": crossing.source, "to": crossing.target},
            latency_s=crossing.latency_s,
            transfer_s=crossing.transfer_s,
        )
    if plan.runner_up is not None:
        other = plan.runner_up
        bounds = pairwise(other.bounds)
        for node, (start, stop) in zip(other.nodes, bounds, strict=True):
            message.runner_up.stages.add(node=node, layer_start=start, layer_stop=stop)
        message.runner_up.objective_s = other.token_s if latency else other.bottleneck_s
    for index, candidates in enumerate(plan.cuts):
        costs = message.cuts.add(cut=index)
        for layer, value in candidates.items():
            costs.candidates.add(layer=layer, objective_s=value)
    return message
