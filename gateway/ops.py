"""What operators ask a gateway: of the whole mesh, of what runs here, and of any process by its name."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio

from gateway.generations import Generations
from gateway.life import Life
from gateway.traces import Traces
from gateway.upstream import Upstream
from orbitmesh.errors import InvalidInputError
from orbitmesh.limits import CONTROL_DEADLINE_S
from orbitmesh.rpc import mapped_errors
from orbitmesh.trust.names import Role
from orbitmesh.v1 import executor_pb2, ops_pb2, ops_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from services.runtime.caller import time_left_s
from services.runtime.ops import ProcessOps, level_of
from services.runtime.server import ServiceHost


class GatewayOps(ProcessOps):
    """Answers `OpsService` for a gateway.

    Args:
        host: The server that it is part of.
        upstream: The ways to the others.
        generations: What runs here.
        traces: What ended here.
    """

    def __init__(self, host: ServiceHost, upstream: Upstream, generations: Generations, traces: Traces) -> None:
        super().__init__(upstream.identities, host.log, host.in_flight, host.faults)
        self._upstream = upstream
        self._generations = generations
        self._traces = traces

    async def GetTopology(  # noqa: N802
        self, request: ops_pb2.GetTopologyRequest, context: Any
    ) -> ops_pb2.GetTopologyResponse:
        """The nodes, the links, the deployments."""
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self._upstream.scheduler_channel())
        timeout = time_left_s(CONTROL_DEADLINE_S)
        with mapped_errors(address=self._upstream.scheduler_address, server="the scheduler"):
            nodes = (await stub.ListNodes(scheduler_pb2.ListNodesRequest(), timeout=timeout)).nodes
            held = (await stub.ListDeployments(scheduler_pb2.ListDeploymentsRequest(), timeout=timeout)).deployments
        serving = {(each.name, stage, peer.name) for each in held for stage, peer in enumerate(each.pipeline)}
        now_s = time.time()
        return ops_pb2.GetTopologyResponse(
            nodes=[_node(each, serving, now_s) for each in nodes],
            links=[link for each in nodes for link in _links(each)],
            deployments=[_deployment(each) for each in held],
        )

    async def ListGenerations(  # noqa: N802
        self, request: ops_pb2.ListGenerationsRequest, context: Any
    ) -> ops_pb2.ListGenerationsResponse:
        """What runs."""
        return ops_pb2.ListGenerationsResponse(
            generations=[
                _running(life) for life in sorted(self._generations.lives, key=lambda each: each.entry.began_at)
            ]
        )

    async def ExplainTrace(  # noqa: N802
        self, request: ops_pb2.ExplainTraceRequest, context: Any
    ) -> ops_pb2.ExplainTraceResponse:
        """Where its time went."""
        return ops_pb2.ExplainTraceResponse(breakdown=self._traces.explain(request.trace_id))

    async def GetProcess(  # noqa: N802
        self, request: ops_pb2.GetProcessRequest, context: Any
    ) -> ops_pb2.GetProcessResponse:
        """One process."""
        if request.process in ("", self.title):
            return self.describe()
        stub, timeout_s = await self._way_to(request.process)
        with mapped_errors(server=request.process):
            answer: ops_pb2.GetProcessResponse = await stub.GetProcess(ops_pb2.GetProcessRequest(), timeout=timeout_s)
        return answer

    async def ListTransfers(  # noqa: N802
        self, request: ops_pb2.ListTransfersRequest, context: Any
    ) -> ops_pb2.ListTransfersResponse:
        """What is on the way at one process."""
        if request.process in ("", self.title):
            return await super().ListTransfers(ops_pb2.ListTransfersRequest(), context)
        stub, timeout_s = await self._way_to(request.process)
        with mapped_errors(server=request.process):
            answer: ops_pb2.ListTransfersResponse = await stub.ListTransfers(
                ops_pb2.ListTransfersRequest(), timeout=timeout_s
            )
        return answer

    async def SetLogLevel(  # noqa: N802
        self, request: ops_pb2.SetLogLevelRequest, context: Any
    ) -> ops_pb2.SetLogLevelResponse:
        """How much one process logs."""
        level_of(request.level)
        if request.process in ("", self.title):
            return await super().SetLogLevel(ops_pb2.SetLogLevelRequest(level=request.level), context)
        stub, timeout_s = await self._way_to(request.process)
        with mapped_errors(server=request.process):
            answer: ops_pb2.SetLogLevelResponse = await stub.SetLogLevel(
                ops_pb2.SetLogLevelRequest(level=request.level), timeout=timeout_s
            )
        return answer

    async def InjectFault(  # noqa: N802
        self, request: ops_pb2.InjectFaultRequest, context: Any
    ) -> ops_pb2.InjectFaultResponse:
        """Breaks one process."""
        if request.process in ("", self.title):
            return await super().InjectFault(request, context)
        stub, timeout_s = await self._way_to(request.process)
        own = ops_pb2.InjectFaultRequest()
        own.CopyFrom(request)
        own.process = ""
        with mapped_errors(server=request.process):
            answer: ops_pb2.InjectFaultResponse = await stub.InjectFault(own, timeout=timeout_s)
        return answer

    async def DrainNode(  # noqa: N802
        self, request: ops_pb2.DrainNodeRequest, context: Any
    ) -> ops_pb2.DrainNodeResponse:
        """Moves everything off a node."""
        process = request.node if "/" in request.node else f"{Role.EXECUTOR.value}/{request.node}"
        stub, timeout_s = await self._way_to(process)
        with mapped_errors(server=process):
            answer: ops_pb2.DrainNodeResponse = await stub.DrainNode(
                ops_pb2.DrainNodeRequest(undo=request.undo), timeout=timeout_s
            )
        return answer

    async def _way_to(self, process: str) -> tuple[ops_pb2_grpc.OpsServiceStub, float]:
        """Whom to ask about a process, and for how long, in seconds.

        Raises:
            InvalidInputError: `NOT_FOUND`, this gateway knows no such process.
            TransportError: The scheduler, which knows the nodes, cannot be reached.
        """
        upstream = self._upstream
        known: dict[str, grpc.aio.Channel | None] = {**upstream.services()}
        channel = known.get(process)
        role, _, name = process.partition("/")
        if channel is None and role == Role.EXECUTOR.value:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(upstream.scheduler_channel())
            with mapped_errors(address=upstream.scheduler_address, server="the scheduler"):
                answer = await stub.ListNodes(
                    scheduler_pb2.ListNodesRequest(), timeout=time_left_s(CONTROL_DEADLINE_S)
                )
            nodes = {each.name: each.measures.address for each in answer.nodes}
            known |= dict.fromkeys(f"{role}/{each}" for each in nodes)
            channel = upstream.node_channel(name, nodes[name]) if name in nodes else None
        if channel is None:
            raise InvalidInputError(
                f"this gateway knows no process {process[:80]!r}; it knows {', '.join(sorted([self.title, *known]))}",
                reason="NOT_FOUND",
            )
        return ops_pb2_grpc.OpsServiceStub(channel), time_left_s(CONTROL_DEADLINE_S)


def _node(
    message: scheduler_pb2.Node, serving: set[tuple[str, int, str]], now_s: float
) -> ops_pb2.TopologyNode:
    measures = message.measures
    return ops_pb2.TopologyNode(
        name=message.name,
        kind=measures.kind,
        state=_word(scheduler_pb2.NodeState, message.state, "NODE_STATE_"),
        address=measures.address,
        cores=measures.cpu or float(measures.cores),
        load=measures.load,
        memory_free_bytes=measures.memory_free_bytes,
        memory_total_bytes=measures.memory_total_bytes,
        stages=[
            _stage(stage, (stage.deployment, stage.stage_index, message.name) in serving) for stage in measures.stages
        ],
        silent_s=max(0.0, now_s - message.last_seen.ToNanoseconds() / 1e9),
    )


def _running(life: Life) -> ops_pb2.RunningGeneration:
    entry, record = life.entry, life.record
    now_ns = time.monotonic_ns()
    return ops_pb2.RunningGeneration(
        trace_id=entry.trace_id,
        generation=f"{entry.number:016x}",
        deployment=entry.request.deployment,
        caller=entry.caller,
        slice=entry.request.slice,
        prompt_tokens=len(entry.prompt),
        new_tokens=len(entry.tokens),
        most_new_tokens=entry.new_tokens,
        age_s=max(0.0, time.time() - entry.began_at),
        quiet_s=(now_ns - (record.arrived_ns[-1] if record.arrived_ns else record.began_ns)) / 1e9,
        nodes=record.pipelines[-1][1] if record.pipelines else (),
        waiting=life.waiting,
    )


def _stage(stage: executor_pb2.Stage, serving: bool) -> ops_pb2.TopologyStage:
    layers = stage.layer_stop - stage.layer_start
    return ops_pb2.TopologyStage(
        deployment=stage.deployment,
        stage_index=stage.stage_index,
        layers=f"{stage.layer_start}-{stage.layer_stop - 1}",
        token_s=(layers * stage.layer_ns + stage.embed_ns + stage.head_ns) / 1e9,
        generations=stage.generations,
        kv_free_bytes=stage.kv_free_bytes,
        kv_budget_bytes=stage.kv_budget_bytes,
        serving=serving,
    )


def _links(message: scheduler_pb2.Node) -> list[ops_pb2.TopologyLink]:
    # `from` is a word of Python, so it cannot be named as an argument.
    return [
        ops_pb2.TopologyLink(
            **{"from": message.name}, to=link.peer, round_trip_s=link.rtt_ns / 1e9, rate_bps=link.rate_bps, up=link.up
        )
        for link in sorted(message.measures.links, key=lambda each: each.peer)
    ]


def _deployment(held: scheduler_pb2.Deployment) -> ops_pb2.TopologyDeployment:
    return ops_pb2.TopologyDeployment(
        name=held.name,
        state=_word(scheduler_pb2.DeploymentState, held.state, "DEPLOYMENT_STATE_"),
        pipeline=[each.name for each in held.pipeline],
        standbys={each.stage_index: each.node.name for each in held.standbys if each.ready},
        failure=held.failure,
    )


def _word(kind: Any, value: int, prefix: str) -> str:
    """The name of a state in lower case; a scheduler that is newer may know more of them."""
    return str(kind.Name(value)).removeprefix(prefix).lower() if value in kind.values() else "unknown"
