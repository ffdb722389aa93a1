"""A model on its way into a mesh: packed, checked, sent, placed, loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orbitmesh import _from_proto, _packs, _requests
from orbitmesh._connection import Connection
from orbitmesh._deadlines import bounded
from orbitmesh._resuming import ENDED, asked_again
from orbitmesh._stubs import Stubs
from orbitmesh.deployments_proto import plan_request_of
from orbitmesh.errors import InfeasiblePlanError, InvalidInputError, TransportError
from orbitmesh.results import Deployment, OnProgress, Progress
from orbitmesh.rpc import mapped_errors
from orbitmesh.transfer_files import upload
from orbitmesh.v1 import executor_pb2, gateway_pb2, scheduler_pb2


async def deploy(
    connection: Connection,
    source: str | Path,
    name: str | None,
    request: scheduler_pb2.CreateDeploymentRequest,
    timeout: float,
    tell: OnProgress,
) -> Deployment:
    """Carries out what `AsyncMesh.deploy` promises.

    Args:
        connection: The mesh.
        source: A pack, a model directory or a hub id.
        name: The deployment's name; None takes the model's.
        request: What is asked for, still without the pack; it is filled in.
        timeout: How long all of it may take, in seconds.
        tell: Called as it goes on.

    Raises:
        MeshError: As `AsyncMesh.deploy`.
    """
    async with bounded(timeout, f"deploying {source}"):
        deadline = asyncio.get_running_loop().time() + timeout
        stubs = await connection.ready()
        pack = await _packs.signed_pack(source, stubs.identity, tell)
        request.name = name or _requests.deployment_name(pack.manifest.name)
        request.manifest, request.signature = pack.manifest_bytes, pack.signature
        await _check_first(connection, stubs, request)
        await upload(stubs, pack, tell)
        status = await connection.call(stubs.gateway.GetStatus, gateway_pb2.GetStatusRequest(), None)
        request.source.CopyFrom(executor_pb2.PeerAddress(role="gateway", name=status.name, address=status.address))
        tell(Progress(phase="planning", subject=request.name))
        return await asked_again(lambda: _until_served(stubs, request, deadline, tell), connection.patience, ENDED)


async def _check_first(
    connection: Connection, stubs: Stubs, request: scheduler_pb2.CreateDeploymentRequest
) -> None:
    """What would be refused anyway is refused before a byte of the pack is sent."""
    listed = await connection.call(stubs.scheduler.ListDeployments, scheduler_pb2.ListDeploymentsRequest(), None)
    if any(each.name == request.name for each in listed.deployments):
        raise InvalidInputError(
            f"there is a deployment {request.name!r} already: delete it first or take another name",
            reason="ALREADY_EXISTS",
        )
    await connection.call(stubs.scheduler.Plan, plan_request_of(request), None)


async def _until_served(
    stubs: Stubs, request: scheduler_pb2.CreateDeploymentRequest, deadline: float, tell: OnProgress
) -> Deployment:
    told: dict[str, Progress] = {}
    last = scheduler_pb2.Deployment()
    left = max(deadline - asyncio.get_running_loop().time(), 0.001)
    call = stubs.scheduler.CreateDeployment(request, timeout=left)
    try:
        with mapped_errors(address=stubs.address):
            async for message in call:
                last = message.deployment
                for stage in message.progress:
                    progress = _from_proto.stage_progress(stage)
                    if told.get(progress.subject) != progress:
                        told[progress.subject] = progress
                        tell(progress)
    finally:
        call.cancel()
    if last.state == scheduler_pb2.DEPLOYMENT_STATE_FAILED:
        raise InfeasiblePlanError(f"{request.name} could not be brought up: {last.failure}")
    # Degraded: all stages came up, and a node was lost since; the state says so to who looks.
    if last.state not in (scheduler_pb2.DEPLOYMENT_STATE_READY, scheduler_pb2.DEPLOYMENT_STATE_DEGRADED):
        raise TransportError(f"the scheduler stopped reporting before {request.name} served; see `deployments`")
    return _from_proto.deployment(last)
