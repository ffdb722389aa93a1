"""Deployments: planned, loaded on every node, kept up when a node comes back, taken down."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError, UnknownModelError
from orbitmesh.pack import Manifest
from orbitmesh.rpc import map_rpc_error
from orbitmesh.trust import IdentitySource, Role, verify_signature
from orbitmesh.v1 import executor_pb2, executor_pb2_grpc, scheduler_pb2
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.scheduler.placement import (
    OBJECTIVES,
    choose_nodes,
    plan_links,
    plan_message,
    plan_model,
    plan_node,
)
from services.scheduler.planner import plan
from services.scheduler.registry import Registry, peer_address
from services.scheduler.store import DeploymentStore

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DEPLOYMENTS_MAX = 256
"""How many deployments the scheduler keeps."""
KV_CONTEXTS_DEFAULT = 4
"""How many full contexts of cache a stage gets where the request says nothing."""
KV_TOKENS_DEFAULT_MAX = 16_384
"""The most tokens of cache that a stage gets where the request says nothing."""
LOAD_DEADLINE_S = 3600.0
"""How long the loading of one stage may take: weights cross thin links."""
UNLOAD_DEADLINE_S = 5.0
"""How long one node is given to let a stage go."""
REPAIR_INTERVAL_S = 2.0
"""How often lost stages are looked for."""
REPORT_WITHIN_S = 2.0
"""How long after loading a stage a heartbeat without it is still believed to be an old one, in seconds."""
BEATS_BEFORE_REPAIR = 2
"""Heartbeats without the stage before it is loaded again."""
SIGNERS = frozenset({Role.CLIENT, Role.OPERATOR})

Progress = dict[int, scheduler_pb2.StageProgress]


class Deployments:
    """The deployments of one scheduler."""

    def __init__(
        self,
        registry: Registry,
        store: DeploymentStore,
        identities: IdentitySource,
        ways: dict[str, str],
        log: EventLog,
    ) -> None:
        self._registry = registry
        self._store = store
        self._identities = identities
        self._log = log
        self._held = {deployment.name: (deployment, request) for deployment, request in store.all()}
        self._channels = ChannelPool(identities, ways)
        self._loaded_s: dict[tuple[str, str], float] = {}
        for deployment, request in self._held.values():
            if deployment.state == scheduler_pb2.DEPLOYMENT_STATE_LOADING:
                deployment.state = scheduler_pb2.DEPLOYMENT_STATE_FAILED
                deployment.failure = "the scheduler was restarted while it was loading: delete it and deploy again"
                store.put(deployment, request)

    # Planning.

    def plan(
        self,
        manifest_bytes: bytes,
        objective: scheduler_pb2.Objective,
        stages: int,
        nodes: list[str],
        kv_tokens: int,
    ) -> scheduler_pb2.Plan:
        """Cuts a model over the nodes that are up. Blocks for as long as the search takes.

        Raises:
            PackError: Where the manifest is damaged.
            InvalidInputError: Where a node is not up or there are more stages than layers or nodes.
            InfeasiblePlanError: Where nothing fits; says what binds.
        """
        manifest = Manifest.parse(manifest_bytes)
        records = choose_nodes(self._registry.up(time.monotonic()), nodes)
        model = plan_model(manifest, kv_tokens or default_kv_tokens(manifest))
        measured = self._measured(manifest_bytes)
        planned_nodes = [plan_node(record, model, measured) for record in records]
        began = time.perf_counter()
        found = plan(model, planned_nodes, plan_links(records), objective=OBJECTIVES[objective], stages=stages or None)
        return plan_message(found, time.perf_counter() - began)

    def _measured(self, manifest_bytes: bytes) -> dict[str, tuple[float, float, float]]:
        """What nodes measured with this model: a stage's layer time, and where they hold them embedding and head."""
        same = {name for name, (held, _) in self._held.items() if held.manifest == manifest_bytes}
        times = {}
        for record in self._registry.all():
            for stage in record.measures.stages:
                if stage.deployment in same and stage.layer_ns:
                    times[record.name] = (stage.layer_ns / 1e9, stage.embed_ns / 1e9, stage.head_ns / 1e9)
        # A node that held no head has no time for one: take the slowest that is known, which is at least measured.
        worst_head = max((head for _, _, head in times.values()), default=0.0)
        return {name: (layer, embed, head or worst_head) for name, (layer, embed, head) in times.items()}

    # Coming up.

    async def create(
        self, request: scheduler_pb2.CreateDeploymentRequest
    ) -> AsyncIterator[scheduler_pb2.CreateDeploymentResponse]:
        """Plans, loads, verifies; yields progress; the last message shows it ready. Cancelled, it leaves nothing."""
        known = self._known(request)
        if known is not None:
            yield scheduler_pb2.CreateDeploymentResponse(deployment=self.message(known))
            return
        verify_signature(request.manifest, request.signature or None, self._identities.current().ca, SIGNERS)
        if request.kv_tokens == 0:
            request.kv_tokens = default_kv_tokens(Manifest.parse(request.manifest))
        planned = await asyncio.to_thread(
            self.plan, request.manifest, request.objective, request.stages, list(request.nodes), request.kv_tokens
        )
        deployment = scheduler_pb2.Deployment(
            name=request.name,
            state=scheduler_pb2.DEPLOYMENT_STATE_LOADING,
            plan=planned,
            manifest=request.manifest,
            pipeline=[self._address(stage.node) for stage in planned.stages],
            codec=request.codec,
        )
        deployment.created_at.GetCurrentTime()
        if self._known(request) is not None:
            raise InvalidInputError(f"{request.name!r} is being created by another request", reason="ALREADY_EXISTS")
        self._held[request.name] = (deployment, request)
        try:
            await asyncio.to_thread(self._store.put, deployment, request)
            async for progress in self._load_all(deployment, request):
                yield scheduler_pb2.CreateDeploymentResponse(
                    deployment=deployment, progress=[progress[index] for index in sorted(progress)]
                )
            deployment.state = scheduler_pb2.DEPLOYMENT_STATE_READY
            await asyncio.to_thread(self._store.put, deployment, request)
        except BaseException:
            self._held.pop(request.name, None)
            await asyncio.shield(self._undo(deployment))
            raise
        self._log.info("deployed", deployment=request.name, nodes=[stage.node for stage in planned.stages])
        yield scheduler_pb2.CreateDeploymentResponse(deployment=self.message(request.name))

    def _known(self, request: scheduler_pb2.CreateDeploymentRequest) -> str | None:
        """The deployment's name where this very request already made it."""
        if NAME.fullmatch(request.name) is None:
            raise InvalidInputError(
                f"{request.name!r} cannot name a deployment: take lower-case letters, digits, '.', '_', '-', at most 63"
            )
        held = self._held.get(request.name)
        if held is None:
            if len(self._held) >= DEPLOYMENTS_MAX:
                raise InvalidInputError(f"there are {DEPLOYMENTS_MAX} deployments; delete one", reason="LIMIT_EXCEEDED")
            return None
        ready = held[0].state == scheduler_pb2.DEPLOYMENT_STATE_READY
        if request.request_id and held[1].request_id == request.request_id and ready:
            return request.name
        raise InvalidInputError(
            f"there is a deployment {request.name!r} already: delete it first or take another name",
            reason="ALREADY_EXISTS",
        )

    async def _load_all(
        self, deployment: scheduler_pb2.Deployment, request: scheduler_pb2.CreateDeploymentRequest
    ) -> AsyncIterator[Progress]:
        """Loads all stages at once; yields the progress of all whenever one changes."""
        changed: asyncio.Queue[MeshError | None] = asyncio.Queue()
        progress: Progress = {}
        loaded: dict[int, executor_pb2.Stage] = {}

        async def one(index: int) -> None:
            def tell(answer: executor_pb2.LoadStageResponse) -> None:
                progress[index] = scheduler_pb2.StageProgress(
                    stage_index=index,
                    node=deployment.pipeline[index].name,
                    phase=answer.phase,
                    done_bytes=answer.done_bytes,
                    total_bytes=answer.total_bytes,
                )
                changed.put_nowait(None)

            try:
                loaded[index] = await self._load_one(deployment, request, index, tell)
                changed.put_nowait(None)
            except MeshError as error:
                changed.put_nowait(error)

        tasks = [asyncio.create_task(one(index)) for index in range(len(deployment.pipeline))]
        try:
            while len(loaded) < len(tasks):
                failure = await changed.get()
                if failure is not None:
                    raise failure
                yield progress
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        deployment.stages.extend(loaded[index] for index in range(len(tasks)))

    async def _load_one(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
        index: int,
        tell: Callable[[executor_pb2.LoadStageResponse], None],
    ) -> executor_pb2.Stage:
        stage, target = deployment.plan.stages[index], deployment.pipeline[index]
        stub = self._executor(target)
        load = executor_pb2.LoadStageRequest(
            request_id=f"{request.request_id}/{index}",
            deployment=deployment.name,
            manifest=request.manifest,
            signature=request.signature,
            layer_start=stage.layer_start,
            layer_stop=stage.layer_stop,
            stage_index=index,
            pipeline=deployment.pipeline,
            source=request.source,
            kv_tokens=request.kv_tokens,
            codec=request.codec,
        )
        try:
            async for answer in stub.LoadStage(load, timeout=LOAD_DEADLINE_S):
                tell(answer)
                if answer.phase == executor_pb2.STAGE_PHASE_READY:
                    self._loaded_s[deployment.name, target.name] = time.monotonic()
                    loaded: executor_pb2.Stage = answer.stage
                    return loaded
        except grpc.RpcError as error:
            raise _on_node(map_rpc_error(error, address=target.address), target.name) from error
        raise NodeLostError(f"{target.name} ended the loading of stage {index} without a word")

    # Keeping up, going down.

    async def repair(self) -> None:
        """Loads stages again on nodes that came back without them, for as long as the scheduler lives."""
        while True:
            await asyncio.sleep(REPAIR_INTERVAL_S)
            now_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for deployment, request in list(self._held.values()):
                    if deployment.state != scheduler_pb2.DEPLOYMENT_STATE_READY:
                        continue
                    for index, node in enumerate(deployment.pipeline):
                        if self._lost_stage(deployment.name, node.name, now_s):
                            tasks.create_task(self._repair_one(deployment, request, index))

    def _lost_stage(self, name: str, node: str, now_s: float) -> bool:
        record = self._registry.get(node)
        if record is None or not self._registry.is_member(record, now_s) or record.beats < BEATS_BEFORE_REPAIR:
            return False
        # A heartbeat that left the node before it had loaded says nothing about the stage.
        if record.last_seen_s < self._loaded_s.get((name, node), 0.0) + REPORT_WITHIN_S:
            return False
        return all(stage.deployment != name for stage in record.measures.stages)

    async def _repair_one(
        self,
        deployment: scheduler_pb2.Deployment,
        request: scheduler_pb2.CreateDeploymentRequest,
        index: int,
    ) -> None:
        node = deployment.pipeline[index].name
        deployment.pipeline[index].CopyFrom(self._address(node))
        self._log.info("loading_again", deployment=deployment.name, node=node)
        try:
            await self._load_one(deployment, request, index, lambda answer: None)
            # The stage before it must learn its new address; it holds its own already and answers at once.
            before = (index - 1) % len(deployment.pipeline)
            if before != index and self._serves(deployment.name, deployment.pipeline[before].name):
                await self._load_one(deployment, request, before, lambda answer: None)
        except MeshError as error:
            self._log.warning("loading_again_failed", deployment=deployment.name, node=node, message=error.message)

    async def delete(self, name: str) -> None:
        """Takes a deployment down; one that is not there changes nothing."""
        held = self._held.pop(name, None)
        if held is not None:
            await self._undo(held[0])
            self._log.info("deleted", deployment=name)

    async def _undo(self, deployment: scheduler_pb2.Deployment) -> None:
        await asyncio.to_thread(self._store.delete, deployment.name)
        await asyncio.gather(*(self._unload(deployment.name, node) for node in deployment.pipeline))

    async def _unload(self, name: str, node: executor_pb2.PeerAddress) -> None:
        stub = self._executor(node)
        request = executor_pb2.UnloadStageRequest(request_id=f"unload/{name}", deployment=name)
        # A node that is gone holds nothing; one that comes back is not asked to load it again.
        with suppress(grpc.RpcError):
            await stub.UnloadStage(request, timeout=UNLOAD_DEADLINE_S)

    # Looking.

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._held)

    def message(self, name: str) -> scheduler_pb2.Deployment:
        """A deployment as it is now.

        Raises:
            UnknownModelError: Where there is none of that name.
        """
        held = self._held.get(name)
        if held is None:
            raise UnknownModelError(
                f"there is no deployment {name!r}; there are: {', '.join(self.names()) or 'none'}",
                metadata={"deployment": name},
            )
        message = scheduler_pb2.Deployment()
        message.CopyFrom(held[0])
        if message.state == scheduler_pb2.DEPLOYMENT_STATE_READY:
            lost = [node.name for node in message.pipeline if not self._serves(name, node.name)]
            if lost:
                message.state = scheduler_pb2.DEPLOYMENT_STATE_DEGRADED
                message.failure = f"stages are missing on: {', '.join(lost)}"
        return message

    def _serves(self, name: str, node: str) -> bool:
        now_s = time.monotonic()
        record = self._registry.get(node)
        return (
            record is not None and self._registry.is_member(record, now_s) and not self._lost_stage(name, node, now_s)
        )

    def _address(self, node: str) -> executor_pb2.PeerAddress:
        record = self._registry.get(node)
        if record is None:
            raise NodeLostError(f"{node} is not a member any more")
        return peer_address(record)

    def _executor(self, node: executor_pb2.PeerAddress) -> executor_pb2_grpc.ExecutorServiceStub:
        return executor_pb2_grpc.ExecutorServiceStub(self._channels.get(Role.EXECUTOR, node.name, node.address))

    async def close(self) -> None:
        """Closes connections and the store."""
        await self._channels.close()
        self._store.close()


def default_kv_tokens(manifest: Manifest) -> int:
    """Tokens of cache per stage where the request says nothing."""
    return max(manifest.context_tokens, min(KV_CONTEXTS_DEFAULT * manifest.context_tokens, KV_TOKENS_DEFAULT_MAX))


def _on_node(error: MeshError, node: str) -> MeshError:
    """The same error, saying where."""
    return type(error)(f"{node}: {error.message}", reason=error.reason, metadata={**error.metadata, "node": node})
