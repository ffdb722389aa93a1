"""The nodes of a run: who takes part, who does not and why, and who is asked next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from orbitmesh.v1 import aggregator_pb2, training_pb2
from services.aggregator.link import NodeLink
from services.aggregator.members import Members


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
        self._members = members
        self._asked: dict[str, tuple[int, int]] = {}
        self._lost: set[str] = set()

    def examples(self) -> dict[str, int]:
        """How many examples each node has that takes part."""
        return {node: joined.examples for node, joined in self.joined.items()}

    def join(self, node: str, joined: training_pb2.Joined, values: int | None) -> str:
        """A node takes part; why it may not, or nothing.

        Args:
            node: Which.
            joined: What it says of itself.
            values: Values of the run's weights; None while there are none.
        """
        others = [each for name, each in self.joined.items() if name != node]
        first = others[0] if others else joined
        if values is not None and joined.values != values:
            return f"its model has {joined.values} values and the run's has {values}: install the same task everywhere"
        if joined.layout_sha256 != first.layout_sha256:
            return "its model has other tensors than the other nodes': install the same version of the task everywhere"
        if not joined.examples:
            return "it has no examples"
        self.joined[node] = joined
        return ""

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
        """A node is reached."""
        self._lost.discard(node)

    @property
    def eligible(self) -> list[str]:
        """Who may be asked now, in order."""
        return [name for name in self.links if name in self.joined and name not in self._lost]

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

    def payload_bytes(self, node: str) -> int:
        """What a node's contribution may take so that a contact carries it; 0 where nothing is planned."""
        return self._members.payload_bytes(node)

    def evaluator(self) -> str | None:
        """Who measures weights: the first that is reached."""
        return next((name for name in self.eligible if self.links[name].attached), None)

    def messages(self, given_up: Callable[[str], str]) -> list[aggregator_pb2.RunNode]:
        """The nodes as others see them."""
        found = []
        for name, link in self.links.items():
            why = self.excluded.get(name) or given_up(name)
            if why and why == given_up(name) and name in self.why:
                why = f"{self.why[name]} ({why})"
            joined = self.joined.get(name)
            found.append(
                aggregator_pb2.RunNode(
                    name=name,
                    state=aggregator_pb2.RUN_NODE_STATE_GIVEN_UP if why else link.state,
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
