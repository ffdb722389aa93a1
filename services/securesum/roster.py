"""The nodes of a run, their proven keys, and how many of them are needed to unmask a sum."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from cryptography import x509

from orbitmesh.errors import InvalidInputError
from services.securesum.fields import join_fields, number, read_number, read_text, split_fields
from services.securesum.keys import Member, Signed, claimed_key, proven_key, roster_digest

NODES_MAX = 1_024
"""The most nodes of a run."""


def default_threshold(nodes: int) -> int:
    """Two thirds of the nodes and one: a third may vanish, and a third may side with the aggregator."""
    return min(nodes, 2 * nodes // 3 + 1)


def colluders_tolerated(nodes: int, threshold: int) -> int:
    """How many nodes may side with an aggregator that lies to everybody, and it still learns no single update.

    An aggregator that tells two groups of nodes different survivors needs `threshold` answers from each. Honest nodes
    answer one of them, colluders both: (nodes - c) + 2 c < 2 * threshold. Where the aggregator tells everybody the
    same, threshold - 1 may collude.
    """
    return 2 * threshold - nodes - 1


def check_threshold(nodes: int, threshold: int) -> None:
    """Refuses a threshold under which two halves of the nodes could each unmask another sum.

    Raises:
        InvalidInputError: It is not above half of the nodes, or above all of them.
    """
    if not 2 <= threshold <= nodes <= NODES_MAX or 2 * threshold <= nodes:
        raise InvalidInputError(
            f"a threshold of {threshold} of {nodes} nodes protects nobody or is never met; expected more than half of "
            f"the nodes, at least 2 and at most all of them, of up to {NODES_MAX} (two thirds is the default: "
            f"{default_threshold(nodes)})"
        )


@dataclass(frozen=True)
class Roster:
    """The nodes of a run whose keys are proven. A member's place in the order is what its shares are made for."""

    run: str
    """The run; a second set-up of the same training has another name."""
    threshold: int
    """How many nodes are needed to unmask, and how many contributions a sum has at least."""
    members: tuple[Member, ...]
    """In the order of their names."""

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name run, threshold, nodes and keys."""
        return roster_digest(self.run, self.threshold, self.members)

    @cached_property
    def places(self) -> dict[str, int]:
        """From a name to its place, from 0."""
        return {member.name: place for place, member in enumerate(self.members)}

    def member(self, name: str) -> Member:
        """The node of that name.

        Raises:
            InvalidInputError: `NOT_IN_COHORT`, there is none.
        """
        place = self.places.get(name)
        if place is None:
            raise InvalidInputError(f"{name} is no node of run {self.run}", reason="NOT_IN_COHORT")
        return self.members[place]


@dataclass(frozen=True, slots=True)
class RosterMessage:
    """How a roster travels: every node checks every signature itself."""

    run: str
    """The run."""
    threshold: int
    """How many nodes are needed to unmask."""
    keys: tuple[Signed, ...]
    """The run keys, as each node signed its own."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        return join_fields(self.run.encode(), number(self.threshold), *(key.to_bytes() for key in self.keys))

    @classmethod
    def from_bytes(cls, data: bytes) -> RosterMessage:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        fields = split_fields(data, "a roster")
        if len(fields) < 2:
            raise InvalidInputError("a roster without run and threshold; send it again")
        keys = tuple(Signed.from_bytes(field) for field in fields[2:])
        return cls(read_text(fields[0], "a roster"), read_number(fields[1], "a roster"), keys)

    def proven(self, ca: x509.Certificate, now: datetime) -> Roster:
        """The roster, once every signature has been checked.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, a key is not signed by its node for this run.
            InvalidInputError: A node comes twice, or the threshold makes no sense.
        """
        check_threshold(len(self.keys), self.threshold)
        return Roster(self.run, self.threshold, _in_order([proven_key(key, self.run, ca, now) for key in self.keys]))

    def stored(self) -> Roster:
        """The roster of a message that was `proven` before it was stored."""
        return Roster(self.run, self.threshold, _in_order([claimed_key(key.body)[1] for key in self.keys]))


def _in_order(members: list[Member]) -> tuple[Member, ...]:
    ordered = tuple(sorted(members, key=lambda member: member.name))
    if len({member.name for member in ordered}) != len(ordered):
        raise InvalidInputError("a node is named twice in a roster; each node has one key in a run")
    return ordered
