"""Keeps deployments up: stages loaded again on nodes that came back without them, standbys refilled, strays let go.

A look every second decides what is missing; each missing thing is mended by a task of its own, so that a load that
takes an hour holds nothing else up. What fails is tried again after a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any

from orbitmesh.errors import MeshError
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.runtime.logs import EventLog
from services.scheduler.book import Book, Held, drop_standby, standby_of
from services.scheduler.crew import Crew
from services.scheduler.errands import Errands
from services.scheduler.executors import Executors, Tell
from services.scheduler.holdings import Holdings, Place
from services.scheduler.registry import Registry

LOOK_INTERVAL_S = 1.0
"""How often it is looked for what is missing, in seconds."""
STRAY_GRACE_S = 10.0
"""How long a stage that nobody wants is left where it is, in seconds: generations on it end, or it is wanted again."""

READY = scheduler_pb2.DEPLOYMENT_STATE_READY


class Upkeep:
    """What the scheduler does without being asked."""

    def __init__(
        self,
        registry: Registry,
        book: Book,
        crew: Crew,
        holdings: Holdings,
        executors: Executors,
        creating: Collection[str],
        resume: Callable[[str], Coroutine[Any, Any, None]],
        log: EventLog,
    ) -> None:
        self._registry = registry
        self._book = book
        self._crew = crew
        self._holdings = holdings
        self._executors = executors
        self._creating = creating
        self._resume = resume
        self._log = log
        self._errands = Errands(log)
        self._stray_since_s: dict[Place, float] = {}

    async def run(self) -> None:
        """Looks and mends for as long as the scheduler lives."""
        try:
            while True:
                try:
                    await self.look(time.monotonic())
                except MeshError as error:
                    self._log.warning("upkeep_failed", detail=error.message)
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            await self._errands.close()

    async def look(self, now_s: float) -> None:
        """One look at everything; starts what mends it."""
        for deployment, request in self._book.all():
            name = deployment.name
            if name in self._creating:
                continue  # whoever creates it sees to it
            if deployment.state == scheduler_pb2.DEPLOYMENT_STATE_LOADING:
                self._errands.start(("resume", name), now_s, partial(self._resume, name))
                continue
            if deployment.state != READY:
                continue
            await self._refresh_addresses(deployment)
            for index, node in enumerate(deployment.pipeline):
                place = (name, index, node.name)
                if self._holdings.lost(place, now_s):
                    self._errands.start(place, now_s, partial(self._load_again, place))
                if request.standbys:
                    await self._look_at_standby((deployment, request), index, now_s)
        self._look_for_strays(now_s)

    # Places.

    async def _refresh_addresses(self, deployment: scheduler_pb2.Deployment) -> None:
        """A node that came back may listen elsewhere; the deployment must say where."""

        def refresh(message: scheduler_pb2.Deployment) -> bool:
            nodes = [*message.pipeline, *(s.node for s in message.standbys), *(h.to for h in message.hand_overs)]
            changed = False
            for node in nodes:
                now = self._crew.address(node.name)
                if now is not None and now.address != node.address:
                    node.address = now.address
                    changed = True
            return changed

        trial = scheduler_pb2.Deployment()
        trial.CopyFrom(deployment)
        if refresh(trial):
            await self._book.change(deployment.name, refresh)

    async def _load_again(self, place: Place) -> None:
        name, index, node = place
        held = self._book.find(name)
        address = self._crew.address(node)
        if held is None or address is None or held[0].pipeline[index].name != node:
            return
        self._log.info("loading_again", deployment=name, stage=index, node=node)
        await self._executors.load(*held, index, address, _silent)
        self._book.wake()

    # Standbys.

    async def _look_at_standby(self, held: Held, index: int, now_s: float) -> None:
        deployment = held[0]
        name, own = deployment.name, deployment.pipeline[index].name
        standby = standby_of(deployment, index)
        if standby is not None:
            place = (name, index, standby.node.name)
            if standby.node.name == own or self._holdings.away(standby.node.name, now_s):
                await self._drop(place)
            elif self._holdings.member(standby.node.name, now_s) is not None and (
                self._holdings.lost(place, now_s) or not standby.ready
            ):
                self._errands.start(place, now_s, partial(self._load_standby, place))
            return
        self._errands.start(("standby", name, index), now_s, partial(self._try_standby, name, index))

    async def _try_standby(self, name: str, index: int) -> None:
        if not await self.fill_standby(name, index, _silent):
            self._errands.not_soon(("standby", name, index))

    async def fill_standby(self, name: str, index: int, tell: Tell) -> bool:
        """Chooses and loads a standby of a place; False where no node can be one now.

        Raises:
            MeshError: Where the loading failed.
        """
        held = self._book.find(name)
        if held is None or not held[1].standbys or standby_of(held[0], index) is not None:
            return True
        ranked = self._crew.standbys_for(held, index, time.monotonic())
        address = self._crew.address(ranked[0].node) if ranked else None
        if address is None:
            return False

        def add(deployment: scheduler_pb2.Deployment) -> bool:
            if standby_of(deployment, index) is not None or deployment.pipeline[index].name == address.name:
                return False
            deployment.standbys.add(stage_index=index, node=address)
            return True

        # Written down before it is loaded: a scheduler that starts anew knows whom it was loading.
        await self._book.change(name, add)
        await self._load_standby((name, index, address.name), tell)
        return True

    async def _load_standby(self, place: Place, tell: Tell | None = None) -> None:
        name, index, node = place
        held = self._book.find(name)
        address = self._crew.address(node)
        standby = None if held is None else standby_of(held[0], index)
        if held is None or address is None or standby is None or standby.node.name != node:
            return
        if self._holdings.is_coming(place):
            return
        await self._set_ready(place, ready=False)
        try:
            await self._executors.load(*held, index, address, tell or _silent)
        except MeshError:
            await self._drop(place)  # another may do better
            self._holdings.suspect(node, time.monotonic())
            raise
        await self._executors.acquaint(*held, index, address)
        await self._set_ready(place, ready=True)
        self._log.info("standby_ready", deployment=name, stage=index, node=node)

    async def _set_ready(self, place: Place, *, ready: bool) -> None:
        name, index, node = place

        def mutate(deployment: scheduler_pb2.Deployment) -> bool:
            standby = standby_of(deployment, index)
            if standby is None or standby.node.name != node or standby.ready == ready:
                return False
            standby.ready = ready
            return True

        await self._book.change(name, mutate)

    async def _drop(self, place: Place) -> None:
        name, index, node = place
        await self._book.change(name, lambda deployment: drop_standby(deployment, index, node))

    # Strays.

    def _look_for_strays(self, now_s: float) -> None:
        """Stages that nodes hold and nobody wants: taken on as a standby where one is missing, else let go."""
        wanted = self._wanted()
        found: dict[Place, executor_pb2.Stage] = {}
        for record in self._registry.all():
            if self._registry.is_member(record, now_s):
                for stage in record.measures.stages:
                    place = (stage.deployment, stage.stage_index, record.name)
                    if place not in wanted and not self._holdings.is_coming(place):
                        found[place] = stage
        self._stray_since_s = {place: self._stray_since_s.get(place, now_s) for place in found}
        for place, stage in found.items():
            held = self._book.find(place[0])
            if held is not None and self._wants(held, place, stage, now_s):
                self._errands.start(place, now_s, partial(self._adopt, place))
            elif stage.generations == 0 and now_s - self._stray_since_s[place] >= STRAY_GRACE_S:
                self._errands.start(place, now_s, partial(self._let_go, place))

    def _wanted(self) -> set[Place]:
        wanted = set()
        for deployment, _ in self._book.all():
            wanted |= {(deployment.name, index, node.name) for index, node in enumerate(deployment.pipeline)}
            wanted |= {(deployment.name, each.stage_index, each.node.name) for each in deployment.standbys}
            wanted |= {(deployment.name, each.stage_index, each.to.name) for each in deployment.hand_overs}
        return wanted

    def _wants(self, held: Held, place: Place, stage: executor_pb2.Stage, now_s: float) -> bool:
        deployment, request = held
        index = place[1]
        if self._holdings.is_suspect(place[2], now_s):
            return False
        if deployment.state != READY or not request.standbys or index >= len(deployment.pipeline):
            return False
        planned = deployment.plan.stages[index]
        same = (stage.layer_start, stage.layer_stop) == (planned.layer_start, planned.layer_stop)
        return same and standby_of(deployment, index) is None

    async def _adopt(self, place: Place) -> None:
        name, index, node = place
        address = self._crew.address(node)

        def add(deployment: scheduler_pb2.Deployment) -> bool:
            if address is None or standby_of(deployment, index) is not None:
                return False
            deployment.standbys.add(stage_index=index, node=address, ready=True)
            return True

        await self._book.change(name, add)
        self._log.info("standby_adopted", deployment=name, stage=index, node=node)

    async def _let_go(self, place: Place) -> None:
        name, index, node = place
        address = self._crew.address(node)
        if address is not None and place not in self._wanted():
            self._log.info("stray_let_go", deployment=name, stage=index, node=node)
            await self._executors.unload(name, address, [index])


def _silent(answer: executor_pb2.LoadStageResponse) -> None:
    """Nobody looks at the progress of what is mended."""
