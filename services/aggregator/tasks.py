"""What each node of a run is told to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orbitmesh.v1 import training_pb2
from services.aggregator.book import RunBook
from services.aggregator.combining import Combining
from services.aggregator.crew import Crew
from services.aggregator.groups import Groups, tell
from services.aggregator.orders import Assignment
from services.aggregator.rounds import Round
from services.aggregator.spool import Spool

JOIN = training_pb2.TRAINING_KIND_JOIN
INITIALISE = training_pb2.TRAINING_KIND_INITIALISE
TRAIN = training_pb2.TRAINING_KIND_TRAIN
EVALUATE = training_pb2.TRAINING_KIND_EVALUATE


@dataclass(frozen=True)
class Measuring:
    """Which weights are being measured."""

    sha256: bytes
    """The weights."""
    index: int
    """The round that they are after."""
    node: str
    """Who measures them."""


class Tasks:
    """Orders for the nodes of a run.

    Args:
        book: The run.
        crew: Its nodes.
        combining: How contributions are combined.
        spool: Where contributions go.
        first_spool: Where the first weights go.
        going_on: What all runs are called on the wire that have not ended.
        groups: Who adds up whose contributions.
    """

    def __init__(
        self,
        book: RunBook,
        crew: Crew,
        combining: Combining,
        spool: Spool,
        first_spool: Spool,
        going_on: Callable[[], Iterable[str]],
        groups: Groups,
    ) -> None:
        self.measuring: Measuring | None = None
        self._book = book
        self._crew = crew
        self._combining = combining
        self._going_on = going_on
        self._spool = spool
        self._first = first_spool
        self._groups = groups

    def give_out(self) -> None:
        """Gives every node of the round that has not contributed its work, and rest to the others."""
        state = self._book.round
        if state is None or state.done:
            return
        self._groups.plan(state)
        for node, link in self._crew.links.items():
            held = link.assignment
            if node not in self._crew.joined:
                continue  # it is still to join
            if node not in state.waiting:
                link.assign(None)
            elif held is None or held.kind != TRAIN or self._is_over(held, state):
                link.assign(self.assignment(node, TRAIN, state.index))
            elif self._groups.differs(held.work, node):
                work = training_pb2.TrainingWork()
                work.CopyFrom(held.work)
                tell(work, self._groups, node, self._crew.address)
                link.amend(replace(held, work=work))

    def _is_over(self, held: Assignment, state: Round) -> bool:
        """Whether what a node was told to do is of no use any more: in buffers a late contribution still is, but not
        where it is masked for a sum that is over."""
        return held.round_index != state.index and not self._book.takes_late

    def assignment(self, node: str, kind: training_pb2.TrainingKind, index: int) -> Assignment:
        """What a node is to do.

        Args:
            node: Which.
            kind: What.
            index: The round.
        """
        spec, weights = self._book.spec, self._book.weights
        work = training_pb2.TrainingWork(spec=spec.message, node_index=spec.nodes.index(node), nodes=len(spec.nodes))
        if kind == INITIALISE:
            return Assignment(kind, index, work, spool=self._first)
        if kind == JOIN or weights is None:
            work.going_on.extend(self._going_on())
            return Assignment(kind, index, work)
        work.weights.CopyFrom(weights.info())
        if kind == EVALUATE:
            self.measuring = Measuring(weights.sha256, index - 1, node)
            return Assignment(kind, index, work, weights)
        work.overrides = json.dumps(self._book.strategy.configure(index))
        work.evaluate = self._book.wants_figures(index - 1) and node == self._crew.evaluator()
        if work.evaluate:
            self.measuring = Measuring(weights.sha256, index - 1, node)
        work.payload_bytes = self._crew.payload_bytes(node)
        self._combining.fill(work, node)
        tell(work, self._groups, node, self._crew.address)
        return Assignment(kind, index, work, weights, self._spool, self._combining.check(index))

    def oldest_at_work(self, default: int) -> int:
        """The earliest round that a node still works for."""
        held = [link.assignment for link in self._crew.links.values()]
        return min([each.round_index for each in held if each is not None and each.kind == TRAIN], default=default)


def end_order() -> training_pb2.TrainingInfo:
    """Tells a node that the run is over."""
    return training_pb2.TrainingInfo(order=training_pb2.TrainingOrder(kind=training_pb2.TRAINING_KIND_END))
