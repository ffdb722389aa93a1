"""The nodes of a run: who takes part, who does not and why, and who is asked next."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from orbitmesh.v1 import aggregator_pb2, training_pb2
from services.aggregator.link import NodeLink
from services.aggregator.members import Members

OTHER_TENSORS = "its model has other tensors than the other nodes': install the same version of the task everywhere"
"""Why a node cannot take part that has another model."""

Model = tuple[bytes, int]
"""What a model is: the SHA-256 of the names and shapes of its tensors, and how many values they have."""


class Crew:
    """Who is in a run.

    Args:
        links: The ways to its nodes, by name.
        members: Who is in contact.
    """

    def __init__(self, links: Mapping[str, NodeLink], members: Members) -> None:
        self.links = links
        self.joined: dict[str, training_pb2.Joined] = {}
        self.excluded: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self.model: Model | None = None
        self.told: dict[str, int] = {}
        """How many examples each node had that a round has asked, also before a restart."""
        self._members = members
        self._asked: dict[str, tuple[int, int]] = {}
        self._lost: set[str] = set()

    def examples(self) -> dict[str, int]:
        """How many examples each node has that takes part."""
        return {node: joined.examples for node, joined in self.joined.items()}

    def examples_of(self, node: str) -> int:
        """How many examples a node contributes from: as it says, or has said before it was lost; 0 where it never
        did."""
        joined = self.joined.get(node)
        return self.told.get(node, 0) if joined is None else joined.examples

    def join(self, node: str, joined: training_pb2.Joined, values: int | None) -> str:
        """A node takes part; why it may not, or nothing.

        Args:
            node: Which.
            joined: What it says of itself.
            values: Values of the run's weights; None while there are none.
        """
        if values is not None and joined.values != values:
            return f"its model has {joined.values} values and the run's has {values}: install the same task everywhere"
        if not joined.examples:
            return "it has no examples"
        if self.model is not None and self.model != _model(joined):
            return OTHER_TENSORS
        self.joined[node] = joined
        return ""

    def settle(self) -> None:
        """The model that most nodes have is the run's, of two that are equally frequent the first node's; who has
        another one cannot take part, now or later."""
        models = {name: _model(self.joined[name]) for name in self.links if name in self.joined}
        if models:
            self.model = max(models.values(), key=list(models.values()).count)
        for name, model in models.items():
            if model != self.model:
                self.exclude(name, OTHER_TENSORS)

    def exclude(self, node: str, why: str) -> None:
        """A node cannot take part in this run."""
        self.joined.pop(node, None)
        self.excluded[node] = why

    @property
    def undecided(self) -> list[str]:
        """The nodes that have not said whether they take part."""
        return [name for name in self.links if name not in self.joined and name not in self.excluded]

    def lost(self, node: str) -> None:
        """A node was given up while it was out of reach: it is not asked again before it comes back."""
        if not self.links[node].attached:
            self._lost.add(node)

    def back(self, node: str) -> None:
        """A node is reached, or got further."""
        self._lost.discard(node)

    @property
    def eligible(self) -> list[str]:
        """Who may be asked now, in order."""
        # A session that is taken up again after a cut tells nobody: its node is back all the same.
        away = {name for name in self._lost if not self.links[name].attached}
        return [name for name in self.links if name in self.joined and name not in away]

    def choose(self, count: int, round_index: int) -> tuple[str, ...]:
        """Whom a round asks: those whose contact comes first, and among them who was asked least, longest ago."""
        never = (0, -1)
        ranked = sorted(self.eligible, key=lambda name: (self._members.away_s(name), *self._asked.get(name, never)))
        chosen = set(ranked[:count])
        cohort = tuple(name for name in self.links if name in chosen)
        self.asked(cohort, round_index)
        return cohort

    def asked(self, cohort: Iterable[str], round_index: int) -> None:
        """Takes note of whom a round asked; told of every round in order, also of those before a restart."""
        for name in cohort:
            self._asked[name] = (self._asked.get(name, (0, -1))[0] + 1, round_index)

    def named(self, nodes: Iterable[str]) -> str:
        """Nodes for people, with what is known of why they are not there."""
        up = set(self._members.up())
        return ", ".join(name if name in up else f"{name} (not up: is its executor started?)" for name in nodes)

    def payload_bytes(self, node: str) -> int:
        """What a node's contribution may take so that a contact carries it; 0 where nothing is planned."""
        return self._members.payload_bytes(node)

    def address(self, node: str) -> str:
        """host:port of a node; empty where it was never there."""
        known = self._members.address(node)
        return "" if known is None else known.address

    def as_head(self, node: str) -> tuple[float, ...]:
        """How good a node would be at adding up the contributions of its group: the least for one that is reached, and
        whose contact carries most."""
        payload = self._members.payload_bytes(node) or math.inf
        return float(not self.links[node].attached), self._members.away_s(node), -payload

    def evaluator(self, but: Collection[str] = ()) -> str | None:
        """Who measures weights, or gives the first: the first that is reached.

        Args:
            but: Who is not asked.
        """
        return next((name for name in self.eligible if self.links[name].attached and name not in but), None)

    def messages(self, given_up: Callable[[str], str], stored: Callable[[str], bool]) -> list[aggregator_pb2.RunNode]:
        """The nodes as others see them.

        Args:
            given_up: Why the round goes on without a node; nothing where it does not.
            stored: Whether a node's contribution to the round is durable.
        """
        found = []
        for name, link in self.links.items():
            state = aggregator_pb2.RUN_NODE_STATE_STORED if link.attached and stored(name) else link.state
            why = self.excluded.get(name) or given_up(name)
            if why and why == given_up(name) and name in self.why:
                why = f"{self.why[name]} ({why})"
            joined = self.joined.get(name)
            found.append(
                aggregator_pb2.RunNode(
                    name=name,
                    state=aggregator_pb2.RUN_NODE_STATE_GIVEN_UP if why else state,
                    examples=0 if joined is None else joined.examples,
                    step=link.step,
                    steps=link.steps,
                    why=why,
                    up_bytes=link.up_bytes,
                    down_bytes=link.down_bytes,
                )
            )
        return found

    @property
    def down_bytes(self) -> int:
        """Bytes that went to nodes since the start."""
        return sum(link.down_bytes for link in self.links.values())


def _model(joined: training_pb2.Joined) -> Model:
    return joined.layout_sha256, joined.values
