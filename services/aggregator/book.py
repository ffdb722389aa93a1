"""A run as it stands: state, rounds, weights, strategy. What is durable is durable when a method returns."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import numpy as np

from orbitmesh.errors import InvalidInputError
from orbitmesh.v1 import aggregator_pb2
from services.aggregator.notice import Notice
from services.aggregator.report import ENDED, STATES, RoundReport, report_from, round_message
from services.aggregator.rounds import Round, Summed, advance
from services.aggregator.spans import round_spans
from services.aggregator.spec import RunSpec
from services.aggregator.store import RunRecord, RunStore, StagedWeights
from services.aggregator.strategies.base import Each, Mean, Need
from services.aggregator.weights import SentWeights, named
from services.runtime.logs import EventLog
from services.runtime.tracing import SpanSink
from services.updates.spans import spans


class RunBook:
    """One run.

    Args:
        record: The run as it is written down.
        spec: What was asked.
        store: Where it is written down.
        sinks: Where the spans of its rounds go.
        log: Where to say what happened.
        ending: Called before it is said that the run has ended.
    """

    def __init__(
        self,
        record: RunRecord,
        spec: RunSpec,
        store: RunStore,
        sinks: Sequence[SpanSink],
        log: EventLog,
        ending: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = record.name
        self.spec = spec
        self.changed = Notice()
        self.strategy = spec.strategy()
        self.weights: SentWeights | None = None
        self.round: Round | None = None
        self.news = asyncio.Event()
        self._record = record
        self._state, self._why = record.state, record.why
        self._store = store
        self._sinks = sinks
        self._log = log
        self._ending = ending
        self._rounds: dict[int, tuple[Round, RoundReport]] = {}

    async def load(self) -> None:
        """Reads what is written down."""
        for state, written in await asyncio.to_thread(self._store.rounds, self.name):
            report = report_from(written) if state.done else _new_report()
            self._rounds[state.index] = (state, report)
        await self.read_weights()
        if self._record.strategy:
            self.strategy.restore(await asyncio.to_thread(self._store.strategy_state, self.name))

    # How it is.

    @property
    def request_id(self) -> str:
        """The request that began it."""
        return self._record.request_id

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self._state in ENDED

    @property
    def paused(self) -> bool:
        """Whether it waits for something."""
        return self._state == "paused"

    @property
    def takes_late(self) -> bool:
        """Whether a contribution may count in a later round than it began in: in buffers, but for masked ones, whose
        masks are of one round."""
        return self.strategy.needs is Need.BUFFER and not self.spec.secure

    @property
    def next_round(self) -> int:
        """The index of the first round that is not in the weights."""
        return sum(state.done for state, _ in self._rounds.values())

    @property
    def weights_after(self) -> int:
        """How many rounds are in the weights."""
        return self.next_round

    async def say(self, state: str, why: str = "") -> None:
        """Notes how the run is; durable where that changes what it is after a restart."""
        if (state, why) == (self._state, self._why):
            return
        if state in ENDED:
            await self._ending()
        before, self._state, self._why = self._state, state, why
        if before != state:
            await asyncio.to_thread(self._store.set_state, self.name, state, why)
            self._log.info("run", run=self.name, state=state, why=why)
        self.changed.tell()

    def message(self, nodes: list[aggregator_pb2.RunNode]) -> aggregator_pb2.Run:
        """The run as others see it, without its rounds."""
        done = [report for state, report in self._rounds.values() if state.done]
        message = aggregator_pb2.Run(
            name=self.name,
            spec=self.spec.message,
            state=STATES[self._state],
            why=self._why,
            rounds_done=len(done),
            values=0 if self.weights is None else self.weights.values.size,
            nodes=nodes,
            epsilon=max((report.epsilon for report in done), default=0.0),
        )
        message.began_at.FromNanoseconds(self._record.began_ns)
        return message

    def rounds_from(self, first: int) -> Iterator[aggregator_pb2.RunRound]:
        """Its rounds as others see them, from one on."""
        for index in sorted(index for index in self._rounds if index >= first):
            yield round_message(*self._rounds[index])

    # Weights.

    async def begin(self, spans: Iterable[bytes], values: int) -> None:
        """Takes the first weights, span by span.

        Raises:
            InvalidInputError: They are of another size, or not finite.
        """
        await asyncio.to_thread(self._store.start_from, self.name, spans, values)
        await self.read_weights()

    async def read_weights(self) -> None:
        """Takes the weights that count."""
        values = await asyncio.to_thread(self._store.weights, self.name)
        self.weights = None if values is None else await asyncio.to_thread(named, values)

    # Rounds.

    def known(self, index: int) -> Round | None:
        """A round that was opened."""
        found = self._rounds.get(index)
        return None if found is None else found[0]

    def report(self, index: int) -> RoundReport:
        """What is shown of a round that was opened."""
        return self._rounds[index][1]

    def wants_figures(self, index: int) -> bool:
        """Whether the weights after a round are still to be measured."""
        found = self._rounds.get(index)
        return self.spec.message.evaluate and found is not None and found[0].done and not found[1].figures

    async def open(self, state: Round) -> None:
        """Writes a new round down."""
        await self.write(state)
        self._rounds[state.index] = (state, _new_report())

    def put(self, state: Round) -> None:
        """The round is this now."""
        self.round = state
        self._rounds[state.index] = (state, self._rounds[state.index][1])
        self.news.set()
        self.changed.tell()

    async def write(self, state: Round) -> None:
        """Writes a round down as it is now."""
        await asyncio.to_thread(self._store.put_round, self.name, state)

    async def put_figures(self, index: int, figures: dict[str, float]) -> None:
        """What the weights after a round are worth."""
        report = self.report(index)
        report.figures = figures
        await asyncio.to_thread(self._store.put_report, self.name, index, report.to_json())
        self.news.set()
        self.changed.tell()

    async def stage(self) -> StagedWeights:
        """A file for the weights after the round that is open, mapped into memory: what is in it is nobody's yet."""
        state, weights = self._at_work()
        size = weights.values.size
        return await asyncio.to_thread(self._store.stage_weights, self.name, state.index + 1, size)

    async def finish(
        self, combined: Mean | Each, staged: StagedWeights, note: Callable[[RoundReport], None]
    ) -> Round:
        """Makes what was combined the weights of the run, in one step with the round's end.

        Args:
            combined: What the strategy is given; its mean may lie in `staged`.
            staged: From `stage`.
            note: Fills in the round's report.

        Raises:
            InvalidInputError: The strategy refuses, or the weights would not be finite; then all is as before.
        """
        state, weights = self._at_work()

        def aggregate() -> None:
            self.strategy.aggregate(weights.values, combined, out=staged)
            # A span at a time: a mask of the whole would be a quarter of a model more.
            if not all(np.isfinite(staged[where]).all() for _, where in spans(staged.size)):
                raise InvalidInputError("the weights left the finite numbers: lower the rates", reason="NOT_FINITE")
            staged.flush()

        await asyncio.to_thread(aggregate)
        done = advance(state, Summed(state.index))
        report = self.report(state.index)
        report.done_ns = time.time_ns()
        last_ns = max([each.stored_ns for each in report.timings.values()], default=report.done_ns)
        report.sum_s = (report.done_ns - last_ns) / 1e9
        report.up_bytes = sum(stored.size_bytes for stored in state.stored.values())
        note(report)
        path = self._store.staged_path(self.name, state.index + 1)
        await asyncio.to_thread(
            self._store.finish_round, self.name, done, path, self.strategy.state(), report.to_json()
        )
        await self.read_weights()
        self.put(done)
        for sink in self._sinks:
            sink.put(round_spans(self.name, done, report, self.spec.slice))
        self._log.info("round_done", run=self.name, round=state.index, seconds=round(report.seconds, 3))
        self.changed.tell()
        return done

    def _at_work(self) -> tuple[Round, SentWeights]:
        if self.round is None or self.weights is None:
            raise InvalidInputError(f"no round of {self.name!r} is open", reason="STALE_ROUND")
        return self.round, self.weights

    async def wait(self, timeout_s: float | None) -> None:
        """Until there is news, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.news.wait()
        except TimeoutError:
            pass
        self.news.clear()


def _new_report() -> RoundReport:
    return RoundReport(trace_id=secrets.token_hex(16), began_ns=time.time_ns())
