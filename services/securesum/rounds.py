"""The messages of one round: its plan, the request to unmask it, and a node's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from orbitmesh.errors import InvalidInputError
from services.securesum.fields import digest, join_fields, number, read_number, read_text, split_fields
from services.securesum.packing import check_bits
from services.securesum.roster import HONEST_MIN, Roster, smallest_sum
from services.securesum.shamir import SHARE_BYTES
from services.securesum.sharing import ROUNDS_MAX
from services.updates.spans import SPAN_VALUES, span_count, span_length

SPANS_MAX = 1 << 18
"""The most spans of a vector."""


def spans_of(values: int) -> tuple[int, ...]:
    """The spans of a vector of `values` values, all full but the last."""
    return tuple(span_length(span, values) for span in range(span_count(values)))


@dataclass(frozen=True)
class RoundPlan:
    """What is summed in a round, and by whom."""

    roster_digest: bytes
    """The roster, 32 bytes."""
    round_index: int
    """The round."""
    bits: int
    """The width of a word: sums are modulo 2^bits."""
    spans: tuple[int, ...]
    """How many words each span has; at most SPAN_VALUES."""
    cohort: tuple[str, ...]
    """The nodes that are asked for a contribution, in the order of their names."""

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name the plan."""
        return digest(b"plan", self.to_bytes())

    def to_bytes(self) -> bytes:
        """One byte string."""
        sizes = np.array(self.spans, ">u4").tobytes()
        names = (name.encode() for name in self.cohort)
        return join_fields(self.roster_digest, number(self.round_index), number(self.bits), sizes, *names)

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundPlan:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        what = "a round's plan"
        fields = split_fields(data, what)
        if len(fields) < 4 or len(fields[3]) % 4:
            raise InvalidInputError(f"{what} is cut; send it again")
        sizes = tuple(int(size) for size in np.frombuffer(fields[3], ">u4"))
        cohort = tuple(read_text(name, what) for name in fields[4:])
        return cls(fields[0], read_number(fields[1], what), read_number(fields[2], what), sizes, cohort)

    def check(self, roster: Roster) -> None:
        """Refuses a plan that cannot be carried out, or that protects nobody.

        Raises:
            InvalidInputError: It is for another roster, its numbers are out of range, a node comes twice, is unknown
                (`NOT_IN_COHORT`), or the nodes are fewer than the threshold or too few to hide one
                (`TOO_FEW_SURVIVORS`, see `smallest_sum`).
        """
        if self.roster_digest != roster.digest:
            raise InvalidInputError(f"the plan of round {self.round_index} is for another roster; fetch the roster")
        check_bits(self.bits)
        if not 0 <= self.round_index < ROUNDS_MAX or len(self.spans) > SPANS_MAX:
            raise InvalidInputError(f"round {self.round_index} with {len(self.spans)} spans is out of range")
        if not self.spans or not all(0 <= size <= SPAN_VALUES for size in self.spans):
            raise InvalidInputError(f"a span has at most {SPAN_VALUES} words, and a vector at least one span")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise InvalidInputError("a cohort names each node once, in the order of the names")
        for name in self.cohort:
            roster.member(name)
        check_enough(len(self.cohort), roster.threshold, "nodes in the cohort")
        nodes, cohort = len(roster.members), len(self.cohort)
        honest = smallest_sum(nodes, roster.threshold, cohort, roster.colluders)
        if honest < HONEST_MIN:
            raise InvalidInputError(
                f"a cohort of {cohort} of {nodes} nodes with a threshold of {roster.threshold} leaves an aggregator "
                f"that lies and has {roster.colluders} colluders a way to open one contribution; put more nodes into "
                "the cohort, or set up anew with fewer nodes or a higher threshold",
                reason="TOO_FEW_SURVIVORS",
                metadata={"cohort": cohort, "threshold": roster.threshold},
            )


def round_context(plan: RoundPlan, offer_digests: Mapping[str, bytes]) -> bytes:
    """32 bytes that name a round: its plan and the offers of all nodes in it. All masks of the round follow from it.

    Nodes that were told different things therefore make masks that do not cancel: their sum is noise.
    """
    return digest(b"round", plan.to_bytes(), *(offer_digests[name] for name in plan.cohort))


@dataclass(frozen=True, slots=True)
class UnmaskRequest:
    """Whose contributions are in the sum. It is asked of every node of the roster that can be reached."""

    plan: RoundPlan
    """The round."""
    survivors: tuple[str, ...]
    """The nodes whose contributions are in the sum, in the order of their names."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        return join_fields(self.plan.to_bytes(), *(name.encode() for name in self.survivors))

    @classmethod
    def from_bytes(cls, data: bytes) -> UnmaskRequest:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        fields = split_fields(data, "a request to unmask")
        if not fields:
            raise InvalidInputError("a request to unmask without a plan; send it again")
        names = tuple(read_text(name, "a request to unmask") for name in fields[1:])
        return cls(RoundPlan.from_bytes(fields[0]), names)

    def check(self, roster: Roster) -> None:
        """Refuses a request that would reveal too much.

        Raises:
            InvalidInputError: As `RoundPlan.check`; or a survivor is not of the cohort (`NOT_IN_COHORT`), or there are
                fewer survivors than the threshold (`TOO_FEW_SURVIVORS`).
        """
        self.plan.check(roster)
        if list(self.survivors) != sorted(set(self.survivors)):
            raise InvalidInputError("survivors are named once each, in the order of the names")
        strangers = set(self.survivors) - set(self.plan.cohort)
        if strangers:
            raise InvalidInputError(
                f"{', '.join(sorted(strangers))} cannot have survived round {self.plan.round_index}: not in its cohort",
                reason="NOT_IN_COHORT",
            )
        check_enough(len(self.survivors), roster.threshold, "survivors")

    def answer_context(self, context: bytes) -> bytes:
        """32 bytes that name the request in the round of that context."""
        return digest(b"unmask", context, *(name.encode() for name in self.survivors))


@dataclass(frozen=True, slots=True)
class UnmaskAnswer:
    """A node's shares: of the self secret of every survivor, of the round's private key of every other node."""

    node: str
    """Who answers."""
    context: bytes
    """What the answer is for, 32 bytes."""
    shares: dict[str, bytes]
    """From a node of the cohort to the share of the one secret; a node whose box did not open is missing."""

    def to_bytes(self) -> bytes:
        """One byte string."""
        shares = [part for name in sorted(self.shares) for part in (name.encode(), self.shares[name])]
        return join_fields(self.node.encode(), self.context, *shares)

    @classmethod
    def from_bytes(cls, data: bytes) -> UnmaskAnswer:
        """What `to_bytes` made; raises InvalidInputError where it is not."""
        what = "an answer to unmask"
        fields = split_fields(data, what)
        shares = fields[3::2]
        if len(fields) < 2 or len(fields) % 2 or any(len(share) != SHARE_BYTES for share in shares):
            raise InvalidInputError(f"{what} is cut or holds a share that is none; send it again")
        names = [read_text(name, what) for name in fields[2::2]]
        return cls(read_text(fields[0], what), fields[1], dict(zip(names, shares, strict=True)))


def check_enough(count: int, threshold: int, what: str) -> None:
    """Refuses fewer than the threshold.

    Raises:
        InvalidInputError: `TOO_FEW_SURVIVORS`.
    """
    if count < threshold:
        raise InvalidInputError(
            f"there are {count} {what} and {threshold} are needed; nothing was revealed: wait for more nodes or begin "
            "another round",
            reason="TOO_FEW_SURVIVORS",
            metadata={"count": count, "threshold": threshold},
        )
