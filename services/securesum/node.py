"""The node's side of secure sums: what it keeps, what it gives away, and what it refuses.

Every method either does all of what it says or raises and changes nothing. What a method returned may leave the node
only after `to_state()` has been stored: a node that forgets what it has masked or answered can be made to do it again
with other data, and then two answers together reveal what each of them hides. A state is secret.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from orbitmesh.errors import InvalidInputError, PermissionError_
from orbitmesh.trust import Identity
from services.securesum.fields import to_text
from services.securesum.keys import OFFER_PURPOSE, Signed, sign_message, signed_key, unproven
from services.securesum.masks import KEY_BYTES, Mask, apply_masks, pair_mask, self_mask
from services.securesum.packing import Words, lane, pack
from services.securesum.roster import Roster, RosterMessage
from services.securesum.rounds import RoundPlan, UnmaskAnswer, UnmaskRequest, round_context
from services.securesum.shamir import SHARE_BYTES, Draw
from services.securesum.sharing import (
    BATCH_ROUNDS,
    Offer,
    OfferMessage,
    RoundSecrets,
    digest_of,
    make_batch,
    open_box,
    proven_offer,
)

OFFERS_HELD_MAX = 16
"""The most offers of one node that are held at a time: whoever sends more has to wait until rounds are retired."""
DIGEST_BYTES = 32
"""Size of a SHA-256, in bytes."""


class Masker:
    """Masks one contribution span by span; the same spans give the same bytes again.

    Args:
        plan: The round.
        context: What names the round, for the collector.
        masks: The masks with the peers, and the node's own.
    """

    def __init__(self, plan: RoundPlan, context: bytes, masks: list[Mask]) -> None:
        self.plan = plan
        self.context = context
        self._masks = masks

    def mask(self, span: int, words: Words) -> bytes:
        """One span, masked and packed.

        Args:
            span: Its index.
            words: Shape (plan.spans[span],), as `to_words` gives them; left as they are.

        Raises:
            InvalidInputError: The round has no such span, or it is of another size or type.
        """
        dtype = lane(self.plan.bits)
        expected = self.plan.spans[span] if 0 <= span < len(self.plan.spans) else None
        if words.dtype != dtype or words.shape != (expected,):
            raise InvalidInputError(
                f"span {span} has shape {words.shape} of {words.dtype}; expected {expected} words of {dtype}"
            )
        masked = words.copy()
        apply_masks(masked, self._masks, span)
        return pack(masked, self.plan.bits)


@dataclass
class _Held:
    """A node's offer as a peer holds it."""

    signed: Signed
    offer: Offer
    digest: bytes
    shares: dict[int, bytes] = field(repr=False)


