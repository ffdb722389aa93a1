"""Stages leave a node that drains: each moves to another one before its own goes, as before a window closes."""

from __future__ import annotations

from orbitmesh.contacts import MeshClock
from orbitmesh.errors import NodeLostError
from orbitmesh.v1 import scheduler_pb2
from services.scheduler.book import Held, hand_over_of
from services.scheduler.crew import Crew
from services.scheduler.hand_over import Move
from services.scheduler.registry import NodeRecord

SETTLE_S = 1.0
"""For how long a node must have wanted no new work, in seconds: where a whole mesh is stopped, all say so at once, and
there is nobody to move to."""
MOVE_S = 60.0
"""After so long the successor takes the place also where a gateway has not moved its generations, in real seconds."""


class Draining:
    """Knows which nodes drain, and since when."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._since_s: dict[str, float] = {}

    def look(self, members: list[NodeRecord], now_s: float) -> frozenset[str]:
        """The nodes that have wanted no new work for a while.

        Args:
            members: The nodes whose lease holds.
            now_s: The time, monotonic.
        """
        wanting = {record.name for record in members if record.measures.draining}
        self._since_s = {name: self._since_s.get(name, now_s) for name in wanting}
        return frozenset(name for name, since_s in self._since_s.items() if now_s - since_s >= SETTLE_S)

    def move(self, held: Held, index: int, now_s: float, clock: MeshClock) -> Move:
        """Where a stage goes from its node.

        Args:
            held: The deployment.
            index: The stage's place.
            now_s: The time, monotonic.
            clock: The mesh's.

        Raises:
            NodeLostError: `NO_SPARE_NODE`, no other node can take it now.
        """
        name, source = held[0].name, held[0].pipeline[index].name
        ranked = self._crew.spares_for(held, index, now_s, {source})
        if not ranked:
            raise NodeLostError(
                f"{source} drains, and no node that is up can take stage {index} of {name!r} from it: add a "
                "node, or one with more memory",
                reason="NO_SPARE_NODE",
                metadata={"deployment": name, "stage_index": index, "node": source},
            )
        target = ranked[0].node
        closes_s = clock.now_s() + MOVE_S * clock.factor
        return Move(index, source, target, closes_s, f"{source} drains; {target} takes its stage")


def places_on(deployment: scheduler_pb2.Deployment, nodes: frozenset[str]) -> list[int]:
    """The places of a deployment on these nodes from which no move is planned yet."""
    return [
        index
        for index, node in enumerate(deployment.pipeline)
        if node.name in nodes and hand_over_of(deployment, index) is None
    ]
