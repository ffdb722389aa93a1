"""The aggregator's side of the set-up: it gathers signed keys and offers, and hands them on.

It knows no secret and is trusted with none: whatever it changes on the way is refused by the nodes.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from orbitmesh.errors import InvalidInputError
from services.securesum.fields import to_text
from services.securesum.keys import Member, Signed, claimed_key, proven_key
from services.securesum.roster import NODES_MAX, Roster, RosterMessage, default_colluders, default_threshold
from services.securesum.rounds import RoundPlan
from services.securesum.sharing import Offer, OfferMessage, digest_of, proven_offer
from services.securesum.summing import Party, RoundSum


@dataclass(frozen=True, slots=True)
class Relayed:
    """An offer on its way to a node."""

    signed: Signed
    """The offer."""
    box: bytes
    """The node's box."""
    digest: bytes
    """32 bytes that name the offer: the node has it where `SumNode.held_offers` says so."""


@dataclass
class _Stored:
    signed: Signed
    offer: Offer
    digest: bytes
    boxes: dict[str, bytes]


class SumCollector:
    """Gathers the keys and offers of one run.

    Args:
        run: The run; a second set-up of the same training has another name.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.roster: Roster | None = None
        self._keys: dict[str, Signed] = {}
        self._offers: dict[str, list[_Stored]] = {}

    def add_key(self, signed: Signed, ca: x509.Certificate, now: datetime) -> Member:
        """Takes a node's run key; the same one again changes nothing.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, it is not signed by its node.
            InvalidInputError: The node has sent another one, or the roster is closed.
        """
        member = proven_key(signed, self.run, ca, now)
        known = self._keys.get(member.name)
        if known is not None and known.body == signed.body:
            return member
        if known is not None:
            raise InvalidInputError(
                f"{member.name} has another key in run {self.run} already; set up anew under another run name",
                reason="ALREADY_EXISTS",
            )
        if self.roster is not None or len(self._keys) >= NODES_MAX:
            raise InvalidInputError(
                f"the roster of run {self.run} is closed or full; {member.name} can take part after the next set-up",
                reason="FAILED_PRECONDITION",
            )
        self._keys[member.name] = signed
        return member

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes whose keys are there."""
        return tuple(sorted(self._keys))

    def close_roster(
        self, ca: x509.Certificate, now: datetime, threshold: int | None = None, colluders: int | None = None
    ) -> RosterMessage:
        """The roster of all nodes whose keys are there; from now on it stays as it is.

        Args:
            ca: The mesh's CA.
            now: The present.
            threshold: How many nodes are needed to unmask; two thirds and one where left out.
            colluders: How many nodes may side with a lying aggregator; as many as the smallest cohort bears where left
                out.

        Raises:
            InvalidInputError: The threshold makes no sense for so many nodes.
        """
        if self.roster is None:
            wanted = default_threshold(len(self._keys)) if threshold is None else threshold
            borne = default_colluders(len(self._keys), wanted) if colluders is None else colluders
            self.roster = self._message(wanted, borne).proven(ca, now)
        return self.roster_message()

    def roster_message(self) -> RosterMessage:
        """The roster, for every node."""
        roster = self._known_roster()
        return self._message(roster.threshold, roster.colluders)

    def add_offer(self, message: OfferMessage, ca: x509.Certificate, now: datetime) -> Offer:
        """Takes a node's offer with its boxes; the same one again changes nothing.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, it is not signed by its node or is for another roster.
            InvalidInputError: The boxes are not for all other nodes, or another offer covers some of its rounds.
        """
        roster = self._known_roster()
        offer = proven_offer(message.signed, roster, ca, now)
        stored = self._offers.setdefault(offer.node, [])
        offer_digest = digest_of(message.signed.body)
        if any(other.digest == offer_digest for other in stored):
            return offer
        if set(message.boxes) != set(roster.places) - {offer.node}:
            raise InvalidInputError(f"the offer of {offer.node} has not a box for each other node; send it again")
        if any(offer.first_round < old.offer.end_round and old.offer.first_round < offer.end_round for old in stored):
            raise InvalidInputError(
                f"another offer of {offer.node} covers some of the rounds {offer.first_round} to "
                f"{offer.end_round - 1}; offer later rounds, or set up anew under another run name",
                reason="ALREADY_EXISTS",
            )
        stored.append(_Stored(message.signed, offer, offer_digest, dict(message.boxes)))
        return offer

    def relay(self, node: str, held: Collection[bytes] = ()) -> Iterable[Relayed]:
        """The offers that a node lacks, one after the other.

        Args:
            node: Whose boxes.
            held: The digests of what it has.
        """
        for stored in self._all():
            if stored.offer.node != node and stored.digest not in held and node in stored.boxes:
                yield Relayed(stored.signed, stored.boxes[node], stored.digest)

    def delivered(self, node: str, held: Collection[bytes]) -> None:
        """A node has stored these offers: its boxes need not be kept."""
        for stored in self._all():
            if stored.digest in held:
                stored.boxes.pop(node, None)

    def sharers(self, round_index: int) -> tuple[str, ...]:
        """The nodes that have offered secrets for a round: its cohort is chosen among them."""
        return tuple(sorted(stored.offer.node for stored in self._covering(round_index)))

    def offer_digest(self, node: str, round_index: int) -> bytes | None:
        """The digest of a node's offer for a round; None where it has made none."""
        return next((one.digest for one in self._covering(round_index) if one.offer.node == node), None)

    def begin_round(self, round_index: int, cohort: Collection[str], spans: tuple[int, ...], bits: int) -> RoundSum:
        """The sum of one round.

        Args:
            round_index: The round.
            cohort: Who is asked for a contribution.
            spans: How many words each span has (`spans_of`).
            bits: The width of a word (`word_bits`).

        Raises:
            InvalidInputError: As `RoundPlan.check`; or a node has offered no secrets for the round.
        """
        roster = self._known_roster()
        plan = RoundPlan(roster.digest, round_index, bits, spans, tuple(sorted(cohort)))
        plan.check(roster)
        offers = {stored.offer.node: stored for stored in self._covering(round_index)}
        lacking = [name for name in plan.cohort if name not in offers]
        if lacking:
            raise InvalidInputError(
                f"{', '.join(lacking)} offered no secrets for round {round_index}; leave them out of its cohort or "
                "ask them for an offer",
                reason="FAILED_PRECONDITION",
            )
        return RoundSum(roster, plan, {name: _party(offers[name], round_index) for name in plan.cohort})

    def retire(self, before_round: int) -> None:
        """Forgets the offers for rounds before `before_round`."""
        for name, stored in self._offers.items():
            self._offers[name] = [one for one in stored if one.offer.end_round > before_round]

    def to_state(self) -> dict[str, Any]:
        """All of it, as what JSON can hold. Nothing in it is secret from the aggregator."""
        return {
            "run": self.run,
            "closed": [self.roster.threshold, self.roster.colluders] if self.roster is not None else None,
            "keys": [to_text(signed.to_bytes()) for signed in self._keys.values()],
            "offers": [to_text(OfferMessage(stored.signed, stored.boxes).to_bytes()) for stored in self._all()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SumCollector:
        """The collector as `to_state` saw it. Signatures were checked before, and are not again."""
        collector = cls(state["run"])
        for text in state["keys"]:
            signed = Signed.from_bytes(b64decode(text))
            collector._keys[claimed_key(signed.body)[1].name] = signed
        if state["closed"] is not None:
            collector.roster = collector._message(*state["closed"]).stored()
        for text in state["offers"]:
            message = OfferMessage.from_bytes(b64decode(text))
            offer = Offer.from_bytes(message.signed.body)
            stored = _Stored(message.signed, offer, digest_of(message.signed.body), message.boxes)
            collector._offers.setdefault(offer.node, []).append(stored)
        return collector

    def _message(self, threshold: int, colluders: int) -> RosterMessage:
        return RosterMessage(self.run, threshold, colluders, tuple(self._keys[name] for name in sorted(self._keys)))

    def _known_roster(self) -> Roster:
        if self.roster is None:
            raise InvalidInputError(f"the roster of run {self.run} is not closed yet", reason="FAILED_PRECONDITION")
        return self.roster

    def _all(self) -> list[_Stored]:
        return [one for stored in self._offers.values() for one in stored]

    def _covering(self, round_index: int) -> list[_Stored]:
        return [one for one in self._all() if one.offer.first_round <= round_index < one.offer.end_round]


def _party(stored: _Stored, round_index: int) -> Party:
    return Party(stored.offer.round_key(round_index), stored.offer.commitment(round_index), stored.digest)
