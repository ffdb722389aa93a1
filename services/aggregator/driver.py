"""Leads one run from its first weights to its last round, through whatever restarts.

What has to outlive the process is in the store and the spool; everything here follows from that. A contribution is
acknowledged when its file is durable, and found there again after a restart; a round's sum counts when the store says
so, and only then are the round's contributions removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from orbitmesh.errors import InvalidInputError, MeshError
from orbitmesh.trust import IdentitySource
from orbitmesh.v1 import aggregator_pb2, training_pb2
from orbitmesh.wire.session import Session
from services.aggregator.accounting import Accounting, none_promised
from services.aggregator.book import RunBook
from services.aggregator.combining import Combining, PlainCombining
from services.aggregator.crew import Crew
from services.aggregator.groups import Groups
from services.aggregator.link import NodeLink
from services.aggregator.listening import Listening
from services.aggregator.members import Members
from services.aggregator.patience import TICK_S, Patience
from services.aggregator.places import Places, RunPlace
from services.aggregator.plain import OutlierError
from services.aggregator.recovered import recovered
from services.aggregator.report import RoundReport
from services.aggregator.rounds import GivenUp, Phase, Rejected, Round, advance
from services.aggregator.secure import SecureCombining
from services.aggregator.spec import RunSpec
from services.aggregator.spool import Spool
from services.aggregator.store import RunNotes, RunRecord, RunStore
from services.aggregator.tasks import EVALUATE, INITIALISE, JOIN, Tasks, end_order
from services.runtime.logs import EventLog
from services.runtime.tracing import SpanSink

EVALUATION_S = 120.0
"""Seconds that the last measuring may take before the run ends without it."""
ROUNDS_BYTES = 2 << 20
"""What the rounds of one message may take: half of the largest one."""
LEDGER = "ledger"
"""Where the ledger of privacy is written down."""
EXAMPLES = "examples"
"""Where it is written down how many examples each node has."""
MODEL = "model"
"""Where it is written down what the run's model is."""

Dial = Callable[[str], Awaitable[Session]]
"""Opens a session with the node of that name."""
Spools = Callable[[str], Spool]
"""The spool of a run that has that name."""


