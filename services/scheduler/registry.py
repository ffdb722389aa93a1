"""Who is a member of the mesh, with what measures. Pure: time comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass

from orbitmesh.errors import CapacityError
from orbitmesh.v1 import executor_pb2, scheduler_pb2

NODES_MAX = 1024
"""How many nodes the scheduler keeps in mind."""
FORGET_AFTER_S = 3600.0
"""How long a lost node stays in the list, in seconds."""


@dataclass
class NodeRecord:
    """A node as it last described itself."""

    name: str
    """Its name, from its certificate."""
    measures: scheduler_pb2.HeartbeatRequest
    """Its last heartbeat."""
    last_seen_s: float
    """When that was, monotonic, in seconds."""
    last_seen_at_ns: int
    """The same on the wall clock, in nanoseconds since 1970."""
    beats: int = 1
    """Heartbeats since it joined."""
    lives: int = 1
    """How many processes have spoken for it; each counts its heartbeats from one."""
    stream: int = 0
    """The stream that brought the last heartbeat, from `Registry.open_stream`."""
    joined_s: float = float("-inf")
    """When the process that speaks for it now was first heard, monotonic, in seconds."""


class Registry:
    """The nodes and their leases.

    Args:
        lease_s: For how long a heartbeat makes a node a member, in seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._nodes: dict[str, NodeRecord] = {}
        self._streams = 0

    def open_stream(self) -> int:
        """A number for a new stream of heartbeats: the process behind a later one is the one that lives."""
        self._streams += 1
        return self._streams

    def heartbeat(
        self, name: str, measures: scheduler_pb2.HeartbeatRequest, now_s: float, now_ns: int, stream: int = 0
    ) -> NodeRecord:
        """Takes a heartbeat in, unless a later one was taken before: what came late says nothing of now.

        Args:
            name: The node.
            measures: What it says of itself.
            now_s: The monotonic clock, in seconds.
            now_ns: The wall clock, in nanoseconds since 1970.
            stream: The stream that brought it, from `open_stream`; 0 where order is not looked at.

        Raises:
            CapacityError: Where there are too many nodes.
        """
        known = self._nodes.get(name)
        if known is not None and stream and (stream, measures.sequence) <= (known.stream, known.measures.sequence):
            return known
        if known is None and len(self._nodes) >= NODES_MAX:
            self._forget(now_s)
            if len(self._nodes) >= NODES_MAX:
                raise CapacityError(f"{NODES_MAX} nodes are registered, the most this scheduler takes")
        anew = known is None or 0 < measures.sequence <= known.measures.sequence
        # A process that starts anew has forgotten its stages, however soon it came back.
        beats = 1 if known is None or anew or not self.is_member(known, now_s) else known.beats + 1
        lives = 1 if known is None else known.lives + anew
        joined_s = now_s if known is None or beats == 1 else known.joined_s
        self._nodes[name] = NodeRecord(name, measures, now_s, now_ns, beats, lives, stream, joined_s)
        return self._nodes[name]

    def leave(self, name: str, stream: int = 0) -> None:
        """Ends a node's lease now: its stream closed in order. The end of one that was replaced says nothing."""
        record = self._nodes.get(name)
        if record is not None and record.stream == stream:
            record.last_seen_s = float("-inf")

    def is_member(self, record: NodeRecord, now_s: float) -> bool:
        """True while the lease holds."""
        return now_s - record.last_seen_s <= self.lease_s

    def state(self, record: NodeRecord, now_s: float) -> scheduler_pb2.NodeState:
        """The state of a node."""
        if not self.is_member(record, now_s):
            return scheduler_pb2.NODE_STATE_LOST
        return scheduler_pb2.NODE_STATE_DRAINING if record.measures.draining else scheduler_pb2.NODE_STATE_UP

    def get(self, name: str) -> NodeRecord | None:
        """A node by name."""
        return self._nodes.get(name)

    def all(self) -> list[NodeRecord]:
        """Every node, by name, also lost ones."""
        return sorted(self._nodes.values(), key=lambda record: record.name)

    def up(self, now_s: float) -> list[NodeRecord]:
        """The nodes that take new work, by name."""
        return [record for record in self.all() if self.state(record, now_s) == scheduler_pb2.NODE_STATE_UP]

    def peers_of(self, name: str, now_s: float) -> list[executor_pb2.PeerAddress]:
        """The other members."""
        return [peer_address(record) for record in self.all() if record.name != name and self.is_member(record, now_s)]

    def message(self, record: NodeRecord, now_s: float) -> scheduler_pb2.Node:
        """A node as others see it."""
        message = scheduler_pb2.Node(name=record.name, state=self.state(record, now_s), measures=record.measures)
        message.last_seen.FromNanoseconds(record.last_seen_at_ns)
        return message

    def _forget(self, now_s: float) -> None:
        for name, record in list(self._nodes.items()):
            if now_s - record.last_seen_s > FORGET_AFTER_S:
                del self._nodes[name]


def peer_address(record: NodeRecord) -> executor_pb2.PeerAddress:
    """Where a node's executor is reached."""
    return executor_pb2.PeerAddress(role="executor", name=record.name, address=record.measures.address)
