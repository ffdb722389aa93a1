"""One executor: its stages, and what others ask of them."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError
from orbitmesh.limits import JOURNAL_BYTES
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import executor_pb2, slices_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from services.egress.node import NodeEgress
from services.egress.reporting import report_traffic
from services.executor.architecture import import_family
from services.executor.cachemove import accept_cache
from services.executor.engine import StepEngine
from services.executor.generation import about
from services.executor.links import LinkTable
from services.executor.loading import (
    StageFiles,
    check_memory,
    check_request,
    load,
    make_pool,
    stage_weight_bytes,
)
from services.executor.measures import Machine
from services.executor.onward import Ways
from services.executor.peers import Peers
from services.executor.recovery import Recovery
from services.executor.runner import Key, StageRunner
from services.executor.settings import ExecutorSettings
from services.executor.slicing import SliceRules, rules_for
from services.executor.snapshots import Snapshots
from services.executor.training.desk import TrainingDesk
from services.journal.rows import JournalRoom
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.process import ways_table
from services.runtime.slicewatch import follow_slices

SWEEP_INTERVAL_S = 0.5
"""How often generations whose time is over, or that do not get on, are looked for."""
DRAIN_POLL_S = 0.05
"""How often a node that drains looks whether its generations have ended."""
STAGES_MAX = 16
"""How many stages one node holds."""


class ExecutorNode:
    """Everything an executor is, but for the wire's shape of it (`server`)."""

    def __init__(self, settings: ExecutorSettings, identities: IdentitySource, machine: Machine, log: EventLog) -> None:
        self.settings = settings
        self.machine = machine
        self.log = log
        self.channels = ChannelPool(identities, ways_table(settings.peers))
        self.identities = identities
        self.name = identities.current().name
        self.runners: dict[Key, StageRunner] = {}
        self.weights: dict[Key, int] = {}
        self.times: dict[Key, executor_pb2.Stage] = {}
        self.links = LinkTable()
        self.engine = StepEngine()
        self.rules = SliceRules()
        self.egress = NodeEgress(self.name) if settings.slices else None
        self.peers = Peers(self.name, identities, self.channels, log, self._dispatch, self._peer_lost, self.egress)
        self.snapshots = Snapshots(settings.state, identities, log)
        self.training = TrainingDesk(
            settings.state / "training", identities, log, self.peers.open_node, self.engine.turns,
            device=settings.device,
        )  # fmt: skip
        self._files = StageFiles(settings.state)
        self._journals = JournalRoom(JOURNAL_BYTES)
        self._loading = asyncio.Lock()

    # Stages.

    async def load_stage(self, request: executor_pb2.LoadStageRequest) -> AsyncIterator[executor_pb2.LoadStageResponse]:
        """Brings a stage up; yields its progress; the last message carries the stage. It is brought up again when the
        process starts anew."""
        identity = self.identities.current()
        manifest, layers = await asyncio.to_thread(check_request, request, identity.ca)
        names = manifest.files_for(layers)
        total = sum(manifest.file(name).size_bytes for name in names)
        if request.pipeline[request.stage_index].name != self.name:
            raise InvalidInputError(
                f"stage {request.stage_index} belongs to {request.pipeline[request.stage_index].name}, not here"
            )
        key = (request.deployment, request.stage_index)
        async with self._loading:
            self.peers.learn(request.pipeline)
            held = self.runners.get(key)
            if held is not None:
                if held.stage.layers != layers or held.stage.manifest != manifest:
                    raise InvalidInputError(
                        f"another stage {key[1]} of {key[0]!r} is loaded here: unload it first",
                        reason="ALREADY_EXISTS",
                    )
                ready = self._ready(key, total)  # now: it may be unloaded while the way to the next node is opened
                await self._warm(request)
                yield ready
                return
            if len(self.runners) >= STAGES_MAX:
                check_memory(1, 0, f"stage number {STAGES_MAX + 1} of this node")
            weight_bytes = stage_weight_bytes(manifest, names)
            check_memory(weight_bytes, self.free_bytes, f"layers {layers.start} to {layers.stop - 1}")

            async def open_source() -> Session:
                return await self.peers.open_source(request.source)

            async for here in self._files.fetch(manifest, names, open_source, request.slice):
                yield _progress(executor_pb2.STAGE_PHASE_FETCHING, here, total)
            yield _progress(executor_pb2.STAGE_PHASE_VERIFYING, total, total)
            directory: Path = await asyncio.to_thread(self._files.directory, manifest, request.manifest, names)
            yield _progress(executor_pb2.STAGE_PHASE_LOADING, total, total)
            alone = not self.runners
            await self.engine.run(lambda: _import_family(manifest.architecture, alone=alone))
            stage, kv_bytes = await self.engine.run(
                lambda: load(
                    manifest, directory, layers, device=self.settings.device, threads=self.settings.threads or None
                )
            )
            check_memory(
                weight_bytes + kv_bytes * request.kv_tokens,
                self.free_bytes,
                f"layers {layers.start} to {layers.stop - 1} with cache for {request.kv_tokens} tokens",
            )
            yield _progress(executor_pb2.STAGE_PHASE_MEASURING, total, total)
            times = await self.engine.run(stage.measure)
            runner = StageRunner(
                key,
                stage,
                make_pool(request.kv_tokens, kv_bytes),
                self.engine,
                Ways(self.peers.to_node, self.peers.to_gateway, self.links.chooser(request.codec)),
                self._journals,
                token_ns=int((times.layer_s * len(layers) + times.embed_s + times.head_s) * 1e9),
                node=self.name,
            )
            runner.pool.set_shares(self.rules.caches)
            await self.engine.run(lambda: runner.cache_shapes)
            self.weights[key] = weight_bytes
            self.times[key] = executor_pb2.Stage(
                layer_ns=int(times.layer_s * 1e9), embed_ns=int(times.embed_s * 1e9), head_ns=int(times.head_s * 1e9)
            )
            await asyncio.to_thread(self.snapshots.keep_stage, request)
            await self.snapshots.restore_generations(runner)
            self.runners[key] = runner
            ready = self._ready(key, total)  # now: it may be unloaded while the way to the next node is opened
        self.log.info("stage_loaded", deployment=key[0], stage=key[1], layers=[layers.start, layers.stop])
        await self._warm(request)
        yield ready

    async def _warm(self, request: executor_pb2.LoadStageRequest) -> None:
        """Opens the session to the next node, so that the first step does not pay for the handshake."""
        target = request.pipeline[(request.stage_index + 1) % len(request.pipeline)]
        if target.name != self.name:
            try:
                await self.peers.to_node(target.name).warm()
            except MeshError as error:
                # A standby is loaded while the node it may follow is out of reach: the way is opened when needed.
                self.log.info("next_node_not_reached_yet", peer=target.name, detail=error.message)

    async def reload_stages(self) -> None:
        """Brings up the stages that the process held before it was started anew."""
        for request in await asyncio.to_thread(self.snapshots.stages):
            try:
                async for _ in self.load_stage(request):
                    pass
            except MeshError as error:
                self.log.warning(
                    "stage_not_loaded_again",
                    deployment=request.deployment,
                    stage=request.stage_index,
                    detail=error.message,
                )

    async def unload_stage(self, deployment: str, stage_indexes: list[int]) -> None:
        """Lets go of stages, all of the deployment's where none is named; their generations end with an error."""
        for key in list(self.runners):
            if key[0] == deployment and (not stage_indexes or key[1] in stage_indexes):
                runner = self.runners.pop(key)
                self.weights.pop(key, None)
                self.times.pop(key, None)
                runner.close_all(NodeLostError(f"deployment {deployment!r} was taken down", reason="STAGE_UNLOADED"))
                del runner
        await asyncio.to_thread(self.snapshots.forget_stages, deployment, stage_indexes)
        # What refers to itself in a circle goes now, not at some time.
        await self.engine.run(gc.collect)

    def runner(self, deployment: str, stage_index: int) -> StageRunner:
        """A stage of a deployment.

        Raises:
            InvalidInputError: Where it is not loaded here.
        """
        runner = self.runners.get((deployment, stage_index))
        if runner is None:
            raise InvalidInputError(
                f"stage {stage_index} of {deployment!r} is not loaded on {self.name}: it may have restarted; deploy it "
                "again",
                reason="NOT_FOUND",
            )
        return runner

    def recovery(self, deployment: str, stage_index: int) -> Recovery:
        """What gateways may do with the generations of a stage."""
        return Recovery(self.runner(deployment, stage_index), self.peers.learn)

    def stage_message(self, key: Key) -> executor_pb2.Stage:
        """A stage as others see it."""
        runner = self.runners[key]
        message = executor_pb2.Stage()
        message.CopyFrom(self.times[key])
        message.deployment, message.stage_index = key
        message.layer_start, message.layer_stop = runner.stage.layers.start, runner.stage.layers.stop
        message.weight_bytes = self.weights[key]
        message.kv_bytes_per_token = runner.pool.bytes_per_token
        message.kv_budget_bytes = runner.pool.budget_bytes
        message.kv_free_bytes = runner.pool.free_bytes
        message.generations = runner.open_generations
        return message

    @property
    def free_bytes(self) -> int:
        """Bytes that another stage may take."""
        caches = sum(runner.pool.budget_bytes for runner in self.runners.values())
        return max(0, self.machine.memory_bytes - sum(self.weights.values()) - caches)

    def take_slices(self, told: slices_pb2.WatchSlicesResponse) -> None:
        """Divides this node among slices as they are now, from the next step, frame and generation on.

        Raises:
            InvalidInputError: They promise more than there is, or contradict themselves; the rules stay as they were.
        """
        rules = rules_for(self.name, told, accelerated=self.settings.device.startswith("cuda"))
        if self.egress is not None:
            self.egress.take(told)
        if rules == self.rules:
            return
        self.engine.set_rules(rules.steps)
        self.rules = rules
        for runner in self.runners.values():
            runner.pool.set_shares(rules.caches)
        self.log.info("slices_taken", slices=sorted(rules.steps))
        if rules.overbooked:
            self.log.warning("slices_overbooked", times=dict(rules.overbooked))

    async def follow_slices(self) -> None:
        """Keeps to the slices as they are, as long as the node lives; while their service is away, to the last."""
        settings = self.settings
        await follow_slices(
            self.channels, settings.slices, settings.slices_name, self.name, self.take_slices, self.log
        )

    async def report_traffic(self) -> None:
        """Tells the service that keeps slices what was measured of each."""
        if self.egress is not None:
            await report_traffic(
                self.channels, self.settings.slices, self.settings.slices_name, self.egress, self.log
            )

    # Coming and going.

    async def drain(self) -> None:
        """Stops training, lets open generations end, then closes the sessions of others: their streams would hold the
        server up."""
        await self.training.close()
        while any(runner.open_generations for runner in self.runners.values()):  # noqa: ASYNC110 - many may end it
            await asyncio.sleep(DRAIN_POLL_S)
        await self.peers.acceptor.close()

    async def close(self) -> None:
        """Ends everything; generations that are still open are on disk afterwards."""
        for runner in self.runners.values():
            await self.snapshots.save_idle(runner, idle_ns=0)
        await self.training.close()
        await self.peers.close()
        await self.channels.close()
        self.engine.close()

    async def sweep(self) -> None:
        """Frees generations whose time is over and writes those that do not get on to disk, as long as the node
        lives."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now_ns = time.monotonic_ns()
            for key, runner in list(self.runners.items()):
                for generation in runner.sweep(now_ns):
                    self.log.info("generation_expired", deployment=key[0], stage=key[1], **about(generation))
                await self.snapshots.save_idle(runner)

    # What others send.

    def _peer_lost(self, peer: str, error: NodeLostError) -> None:
        for runner in list(self.runners.values()):
            runner.peer_lost(peer, error)

    async def _dispatch(self, received: Received, session: Session) -> None:
        info = received.info
        if info.HasField("training"):
            await self.training.take(received, session)
            return
        number = info.step.generation or info.token.generation or info.cache.generation
        index = info.step.stage_index or info.cache.stage_index
        runner = next(
            (
                held
                for held in self.runners.values()
                if held.stage_index == index and number in held.generations
            ),
            None,
        )
        if runner is None:
            return  # closed while this was under way: nobody waits for it
        try:
            if info.HasField("cache"):
                accept_cache(runner, runner.generations[number], received, session.peer)
            else:
                await runner.accept(received, session.peer)
        except MeshError as error:
            if error.reason != "NOT_YOURSELF":
                runner.refuse(number, error)
                return
            # Whoever may not feed a generation must not be able to end it either: only the sender is told.
            self.log.warning("work_refused", peer=session.peer.spiffe, reason=error.reason, detail=error.message)
            failure = wire_pb2.Failure(generation=number, reason=error.reason, message=error.message)
            await session.send(wire_pb2.TransferInfo(failure=failure))

    def _ready(self, key: Key, total: int) -> executor_pb2.LoadStageResponse:
        message = _progress(executor_pb2.STAGE_PHASE_READY, total, total)
        message.stage.CopyFrom(self.stage_message(key))
        return message


def _import_family(architecture: str, *, alone: bool) -> None:
    """Imports what builds models of a family, before the first of them is loaded.

    What is imported stays, half a million objects with it: it is set aside, as at the start of the process, or the
    collector would walk it between two steps. Where a stage is here it is left as it is: what is set aside is freed
    only where no circle holds it, and that is not to be asked of a stage.
    """
    if import_family(architecture) and alone:
        gc.collect()
        gc.freeze()


def _progress(phase: executor_pb2.StagePhase, done: int, total: int) -> executor_pb2.LoadStageResponse:
    return executor_pb2.LoadStageResponse(phase=phase, done_bytes=min(done, total), total_bytes=total)