def wire_name(record: RunRecord) -> str:
    """What a run is called where nodes keep it: another run of the same name is another one."""
    return f"{record.name}.{hashlib.sha256(record.request_id.encode()).hexdigest()[:8]}"


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
        going_on: What all runs are called on the wire that have not ended.
        places: The places of runs in their slices.
        sinks: Where the spans of its rounds go.
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
        going_on: Callable[[], Iterable[str]],
        places: Places,
        sinks: Sequence[SpanSink],
        log: EventLog,
    ) -> None:
        run = self.wire_name = wire_name(record)
        self._place = RunPlace(places, run, spec.slice, spec.nodes, lambda: self.book.news.set())
        self.book = RunBook(record, spec, store, sinks, log, self._place.leave)
        self.spec = spec
        self.members = members
        self._log = log
        self._notes = RunNotes(store, record.name)
        self._store = store
        self._spool = spools("contributions")
        self._accounting: Accounting | None = None
        self._events = Listening(self)
        links = {
            node: NodeLink(
                run, node, partial(dial, node), partial(members.away_s, node), self._events, log, spec.slice
            )
            for node in spec.nodes
        }
        self.crew = Crew(links, members)
        self.combining: Combining = PlainCombining(spec, self._spool)
        if spec.secure:
            self.combining = SecureCombining(
                spec, run, self._spool, links, self._notes, identities, self.crew.examples,
                self._revealed, lambda why: self.book.say("running", why), log,
            )  # fmt: skip
        self.first_spool = spools("initial")
        self.groups = Groups([each.nodes for each in spec.message.secure_sums.groups], self.crew.as_head)
        self.tasks = Tasks(
            self.book, self.crew, self.combining, self._spool, self.first_spool, going_on, self.groups
        )
        self.patience = Patience(self)
        self.losses: dict[str, tuple[float, int]] = {}
        self.is_ending = False

    # What others ask.

    @property
    def name(self) -> str:
        """The run's name."""
        return self.book.name

    def message(self) -> aggregator_pb2.Run:
        """The run as others see it, without its rounds."""
        return self.book.message(self.crew.messages(self._given_up, self._has_stored))

    def page(self, from_round: int) -> aggregator_pb2.Run:
        """The run as others see it, with its rounds from one on, as many as a message takes."""
        message = self.message()
        room = ROUNDS_BYTES
        for told in self.book.rounds_from(from_round):
            room -= told.ByteSize()
            if room < 0 and message.rounds:
                message.more_rounds = True
                break
            message.rounds.append(told)
        return message

    def ledger_message(self) -> aggregator_pb2.GetLedgerResponse:
        """What the promise of privacy has cost.

        Raises:
            InvalidInputError: Nothing was promised.
        """
        if self._accounting is None:
            raise none_promised(self.name)
        return self._accounting.message()

    def _given_up(self, node: str) -> str:
        state = self.book.round
        return "" if state is None or state.done else state.given_up.get(node, "")

    def _has_stored(self, node: str) -> bool:
        state = self.book.round
        return state is not None and not state.done and node in state.stored

    # The run.

    async def load(self) -> None:
        """Reads what is written down."""
        await self.book.load()
        for index in range(self.book.next_round + 1):
            state = self.book.known(index)
            if state is not None:
                self.crew.asked(state.cohort, index)
        model = await self._notes.read(MODEL)
        if model is not None and self.book.weights is not None:
            self.crew.model = (bytes.fromhex(model["layout"]), model["values"])
        self.crew.told = dict(await self._notes.read(EXAMPLES) or {})
        if self.spec.private:
            self._accounting = await asyncio.to_thread(Accounting, self.spec, await self._notes.read(LEDGER))

    async def drive(self) -> None:
        """Goes on until the last round is in the weights."""
        links = self.crew.links.values()
        running = [asyncio.create_task(link.run(), name=f"{self.name}: {link.node}") for link in links]
        running.append(asyncio.create_task(self.patience.count(), name=f"{self.name}: contact"))
        running.append(asyncio.create_task(self._place.keep(), name=f"{self.name}: slice"))
        try:
            if self.book.next_round < self.spec.message.rounds:
                await self._place.settle(self._wait_outside)
            for link in links:
                link.assign(self.tasks.assignment(link.node, JOIN, 0))
            if self.book.weights is None:
                await self._begin()
            spent = ""
            while (index := self.book.next_round) < self.spec.message.rounds and not spent:
                spent = await self._lead(index)
            self.is_ending = True
            self.book.changed.tell()
            await self._measure_last()
            await self.book.say("done", spent)
            if not self.spec.secure and not self.spec.private:
                # Nodes keep what they must not lose (keys, the account of their noise) until the run is deleted.
                for link in links:
                    await link.tell(end_order())
        except MeshError as error:
            self._log.warning("run_failed", run=self.name, reason=error.reason, detail=error.message)
            await self.book.say("failed", error.message)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait_outside(self, why: str) -> None:
        """The run has no place in its slice."""
        await self.book.say("paused", why)
        await self.book.wait(TICK_S)

    async def _begin(self) -> None:
        """Waits until it is known who takes part, and gets the first weights from one of them."""
        clock = asyncio.get_running_loop().time
        patience = clock() + self.spec.message.patience_s
        while (waiting := self.crew.undecided) and (clock() < patience or len(self.crew.joined) < self.spec.quorum):
            self._check_possible()
            late = clock() >= patience
            await self.book.say("paused" if late else "running", f"waits for {self.crew.named(waiting)} to join")
            await self.book.wait(TICK_S)
        self.crew.settle()
        if self.crew.model is not None:
            layout, values = self.crew.model
            await self._notes.write(MODEL, {"layout": layout.hex(), "values": values})
        self._check_possible()
        if self._accounting is not None and not self.spec.message.privacy.noise_multiplier:
            noise = await asyncio.to_thread(self._accounting.noise, self.crew.examples())
            self.spec.message.privacy.noise_multiplier = noise
            await asyncio.to_thread(self._store.put_spec, self.name, self.spec.to_json())
        await self._take_first()

    async def _take_first(self) -> None:
        """Gets the first weights from one node; from another one where nothing comes for as long as patience lasts."""
        tried: set[str] = set()
        asked: NodeLink | None = None
        while self.book.weights is None:
            await self._wait_for_nodes(1)
            if asked is not None and asked.progress.still_s > self.spec.message.patience_s:
                tried.add(asked.node)
            node = self.crew.evaluator(tried)
            if node is None:
                tried.clear()  # nobody else is there: the first is asked again
            elif asked is None or node != asked.node:
                if asked is not None:
                    asked.assign(None)
                asked = self.crew.links[node]
                # Once: given again, the order would begin what is on its way anew.
                asked.assign(self.tasks.assignment(node, INITIALISE, 0))
                await self.book.say("running", f"takes its first weights from {node}")
            await self.book.wait(TICK_S)

    def _check_possible(self) -> None:
        """Raises where too many nodes cannot take part for a round ever to count."""
        left = len(self.spec.nodes) - len(self.crew.excluded)
        if left < self.spec.quorum:
            why = "; ".join(f"{node}: {why}" for node, why in self.crew.excluded.items())
            raise InvalidInputError(
                f"a round needs {self.spec.quorum} nodes and {left} can take part: {why}", reason="FAILED_PRECONDITION"
            )

    async def _wait_for_nodes(self, needed: int) -> None:
        while len(here := self.crew.eligible) < needed:
            self._check_possible()
            missing = [node for node in self.crew.links if node not in here and node not in self.crew.excluded]
            await self.book.say("paused", f"needs {needed} nodes and has {len(here)}: waits for {', '.join(missing)}")
            await self.book.wait(TICK_S)

    async def _lead(self, index: int) -> str:
        """One round, from its first order to the new weights; why there is none, where privacy is spent."""
        await self._place.settle(self._wait_outside)
        began, sent = time.monotonic(), self.crew.down_bytes
        await self._wait_for_nodes(self.spec.quorum)
        if self._accounting is not None and self.book.known(index) is None:
            spent = await asyncio.to_thread(self._accounting.exhausted, index, self.crew.examples())
            if spent:
                return spent
        state = await self._open(index)
        await self.combining.prepare(state, 0 if self.book.weights is None else self.book.weights.values.size)
        for node in state.waiting:
            if not self.combining.takes(node):
                state = advance(state, GivenUp(node, index, "NOT_IN_COHORT"))
        self.book.put(state)
        self.tasks.give_out()
        while True:
            if spent := await self._until_ready():
                return spent
            if await self._sum(began, sent):
                return ""

    async def _open(self, index: int) -> Round:
        """The round as it is written down, or a new one; with every contribution that is on disk."""
        self.losses.clear()
        state = self.book.known(index)
        if state is None:
            cohort = self.crew.choose(self.spec.message.cohort, index)
            quorum, patience_s = min(self.spec.quorum, len(cohort)), self.spec.message.patience_s
            await self._note_examples()
            state = Round(index, cohort, quorum, patience_s, enough=self.book.strategy.buffer_size or 0)
            await self.book.open(state)
        # In buffers the record itself says what has arrived: a contribution may have begun in an earlier round.
        if state.phase is not Phase.READY and not self.book.takes_late:
            state = await asyncio.to_thread(recovered, state, self._spool, self._log)
        return state

    async def _note_examples(self) -> None:
        """Those of a node may come in the sum of another before the node is back itself."""
        told = {**self.crew.told, **self.crew.examples()}
        if self.groups and told != self.crew.told:
            self.crew.told = told
            await self._notes.write(EXAMPLES, told)

    async def _until_ready(self) -> str:
        """Waits until the round can be summed; why it never will, where nodes have spent their promise of privacy."""
        while (state := self.book.round) is not None and state.phase is not Phase.READY:
            spent = [node for node, reason in state.given_up.items() if reason == "PRIVACY_SPENT"]
            if len(state.cohort) - len(spent) < state.quorum:
                # Nodes count the noise that was promised, we the noise that was there: theirs may be spent first.
                return f"the promise of privacy is spent at {', '.join(spent)}"
            why = state.why_stuck
            await self.book.say("paused" if why else "running", why)
            await self.book.wait(None)
        await self.book.say("running")
        return ""

    async def _sum(self, began: float, sent: int) -> bool:
        """Makes a round that is ready the new weights; False where that opened it again."""
        state = self.book.round
        if state is None:
            return False
        if self.spec.secure:
            # Whose contributions are in the sum must not change once anybody was asked to unmask it.
            await self.book.write(state)
        try:
            staged = await self.book.stage()
            combined = await self.combining.combine(state, self.book.strategy, staged)
        except OutlierError as error:
            self._log.warning("contribution_rejected", node=error.node, round=state.index, detail=error.message)
            self.book.put(advance(state, Rejected(error.node, state.index, error.reason)))
            refusal = training_pb2.TrainingRefusal(reason=error.reason, message=error.message)
            await self.crew.links[error.node].tell(training_pb2.TrainingInfo(round=state.index, refused=refusal))
            return False
        epsilon = 0.0
        if self._accounting is not None:
            epsilon = await asyncio.to_thread(self._accounting.ledger.epsilon)

        def note(report: RoundReport) -> None:
            report.epsilon = epsilon
            report.seconds = time.monotonic() - began
            report.down_bytes = self.crew.down_bytes - sent
            seen = [self.losses[node] for node in state.stored if node in self.losses]
            report.train_loss = sum(loss * n for loss, n in seen) / sum(n for _, n in seen) if seen else None

        done = await self.book.finish(combined, staged, note)
        await asyncio.to_thread(self._clear, done)
        return True

    def _clear(self, done: Round) -> None:
        """Removes what is in the weights, and what will never be."""
        for node, stored in done.stored.items():
            self._spool.drop(stored.begun, node)
        self._spool.clear(self.tasks.oldest_at_work(done.index + 1) if done.enough else done.index + 1)

    async def _measure_last(self) -> None:
        """Has the last weights measured, if anybody can do it in time."""
        clock = asyncio.get_running_loop().time
        index, deadline, asked = self.book.next_round - 1, clock() + EVALUATION_S, ""
        while self.book.wants_figures(index) and clock() < deadline:
            node = self.crew.evaluator()
            if node is not None and node != asked:
                self.crew.links[node].assign(self.tasks.assignment(node, EVALUATE, index + 1))
                asked = node
            await self.book.wait(TICK_S)

    # Privacy.

    async def announced(self, node: str, round_index: int, info: training_pb2.ContributionInfo) -> None:
        """A contribution is about to come: what it gives away is accounted for before any of it is taken.

        Raises:
            InvalidInputError: It is not for this round, or not what was asked.
        """
        self.combining.check_header(info)
        if self._accounting is None:
            return
        news = self._accounting.announced(round_index, node, info.release)
        for part in info.summed:
            news |= self._accounting.announced(round_index, part.node, part.release)
        if news:
            await self._notes.write(LEDGER, self._accounting.to_json())

    async def _revealed(self, state: Round, survivors: int, clip_steps: float) -> None:
        """A sum is about to be unmasked."""
        if self._accounting is not None and self.spec.shared_noise:
            self._accounting.revealed(state.index, survivors, clip_steps)
            await self._notes.write(LEDGER, self._accounting.to_json())
