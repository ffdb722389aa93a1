"""Leads one run from its first weights to its last round, through whatever restarts.

What has to outlive the process is in the store and the spool; everything here follows from that. A contribution is
acknowledged when its file is durable, and found there again after a restart; a round's sum counts when the store says
so, and only then are the round's contributions removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from orbitmesh.errors import InvalidInputError, MeshError, SealError
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import aggregator_pb2, training_pb2
from orbitmesh.wire.session import Session
from services.aggregator.accounting import Accounting, none_promised
from services.aggregator.combining import Combining, PlainCombining
from services.aggregator.crew import Crew
from services.aggregator.link import Assignment, NodeLink
from services.aggregator.members import Members
from services.aggregator.notice import Notice
from services.aggregator.plain import OutlierError
from services.aggregator.report import ENDED, STATES, RoundReport, report_from, round_message
from services.aggregator.rounds import (
    Arrived,
    Contact,
    GivenUp,
    Phase,
    Progress,
    Rejected,
    Round,
    Stored,
    Summed,
    advance,
)
from services.aggregator.secure import SecureCombining
from services.aggregator.spec import RunSpec
from services.aggregator.spool import Spool
from services.aggregator.store import RunNotes, RunRecord, RunStore
from services.aggregator.strategies.base import Need
from services.aggregator.weights import SentWeights, named
from services.runtime.logs import EventLog

TICK_S = 1.0
"""How often contact is counted."""
EVALUATION_S = 120.0
"""Seconds that the last measuring may take before the run ends without it."""
JOIN = training_pb2.TRAINING_KIND_JOIN
INITIALISE = training_pb2.TRAINING_KIND_INITIALISE
TRAIN = training_pb2.TRAINING_KIND_TRAIN
EVALUATE = training_pb2.TRAINING_KIND_EVALUATE
END = training_pb2.TRAINING_KIND_END

LEDGER = "ledger"
"""Where the ledger of privacy is written down."""

Dial = Callable[[str], Awaitable[Session]]
"""Opens a session with the node of that name."""
Spools = Callable[[str], Spool]
"""The spool of a run that has that name."""


class RunDriver:
    """One run.

    Args:
        record: The run as it is written down.
        spec: What was asked.
        store: Where it is written down.
        spools: Where its contributions go.
        members: Who is reached where.
        dial: Opens sessions.
        identities: Who we are.
        log: Where to say what happened.
    """

    def __init__(
        self,
        record: RunRecord,
        spec: RunSpec,
        store: RunStore,
        spools: Spools,
        members: Members,
        dial: Dial,
        identities: IdentitySource,
        log: EventLog,
    ) -> None:
        self.name = record.name
        self.spec = spec
        self.changed = Notice()
        self.weights: SentWeights | None = None
        self._record = record
        self._state, self._why = record.state, record.why
        self._store = store
        self._spool, self._first = spools("contributions"), spools("initial")
        self._members = members
        self._log = log
        self._strategy = spec.strategy()
        self._accounting: Accounting | None = None
        wire_name = f"{record.name}.{hashlib.sha256(record.request_id.encode()).hexdigest()[:8]}"
        links = {node: NodeLink(wire_name, node, _dialling(dial, node), self, log) for node in spec.nodes}
        self._crew = Crew(links, members)
        self._combining: Combining = PlainCombining(spec, self._spool)
        if spec.secure:
            self._combining = SecureCombining(
                spec, wire_name, self._spool, links, RunNotes(store, record.name), identities, self._examples,
                self._revealed, lambda why: self.say("running", why), log,
            )  # fmt: skip
        self._round: Round | None = None
        self._rounds: dict[int, tuple[Round, RoundReport]] = {}
        self._losses: dict[str, tuple[float, int]] = {}
        self._moved: set[str] = set()
        self._news = asyncio.Event()
        self._measuring: tuple[bytes, int] | None = None

    # What others ask.

    @property
    def request_id(self) -> str:
        """The request that began it."""
        return self._record.request_id

    def ledger_message(self) -> aggregator_pb2.GetLedgerResponse:
        """What the promise of privacy has cost.

        Raises:
            InvalidInputError: Nothing was promised.
        """
        if self._accounting is None:
            raise none_promised(self.name)
        return self._accounting.message()

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self._state in ENDED

    def message(self, from_round: int = 0) -> aggregator_pb2.Run:
        """The run as others see it, with its rounds from one on."""
        done = [report for state, report in self._rounds.values() if state.done]
        message = aggregator_pb2.Run(
            name=self.name,
            spec=self.spec.message,
            state=STATES[self._state],
            why=self._why,
            rounds_done=len(done),
            values=0 if self.weights is None else self.weights.values.size,
            nodes=self._crew.messages(self._given_up),
            rounds=[round_message(*self._rounds[index]) for index in sorted(self._rounds) if index >= from_round],
            epsilon=max((report.epsilon for report in done), default=0.0),
        )
        message.began_at.FromNanoseconds(self._record.began_ns)
        return message

    def _given_up(self, node: str) -> str:
        return "" if self._round is None or self._round.done else self._round.given_up.get(node, "")

    async def say(self, state: str, why: str = "") -> None:
        """Notes durably how the run is."""
        if (state, why) != (self._state, self._why):
            self._state, self._why = state, why
            await asyncio.to_thread(self._store.set_state, self.name, state, why)
            self._log.info("run", run=self.name, state=state, why=why)
            self.changed.tell()

    # The run.

    async def load(self) -> None:
        """Reads what is written down."""
        for state, written in await asyncio.to_thread(self._store.rounds, self.name):
            self._rounds[state.index] = (state, report_from(written))
        weights = await asyncio.to_thread(self._store.weights, self.name)
        if weights is not None:
            self.weights = await asyncio.to_thread(named, weights)
        if self.spec.private:
            written = await RunNotes(self._store, self.name).read(LEDGER)
            self._accounting = await asyncio.to_thread(Accounting, self.spec, written)
        self._strategy = self.spec.strategy()
        if self._record.strategy:
            self._strategy.restore(await asyncio.to_thread(self._store.strategy_state, self.name))

    async def drive(self) -> None:
        """Goes on until the last round is in the weights."""
        tasks = [asyncio.create_task(link.run(), name=f"{self.name}: {link.node}") for link in self._links.values()]
        tasks.append(asyncio.create_task(self._count_contact(), name=f"{self.name}: contact"))
        try:
            for link in self._links.values():
                link.assign(self._assignment(link.node, JOIN, 0))
            if self.weights is None:
                await self._begin()
            spent = ""
            while (index := self._next_round()) < self.spec.message.rounds and not spent:
                spent = await self._lead(index)
            await self._measure_last()
            await self.say("done", spent)
            for link in self._links.values():
                await link.tell(training_pb2.TrainingInfo(order=training_pb2.TrainingOrder(kind=END)))
        except MeshError as error:
            self._log.warning("run_failed", run=self.name, reason=error.reason, detail=error.message)
            await self.say("failed", f"{error.message} ({error.reason})")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _links(self) -> dict[str, NodeLink]:
        return dict(self._crew.links)

    def _next_round(self) -> int:
        return sum(state.done for state, _ in self._rounds.values())

    async def _begin(self) -> None:
        """Waits until it is known who takes part, and gets the first weights from one of them."""
        patience = asyncio.get_running_loop().time() + self.spec.message.patience_s
        while (waiting := self._crew.undecided) and not (
            asyncio.get_running_loop().time() > patience and len(self._crew.joined) >= self.spec.quorum
        ):
            await self._check_possible()
            await self.say("paused" if self._why else "running", f"waits for {', '.join(waiting)} to join")
            await self._wait(TICK_S)
        await self._check_possible()
        if self._accounting is not None and not self.spec.message.privacy.noise_multiplier:
            noise = await asyncio.to_thread(self._accounting.noise, self._examples())
            self.spec.message.privacy.noise_multiplier = noise
            await asyncio.to_thread(self._store.put_spec, self.name, self.spec.to_json())
        self._round = None
        while self.weights is None:
            await self._wait_for_quorum(1)
            node = self._crew.evaluator()
            if node is not None:
                self._links[node].assign(self._assignment(node, INITIALISE, 0))
                await self.say("running", f"takes its first weights from {node}")
            await self._wait(TICK_S)
        for link in self._links.values():
            link.assign(None)

    async def _check_possible(self) -> None:
        """Raises where too many nodes cannot take part for a round ever to count."""
        left = len(self.spec.nodes) - len(self._crew.excluded)
        if left < self.spec.quorum:
            why = "; ".join(f"{node}: {why}" for node, why in self._crew.excluded.items())
            raise InvalidInputError(
                f"a round needs {self.spec.quorum} nodes and {left} can take part: {why}", reason="FAILED_PRECONDITION"
            )

    async def _wait_for_quorum(self, needed: int) -> None:
        while len(self._crew.eligible) < needed:
            missing = [node for node in self._links if node not in self._crew.eligible]
            await self._check_possible()
            await self.say(
                "paused", f"needs {needed} nodes and has {len(self._crew.eligible)}: waits for {', '.join(missing)}"
            )
            await self._wait(TICK_S)

    def _examples(self) -> dict[str, int]:
        """How many examples each node has that takes part."""
        return {node: joined.examples for node, joined in self._crew.joined.items()}

    async def _lead(self, index: int) -> str:
        """One round, from its first order to the new weights; why there is none, where privacy is spent."""
        began = time.monotonic()
        if self.weights is None:
            raise InvalidInputError("the run has no weights")
        if self._accounting is not None and index not in self._rounds:
            await self._wait_for_quorum(self.spec.quorum)
            spent = await asyncio.to_thread(self._accounting.exhausted, index, self._examples())
            if spent:
                return spent
        state = await self._open(index)
        report = self._rounds[index][1]
        sent = self._crew.down_bytes
        await self._combining.prepare(state, self.weights.values.size)
        for node in state.waiting:
            if not self._combining.takes(node):
                state = advance(state, GivenUp(node, index, "NOT_IN_COHORT"))
        self._put(state)
        self._give_orders()
        while True:
            await self._until_ready()
            if await self._sum(report, began, sent):
                return ""

    async def _open(self, index: int) -> Round:
        """The round as it is written down, or a new one; with every contribution that is on disk."""
        known = self._rounds.get(index)
        if known is not None:
            state = known[0]
        else:
            await self._wait_for_quorum(self.spec.quorum)
            cohort = self._crew.choose(self.spec.message.cohort, index)
            enough = self._strategy.buffer_size or 0
            quorum, patience_s = min(self.spec.quorum, len(cohort)), self.spec.message.patience_s
            state = Round(index, cohort, quorum, patience_s, enough=enough)
            await asyncio.to_thread(self._store.put_round, self.name, state)
        # In buffers the record itself says what has arrived: a contribution may have begun in an earlier round.
        if state.phase is not Phase.READY and self._strategy.needs is not Need.BUFFER:
            for node in state.waiting:
                stored = await asyncio.to_thread(self._durable, index, node)
                if stored is not None:
                    state = advance(state, Arrived(node, index, stored))
        self._losses.clear()
        self._rounds[index] = (state, RoundReport() if known is None else known[1])
        return state

    def _durable(self, index: int, node: str) -> Stored | None:
        try:
            return self._spool.stored(index, node)
        except SealError as error:
            self._log.warning("contribution_dropped", node=node, round=index, detail=error.message)
            self._spool.drop(index, node)
            return None

    def _give_orders(self) -> None:
        """Gives every node of the round that has not contributed its work, and rest to the others."""
        state = self._round
        if state is None or state.done:
            return
        for node, link in self._links.items():
            held = link.assignment
            if node not in self._crew.joined:
                continue  # it is still to join
            if node not in state.waiting:
                link.assign(None)
            elif held is None or held.kind != TRAIN or self._is_over(held, state):
                link.assign(self._assignment(node, TRAIN, state.index))

    def _is_over(self, held: Assignment, state: Round) -> bool:
        """Whether what a node was told to do is of no use any more: in buffers a late contribution still is."""
        return held.round_index != state.index and self._strategy.needs is not Need.BUFFER

    def _assignment(self, node: str, kind: training_pb2.TrainingKind, index: int) -> Assignment:
        work = training_pb2.TrainingWork(
            spec=self.spec.message, node_index=self.spec.nodes.index(node), nodes=len(self.spec.nodes)
        )
        if kind == INITIALISE:
            return Assignment(kind, index, work, spool=self._first)
        if kind == JOIN or self.weights is None:
            return Assignment(kind, index, work)
        work.weights.CopyFrom(self.weights.info())
        if kind == EVALUATE:
            return Assignment(kind, index, work, self.weights)
        work.overrides = json.dumps(self._strategy.configure(index))
        work.evaluate = self._wants_figures(index - 1) and node == self._crew.evaluator()
        if work.evaluate:
            self._measuring = (self.weights.sha256, index - 1)
        self._combining.fill(work, node)
        return Assignment(kind, index, work, self.weights, self._spool, self._combining.check(index))

    def _wants_figures(self, index: int) -> bool:
        known = self._rounds.get(index)
        return self.spec.message.evaluate and known is not None and known[0].done and not known[1].figures

    async def _until_ready(self) -> None:
        while self._round is not None and self._round.phase is not Phase.READY:
            why = self._round.why_stuck
            await self.say("paused" if why else "running", why)
            await self._wait(None)
        await self.say("running")

    async def _sum(self, report: RoundReport, began: float, sent: int) -> bool:
        """Makes a round that is ready the new weights; False where that opened it again."""
        state, weights = self._round, self.weights
        if state is None or weights is None:
            return False
        if self.spec.secure:
            # Whose contributions are in the sum must not change once anybody was asked to unmask it.
            await asyncio.to_thread(self._store.put_round, self.name, state)
        try:
            combined = await self._combining.combine(state, self._strategy)
        except OutlierError as error:
            self._log.warning("contribution_rejected", node=error.node, round=state.index, detail=error.message)
            self._round = advance(state, Rejected(error.node, state.index, error.reason))
            self._rounds[state.index] = (self._round, report)
            refusal = training_pb2.TrainingRefusal(reason=error.reason, message=error.message)
            await self._links[error.node].tell(training_pb2.TrainingInfo(round=state.index, refused=refusal))
            return False
        after = state.index + 1

        def aggregate() -> None:
            staged = self._store.stage_weights(self.name, after, weights.values.size)
            self._strategy.aggregate(weights.values, combined, out=staged)
            if not np.isfinite(staged).all():
                raise InvalidInputError("the weights left the finite numbers: lower the rates", reason="NOT_FINITE")
            staged.flush()  # type: ignore[attr-defined]

        await asyncio.to_thread(aggregate)
        done = advance(state, Summed(state.index))
        report.up_bytes = sum(stored.size_bytes for stored in state.stored.values())
        report.down_bytes = self._crew.down_bytes - sent
        report.seconds = time.monotonic() - began
        report.done_ns = time.time_ns()
        seen = [self._losses[node] for node in state.stored if node in self._losses]
        if self._accounting is not None:
            report.epsilon = await asyncio.to_thread(self._accounting.ledger.epsilon)
        report.train_loss = sum(loss * n for loss, n in seen) / sum(n for _, n in seen) if seen else None
        await asyncio.to_thread(
            self._store.finish_round,
            self.name, done, self._store.staged_path(self.name, after), self._strategy.state(), report.to_json(),
        )  # fmt: skip
        stored_weights = await asyncio.to_thread(self._store.weights, self.name)
        self.weights = None if stored_weights is None else await asyncio.to_thread(named, stored_weights)
        self._round = done
        self._rounds[state.index] = (done, report)
        self._log.info("round_done", run=self.name, round=state.index, seconds=round(report.seconds, 3))
        self.changed.tell()
        await asyncio.to_thread(self._clear, done)
        return True

    def _clear(self, done: Round) -> None:
        """Removes what is in the weights, and what will never be."""
        for node, stored in done.stored.items():
            self._spool.drop(stored.begun, node)
        held = [link.assignment for link in self._links.values()]
        at_work = [each.round_index for each in held if each is not None and each.kind == TRAIN]
        self._spool.clear(min(at_work, default=done.index + 1) if done.enough else done.index + 1)

    async def _measure_last(self) -> None:
        """Has the last weights measured, if anybody can do it in time."""
        index = self._next_round() - 1
        deadline = asyncio.get_running_loop().time() + EVALUATION_S
        self._round = None
        asked = None
        while self._wants_figures(index) and asyncio.get_running_loop().time() < deadline:
            node = self._crew.evaluator()
            if node is not None and node != asked and self.weights is not None:
                self._measuring = (self.weights.sha256, index)
                self._links[node].assign(self._assignment(node, EVALUATE, index + 1))
                asked = node
            await self._wait(TICK_S)

    async def _wait(self, timeout_s: float | None) -> None:
        """Until there is news, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    async def _count_contact(self) -> None:
        """Counts for every node that is waited for the seconds in which it could have moved and did not."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(TICK_S)
            passed, last = clock() - last, clock()
            state, moved, self._moved = self._round, self._moved, set()
            if state is None or state.done:
                continue
            for node in state.cohort:
                if node in moved:
                    state = advance(state, Progress(node))
                elif self._members.in_contact(node):
                    state = advance(state, Contact(node, passed))
                    if state.given_up.get(node) == "DEADLINE":
                        self._crew.lost(node)
            if state is not self._round:
                self._put(state)
                self._give_orders()
            self.changed.tell()

    def _put(self, state: Round) -> None:
        self._round = state
        self._rounds[state.index] = (state, self._rounds[state.index][1])
        self._news.set()

    # What links tell.

    def connected(self, node: str) -> None:
        """A node is reached."""
        self._crew.back(node)
        self._combining.connected(node)
        self.moved(node)
        self._news.set()

    def moved(self, node: str) -> None:
        """Bytes moved."""
        self._moved.add(node)

    def joined(self, node: str, joined: training_pb2.Joined) -> None:
        """A node takes part, or may not."""
        why = self._crew.join(node, joined, None if self.weights is None else self.weights.values.size)
        if why:
            self._log.warning("node_excluded", run=self.name, node=node, detail=why)
            self._crew.exclude(node, why)
        self._links[node].assign(None)
        self._give_orders()
        self._news.set()
        self.changed.tell()

    async def announced(
        self, node: str, assignment: Assignment, info: training_pb2.ContributionInfo
    ) -> None:
        """A contribution is about to come: what it gives away is accounted for before any of it is taken.

        Raises:
            InvalidInputError: It is not for this round, or not what was asked.
        """
        if assignment.kind != TRAIN:
            return
        self._combining.check_header(info)
        if self._accounting is not None and self._accounting.announced(assignment.round_index, node, info.release):
            await self._write_ledger()

    async def _revealed(self, state: Round, survivors: int, clip_steps: float) -> None:
        """A sum is about to be unmasked."""
        if self._accounting is not None and self.spec.shared_noise:
            self._accounting.revealed(state.index, survivors, clip_steps)
            await self._write_ledger()

    async def _write_ledger(self) -> None:
        if self._accounting is not None:
            await RunNotes(self._store, self.name).write(LEDGER, self._accounting.to_json())

    async def arrived(
        self, node: str, assignment: Assignment, stored: Stored, info: training_pb2.ContributionInfo
    ) -> None:
        """A contribution is durable.

        Raises:
            InvalidInputError: It does not count: its round is over, or its node is not in it.
        """
        if assignment.kind == INITIALISE:
            await self._take_first(node)
            return
        state = self._round
        if state is None or state.done:
            raise InvalidInputError(f"no round of {self.name!r} is open", reason="STALE_ROUND")
        if info.HasField("loss"):
            self._losses[node] = (info.loss, stored.examples)
        stored = replace(stored, begun=assignment.round_index)
        if self._strategy.needs is not Need.BUFFER:
            self._put(advance(state, Arrived(node, assignment.round_index, stored)))
            return
        self._strategy.weight(stored.examples, state.index - stored.begun)  # raises where it is too late
        self._put(advance(state, Arrived(node, state.index, stored)))
        # It cannot be told from its file which buffer it is in.
        await asyncio.to_thread(self._store.put_round, self.name, self._round or state)

    async def _take_first(self, node: str) -> None:
        spans = await asyncio.to_thread(lambda: list(self._first.spans(0, node)))
        values = np.frombuffer(b"".join(spans), dtype="<f4").astype(np.float32, copy=False)
        if values.size != self._crew.joined[node].values or not np.isfinite(values).all():
            raise InvalidInputError(
                f"the first weights of {node} are {values.size} values, or not finite; expected "
                f"{self._crew.joined[node].values}",
                reason="LAYOUT_MISMATCH",
            )
        await asyncio.to_thread(self._store.start_from, self.name, values)
        stored = await asyncio.to_thread(self._store.weights, self.name)
        self.weights = None if stored is None else await asyncio.to_thread(named, stored)
        await asyncio.to_thread(self._first.clear, 1)
        self._news.set()

    async def refused(self, node: str, assignment: Assignment, refusal: training_pb2.TrainingRefusal) -> None:
        """A node does not do what it was asked."""
        why = f"{refusal.message} ({refusal.reason})"
        self._log.warning("node_refused", run=self.name, node=node, reason=refusal.reason, detail=refusal.message)
        if assignment.kind in (JOIN, INITIALISE):
            self._crew.exclude(node, why)
            self._links[node].assign(None)
        elif assignment.kind == TRAIN and self._round is not None and not self._round.done:
            if node in self._round.cohort:
                self._put(advance(self._round, GivenUp(node, self._round.index, refusal.reason or "INTERNAL")))
            self._links[node].assign(None)
        self._news.set()
        self.changed.tell()

    async def evaluated(self, node: str, evaluation: training_pb2.Evaluation) -> None:
        """Weights were measured."""
        if self._measuring is None or evaluation.sha256 != self._measuring[0]:
            return
        index = self._measuring[1]
        report = self._rounds[index][1]
        report.figures = dict(evaluation.figures)
        await asyncio.to_thread(self._store.put_report, self.name, index, report.to_json())
        self._news.set()
        self.changed.tell()

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """A message of secure sums."""
        await self._combining.sums(node, round_index, kind, body)


def _dialling(dial: Dial, node: str) -> Callable[[], Awaitable[Session]]:
    return lambda: dial(node)
