"""What a node of a run is told to do, and what the way to it tells of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orbitmesh.v1 import training_pb2
from services.aggregator.rounds import Stored
from services.aggregator.spool import Spool
from services.aggregator.weights import SentWeights

CheckSpan = Callable[[int, memoryview], None]
"""Raises where a span of a contribution is none."""


@dataclass(frozen=True)
class Assignment:
    """What a node is to do now."""

    kind: training_pb2.TrainingKind
    """What."""
    round_index: int
    """The round."""
    work: training_pb2.TrainingWork
    """What the node has to know."""
    weights: SentWeights | None = None
    """The weights to work on."""
    spool: Spool | None = None
    """Where its contribution goes."""
    check: CheckSpan | None = None
    """What each span has to be."""


class Events(Protocol):
    """What a link tells: the run's driver."""

    def connected(self, node: str) -> None:
        """The node is reached."""

    def joined(self, node: str, joined: training_pb2.Joined) -> None:
        """It takes part."""

    def moved(self, node: str) -> None:
        """The node got further than it was."""

    async def announced(self, node: str, assignment: Assignment, info: training_pb2.ContributionInfo) -> None:
        """A contribution is about to come; raises where it is not to be taken. What it gives away is accounted for
        on return."""

    async def arrived(
        self, node: str, assignment: Assignment, stored: Stored, info: training_pb2.ContributionInfo
    ) -> None:
        """Its contribution is durable; raises where it does not count."""

    async def refused(self, node: str, assignment: Assignment, refusal: training_pb2.TrainingRefusal) -> None:
        """It will not do what it was asked, or what it sent was not taken."""

    async def evaluated(self, node: str, evaluation: training_pb2.Evaluation) -> None:
        """It has measured weights."""

    async def sums(self, node: str, round_index: int, kind: int, body: bytes) -> None:
        """A message of secure sums."""

    def counts(self, node: str, round_index: int) -> bool:
        """Whether a node's contribution to a round is durable in a sum that was made on the way."""

    def collected(self, node: str, nodes: Sequence[str]) -> None:
        """The head of a group has the contributions of these nodes."""
