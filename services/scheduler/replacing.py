"""A place filled anew: a warm standby or the named successor at once, else the best spare after loading it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from orbitmesh.errors import InvalidInputError, MeshError, NodeLostError
from orbitmesh.v1 import executor_pb2, scheduler_pb2
from services.runtime.logs import EventLog
from services.scheduler.book import Book, hand_over_of, put_in_place, standby_of
from services.scheduler.crew import Crew
from services.scheduler.executors import Executors
from services.scheduler.holdings import Holdings
from services.scheduler.sky import SkySource

SPARES_TRIED_MAX = 4
"""How many spare nodes are tried for one replacement."""

Answers = AsyncIterator[scheduler_pb2.ReplaceStageResponse]


class Replacing:
    """Answers `ReplaceStage`; one replacement of a place at a time."""

    def __init__(
        self, book: Book, crew: Crew, holdings: Holdings, executors: Executors, sky: SkySource, log: EventLog
    ) -> None:
        self._sky = sky
        self._book = book
        self._crew = crew
        self._holdings = holdings
        self._executors = executors
        self._log = log
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}

    async def replace(self, request: scheduler_pb2.ReplaceStageRequest) -> Answers:
        """Puts another node in a place; yields progress; in the last message the place is filled.

        Raises:
            UnknownModelError: Where there is no such deployment.
            InvalidInputError: Where there is no such place, the deployment does not serve yet, or no hand-over of the
                place is planned.
            NodeLostError: Reason `NO_SPARE_NODE`: no other node can take the place now; retryable.
        """
        deployment, _ = self._book.get(request.deployment)
        index = request.stage_index
        if index >= len(deployment.pipeline):
            raise InvalidInputError(
                f"{request.deployment!r} has {len(deployment.pipeline)} stages; there is no stage {index}"
            )
        if deployment.state != scheduler_pb2.DEPLOYMENT_STATE_READY:
            raise InvalidInputError(
                f"{request.deployment!r} does not serve yet: wait until it is ready", reason="FAILED_PRECONDITION"
            )
        lock = self._locks.setdefault((request.deployment, index), asyncio.Lock())
        async with lock:
            async for answer in self._replace(request):
                yield answer

    def forget(self, name: str) -> None:
        """Lets go of what is kept for a deployment that is gone."""
        for key in [key for key in self._locks if key[0] == name]:
            del self._locks[key]

    async def _replace(self, request: scheduler_pb2.ReplaceStageRequest) -> Answers:
        name, index = request.deployment, request.stage_index
        deployment, _ = self._book.get(name)
        if deployment.pipeline[index].name != request.node:
            # Another gateway was first, or this is a repetition: the place is taken already.
            yield scheduler_pb2.ReplaceStageResponse(deployment=deployment)
            return
        now_s = time.monotonic()
        if request.hand_over:
            successor: executor_pb2.PeerAddress | None = self._successor(deployment, index)
        else:
            self._holdings.suspect(request.node, now_s)
            successor = self._ready(deployment, index, now_s)
        if successor is not None:
            yield scheduler_pb2.ReplaceStageResponse(deployment=await self._swap(request, successor))
            return
        async for answer in self._load_spare(request):
            yield answer

    def _successor(self, deployment: scheduler_pb2.Deployment, index: int) -> executor_pb2.PeerAddress:
        hand_over = hand_over_of(deployment, index)
        if hand_over is None:
            raise InvalidInputError(
                f"no hand-over of stage {index} of {deployment.name!r} is planned; look at its hand_overs",
                reason="FAILED_PRECONDITION",
            )
        return hand_over.to

    def _ready(
        self, deployment: scheduler_pb2.Deployment, index: int, now_s: float
    ) -> executor_pb2.PeerAddress | None:
        """Who is warm: the successor of a hand-over that was coming anyway, or the standby."""
        hand_over, standby = hand_over_of(deployment, index), standby_of(deployment, index)
        warm = [hand_over.to] if hand_over is not None else []
        warm += [standby.node] if standby is not None and standby.ready else []
        for node in warm:
            place = (deployment.name, index, node.name)
            if self._holdings.serves(place, now_s) and not self._holdings.is_suspect(node.name, now_s):
                return self._crew.address(node.name) or node
        return None

    async def _load_spare(self, request: scheduler_pb2.ReplaceStageRequest) -> Answers:
        name, index = request.deployment, request.stage_index
        if self._sky.just_back(request.node):
            # Windows open for many at once: whoever is back first must not be given what the others still hold.
            raise _no_spare(request, f"its contact has just begun: {request.node} may answer any moment")
        failures: list[str] = []
        tried = {request.node}
        while len(tried) <= SPARES_TRIED_MAX:
            held = self._book.get(name)
            ranked = self._crew.spares_for(held, index, time.monotonic(), tried)
            address = self._crew.address(ranked[0].node) if ranked else None
            if address is None:
                break
            tried.add(address.name)
            self._log.info("loading_spare", deployment=name, stage=index, node=address.name, instead_of=request.node)
            try:
                async for progress in self._load(name, index, address):
                    yield scheduler_pb2.ReplaceStageResponse(deployment=held[0], progress=[progress])
            except MeshError as error:
                failures.append(error.message)
                self._log.warning("spare_failed", deployment=name, stage=index, node=address.name, detail=error.message)
                continue
            yield scheduler_pb2.ReplaceStageResponse(deployment=await self._swap(request, address))
            return
        absence = self._sky.absence(request.node)
        said = f"; tried: {'; '.join(failures)}" if failures else ""
        said += f"; {request.node} is {absence}" if absence else ""
        raise _no_spare(
            request,
            f"none that is up has the memory and the links{said}; add a node, or wait until {request.node} comes back",
        )

    async def _load(
        self, name: str, index: int, address: executor_pb2.PeerAddress
    ) -> AsyncIterator[scheduler_pb2.StageProgress]:
        deployment, made_by = self._book.get(name)
        latest: asyncio.Queue[executor_pb2.LoadStageResponse | None] = asyncio.Queue(maxsize=1)

        def tell(answer: executor_pb2.LoadStageResponse | None) -> None:
            while not latest.empty():  # only the newest is worth sending
                latest.get_nowait()
            latest.put_nowait(answer)

        loading = asyncio.create_task(self._executors.load(deployment, made_by, index, address, tell))
        loading.add_done_callback(lambda _: tell(None))
        try:
            while (answer := await latest.get()) is not None:
                yield stage_progress(index, address.name, answer)
            await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _swap(
        self, request: scheduler_pb2.ReplaceStageRequest, node: executor_pb2.PeerAddress
    ) -> scheduler_pb2.Deployment:
        index = request.stage_index
        stage = self._holdings.reported((request.deployment, index, node.name))

        def mutate(deployment: scheduler_pb2.Deployment) -> bool:
            put_in_place(deployment, index, node, stage)
            return True

        changed = await self._book.change(request.deployment, mutate)
        self._log.info(
            "stage_replaced", deployment=request.deployment, stage=index, node=node.name,
            instead_of=request.node, hand_over=request.hand_over, why=request.why[:200],
        )  # fmt: skip
        return changed if changed is not None else self._book.get(request.deployment)[0]


def stage_progress(index: int, node: str, answer: executor_pb2.LoadStageResponse) -> scheduler_pb2.StageProgress:
    """How far one stage is."""
    return scheduler_pb2.StageProgress(
        stage_index=index, node=node, phase=answer.phase, done_bytes=answer.done_bytes, total_bytes=answer.total_bytes
    )


def _no_spare(request: scheduler_pb2.ReplaceStageRequest, why: str) -> NodeLostError:
    return NodeLostError(
        f"no node can take stage {request.stage_index} of {request.deployment!r} from {request.node}: {why}",
        reason="NO_SPARE_NODE",
        metadata={"deployment": request.deployment, "stage_index": request.stage_index, "node": request.node},
    )
