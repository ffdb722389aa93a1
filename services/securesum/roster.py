"""The nodes of a run, their proven keys, and how many of them are needed to unmask a sum."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from cryptography import x509

from orbitmesh.errors import InvalidInputError
from services.securesum.fields import digest, join_fields, number, read_number, read_text, split_fields
from services.securesum.keys import Member, Signed, claimed_key, proven_key

NODES_MAX = 1_024
"""The most nodes of a run."""
HONEST_MIN = 2
"""A sum over fewer honest nodes than this is a single update."""


def default_threshold(nodes: int) -> int:
    """Two thirds of the nodes and one: a third may vanish, and a third may side with the aggregator."""
    return min(nodes, 2 * nodes // 3 + 1)


def smallest_sum(nodes: int, threshold: int, cohort: int, colluders: int) -> int:
    """Of how many honest nodes, at least, a sum is that a lying aggregator can learn.

    It may tell every node other cohorts and other survivors, and `colluders` nodes tell it all they hold. To learn the
    sum over s honest nodes it needs the round keys of all other honest nodes in their cohort, each from threshold - c
    honest nodes. One node's answer gives away at most n - t of them, as a request names t survivors or more of at most
    n nodes, and the s nodes answer for their own cohort of k only. So s is out of reach while

        (k - c - s) (t - c)  >  (n - c - s) (n - t) + s (k - t).

    Both secrets of one node take (n - c) + 2 c >= 2 t answers.

    Args:
        nodes: n, all nodes of the run.
        threshold: t.
        cohort: k, the nodes in the round.
        colluders: c.
    """
    if colluders >= threshold or nodes + colluders >= 2 * threshold:
        return min(1, cohort - colluders)
    for size in range(1, cohort - colluders):
        needed = (cohort - colluders - size) * (threshold - colluders)
        given = (nodes - colluders - size) * (nodes - threshold) + size * (cohort - threshold)
        if needed <= given:
            return size
    return cohort - colluders


def colluders_tolerated(nodes: int, threshold: int, cohort: int) -> int:
    """How many nodes may side with an aggregator that lies to everybody, and every sum it learns is still of two honest
    nodes or more; -1 where not even none. (An aggregator that tells everybody the same needs `threshold` colluders to
    open a contribution.)"""
    tolerated = -1
    while tolerated + 1 < cohort and smallest_sum(nodes, threshold, cohort, tolerated + 1) >= HONEST_MIN:
        tolerated += 1
    return tolerated


def default_colluders(nodes: int, threshold: int) -> int:
    """As many as the smallest possible cohort bears."""
    return max(0, colluders_tolerated(nodes, threshold, threshold))


def check_threshold(nodes: int, threshold: int, colluders: int) -> None:
    """Refuses a threshold that cannot keep what is promised, even with all nodes in a round.

    Raises:
        InvalidInputError: Some lie of the aggregator would open a single contribution; or the threshold is never met.
    """
    sensible = 2 <= threshold <= nodes <= NODES_MAX and 0 <= colluders < nodes
    if not sensible or smallest_sum(nodes, threshold, nodes, colluders) < HONEST_MIN:
        raise InvalidInputError(
            f"a threshold of {threshold} of {nodes} nodes of which {colluders} collude protects nobody or is never met"
            f"; expected more than half of the nodes and the colluders, and at most all, of up to {NODES_MAX} (two "
            f"thirds and one is the default: {default_threshold(nodes)})"
        )


@dataclass(frozen=True)
class Roster:
    """The nodes of a run whose keys are proven. A member's place in the order is what its shares are made for."""

    run: str
    """The run; a second set-up of the same training has another name."""
    threshold: int
    """How many nodes are needed to unmask, and how many contributions a sum has at least."""
    colluders: int
    """How many nodes may side with a lying aggregator: cohorts that are too small for it are refused."""
    members: tuple[Member, ...]
    """In the order of their names."""

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name run, threshold, colluders, nodes and keys: everything later is bound to it."""
        fields = [field for member in self.members for field in (member.name.encode(), member.public)]
        return digest(b"roster", self.run.encode(), number(self.threshold), number(self.colluders), *fields)

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
    colluders: int
    """How many nodes may side with a lying aggregator."""
    keys: tuple[Signed, ...]
    """The run keys, as each node signed its own."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        head = (self.run.encode(), number(self.threshold), number(self.colluders))
        return join_fields(*head, *(key.to_bytes() for key in self.keys))

    @classmethod
    def from_bytes(cls, data: bytes) -> RosterMessage:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        what = "a roster"
        fields = split_fields(data, what)
        if len(fields) < 3:
            raise InvalidInputError("a roster without run, threshold and colluders; send it again")
        keys = tuple(Signed.from_bytes(field) for field in fields[3:])
        return cls(read_text(fields[0], what), read_number(fields[1], what), read_number(fields[2], what), keys)

    def proven(self, ca: x509.Certificate, now: datetime) -> Roster:
        """The roster, once every signature has been checked.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, a key is not signed by its node for this run.
            InvalidInputError: A node comes twice, or the threshold makes no sense.
        """
        check_threshold(len(self.keys), self.threshold, self.colluders)
        members = [proven_key(key, self.run, ca, now) for key in self.keys]
        return Roster(self.run, self.threshold, self.colluders, _in_order(members))

    def stored(self) -> Roster:
        """The roster of a message that was `proven` before it was stored."""
        members = [claimed_key(key.body)[1] for key in self.keys]
        return Roster(self.run, self.threshold, self.colluders, _in_order(members))


def _in_order(members: list[Member]) -> tuple[Member, ...]:
    ordered = tuple(sorted(members, key=lambda member: member.name))
    if len({member.name for member in ordered}) != len(ordered):
        raise InvalidInputError("a node is named twice in a roster; each node has one key in a run")
    return ordered