class SumNode:
    """A node in the secure sums of one run.

    Args:
        name: The name in its identity.
        run: The run; a second set-up of the same training has another name.
        run_private: Its X25519 key of the run, 32 bytes.
    """

    def __init__(self, name: str, run: str, run_private: bytes) -> None:
        self.name = name
        self.run = run
        self.roster: Roster | None = None
        self._private = X25519PrivateKey.from_private_bytes(run_private)
        self._roster_message: RosterMessage | None = None
        self._offers: dict[str, list[_Held]] = {}
        self._seeds: dict[int, bytes] = {}
        self._secrets: dict[int, RoundSecrets] = {}
        self._contributed: dict[int, tuple[bytes, bytes]] = {}
        self._answers: dict[int, UnmaskAnswer] = {}
        self._retired_before = 0

    @classmethod
    def create(cls, name: str, run: str, draw: Draw) -> SumNode:
        """A node with a new run key from a source of random bytes."""
        return cls(name, run, draw(KEY_BYTES))

    def key(self, identity: Identity, now: datetime) -> Signed:
        """The run key, signed: the first thing that leaves the node."""
        return signed_key(identity, self.run, self._private.public_key().public_bytes_raw(), now)

    def join(self, message: RosterMessage, ca: x509.Certificate, now: datetime) -> None:
        """Takes the roster, once and for all.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, a key is not proven, or the one under this node's name is not its own.
            InvalidInputError: It is of another run, makes no sense, or differs from the one that was taken.
        """
        if message.run != self.run:
            raise InvalidInputError(f"the roster is of run {message.run}, expected {self.run}")
        roster = message.proven(ca, now)
        if roster.member(self.name).public != self._private.public_key().public_bytes_raw():
            raise unproven(self.name, "the roster has another key for this node than the one it made")
        if self.roster is not None and self.roster.digest != roster.digest:
            raise InvalidInputError(
                f"run {self.run} has a roster already and this is another one; set up anew under another run name",
                reason="FAILED_PRECONDITION",
            )
        self.roster, self._roster_message = roster, message

    def offer(
        self, identity: Identity, first_round: int, draw: Draw, now: datetime, rounds: int = BATCH_ROUNDS
    ) -> OfferMessage:
        """Secrets for some rounds, shared among all; for the same rounds the same ones again until one was used.

        Raises:
            InvalidInputError: There is no roster yet, some of the rounds have an offer already, or are retired.
        """
        roster = self._known_roster()
        for held in self._offers.get(self.name, []):
            same = (held.offer.first_round, len(held.offer.round_keys)) == (first_round, rounds)
            if same and first_round in self._seeds:
                batch = make_batch(roster, self.name, self._private, first_round, rounds, self._seeds[first_round])
                return OfferMessage(held.signed, batch.boxes)
        self._check_window(self.name, first_round, first_round + rounds)
        seed = draw(KEY_BYTES)
        batch = make_batch(roster, self.name, self._private, first_round, rounds, seed)
        body = batch.offer.to_bytes()
        signed = sign_message(identity, body, OFFER_PURPOSE, now)
        self._offers.setdefault(self.name, []).append(_Held(signed, batch.offer, digest_of(body), batch.own_shares))
        self._seeds[first_round] = seed
        self._secrets.update(batch.secrets)
        return OfferMessage(signed, batch.boxes)

    @property
    def offered_until(self) -> int:
        """The first round that this node has no secrets for yet."""
        return max([held.offer.end_round for held in self._offers.get(self.name, [])], default=self._retired_before)

    def held_offers(self) -> set[bytes]:
        """The digests of all offers that this node holds: the collector need not send them again."""
        return {held.digest for offers in self._offers.values() for held in offers}

    def take_offer(self, signed: Signed, box: bytes | None, ca: x509.Certificate, now: datetime) -> None:
        """Takes a peer's offer, and this node's shares of what is behind it.

        Args:
            signed: The offer.
            box: This node's box; None where it does not open: the node then takes part in rounds with that peer, and
                leaves its share to others.
            ca: The mesh's CA.
            now: The present.

        Raises:
            IdentityError: `MASK_KEY_UNPROVEN`, the offer is not by its node, for another roster, or this node's own
                of a state that it lost.
            SealError: The box does not open.
            InvalidInputError: Another offer covers some of its rounds, or they are retired.
        """
        roster = self._known_roster()
        offer = proven_offer(signed, roster, ca, now)
        offer_digest = digest_of(signed.body)
        if offer_digest in self.held_offers():
            return
        if offer.node == self.name:
            raise unproven(self.name, "this node has not made that offer, or has lost the secrets behind it")
        self._check_window(offer.node, offer.first_round, offer.end_round)
        shares = {} if box is None else open_box(roster, self.name, self._private, offer, offer_digest, box)
        for done in self._answers:
            shares.pop(done, None)
        self._offers.setdefault(offer.node, []).append(_Held(signed, offer, offer_digest, shares))

    def contribute(self, plan: RoundPlan, update_digest: bytes) -> Masker:
        """What masks this node's contribution to a round.

        Args:
            plan: The round.
            update_digest: SHA-256 of the update that will be masked, in full. A round's masks hide ONE update: asked
                again, after a restart for instance, the node masks that one again and no other.

        Raises:
            InvalidInputError: The plan makes no sense; this node is not in its cohort (`NOT_IN_COHORT`); the round is
                over (`STALE_ROUND`); another update or another cohort was masked in it (`CONTRIBUTION_REPLAYED`); an
                offer is missing (`FAILED_PRECONDITION`).
        """
        roster = self._known_roster()
        plan.check(roster)
        index = plan.round_index
        if self.name not in plan.cohort:
            raise InvalidInputError(f"{self.name} is not in the cohort of round {index}", reason="NOT_IN_COHORT")
        self._check_open(index)
        if index in self._answers:
            raise _over(index)
        context = self._context(plan)
        if len(update_digest) != DIGEST_BYTES:
            raise InvalidInputError(f"the digest of an update has {DIGEST_BYTES} bytes, not {len(update_digest)}")
        if self._contributed.get(index, (context, update_digest)) != (context, update_digest):
            raise InvalidInputError(
                f"{self.name} has contributed another update or to another cohort in round {index}; two differently "
                "masked ones would reveal what they differ in: take part in the next round",
                reason="CONTRIBUTION_REPLAYED",
            )
        masks = self._masks(plan, context)
        self._contributed[index] = (context, update_digest)
        self._forget_seed(index)
        return Masker(plan, context, masks)

    def unmask(self, request: UnmaskRequest) -> UnmaskAnswer:
        """This node's shares for one sum of a round: asked the same again, the same answer; any other is refused.

        With the answer all that this node holds of the round is deleted, so that it cannot give away the other kind
        of share later, whatever it is told.

        Raises:
            InvalidInputError: The request makes no sense, there are too few survivors (`TOO_FEW_SURVIVORS`), the
                round is retired (`STALE_ROUND`), or an offer is missing (`FAILED_PRECONDITION`).
            PermissionError_: `UNMASK_REFUSED`, the round was unmasked with other survivors, or this node was told
                another cohort.
        """
        roster = self._known_roster()
        request.check(roster)
        index = request.plan.round_index
        self._check_open(index)
        context = self._context(request.plan)
        asked = request.answer_context(context)
        answered = self._answers.get(index)
        if answered is not None:
            if answered.context != asked:
                raise _refused(index, "it has been unmasked with other survivors; both together reveal one update")
            return answered
        if index in self._contributed and self._contributed[index][0] != context:
            raise _refused(index, f"{self.name} contributed to another cohort or under other keys in it")
        survivors = set(request.survivors)
        shares = {}
        for name in request.plan.cohort:
            both = self._held(name, index).shares.get(index)
            if both is not None:
                shares[name] = both[SHARE_BYTES:] if name in survivors else both[:SHARE_BYTES]
        answer = UnmaskAnswer(self.name, asked, shares)
        self._answers[index] = answer
        for offers in self._offers.values():
            for held in offers:
                held.shares.pop(index, None)
        self._secrets.pop(index, None)
        self._forget_seed(index)
        return answer

    def retire(self, before_round: int) -> None:
        """Forgets everything about rounds before `before_round`; they are refused from now on."""
        self._retired_before = max(self._retired_before, before_round)
        for name, offers in self._offers.items():
            self._offers[name] = [held for held in offers if held.offer.end_round > self._retired_before]
            for held in self._offers[name]:
                held.shares = {index: share for index, share in held.shares.items() if index >= self._retired_before}
        for kept in (self._secrets, self._contributed, self._answers):
            for index in [index for index in kept if index < self._retired_before]:
                del kept[index]
        for first in [first for first in self._seeds if first < self._retired_before]:
            del self._seeds[first]

    def to_state(self) -> dict[str, Any]:
        """All of it, as what JSON can hold. Secret: store it sealed."""
        offers = [
            [to_text(held.signed.to_bytes()), {str(index): to_text(share) for index, share in held.shares.items()}]
            for held_of_node in self._offers.values()
            for held in held_of_node
        ]
        return {
            "name": self.name,
            "run": self.run,
            "run_private": to_text(self._private.private_bytes_raw()),
            "roster": to_text(self._roster_message.to_bytes()) if self._roster_message is not None else None,
            "offers": offers,
            "seeds": {str(first): to_text(seed) for first, seed in self._seeds.items()},
            "secrets": {
                str(index): [to_text(secret.mask_private), to_text(secret.self_secret)]
                for index, secret in self._secrets.items()
            },
            "contributed": {
                str(index): [to_text(part) for part in both] for index, both in self._contributed.items()
            },
            "answers": {str(index): to_text(answer.to_bytes()) for index, answer in self._answers.items()},
            "retired_before": self._retired_before,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SumNode:
        """The node as `to_state` saw it. Signatures were checked before the state was stored, and are not again."""
        node = cls(state["name"], state["run"], b64decode(state["run_private"]))
        if state["roster"] is not None:
            node._roster_message = RosterMessage.from_bytes(b64decode(state["roster"]))
            node.roster = node._roster_message.stored()
        for text, shares in state["offers"]:
            signed = Signed.from_bytes(b64decode(text))
            offer = Offer.from_bytes(signed.body)
            held = _Held(signed, offer, digest_of(signed.body), {int(k): b64decode(v) for k, v in shares.items()})
            node._offers.setdefault(offer.node, []).append(held)
        node._seeds = {int(first): b64decode(seed) for first, seed in state["seeds"].items()}
        node._secrets = {int(k): RoundSecrets(b64decode(a), b64decode(b)) for k, (a, b) in state["secrets"].items()}
        node._contributed = {int(k): (b64decode(a), b64decode(b)) for k, (a, b) in state["contributed"].items()}
        node._answers = {int(k): UnmaskAnswer.from_bytes(b64decode(v)) for k, v in state["answers"].items()}
        node._retired_before = state["retired_before"]
        return node

    def _known_roster(self) -> Roster:
        if self.roster is None:
            raise InvalidInputError(
                f"{self.name} has no roster of run {self.run} yet; send it the roster first",
                reason="FAILED_PRECONDITION",
            )
        return self.roster

    def _check_open(self, index: int) -> None:
        if index < self._retired_before:
            raise _over(index)

    def _check_window(self, name: str, first: int, end: int) -> None:
        held = self._offers.get(name, [])
        if any(first < other.offer.end_round and other.offer.first_round < end for other in held):
            raise InvalidInputError(
                f"another offer of {name} covers some of the rounds {first} to {end - 1}; secrets of a round are "
                "shared once: offer later rounds, or set up anew under another run name",
                reason="ALREADY_EXISTS",
            )
        if first < self._retired_before:
            raise _over(first)
        if len(held) >= OFFERS_HELD_MAX:
            raise InvalidInputError(
                f"{OFFERS_HELD_MAX} offers of {name} are held already; retire rounds first", reason="LIMIT_EXCEEDED"
            )

    def _held(self, name: str, index: int) -> _Held:
        for held in self._offers.get(name, []):
            if held.offer.first_round <= index < held.offer.end_round:
                return held
        raise InvalidInputError(
            f"{self.name} holds no offer of {name} for round {index}; send it that node's offer first",
            reason="FAILED_PRECONDITION",
            metadata={"node": name, "round": index},
        )

    def _context(self, plan: RoundPlan) -> bytes:
        return round_context(plan, {name: self._held(name, plan.round_index).digest for name in plan.cohort})

    def _masks(self, plan: RoundPlan, context: bytes) -> list[Mask]:
        index = plan.round_index
        own = self._secrets[index]
        private = X25519PrivateKey.from_private_bytes(own.mask_private)
        masks = [
            pair_mask(private, self.name, self._held(peer, index).offer.round_key(index), peer, context)
            for peer in plan.cohort
            if peer != self.name
        ]
        return [*masks, self_mask(own.self_secret, self.name, context)]

    def _forget_seed(self, index: int) -> None:
        # The offer has left the node once a round of it is under way; past rounds' secrets would follow from the seed.
        for held in self._offers.get(self.name, []):
            if held.offer.first_round <= index < held.offer.end_round:
                self._seeds.pop(held.offer.first_round, None)


def _over(index: int) -> InvalidInputError:
    return InvalidInputError(
        f"round {index} is over at this node; go on with a later one", reason="STALE_ROUND", metadata={"round": index}
    )


def _refused(index: int, why: str) -> PermissionError_:
    return PermissionError_(
        f"round {index} is not unmasked: {why}", reason="UNMASK_REFUSED", metadata={"round": index}
    )
