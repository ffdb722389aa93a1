"""What nodes hold: what their heartbeats say, corrected by what was loaded since, and who is suspected. Pure."""

from __future__ import annotations

from orbitmesh.v1 import executor_pb2
from services.scheduler.registry import NodeRecord, Registry

REPORT_WITHIN_S = 2.0
"""How long after loading a stage a heartbeat without it is still believed to be an old one, in seconds."""
BEATS_BEFORE_REPAIR = 2
"""Heartbeats without the stage before it is loaded again."""
SUSPECT_S = 30.0
"""How long a node that a gateway cannot reach gets no new stages, in seconds; less where its process starts anew."""

START_GRACE_S = 15.0
"""How long after its start the scheduler thinks well of nodes that have not spoken yet, in seconds: they dial again
after pauses that grow to a third of this."""

Place = tuple[str, int, str]
"""Deployment, stage index, node."""


class Holdings:
    """Who holds which stage. Time is monotonic, in seconds, and comes in as an argument.

    Args:
        registry: The nodes.
        started_s: When the scheduler started.
    """

    def __init__(self, registry: Registry, started_s: float) -> None:
        self._registry = registry
        self._started_s = started_s
        self._loaded_s: dict[Place, float] = {}
        self._coming: dict[Place, int] = {}
        self._suspects: dict[str, tuple[float, int]] = {}

    # Loading.

    def coming(self, place: Place, memory_bytes: int) -> None:
        """A stage is being loaded: its memory is spoken for although no heartbeat shows it yet."""
        self._coming[place] = memory_bytes

    def arrived(self, place: Place, now_s: float) -> None:
        """It is loaded."""
        self._coming.pop(place, None)
        self._loaded_s[place] = now_s

    def gone(self, place: Place) -> None:
        """It was not loaded, or was unloaded."""
        self._coming.pop(place, None)
        self._loaded_s.pop(place, None)

    def is_coming(self, place: Place) -> bool:
        """Whether it is being loaded now."""
        return place in self._coming

    def free_bytes(self, record: NodeRecord, now_s: float) -> int:
        """Memory of a node that new stages may take, in bytes: what it reported, less what has come since."""
        spoken_for = sum(size for (_, _, node), size in self._coming.items() if node == record.name)
        return max(0, int(record.measures.memory_free_bytes) - spoken_for)

    # Looking.

    def member(self, node: str, now_s: float) -> NodeRecord | None:
        """The node's record while its lease holds."""
        record = self._registry.get(node)
        return record if record is not None and self._registry.is_member(record, now_s) else None

    def reported(self, place: Place) -> executor_pb2.Stage | None:
        """The stage as the node last reported it, or None."""
        name, index, node = place
        record = self._registry.get(node)
        if record is None:
            return None
        return next((s for s in record.measures.stages if (s.deployment, s.stage_index) == (name, index)), None)

    def lost(self, place: Place, now_s: float) -> bool:
        """True where a member has spoken often enough without the stage to be sure that it lacks it."""
        record = self.member(place[2], now_s)
        if record is None or record.beats < BEATS_BEFORE_REPAIR:
            return False
        # A heartbeat that left the node before it had loaded says nothing about the stage.
        if record.last_seen_s < self._loaded_s.get(place, 0.0) + REPORT_WITHIN_S:
            return False
        return self.reported(place) is None

    def serves(self, place: Place, now_s: float) -> bool:
        """True where the node is a member and is not known to lack the stage, or could not have spoken yet."""
        return not self.away(place[2], now_s) and not self.lost(place, now_s)

    def away(self, node: str, now_s: float) -> bool:
        """True where the node is no member, and has had the time to become one."""
        if self._registry.get(node) is None and now_s - self._started_s < START_GRACE_S:
            return False
        return self.member(node, now_s) is None

    # Suspicion.

    def suspect(self, node: str, now_s: float) -> None:
        """A gateway cannot reach it."""
        record = self._registry.get(node)
        self._suspects[node] = (now_s + SUSPECT_S, record.lives if record is not None else 0)

    def is_suspect(self, node: str, now_s: float) -> bool:
        """Whether it should get no new stages."""
        until_s, lives = self._suspects.get(node, (float("-inf"), 0))
        if now_s >= until_s:
            self._suspects.pop(node, None)
            return False
        record = self._registry.get(node)
        return record is None or record.lives == lives
