"""Messages of deployments that client and scheduler make alike."""

from __future__ import annotations

from orbitmesh.v1 import scheduler_pb2


def plan_request_of(request: scheduler_pb2.CreateDeploymentRequest) -> scheduler_pb2.PlanRequest:
    """The request for the plan that a deployment will have."""
    return scheduler_pb2.PlanRequest(
        manifest=request.manifest,
        objective=request.objective,
        stages=request.stages,
        nodes=request.nodes,
        kv_tokens=request.kv_tokens,
        work_s=request.work_s,
        work_tokens=request.work_tokens,
    )
