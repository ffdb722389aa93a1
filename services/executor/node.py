"""One executor: its stages, its ways to peers, and the sessions that others opened to it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError
from orbitmesh.trust import IdentitySource, Role
from orbitmesh.v1 import executor_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from orbitmesh.wire.streams import EXCHANGE, TRANSFER, SessionAcceptor, dial
from services.executor.engine import StepEngine
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
from services.executor.outbound import Outbound
from services.executor.runner import Route, StageRunner
from services.executor.settings import ExecutorSettings
from services.runtime.channels import ChannelPool
from services.runtime.logs import EventLog
from services.runtime.process import ways_table

SESSION_GIVE_UP_S = 5.0
"""How long a cut session to a peer is dialled again before the generations that need it are told."""
SWEEP_INTERVAL_S = 0.5
"""How often generations whose time is over are looked for."""
GATEWAY_SESSION_WAIT_S = 10.0
"""How long a token waits for the session of the gateway that asked for it."""
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
        self.runners: dict[str, StageRunner] = {}
        self.weights: dict[str, int] = {}
        self.times: dict[str, executor_pb2.Stage] = {}
        self.links = LinkTable()
        self.engine = StepEngine()
        self.acceptor = SessionAcceptor(identities, self._serve_session)
        self._files = StageFiles(settings.state)
        self._loading = asyncio.Lock()
        self._outbounds: dict[tuple[str, str], Outbound] = {}
        self._sessions: dict[tuple[str, str], Session] = {}
        self._accepted: dict[str, Session] = {}
        self._accepted_changed = asyncio.Event()
        self._watches: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, str] = {}

    # Stages.

    async def load_stage(self, request: executor_pb2.LoadStageRequest) -> AsyncIterator[executor_pb2.LoadStageResponse]:
        """Brings a stage up; yields its progress; the last message carries the stage."""
        identity = self.identities.current()
        manifest, layers = await asyncio.to_thread(check_request, request, identity.ca)
        names = manifest.files_for(layers)
        total = sum(manifest.file(name).size_bytes for name in names)
        route = Route(request.deployment, request.stage_index, tuple(peer.name for peer in request.pipeline))
        if route.nodes[route.stage_index] != self.name:
            raise InvalidInputError(f"stage {route.stage_index} belongs to {route.nodes[route.stage_index]}, not here")
        async with self._loading:
            # A peer that came back may have another address: whoever loads again says where it is now.
            self._addresses.update((peer.name, peer.address) for peer in request.pipeline)
            held = self.runners.get(request.deployment)
            if held is not None:
                if held.route != route or held.stage.layers != layers:
                    raise InvalidInputError(
                        f"another stage of {request.deployment!r} is loaded here: unload it first",
                        reason="ALREADY_EXISTS",
                    )
                yield self._ready(request.deployment, total)
                return
            if len(self.runners) >= STAGES_MAX:
                check_memory(1, 0, f"stage number {STAGES_MAX + 1} of this node")
            weight_bytes = stage_weight_bytes(manifest, names)
            check_memory(weight_bytes, self.free_bytes, f"layers {layers.start} to {layers.stop - 1}")

            async def open_source() -> Session:
                return await self._dial(Role(request.source.role), request.source, TRANSFER)

            async for here in self._files.fetch(manifest, names, open_source):
                yield _progress(executor_pb2.STAGE_PHASE_FETCHING, here, total)
            yield _progress(executor_pb2.STAGE_PHASE_VERIFYING, total, total)
            directory: Path = await asyncio.to_thread(self._files.directory, manifest, request.manifest, names)
            yield _progress(executor_pb2.STAGE_PHASE_LOADING, total, total)
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
            pool = make_pool(request.kv_tokens, kv_bytes)
            onward = await self._onward(route, request)
            runner = StageRunner(
                route,
                stage,
                pool,
                self.engine,
                onward,
                self._to_gateway,
                self.links.chooser(route, request.codec),
                token_ns=int((times.layer_s * len(layers) + times.embed_s + times.head_s) * 1e9),
            )
            self.weights[request.deployment] = weight_bytes
            self.times[request.deployment] = executor_pb2.Stage(
                layer_ns=int(times.layer_s * 1e9), embed_ns=int(times.embed_s * 1e9), head_ns=int(times.head_s * 1e9)
            )
            self.runners[request.deployment] = runner
            await self.engine.run(_set_aside_garbage_collection)
        self.log.info("stage_loaded", deployment=request.deployment, layers=[layers.start, layers.stop])
        yield self._ready(request.deployment, total)

    async def unload_stage(self, deployment: str) -> None:
        """Lets go of a stage; its generations end with an error."""
        runner = self.runners.pop(deployment, None)
        self.weights.pop(deployment, None)
        self.times.pop(deployment, None)
        if runner is not None:
            runner.close_all(NodeLostError(f"deployment {deployment!r} was taken down"))
            del runner
            await self.engine.run(_set_aside_garbage_collection)

    def runner(self, deployment: str) -> StageRunner:
        """The stage of a deployment.

        Raises:
            InvalidInputError: Where none is loaded here.
        """
        runner = self.runners.get(deployment)
        if runner is None:
            raise InvalidInputError(
                f"no stage of {deployment!r} is loaded on {self.name}: it may have restarted; deploy it again",
                reason="NOT_FOUND",
            )
        return runner

    def stage_message(self, deployment: str) -> executor_pb2.Stage:
        """A stage as others see it."""
        runner = self.runners[deployment]
        message = executor_pb2.Stage()
        message.CopyFrom(self.times[deployment])
        message.deployment = deployment
        message.stage_index = runner.route.stage_index
        message.layer_start, message.layer_stop = runner.stage.layers.start, runner.stage.layers.stop
        message.weight_bytes = self.weights[deployment]
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

    # Ways to peers.

    async def drain(self) -> None:
        """Lets open generations end, then closes the sessions of others: their streams would hold the server up."""
        while any(runner.open_generations for runner in self.runners.values()):  # noqa: ASYNC110 - many may end it
            await asyncio.sleep(DRAIN_POLL_S)
        await self.acceptor.close()

    async def close(self) -> None:
        """Ends everything."""
        for watch in list(self._watches):
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for outbound in self._outbounds.values():
            await outbound.close()
        await asyncio.gather(*(session.close() for session in [*self._sessions.values(), *self._accepted.values()]))
        await self.acceptor.close()
        await self.channels.close()
        self.engine.close()

    async def sweep(self) -> None:
        """Frees generations whose time is over, for as long as the node lives."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now_ns = time.monotonic_ns()
            for deployment, runner in self.runners.items():
                for number in runner.sweep(now_ns):
                    self.log.info("generation_expired", deployment=deployment, generation=number)

    async def _onward(self, route: Route, request: executor_pb2.LoadStageRequest) -> Outbound | None:
        if len(route.nodes) == 1:
            return None
        target = request.pipeline[(route.stage_index + 1) % len(route.nodes)]
        key = (target.role, target.name)
        if key not in self._outbounds:
            peer = executor_pb2.PeerAddress()
            peer.CopyFrom(target)

            async def session() -> Session:
                held = self._sessions.get(key)
                if held is None or held.closed:
                    peer.address = self._addresses[peer.name]
                    held = await self._dial(Role.EXECUTOR, peer, EXCHANGE)
                    self._sessions[key] = held
                    watch = asyncio.create_task(self._watch(held, peer.name), name=f"session to {peer.name}")
                    self._watches.add(watch)
                    watch.add_done_callback(self._watches.discard)
                return held

            self._outbounds[key] = Outbound(f"{target.role}/{target.name}", session)
        await self._outbounds[key].warm()
        return self._outbounds[key]

    async def _watch(self, session: Session, peer: str) -> None:
        """Ends the generations that go through a peer when its session is lost: what was under way is lost too."""
        try:
            async for _ in session:
                pass  # refusals of work that was not due: the generations are over already
            await session.close()  # the peer is on its way out and waits for our end of the session
        except MeshError as error:
            lost = NodeLostError(f"{self.name} lost {peer}: {error.message}", metadata={"node": peer})
            self.log.warning("session_lost", peer=peer, detail=error.message)
            for runner in list(self.runners.values()):
                if runner.route.next_node == peer:
                    runner.close_all(lost)

    async def _dial(self, role: Role, peer: executor_pb2.PeerAddress, method: str) -> Session:
        return await dial(
            self.channels.exchange(role, peer.name, peer.address, method),
            self.identities,
            receiver_role=role,
            receiver_name=peer.name,
            give_up_after_s=SESSION_GIVE_UP_S,
        )

    def _to_gateway(self, spiffe: str) -> Outbound:
        """The way back to a gateway: over the session that it opened."""
        key = ("accepted", spiffe)
        if key not in self._outbounds:

            async def session() -> Session:
                async with asyncio.timeout(GATEWAY_SESSION_WAIT_S):
                    while spiffe not in self._accepted:
                        self._accepted_changed.clear()
                        await self._accepted_changed.wait()
                return self._accepted[spiffe]

            self._outbounds[key] = Outbound(spiffe, session)
        return self._outbounds[key]

    # What others send.

    async def _serve_session(self, session: Session) -> None:
        spiffe = session.peer.spiffe
        self._accepted[spiffe] = session
        self._accepted_changed.set()
        try:
            async for received in session:
                await self._dispatch(received, session)
        except MeshError as error:
            self.log.warning("session_ended", peer=spiffe, reason=error.reason, detail=error.message)
        finally:
            if self._accepted.get(spiffe) is session:
                del self._accepted[spiffe]

    async def _dispatch(self, received: Received, session: Session) -> None:
        info = received.info
        number = info.step.generation or info.token.generation
        runner = next((held for held in self.runners.values() if held.holds(number)), None)
        if runner is None:
            return  # closed while this was under way: nobody waits for it
        try:
            await runner.accept(received, session.peer)
        except MeshError as error:
            if error.reason != "NOT_YOURSELF":
                runner.refuse(number, error)
                return
            # Whoever may not feed a generation must not be able to end it either: only the sender is told.
            self.log.warning("work_refused", peer=session.peer.spiffe, reason=error.reason, detail=error.message)
            failure = wire_pb2.Failure(generation=number, reason=error.reason, message=error.message)
            await session.send(wire_pb2.TransferInfo(failure=failure))

    def _ready(self, deployment: str, total: int) -> executor_pb2.LoadStageResponse:
        message = _progress(executor_pb2.STAGE_PHASE_READY, total, total)
        message.stage.CopyFrom(self.stage_message(deployment))
        return message


def _set_aside_garbage_collection() -> None:
    """Frees what was let go of, and keeps the collector from walking what lives as long as a stage during steps.

    What was set aside before is taken back first: a stage that is gone must not stay in memory through a cycle.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _progress(phase: executor_pb2.StagePhase, done: int, total: int) -> executor_pb2.LoadStageResponse:
    return executor_pb2.LoadStageResponse(phase=phase, done_bytes=min(done, total), total_bytes=total)
