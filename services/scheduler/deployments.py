"""Deployments: planned, loaded on every node, looked at, watched, taken down."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from functools import partial

from orbitmesh.contacts_proto import mesh_time
from orbitmesh.deployments_proto import plan_request_of
from orbitmesh.errors import CapacityError, InvalidInputError, MeshError, NodeLostError, UnknownModelError
from orbitmesh.pack import Manifest
from orbitmesh.trust import IdentitySource, Role, verify_signature
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.runtime.caller import time_left_s
from services.runtime.logs import EventLog
from services.scheduler.book import Book, standby_of
from services.scheduler.crew import Crew
from services.scheduler.executors import Executors
from services.scheduler.handing_over import HandingOver
from services.scheduler.holdings import Holdings
from services.scheduler.planning import SETTLING_S, Planning, default_kv_tokens
from services.scheduler.registry import Registry
from services.scheduler.replacing import Answers, Replacing, stage_progress
from services.scheduler.sky import SkySource
from services.scheduler.store import DeploymentStore
from services.scheduler.upkeep import Upkeep

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DEPLOYMENTS_MAX = 256
"""How many deployments the scheduler keeps."""
STANDBYS_MAX = 1
"""How many standbys a stage may have."""
WATCH_POLL_S = 1.0
"""How often a watcher's deployments are looked at where nothing told of a change, in seconds: leases run out in
silence."""
SIGNERS = frozenset({Role.CLIENT, Role.OPERATOR})

LOADING = scheduler_pb2.DEPLOYMENT_STATE_LOADING
READY = scheduler_pb2.DEPLOYMENT_STATE_READY

Progress = dict[int, scheduler_pb2.StageProgress]
Creations = AsyncIterator[scheduler_pb2.CreateDeploymentResponse]


class Deployments:
    """The deployments of one scheduler."""

    def __init__(
        self,
        registry: Registry,
        store: DeploymentStore,
        identities: IdentitySource,
        ways: dict[str, str],
        sky: SkySource,
        log: EventLog,
    ) -> None:
        self._registry = registry
        self._identities = identities
        self._sky = sky
        self._log = log
        self._book = Book(store)
        self._holdings = Holdings(registry, time.monotonic())
        self._crew = Crew(registry, self._holdings, self._book, sky)
        self._planning = Planning(registry, self._crew, sky)
        self._executors = Executors(identities, ways, self._holdings)
        self._replacing = Replacing(self._book, self._crew, self._holdings, self._executors, sky, log)
        self._creating: set[str] = set()
        self._upkeep = Upkeep(
            registry, self._book, self._crew, self._holdings, self._executors, self._creating, self._resume, log
        )
        self._handing_over = HandingOver(self._book, self._crew, self._holdings, self._executors, sky, log)

    async def plan(self, request: scheduler_pb2.PlanRequest) -> scheduler_pb2.Plan:
        """Cuts a model over the nodes that are up; see `Planning.plan`. Half of the caller's time is for waiting."""
        return await self._planning.plan(request, time_left_s(2 * SETTLING_S) / 2)

    # Coming up.

    async def create(self, request: scheduler_pb2.CreateDeploymentRequest) -> Creations:
        """Plans, loads, verifies; yields progress; the last message shows it ready. Cancelled, it leaves nothing.

        A repetition of a request that is still being carried out (the scheduler was restarted meanwhile) follows it to
        its end.
        """
        while self._known(request):
            try:
                async for answer in self._follow(request.name):
                    yield answer
                return
            except UnknownModelError:
                # Whoever asked first has left, and all of it was undone: this one begins anew.
                continue
        verify_signature(request.manifest, request.signature or None, self._identities.current().ca, SIGNERS)
        if request.kv_tokens == 0:
            request.kv_tokens = default_kv_tokens(Manifest.parse(request.manifest))
        deployment = await self._planned(request)
        if self._known(request):
            raise InvalidInputError(f"{request.name!r} is being created by another request", reason="ALREADY_EXISTS")
        self._book.claim(deployment, request)
        self._creating.add(request.name)
        try:
            try:
                await self._store(request.name)
                async for answer in self._bring_up(request.name):
                    yield answer
            except BaseException:
                await asyncio.shield(self._undo(request.name))
                raise
            async for answer in self._add_standbys(request.name):
                yield answer
        finally:
            self._creating.discard(request.name)
        yield scheduler_pb2.CreateDeploymentResponse(deployment=self.message(request.name))

    async def _store(self, name: str) -> None:
        """Writes a claimed deployment down; where there is no room for it the name is free again."""
        try:
            await self._book.store(name)
        except CapacityError:
            self._book.release(name)
            raise

    async def _planned(self, request: scheduler_pb2.CreateDeploymentRequest) -> scheduler_pb2.Deployment:
        planned = await self.plan(plan_request_of(request))
        deployment = scheduler_pb2.Deployment(
            name=request.name,
            state=LOADING,
            plan=planned,
            manifest=request.manifest,
            pipeline=self._pipeline(planned),
            codec=request.codec,
        )
        deployment.created_at.GetCurrentTime()
        return deployment

    def _pipeline(self, planned: scheduler_pb2.Plan) -> list[executor_pb2.PeerAddress]:
        """The addresses of a plan's nodes, each with the relays between it and the stage before it."""
        names = [stage.node for stage in planned.stages]
        via = {(str(getattr(way, "from")), way.to): way.via for way in planned.sky.ways}
        pipeline = [self._address(name) for name in names]
        for index, address in enumerate(pipeline):
            relays = via.get((names[index - 1], names[index]), ()) if len(names) > 1 else ()
            address.via.extend(self._address(relay) for relay in relays)
        return pipeline

    def _known(self, request: scheduler_pb2.CreateDeploymentRequest) -> bool:
        """Whether this very request already made the deployment, or is making it."""
        if NAME.fullmatch(request.name) is None:
            raise InvalidInputError(
                f"{request.name!r} cannot name a deployment: take lower-case letters, digits, '.', '_', '-', at most 63"
            )
        if request.standbys > STANDBYS_MAX:
            raise InvalidInputError(f"standbys is {request.standbys}; a stage has at most {STANDBYS_MAX}")
        held = self._book.find(request.name)
        if held is None:
            if len(self._book.names()) >= DEPLOYMENTS_MAX:
                raise InvalidInputError(f"there are {DEPLOYMENTS_MAX} deployments; delete one", reason="LIMIT_EXCEEDED")
            return False
        going_on = held[0].state in (READY, LOADING)
        if request.request_id and held[1].request_id == request.request_id and going_on:
            return True
        raise InvalidInputError(
            f"there is a deployment {request.name!r} already: delete it first or take another name",
            reason="ALREADY_EXISTS",
        )

    async def _follow(self, name: str) -> Creations:
        async for _ in self._book.changes(WATCH_POLL_S):
            deployment, _ = self._book.get(name)
            if deployment.state == LOADING:
                yield scheduler_pb2.CreateDeploymentResponse(deployment=deployment)
                continue
            if deployment.state == scheduler_pb2.DEPLOYMENT_STATE_FAILED:
                raise NodeLostError(f"{name!r} could not be brought up: {deployment.failure}")
            yield scheduler_pb2.CreateDeploymentResponse(deployment=self.message(name))
            return

    async def _bring_up(self, name: str) -> Creations:
        """Loads every stage; durable as ready when it ends."""
        deployment, _ = self._book.get(name)
        loaded: dict[int, executor_pb2.Stage] = {}
        async for progress in self._load_all(name, loaded):
            told = [progress[index] for index in sorted(progress)]
            yield scheduler_pb2.CreateDeploymentResponse(deployment=deployment, progress=told)

        def ready(message: scheduler_pb2.Deployment) -> bool:
            message.state = READY
            message.stages.extend(loaded[index] for index in sorted(loaded))
            return True

        changed = await self._book.change(name, ready)
        self._log.info("deployed", deployment=name, nodes=[node.name for node in deployment.pipeline])
        yield scheduler_pb2.CreateDeploymentResponse(deployment=changed)

    async def _resume(self, name: str) -> None:
        """Goes on with a deployment that an earlier process of the scheduler was bringing up."""
        deployment, _ = self._book.get(name)
        now_s = time.monotonic()
        missing = [node.name for node in deployment.pipeline if self._holdings.member(node.name, now_s) is None]
        if name in self._creating:
            return
        try:
            if missing and any(self._holdings.away(node, now_s) for node in missing):
                raise NodeLostError(f"{', '.join(missing)} did not come back after the scheduler's restart")
            if not missing:
                async for _ in self._bring_up(name):
                    pass
        except MeshError as error:
            await self._book.change(name, partial(_fail, error.message))

    async def _add_standbys(self, name: str) -> Creations:
        """Loads the standbys; one that cannot be had is said in the plan's reasons and fails nothing."""
        deployment, request = self._book.get(name)
        for index in range(len(deployment.pipeline) if request.standbys else 0):
            try:
                placed = await self._upkeep.fill_standby(name, index, lambda answer: None)
                why = "no other node has the memory and the links for it"
            except MeshError as error:
                placed, why = False, error.message
            if not placed:
                reason = f"stage {index} has no standby yet: {why}; it is looked for again"
                await self._book.change(name, partial(_add_reason, reason))
            held = self._book.find(name)
            if held is None:
                raise NodeLostError(f"{name!r} was deleted while its standbys were loaded")
            yield scheduler_pb2.CreateDeploymentResponse(deployment=held[0])

    async def _load_all(self, name: str, loaded: dict[int, executor_pb2.Stage]) -> AsyncIterator[Progress]:
        """Loads all stages at once; yields the progress of all whenever one changes."""
        deployment, request = self._book.get(name)
        changed: asyncio.Queue[MeshError | None] = asyncio.Queue()
        progress: Progress = {}

        async def one(index: int) -> None:
            target = deployment.pipeline[index]

            def tell(answer: executor_pb2.LoadStageResponse) -> None:
                progress[index] = stage_progress(index, target.name, answer)
                changed.put_nowait(None)

            try:
                loaded[index] = await self._executors.load(deployment, request, index, target, tell)
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

    # Keeping up, going down.

    async def keep_up(self) -> None:
        """Mends what is missing and looks ahead, for as long as the scheduler lives."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._upkeep.run())
            tasks.create_task(self._handing_over.run())

    def replace(self, request: scheduler_pb2.ReplaceStageRequest) -> Answers:
        """Puts another node in a place; see `Replacing.replace`."""
        return self._replacing.replace(request)

    async def delete(self, name: str) -> None:
        """Takes a deployment down; one that is not there changes nothing."""
        if await self._undo(name):
            self._log.info("deleted", deployment=name)

    async def _undo(self, name: str) -> bool:
        deployment = await self._book.delete(name)
        if deployment is None:
            return False
        self._replacing.forget(name)
        self._executors.forget(name)
        nodes = [*deployment.pipeline, *(s.node for s in deployment.standbys), *(h.to for h in deployment.hand_overs)]
        by_name = {node.name: node for node in nodes}
        await asyncio.gather(*(self._executors.unload(name, node) for node in by_name.values()))
        return True

    # Looking.

    def names(self) -> list[str]:
        """The names, sorted."""
        return self._book.names()

    def message(self, name: str) -> scheduler_pb2.Deployment:
        """A deployment as it is now.

        Raises:
            UnknownModelError: Where there is none of that name.
        """
        message = scheduler_pb2.Deployment()
        message.CopyFrom(self._book.get(name)[0])
        if message.state == READY:
            self._say_what_is_missing(message)
        for hand_over in message.hand_overs:
            hand_over.closes_in_s = self._sky.clock.seconds_until(mesh_time(hand_over.closes_at))
        return message

    def _say_what_is_missing(self, message: scheduler_pb2.Deployment) -> None:
        now_s, bare, said = time.monotonic(), [], []
        for index, node in enumerate(message.pipeline):
            if self._holdings.serves((message.name, index, node.name), now_s):
                continue
            absent = self._sky.absence(node.name) if self._holdings.away(node.name, now_s) else ""
            if absent:
                said.append(f"{node.name} is {absent}")
            standby = standby_of(message, index)
            if standby is None or not standby.ready or self._holdings.away(standby.node.name, now_s):
                bare.append(node.name)
            else:
                said.append(f"stage {index} is missing on {node.name}; its standby {standby.node.name} is ready")
        if bare:
            message.state = scheduler_pb2.DEPLOYMENT_STATE_DEGRADED
            said.insert(0, f"stages are missing on: {', '.join(bare)}")
        message.failure = "; ".join(said)

    async def watch(
        self, names: frozenset[str], stop: asyncio.Event
    ) -> AsyncIterator[scheduler_pb2.WatchDeploymentsResponse]:
        """The deployments of these names, all where there are none, as they are and whenever one changes."""
        seen: dict[str, scheduler_pb2.Deployment] = {}
        async for _ in self._book.changes(WATCH_POLL_S):
            if stop.is_set():
                return
            for name in [name for name in seen if self._book.find(name) is None]:
                del seen[name]
                gone = scheduler_pb2.Deployment(name=name)
                yield scheduler_pb2.WatchDeploymentsResponse(deployment=gone, deleted=True)
            for name in self._book.names():
                if names and name not in names:
                    continue
                message = self.message(name)
                timeless = _without_countdown(message)
                if seen.get(name) != timeless:
                    seen[name] = timeless
                    yield scheduler_pb2.WatchDeploymentsResponse(deployment=message)

    async def wake(self) -> None:
        """Lets watchers look now."""
        self._book.wake()

    def _address(self, node: str) -> executor_pb2.PeerAddress:
        address = self._crew.address(node)
        if address is None:
            raise NodeLostError(f"{node} is not a member any more")
        return address

    def places_to_move(self, node: str, now_s: float) -> int:
        """How many places a node that drains has that another node can take."""
        return self._handing_over.places_to_move(node, now_s)

    async def close(self) -> None:
        """Closes connections and the store."""
        await self._executors.close()
        self._book.close()


def _without_countdown(message: scheduler_pb2.Deployment) -> scheduler_pb2.Deployment:
    """What a watcher compares: a countdown that goes on is no change, and a loss that lasts is told once."""
    timeless = scheduler_pb2.Deployment()
    timeless.CopyFrom(message)
    for hand_over in timeless.hand_overs:
        hand_over.ClearField("closes_in_s")
    timeless.failure = re.sub(r"for \d+ s more", "for a while", timeless.failure)
    return timeless


def _fail(why: str, message: scheduler_pb2.Deployment) -> bool:
    message.state = scheduler_pb2.DEPLOYMENT_STATE_FAILED
    message.failure = why
    return True


def _add_reason(reason: str, message: scheduler_pb2.Deployment) -> bool:
    message.plan.reasons.append(reason)
    return True
