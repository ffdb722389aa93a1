"""One run at a node: what comes in is handled in order, one message after the other.

An order becomes the run's assignment: what is lacking of the weights is asked for, its job is put on the training
thread, and the outbox sends what came of it. Another order stops what is under way for the one before; the same order
again finds out how far it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from orbitmesh.errors import InvalidInputError, MeshError, PermissionError_
from orbitmesh.v1 import training_pb2
from orbitmesh.wire.session import Session
from services.executor.training.assignment import Assignment
from services.executor.training.files import INITIALISE, TRAIN, Joined, RunFiles
from services.executor.training.outbox import Outbox
from services.executor.training.refusals import not_joined, refusal, typed
from services.executor.training.secrets import RunSecrets
from services.executor.training.sums import SumsDesk
from services.executor.training.terms import check_group, has_secrets, same_terms
from services.executor.training.uplink import ALIVE_S, NAMES, Uplink
from services.executor.training.work import check_terms, check_weights, parse_work
from services.executor.training.worker import Surroundings, Worker

MAILBOX_MAX = 32
"""Messages of a run that wait for those before them at most; the session that brings more has to wait."""
FAREWELL_S = 60.0
"""How long the last answers of a run that is over may take to leave."""
WEIGHTS_TRIES = 3
"""How often weights are asked for whose bytes are not what their digest says."""

_JOIN = training_pb2.TRAINING_KIND_JOIN
_INITIALISE = training_pb2.TRAINING_KIND_INITIALISE
_TRAIN = training_pb2.TRAINING_KIND_TRAIN
_EVALUATE = training_pb2.TRAINING_KIND_EVALUATE
_END = training_pb2.TRAINING_KIND_END

Event = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class _Message:
    info: training_pb2.TrainingInfo
    data: memoryview
    session: Session


class NodeRun:
    """A run, its mailbox and what it works on.

    Args:
        name: The run.
        files: Its directory.
        joined: How the node takes part; None where it does not yet.
        around: What all runs of the node share.
        over: Told when nothing is left of the run here.
    """

    def __init__(
        self,
        name: str,
        files: RunFiles,
        joined: Joined | None,
        around: Surroundings,
        over: Callable[[NodeRun], None],
    ) -> None:
        self.name = name
        self._files = files
        self._around = around
        self._log = around.log
        self._over = over
        self._outbox = Outbox(name, around.log)
        self._joined: Joined | None = None
        self._take_part(joined)
        self.uplink = Uplink(name, files, around, self._outbox, self._report, self._post)
        """Where contributions go, and where those of others of the node's group come."""
        self._mail: asyncio.Queue[_Message | Event] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAILBOX_MAX)
        self._assignment: Assignment | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._worker = Worker(name, files, around)
        self._reader = asyncio.create_task(self._read(), name=f"run {name}")

    @property
    def aggregator(self) -> str | None:
        """Who may order, by SPIFFE name; None before the run was joined."""
        return self._joined.aggregator if self._joined is not None else None

    async def put(self, info: training_pb2.TrainingInfo, data: memoryview, session: Session) -> None:
        """Takes a message of an aggregator; waits while too many are before it."""
        if self.aggregator in (None, session.peer.spiffe):
            self._outbox.heard(session)
        await self._room.acquire()
        self._mail.put_nowait(_Message(info, data, session))

    def end(self) -> None:
        """Lets go of the run, as an order to end it does."""
        self._post(0, self._end)

    async def close(self) -> None:
        """Stops everything; what is on disk stays."""
        self._give_up()
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self.uplink.close()
        await self._outbox.close()

    async def farewell(self) -> None:
        """Lets what was said last leave."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._outbox.idle()
        except TimeoutError:
            await self._outbox.close()

    # One message after the other.

    async def _read(self) -> None:
        while True:
            mail = await self._mail.get()
            if isinstance(mail, _Message):
                self._room.release()
                await self._answered(mail.info.round, partial(self._handle, mail))
            else:
                await mail()
            if self._joined is None and self._mail.empty():
                self._over(self)  # in the same turn of the loop: nothing can come in between
                return

    def _post(self, round_index: int, act: Event) -> None:
        """Has something done once what came before is handled."""
        self._mail.put_nowait(partial(self._answered, round_index, act))

    async def _answered(self, round_index: int, act: Event) -> None:
        try:
            await act()
        except MeshError as error:
            self._refuse(round_index, error)
        except OSError as error:
            self._log.error("training_failed", error=error, run=self.name)
            self._refuse(round_index, typed(error, f"a message of {self.name} was handled"))

    async def _handle(self, mail: _Message) -> None:
        info, sender = mail.info, mail.session.peer.spiffe
        if self.aggregator not in (None, sender):
            raise PermissionError_(
                f"{sender} may not order in the run {self.name}, which was joined for {self.aggregator}",
                reason="NOT_YOURSELF",
            )
        match info.WhichOneof("what"):
            case "order":
                await self._order(info.order.kind, info.round, mail)
            case "weights":
                await self._span(info.weights.index, mail.data)
            case "stored":
                await self._stored(info.round)
            case "refused":
                await self._turned_down(info.round, info.refused)
            case "sums":
                await self._sums(info.sums.kind, info.round, bytes(mail.data))
            case what:
                raise InvalidInputError(f"a node was told {what!r}, which it does not take from an aggregator")

    # Orders.

    async def _order(self, kind: int, round_index: int, mail: _Message) -> None:
        if kind == _END:
            await self._end()
            return
        work = parse_work(mail.data)
        if kind == _JOIN:
            await self._join(round_index, work, mail.session.peer.spiffe)
            return
        joined = self._require(work)
        await self._open_secrets(joined)
        if kind not in (_INITIALISE, _TRAIN, _EVALUATE):
            raise InvalidInputError(f"an order of kind {kind} was given, which this version of a node does not know")
        if kind != _INITIALISE:
            check_weights(work.weights, joined.values)
        check_group(work, joined.spec, self._around.node)
        self._outbox.interrupt()
        current = self._assignment
        if current is None or not current.is_for(kind, round_index, work):
            self._give_up()
            current = self._assignment = Assignment(kind, round_index, work, self._report)
            if kind == _TRAIN:
                await asyncio.to_thread(self._files.drop_initial)
        current.work = work
        await self.uplink.follow(current, mail.session)
        await self._go_on(current, joined)

    async def _join(self, round_index: int, work: training_pb2.TrainingWork, sender: str) -> None:
        check_terms(work)
        if self._joined is not None:
            await self._open_secrets(self._require(work))
        else:
            # An order to end it may have come a moment ago, and this one before the run was let go of.
            await asyncio.to_thread(self._around.forgotten.check, self.name)
        found = await self._around.thread.run_short(lambda: self._worker.look(work))
        layout, initial = found.layout_sha256, found.initial_sha256
        joined = Joined(sender, work.SerializeToString(), found.examples, found.values, layout.hex(), initial.hex())
        if self._joined is None and has_secrets(work.spec):
            self._worker.secrets = await asyncio.to_thread(
                RunSecrets.create, self._files.secrets, self._around.identity, self.name, work.spec
            )
        await asyncio.to_thread(self._files.keep_joined, joined)
        self._take_part(joined)
        self._log.info("run_joined", run=self.name, task=work.spec.task, examples=found.examples)
        answer = training_pb2.Joined(examples=found.examples, values=found.values, layout_sha256=layout)
        self._say(round_index, joined=answer)

    def _take_part(self, joined: Joined | None) -> None:
        self._joined = joined
        if joined is not None:
            self._outbox.slice = joined.spec.slice

    def _require(self, work: training_pb2.TrainingWork) -> Joined:
        if self._joined is None:
            raise not_joined(self.name)
        if not same_terms(work, training_pb2.TrainingWork.FromString(self._joined.work)):
            raise InvalidInputError(
                f"the run {self.name} was joined on other terms (task, data, local training, compression or "
                "protection): end it, or give the new one another name",
                reason="FAILED_PRECONDITION",
            )
        return self._joined

    # Secrets, and secure sums.

    async def _open_secrets(self, joined: Joined) -> RunSecrets | None:
        """The run's secrets; None where it has none. What is lost is never made anew."""
        if self._worker.secrets is None and has_secrets(joined.spec):
            self._worker.secrets = await asyncio.to_thread(
                RunSecrets.load, self._files.secrets, self._around.identity, self.name
            )
        return self._worker.secrets

    async def _sums(self, kind: training_pb2.SumsKind, round_index: int, body: bytes) -> None:
        if self._joined is None:
            raise not_joined(self.name)
        secrets = await self._open_secrets(self._joined)
        desk = SumsDesk(secrets, self._joined.spec, self._around.identity(), self._log)
        answer = await asyncio.to_thread(desk.answer, kind, round_index, body)
        self._say(round_index, answer, sums=training_pb2.SumsInfo(kind=kind))
        if desk.unmasked is not None:
            await self._counted(desk.unmasked.plan.round_index, self._around.node in desk.unmasked.survivors)
        if desk.fault is not None:
            raise desk.fault

    async def _counted(self, round_index: int, counts: bool) -> None:
        """A sum was unmasked: this node's contribution is in it, or never will be."""
        if not self._files.contribution_path(TRAIN, round_index).exists():
            return
        if counts:
            await asyncio.to_thread(self._files.tell, round_index)
        else:
            self._rest(round_index)
            await self._withdraw(round_index)

    async def _withdraw(self, round_index: int) -> None:
        if self._joined is not None:
            work = training_pb2.TrainingWork.FromString(self._joined.work)
            await self._around.thread.run_short(lambda: self._worker.withdraw(round_index, work))

    # What an order still takes.

    async def _go_on(self, current: Assignment, joined: Joined) -> None:
        """Does the next thing that is to be done for an order."""
        if not current.running and await self.uplink.contributed(current):
            if current.work.evaluate:
                self._say(current.round_index, evaluated=current.evaluated())
            return
        if current.kind == _INITIALISE:
            if not current.running:
                self._start(current)
            return
        if current.weights is None:
            current.weights = self._files.weights(joined.values, current.sha256)
            await asyncio.to_thread(current.weights.drop_others)
        weights = current.weights
        spans = weights.spans
        if not current.running and current.sha256.hex() != joined.initial_sha256:
            spans = await asyncio.to_thread(lambda: weights.held)
        self._have(current, spans)
        if current.figures:
            self._say(current.round_index, evaluated=current.evaluated())
        if current.progress is not None:
            self._say(current.round_index, progress=current.progress)
        if spans == weights.spans and not current.running:
            self._start(current)

    async def _end(self) -> None:
        self._give_up()
        if self._jobs:
            await asyncio.wait(self._jobs)
        if self._joined is not None and has_secrets(self._joined.spec):
            await asyncio.to_thread(self._around.forgotten.add, self.name)
        self._joined, self._worker = None, Worker(self.name, self._files, self._around)
        await asyncio.to_thread(self._files.remove)
        self._log.info("run_ended", run=self.name)

    def _give_up(self) -> None:
        self.uplink.stop()
        if self._assignment is not None:
            self._assignment.stop()
        self._assignment = None

    # Weights.

    def _have(self, current: Assignment, spans: int) -> None:
        self._say(current.round_index, have=training_pb2.WeightsHeld(sha256=current.sha256, spans=spans))

    async def _span(self, index: int, data: memoryview) -> None:
        current = self._assignment
        if current is None or current.weights is None or current.running:
            return  # for an order before this one
        weights = current.weights
        if len(data) != weights.span_bytes(index):
            raise InvalidInputError(
                f"span {index} of the weights came as {len(data)} bytes, expected {weights.span_bytes(index)}"
            )
        held = await asyncio.to_thread(lambda: weights.held)
        if index != held:
            if index > held and current.gap_at != held:
                current.gap_at = held
                self._have(current, held)
            return
        if not await asyncio.to_thread(weights.take, index, data):
            return
        if await asyncio.to_thread(weights.finish):
            self._start(current)
            return
        current.tries, current.gap_at = current.tries + 1, -1
        self._log.warning("weights_damaged", run=self.name, round=current.round_index, tries=current.tries)
        if current.tries == WEIGHTS_TRIES:
            self._give_up()
            raise InvalidInputError(
                f"the weights {weights.sha256.hex()[:12]} came {WEIGHTS_TRIES} times with another SHA-256: whoever "
                "sends them reads other bytes than it named",
                reason="DIGEST_MISMATCH",
            )
        self._have(current, 0)

    # The job, and what becomes of it.

    def _start(self, current: Assignment) -> None:
        current.start(self._worker, self._around.thread)
        task = asyncio.create_task(self._job(current), name=f"round {current.round_index} of {self.name}")
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _job(self, current: Assignment) -> None:
        ended = asyncio.ensure_future(current.ended())
        while not (await asyncio.wait([ended], timeout=ALIVE_S))[0]:
            if time.monotonic() - current.told_s < ALIVE_S:
                continue
            # A step may take longer than the aggregator's patience: that the node works on it is said meanwhile.
            progress = current.progress or training_pb2.TrainingProgress()
            self._report(current, training_pb2.TrainingInfo(progress=progress))
        error = ended.result()
        self._post(current.round_index, partial(self._finished, current, error))

    async def _finished(self, current: Assignment, error: MeshError | None) -> None:
        current.noticed()
        if current is not self._assignment:
            return
        if error is not None:
            self._give_up()
            raise error
        if current.kind in NAMES and not await self.uplink.contributed(current):
            self._give_up()
            raise InvalidInputError(
                f"the contribution to round {current.round_index} was damaged as soon as it was written: look at the "
                "disk of this node",
                reason="DIGEST_MISMATCH",
            )

    def _report(self, current: Assignment, info: training_pb2.TrainingInfo) -> None:
        if current is self._assignment:
            info.run, info.round = self.name, current.round_index
            (self._outbox.progress if info.HasField("progress") else self._outbox.say)(info)

    async def _stored(self, round_index: int) -> None:
        self._rest(round_index)
        for kind in (INITIALISE, TRAIN):
            if self._files.contribution_path(kind, round_index).exists():
                await asyncio.to_thread(self._files.drop_contribution, kind, round_index)
                return

    async def _turned_down(self, round_index: int, told: training_pb2.TrainingRefusal) -> None:
        self._log.warning("contribution_refused", run=self.name, round=round_index, reason=told.reason)
        self._rest(round_index)
        await self._withdraw(round_index)

    def _rest(self, round_index: int) -> None:
        """Stops what is under way for a contribution that is no longer waited for."""
        current = self._assignment
        if current is not None and current.kind in NAMES and current.round_index == round_index:
            self._outbox.interrupt()
            self._give_up()

    def _say(self, round_index: int, data: bytes = b"", **what: Any) -> None:
        self._outbox.say(training_pb2.TrainingInfo(run=self.name, round=round_index, **what), data)

    def _refuse(self, round_index: int, error: MeshError) -> None:
        self._log.warning(
            "training_refused", run=self.name, round=round_index, reason=error.reason, detail=error.message
        )
        self._outbox.say(refusal(self.name, round_index, error))
