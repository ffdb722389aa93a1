"""One node of a run, as the aggregator reaches it: orders out, weights out, contributions in.

An order may be given any number of times: after a cut, and after a restart of either end, it is given again and says
how far the contribution is here, and the node answers how far the weights are there. Nothing of a contribution is held
in memory but the span that just came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from orbitmesh.errors import InvalidInputError, MeshError, SealError
from orbitmesh.limits import FRAME_BODY_BYTES
from orbitmesh.v1 import aggregator_pb2, training_pb2, wire_pb2
from orbitmesh.wire.records import Received
from orbitmesh.wire.session import Session
from services.aggregator.groups import examples_of, is_outdated
from services.aggregator.orders import Assignment, Events
from services.aggregator.progress import Progress
from services.aggregator.report import Timing
from services.aggregator.rounds import Stored
from services.aggregator.spool import Incoming, Spool
from services.aggregator.weights import SentWeights
from services.runtime.logs import EventLog
from services.runtime.roomy import send_when_room
from services.updates.spans import SPAN_VALUES

PAUSE_MIN_S = 0.05
"""The first pause before a node that could not be reached is dialled again."""
PAUSE_MAX_S = 2.0
"""The longest."""
SETTLED_S = 5.0
"""A session that lasted so long did not fail at once."""
SPANS_UNDER_WAY = 2 * FRAME_BODY_BYTES // (4 * SPAN_VALUES)
"""How many spans of weights are sent before it is waited for that the node has them."""
LOOK_S = 0.5
"""How often it is looked whether a node out of contact is expected earlier than was thought, in seconds."""
DIGEST_TRIES = 3
"""How often a contribution whose digest is wrong is asked for anew."""
INLINE_BYTES = 64 << 10
"""Spans up to here are written without the detour through a thread."""

_AWAY = aggregator_pb2.RUN_NODE_STATE_AWAY
_IDLE = aggregator_pb2.RUN_NODE_STATE_IDLE
_RECEIVING = aggregator_pb2.RUN_NODE_STATE_RECEIVING
_TRAINING = aggregator_pb2.RUN_NODE_STATE_TRAINING
_SENDING = aggregator_pb2.RUN_NODE_STATE_SENDING
_STORED = aggregator_pb2.RUN_NODE_STATE_STORED
_CONTRIBUTING = (training_pb2.TRAINING_KIND_INITIALISE, training_pb2.TRAINING_KIND_TRAIN)


class NodeLink:
    """The way to one node in one run.

    Args:
        run: What the run is called on the wire.
        node: The node's name.
        dial: Opens a session with it.
        away_s: Seconds until it can be reached as planned; 0 where nothing speaks against it.
        events: Who is told.
        log: Where to say what happened.
        slice_name: The run's slice, which all that is sent goes in; empty for none.
    """

    def __init__(
        self,
        run: str,
        node: str,
        dial: Callable[[], Awaitable[Session]],
        away_s: Callable[[], float],
        events: Events,
        log: EventLog,
        slice_name: str = "",
    ) -> None:
        self.node = node
        self.state: aggregator_pb2.RunNodeState = _AWAY
        self.step = self.steps = 0
        self.up_bytes = self.down_bytes = 0
        self.progress = Progress(partial(events.moved, node))
        self._ordered_ns = self._weights_ns = self._announced_ns = 0
        self._run = run
        self._slice = slice_name
        self._dial = dial
        self._away_s = away_s
        self._events = events
        self._log = log
        self._assignment: Assignment | None = None
        self._incoming: Incoming | None = None
        self._header: training_pb2.ContributionInfo | None = None
        self._tries = 0
        self._session: Session | None = None
        self._ordered = asyncio.Event()
        self._lock = asyncio.Lock()
        self._weights: asyncio.Task[None] | None = None

    @property
    def attached(self) -> bool:
        """Whether the node is reached now."""
        return self._session is not None and self._session.attached

    @property
    def assignment(self) -> Assignment | None:
        """What it is to do now."""
        return self._assignment

    def timing(self, train_s: float) -> Timing:
        """Where the time of the contribution went that is durable now."""
        now = time.time_ns()
        announced = self._announced_ns or now
        weights = min(self._weights_ns or announced, announced)
        return Timing(min(self._ordered_ns or weights, weights), weights, announced, now, train_s)

    def assign(self, assignment: Assignment | None) -> None:
        """Gives the node something else to do; None lets it rest."""
        if assignment is self._assignment:
            return
        self._assignment = assignment
        self._tries = 0
        self._ordered_ns = time.time_ns()
        self._weights_ns = self._announced_ns = 0
        self.progress.begin()
        self._ordered.set()

    def amend(self, assignment: Assignment) -> None:
        """Gives the node the same order with other particulars, for which it may have to send other spans."""
        self._assignment = assignment
        self.progress.begin()
        self._ordered.set()

    async def acknowledge(self, round_index: int) -> None:
        """Tells the node that its contribution is durable, which came in the sum of another."""
        if await self.tell(training_pb2.TrainingInfo(round=round_index, stored=training_pb2.ContributionStored())):
            self.state = _STORED

    async def tell(self, info: training_pb2.TrainingInfo, body: bytes = b"") -> bool:
        """Sends a message beside the assignment; False where the node is not reached: it is to be told when it is."""
        session = self._session
        if session is None:
            return False
        info.run = self._run
        try:
            report = await send_when_room(session, wire_pb2.TransferInfo(training=info, slice=self._slice), body)
        except MeshError:
            return False
        self.down_bytes += report.wire_bytes
        return True

    async def run(self) -> None:
        """Reaches the node, again and again, as long as this runs."""
        pause_s = PAUSE_MIN_S
        while True:
            while (away_s := self._away_s()) > 0:
                pause_s = PAUSE_MIN_S
                await asyncio.sleep(min(away_s, LOOK_S))
            try:
                session = await self._dial()
            except MeshError as error:
                if pause_s == PAUSE_MIN_S:
                    self._log.info("node_not_reached", node=self.node, detail=error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_MAX_S, pause_s * 2)
                continue
            began_s = time.monotonic()
            try:
                await self._serve(session)
                self._log.info("node_ended_session", node=self.node)
            except MeshError as error:
                self._log.info("node_lost", node=self.node, detail=error.message)
            # A node that fails whenever it is reached is not dialled in a tight loop.
            settled = time.monotonic() - began_s > SETTLED_S
            pause_s = PAUSE_MIN_S if settled else min(PAUSE_MAX_S, pause_s * 2)
            await asyncio.sleep(pause_s)

    async def _serve(self, session: Session) -> None:
        self._session = session
        self.state = _IDLE
        orders = asyncio.create_task(self._give_orders(session), name=f"orders to {self.node}")
        try:
            self._ordered.set()
            self._events.connected(self.node)
            self.progress.connected()
            # Whether the node is there is asked also while it trains and nothing moves.
            with session.watched():
                async for received in session:
                    self.up_bytes += received.wire_bytes
                    async with self._lock:
                        await self._take(received, session)
        finally:
            self._session = None
            self.state = _AWAY
            tasks = [task for task in (orders, self._weights) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._close_incoming()
            # A node that is told that it is over keeps no session; one that is away hears of it when it is asked again.
            await session.close() if session.attached else session.end()

    async def _give_orders(self, session: Session) -> None:
        with suppress(MeshError):  # whoever reads hears of it
            while True:
                await self._ordered.wait()
                self._ordered.clear()
                async with self._lock:
                    await self._order(session)

    async def _order(self, session: Session) -> None:
        """Gives the order of the assignment, as far as it is done."""
        if self._weights is not None:
            self._weights.cancel()
        self._close_incoming()
        assignment = self._assignment
        if assignment is None:
            self.state = _IDLE
            return
        work = training_pb2.TrainingWork()
        work.CopyFrom(assignment.work)
        if assignment.kind in _CONTRIBUTING and assignment.spool is not None:
            incoming = await self._open(assignment.spool, assignment)
            if incoming.stored is not None:
                # It was durable before we were started anew, and the round does not know yet.
                incoming.close()
                await self._arrived(session, assignment, incoming.stored, training_pb2.ContributionInfo())
                return
            self._incoming = incoming
            work.held_spans = incoming.spans
        self.step = self.steps = 0
        info = training_pb2.TrainingInfo(run=self._run, round=assignment.round_index)
        info.order.kind = assignment.kind
        self.state = _RECEIVING if assignment.weights is not None else _TRAINING
        await self._send(session, info, work.SerializeToString())

    async def _open(self, spool: Spool, assignment: Assignment) -> Incoming:
        round_index, others = assignment.round_index, assignment.work.collect
        try:
            return await asyncio.to_thread(spool.open, round_index, self.node, others)
        except SealError as error:
            self._log.warning("contribution_dropped", node=self.node, round=round_index, detail=error.message)
            await asyncio.to_thread(spool.drop, round_index, self.node)
            return await asyncio.to_thread(spool.open, round_index, self.node, others)

    async def _take(self, received: Received, session: Session) -> None:
        info = received.info.training
        assignment, what = self._assignment, info.WhichOneof("what")
        if not received.info.HasField("training") or info.run != self._run:
            return
        if what in ("sums", "evaluated", "joined"):
            self.progress.heard()
        if what == "sums":
            await self._events.sums(self.node, info.round, info.sums.kind, bytes(received.data))
        elif what == "evaluated":
            await self._events.evaluated(self.node, info.evaluated)
        elif assignment is None or info.round != assignment.round_index:
            if what == "contribution" and self._events.counts(self.node, info.round):
                # It came in the sum of a head, and the node could not be told.
                await self._say_stored(session, info.round)
            elif what == "contribution":
                late = f"{self.node} contributes to round {info.round}, which is over"
                await self._refuse(session, info.round, InvalidInputError(late, reason="STALE_ROUND"))
        else:
            await self._take_answer(session, assignment, info, received.data)

    async def _take_answer(
        self, session: Session, assignment: Assignment, info: training_pb2.TrainingInfo, data: memoryview
    ) -> None:
        """Takes what answers the order of the assignment."""
        what = info.WhichOneof("what")
        if what == "joined":
            if assignment.kind != training_pb2.TRAINING_KIND_JOIN:
                return  # it was asked twice, across a cancel for instance: what it does by now goes on
            self.state = _IDLE
            self._events.joined(self.node, info.joined)
        elif what == "have":
            self._have(session, assignment, info.have)
        elif what == "progress":
            self.state = _TRAINING
            self.step, self.steps = info.progress.step, info.progress.steps
            self.progress.works(info.progress.step)
        elif what == "collected":
            self._events.collected(self.node, info.collected.nodes)
        elif what == "refused":
            await self._events.refused(self.node, assignment, info.refused)
        elif what in ("contribution", "update"):
            await self._contribution(session, assignment, info, data)

    def _have(self, session: Session, assignment: Assignment, held: training_pb2.WeightsHeld) -> None:
        weights = assignment.weights
        if weights is None or held.sha256 != weights.sha256:
            return
        if self._weights is not None:
            self._weights.cancel()
        self.progress.reached(weights=held.spans)
        if held.spans >= weights.spans:
            self._weights_ns = self._weights_ns or time.time_ns()
            self.state = _TRAINING
            return
        self._weights = asyncio.create_task(
            self._send_weights(session, assignment, weights, held.spans), name=f"weights to {self.node}"
        )

    async def _send_weights(self, session: Session, assignment: Assignment, weights: SentWeights, first: int) -> None:
        with suppress(MeshError):  # whoever reads hears of it
            for index in range(first, weights.spans):
                data = weights.span(index)
                span = training_pb2.SpanInfo(index=index)
                info = training_pb2.TrainingInfo(run=self._run, round=assignment.round_index, weights=span)
                await self._send(session, info, data)
                self.progress.reached(weights=index + 1)
                if index % SPANS_UNDER_WAY == SPANS_UNDER_WAY - 1:
                    # Whatever is under way to all nodes is in memory here: no more than two frames each.
                    await session.flush()
            self._weights_ns = time.time_ns()
            self.state = _TRAINING

    async def _contribution(
        self, session: Session, assignment: Assignment, info: training_pb2.TrainingInfo, data: memoryview
    ) -> None:
        incoming = self._incoming
        if incoming is None:
            return  # refused, or durable already
        try:
            if info.HasField("contribution"):
                if is_outdated(assignment.work, self.node, info.contribution):
                    return  # what is asked for now follows
                await self._events.announced(self.node, assignment, info.contribution)
                self._header = info.contribution
                self._announced_ns = self._announced_ns or time.time_ns()
                self.state = _SENDING
            elif self._header is not None:
                if assignment.check is not None:
                    assignment.check(info.update.index, data)
                if len(data) <= INLINE_BYTES:
                    incoming.add(info.update.index, data)
                else:
                    await asyncio.to_thread(incoming.add, info.update.index, data)
                self.progress.reached(spans=incoming.spans)
            header = self._header
            if header is None or incoming.spans < header.spans:
                return
            said = header.spans, header.sha256.hex(), header.examples, examples_of(header)
            stored = await asyncio.to_thread(incoming.finish, *said)
        except MeshError as error:
            await self._not_taken(session, assignment, error)
            return
        self._close_incoming()
        await self._arrived(session, assignment, stored, header)

    async def _arrived(
        self, session: Session, assignment: Assignment, stored: Stored, header: training_pb2.ContributionInfo
    ) -> None:
        try:
            await self._events.arrived(self.node, assignment, stored, header)
        except InvalidInputError as error:
            if error.reason == "CONTRIBUTION_REPLAYED" and assignment.spool is not None:
                # It is in a sum by another way, or one of those in this sum is: it must not count after a restart.
                await asyncio.to_thread(assignment.spool.drop, assignment.round_index, self.node)
                if self._events.counts(self.node, assignment.round_index):
                    await self._say_stored(session, assignment.round_index)
                    return
                if stored.others:
                    # Its head is welcome with another sum: an order without that node is on its way.
                    self._log.warning("sum_not_taken", node=self.node, reason=error.reason, detail=error.message)
                    self._ordered.set()
                    return
            await self._refuse(session, assignment.round_index, error)
            return
        await self._say_stored(session, assignment.round_index)

    async def _say_stored(self, session: Session, round_index: int) -> None:
        self.state = _STORED
        stored = training_pb2.ContributionStored()
        await self._send(session, training_pb2.TrainingInfo(run=self._run, round=round_index, stored=stored))

    async def _not_taken(self, session: Session, assignment: Assignment, error: MeshError) -> None:
        """What came cannot be used: it is asked for anew where it may have been damaged, and refused else."""
        self._close_incoming()
        if assignment.spool is not None:
            await asyncio.to_thread(assignment.spool.drop, assignment.round_index, self.node)
        self._tries += 1
        self._log.warning("contribution_refused", node=self.node, reason=error.reason, detail=error.message)
        if error.reason == "DIGEST_MISMATCH" and self._tries < DIGEST_TRIES:
            self._ordered.set()
            return
        await self._refuse(session, assignment.round_index, error)
        refusal = training_pb2.TrainingRefusal(reason=error.reason, message=error.message)
        await self._events.refused(self.node, assignment, refusal)

    async def _refuse(self, session: Session, round_index: int, error: MeshError) -> None:
        refusal = training_pb2.TrainingRefusal(reason=error.reason, message=error.message, metadata=error.metadata)
        await self._send(session, training_pb2.TrainingInfo(run=self._run, round=round_index, refused=refusal))

    async def _send(self, session: Session, info: training_pb2.TrainingInfo, body: bytes = b"") -> None:
        report = await send_when_room(session, wire_pb2.TransferInfo(training=info, slice=self._slice), body)
        self.down_bytes += report.wire_bytes

    def _close_incoming(self) -> None:
        self._header = None
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None
