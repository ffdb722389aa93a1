"""Answers the scheduler's service on the gateway, so that a client needs one address.

Messages are handed on as they are; errors keep their reason. The scheduler sees the gateway's identity, so who may
call what is decided here, by the gateway's own table of roles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from gateway.admission import Admissions
from gateway.upstream import Upstream
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.v1 import scheduler_pb2, scheduler_pb2_grpc
from services.runtime.caller import current_caller, time_left_s
from services.runtime.logs import EventLog

DEPLOY_DEADLINE_S = 7200.0
"""How long a deployment may take where the caller sets no deadline."""


class SchedulerRelay(scheduler_pb2_grpc.SchedulerServiceServicer):
    """`SchedulerService` without `Heartbeat`: nodes speak to the scheduler itself.

    Args:
        upstream: The way to it.
        log: Where to say what happened.
    """

    def __init__(self, upstream: Upstream, log: EventLog) -> None:
        self._upstream = upstream
        self._admissions = Admissions(upstream, log)

    async def ListNodes(self, request: scheduler_pb2.ListNodesRequest, context: Any) -> Any:  # noqa: N802
        """Lists the nodes."""
        return await self._unary("ListNodes", request)

    async def Plan(self, request: scheduler_pb2.PlanRequest, context: Any) -> Any:  # noqa: N802
        """Plans."""
        return await self._unary("Plan", request)

    async def CreateDeployment(  # noqa: N802
        self, request: scheduler_pb2.CreateDeploymentRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.CreateDeploymentResponse]:
        """Deploys; its files are work in the slice that it names until they are where they belong."""
        left_s = time_left_s(DEPLOY_DEADLINE_S)
        async with self._admissions.during(request.slice, current_caller().spiffe, left_s):
            call = self._stub().CreateDeployment(request, timeout=left_s)
            try:
                with mapped_errors(address=self._upstream.scheduler_address):
                    async for answer in call:
                        if answer.deployment.state == scheduler_pb2.DEPLOYMENT_STATE_READY:
                            await self._upstream.warm(answer.deployment.pipeline)
                        yield answer
            finally:
                call.cancel()

    async def ListDeployments(self, request: scheduler_pb2.ListDeploymentsRequest, context: Any) -> Any:  # noqa: N802
        """Lists the deployments."""
        return await self._unary("ListDeployments", request)

    async def GetDeployment(self, request: scheduler_pb2.GetDeploymentRequest, context: Any) -> Any:  # noqa: N802
        """Gets one."""
        return await self._unary("GetDeployment", request)

    async def DeleteDeployment(self, request: scheduler_pb2.DeleteDeploymentRequest, context: Any) -> Any:  # noqa: N802
        """Takes one down."""
        return await self._unary("DeleteDeployment", request)

    def _stub(self) -> scheduler_pb2_grpc.SchedulerServiceStub:
        return scheduler_pb2_grpc.SchedulerServiceStub(self._upstream.scheduler_channel())

    async def _unary(self, method: str, request: Any) -> Any:
        call: grpc.aio.UnaryUnaryMultiCallable = getattr(self._stub(), method)
        with mapped_errors(address=self._upstream.scheduler_address):
            return await call(request, timeout=time_left_s(CONTROL_DEADLINE_S))
