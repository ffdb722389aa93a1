"""What the nodes of a run tell, and what follows from it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orbitmesh.errors import REASONS, InvalidInputError
from orbitmesh.v1 import training_pb2
from services.aggregator.orders import Assignment
from services.aggregator.rounds import Arrived, GivenUp, Phase, Round, Stored, advance
from services.aggregator.tasks import INITIALISE, JOIN, TRAIN
from services.updates.faults import malformed
from services.updates.spans import span_count

if TYPE_CHECKING:
    from services.aggregator.driver import RunDriver

MESSAGE_CHARACTERS = 500
"""How much of what a node gives as its reason is kept."""
FIGURES_MAX = 16
"""How many figures of weights are kept."""
FIGURE_CHARACTERS = 64
"""The longest name of one."""


class Listening:
    """The ear of a run's driver; `link.Events`.

    Args:
        driver: The run.
    """

    def __init__(self, driver: RunDriver) -> None:
        self._driver = driver

    def connected(self, node: str) -> None:
        """A node is reached."""
        self._driver.crew.back(node)
        self._driver.combining.connected(node)
        self._driver.book.news.set()

    def moved(self, node: str) -> None:
        """It got further."""
        self._driver.crew.back(node)
        self._driver.patience.moved(node)

    def joined(self, node: str, joined: training_pb2.Joined) -> None:
        """A node takes part, or may not."""
        book, crew = self._driver.book, self._driver.crew
        why = crew.join(node, joined, None if book.weights is None else book.weights.values.size)
        if why:
            crew.exclude(node, why)
        crew.links[node].assign(None)
        self._driver.tasks.give_out()
        book.news.set()
        book.changed.tell()

    async def announced(self, node: str, assignment: Assignment, info: training_pb2.ContributionInfo) -> None:
        """A contribution is about to come.

        Raises:
            IntegrityError: `UPDATE_MALFORMED`, it has more or fewer spans than the model.
            InvalidInputError: It is not for this round, or not what was asked.
        """
        joined = self._driver.crew.joined.get(node)
        if joined is None:
            raise InvalidInputError(f"{node} takes no part in this run", reason="NOT_IN_COHORT")
        if info.spans != span_count(joined.values):
            raise malformed(f"{joined.values} values come as {info.spans} spans, expected {span_count(joined.values)}")
        self._check_examples(node, info.examples)
        for part in info.summed:
            self._check_examples(part.node, part.examples)
        if assignment.kind == TRAIN:
            await self._driver.announced(node, assignment.round_index, info)

    def _check_examples(self, node: str, examples: int) -> None:
        known = self._driver.crew.examples_of(node)
        if examples != known:
            # It would weigh more, or less, in the mean than everybody was told.
            raise InvalidInputError(
                f"{node} contributes from {examples} examples and has joined with {known}: its data may not change "
                "during a run"
            )

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
        book = self._driver.book
        state = await self._buffer() if book.takes_late else book.round
        if state is None or state.done:
            raise InvalidInputError(f"no round of {book.name!r} is open", reason="STALE_ROUND")
        if info.HasField("loss") and math.isfinite(info.loss):
            self._driver.losses[node] = (info.loss, stored.examples)
        stored = replace(stored, begun=assignment.round_index)
        if not book.takes_late:
            book.put(advance(state, Arrived(node, assignment.round_index, stored)))
        self._note_times(node, state.index, info)
        if not book.takes_late:
            await self._in_sum(stored, state.index)
            return
        # Whether it counts or comes too late: what is awaited of the node next is another contribution.
        self._driver.crew.links[node].assign(None)
        try:
            book.strategy.weight(stored.examples, state.index - stored.begun)  # raises where it is too late
            state = advance(state, Arrived(node, state.index, stored))
        except InvalidInputError:
            self._driver.tasks.give_out()
            raise
        book.put(state)
        # It cannot be told from its file which buffer it is in.
        await book.write(state)

    def _note_times(self, node: str, index: int, info: training_pb2.ContributionInfo) -> None:
        if info.spans:  # else it was found on disk: nobody knows its times
            links, timings = self._driver.crew.links, self._driver.book.report(index).timings
            timings[node] = links[node].timing(info.train_s)
            for part in info.summed:
                timings[part.node] = links[part.node].timing(part.train_s)

    async def _in_sum(self, stored: Stored, index: int) -> None:
        """Tells those that came in the sum of another, and whoever else of a group has to know what arrived."""
        for other in stored.others:
            await self._driver.crew.links[other].acknowledge(index)
        if self._driver.groups:
            self._driver.tasks.give_out()

    async def _buffer(self) -> Round | None:
        """The round that takes contributions: while one is being summed, the one that follows.

        Raises:
            InvalidInputError: `STALE_ROUND`, none follows.
        """
        driver = self._driver
        while (state := driver.book.round) is not None and state.phase in (Phase.READY, Phase.DONE):
            if driver.is_ending or state.index + 1 >= driver.spec.message.rounds:
                raise InvalidInputError(
                    f"the last round of {driver.name!r} is closed: this came too late", reason="STALE_ROUND"
                )
            await driver.book.changed.after(driver.book.changed.version)
        return state

    async def _take_first(self, node: str) -> None:
        book, crew, spool = self._driver.book, self._driver.crew, self._driver.first_spool
        crew.links[node].assign(None)
        try:
            if book.weights is not None:
                raise InvalidInputError(f"{book.name!r} has its first weights already", reason="STALE_ROUND")
            await book.begin(spool.spans(0, node), crew.joined[node].values)
        except InvalidInputError as error:
            if book.weights is None:
                crew.exclude(node, f"{error.message} ({error.reason})")
            raise
        finally:
            await asyncio.to_thread(spool.clear, 1)
            book.news.set()

    async def refused(self, node: str, assignment: Assignment, refusal: training_pb2.TrainingRefusal) -> None:
        """A node does not do what it was asked, or what it sent was not taken."""
        book, crew = self._driver.book, self._driver.crew
        state = book.round
        # What a node says may be anything: people read it, and programs look it up.
        reason = refusal.reason if refusal.reason in REASONS else "INTERNAL"
        message = refusal.message[:MESSAGE_CHARACTERS]
        if assignment.kind in (JOIN, INITIALISE):
            crew.exclude(node, f"{message} ({reason})")
        elif assignment.kind == TRAIN and state is not None and not state.done and node in state.cohort:
            book.put(advance(state, GivenUp(node, state.index, reason)))
        crew.links[node].assign(None)
        if self._driver.groups:
            self._driver.tasks.give_out()
        crew.why[node] = message
        book.news.set()
        book.changed.tell()

    def counts(self, node: str, round_index: int) -> bool:
        """Whether a node's contribution to a round is durable in a sum that was made on the way."""
        state = self._driver.book.known(round_index)
        stored = None if state is None else state.stored.get(node)
        return stored is not None and bool(stored.via or stored.others)

    def collected(self, node: str, nodes: Sequence[str]) -> None:
        """The head of a group has the contributions of these nodes."""
        is_more, lost = self._driver.groups.collected(node, nodes)
        if is_more:
            self._driver.patience.moved(node)
        for each in lost:
            link = self._driver.crew.links[each]
            if link.assignment is not None:
                link.amend(link.assignment)

    async def evaluated(self, node: str, evaluation: training_pb2.Evaluation) -> None:
        """Weights were measured."""
        asked = self._driver.tasks.measuring
        if asked is None or (evaluation.sha256, node) != (asked.sha256, asked.node):
            return
        said = sorted(evaluation.figures.items())[:FIGURES_MAX]
        figures = {name[:FIGURE_CHARACTERS]: value for name, value in said if math.isfinite(value)}
        await self._driver.book.put_figures(asked.index, figures)

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """A message of secure sums."""
        await self._driver.combining.sums(node, round_index, kind, body)
