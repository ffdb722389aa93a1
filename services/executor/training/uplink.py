"""Where a run's contributions go: to the aggregator, or first to the head of the node's group; and what a head does
with those that come to it.

An order says which. A head waits until it has the contribution of everybody whom its order names, and sends one sum of
all: whom to go on without is not for it to decide. A node whose head is not reached, or refuses, sends its contribution
to the aggregator itself: of two that arrive one counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import training_pb2, wire_pb2
from orbitmesh.wire.session import Session
from services.executor.training.assignment import Assignment
from services.executor.training.collecting import Collection
from services.executor.training.contribution import ContributionFile
from services.executor.training.delivering import Delivery
from services.executor.training.files import INITIALISE, TRAIN, RunFiles
from services.executor.training.outbox import Outbox
from services.executor.training.refusals import typed
from services.executor.training.sending import parcels
from services.executor.training.worker import Surroundings
from services.runtime.roomy import send_when_room
from services.securesum import RoundPlan

ALIVE_S = 1.0
"""How often a node says that it is there while it brings its contribution to its head, or trains and its steps say
nothing."""
_TRAIN = training_pb2.TRAINING_KIND_TRAIN
NAMES: dict[int, str] = {training_pb2.TRAINING_KIND_INITIALISE: INITIALISE, _TRAIN: TRAIN}
"""The kinds of orders that are followed with a contribution, and what its file is called."""

Report = Callable[[Assignment, training_pb2.TrainingInfo], None]


class Uplink:
    """The way of one run's contributions.

    Args:
        run: The run.
        files: Its directory.
        around: What all runs of the node share.
        outbox: What leaves for the aggregator.
        report: Says something about an order that is being followed.
        post: Has something done for a round once what came before is handled.
    """

    def __init__(
        self,
        run: str,
        files: RunFiles,
        around: Surroundings,
        outbox: Outbox,
        report: Report,
        post: Callable[[int, Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._run, self._files, self._around = run, files, around
        self._outbox, self._report, self._post = outbox, report, post
        self._order: Assignment | None = None
        self._session: Session | None = None
        self._collection: Collection | None = None
        self._lock = asyncio.Lock()
        self._delivery: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._target = ""

    async def follow(self, order: Assignment, session: Session) -> None:
        """Takes note of an order, the same again with other particulars, or another one, and where it was given."""
        self._order, self._session = order, session
        if order.work.deliver_to.name != self._target:
            self._end_delivery()
        if order.kind != _TRAIN or not order.work.collect:
            self._collection = None
            return
        plan = RoundPlan.from_bytes(order.work.sums.plan)
        if plan.round_index != order.round_index:
            raise InvalidInputError(
                f"the plan of a sum is for round {plan.round_index}, ordered was round {order.round_index}"
            )
        if self._collection is None or self._collection.plan != plan:
            self._collection = Collection(self._files, plan)
        await self._say_collected(order)

    async def contributed(self, order: Assignment) -> bool:
        """Sends the contribution that an order asks for on its way, if it is here."""
        if order.kind not in NAMES:
            return False
        file = await asyncio.to_thread(self._files.contribution, NAMES[order.kind], order.round_index)
        if file is None or file.facts.weights != order.sha256.hex():
            return False
        figures = order.figures or file.facts.figures
        if order.work.evaluate and not figures:
            return False  # another node was to measure the weights when it was made
        order.figures = figures
        if order.kind == _TRAIN and order.work.HasField("deliver_to"):
            self._deliver(order, file)
        elif order.kind == _TRAIN and order.work.collect:
            await self._send_sum(order, file)
        else:
            self._stream(order, file)
        return True

    def stop(self) -> None:
        """Nothing is under way any more: what was ordered is over."""
        self._order = self._session = self._collection = None
        self._end_delivery()

    async def close(self) -> None:
        """Stops, and waits for what was under way."""
        self.stop()
        if self._ending:
            await asyncio.wait(self._ending)

    # As one of a group.

    def _deliver(self, order: Assignment, file: ContributionFile) -> None:
        head = order.work.deliver_to
        if self._delivery is not None and not self._delivery.done() and self._target == head.name:
            return
        self._end_delivery()
        self._target = head.name
        self._delivery = asyncio.create_task(
            self._bring(order, file, head), name=f"contribution of {self._run} to {head.name}"
        )

    async def _bring(self, order: Assignment, file: ContributionFile, head: training_pb2.GroupHead) -> None:
        alive = asyncio.create_task(self._say_alive(order))
        try:
            tell = partial(self._files.tell, order.round_index)
            around = self._around
            delivery = Delivery(self._run, order.work.spec.slice, head, file, tell, around.reach, around.log)
            if not await delivery.bring():
                self._stream(order, file)
        except OSError as error:
            # Its file is gone or cannot be read: whoever orders again has it made again.
            self._around.log.error("contribution_not_delivered", error=error, run=self._run)
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)

    async def _say_alive(self, order: Assignment) -> None:
        while True:
            self._report(order, training_pb2.TrainingInfo(progress=order.progress or training_pb2.TrainingProgress()))
            await asyncio.sleep(ALIVE_S)

    def _end_delivery(self) -> None:
        self._target = ""
        if self._delivery is not None:
            self._delivery.cancel()
            self._ending.add(self._delivery)
            self._delivery.add_done_callback(self._ending.discard)
            self._delivery = None

    # As its head.

    async def take(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> None:
        """Takes a part of another node's contribution, and tells that node how it stands.

        Raises:
            InvalidInputError: This node was not told to collect it: from nobody (`FAILED_PRECONDITION`), in another
                round (`STALE_ROUND`), from others (`NOT_IN_COHORT`). Or as `Collection` does.
            MeshError: It cannot be written down.
        """
        node, was_whole, held = session.peer.name, False, 0
        async with self._lock:
            order, collection = self._expected(info.round, node)
            try:
                if info.HasField("contribution"):
                    was_whole = bool(await asyncio.to_thread(collection.there, [node]))
                    held = await asyncio.to_thread(collection.announce, node, info.contribution)
                    is_whole = held == info.contribution.spans
                else:
                    is_whole = await asyncio.to_thread(collection.add, node, info.update.index, data)
            except OSError as error:
                self._around.log.error("contribution_not_collected", error=error, run=self._run, node=node)
                raise typed(error, f"a contribution of {node} was written down") from error
        answer = training_pb2.TrainingInfo(run=self._run, round=info.round)
        if is_whole:
            answer.stored.SetInParent()
            if order is self._order and not was_whole:
                await self._say_collected(order)
                self._post(order.round_index, partial(self._resume, order))
        elif info.HasField("contribution"):
            answer.held.spans = held
        else:
            return
        await send_when_room(session, wire_pb2.TransferInfo(training=answer, slice=order.work.spec.slice))

    async def _resume(self, order: Assignment) -> None:
        """There is more of what an order waits for."""
        if order is self._order and not order.running:
            self._outbox.interrupt()
            await self.contributed(order)

    def _expected(self, round_index: int, node: str) -> tuple[Assignment, Collection]:
        order, collection = self._order, self._collection
        if order is None or order.kind != _TRAIN:
            raise InvalidInputError(
                f"this node has no order to collect contributions of {self._run}; its aggregator may give one",
                reason="FAILED_PRECONDITION",
            )
        if order.round_index != round_index:
            raise InvalidInputError(
                f"this node is in round {order.round_index} of {self._run}, not in round {round_index}",
                reason="STALE_ROUND",
                metadata={"round": round_index, "current": order.round_index},
            )
        if collection is None or node not in order.work.collect:
            raise InvalidInputError(
                f"this node was not told to collect the contribution of {node} to round {round_index}: send it to the "
                "aggregator",
                reason="NOT_IN_COHORT",
                metadata={"node": node},
            )
        return order, collection

    async def _say_collected(self, order: Assignment) -> None:
        collection = self._collection
        if collection is None:
            return
        there = await asyncio.to_thread(collection.there, order.work.collect)
        if self._files.contribution_path(TRAIN, order.round_index).exists():
            there.append(self._around.node)
        self._report(order, training_pb2.TrainingInfo(collected=training_pb2.Collected(nodes=there)))

    async def _send_sum(self, order: Assignment, file: ContributionFile) -> None:
        """Sends the sum, if all of it is here; else it is made when the last one comes."""
        collection, nodes = self._collection, sorted(order.work.collect)
        await self._say_collected(order)
        if collection is None or len(await asyncio.to_thread(collection.there, nodes)) < len(nodes):
            return
        async with self._lock:
            summed = await asyncio.to_thread(collection.add_up, file, nodes)
        if summed is None:
            self._around.log.warning("collected_contribution_dropped", run=self._run, round=order.round_index)
            await self._say_collected(order)
        else:
            self._stream(order, summed)

    def _stream(self, order: Assignment, file: ContributionFile) -> None:
        if self._session is not self._outbox.session:
            # The aggregator has come back and has yet to say what it asks for: unasked it would refuse this for good.
            return
        first = order.work.held_spans
        tell = partial(self._files.tell, order.round_index) if order.kind == _TRAIN else None
        self._outbox.stream(lambda: parcels(self._run, file, first, tell))
