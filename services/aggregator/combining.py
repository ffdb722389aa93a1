"""From the contributions of a round to what its strategy is given; `secure` is the way on which only sums are seen."""

from __future__ import annotations

import asyncio
from typing import Protocol

from orbitmesh.v1 import training_pb2
from services.aggregator.orders import CheckSpan
from services.aggregator.plain import Part, check_span, each_of, mean_of
from services.aggregator.rounds import Round
from services.aggregator.spec import RunSpec
from services.aggregator.spool import Spool
from services.aggregator.strategies.base import Each, Mean, Need, Strategy
from services.updates.spans import Floats


class Combining(Protocol):
    """How contributions are combined."""

    async def prepare(self, state: Round, values: int) -> None:
        """Whatever has to be agreed before a round's first order. It may wait for nodes."""

    def fill(self, work: training_pb2.TrainingWork, node: str) -> None:
        """What a node has to know beside the rest."""

    def takes(self, node: str) -> bool:
        """Whether a node of the cohort can contribute after all."""

    def check(self, round_index: int) -> CheckSpan:
        """What looks at each span of a contribution as it comes in."""

    def check_header(self, info: training_pb2.ContributionInfo) -> None:
        """Raises InvalidInputError where a contribution is not for this round."""

    async def combine(self, state: Round, strategy: Strategy, out: Floats) -> Mean | Each:
        """What the strategy is given of a round that is ready. It may wait for nodes.

        Args:
            state: The round.
            strategy: What the result is for.
            out: Where a mean is put, shape (d,).

        Raises:
            OutlierError: One contribution is not to be counted; the round decides what follows.
        """

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """A message of secure sums from a node."""

    def connected(self, node: str) -> None:
        """A node is reached: what it was told may have been lost."""


class PlainCombining:
    """The aggregator sees every contribution.

    Args:
        spec: The run.
        spool: Where contributions are.
    """

    def __init__(self, spec: RunSpec, spool: Spool) -> None:
        self._spec = spec
        self._spool = spool
        self._values = 0

    async def prepare(self, state: Round, values: int) -> None:
        """Nothing is agreed."""
        self._values = values

    def fill(self, work: training_pb2.TrainingWork, node: str) -> None:
        """Nothing more is to be known."""

    def takes(self, node: str) -> bool:
        """Everybody can."""
        return True

    def check_header(self, info: training_pb2.ContributionInfo) -> None:
        """Nothing is agreed that it could miss."""

    def check(self, round_index: int) -> CheckSpan:
        """Each span is decoded as it comes: what is no update is refused at once."""
        return check_span(self._spec.scheme, self._values, round_index)

    async def combine(self, state: Round, strategy: Strategy, out: Floats) -> Mean | Each:
        """Decodes all contributions in step."""
        scheme, values = self._spec.scheme, self._values
        parts = [self._part(state, node, strategy) for node in state.cohort if node in state.stored]
        if strategy.needs is Need.EACH:
            return each_of(parts, scheme, values)
        return await asyncio.to_thread(mean_of, parts, scheme, out)

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """No such message is due."""

    def connected(self, node: str) -> None:
        """Nothing was told."""

    def _part(self, state: Round, node: str, strategy: Strategy) -> Part:
        stored = state.stored[node]
        weight = strategy.weight(stored.examples, state.index - stored.begun)
        return Part(node, weight, stored.begun, lambda: self._spool.spans(stored.begun, node))
