"""A request for a plan answered: from what nodes measured and what the sky will be, to a plan with its reasons."""

from __future__ import annotations

import asyncio
import time

from orbitmesh.errors import InfeasiblePlanError, InvalidInputError, MeshError
from orbitmesh.pack import Manifest
from orbitmesh.v1 import scheduler_pb2
from services.scheduler import sky_message
from services.scheduler.costs import Objective, PlanModel, PlanNode
from services.scheduler.crew import Crew
from services.scheduler.placement import (
    OBJECTIVES,
    choose_nodes,
    measuring,
    plan_links,
    plan_message,
    plan_model,
    plan_node,
)
from services.scheduler.planner import plan
from services.scheduler.registry import Registry
from services.scheduler.sky import SkySource
from services.scheduler.sky_plan import plan_with_sky
from services.scheduler.sky_walk import Scene

SETTLING_S = 10.0
"""For how long after a node has joined its links may still have to be measured, in seconds."""
SETTLING_POLL_S = 0.25
"""How often a plan that could not be made is tried again while nodes join, in seconds."""
KV_CONTEXTS_DEFAULT = 4
"""How many full contexts of cache a stage gets where the request says nothing."""
KV_TOKENS_DEFAULT_MAX = 16_384
"""The most tokens of cache that a stage gets where the request says nothing."""


class Planning:
    """Plans with the nodes and the sky as they are now."""

    def __init__(self, registry: Registry, crew: Crew, sky: SkySource) -> None:
        self._registry = registry
        self._crew = crew
        self._sky = sky
        # By then nodes that know of an earlier scheduler have spoken to this one.
        self._all_heard_s = time.monotonic() + registry.lease_s

    async def plan(self, request: scheduler_pb2.PlanRequest, patience_s: float) -> scheduler_pb2.Plan:
        """Cuts a model over the nodes that are up. A mesh that has just come up, or whose scheduler has, is not known
        at once: what that may be the reason of is tried again, for `patience_s` seconds at the most.

        Raises:
            MeshError: As `plan_now`.
        """
        give_up_s = time.monotonic() + patience_s
        while True:
            try:
                return await asyncio.to_thread(self.plan_now, request)
            except (InfeasiblePlanError, InvalidInputError) as error:
                now_s = time.monotonic()
                if now_s + SETTLING_POLL_S > give_up_s or not self._settling(error, now_s):
                    raise
            await asyncio.sleep(SETTLING_POLL_S)

    def _settling(self, error: MeshError, now_s: float) -> bool:
        if now_s <= self._all_heard_s:
            return isinstance(error, InfeasiblePlanError) or error.reason == "NOT_FOUND"
        links_bind = error.metadata.get("binding") == "links"
        return links_bind and measuring(self._registry.up(now_s), now_s - SETTLING_S)

    def plan_now(self, request: scheduler_pb2.PlanRequest) -> scheduler_pb2.Plan:
        """Cuts a model over the nodes that are up. Blocks for as long as the search takes.

        Raises:
            PackError: Where the manifest is damaged.
            InvalidInputError: Where a node is not up or there are more stages than layers or nodes.
            InfeasiblePlanError: Where nothing fits; says what binds.
        """
        manifest = Manifest.parse(request.manifest)
        records = choose_nodes(self._registry.up(time.monotonic()), request.nodes)
        model = plan_model(manifest, request.kv_tokens or default_kv_tokens(manifest))
        measured = self._crew.measured(request.manifest)
        nodes = [plan_node(record, model, measured) for record in records]
        began = time.perf_counter()
        objective, stages = OBJECTIVES[request.objective], request.stages or None
        scene = self._scene(request, manifest, model, nodes, objective)
        if scene is None:
            found = plan(model, nodes, plan_links(records), objective=objective, stages=stages)
            return plan_message(found, time.perf_counter() - began)
        choice = plan_with_sky(scene, stages)
        message = plan_message(choice.plan, time.perf_counter() - began)
        sky_message.fill(message, choice, scene)
        return message

    def _scene(
        self,
        request: scheduler_pb2.PlanRequest,
        manifest: Manifest,
        model: PlanModel,
        nodes: list[PlanNode],
        objective: Objective,
    ) -> Scene | None:
        """What is planned with where a contact plan speaks for now; None where none does."""
        members = self._registry.up(time.monotonic())
        sky, home = self._sky.view(members), self._sky.place("gateway")
        if sky is None:
            return None
        ready_s: dict[str, float] = {}
        if home is not None:
            held = self._crew.measured(request.manifest)
            share = {
                node.name: sky_message.stage_share_bytes(manifest, request.stages, node.memory_bytes)
                for node in nodes
                if node.name not in held
            }
            ready_s = sky_message.ready_times(sky.plan, sky.stretch, sky.now_s, home, share)
        return Scene(
            model,
            {node.name: node for node in nodes},
            tuple(record.name for record in members),
            sky,
            objective,
            sky_message.work_of(request.work_s, request.work_tokens),
            ready_s,
            home,
        )


def default_kv_tokens(manifest: Manifest) -> int:
    """Tokens of cache per stage where the request says nothing."""
    return max(manifest.context_tokens, min(KV_CONTEXTS_DEFAULT * manifest.context_tokens, KV_TOKENS_DEFAULT_MAX))
