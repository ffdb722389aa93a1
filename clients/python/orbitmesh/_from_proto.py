"""From the messages of the wire to the values of `results` and back: the one place where the SDK knows
both."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from orbitmesh.errors import InvalidInputError, PackError
from orbitmesh.pack.manifest import Manifest
from orbitmesh.results import (
    CutCosts,
    Deployment,
    LinkMeasure,
    Node,
    Plan,
    PlannedCrossing,
    PlannedStage,
    Progress,
    Stage,
    Status,
)
from orbitmesh.trace.breakdown import Breakdown, BreakdownRow, ClockOffset
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2, wire_pb2

_NODE_STATES = {
    scheduler_pb2.NODE_STATE_UP: "up",
    scheduler_pb2.NODE_STATE_DRAINING: "draining",
    scheduler_pb2.NODE_STATE_LOST: "lost",
}
_DEPLOYMENT_STATES = {
    scheduler_pb2.DEPLOYMENT_STATE_LOADING: "loading",
    scheduler_pb2.DEPLOYMENT_STATE_READY: "ready",
    scheduler_pb2.DEPLOYMENT_STATE_FAILED: "failed",
    scheduler_pb2.DEPLOYMENT_STATE_DEGRADED: "degraded",
}
_PHASES = {
    executor_pb2.STAGE_PHASE_UNSPECIFIED: "waiting",
    executor_pb2.STAGE_PHASE_FETCHING: "fetching",
    executor_pb2.STAGE_PHASE_VERIFYING: "verifying",
    executor_pb2.STAGE_PHASE_LOADING: "loading",
    executor_pb2.STAGE_PHASE_MEASURING: "measuring",
    executor_pb2.STAGE_PHASE_READY: "ready",
}
_OBJECTIVES = {
    "latency": scheduler_pb2.OBJECTIVE_LATENCY,
    "throughput": scheduler_pb2.OBJECTIVE_THROUGHPUT,
}
_CODECS = {
    "auto": wire_pb2.CODEC_UNSPECIFIED,
    "raw": wire_pb2.CODEC_RAW,
    "zstd": wire_pb2.CODEC_ZSTD,
    "exponent-split": wire_pb2.CODEC_EXPONENT_SPLIT_ZSTD,
    "bf16": wire_pb2.CODEC_CAST_BFLOAT16,
    "fp16": wire_pb2.CODEC_CAST_FLOAT16,
    "int8": wire_pb2.CODEC_INT8_BLOCK,
}
FINISH_REASONS = {
    wire_pb2.FINISH_REASON_LENGTH: "length",
    wire_pb2.FINISH_REASON_STOP: "stop",
}
CODECS = tuple(_CODECS)
"""The names that `codec=` knows."""
OBJECTIVES = tuple(_OBJECTIVES)
"""The names that `objective=` knows."""


def codec_number(name: str) -> wire_pb2.Codec:
    """The codec of a name.

    Raises:
        InvalidInputError: there is none of this name.
    """
    try:
        return _CODECS[name]
    except KeyError:
        raise InvalidInputError(f"codec {name!r} is unknown; expected one of {', '.join(_CODECS)}") from None


def objective_number(name: str) -> scheduler_pb2.Objective:
    """The objective of a name.

    Raises:
        InvalidInputError: there is none of this name.
    """
    try:
        return _OBJECTIVES[name]
    except KeyError:
        raise InvalidInputError(
            f"objective {name!r} is unknown; expected one of {', '.join(_OBJECTIVES)}"
        ) from None


def node(message: scheduler_pb2.Node) -> Node:
    """A node with its measures."""
    measures = message.measures
    return Node(
        name=message.name,
        kind=measures.kind,
        state=_NODE_STATES.get(message.state, "unknown"),
        address=measures.address,
        cores=measures.cpu or float(measures.cores),
        memory_total_bytes=measures.memory_total_bytes,
        memory_free_bytes=measures.memory_free_bytes,
        load=measures.load,
        flops=measures.flops,
        accelerators=tuple(accelerator.name for accelerator in measures.accelerators),
        stages=tuple(
            f"{held.deployment}[{held.layer_start}..{held.layer_stop - 1}]" for held in measures.stages
        ),
        links=tuple(
            LinkMeasure(peer=link.peer, rtt_s=link.rtt_ns / 1e9, rate_bps=link.rate_bps, up=link.up)
            for link in measures.links
        ),
        last_seen=_time(message.last_seen),
    )


def plan(message: scheduler_pb2.Plan) -> Plan:
    """A plan with its reasons."""
    return Plan(
        stages=tuple(_planned_stage(stage) for stage in message.stages),
        crossings=tuple(
            PlannedCrossing(
                # `from` is a word of Python, so the stub has no attribute of that name.
                source=str(getattr(crossing, "from")),
                target=crossing.to,
                latency_s=crossing.latency_s,
                transfer_s=crossing.transfer_s,
            )
            for crossing in message.crossings
        ),
        objective="throughput" if message.objective == scheduler_pb2.OBJECTIVE_THROUGHPUT else "latency",
        objective_s=message.objective_s,
        token_s=message.token_s,
        runner_up=tuple(_planned_stage(stage) for stage in message.runner_up.stages),
        runner_up_s=message.runner_up.objective_s if message.runner_up.stages else None,
        cuts=tuple(
            CutCosts(
                cut=costs.cut,
                candidates={
                    candidate.layer: candidate.objective_s if candidate.HasField("objective_s") else None
                    for candidate in costs.candidates
                },
            )
            for costs in message.cuts
        ),
        reasons=tuple(message.reasons),
        proven_optimal=message.proven_optimal,
        planning_s=message.planning_s,
    )


def deployment(message: scheduler_pb2.Deployment) -> Deployment:
    """A deployment with its stages: as loaded where they are, as planned before."""
    nodes = [peer.name for peer in message.pipeline]
    if message.stages:
        ordered = sorted(message.stages, key=lambda stage: stage.stage_index)
        stages = tuple(_stage(held, nodes) for held in ordered)
    else:
        stages = tuple(
            Stage(node=planned.node, layers=range(planned.layer_start, planned.layer_stop))
            for planned in message.plan.stages
        )
    return Deployment(
        name=message.name,
        state=_DEPLOYMENT_STATES.get(message.state, "unknown"),
        stages=stages,
        model=_model_name(message.manifest),
        codec=next((name for name, number in _CODECS.items() if number == message.codec), "unknown"),
        plan=plan(message.plan) if message.HasField("plan") else None,
        failure=message.failure,
        created_at=_time(message.created_at),
        standbys={standby.stage_index: standby.node.name for standby in message.standbys if standby.ready},
        version=message.version,
    )


def stage_progress(message: scheduler_pb2.StageProgress) -> Progress:
    """How far one stage is."""
    return Progress(
        phase=_PHASES.get(message.phase, "waiting"),
        subject=message.node,
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes,
    )


def status(message: gateway_pb2.GetStatusResponse) -> Status:
    """What the gateway is doing."""
    return Status(
        name=message.name,
        version=message.version,
        address=message.address,
        generations=message.generations,
        packs=message.packs,
        scheduler_up=message.scheduler_up,
    )


def breakdown(message: gateway_pb2.Breakdown) -> Breakdown:
    """Where the time of a generation went."""
    return Breakdown(
        trace_id=message.trace_id,
        title=message.title,
        total_s=message.total_s,
        attributed=message.attributed,
        rows=tuple(
            BreakdownRow(
                place=row.place,
                what=row.what,
                wait=row.wait,
                total_s=row.total_s,
                count=row.count,
                median_s=row.median_s,
                share=row.share,
            )
            for row in message.rows
        ),
        new_tokens=message.new_tokens,
        token_s=tuple(message.token_s),
        token_attributed=tuple(message.token_attributed),
        clock_offsets=tuple(
            ClockOffset(
                node=offset.node, offset_s=offset.offset_ns / 1e9, uncertainty_s=offset.uncertainty_ns / 1e9
            )
            for offset in message.clock_offsets
        ),
        started_at=_time(message.started_at),
        incomplete=message.incomplete,
        slice=message.slice,
        error_reason=message.error_reason,
        error=message.error,
    )


def _planned_stage(message: scheduler_pb2.PlannedStage) -> PlannedStage:
    return PlannedStage(
        node=message.node,
        layers=range(message.layer_start, message.layer_stop),
        compute_s=message.compute_s,
        memory_bytes=message.memory_bytes,
    )


def _stage(message: executor_pb2.Stage, nodes: list[str]) -> Stage:
    return Stage(
        node=nodes[message.stage_index] if message.stage_index < len(nodes) else "",
        layers=range(message.layer_start, message.layer_stop),
        weight_bytes=message.weight_bytes,
        kv_bytes_per_token=message.kv_bytes_per_token,
        kv_budget_bytes=message.kv_budget_bytes,
        kv_free_bytes=message.kv_free_bytes,
        generations=message.generations,
        layer_s=message.layer_ns / 1e9,
    )


def _model_name(manifest: bytes) -> str:
    if not manifest:
        return ""
    try:
        return Manifest.parse(manifest).name
    except PackError:
        # A newer mesh may know fields that this client does not: a list of deployments must still be shown.
        return ""


def _time(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds else None
