"""Hand-overs as they happen: the successor loaded ahead of a closing, named in the deployment, and put in place. The
same for the stages of a node that is drained (`draining`).

The gateways see the hand-over in the deployment, feed the successor and end it with `ReplaceStage(hand_over=true)`.
Where none has by the time the window closes, the successor takes the place by itself.

A sequence of moves is loaded at once and named one after another: a generation makes one move at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from functools import partial

from orbitmesh.contacts_proto import mesh_time, stamp
from orbitmesh.errors import MeshError
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.runtime.logs import EventLog
from services.scheduler.book import Book, Held, drop_hand_over, hand_over_of, put_in_place
from services.scheduler.costs import PlanNode
from services.scheduler.crew import Crew
from services.scheduler.draining import Draining, places_on
from services.scheduler.errands import Errands
from services.scheduler.executors import Executors
from services.scheduler.hand_over import Move, decide_moves
from services.scheduler.holdings import Holdings, Place
from services.scheduler.placement import OBJECTIVES
from services.scheduler.registry import NodeRecord
from services.scheduler.sky import SkySource
from services.scheduler.sky_message import work_of
from services.scheduler.sky_walk import Scene
from services.scheduler.windows import Sky, Ways

LOOK_INTERVAL_S = 0.5
"""How often it is looked ahead, in seconds."""
LOAD_S_DEFAULT = 10.0
"""How long a stage is thought to load where no node has loaded it yet, in seconds."""


class HandingOver:
    """Looks ahead along the contact plan, for every deployment."""

    def __init__(
        self, book: Book, crew: Crew, holdings: Holdings, executors: Executors, sky: SkySource, log: EventLog
    ) -> None:
        self._book = book
        self._crew = crew
        self._holdings = holdings
        self._executors = executors
        self._sky = sky
        self._log = log
        self._draining = Draining(crew)
        self._errands = Errands(log)
        self._in_turn: set[str] = set()

    async def run(self) -> None:
        """Looks ahead for as long as the scheduler lives."""
        try:
            while True:
                try:
                    await self.look(time.monotonic())
                except MeshError as error:
                    self._log.warning("looking_ahead_failed", detail=error.message)
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            await self._errands.close()

    async def look(self, now_s: float) -> None:
        """One look at every deployment, all under the same sky."""
        members = self._crew.members(now_s)
        sky = self._sky.view(members)
        leaving = self._draining.look(members, now_s)
        shared: dict[int, dict[float, Ways]] = {}
        for held in self._book.all():
            if held[0].state != scheduler_pb2.DEPLOYMENT_STATE_READY:
                continue
            for hand_over in held[0].hand_overs:
                await self._finish(held[0], hand_over, now_s)
            current = self._book.find(held[0].name)
            if current is None:
                continue
            places = places_on(current[0], leaving)
            for index in places:
                key = ("drain", held[0].name, index)
                self._errands.start(key, now_s, partial(self._drain, held[0].name, index))
            if sky is None or places:
                continue
            scene = self._scene(current, now_s, sky, members, shared)
            if scene is None:
                continue
            await self._refresh_relays(current[0], scene)
            name = held[0].name
            if name in self._in_turn:
                continue
            moves = await asyncio.to_thread(self._decide, current, scene)
            if len(moves) == 1:
                key = ("hand over", name, moves[0].stage_index)
                self._errands.start(key, now_s, partial(self._move, name, moves[0]))
            elif moves:
                self._errands.start(("hand over in turn", name), now_s, partial(self._move_in_turn, name, moves))

    def places_to_move(self, node: str, now_s: float) -> int:
        """How many places of deployments are on a node that drains and will be on another one, or are moving there.

        Args:
            node: Its name.
            now_s: The time, monotonic.
        """
        return sum(
            hand_over_of(held[0], index) is not None or bool(self._crew.spares_for(held, index, now_s, {node}))
            for held in self._book.all()
            if held[0].state == scheduler_pb2.DEPLOYMENT_STATE_READY
            for index, place in enumerate(held[0].pipeline)
            if place.name == node
        )

    def _scene(
        self, held: Held, now_s: float, sky: Sky, members: list[NodeRecord], shared: dict[int, dict[float, Ways]]
    ) -> Scene | None:
        """The windows and the nodes that could take a stage; None where a node of the pipeline is lost."""
        deployment, request = held
        ring = self._crew.ring(held)
        nodes: dict[str, PlanNode] = {}
        ready_s: dict[str, float] = {}
        for record in members:
            node = self._crew.node(record.name, held, now_s)
            serving = record.name in ring.nodes
            allowed = not request.nodes or record.name in request.nodes
            if node is None or not (serving or (allowed and not record.measures.draining)):
                continue
            if self._holdings.is_suspect(record.name, now_s) and not serving:
                continue
            nodes[record.name] = node
            ready_s[record.name] = sky.now_s + self._load_s(deployment.name) * sky.stretch
        for standby in deployment.standbys:
            node = nodes.get(standby.node.name)
            if standby.ready and node is not None:
                ready_s[node.name] = -math.inf
                held_bytes = deployment.plan.stages[standby.stage_index].memory_bytes
                nodes[node.name] = replace(node, memory_bytes=node.memory_bytes + held_bytes)
        if not set(ring.nodes) <= set(nodes):
            return None  # a lost node is the business of the gateways and of upkeep
        names = tuple(record.name for record in members)
        work = work_of(request.work_s, request.work_tokens)
        objective = OBJECTIVES[request.objective]
        # The ways of a moment cost the most and depend on the deployment by the size of an activation alone.
        known = shared.setdefault(ring.model.activation_bytes, {})
        home = self._sky.place("gateway")
        return Scene(ring.model, nodes, names, sky, objective, work, ready_s, home, _ways=known)

    def _load_s(self, name: str) -> float:
        measured = [spent for place, spent in self._executors.load_seconds.items() if place[0] == name]
        return max(measured, default=LOAD_S_DEFAULT)

    def _decide(self, held: Held, scene: Scene) -> tuple[Move, ...]:
        ring = self._crew.ring(held)
        taken = frozenset(hand_over.stage_index for hand_over in held[0].hand_overs)
        return decide_moves(scene, ring.nodes, ring.bounds, load_s=self._load_s(held[0].name), taken=taken)

    async def _drain(self, name: str, index: int) -> None:
        """Moves a stage from a node that wants no new work."""
        move = self._draining.move(self._book.get(name), index, time.monotonic(), self._sky.clock)
        await self._move(name, move)

    async def _move(self, name: str, move: Move) -> None:
        """Loads the successor and names it in the deployment."""
        held = self._book.get(name)
        if held[0].pipeline[move.stage_index].name == move.source and await self._load(name, move):
            await self._publish(name, move)

    async def _move_in_turn(self, name: str, moves: tuple[Move, ...]) -> None:
        """Loads all successors, then names one after another, each when the one before has its place."""
        places = [(name, move.stage_index, move.target) for move in moves]
        self._in_turn.add(name)
        try:
            await self._load_all(name, moves)
            for place, move in zip(places, moves, strict=True):
                if not await self._publish(name, move, alone=True):
                    break
                self._let_be(place)  # from here on the deployment names it
                if not await self._has_place(name, move):
                    break
            else:
                return
            self._log.warning("hand_overs_off", deployment=name, stage=move.stage_index, to=move.target)
        finally:
            self._in_turn.discard(name)
            for place in places:
                self._let_be(place)

    async def _load_all(self, name: str, moves: tuple[Move, ...]) -> None:
        """Loads all successors at the same time; where one cannot be loaded, the others are not waited for."""
        loads = [asyncio.create_task(self._load(name, move, keep=True)) for move in moves]
        try:
            await asyncio.gather(*loads)
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)

    async def _load(self, name: str, move: Move, *, keep: bool = False) -> bool:
        """Loads a successor where it does not hold the stage yet; False where nobody knows its address.

        Args:
            name: The deployment.
            move: The move.
            keep: Its turn comes later: nobody may take the stage for one that is not wanted until then.
        """
        address = self._crew.address(move.target)
        if address is None:
            return False
        place = (name, move.stage_index, move.target)
        if self._holdings.reported(place) is None:
            await self._executors.load(*self._book.get(name), move.stage_index, address, lambda answer: None)
        if keep:
            self._holdings.coming(place, 0)  # its memory shows in the node's own report
        return True

    def _let_be(self, place: Place) -> None:
        if self._holdings.is_coming(place):
            self._holdings.arrived(place, time.monotonic())

    async def _publish(self, name: str, move: Move, *, alone: bool = False) -> bool:
        """Names the successor in the deployment; False where it is too late for that.

        Args:
            name: The deployment.
            move: The move.
            alone: Whether no other hand-over of the deployment may be under way.
        """
        address, named = self._crew.address(move.target), False

        def publish(deployment: scheduler_pb2.Deployment) -> bool:
            nonlocal named
            here = deployment.pipeline[move.stage_index].name == move.source
            if address is None or not here or hand_over_of(deployment, move.stage_index) is not None:
                return False
            if alone and deployment.hand_overs:
                return False
            entry = deployment.hand_overs.add(stage_index=move.stage_index, to=address, reason=move.reason)
            setattr(entry, "from", move.source)
            entry.closes_at.CopyFrom(stamp(move.closes_s))
            named = True
            return True

        await self._book.change(name, publish)
        if named:
            self._log.info(
                "hand_over_planned", deployment=name, stage=move.stage_index, node=move.source, to=move.target,
                reason=move.reason,
            )  # fmt: skip
        return named

    async def _has_place(self, name: str, move: Move) -> bool:
        """Waits until a hand-over has ended, at the latest at the closing; whether the successor is in place."""
        async for _ in self._book.changes(LOOK_INTERVAL_S):
            held = self._book.find(name)
            if held is None or hand_over_of(held[0], move.stage_index) is None:
                return held is not None and held[0].pipeline[move.stage_index].name == move.target
        return False

    async def _finish(
        self, deployment: scheduler_pb2.Deployment, hand_over: scheduler_pb2.HandOver, now_s: float
    ) -> None:
        """Ends a hand-over that no gateway ended: in place when the window has closed, off when `to` is lost."""
        name, index, to = deployment.name, hand_over.stage_index, hand_over.to
        place = (name, index, to.name)
        if self._holdings.away(to.name, now_s) or self._holdings.lost(place, now_s):
            await self._book.change(name, lambda message: drop_hand_over(message, index))
            self._log.warning("hand_over_off", deployment=name, stage=index, to=to.name)
        elif self._sky.clock.now_s() >= mesh_time(hand_over.closes_at):
            stage = self._holdings.reported(place)
            await self._book.change(name, partial(_take_place, index, to, stage))
            self._log.info("handed_over", deployment=name, stage=index, to=to.name)

    async def _refresh_relays(self, deployment: scheduler_pb2.Deployment, scene: Scene) -> None:
        """Names the relays between consecutive stages as the windows are now."""
        names = [node.name for node in deployment.pipeline]
        used = scene.used(names, scene.sky.now_s, scene.sky.now_s)
        if used is None:
            return  # nothing is better than what there was

        def refresh(message: scheduler_pb2.Deployment) -> bool:
            if [node.name for node in message.pipeline] != names:
                return False
            changed = False
            for index, node in enumerate(message.pipeline):
                way = used.get((names[index - 1], names[index]))
                relays = [self._crew.address(name) for name in way.via] if way is not None else []
                known = [relay for relay in relays if relay is not None]
                if [relay.name for relay in node.via] != [relay.name for relay in known]:
                    del node.via[:]
                    node.via.extend(known)
                    changed = True
            return changed

        trial = scheduler_pb2.Deployment()
        trial.CopyFrom(deployment)
        if refresh(trial):
            await self._book.change(deployment.name, refresh)


def _take_place(
    index: int,
    to: executor_pb2.PeerAddress,
    stage: executor_pb2.Stage | None,
    message: scheduler_pb2.Deployment,
) -> bool:
    hand_over = hand_over_of(message, index)
    if hand_over is None or hand_over.to.name != to.name:
        return False
    put_in_place(message, index, to, stage)
    return True
